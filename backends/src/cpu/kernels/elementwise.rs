//! Elementwise operations on rows of any float dtype.

use std::ops::Range;

use lxpod_ir::DType;
use lxpod_ir::ops::Activation;

use super::math::activation;
use super::simd::{LANES, Simd};
use super::{Kernels, View, ViewMut};

/// `out = a + b` in the given rows. `out` may be the memory of either.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn add(kernels: &Kernels, a: View<'_>, b: View<'_>, out: ViewMut<'_>, rows: Range<usize>) {
    assert_eq!(
        (a.rows(), a.cols()),
        (b.rows(), b.cols()),
        "shapes of the summands"
    );
    call(kernels, a, Op::Add(b), out, rows);
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

/// What is done to each element.
#[derive(Clone, Copy)]
enum Op<'a> {
    Copy,
    Add(View<'a>),
    Scale(f32),
    Activate(Activation),
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
    let b = match args.op {
        Op::Add(b) => b.dtype(),
        Op::Copy | Op::Scale(_) | Op::Activate(_) => args.x.dtype(),
    };
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
    let cols = args.x.cols();
    for r in args.rows.clone() {
        let x = args.x.row(r).known(known);
        let out = args.out.row(r).known(known);
        let b = match args.op {
            Op::Add(b) => b.row(r).known(known),
            Op::Copy | Op::Scale(_) | Op::Activate(_) => x,
        };
        let mut c = 0;
        // SAFETY: the rows exist, and have as many columns from `c` on as are read and written.
        unsafe {
            while c + LANES <= cols {
                let y = apply(s, args.op, x.load(s, c), b.load(s, c));
                out.store(s, c, LANES, y);
                c += LANES;
            }
            if c < cols {
                let n = cols - c;
                let y = apply(s, args.op, x.load_part(s, c, n), b.load_part(s, c, n));
                out.store(s, c, n, y);
            }
        }
    }
}

/// The operation on eight elements, `b` being those of the second operand if there is one.
#[inline(always)]
fn apply<S: Simd>(s: S, op: Op<'_>, x: S::V, b: S::V) -> S::V {
    match op {
        Op::Copy => x,
        Op::Add(_) => s.add(x, b),
        Op::Scale(factor) => s.mul(x, s.splat(factor)),
        Op::Activate(act) => activation(s, act, x),
    }
}
