//! Tiles of 256-bit registers: six rows of one panel.

use std::arch::x86_64::*;

use super::super::tiled::{FEW_PANELS, Floats, Left, Right, Tiled, pair_step, step};
use super::super::{LANES, Simd};
use super::{Avx, Ymm, vector, ymm_steps};

impl Tiled for Avx<Ymm> {
    type C = [__m256; 2];
    type N = [__m256i; 2];
    type P = [__m256i; 2];

    const MAX_ROWS: usize = 6;
    const PANELS: [usize; 4] = FEW_PANELS;
    const WIDE_BLOCK: usize = ymm_steps::WIDE_BLOCK;

    #[inline(always)]
    fn columns(self, halves: [__m256; 2]) -> [__m256; 2] {
        halves
    }
    #[inline(always)]
    fn halves(self, c: [__m256; 2]) -> [__m256; 2] {
        c
    }
    #[inline(always)]
    fn fma_columns(self, x: f32, w: [__m256; 2], sums: [__m256; 2]) -> [__m256; 2] {
        let x = self.splat(x);
        [self.fma(x, w[0], sums[0]), self.fma(x, w[1], sums[1])]
    }
    #[inline(always)]
    fn zero_sums(self) -> [__m256i; 2] {
        [vector!(_mm256_setzero_si256()); 2]
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe {
            [
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(p.add(32).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(self, x: *const f32, w: [__m256i; 2], sums: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the caller's contract, and the token for the feature.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(x, w[0])),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(x, w[1])),
            ]
        }
    }
    #[inline(always)]
    fn to_columns(self, sums: [__m256i; 2]) -> [__m256; 2] {
        vector!([_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])])
    }
    #[inline(always)]
    unsafe fn eight_steps<const R: usize, const P: usize, W: Floats>(
        self,
        acc: &mut [[[__m256; 2]; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        _next: Option<[*const u8; 2]>,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe {
            if P == 1 {
                return ymm_steps::eight::<R, W>(&mut acc[0], a, row, w);
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
        acc: &mut [[[__m256; 2]; R]; P],
        a: Left,
        b: Right,
        blocks: usize,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe { ymm_steps::wide::<R>(&mut acc[0], a, b, blocks) }
    }
    #[inline(always)]
    unsafe fn eight_pairs<const R: usize, const P: usize>(
        self,
        acc: &mut [[[__m256i; 2]; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        _next: Option<[*const u8; 2]>,
    ) {
        // SAFETY: the caller's contract, and the token for the features.
        unsafe {
            if P == 1 {
                return ymm_steps::eight_pairs::<R>(&mut acc[0], a, row, w);
            }
            for i in 0..8 {
                let w = w.wrapping_add(i * 2 * LANES * size_of::<f32>());
                pair_step::<Self, R, P>(self, acc, (a.add(i), row), (w, panel));
            }
        }
    }
}
