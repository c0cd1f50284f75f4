//! Fixed point: rows as 16-bit integers under one power of two, whose products are summed exactly.
//!
//! A row x of inputs becomes integers q with x ≈ q · 2^e, a row of weights likewise, and their product is summed in 32-bit
//! integers over [`CHUNK`] inputs at a time, then in f32 from chunk to chunk. e is the least for which
//!
//! ```text
//! |q| ≤ 32767   and   ‖q of a chunk‖ ≤ 2^15.5,
//! ```
//!
//! so that by the inequality of Cauchy and Schwarz no sum of a chunk leaves 32 bits. An f16 is kept to the bit if its
//! magnitude is at least 2^10 · 2^e: within 2^-4 of the largest of its row where that stands out, within 2^-1 where a whole
//! chunk is as large; a smaller one moves by at most half of 2^e.
//! Integers need no order, and e depends on the row alone.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::pack::PANEL;
use super::super::simd::{LANES, Tiled, sum_each};
use super::super::view::Row;

/// Inputs whose products are summed as integers.
pub(in super::super) const CHUNK: usize = 128;

/// The largest magnitude of an integer.
const MOST: f32 = 32767.0;

/// The largest norm of a chunk before rounding. Rounding adds at most √128 / 2, and 2^15.5 squared is 2^31.
const NORM: f32 = 46_330.0;

/// √128: the norm of a chunk whose values are all 1.
const FULL: f32 = 11.313_709;

/// Squares of values outside this range, and sums of them, may leave the range of f32.
const SQUARED: [f32; 2] = [1.0 / (1_u64 << 50) as f32, (1_u64 << 50) as f32];

/// The least scale: its inverse is finite.
const LEAST: f32 = f32::from_bits((127 - 120) << 23);

/// 2^e for a row whose largest magnitude, and largest square of the norm of a chunk, are these; NaN if a value of the row
/// is not finite.
#[inline(always)]
fn scale(largest: f32, square: f32) -> f32 {
    if square.is_nan() || largest == f32::INFINITY {
        return f32::NAN;
    }
    let norm = if (SQUARED[0]..SQUARED[1]).contains(&largest) {
        square.sqrt() / NORM
    } else {
        largest * (FULL / NORM)
    };
    let least = norm.max(largest / MOST).max(LEAST);
    // The least power of two that is not below: positive, normal, and far from the largest.
    f32::from_bits((least.to_bits() + 0x007f_ffff) & 0x7f80_0000)
}

/// Packs the first `n` values of a row as integers, a zero after an odd number, and returns 2^e.
///
/// # Safety
/// The row has them; `to` is valid for writing them, rounded up to eight.
#[inline(always)]
pub(in super::super) unsafe fn quantise<S: Tiled>(s: S, row: Row, n: usize, to: *mut f32) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        match row.dtype() {
            DType::F16 => quantise_known(s, row.known(Some(DType::F16)), n, to.cast()),
            DType::F32 => quantise_known(s, row.known(Some(DType::F32)), n, to.cast()),
            _ => quantise_known(s, row, n, to.cast()),
        }
    }
}

/// [`quantise`] of a row whose dtype the compiler knows.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn quantise_known<S: Tiled>(s: S, row: Row, n: usize, to: *mut i16) -> f32 {
    // SAFETY: the caller's contract; the last eight values are written whole.
    unsafe {
        let (largest, square) = extent(s, row, n);
        let scale = scale(largest, square);
        let inverse = if scale.is_nan() { 0.0 } else { 1.0 / scale };
        let whole = n / PANEL * PANEL;
        for c in (0..whole).step_by(PANEL) {
            s.store_integers(to.add(c), row.load_columns(s, c), inverse);
        }
        for c in (whole..n).step_by(LANES) {
            let x = s.mul(row.load_up_to(s, c, n - c), s.splat(inverse));
            let integers = s.to_i16(x);
            to.add(c).cast::<[i16; LANES]>().write_unaligned(integers);
        }
        scale
    }
}

