//! Sums over rows: `sum_rows`, `scatter_add_rows`.

use std::ops::Range;

use lxpod_ir::DType;

use super::simd::{LANES, Simd};
use super::{IndexError, Kernels, Scratch, View, ViewMut, elementwise};

/// Vectors that are summed side by side.
const CHAINS: usize = 8;

/// Writes the given columns of `start` + Σ x\[r\], one sum over the rows of `over` in that order, to `out`, \[1, columns of x\], which may
/// be the memory of `start`. Sums start at zero if nothing is given.
///
/// # Panics
/// If shapes disagree, or columns or rows are out of range.
pub fn sum_rows(
    kernels: &Kernels,
    x: View<'_>,
    over: &[Range<usize>],
    start: Option<View<'_>>,
    out: ViewMut<'_>,
    columns: Range<usize>,
) {
    assert!(
        over.iter().all(|rows| rows.end <= x.rows()),
        "rows {over:?} of {}",
        x.rows()
    );
    assert_eq!(
        (out.rows(), out.cols()),
        (1, x.cols()),
        "shape of a sum of rows"
    );
    let shape = (1, x.cols());
    assert!(
        start.is_none_or(|start| (start.rows(), start.cols()) == shape),
        "shape of what a sum of rows starts from"
    );
    assert!(
        columns.end <= x.cols(),
        "columns {columns:?} of {}",
        x.cols()
    );
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.sum_rows)(Args {
            x,
            over,
            start,
            out,
            columns,
        })
    };
}

/// A checked call of [`sum_rows`].
pub(super) struct Args<'a> {
    x: View<'a>,
    over: &'a [Range<usize>],
    start: Option<View<'a>>,
    out: ViewMut<'a>,
    columns: Range<usize>,
}

/// The body of [`sum_rows`].
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, args: Args<'_>) {
    // SAFETY: the caller's contract.
    unsafe {
        match args.x.dtype() {
            DType::F16 => all_columns(s, args, Some(DType::F16)),
            DType::F32 => all_columns(s, args, Some(DType::F32)),
            _ => all_columns(s, args, None),
        }
    }
}

/// [`run`] for a `known` dtype.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn all_columns<S: Simd>(s: S, args: Args<'_>, known: Option<DType>) {
    let Args {
        x,
        over,
        start,
        out,
        columns,
    } = args;
    for first in columns.clone().step_by(CHAINS * LANES) {
        let mut sums = [s.splat(0.0); CHAINS];
        let columns = first..columns.end.min(first + CHAINS * LANES);
        if let Some(start) = start {
            for (c, sum) in columns.clone().step_by(LANES).zip(&mut sums) {
                // SAFETY: the columns exist.
                *sum = unsafe { start.row(0).load_up_to(s, c, columns.end - c) };
            }
        }
        for r in over.iter().cloned().flatten() {
            let row = x.row(r).known(known);
            for (c, sum) in columns.clone().step_by(LANES).zip(&mut sums) {
                // SAFETY: the columns exist.
                *sum = s.add(*sum, unsafe { row.load_up_to(s, c, x.cols() - c) });
            }
        }
        for (c, sum) in columns.clone().step_by(LANES).zip(sums) {
            // SAFETY: the columns exist.
            unsafe { out.row(0).store(s, c, columns.end - c, sum) };
        }
    }
}

/// Rows to add up where an index says.
#[derive(Clone, Copy)]
pub struct ScatterAdd<'a> {
    /// The rows.
    pub x: View<'a>,
    /// Where each of them is added.
    pub index: &'a [i32],
    /// The row that takes no summands.
    pub padding: Option<i32>,
    /// What the sums start from, zeros if nothing; \[rows of the result, columns of x\].
    pub start: Option<View<'a>>,
}

impl ScatterAdd<'_> {
    /// The rows of x whose sum is row `target`, ascending.
    fn summands(&self, target: usize) -> impl Iterator<Item = usize> {
        let (index, padding) = (self.index, self.padding);
        let target = i32::try_from(target)
            .ok()
            .filter(|&target| Some(target) != padding);
        (0..index.len()).filter(move |&r| Some(index[r]) == target)
    }
}

/// Writes the given rows of the sums: row i is `start[i]` + Σ x\[r\] over the r with `index[r]` = i, ascending, in f32,
/// rounded once. `out` may be the memory of `start`; rows that nothing is added to are then left alone. `scratch` must
/// have as many values as x has columns.
///
/// # Errors
/// If an index points outside `out`; which rows are written by then is not said.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn scatter_add(
    kernels: &Kernels,
    scatter: &ScatterAdd<'_>,
    mut out: ViewMut<'_>,
    rows: Range<usize>,
    scratch: &mut Scratch,
) -> Result<(), IndexError> {
    let ScatterAdd {
        x, index, start, ..
    } = *scatter;
    assert_eq!(index.len(), x.rows(), "one index per row");
    assert_eq!(out.cols(), x.cols(), "columns of the sums");
    assert!(rows.end <= out.rows(), "rows {rows:?} of {}", out.rows());
    let shape = (out.rows(), out.cols());
    assert!(
        start.is_none_or(|s| (s.rows(), s.cols()) == shape),
        "shape of what sums start from"
    );
    let outside = |&i: &i32| usize::try_from(i).ok().is_none_or(|i| i >= shape.0);
    if let Some(position) = index.iter().position(outside) {
        return Err(IndexError {
            index: index[position],
            position,
            rows: shape.0,
        });
    }
    match start {
        Some(start) if out.is(start) => {}
        Some(start) => elementwise::copy(kernels, start, out.reborrow(), rows.clone()),
        None => elementwise::zeros(kernels, out.reborrow(), rows.clone()),
    }
    if out.dtype() == DType::F32 {
        add_in_place(kernels, scatter, out, rows);
    } else {
        rows.for_each(|target| add_row(kernels, scatter, &mut out, target, scratch));
    }
    Ok(())
}

/// Adds the rows of x that belong to `rows`, in order.
fn add_in_place(
    kernels: &Kernels,
    scatter: &ScatterAdd<'_>,
    mut out: ViewMut<'_>,
    rows: Range<usize>,
) {
    for (r, &index) in scatter.index.iter().enumerate() {
        let target = index as usize;
        if rows.contains(&target) && scatter.padding != Some(index) {
            let x = scatter.x.row_range(r..r + 1);
            let to = out.reborrow().row_range(target..target + 1);
            elementwise::add_to(kernels, x, to);
        }
    }
}

/// Adds what belongs to one row, in f32.
fn add_row(
    kernels: &Kernels,
    scatter: &ScatterAdd<'_>,
    out: &mut ViewMut<'_>,
    target: usize,
    scratch: &mut Scratch,
) {
    let mut summands = scatter.summands(target).peekable();
    if summands.peek().is_none() {
        return;
    }
    let columns = scatter.x.cols();
    let sums = scratch.take(columns);
    let to = out.reborrow().row_range(target..target + 1);
    elementwise::copy(kernels, to.as_view(), ViewMut::new(sums, 1, columns), 0..1);
    for r in summands {
        let x = scatter.x.row_range(r..r + 1);
        elementwise::add_to(kernels, x, ViewMut::new(sums, 1, columns));
    }
    elementwise::copy(kernels, View::new(sums, 1, columns), to, 0..1);
}
