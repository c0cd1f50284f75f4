//! Tiles of 512-bit registers: twelve rows of two panels.

use std::arch::x86_64::*;

use super::super::LANES;
use super::super::tiled::{Body, Floats, Left, MOST_PANELS, Right, Tiled, pair_step, step};
use super::{Avx, Zmm, vector, zmm_steps};

/// Runs a body, compiled once.
///
/// # Safety
/// As [`Body::run`], and the CPU has what [`Avx`] of these registers needs.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn apart<B: Body>(body: B) {
    // SAFETY: the caller's contract.
    unsafe { body.run(Avx::<Zmm>::assume()) }
}

impl Tiled for Avx<Zmm> {
    type C = __m512;
    type N = __m512i;
    type P = __m512i;

    const MAX_ROWS: usize = 12;
    const PANELS: [usize; 4] = MOST_PANELS;
    const WIDE: (usize, usize) = (8, 3);
    const WIDE_BLOCK: usize = zmm_steps::WIDE_BLOCK;

    #[inline(always)]
    unsafe fn apart<B: Body>(self, body: B) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe { apart(body) }
    }
    #[inline(always)]
    fn columns(self, [low, high]: [__m256; 2]) -> __m512 {
        vector!(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high))
    }
    #[inline(always)]
    fn halves(self, c: __m512) -> [__m256; 2] {
        vector!([_mm512_castps512_ps256(c), _mm512_extractf32x8_ps::<1>(c)])
    }
    #[inline(always)]
    fn fma_columns(self, x: f32, w: __m512, sums: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(_mm512_set1_ps(x), w, sums))
    }
    #[inline(always)]
    unsafe fn load_columns(self, p: *const f32) -> __m512 {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_half_columns(self, p: *const u16) -> __m512 {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_columns(self, p: *mut f32, c: __m512) {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm512_storeu_ps(p, c) }
    }
    #[inline(always)]
    unsafe fn stream_columns(self, p: *mut f32, c: __m512) {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm512_stream_ps(p, c) }
    }
    #[inline(always)]
    fn add_columns(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn add_squares(self, x: __m512, sums: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(x, x, sums))
    }
    #[inline(always)]
    unsafe fn add_exact_squares(self, x: *const f32, count: usize, sums: &mut [f64; 2 * LANES]) {
        let [low, high] = [0, LANES].map(|half| sums[half..].as_mut_ptr());
        // SAFETY: the caller's contract, and the token for the feature; there are sixteen sums.
        unsafe {
            let mut own = [_mm512_loadu_pd(low), _mm512_loadu_pd(high)];
            for i in 0..count {
                for (half, sum) in own.iter_mut().enumerate() {
                    let values = _mm256_loadu_ps(x.add((2 * i + half) * LANES));
                    let wide = _mm512_cvtps_pd(values);
                    *sum = _mm512_fmadd_pd(wide, wide, *sum);
                }
            }
            _mm512_storeu_pd(low, own[0]);
            _mm512_storeu_pd(high, own[1]);
        }
    }
    #[inline(always)]
    fn largest(self, x: __m512, most: __m512) -> __m512 {
        // The second operand where either is NaN.
        vector!(_mm512_max_ps(_mm512_abs_ps(x), most))
    }
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut i16, x: __m512, factor: f32) {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe {
            let wide = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
            _mm256_storeu_si256(p.cast(), _mm512_cvtsepi32_epi16(wide));
        }
    }
    #[inline(always)]
    fn zero_sums(self) -> __m512i {
        vector!(_mm512_setzero_si512())
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> __m512i {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add_pairs(self, x: *const f32, w: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe {
            zmm_steps::add_pairs(_mm512_set1_epi32(x.cast::<i32>().read_unaligned()), w, sums)
        }
    }
    #[inline(always)]
    fn to_columns(self, sums: __m512i) -> __m512 {
        vector!(_mm512_cvtepi32_ps(sums))
    }
    #[inline(always)]
    fn asks(panels: usize) -> bool {
        panels == 2
    }
    #[inline(always)]
    unsafe fn eight_steps<const R: usize, const P: usize, W: Floats>(
        self,
        acc: &mut [[__m512; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        next: Option<[*const u8; 2]>,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe {
            if P <= 2 {
                return zmm_steps::eight::<R, P, W>(acc, (a, row), (w, panel), next);
            }
            for i in 0..8 {
                let w = w.wrapping_add(i * 2 * LANES * W::SIZE);
                step::<Self, W, R, P>(self, acc, (a.add(i), row), (w, panel));
            }
        }
    }
    #[inline(always)]
    unsafe fn wide_blocks<const R: usize, const P: usize>(
        self,
        acc: &mut [[__m512; R]; P],
        a: Left,
        b: Right,
        blocks: usize,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe { zmm_steps::wide::<R, P>(acc, a, b, blocks) }
    }
    #[inline(always)]
    unsafe fn eight_pairs<const R: usize, const P: usize>(
        self,
        acc: &mut [[__m512i; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        next: Option<[*const u8; 2]>,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe {
            if P <= 2 {
                return zmm_steps::eight_pairs::<R, P>(acc, (a, row), (w, panel), next);
            }
            for i in 0..8 {
                let w = w.wrapping_add(i * 2 * LANES * size_of::<f32>());
                pair_step::<Self, R, P>(self, acc, (a.add(i), row), (w, panel));
            }
        }
    }
}
