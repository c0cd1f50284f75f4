//! What an update is fed with.

use lxpod_backends::Hyper;
use lxpod_ir::Tensor;
use lxpod_ir::random_bits::rounding_key;
use lxpod_passes::{MEAN, ROUNDING_KEY};

use super::recipe::Recipe;

/// Where a run stands before an update.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Steps done, skipped ones included.
    pub step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Updates applied.
    pub applied: u64,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// What multiplies the loss.
    pub loss_scale: f32,
    /// The run's seed.
    pub seed: u64,
}

impl Recipe {
    /// The learning rate of a step.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        self.learning_rate * self.lr_schedule.share(step, steps, self.warmup)
    }

    /// The inputs of an update.
    pub fn hyper(&self, at: &Moment) -> Hyper {
        let [correction1, correction2] = self.corrections(at.applied);
        let scale = 1.0 / (f64::from(at.loss_scale) * at.micro_batches as f64);
        let scalars = [
            ("lr", self.rate(at.step, at.steps) as f32),
            ("correction1", correction1),
            ("correction2", correction2),
            ("scale", scale as f32),
            (MEAN, (1.0 / at.micro_batches as f64) as f32),
        ];
        let scalars = scalars.map(|(name, value)| (name, Tensor::real([], vec![value])));
        let key = rounding_key(at.seed, at.step as u64).map(u32::cast_signed);
        let key = (ROUNDING_KEY, Tensor::int([2], key.to_vec()));
        let inputs = scalars.into_iter().chain([key]);
        inputs
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}