/// The largest magnitude of the first `n` values, and the largest square of the norm of a chunk: NaN if one of them is.
///
/// # Safety
/// The row has them.
#[inline(always)]
unsafe fn extent<S: Tiled>(s: S, row: Row, n: usize) -> (f32, f32) {
    let mut largest = s.columns([s.splat(0.0); 2]);
    let mut square = 0.0_f32;
    for first in (0..n).step_by(LANES * CHUNK) {
        let mut squares = [s.splat(0.0); LANES];
        for (start, squares) in (first..n).step_by(CHUNK).zip(&mut squares) {
            // SAFETY: the caller's contract.
            *squares = unsafe { chunk_extent(s, row, start..n.min(start + CHUNK), &mut largest) };
        }
        for sum in sum_each(s, squares) {
            if sum.is_nan() {
                return (f32::NAN, f32::NAN);
            }
            square = square.max(sum);
        }
    }
    let [low, high] = s.halves(largest);
    let largest = s.unpack(s.max(low, high));
    (largest.into_iter().fold(0.0, f32::max), square)
}

/// The sums of the squares of a chunk, in eight lanes; `largest` is kept up to date.
///
/// # Safety
/// The row has the values.
#[inline(always)]
unsafe fn chunk_extent<S: Tiled>(s: S, row: Row, chunk: Range<usize>, largest: &mut S::C) -> S::V {
    let zero = s.columns([s.splat(0.0); 2]);
    let (mut most, mut even, mut odd) = (*largest, zero, zero);
    let twice = chunk.start + chunk.len() / (2 * PANEL) * (2 * PANEL);
    let mut rest = twice;
    // SAFETY: the caller's contract; where nothing is left, nothing is read.
    unsafe {
        for c in (chunk.start..twice).step_by(2 * PANEL) {
            let x = [row.load_columns(s, c), row.load_columns(s, c + PANEL)];
            most = s.largest(x[1], s.largest(x[0], most));
            even = s.add_squares(x[0], even);
            odd = s.add_squares(x[1], odd);
        }
        while rest < chunk.end {
            let high = chunk.end.min(rest + LANES);
            let x = s.columns([
                row.load_up_to(s, rest, chunk.end - rest),
                row.load_up_to(s, high, chunk.end - high),
            ]);
            most = s.largest(x, most);
            even = s.add_squares(x, even);
            rest += PANEL;
        }
    }
    *largest = most;
    let [low, high] = s.halves(s.add_columns(even, odd));
    s.add(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_chunk_leaves_its_integers() {
        for exponent in -140..128 {
            for fraction in [1.0, 1.000_000_1, 1.3, 1.75, 1.999_999_9_f64] {
                let largest = (fraction * 2_f64.powi(exponent)) as f32;
                if !largest.is_finite() || largest == 0.0 {
                    continue;
                }
                for values in [1, 2, 7, 40, 128] {
                    let square = largest * largest * values as f32;
                    let scale = f64::from(scale(largest, square));
                    assert!(scale > 0.0 && f64::from(1.0 / scale as f32).is_finite());
                    let q = (f64::from(largest) / scale).round_ties_even();
                    assert!(q <= 32767.0, "{largest:e}: {q}");
                    let sum = q * q * f64::from(values);
                    assert!(sum < 2_f64.powi(31), "{largest:e} x {values}: {sum}");
                    // Outside the range of squares, a chunk is taken to be full.
                    let least = if (SQUARED[0]..SQUARED[1]).contains(&largest) {
                        16383.0
                    } else {
                        2046.0
                    };
                    let used = scale == f64::from(LEAST) || sum > 2_f64.powi(28) || q > least;
                    assert!(used, "{largest:e} x {values}: {q} is too few bits");
                }
            }
        }
        assert!(scale(f32::INFINITY, f32::INFINITY).is_nan());
        assert!(scale(1.0, f32::NAN).is_nan());
        assert_eq!(scale(0.0, 0.0), LEAST);
    }
}
