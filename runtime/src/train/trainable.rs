//! From a model to a plan with an update.

use lxpod_backends::BackendError;
use lxpod_ir::Graph;
use lxpod_passes::CompileOptions;

use super::recipe::Recipe;
use super::trainer::Learner;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::model::Model;
use crate::session::SessionOptions;

/// What to compile for training, and how to run it.
#[derive(Clone, Debug)]
pub struct TrainableOptions {
    /// The model, its losses included, and where it is placed.
    pub compile: CompileOptions,
    /// Micro-batches of one replica in one step.
    pub gradient_accumulation: usize,
    /// The optimiser.
    pub recipe: Recipe,
    /// Backend and threads.
    pub session: SessionOptions,
}

/// Compiles a plan with an update, loads it with `weights`, and returns it with the graph of one
/// micro-batch.
///
/// # Errors
/// The options do not fit the model or the target; not supported: plans are for inference.
pub fn trainable(
    model: &Model,
    options: &TrainableOptions,
    weights: &dyn Weights,
) -> Result<(Learner, Graph)> {
    options.compile.resolved_stages()?;
    let _ = (model, weights);
    let what = "training; plans are for inference. `lxpod run --mode training --backend reference` \
                gives gradients";
    Err(BackendError::Unsupported(what.to_owned()).into())
}
