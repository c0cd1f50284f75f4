//! The ceilings of every other kernel: multiply-adds on registers alone, and reading alone.

use std::hint::black_box;

use super::Kernels;
use super::scratch::LINE;
use super::simd::{LANES, Tiled, sum_lanes};

/// Does `rounds` multiply-adds on each of a few independent vectors, and returns the
/// floating-point operations done; a multiply-add counts two.
///
/// The vectors are as many as the matrix kernels keep sums in, enough to hide the latency of a multiply-add, and
/// stay in registers: what this reaches is what the units of one core can do.
pub fn multiply_adds(kernels: &Kernels, rounds: u64) -> u64 {
    // SAFETY: a table exists only for a CPU that can run it.
    unsafe { (kernels.multiply_adds)(rounds) }
}

/// Reads all of `values`, in a few streams at once, and returns their sum in some order: of memory that no cache
/// holds, what one core can read.
pub fn read_all(kernels: &Kernels, values: &[f32]) -> f32 {
    // SAFETY: a table exists only for a CPU that can run it.
    unsafe { (kernels.read_all)(values) }
}

/// The body of [`read_all`].
///
/// # Safety
/// The CPU has the token's instruction set.
#[inline(always)]
pub(super) unsafe fn read<S: Tiled>(s: S, values: &[f32]) -> f32 {
    const STREAMS: usize = 8;
    let length = values.len() / (STREAMS * LINE) * LINE;
    let mut sums = [s.columns([s.splat(0.0); 2]); STREAMS];
    for at in (0..length).step_by(LINE) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a stream has `length` values, whole lines.
            let line = unsafe { s.load_columns(values.as_ptr().add(stream * length + at)) };
            *sum = s.add_columns(line, *sum);
        }
    }
    let mut total = values[STREAMS * length..].iter().sum();
    for sum in sums {
        let [low, high] = s.halves(sum);
        total += sum_lanes(s, s.add(low, high));
    }
    total
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
    fn every_table_reads_every_value() {
        for kernels in Kernels::all_supported() {
            for length in [0, 1, 127, 128, 129, 1000] {
                let values: Vec<f32> = (0..length).map(|i| (i % 7) as f32).collect();
                let sum: f32 = values.iter().sum();
                assert_eq!(read_all(kernels, &values), sum, "{kernels:?}: {length}");
            }
        }
    }

    #[test]
    fn every_table_counts_its_operations() {
        for kernels in Kernels::all_supported() {
            let one = multiply_adds(kernels, 1);
            assert!(one > 0 && one.is_multiple_of(16), "{kernels:?}: {one}");
            assert_eq!(multiply_adds(kernels, 1000), 1000 * one);
        }
    }
}
