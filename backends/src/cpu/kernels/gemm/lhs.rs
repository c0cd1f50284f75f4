//! Rows as f32, by row for the left side of a product, by column for the right.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::simd::{LANES, Simd};
use super::super::view::{Row, View};

/// Writes the first `n` elements of a row as f32.
///
/// # Safety
/// The row has them; `to` is valid for writing them, rounded up to eight.
#[inline(always)]
pub(in super::super) unsafe fn widen<S: Simd>(s: S, row: Row, n: usize, to: *mut f32) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's contract.
    unsafe {
        match row.dtype() {
            DType::F16 => widen_known(s, row.known(Some(DType::F16)), whole, to),
            DType::F32 => widen_known(s, row.known(Some(DType::F32)), whole, to),
            _ => widen_known(s, row, whole, to),
        }
        if whole < n {
            s.store_f32(to.add(whole), row.load_part(s, whole, n - whole));
        }
    }
}

/// [`widen`] for a multiple of eight elements.
///
/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn widen_known<S: Simd>(s: S, row: Row, n: usize, to: *mut f32) {
    for c in (0..n).step_by(LANES) {
        // SAFETY: the caller's contract.
        unsafe { s.store_f32(to.add(c), row.load(s, c)) };
    }
}

/// Copies columns of some rows of `x` as f32: of each row eight from each of `firsts` on, those after its last zero. What is from the
/// first of them on lies end to end, and so does what is from the next on, `apart` values behind.
///
/// # Safety
/// The rows and the first columns exist and may be read; `to` is valid for writing all that.
#[inline(always)]
pub(in super::super) unsafe fn copy_columns<S: Simd>(
    s: S,
    x: View<'_>,
    rows: Range<usize>,
    firsts: &[usize],
    (to, apart): (*mut f32, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        match x.dtype() {
            DType::F16 => copy_known(s, x, rows, firsts, (to, apart), Some(DType::F16)),
            DType::F32 => copy_known(s, x, rows, firsts, (to, apart), Some(DType::F32)),
            _ => copy_known(s, x, rows, firsts, (to, apart), None),
        }
    }
}

/// [`copy_columns`], whose dtype may be `known`.
///
/// # Safety
/// As [`copy_columns`].
#[inline(always)]
unsafe fn copy_known<S: Simd>(
    s: S,
    x: View<'_>,
    rows: Range<usize>,
    firsts: &[usize],
    (to, apart): (*mut f32, usize),
    known: Option<DType>,
) {
    // The usual number of them, for the compiler to write out.
    let whole = |firsts: &&[usize; LANES]| firsts.iter().all(|first| first + LANES <= x.cols());
    let usual = <&[usize; LANES]>::try_from(firsts).ok().filter(whole);
    for (i, r) in rows.enumerate() {
        let (row, to) = (x.row(r).known(known), to.wrapping_add(i * LANES));
        // SAFETY: the columns exist, and the caller promises the rows and what is written.
        unsafe {
            if let Some(firsts) = usual {
                for (t, &first) in firsts.iter().enumerate() {
                    s.store_f32(to.add(t * apart), row.load(s, first));
                }
                continue;
            }
            for (t, &first) in firsts.iter().enumerate() {
                let values = row.load_up_to(s, first, x.cols() - first);
                s.store_f32(to.add(t * apart), values);
            }
        }
    }
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
