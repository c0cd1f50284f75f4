//! Packing rows as the left side of a product.

use super::super::simd::{LANES, Simd};
use super::super::view::{Row, View};

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
    let rows: [Row; LANES] = std::array::from_fn(|i| x.row(first + i.min(count - 1)));
    let mut c = 0;
    while c < x.cols() {
        let left = (x.cols() - c).min(LANES);
        let mut block = [s.splat(0.0); LANES];
        for i in 0..count {
            // SAFETY: column c + left - 1 exists, and the caller promises the rows.
            block[i] = unsafe { rows[i].load_up_to(s, c, left) };
        }
        s.transpose(&mut block);
        for (i, column) in block.iter().enumerate().take(left) {
            // SAFETY: the caller's contract.
            unsafe { s.store_f32(to.add((c + i) * stride), *column) };
        }
        c += LANES;
    }
}
