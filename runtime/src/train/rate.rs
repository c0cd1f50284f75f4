//! How the learning rate moves.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the rate falls after warm-up, as Transformers' schedules of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decline {
    /// In a straight line, to 0 behind the last step.
    #[default]
    Linear,
    /// Not at all.
    Constant,
    /// Along half a cosine, to 0 behind the last step.
    Cosine,
}

/// How long the rate rises in a straight line, from 0 at the first step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmUp {
    /// A share of all steps, rounded up.
    Ratio(f64),
    /// So many steps.
    Steps(usize),
}

impl WarmUp {
    /// The number of steps it lasts in a run of `total`.
    pub fn steps(self, total: usize) -> usize {
        match self {
            WarmUp::Ratio(ratio) => (ratio * total as f64).ceil() as usize,
            WarmUp::Steps(steps) => steps,
        }
    }

    /// # Errors
    /// A ratio outside 0 to 1.
    pub(super) fn check(self) -> Result<()> {
        match self {
            WarmUp::Ratio(ratio) if !(0.0..=1.0).contains(&ratio) => Err(Error::Option {
                flag: "--warmup-ratio",
                message: format!("is {ratio}; must be from 0 to 1"),
            }),
            WarmUp::Ratio(_) | WarmUp::Steps(_) => Ok(()),
        }
    }
}

impl Decline {
    /// The share of the highest rate at `step` of `total`, both counted from the start of the run,
    /// skipped updates included.
    pub fn share(self, step: usize, total: usize, warmup: WarmUp) -> f64 {
        let warmup = warmup.steps(total);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let rest = total.saturating_sub(warmup).max(1) as f64;
        let done = (step - warmup) as f64 / rest;
        match self {
            Decline::Linear => (total.saturating_sub(step) as f64 / rest).max(0.0),
            Decline::Constant => 1.0,
            Decline::Cosine => (0.5 * (1.0 + (PI * done.min(1.0)).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(decline: Decline, warmup: WarmUp) -> Vec<f64> {
        (0..6).map(|step| decline.share(step, 6, warmup)).collect()
    }

    #[test]
    fn warm_up_starts_at_zero() {
        let two = WarmUp::Steps(2);
        assert_eq!(
            shares(Decline::Linear, two),
            [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
        );
        assert_eq!(
            shares(Decline::Constant, two),
            [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
        );
        let cosine = shares(Decline::Cosine, two);
        assert_eq!(cosine[..3], [0.0, 0.5, 1.0]);
        assert!((cosine[4] - 0.5).abs() < 1e-15, "{cosine:?}");
        assert_eq!(WarmUp::Ratio(0.1).steps(11), 2);
        assert_eq!(WarmUp::Ratio(0.0).steps(11), 0);
    }

    #[test]
    fn odd_lengths_stay_in_range() {
        for warmup in [
            WarmUp::Steps(0),
            WarmUp::Steps(6),
            WarmUp::Steps(100),
            WarmUp::Ratio(1.0),
        ] {
            for decline in [Decline::Linear, Decline::Constant, Decline::Cosine] {
                let shares = shares(decline, warmup);
                assert!(
                    shares.iter().all(|share| (0.0..=1.0).contains(share)),
                    "{shares:?}"
                );
            }
        }
        assert_eq!(Decline::Linear.share(0, 1, WarmUp::Steps(0)), 1.0);
        assert_eq!(Decline::Linear.share(9, 6, WarmUp::Steps(2)), 0.0);
    }
}
