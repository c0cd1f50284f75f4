//! Eight lanes of f32: what the kernels are written in.
//!
//! A kernel body is a function generic over [`Simd`] and marked `#[inline(always)]`; the entry points of
//! `isa` instantiate it inside a function that enables the instruction set, so that every vector operation
//! becomes one instruction there. A body must not hide vector operations in closures that are not inlined.

#[cfg(target_arch = "x86_64")]
mod avx;
mod portable;
mod tiled;

#[cfg(target_arch = "x86_64")]
pub(super) use avx::{Avx, Ymm, Zmm};
use lxpod_ir::random_bits::RowState;
pub(super) use portable::Portable;
pub(super) use tiled::{
    Body, Floats, Half, Left, MOST_PANELS, Right, Single, Tiled, WIDE_ROWS, has_tile, pair_step,
    step, wide_steps,
};

/// Lanes of a vector.
pub(super) const LANES: usize = 8;

/// A token that proves that the CPU has an instruction set, and the operations of that set.
///
/// Lane-wise operations follow IEEE 754 with round-to-nearest-even. `min(a, b)` and `max(a, b)` give `b` when either is NaN.
pub(super) trait Simd: Copy {
    /// Eight f32 lanes.
    type V: Copy;
    /// Eight u32 lanes.
    type W: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The lanes of an array, in order.
    fn pack(self, lanes: [f32; LANES]) -> Self::V;
    /// The lanes as an array, in order.
    fn unpack(self, v: Self::V) -> [f32; LANES];

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// √a.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// The largest integer not above `a`.
    fn floor(self, a: Self::V) -> Self::V;
    /// The largest power of two not above `a`, for positive normal `a`: the mantissa cleared.
    fn binade(self, a: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the instruction set can, else twice; always the same for one set.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? a : b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The absolute value: the sign bit cleared.
    fn abs(self, a: Self::V) -> Self::V;
    /// `magnitude` (whose sign bit must be clear) with the sign bit of `sign`.
    fn with_sign(self, magnitude: Self::V, sign: Self::V) -> Self::V;
    /// `a < b ? yes : no`; `no` when either is NaN.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// 2 to the power `n`, for integral `n` in -126..=127; any number for other `n`, NaN included.
    fn pow2(self, n: Self::V) -> Self::V;
    /// The words of a row's columns `first`.. + 8, as [`RowState::word`] gives them.
    fn words(self, row: RowState, first: u32) -> Self::W;
    /// `words < bound ? yes : no`.
    fn select_below(self, words: Self::W, bound: u32, yes: Self::V, no: Self::V) -> Self::V;
    /// The upper 24 bits of each word, as a number.
    fn upper(self, words: Self::W) -> Self::V;
    /// The transpose of an 8x8 matrix given by rows.
    fn transpose(self, rows: &mut [Self::V; LANES]);

    /// Eight f32, no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    unsafe fn load_f32(self, p: *const f32) -> Self::V;
    /// Eight f16, widened exactly; no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 16 bytes.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// Eight bf16, widened exactly; no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 16 bytes.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// Stores eight f32, no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for writing 32 bytes.
    unsafe fn store_f32(self, p: *mut f32, v: Self::V);
    /// [`Simd::store_f32`] past the caches, for whole cache lines that are read much later; [`Simd::fence`] before other
    /// threads read them.
    ///
    /// # Safety
    /// As there; `p` is a multiple of 32 bytes.
    #[inline(always)]
    unsafe fn stream_f32(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { self.store_f32(p, v) }
    }
    /// Orders streamed stores before every store that follows.
    #[inline(always)]
    fn fence(self) {}
    /// Eight f16, rounded to nearest even, too large ones to infinity.
    fn to_f16(self, v: Self::V) -> [u16; LANES];
    /// Eight bf16, rounded to nearest even, too large ones to infinity.
    #[inline(always)]
    fn to_bf16(self, v: Self::V) -> [u16; LANES] {
        self.unpack(v).map(|x| half::bf16::from_f32(x).to_bits())
    }
    /// Eight integers, rounded to nearest even, those out of range to the nearest in range. Not for NaN.
    fn to_i16(self, v: Self::V) -> [i16; LANES];
    /// Asks for the cache line at `p`; any address is allowed.
    fn prefetch(self, p: *const u8);
    /// [`Simd::prefetch`] of a line that is written next.
    #[inline(always)]
    fn prefetch_to_write(self, p: *const u8) {
        self.prefetch(p);
    }
}

/// The sum of the lanes, in one fixed order: pairs four apart, then two apart, then neighbours.
#[inline(always)]
pub(super) fn sum_lanes<S: Simd>(s: S, v: S::V) -> f32 {
    let [a, b, c, d, e, f, g, h] = s.unpack(v);
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// [`sum_lanes`] of each of eight vectors.
#[inline(always)]
pub(super) fn sum_each<S: Simd>(s: S, mut v: [S::V; LANES]) -> [f32; LANES] {
    s.transpose(&mut v);
    let even = s.add(s.add(v[0], v[4]), s.add(v[2], v[6]));
    let odd = s.add(s.add(v[1], v[5]), s.add(v[3], v[7]));
    s.unpack(s.add(even, odd))
}

/// The largest lane of each of eight vectors; lanes that are NaN may be left out.
#[inline(always)]
pub(super) fn max_each<S: Simd>(s: S, mut v: [S::V; LANES]) -> [f32; LANES] {
    s.transpose(&mut v);
    let even = s.max(s.max(v[0], v[4]), s.max(v[2], v[6]));
    let odd = s.max(s.max(v[1], v[5]), s.max(v[3], v[7]));
    s.unpack(s.max(even, odd))
}
