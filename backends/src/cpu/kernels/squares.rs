//! Sums of squares in f64: `sum_squares`, the norms of `lamb`.

use std::ops::Range;

use lxpod_ir::DType;

use super::simd::{LANES, Simd};
use super::view::Row;
use super::{Kernels, View};

/// Σ x² over some columns of the first row of x, in f64: element i of the range in lane i mod 8.
///
/// # Panics
/// If x has no such columns.
pub fn sum_squares(kernels: &Kernels, x: View<'_>, range: Range<usize>) -> f64 {
    let x = x.row_range(0..1).col_range(range);
    // SAFETY: a table exists only for a CPU that can run it; x has a row.
    unsafe { (kernels.sum_squares)(x) }
}

/// Eight sums side by side.
#[derive(Clone, Copy, Default)]
pub(super) struct Squares([f64; LANES]);

impl Squares {
    /// Adds the squares of the first min(n, 8) values, each to the sum of its lane. An f64 holds the square of an f32
    /// exactly.
    #[inline(always)]
    pub(super) fn add(&mut self, mut values: [f32; LANES], n: usize) {
        if n < LANES {
            values[n..].fill(0.0);
        }
        for (sum, value) in self.0.iter_mut().zip(values) {
            *sum += f64::from(value) * f64::from(value);
        }
    }

    /// The sum of the lanes: pairs four apart, then two apart, then neighbours.
    #[inline(always)]
    pub(super) fn total(self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// The body of [`sum_squares`].
///
/// # Safety
/// x has a row.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, x: View<'_>) -> f64 {
    let (row, cols) = (x.row(0), x.cols());
    match x.dtype() {
        // SAFETY: the columns exist.
        DType::F32 => unsafe { sum(s, row.known(Some(DType::F32)), cols) },
        // SAFETY: as above.
        _ => unsafe { sum(s, row, cols) },
    }
}

/// # Safety
/// The row has so many columns.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, row: Row, cols: usize) -> f64 {
    /// How many elements further the row is asked for.
    const AHEAD: usize = 1024;
    let mut sums = Squares::default();
    let whole = cols - cols % LANES;
    for c in (0..whole).step_by(LANES) {
        s.prefetch(row.at(c + AHEAD));
        // SAFETY: the columns exist.
        sums.add(s.unpack(unsafe { row.load(s, c) }), LANES);
    }
    if whole < cols {
        // SAFETY: as above.
        let values = unsafe { row.load_part(s, whole, cols - whole) };
        sums.add(s.unpack(values), cols - whole);
    }
    sums.total()
}
