//! Elementwise operations on rows of any float dtype.

use std::ops::Range;

use lxpod_ir::DType;
use lxpod_ir::ops::Activation;
use lxpod_ir::random_bits::{RowState, drop_threshold};

use super::math::{activation, exp, sigmoid, slope};
use super::simd::{LANES, Simd};
use super::{Kernels, View, ViewMut};

/// `out = a + b` in the given rows. `out` may be the memory of either.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn add(kernels: &Kernels, a: View<'_>, b: View<'_>, out: ViewMut<'_>, rows: Range<usize>) {
    second(a, b);
    call(kernels, a, Op::Add(b), out, rows);
}

/// `out = out + x`, all rows.
///
/// # Panics
/// If shapes disagree.
pub(super) fn add_to(kernels: &Kernels, x: View<'_>, out: ViewMut<'_>) {
    let rows = 0..out.rows();
    // SAFETY: `add` works in place.
    let sums = unsafe { out.shared() };
    add(kernels, sums, x, out, rows);
}

/// `out = x · factor` in the given rows. `out` may be the memory of `x`.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn scale(kernels: &Kernels, x: View<'_>, factor: f32, out: ViewMut<'_>, rows: Range<usize>) {
    call(kernels, x, Op::Scale(factor), out, rows);
}

/// `out = act(x)` in the given rows. `out` may be the memory of `x`.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn activate(
    kernels: &Kernels,
    x: View<'_>,
    act: Activation,
    out: ViewMut<'_>,
    rows: Range<usize>,
) {
    call(kernels, x, Op::Activate(act), out, rows);
}

/// `out = x` in the given rows, rounded to the dtype of `out`. `out` may be the memory of `x` if the dtypes are equal.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn copy(kernels: &Kernels, x: View<'_>, out: ViewMut<'_>, rows: Range<usize>) {
    call(kernels, x, Op::Copy, out, rows);
}

/// `out = dy · act′(x)` in the given rows. `out` may be the memory of either.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn activate_grad(
    kernels: &Kernels,
    dy: View<'_>,
    x: View<'_>,
    act: Activation,
    out: ViewMut<'_>,
    rows: Range<usize>,
) {
    second(x, dy);
    call(kernels, x, Op::ActivateGrad(act, dy), out, rows);
}

/// `out = factor · (1 / (1 + e⁻ˣ) − target)` in the given rows: the cotangent of the logits x of a binary cross-entropy.
/// `out` may be the memory of either.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn bce_grad(
    kernels: &Kernels,
    x: View<'_>,
    target: View<'_>,
    factor: f32,
    out: ViewMut<'_>,
    rows: Range<usize>,
) {
    second(x, target);
    call(kernels, x, Op::BceGrad(target, factor), out, rows);
}

/// `out = factor · d`, d = x − target cut to -1..=1, in the given rows: the cotangent of x of a smooth L1 loss.
/// `out` may be the memory of either.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn smooth_l1_grad(
    kernels: &Kernels,
    x: View<'_>,
    target: View<'_>,
    factor: f32,
    out: ViewMut<'_>,
    rows: Range<usize>,
) {
    second(x, target);
    call(kernels, x, Op::SmoothL1Grad(target, factor), out, rows);
}

/// `out = drop(x)` in the given rows, as [`lxpod_ir::ops::Dropout`] drops at this rate; `state` gives what the words of
/// a row have in common. `out` may be the memory of `x`.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn dropout(
    kernels: &Kernels,
    x: View<'_>,
    rate: f32,
    state: impl Fn(usize) -> RowState,
    mut out: ViewMut<'_>,
    rows: Range<usize>,
) {
    let drop = Drop::new(rate);
    for row in rows {
        let op = Op::Dropout(drop, state(row));
        call(kernels, x, op, out.reborrow(), row..row + 1);
    }
}

/// `out = 0` in the given rows.
///
/// # Panics
/// If rows are out of range.
pub fn zeros(kernels: &Kernels, mut out: ViewMut<'_>, rows: Range<usize>) {
    const ZEROS: [f32; 1024] = [0.0; 1024];
    let count = out.rows();
    for first in (0..out.cols()).step_by(ZEROS.len()) {
        let columns = first..out.cols().min(first + ZEROS.len());
        let extent = [count, columns.len()];
        // SAFETY: every row is the same constant, of at least as many values.
        let x = unsafe { View::from_raw_parts(ZEROS.as_ptr().cast(), DType::F32, extent, 0) };
        let part = out.reborrow().col_range(columns);
        call(kernels, x, Op::Copy, part, rows.clone());
    }
}

/// `out = factor · e^(x − most)`, all rows.
///
/// # Panics
/// If shapes disagree.
pub(super) fn exponentials(
    kernels: &Kernels,
    x: View<'_>,
    most: f32,
    factor: f32,
    out: ViewMut<'_>,
) {
    let rows = 0..out.rows();
    call(kernels, x, Op::Exponential(most, factor), out, rows);
}

