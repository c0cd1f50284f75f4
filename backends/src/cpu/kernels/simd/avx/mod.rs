//! AVX2 with FMA and F16C: eight lanes. Matrix tiles are in registers of 256 bits, or of 512 where AVX-512 is.

/// Where the value of a row for one step lies, as an operand of assembly: in a packed left side, or in rows, of which every third has
/// a register for its address.
macro_rules! at {
    (packed, $i:literal, $r:literal) => {
        concat!("{a} + 32*", $i, " + 4*", $r)
    };
    (rows, $i:literal, 0) => {
        concat!("{a} + 4*", $i)
    };
    (rows, $i:literal, 1) => {
        concat!("{a} + {r} + 4*", $i)
    };
    (rows, $i:literal, 2) => {
        concat!("{a} + 2*{r} + 4*", $i)
    };
    (rows, $i:literal, 3) => {
        concat!("{b} + 4*", $i)
    };
    (rows, $i:literal, 4) => {
        concat!("{b} + {r} + 4*", $i)
    };
    (rows, $i:literal, 5) => {
        concat!("{b} + 2*{r} + 4*", $i)
    };
    (rows, $i:literal, 6) => {
        concat!("{c} + 4*", $i)
    };
    (rows, $i:literal, 7) => {
        concat!("{c} + {r} + 4*", $i)
    };
}

/// Calls the loop of f32 sides, a function of the module `wide`, for these sides.
macro_rules! by_sides {
    ($acc:ident, $a:ident, $b:ident, $count:ident) => {{
        let (left, right) = ($a.step(), $b.places());
        match ($a, $b) {
            (Left::Packed(_), Right::Packed(_)) => wide::packed::steps($acc, left, right, $count),
            (Left::Rows(..), Right::Packed(_)) => wide::rows::steps($acc, left, right, $count),
            (Left::Rows(..), Right::Rows(..)) => wide::packing::steps($acc, left, right, $count),
            (Left::Packed(_), Right::Rows(..)) => {
                unreachable!("only rows of a left side pack the right one")
            }
        }
    }};
}

mod ymm;
mod ymm_steps;
mod zmm;
mod zmm_steps;

use std::arch::x86_64::*;
use std::marker::PhantomData;

use lxpod_ir::random_bits::{MULTIPLIERS, RowState};

use super::{LANES, Simd};

/// Registers of 256 bits.
#[derive(Clone, Copy)]
pub(in super::super::super) struct Ymm;
/// Registers of 512 bits.
#[derive(Clone, Copy)]
pub(in super::super::super) struct Zmm;

/// Proof that this CPU has AVX2, FMA and F16C, and what tiles of registers R need.
#[derive(Clone, Copy)]
pub(in super::super::super) struct Avx<R>(PhantomData<R>);

impl<R> Avx<R> {
    /// The token, without a check.
    ///
    /// # Safety
    /// `detected` of this type returned true in this process.
    #[inline(always)]
    pub(in super::super::super) unsafe fn assume() -> Self {
        Avx(PhantomData)
    }
}

impl Avx<Ymm> {
    /// Whether this CPU has all three features.
    pub(in super::super::super) fn detected() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }
}

