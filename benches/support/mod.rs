//! Numbers for the benchmarks, and the settings they share.

use std::time::Duration;

use criterion::Criterion;

/// A generator of numbers: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `n` values, uniform in -`range`..`range`.
    pub(crate) fn reals(&mut self, n: usize, range: f32) -> Vec<f32> {
        let one = |bits: u64| ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * range;
        (0..n).map(|_| one(self.bits())).collect()
    }

    /// `n` indices below `bound`.
    pub(crate) fn indices(&mut self, n: usize, bound: usize) -> Vec<i32> {
        (0..n)
            .map(|_| (self.bits() % bound as u64) as i32)
            .collect()
    }
}

/// Short runs: what is measured repeats within microseconds to milliseconds.
pub(crate) fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}
