//! From a model to a plan with an update.

use std::ops::Range;
use std::path::Path;

use lxpod_backends::cpu::{Cpu, PackedWeights};
use lxpod_backends::reference::ReferenceTrainer;
use lxpod_backends::{BackendError, Trainable};
use lxpod_ir::{Graph, Output};
use lxpod_passes::plan::Plan;
use lxpod_passes::{CompileOptions, Optimizer, Precision, UpdateOptions, compile};

use super::loss_scale::{HISTOGRAM_EDGE, LossScaling};
use super::recipe::{Decay, OptimizerName, Recipe};
use super::trainer::Learner;
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::session::{BackendKind, SessionOptions, is_scaled, rows_of};

/// What to compile for training, and how to run it.
#[derive(Clone, Debug)]
pub struct TrainableOptions {
    /// The model, its losses included, where it is placed, and the schedule of a step. The recipe
    /// decides the update.
    pub compile: CompileOptions,
    /// The optimiser.
    pub recipe: Recipe,
    /// What the names of tensors begin with that stay as they are.
    pub frozen: Vec<String>,
    /// Backend and threads.
    pub session: SessionOptions,
}

impl TrainableOptions {
    /// What is compiled: with the recipe's update.
    pub fn with_update(&self) -> CompileOptions {
        let mut wanted = self.compile.clone();
        let training = wanted.training.get_or_insert_default();
        training.update = Some(self.recipe.update(wanted.precision, &self.frozen));
        if wanted.precision == Precision::Mixed {
            training.accumulator = self.recipe.accumulator;
        }
        wanted
    }
}

/// Compiles a plan with an update, loads it with `weights`, and returns it with the graph of one
/// micro-batch.
///
/// # Errors
/// The options do not fit the model or the target, or the weights cannot be read.
pub fn trainable(
    model: &Model,
    options: &TrainableOptions,
    weights: &dyn Weights,
) -> Result<(Learner, Graph)> {
    let wanted = options.with_update();
    let (plan, _) = compile(&model.config, &model.name, &wanted, &mut |_, _| {})?;
    let graph = plan.graph.clone();
    let weights = Finite { weights, model };
    Ok((Learner::load(plan, &weights, options.session)?, graph))
}

/// Weights of which all are numbers: a run from others would skip every step.
struct Finite<'a> {
    weights: &'a dyn Weights,
    model: &'a Model,
}

impl Weights for Finite<'_> {
    fn shape(&self, name: &str) -> Result<&[usize]> {
        self.weights.shape(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.weights.read_rows(name, rows, out)?;
        match out.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(Error::invalid(
                self.model.folder().unwrap_or(Path::new(&self.model.name)),
                format!("tensor `{name}`"),
                format!("holds {value}; must be finite"),
                "the checkpoint is of a run that diverged: train from an earlier one",
            )),
        }
    }
}

impl Recipe {
    fn rule(&self) -> Optimizer {
        let (betas, eps) = ([self.adam_beta1, self.adam_beta2], self.adam_epsilon);
        match self.optimizer {
            OptimizerName::AdamW => Optimizer::Adam { betas, eps },
            OptimizerName::Sgd => Optimizer::Sgd {
                momentum: self.momentum,
                nesterov: self.nesterov,
            },
            OptimizerName::Lamb => Optimizer::Lamb {
                betas,
                eps,
                max_ratio: Some(self.max_ratio),
            },
        }
    }

    /// The update of a plan in that precision.
    pub fn update(&self, precision: Precision, frozen: &[String]) -> UpdateOptions {
        let histogram =
            precision == Precision::Mixed && self.loss_scaling == LossScaling::Histogram;
        UpdateOptions {
            optimizer: self.rule(),
            decay: self.weight_decay,
            decay_everything: self.decay == Decay::All,
            max_norm: self.max_grad_norm,
            moments: match precision {
                Precision::Fp32 => [lxpod_ir::DType::F32; 2],
                Precision::Mixed => [self.first_moment, self.second_moment],
            },
            masters: self.master_weights,
            stochastic: self.stochastic_rounding,
            frozen: frozen.to_vec(),
            histogram_edge: histogram.then_some(HISTOGRAM_EDGE.into()),
            shards: 1,
        }
    }
}

impl Learner {
    /// A plan with an update, loaded.
    ///
    /// # Errors
    /// The plan has no update, the weights cannot be read, or the backend lacks an op.
    pub fn load(plan: Plan, weights: &dyn Weights, options: SessionOptions) -> Result<Learner> {
        let Some(update) = plan.update.clone() else {
            let what = "training with an inference plan".to_owned();
            return Err(BackendError::Unsupported(what).into());
        };
        let names = |graph: &Graph| {
            let outputs = graph.outputs().iter();
            outputs.map(|output| output.name.clone()).collect()
        };
        let stored = update.outputs().iter().filter_map(Output::stored_param);
        Ok(Learner {
            outputs: names(&plan.graph),
            trained: stored.map(str::to_owned).collect(),
            scaled: is_scaled(&plan.graph),
            update: names(&update),
            executable: executable(plan, update, weights, options)?,
        })
    }
}

/// Loads a plan's weights into a backend.
fn executable(
    plan: Plan,
    update: Graph,
    weights: &dyn Weights,
    options: SessionOptions,
) -> Result<Box<dyn Trainable>> {
    let fetch = rows_of(weights);
    Ok(match options.backend {
        BackendKind::Cpu => Box::new(Cpu::load(
            plan,
            &fetch,
            &PackedWeights::default(),
            options.cpu(),
        )?),
        BackendKind::Reference => {
            let expected = &plan.provenance.expected;
            Box::new(ReferenceTrainer::load(
                plan.graph, update, expected, &fetch,
            )?)
        }
    })
}
