//! A trainable written out: one row of weights per checkpoint tensor, squared error, AdamW.

use std::collections::BTreeMap;

use lxpod_backends::{
    BackendError, Executable, Feed, HostLedger, Hyper, Outputs, Overflow, StepTime, TileLedger,
    Trainable,
};
use lxpod_ir::{Extents, Shape, Spaces, Tensor};
use lxpod_passes::HISTOGRAM;
use lxpod_passes::schedule::Phase;

use super::{Setup, Tensors};
use crate::error::Result;
use crate::train::{Decay, Feeds, HISTOGRAM_EDGE, Learner, Recipe};

/// How the parameter is made of the checkpoint.
pub(super) const BINDING: &str = "concat(a, scale(0.5, b))";
const WIDTH: usize = 6;
/// Samples of a micro-batch.
const SAMPLES: usize = 4;
/// Micro-batches of a step.
const MICRO_BATCHES: usize = 2;

/// Predicts the sum of weights times inputs.
pub(super) struct Linear {
    /// Weights, first and second moment.
    values: [Vec<f32>; 3],
    recipe: Recipe,
    largest: f32,
    histogram: bool,
}

impl Linear {
    pub(super) fn learner(setup: &Setup, tensors: &Tensors) -> Learner {
        let weights = tensors.0["a"].1.iter().copied();
        let weights = weights.chain(tensors.0["b"].1.iter().map(|value| value * 0.5));
        let mut update = vec!["grad_norm".to_owned(), "factor".to_owned()];
        update.extend(setup.histogram.then(|| format!("{HISTOGRAM}{BINDING}")));
        assert_eq!(setup.recipe.decay, Decay::Weights);
        Learner {
            executable: Box::new(Linear {
                values: [weights.collect(), vec![0.0; WIDTH], vec![0.0; WIDTH]],
                recipe: setup.recipe.clone(),
                largest: setup.largest,
                histogram: setup.histogram,
            }),
            outputs: vec!["prediction".to_owned(), "loss".to_owned()],
            update,
            trained: [BINDING.to_owned()].into(),
            scaled: setup.scaled,
        }
    }

    /// Predictions, loss, and the gradient of the loss.
    fn differentiate(&self, feed: &Feed) -> (Vec<f32>, f32, Vec<f32>) {
        let (x, y) = (&feed.inputs["x"], feed.inputs["y"].reals());
        let mut gradient = vec![0.0; WIDTH];
        let (mut predictions, mut loss) = (Vec::new(), 0.0);
        for (sample, target) in y.iter().enumerate() {
            let row = x.row(sample);
            let prediction: f32 = row.iter().zip(&self.values[0]).map(|(x, w)| x * w).sum();
            let error = prediction - target;
            loss += error * error / y.len() as f32;
            for (sum, x) in gradient.iter_mut().zip(row) {
                *sum += 2.0 * error * x / y.len() as f32;
            }
            predictions.push(prediction);
        }
        (predictions, loss, gradient)
    }

    fn outputs(predictions: Vec<f32>, loss: f32) -> Outputs {
        let scalar = Tensor::real(Shape::new(&[]), vec![loss]);
        vec![Tensor::real([predictions.len()], predictions), scalar]
    }

    fn update(&mut self, gradient: &[f32], hyper: &Hyper) -> [f32; 2] {
        let hyper = |name: &str| hyper[name].reals()[0];
        let squares: f32 = gradient.iter().map(|g| g * g).sum();
        let norm = squares.sqrt() * hyper("scale");
        let most = self
            .recipe
            .max_grad_norm
            .map_or(f32::INFINITY, |norm| norm as f32);
        let clip = (most / (norm + 1e-6)).min(1.0);
        let factor = hyper("scale") * clip * if norm.is_finite() { 1.0 } else { f32::NAN };
        if !factor.is_finite() {
            return [norm, factor];
        }
        let [beta1, beta2] = [self.recipe.adam_beta1 as f32, self.recipe.adam_beta2 as f32];
        let [weights, first, second] = &mut self.values;
        for (at, g) in gradient.iter().enumerate() {
            let g = g * factor;
            first[at] = beta1 * first[at] + (1.0 - beta1) * g;
            second[at] = beta2 * second[at] + (1.0 - beta2) * g * g;
            let first = first[at] / hyper("correction1");
            let root = (second[at] / hyper("correction2")).sqrt();
            let direction = first / (root + self.recipe.adam_epsilon as f32);
            let decay = self.recipe.weight_decay as f32 * weights[at];
            weights[at] -= hyper("lr") * (direction + decay);
        }
        [norm, factor]
    }
}

