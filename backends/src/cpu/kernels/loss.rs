//! Losses. Deterministic: one worker, f64 sums in row order.

use std::ops::Range;

use thiserror::Error;

use super::math::exp;
use super::simd::{LANES, Simd};
use super::view::Row;
use super::{Kernels, View, ViewMut, elementwise};

/// The label of a row that does not count.
pub const IGNORE_INDEX: i32 = -100;

/// A label that is neither a class nor [`IGNORE_INDEX`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("label {label} in row {row}: expected 0..{classes}, or {IGNORE_INDEX} to ignore the row")]
pub struct LabelError {
    /// The label.
    pub label: i32,
    /// Its row.
    pub row: usize,
    /// Number of classes.
    pub classes: usize,
}

/// A sum of cross-entropies; the mean is `sum / kept`, NaN where no row was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// Over the rows that count.
    pub sum: f64,
    /// Number of rows that count.
    pub kept: usize,
}

impl CrossEntropy {
    /// The mean over the rows that count, NaN if there are none.
    pub fn mean(self) -> f32 {
        (self.sum / self.kept as f64) as f32
    }
}

/// −log softmax(logits)\[label\] of each row: summed, and written to `per_row` if given, where ignored rows get 0.
///
/// # Errors
/// If a label is neither a class nor [`IGNORE_INDEX`].
///
/// # Panics
/// If there is not one label, or one place in `per_row`, per row.
pub fn cross_entropy(
    kernels: &Kernels,
    logits: View<'_>,
    labels: &[i32],
    mut per_row: Option<&mut [f32]>,
) -> Result<CrossEntropy, LabelError> {
    assert_eq!(labels.len(), logits.rows(), "one label per row");
    assert!(
        per_row.as_ref().is_none_or(|p| p.len() == labels.len()),
        "one loss per row"
    );
    let mut total = CrossEntropy::default();
    for (row, &label) in labels.iter().enumerate() {
        let mut loss = 0.0;
        if label != IGNORE_INDEX {
            let classes = logits.cols();
            let class = class_of(label, row, classes)?;
            let mut chosen = [0.0];
            logits.load_row(kernels, row, class..class + 1, &mut chosen);
            // SAFETY: a table exists only for a CPU that can run it; the row exists.
            let LogSum { most, sum } = unsafe { (kernels.log_sum_exp)(logits.row(row), classes) };
            loss = f64::from(most) + sum.ln() - f64::from(chosen[0]);
            total.sum += loss;
            total.kept += 1;
        }
        if let Some(per_row) = &mut per_row {
            per_row[row] = loss as f32;
        }
    }
    Ok(total)
}

/// The class that the label of a row names.
fn class_of(label: i32, row: usize, classes: usize) -> Result<usize, LabelError> {
    let class = usize::try_from(label).ok().filter(|&c| c < classes);
    class.ok_or(LabelError {
        label,
        row,
        classes,
    })
}

/// Writes the given rows of `factor` · weight · (softmax(logits) − \[column = label\]), in f32, a row labelled
/// [`IGNORE_INDEX`] being zeros; `factor` gives the factor and the weight of a row as one.
///
/// # Errors
/// At the first label that is neither a class nor [`IGNORE_INDEX`]; rows before it are written.
///
/// # Panics
/// If shapes disagree, rows are out of range, or there is not one label per row.
pub fn cross_entropy_grad(
    kernels: &Kernels,
    logits: View<'_>,
    labels: &[i32],
    factor: impl Fn(usize) -> f64,
    mut out: ViewMut<'_>,
    rows: Range<usize>,
) -> Result<(), LabelError> {
    let classes = logits.cols();
    assert_eq!(labels.len(), logits.rows(), "one label per row");
    assert_eq!(
        (out.rows(), out.cols()),
        (logits.rows(), classes),
        "output shape"
    );
    for row in rows {
        let label = labels[row];
        if label == IGNORE_INDEX {
            elementwise::zeros(kernels, out.reborrow(), row..row + 1);
            continue;
        }
        let class = class_of(label, row, classes)?;
        let factor = factor(row);
        let mut chosen = [0.0];
        logits.load_row(kernels, row, class..class + 1, &mut chosen);
        // SAFETY: a table exists only for a CPU that can run it; the row exists.
        let LogSum { most, sum } = unsafe { (kernels.log_sum_exp)(logits.row(row), classes) };
        let to = out.reborrow().row_range(row..row + 1);
        let x = logits.row_range(row..row + 1);
        elementwise::exponentials(kernels, x, most, (factor / sum) as f32, to);
        let probability = f64::from(chosen[0] - most).exp() / sum;
        out.store_row(
            kernels,
            row,
            class,
            &[(factor * (probability - 1.0)) as f32],
        );
    }
    Ok(())
}

