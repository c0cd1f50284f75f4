//! Passes of the lxpod compiler.
//!
//! A [`Pass`] reads a graph and returns checked patches; the [`Manager`] applies them until the pass
//! has nothing more to say, verifies the graph, and records what happened. No pass knows the name of
//! a layer: each is a law about ops, and what LXMERT gains falls out of the laws.
//!
//! ```text
//! canonicalise   one form for each meaning; factors of two move into parameters
//! fold           what depends on constants or on parameters alone is computed once
//! cse, dce       each value once, and only what an output needs
//! narrow         rows and columns that nobody reads are not computed
//! cse, dce
//! fuse-epilogue  an activation joins the linear before it
//! merge-linear   linears that share an operand become one
//! fuse-norm      a residual joins the layer norm behind it
//! fold, cse, dce
//! precision      how each value is stored
//! dce
//! ```
//!
//! [`optimise`] runs this list. [`TRAINING`] leaves out what fuses, and goes on:
//!
//! ```text
//! autodiff       the gradient of the loss for each parameter
//! canonicalise, cse, dce
//! ```
//!
//! [`MICRO_BATCH`] makes it the graph that runs several times before an update:
//!
//! ```text
//! recompute      what is cheap to compute again is not kept for the backward half
//! accumulate     gradients are summed over the micro-batches of a step
//! ```
#![forbid(unsafe_code)]

pub mod accumulate;
pub mod auto;
pub mod autodiff;
pub mod canonicalise;
mod compile;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod fold;
pub mod fuse_epilogue;
pub mod fuse_norm;
mod manager;
pub mod merge_linear;
pub mod narrow;
pub mod partition;
mod pass;
mod phase;
pub mod plan;
pub mod precision;
pub mod recompute;
pub mod schedule;
pub mod solve;
mod update;
mod walk;

pub use compile::{
    CompileError, CompileOptions, CompileReport, Group, Observer, Placement, TrainingOptions,
    compile, config_hash, plan_graph,
};
pub use manager::{Manager, PassError, PassReport, Report, optimise};
pub use pass::{
    Found, LossScale, MICRO_BATCH, Mode, Options, PASSES, PIPELINE, Pass, Precision, Recompute,
    Run, TRAINING, UnknownPass, find, names,
};
pub use phase::phases;
pub use schedule::Phase;
pub use update::{HISTOGRAM, MEAN, Optimizer, ROUNDING_KEY, UpdateOptions, update_graph};
