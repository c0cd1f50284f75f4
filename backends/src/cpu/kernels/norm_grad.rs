//! `layer_norm_grad`: by rows the cotangent of the input, by columns those of gain and bias.

use std::ops::Range;

use lxpod_ir::DType;

use super::norm::{CHAINS, Sum};
use super::simd::{LANES, Simd, sum_lanes};
use super::view::Row;
use super::{Kernels, Scratch, View, ViewMut};

/// Columns that are summed side by side.
const COLUMNS: usize = CHAINS * LANES;

/// A layer norm of z = x + residual, and the cotangent of its result.
#[derive(Clone, Copy)]
pub struct LayerNormGrad<'a> {
    /// The cotangent, \[rows, columns\].
    pub dy: View<'a>,
    /// As it was given to the layer norm.
    pub x: View<'a>,
    /// As it was given to the layer norm.
    pub residual: Option<View<'a>>,
    /// Gain, one per column.
    pub gamma: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNormGrad<'_> {
    fn check(&self, dz: Option<&ViewMut<'_>>) {
        let shape = (self.dy.rows(), self.dy.cols());
        let same = |x: View<'_>| (x.rows(), x.cols()) == shape;
        assert!(
            same(self.x) && self.residual.is_none_or(same),
            "shape of the normalised"
        );
        assert!(
            dz.is_none_or(|dz| same(dz.as_view())),
            "shape of the cotangent"
        );
        assert_eq!(self.gamma.len(), shape.1, "length of the gain");
    }

    /// The dtype of all operands, where it is one.
    fn known(&self) -> Option<DType> {
        let dtype = self.x.dtype();
        let same = self.dy.dtype() == dtype && self.residual.is_none_or(|r| r.dtype() == dtype);
        Some(dtype).filter(|_| same)
    }
}

/// Writes the given rows of dz = (g − mean g − ẑ · mean(g ∘ ẑ)) / √(var z + eps), g = dy ∘ gamma and ẑ the normalised row.
///
/// All in f32; means are summed as [`super::layer_norm`] sums them. `dz` may be the memory of `dy`.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn layer_norm_grad(
    kernels: &Kernels,
    grad: &LayerNormGrad<'_>,
    dz: ViewMut<'_>,
    rows: Range<usize>,
) {
    grad.check(Some(&dz));
    assert!(rows.end <= dz.rows(), "rows {rows:?} of {}", dz.rows());
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.layer_norm_grad)(Args {
            grad,
            part: Part::Rows(dz, rows),
        })
    };
}

/// f32 values of scratch that [`layer_norm_moments`] needs for `rows` rows.
pub fn layer_norm_grad_scratch(rows: usize) -> usize {
    2 * rows
}

/// Mean and reciprocal deviation of every row, for [`layer_norm_grad_sums`], in the first values of the scratch.
///
/// # Panics
/// If shapes disagree, or the scratch has not [`layer_norm_grad_scratch`] values.
pub fn layer_norm_moments<'a>(
    kernels: &Kernels,
    grad: &LayerNormGrad<'_>,
    scratch: &'a mut Scratch,
) -> &'a [f32] {
    grad.check(None);
    let moments = scratch.take(layer_norm_grad_scratch(grad.x.rows()));
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.layer_norm_grad)(Args {
            grad,
            part: Part::Moments(moments),
        })
    };
    moments
}

/// Writes the given columns of Σ dy ∘ ẑ and Σ dy, each one sum over the rows of `over` in that order, to the first rows of
/// `sums`.
///
/// # Panics
/// If shapes disagree, columns or rows are out of range, or there is not one pair of moments per row of the input.
pub fn layer_norm_grad_sums(
    kernels: &Kernels,
    grad: &LayerNormGrad<'_>,
    moments: &[f32],
    over: &[Range<usize>],
    sums: [ViewMut<'_>; 2],
    columns: Range<usize>,
) {
    grad.check(None);
    assert_eq!(moments.len(), 2 * grad.x.rows(), "moments of every row");
    assert!(
        over.iter().all(|rows| rows.end <= grad.x.rows()),
        "rows {over:?} of {}",
        grad.x.rows()
    );
    for sum in &sums {
        assert_eq!(
            (sum.rows(), sum.cols()),
            (1, grad.x.cols()),
            "shape of the sums"
        );
        assert!(
            columns.end <= sum.cols(),
            "columns {columns:?} of {}",
            sum.cols()
        );
    }
    let part = Part::Columns(moments, over, sums, columns);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe { (kernels.layer_norm_grad)(Args { grad, part }) };
}

/// A checked call.
pub(super) struct Args<'a> {
    grad: &'a LayerNormGrad<'a>,
    part: Part<'a>,
}

