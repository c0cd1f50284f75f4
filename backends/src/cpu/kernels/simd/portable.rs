//! The portable instruction set: arrays that the compiler vectorises as it can.

use lxpod_ir::random_bits::RowState;

use super::tiled::{FEW_PANELS, Tiled};
use super::{LANES, Simd};

/// Proof of nothing: every CPU runs it. Multiplies and adds round separately.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable;

/// Applies a function of two lanes.
#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// The value of an f16, exactly. Multiplying by 2^112 moves the exponent bias from 15 to 127 and
/// normalises subnormals; infinities and NaNs get the exponent 255 afterwards.
#[inline(always)]
fn widen_f16(h: u16) -> f32 {
    let magnitude = (u32::from(h) & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 31 << 23 { 255 << 23 } else { 0 };
    let sign = (u32::from(h) & 0x8000) << 16;
    f32::from_bits(scaled.to_bits() | special | sign)
}

impl Simd for Portable {
    type V = [f32; LANES];
    type W = [u32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn pack(self, lanes: [f32; LANES]) -> Self::V {
        lanes
    }
    #[inline(always)]
    fn unpack(self, v: Self::V) -> [f32; LANES] {
        v
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn floor(self, a: Self::V) -> Self::V {
        a.map(f32::floor)
    }
    #[inline(always)]
    fn binade(self, a: Self::V) -> Self::V {
        a.map(|a| f32::from_bits(a.to_bits() & 0x7f80_0000))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn with_sign(self, magnitude: Self::V, sign: Self::V) -> Self::V {
        zip(magnitude, sign, f32::copysign)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        let mut out = no;
        for i in 0..LANES {
            out[i] = if a[i] < b[i] { yes[i] } else { no[i] };
        }
        out
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23))
    }
    #[inline(always)]
    fn words(self, row: RowState, first: u32) -> Self::W {
        let mut words = [0; LANES];
        for (word, column) in words.iter_mut().zip(first..) {
            *word = row.word(column);
        }
        words
    }
    #[inline(always)]
    fn select_below(self, words: Self::W, bound: u32, yes: Self::V, no: Self::V) -> Self::V {
        let mut out = no;
        for i in 0..LANES {
            out[i] = if words[i] < bound { yes[i] } else { no[i] };
        }
        out
    }
    #[inline(always)]
    fn upper(self, words: Self::W) -> Self::V {
        words.map(|word| (word >> 8) as f32)
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::V; LANES]) {
        let mut columns = [[0.0; LANES]; LANES];
        for (i, row) in rows.iter().enumerate() {
            for (column, &x) in columns.iter_mut().zip(row) {
                column[i] = x;
            }
        }
        *rows = columns;
    }
    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's contract; the read is unaligned.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        // SAFETY: the caller's contract; the read is unaligned.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(widen_f16)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::V {
        // SAFETY: the caller's contract; the read is unaligned.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }
            .map(|h| f32::from_bits(u32::from(h) << 16))
    }
    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract; the write is unaligned.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    fn to_f16(self, v: Self::V) -> [u16; LANES] {
        v.map(|x| half::f16::from_f32_const(x).to_bits())
    }
    #[inline(always)]
    fn to_i16(self, v: Self::V) -> [i16; LANES] {
        // Adding 1.5 · 2^23 rounds to an integer and leaves it in the last bits.
        const LAST_BITS: f32 = 12_582_912.0;
        v.map(|x| (x.clamp(-32768.0, 32767.0) + LAST_BITS).to_bits() as i16)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

impl Tiled for Portable {
    type C = [[f32; LANES]; 2];
    type N = [i32; 2 * LANES];
    type P = [[i16; 2]; 2 * LANES];

    const MAX_ROWS: usize = 3;
    const PANELS: [usize; 4] = FEW_PANELS;

    #[inline(always)]
    fn columns(self, halves: [Self::V; 2]) -> Self::C {
        halves
    }
    #[inline(always)]
    fn halves(self, c: Self::C) -> [Self::V; 2] {
        c
    }
    #[inline(always)]
    fn fma_columns(self, x: f32, w: Self::C, sums: Self::C) -> Self::C {
        let x = self.splat(x);
        [self.fma(x, w[0], sums[0]), self.fma(x, w[1], sums[1])]
    }
    #[inline(always)]
    fn zero_sums(self) -> Self::N {
        [0; 2 * LANES]
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> Self::P {
        // SAFETY: the caller's contract; the read is unaligned.
        unsafe { p.cast::<Self::P>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn add_pairs(self, x: *const f32, w: Self::P, mut sums: Self::N) -> Self::N {
        // SAFETY: the caller's contract; the read is unaligned.
        let [a, b] = unsafe { x.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        for (sum, w) in sums.iter_mut().zip(w) {
            let [c, d] = w.map(i32::from);
            *sum = sum.wrapping_add((a * c).wrapping_add(b * d));
        }
        sums
    }
    #[inline(always)]
    fn to_columns(self, sums: Self::N) -> Self::C {
        let mut columns = [[0.0; LANES]; 2];
        for (to, from) in columns.as_flattened_mut().iter_mut().zip(sums) {
            *to = from as f32;
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::widen_f16;

    #[test]
    fn widening_every_f16_is_exact() {
        for h in 0..=u16::MAX {
            let (ours, reference) = (widen_f16(h), half::f16::from_bits(h).to_f32_const());
            assert!(
                ours.to_bits() == reference.to_bits() || (ours.is_nan() && reference.is_nan()),
                "{h:#06x}"
            );
        }
    }
}
