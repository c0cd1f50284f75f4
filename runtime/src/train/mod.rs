//! Training: recipes, data, the loop, checkpoints.
//!
//! A [`Trainer`] drives a [`Learner`], a plan with an update, through the micro-batches of
//! [`Feeds`] by a [`Recipe`], and keeps everything that a step leaves behind in checkpoints: a run
//! that was cut off continues bit for bit.

mod batches;
mod events;
mod export;
mod folder;
mod hyper;
mod loss_scale;
mod rate;
mod recipe;
mod scatter;
mod state;
#[cfg(test)]
mod tests;
mod trainable;
mod trainer;

pub use batches::{BatchFeeds, Batches, Feeds};
pub use events::EventWriter;
pub use export::{Export, MODEL_FILE};
pub use folder::{Gate, RunFolder, Staging, checkpoints, newest};
pub use hyper::Moment;
pub use loss_scale::{HISTOGRAM_EDGE, Histogram, LossScaler, LossScaling};
pub use rate::{Decline, WarmUp};
pub use recipe::{Decay, OptimizerName, Recipe, RecipeName};
pub use state::{Evaluated, LOG_FILE, Log, Progress, STATE_FILE};
pub use trainable::{TrainableOptions, trainable};
pub use trainer::{Evaluation, Learner, Observer, Outcome, Saving, StepReport, Trainer};
