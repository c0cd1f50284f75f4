//! Elementwise operations on rows of any float dtype.

use std::ops::Range;

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
    let cols = args.x.cols();
    for r in args.rows.clone() {
        let (x, out) = (args.x.row(r), args.out.row(r));
        let mut c = 0;
        while c < cols {
            let n = cols - c;
            // SAFETY: the rows exist and have `n` columns from `c` on.
            unsafe {
                let x = x.load_up_to(s, c, n);
                let y = match args.op {
                    Op::Copy => x,
                    Op::Add(b) => s.add(x, b.row(r).load_up_to(s, c, n)),
                    Op::Scale(factor) => s.mul(x, s.splat(factor)),
                    Op::Activate(act) => activation(s, act, x),
                };
                out.store(s, c, n, y);
            }
            c += LANES;
        }
    }
}
