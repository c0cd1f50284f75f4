//! Timing.

use std::time::Instant;

/// The time of each of `repeat` calls, after `warmup` untimed ones.
pub(super) fn each(warmup: usize, repeat: usize, mut call: impl FnMut()) -> Vec<f64> {
    (0..warmup).for_each(|_| call());
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..repeat).map(time).collect()
}

/// The smallest value that at least a share `rank` of the values do not exceed; 0 of none.
pub(super) fn percentile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (rank * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(percentile(&values, 0.5), 2.0);
        assert_eq!(percentile(&values, 0.9), 4.0);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