/// log Σ eˣ of a row, as its largest element and the sum of e^(x − largest).
pub(super) struct LogSum {
    most: f32,
    sum: f64,
}

/// The [`LogSum`] of a row: exponentials are in f32 and summed in f64, column j in lane j mod 8.
///
/// # Safety
/// The row has `cols` elements that may be read.
#[inline(always)]
pub(super) unsafe fn log_sum_exp<S: Simd>(s: S, row: Row, cols: usize) -> LogSum {
    let mut most = f32::NEG_INFINITY;
    let mut c = 0;
    while c < cols {
        // SAFETY: the caller's contract.
        let lanes = s.unpack(unsafe { row.load_up_to(s, c, cols - c) });
        most = lanes[..(cols - c).min(LANES)]
            .iter()
            .fold(most, |m, &x| if m > x { m } else { x });
        c += LANES;
    }
    let mut sums = [0.0_f64; LANES];
    c = 0;
    while c < cols {
        let n = (cols - c).min(LANES);
        // SAFETY: the caller's contract.
        let x = unsafe { row.load_up_to(s, c, n) };
        let e = s.unpack(exp(s, s.sub(x, s.splat(most))));
        for (sum, e) in sums[..n].iter_mut().zip(e) {
            *sum += f64::from(e);
        }
        c += LANES;
    }
    LogSum {
        most,
        sum: sums.iter().sum(),
    }
}

/// Calls `each` with the f32 values of both matrices, element by element in row order.
fn pairs(kernels: &Kernels, a: View<'_>, b: View<'_>, row: usize, mut each: impl FnMut(f64, f64)) {
    const CHUNK: usize = 256;
    let (mut left, mut right) = ([0.0; CHUNK], [0.0; CHUNK]);
    for first in (0..a.cols()).step_by(CHUNK) {
        let cols = first..a.cols().min(first + CHUNK);
        let n = cols.len();
        let load = |x: View<'_>, to: &mut [f32]| {
            let row = x.row_range(row..row + 1).col_range(cols.clone());
            elementwise::copy(kernels, row, ViewMut::new(to, 1, n), 0..1);
        };
        load(a, &mut left);
        load(b, &mut right);
        for (&a, &b) in left[..n].iter().zip(&right[..n]) {
            each(f64::from(a), f64::from(b));
        }
    }
}

/// Σ max(x, 0) − x·t + log(1 + e^−|x|): binary cross-entropy of logits x and targets t, summed over all elements, in f64.
///
/// # Panics
/// If the shapes disagree.
pub fn bce_with_logits(kernels: &Kernels, logits: View<'_>, targets: View<'_>) -> f64 {
    assert_eq!(
        (logits.rows(), logits.cols()),
        (targets.rows(), targets.cols()),
        "shape of the targets"
    );
    let mut sum = 0.0;
    for row in 0..logits.rows() {
        pairs(kernels, logits, targets, row, |x, t| {
            let positive = if x < 0.0 { 0.0 } else { x };
            sum += positive - x * t + (-x.abs()).exp().ln_1p();
        });
    }
    sum
}

/// Writes the mean over each row of ½·d² where |d| < 1, |d| − ½ elsewhere, with d = x − t. (Beta is 1.)
///
/// # Panics
/// If the shapes disagree or there is not one place in `per_row` per row.
pub fn smooth_l1(kernels: &Kernels, x: View<'_>, targets: View<'_>, per_row: &mut [f32]) {
    assert_eq!(
        (x.rows(), x.cols()),
        (targets.rows(), targets.cols()),
        "shape of the targets"
    );
    assert_eq!(per_row.len(), x.rows(), "one loss per row");
    for (row, loss) in per_row.iter_mut().enumerate() {
        let mut sum = 0.0;
        pairs(kernels, x, targets, row, |x, t| {
            let d = (x - t).abs();
            sum += if d < 1.0 { 0.5 * d * d } else { d - 0.5 };
        });
        *loss = (sum / x.cols() as f64) as f32;
    }
}