enum Part<'a> {
    Rows(ViewMut<'a>, Range<usize>),
    Moments(&'a mut [f32]),
    Columns(
        &'a [f32],
        &'a [Range<usize>],
        [ViewMut<'a>; 2],
        Range<usize>,
    ),
}

/// The body of all parts.
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, args: Args<'_>) {
    // SAFETY: the caller's contract.
    unsafe {
        match args.grad.known() {
            Some(DType::F16) => part(s, args, Some(DType::F16)),
            Some(DType::F32) => part(s, args, Some(DType::F32)),
            _ => part(s, args, None),
        }
    }
}

/// [`run`] for operands of a `known` dtype.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn part<S: Simd>(s: S, args: Args<'_>, known: Option<DType>) {
    let grad = args.grad;
    // SAFETY: the caller's contract; rows and columns exist.
    unsafe {
        match args.part {
            Part::Rows(dz, rows) => {
                for r in rows {
                    row(s, grad, &dz, r, known);
                }
            }
            Part::Moments(moments) => {
                for (r, pair) in moments.chunks_exact_mut(2).enumerate() {
                    let (mean, factor) = z(grad, r, known).moments(s, grad.eps);
                    pair.copy_from_slice(&[mean, factor]);
                }
            }
            Part::Columns(moments, over, sums, columns) => {
                for first in columns.clone().step_by(COLUMNS) {
                    let columns = first..columns.end.min(first + COLUMNS);
                    add_rows(s, grad, (moments, over), &sums, columns, known);
                }
            }
        }
    }
}

/// Row `r` of x + residual, which must exist.
#[inline(always)]
fn z(grad: &LayerNormGrad<'_>, r: usize, known: Option<DType>) -> Sum {
    Sum {
        x: grad.x.row(r).known(known),
        residual: grad.residual.map(|v| v.row(r).known(known)),
        cols: grad.x.cols(),
    }
}

/// Eight values of z or of a row of as many columns from column `c` on, zeros where there are none.
///
/// # Safety
/// The row has column `c`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, z: Sum, c: usize) -> S::V {
    // SAFETY: the caller's contract.
    unsafe {
        if z.cols - c >= LANES {
            z.load(s, c)
        } else {
            z.load_part(s, c)
        }
    }
}

/// One row of dz.
///
/// # Safety
/// The row exists.
#[inline(always)]
unsafe fn row<S: Simd>(
    s: S,
    grad: &LayerNormGrad<'_>,
    dz: &ViewMut<'_>,
    r: usize,
    known: Option<DType>,
) {
    let (z, dy) = (z(grad, r, known), grad.dy.row(r).known(known));
    let (gamma, out) = (Row::of(grad.gamma), dz.row(r));
    // SAFETY: the caller's contract; columns that do not exist add nothing, since dy and gamma are zero there.
    unsafe {
        let (mean, factor) = z.moments(s, grad.eps);
        let (mean, factor) = (s.splat(mean), s.splat(factor));
        let (mut total, mut slope) = ([s.splat(0.0); CHAINS], [s.splat(0.0); CHAINS]);
        for c in (0..z.cols).step_by(LANES) {
            let (chain, left) = (c / LANES % CHAINS, z.cols - c);
            let g = s.mul(dy.load_up_to(s, c, left), gamma.load_up_to(s, c, left));
            let y = s.mul(s.sub(load(s, z, c), mean), factor);
            total[chain] = s.add(total[chain], g);
            slope[chain] = s.fma(g, y, slope[chain]);
        }
        let mean_of = |sums: [S::V; CHAINS]| {
            let sum = s.add(s.add(sums[0], sums[2]), s.add(sums[1], sums[3]));
            s.splat(sum_lanes(s, sum) / z.cols as f32)
        };
        let (total, slope) = (mean_of(total), mean_of(slope));
        for c in (0..z.cols).step_by(LANES) {
            let left = z.cols - c;
            let g = s.mul(dy.load_up_to(s, c, left), gamma.load_up_to(s, c, left));
            let y = s.mul(s.sub(load(s, z, c), mean), factor);
            let rest = s.sub(s.sub(g, total), s.mul(y, slope));
            out.store(s, c, left, s.mul(rest, factor));
        }
    }
}

/// The sums of some columns, at most [`COLUMNS`].
///
/// # Safety
/// The columns and rows exist, and there are two moments per row.
#[inline(always)]
unsafe fn add_rows<S: Simd>(
    s: S,
    grad: &LayerNormGrad<'_>,
    (moments, over): (&[f32], &[Range<usize>]),
    [dgamma, dbeta]: &[ViewMut<'_>; 2],
    columns: Range<usize>,
    known: Option<DType>,
) {
    let mut sums = [[s.splat(0.0); 2]; CHAINS];
    for r in over.iter().cloned().flatten() {
        let (z, dy) = (z(grad, r, known), grad.dy.row(r).known(known));
        let (mean, factor) = (s.splat(moments[2 * r]), s.splat(moments[2 * r + 1]));
        for (c, [gain, bias]) in columns.clone().step_by(LANES).zip(&mut sums) {
            // SAFETY: the caller's contract; only columns that exist are read.
            unsafe {
                let dy = dy.load_up_to(s, c, z.cols - c);
                let y = s.mul(s.sub(load(s, z, c), mean), factor);
                *gain = s.fma(dy, y, *gain);
                *bias = s.add(*bias, dy);
            }
        }
    }
    for (c, [gain, bias]) in columns.clone().step_by(LANES).zip(sums) {
        // SAFETY: the caller's contract.
        unsafe {
            dgamma.row(0).store(s, c, columns.end - c, gain);
            dbeta.row(0).store(s, c, columns.end - c, bias);
        }
    }
}