/// Checks the shape of a second operand.
fn second(x: View<'_>, b: View<'_>) {
    assert_eq!(
        (x.rows(), x.cols()),
        (b.rows(), b.cols()),
        "shapes of both operands"
    );
}

/// Which words drop an element, and what the others multiply it by.
#[derive(Clone, Copy)]
pub(super) struct Drop {
    threshold: u32,
    factor: f32,
}

impl Drop {
    /// At a rate in 0..1.
    pub(super) fn new(rate: f32) -> Self {
        Drop {
            threshold: drop_threshold(rate),
            factor: (1.0 / (1.0 - f64::from(rate))) as f32,
        }
    }

    /// Eight elements of a row, from column `c` on.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(self, s: S, row: RowState, c: usize, x: S::V) -> S::V {
        let kept = s.mul(x, s.splat(self.factor));
        let words = s.words(row, c as u32);
        s.select_below(words, self.threshold, s.splat(0.0), kept)
    }
}

/// What is done to each element.
#[derive(Clone, Copy)]
enum Op<'a> {
    Copy,
    Add(View<'a>),
    Scale(f32),
    Activate(Activation),
    ActivateGrad(Activation, View<'a>),
    BceGrad(View<'a>, f32),
    SmoothL1Grad(View<'a>, f32),
    Exponential(f32, f32),
    Dropout(Drop, RowState),
}

impl<'a> Op<'a> {
    /// The second operand, if there is one.
    #[inline(always)]
    fn second(self) -> Option<View<'a>> {
        match self {
            Op::Add(b) | Op::ActivateGrad(_, b) | Op::BceGrad(b, _) | Op::SmoothL1Grad(b, _) => {
                Some(b)
            }
            Op::Copy | Op::Scale(_) | Op::Activate(_) | Op::Exponential(..) | Op::Dropout(..) => {
                None
            }
        }
    }
}

/// A checked call.
pub(super) struct Args<'a> {
    x: View<'a>,
    op: Op<'a>,
    out: ViewMut<'a>,
    rows: Range<usize>,
}

fn call(kernels: &Kernels, x: View<'_>, op: Op<'_>, out: ViewMut<'_>, rows: Range<usize>) {
    assert_eq!(
        (x.rows(), x.cols()),
        (out.rows(), out.cols()),
        "shapes of input and output"
    );
    assert!(rows.end <= out.rows(), "rows {rows:?} of {}", out.rows());
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe { (kernels.elementwise)(Args { x, op, out, rows }) };
}

/// The body of all operations.
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, args: Args<'_>) {
    let b = args.op.second().unwrap_or(args.x).dtype();
    // SAFETY: the caller's contract.
    unsafe {
        match (args.x.dtype(), b, args.out.dtype()) {
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
    let Args { x, op, out, rows } = args;
    let strides = [x.stride(), op.second().unwrap_or(x).stride(), out.stride()];
    let mut cols = x.cols();
    let mut step = 1;
    // Rows that lie end to end are passed as one: a list of numbers has rows of one. `dropout`, which asks for columns, has one row.
    if strides == [cols; 3] {
        (cols, step) = (cols * rows.len(), rows.len().max(1));
    }
    for r in rows.step_by(step) {
        let (x, out) = (x.row(r).known(known), out.row(r).known(known));
        let b = op.second().map_or(x, |b| b.row(r).known(known));
        let mut c = 0;
        // SAFETY: the rows exist, and have as many columns from `c` on as are read and written.
        unsafe {
            while c + LANES <= cols {
                let y = apply(s, op, c, x.load(s, c), b.load(s, c));
                out.store(s, c, LANES, y);
                c += LANES;
            }
            if c < cols {
                let n = cols - c;
                let y = apply(s, op, c, x.load_part(s, c, n), b.load_part(s, c, n));
                out.store(s, c, n, y);
            }
        }
    }
}

/// The operation on eight elements from column `c` on, `b` being those of the second operand if there is one.
#[inline(always)]
fn apply<S: Simd>(s: S, op: Op<'_>, c: usize, x: S::V, b: S::V) -> S::V {
    match op {
        Op::Copy => x,
        Op::Add(_) => s.add(x, b),
        Op::Scale(factor) => s.mul(x, s.splat(factor)),
        Op::Activate(act) => activation(s, act, x),
        Op::ActivateGrad(act, _) => s.mul(b, slope(s, act, x)),
        Op::Dropout(drop, row) => drop.apply(s, row, c, x),
        Op::Exponential(most, factor) => s.mul(exp(s, s.sub(x, s.splat(most))), s.splat(factor)),
        Op::BceGrad(_, factor) => s.mul(s.splat(factor), s.sub(sigmoid(s, x), b)),
        Op::SmoothL1Grad(_, factor) => {
            let distance = s.max(s.splat(-1.0), s.min(s.splat(1.0), s.sub(x, b)));
            s.mul(s.splat(factor), distance)
        }
    }
}