impl Avx<Zmm> {
    /// Whether this CPU has those, AVX-512 with registers of all lengths, and its products of 16-bit integers.
    pub(in super::super::super) fn detected() -> bool {
        Avx::<Ymm>::detected()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
}

/// Calls a vector intrinsic.
macro_rules! vector {
    ($call:expr) => {
        // SAFETY: a token exists only where the CPU has the features the intrinsic needs.
        unsafe { $call }
    };
}
use vector;

impl<R: Copy> Simd for Avx<R> {
    type V = __m256;
    type W = __m256i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        vector!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn pack(self, lanes: [f32; LANES]) -> __m256 {
        // SAFETY: the array is 32 readable bytes.
        unsafe { self.load_f32(lanes.as_ptr()) }
    }
    #[inline(always)]
    fn unpack(self, v: __m256) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array is 32 writable bytes.
        unsafe { self.store_f32(lanes.as_mut_ptr(), v) };
        lanes
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        vector!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn floor(self, a: __m256) -> __m256 {
        vector!(_mm256_floor_ps(a))
    }
    #[inline(always)]
    fn binade(self, a: __m256) -> __m256 {
        vector!(_mm256_and_ps(
            a,
            _mm256_castsi256_ps(_mm256_set1_epi32(0x7f80_0000))
        ))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        vector!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        vector!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn with_sign(self, magnitude: __m256, sign: __m256) -> __m256 {
        vector!(_mm256_or_ps(
            magnitude,
            _mm256_and_ps(_mm256_set1_ps(-0.0), sign)
        ))
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        vector!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        vector!({
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn words(self, row: RowState, first: u32) -> __m256i {
        vector!({
            let all = |word: u32| _mm256_set1_epi32(word.cast_signed());
            let times = |x, by: u32| _mm256_mullo_epi32(x, all(by));
            let start = all(first.wrapping_add(row.add));
            let x = _mm256_add_epi32(start, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let x = _mm256_xor_si256(x, _mm256_srli_epi32::<17>(x));
            let x = times(x, MULTIPLIERS[0]);
            let x = _mm256_xor_si256(x, _mm256_srli_epi32::<11>(x));
            let x = times(_mm256_xor_si256(x, all(row.xor)), MULTIPLIERS[1]);
            let x = _mm256_xor_si256(x, _mm256_srli_epi32::<15>(x));
            let x = times(x, MULTIPLIERS[2]);
            _mm256_xor_si256(x, _mm256_srli_epi32::<14>(x))
        })
    }
    #[inline(always)]
    fn select_below(self, words: __m256i, bound: u32, yes: __m256, no: __m256) -> __m256 {
        vector!({
            let bound = _mm256_set1_epi32(bound.cast_signed());
            let reached = _mm256_cmpeq_epi32(_mm256_max_epu32(words, bound), words);
            _mm256_blendv_ps(yes, no, _mm256_castsi256_ps(reached))
        })
    }
    #[inline(always)]
    fn upper(self, words: __m256i) -> __m256 {
        vector!(_mm256_cvtepi32_ps(_mm256_srli_epi32::<8>(words)))
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m256; LANES]) {
        let [a, b, c, d, e, f, g, h] = *rows;
        vector!({
            // Pairs of rows interleaved, then fours, within each half; then the halves exchanged.
            let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ef0, ef1) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
            let (gh0, gh1) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
            let low = [
                _mm256_shuffle_ps::<0x44>(ab0, cd0),
                _mm256_shuffle_ps::<0xee>(ab0, cd0),
                _mm256_shuffle_ps::<0x44>(ab1, cd1),
                _mm256_shuffle_ps::<0xee>(ab1, cd1),
            ];
            let high = [
                _mm256_shuffle_ps::<0x44>(ef0, gh0),
                _mm256_shuffle_ps::<0xee>(ef0, gh0),
                _mm256_shuffle_ps::<0x44>(ef1, gh1),
                _mm256_shuffle_ps::<0xee>(ef1, gh1),
            ];
            for i in 0..4 {
                rows[i] = _mm256_permute2f128_ps::<0x20>(low[i], high[i]);
                rows[i + 4] = _mm256_permute2f128_ps::<0x31>(low[i], high[i]);
            }
        });
    }
    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32) -> __m256 {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream_f32(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm256_stream_ps(p, v) }
    }
    #[inline(always)]
    fn fence(self) {
        vector!(_mm_sfence());
    }
    #[inline(always)]
    fn to_f16(self, v: __m256) -> [u16; LANES] {
        let mut bits = [0; LANES];
        vector!({
            let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(bits.as_mut_ptr().cast(), rounded);
        });
        bits
    }
    #[inline(always)]
    fn to_i16(self, v: __m256) -> [i16; LANES] {
        let mut words = [0; LANES];
        vector!({
            let wide = _mm256_cvtps_epi32(v);
            let (low, high) = (
                _mm256_castsi256_si128(wide),
                _mm256_extracti128_si256::<1>(wide),
            );
            _mm_storeu_si128(words.as_mut_ptr().cast(), _mm_packs_epi32(low, high));
        });
        words
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }
    #[inline(always)]
    fn prefetch_to_write(self, p: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_ET0>(p.cast()));
    }
}