impl Executable for Linear {
    fn run(&mut self, feeds: &[Feed], outputs: &mut Vec<Outputs>) -> Result<(), BackendError> {
        let answer = |feed| {
            let (predictions, loss, _) = self.differentiate(feed);
            Self::outputs(predictions, loss)
        };
        *outputs = feeds.iter().map(answer).collect();
        Ok(())
    }

    fn ledger(&self) -> Vec<TileLedger> {
        Vec::new()
    }

    fn step_times(&self) -> Vec<StepTime> {
        Vec::new()
    }

    fn host(&self) -> HostLedger {
        HostLedger::default()
    }

    fn description(&self) -> String {
        "one linear layer".to_owned()
    }
}

impl Trainable for Linear {
    fn step(
        &mut self,
        feeds: &[Feed],
        hyper: &Hyper,
        outputs: &mut Vec<Outputs>,
        update: &mut Outputs,
    ) -> Result<(), BackendError> {
        outputs.clear();
        let mut sum = vec![0.0; WIDTH];
        for feed in feeds {
            let scale = feed
                .inputs
                .get("loss_scale")
                .map_or(1.0, |scale| scale.reals()[0]);
            let (predictions, loss, gradient) = self.differentiate(feed);
            for (sum, g) in sum.iter_mut().zip(gradient) {
                let scaled = g * scale;
                *sum += if scaled.abs() > self.largest {
                    f32::INFINITY
                } else {
                    scaled
                };
            }
            outputs.push(Self::outputs(predictions, loss));
        }
        let [norm, factor] = self.update(&sum, hyper);
        *update = [norm, factor]
            .map(|value| Tensor::real(Shape::new(&[]), vec![value]))
            .into();
        if self.histogram {
            let mean: Vec<f32> = sum.iter().map(|g| g / feeds.len() as f32).collect();
            let upper = mean.iter().filter(|g| g.abs() >= HISTOGRAM_EDGE).count();
            let counts = [mean.len() - upper, upper].map(|count| count as f32);
            update.push(Tensor::real([2], counts.to_vec()));
        }
        Ok(())
    }

    fn first_overflow(&mut self, feeds: &[Feed]) -> Result<Option<Overflow>, BackendError> {
        let overflows = |feed: &Feed| {
            let scale = feed.inputs.get("loss_scale");
            let scale = scale.map_or(1.0, |scale| scale.reals()[0]);
            let gradient = self.differentiate(feed).2;
            gradient.iter().any(|g| (g * scale).abs() > self.largest)
        };
        let found = feeds.iter().position(overflows);
        Ok(found.map(|micro_batch| Overflow {
            micro_batch,
            phase: Phase::Backward,
            op: "weight_grad".to_owned(),
            scope: "linear".to_owned(),
            value: "%0: f32[2,3]".to_owned(),
        }))
    }

    fn persistent(&self) -> Vec<(String, Tensor<f32>)> {
        let names = [
            format!("param:{BINDING}"),
            format!("state:m:{BINDING}"),
            format!("state:v:{BINDING}"),
        ];
        let values = self
            .values
            .iter()
            .map(|values| Tensor::real([2, 3], values.clone()));
        names.into_iter().zip(values).collect()
    }

    fn restore(&mut self, name: &str, tensor: &Tensor<f32>) -> Result<(), BackendError> {
        let names = self.persistent();
        let found = names.iter().position(|(other, _)| other == name);
        let index = found.ok_or_else(|| BackendError::Internal(format!("no state {name}")))?;
        self.values[index].copy_from_slice(tensor.reals());
        Ok(())
    }
}

/// Made-up samples of a linear function.
pub(super) struct LinearFeeds {
    pub(super) steps: usize,
}

impl Feeds for LinearFeeds {
    fn steps(&self) -> usize {
        self.steps
    }

    fn micro_batches(&self) -> usize {
        MICRO_BATCHES
    }

    fn samples(&self) -> usize {
        SAMPLES * MICRO_BATCHES
    }

    fn read(&mut self, step: usize) -> Result<Vec<Feed>> {
        let feed = |index: usize| {
            let number = |at: usize| ((step * MICRO_BATCHES + index) * 997 + at * 31) % 23;
            let x: Vec<f32> = (0..SAMPLES * WIDTH)
                .map(|at| number(at) as f32 / 11.0 - 1.0)
                .collect();
            let y = x
                .chunks(WIDTH)
                .map(|row| row.iter().sum::<f32>() + 0.25)
                .collect();
            Feed {
                extents: Extents::full(&Spaces::default()),
                inputs: BTreeMap::from([
                    ("x".to_owned(), Tensor::real([SAMPLES, WIDTH], x)),
                    ("y".to_owned(), Tensor::real([SAMPLES], y)),
                ]),
            }
        };
        Ok((0..MICRO_BATCHES).map(feed).collect())
    }
}
