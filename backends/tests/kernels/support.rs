//! Matrices of any float dtype and stride, and what the tests measure with them.

use half::{bf16, f16};
use lxpod_backends::cpu::kernels::{Kernels, View, ViewMut};
use lxpod_ir::DType;
use proptest::prelude::*;

/// A generator of numbers: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in -1..1.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// What fills the places between rows, which no kernel may touch.
const SENTINEL: f32 = 77.0;

enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

/// A matrix with gaps between its rows.
pub(crate) struct Matrix {
    data: Data,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stride: usize,
}

impl Matrix {
    pub(crate) fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        gap: usize,
        mut value: impl FnMut(usize, usize) -> f32,
    ) -> Self {
        let stride = cols + gap;
        let mut at = |i: usize| {
            if i % stride < cols {
                value(i / stride, i % stride)
            } else {
                SENTINEL
            }
        };
        let n = rows * stride;
        let data = match dtype {
            DType::F32 => Data::F32((0..n).map(at).collect()),
            DType::F16 => Data::F16((0..n).map(|i| f16::from_f32(at(i))).collect()),
            DType::BF16 => Data::BF16((0..n).map(|i| bf16::from_f32(at(i))).collect()),
            DType::I32 | DType::Bool => panic!("not a float: {dtype}"),
        };
        Matrix {
            data,
            rows,
            cols,
            stride,
        }
    }

    pub(crate) fn random(
        random: &mut Random,
        dtype: DType,
        rows: usize,
        cols: usize,
        gap: usize,
    ) -> Self {
        Self::new(dtype, rows, cols, gap, |_, _| random.next())
    }

    /// A matrix to write to.
    pub(crate) fn output(dtype: DType, rows: usize, cols: usize, gap: usize) -> Self {
        Self::new(dtype, rows, cols, gap, |_, _| -33.0)
    }

    pub(crate) fn view(&self) -> View<'_> {
        match &self.data {
            Data::F32(data) => View::strided(data, self.rows, self.cols, self.stride),
            Data::F16(data) => View::strided(data, self.rows, self.cols, self.stride),
            Data::BF16(data) => View::strided(data, self.rows, self.cols, self.stride),
        }
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        match &mut self.data {
            Data::F32(data) => ViewMut::strided(data, self.rows, self.cols, self.stride),
            Data::F16(data) => ViewMut::strided(data, self.rows, self.cols, self.stride),
            Data::BF16(data) => ViewMut::strided(data, self.rows, self.cols, self.stride),
        }
    }

    /// The same memory to read and to write, for kernels that work in place.
    pub(crate) fn in_place(&mut self) -> (View<'_>, ViewMut<'_>) {
        let (view, mut places) = self.in_places(1);
        (view, places.remove(0))
    }

    /// [`Matrix::in_place`], to write so many times, one time after the other.
    pub(crate) fn in_places(&mut self, times: usize) -> (View<'_>, Vec<ViewMut<'_>>) {
        let (data, dtype) = match &mut self.data {
            Data::F32(data) => (data.as_mut_ptr().cast::<u8>(), DType::F32),
            Data::F16(data) => (data.as_mut_ptr().cast(), DType::F16),
            Data::BF16(data) => (data.as_mut_ptr().cast(), DType::BF16),
        };
        let (extent, stride) = ([self.rows, self.cols], self.stride);
        // SAFETY: the rows exist, and such a kernel reads each element before it writes it.
        unsafe {
            let place = |_| ViewMut::from_raw_parts(data, dtype, extent, stride);
            (
                View::from_raw_parts(data, dtype, extent, stride),
                (0..times).map(place).collect(),
            )
        }
    }

    fn raw(&self, i: usize) -> f32 {
        match &self.data {
            Data::F32(data) => data[i],
            Data::F16(data) => data[i].to_f32(),
            Data::BF16(data) => data[i].to_f32(),
        }
    }

    pub(crate) fn get(&self, r: usize, c: usize) -> f32 {
        assert!(c < self.cols);
        self.raw(r * self.stride + c)
    }

    pub(crate) fn set(&mut self, r: usize, c: usize, value: f32) {
        let i = r * self.stride + c;
        match &mut self.data {
            Data::F32(data) => data[i] = value,
            Data::F16(data) => data[i] = f16::from_f32(value),
            Data::BF16(data) => data[i] = bf16::from_f32(value),
        }
    }

    /// The bits of row `r`.
    pub(crate) fn bits(&self, r: usize) -> Vec<u32> {
        (0..self.cols).map(|c| self.get(r, c).to_bits()).collect()
    }

    /// Fails if anything between the rows was written.
    pub(crate) fn check_gaps(&self) {
        for i in (0..self.rows * self.stride).filter(|i| i % self.stride >= self.cols) {
            assert!(
                self.raw(i) == SENTINEL,
                "element {i} is outside the rows and was written"
            );
        }
    }

    /// Fails if an element is further from `want` (which gives a value and the error allowed in f32) than that and one rounding to the dtype.
    pub(crate) fn check(
        &self,
        dtype: DType,
        what: &str,
        mut want: impl FnMut(usize, usize) -> (f64, f64),
    ) {
        self.check_gaps();
        for r in 0..self.rows {
            for c in 0..self.cols {
                let (want, allowed) = want(r, c);
                let got = f64::from(self.get(r, c));
                let allowed = allowed + half_step(dtype, want);
                assert!(
                    (got - want).abs() <= allowed,
                    "{what}: ({r}, {c}) is {got}, not {want} ± {allowed}"
                );
            }
        }
    }
}

/// The error of one rounding to a dtype.
fn half_step(dtype: DType, value: f64) -> f64 {
    let (digits, smallest) = match dtype {
        DType::F16 => (11, 25),
        DType::BF16 => (8, 134),
        _ => (24, 150),
    };
    (value.abs() * 0.5_f64.powi(digits)).max(0.5_f64.powi(smallest)) * 1.001
}

pub(crate) fn float() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

pub(crate) fn tables() -> Vec<&'static Kernels> {
    Kernels::all_supported().collect()
}

/// Runs a property on `cases` inputs.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
