//! The ceiling of every other kernel: multiply-adds on registers alone.

use std::hint::black_box;

use super::Kernels;
use super::simd::{LANES, Tiled};

/// Does `rounds` multiply-adds on each of a few independent vectors, and returns the
/// floating-point operations done; a multiply-add counts two.
///
/// The vectors are as many as the matrix kernels keep sums in, enough to hide the latency of a multiply-add, and
/// stay in registers: what this reaches is what the units of one core can do.
pub fn multiply_adds(kernels: &Kernels, rounds: u64) -> u64 {
    // SAFETY: a table exists only for a CPU that can run it.
    unsafe { (kernels.multiply_adds)(rounds) }
}

/// The body of [`multiply_adds`].
///
/// # Safety
/// The CPU has the token's instruction set.
#[inline(always)]
pub(super) unsafe fn run<S: Tiled>(s: S, rounds: u64) -> u64 {
    match S::MAX_ROWS {
        12.. => chains::<S, 12>(s, rounds),
        6.. => chains::<S, 6>(s, rounds),
        _ => chains::<S, 3>(s, rounds),
    }
}

/// `N` chains x ← x · ½ + ½, whose values neither grow nor vanish.
#[inline(always)]
fn chains<S: Tiled, const N: usize>(s: S, rounds: u64) -> u64 {
    let half = black_box(0.5);
    let halves = s.columns([s.splat(half); 2]);
    let mut sums = [halves; N];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = s.fma_columns(half, *sum, halves);
        }
    }
    for sum in sums {
        black_box(s.halves(sum).map(|half| s.unpack(half)));
    }
    rounds * (4 * N * LANES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_counts_its_operations() {
        for kernels in Kernels::all_supported() {
            let one = multiply_adds(kernels, 1);
            assert!(one > 0 && one.is_multiple_of(16), "{kernels:?}: {one}");
            assert_eq!(multiply_adds(kernels, 1000), 1000 * one);
        }
    }
}
