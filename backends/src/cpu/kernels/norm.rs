//! `layer_norm`, with the residual sum before it.

use std::ops::Range;

use lxpod_ir::DType;

use super::simd::{LANES, Simd, sum_lanes};
use super::view::Row;
use super::{Kernels, View, ViewMut};

/// Vectors that are summed side by side: column j belongs to lane j mod 32.
pub(super) const CHAINS: usize = 4;

/// The parameters of a layer normalisation.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Gain, one per column.
    pub gamma: &'a [f32],
    /// Added last, one per column.
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Writes (z − mean z) / √(var z + eps) · gamma + beta to the given rows of `out`, where z = x + residual, a row at a time.
///
/// All in f32; the variance is biased, from a second pass over the centred row. Sums have one order, fixed by the column.
/// `out` may be the memory of `x` or of `residual`.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn layer_norm(
    kernels: &Kernels,
    x: View<'_>,
    residual: Option<View<'_>>,
    norm: &LayerNorm<'_>,
    out: ViewMut<'_>,
    rows: Range<usize>,
) {
    let shape = (out.rows(), out.cols());
    assert_eq!((x.rows(), x.cols()), shape, "shape of the normalised");
    assert!(
        residual.is_none_or(|r| (r.rows(), r.cols()) == shape),
        "shape of the residual"
    );
    assert_eq!(
        (norm.gamma.len(), norm.beta.len()),
        (shape.1, shape.1),
        "lengths of gain and bias"
    );
    assert!(rows.end <= shape.0, "rows {rows:?} of {}", shape.0);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.layer_norm)(Args {
            x,
            residual,
            norm,
            out,
            rows,
        })
    };
}

/// A checked call of [`layer_norm`].
pub(super) struct Args<'a> {
    x: View<'a>,
    residual: Option<View<'a>>,
    norm: &'a LayerNorm<'a>,
    out: ViewMut<'a>,
    rows: Range<usize>,
}

/// The body of [`layer_norm`].
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, args: Args<'_>) {
    let residual = args.residual.map_or(args.x.dtype(), View::dtype);
    // SAFETY: the caller's contract.
    unsafe {
        match (args.x.dtype(), residual, args.out.dtype()) {
            (DType::F16, DType::F16, DType::F16) => rows(s, args, Some(DType::F16)),
            (DType::F32, DType::F32, DType::F32) => rows(s, args, Some(DType::F32)),
            _ => rows(s, args, None),
        }
    }
}

/// All rows; `known` is the dtype of all operands, where it is one.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn rows<S: Simd>(s: S, args: Args<'_>, known: Option<DType>) {
    let cols = args.x.cols();
    let (gamma, beta) = (Row::of(args.norm.gamma), Row::of(args.norm.beta));
    for r in args.rows.clone() {
        let x = args.x.row(r).known(known);
        let residual = args.residual.map(|v| v.row(r).known(known));
        let z = Sum { x, residual, cols };
        let out = args.out.row(r).known(known);
        // SAFETY: the row, and as many gains and biases as columns, exist.
        unsafe {
            let (mean, factor) = z.moments(s, args.norm.eps);
            let (mean, factor) = (s.splat(mean), s.splat(factor));
            let mut c = 0;
            while c + LANES <= cols {
                let y = s.mul(s.sub(z.load(s, c), mean), factor);
                out.store(s, c, LANES, s.fma(y, gamma.load(s, c), beta.load(s, c)));
                c += LANES;
            }
            if c < cols {
                let n = cols - c;
                let y = s.mul(s.sub(z.load_part(s, c), mean), factor);
                let y = s.fma(y, gamma.load_part(s, c, n), beta.load_part(s, c, n));
                out.store(s, c, n, y);
            }
        }
    }
}

/// A row of x + residual.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) x: Row,
    pub(super) residual: Option<Row>,
    pub(super) cols: usize,
}

impl Sum {
    /// mean z and 1 / √(var z + eps).
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    pub(super) unsafe fn moments<S: Simd>(self, s: S, eps: f32) -> (f32, f32) {
        let cols = self.cols as f32;
        // SAFETY: the caller's contract.
        unsafe {
            let mean = self.total::<S, false>(s, s.splat(0.0)) / cols;
            let variance = self.total::<S, true>(s, s.splat(mean)) / cols;
            (mean, 1.0 / (variance + eps).sqrt())
        }
    }

    /// The eight columns from `c` on.
    ///
    /// # Safety
    /// The row has them.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(self, s: S, c: usize) -> S::V {
        // SAFETY: the caller's contract.
        unsafe {
            let x = self.x.load(s, c);
            match self.residual {
                Some(residual) => s.add(x, residual.load(s, c)),
                None => x,
            }
        }
    }

    /// The fewer than eight columns from `c` on, then zeros.
    ///
    /// # Safety
    /// The row has column `c`.
    #[inline(always)]
    pub(super) unsafe fn load_part<S: Simd>(self, s: S, c: usize) -> S::V {
        let n = self.cols - c;
        // SAFETY: the caller's contract.
        unsafe {
            let x = self.x.load_part(s, c, n);
            match self.residual {
                Some(residual) => s.add(x, residual.load_part(s, c, n)),
                None => x,
            }
        }
    }

    /// Σ z, or Σ (z − mean)² if SQUARED.
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn total<S: Simd, const SQUARED: bool>(self, s: S, mean: S::V) -> f32 {
        let mut acc = [s.splat(0.0); CHAINS];
        let whole = self.cols / (LANES * CHAINS) * (LANES * CHAINS);
        let mut c = 0;
        while c < whole {
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the columns exist.
                *acc = term::<S, SQUARED>(s, unsafe { self.load(s, c + i * LANES) }, mean, *acc);
            }
            c += LANES * CHAINS;
        }
        let mut i = 0;
        while c + LANES <= self.cols {
            // SAFETY: the columns exist.
            acc[i] = term::<S, SQUARED>(s, unsafe { self.load(s, c) }, mean, acc[i]);
            i += 1;
            c += LANES;
        }
        if c < self.cols {
            // SAFETY: column c exists.
            let mut z = unsafe { self.load_part(s, c) };
            if SQUARED {
                // Columns that do not exist count as the mean, so that they add nothing.
                let mut lanes = s.unpack(z);
                lanes[self.cols - c..].fill(s.unpack(mean)[0]);
                z = s.pack(lanes);
            }
            acc[i] = term::<S, SQUARED>(s, z, mean, acc[i]);
        }
        sum_lanes(s, s.add(s.add(acc[0], acc[2]), s.add(acc[1], acc[3])))
    }
}

/// `acc + z`, or `acc + (z − mean)²` if SQUARED.
#[inline(always)]
fn term<S: Simd, const SQUARED: bool>(s: S, z: S::V, mean: S::V, acc: S::V) -> S::V {
    if SQUARED {
        let centred = s.sub(z, mean);
        s.fma(centred, centred, acc)
    } else {
        s.add(acc, z)
    }
}
