//! Packing rows as the left side of a product.

use lxpod_ir::DType;

use super::super::simd::{LANES, Simd};
use super::super::view::View;

/// Values that [`pack_tile`] may write after the end of a tile.
pub(in super::super) const SLACK: usize = LANES;

/// Packs the `count` ≤ 6 rows of `x` from `first` on as f32, one column of `count` values after another.
///
/// # Safety
/// The rows exist and may be read; `to` is valid for writing `count · x.cols() + SLACK` values.
#[inline(always)]
pub(in super::super) unsafe fn pack_tile<S: Simd>(
    s: S,
    x: View<'_>,
    first: usize,
    count: usize,
    to: *mut f32,
) {
    // SAFETY: the caller's contract. Columns are written in ascending order, `count` apart and eight long: what
    // one leaves after its `count` values the next overwrites, and the last leaves at most SLACK.
    unsafe { pack_columns(s, x, first, count, to, count) }
}

/// Packs `count` ≤ 8 rows of `x` from `first` on as f32: column `c` at `to + c · stride`, always eight values, those
/// after the `count`-th zero.
///
/// # Safety
/// The rows exist and may be read; `to` is valid for writing eight values at each column's place.
#[inline(always)]
pub(in super::super) unsafe fn pack_columns<S: Simd>(
    s: S,
    x: View<'_>,
    first: usize,
    count: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match x.dtype() {
            DType::F16 => pack_known(s, x, (first, count), to, stride, Some(DType::F16)),
            DType::F32 => pack_known(s, x, (first, count), to, stride, Some(DType::F32)),
            _ => pack_known(s, x, (first, count), to, stride, None),
        }
    }
}

/// [`pack_columns`] of the rows (first, count), whose dtype may be `known`.
///
/// # Safety
/// As [`pack_columns`].
#[inline(always)]
unsafe fn pack_known<S: Simd>(
    s: S,
    x: View<'_>,
    (first, count): (usize, usize),
    to: *mut f32,
    stride: usize,
    known: Option<DType>,
) {
    let mut rows = [x.row(first).known(known); LANES];
    for (i, row) in rows.iter_mut().enumerate().take(count) {
        *row = x.row(first + i).known(known);
    }
    let cols = x.cols();
    let mut c = 0;
    while c + LANES <= cols {
        let mut block = [s.splat(0.0); LANES];
        for (row, to) in rows.iter().zip(&mut block).take(count) {
            // SAFETY: the columns exist, and the caller promises the rows.
            *to = unsafe { row.load(s, c) };
        }
        s.transpose(&mut block);
        for (i, column) in block.iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { s.store_f32(to.add((c + i) * stride), *column) };
        }
        c += LANES;
    }
    if c < cols {
        let mut block = [s.splat(0.0); LANES];
        for (row, to) in rows.iter().zip(&mut block).take(count) {
            // SAFETY: the columns exist, and the caller promises the rows.
            *to = unsafe { row.load_part(s, c, cols - c) };
        }
        s.transpose(&mut block);
        for (i, column) in block.iter().enumerate().take(cols - c) {
            // SAFETY: the caller's contract.
            unsafe { s.store_f32(to.add((c + i) * stride), *column) };
        }
    }
}
