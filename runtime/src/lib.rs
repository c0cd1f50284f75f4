//! The runtime of lxpod: models, checkpoints, data, sessions.
//!
//! Embedding takes four steps: open a [`Model`], compile a plan with
//! [`lxpod_passes::compile`], load it into a [`Session`] with the model's weights, and run
//! [`Samples`]; see [`Session`] for the code.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod compare;
pub mod error;
pub mod ipu_config;
mod model;
mod nearest;
pub mod out_of_memory;
mod pack;
pub mod problems;
mod samples;
mod session;
mod sharing;
pub mod tensors;
pub mod trace;
pub mod train;

pub use error::{Error, Fault, Result};
pub use model::{BUILT_IN, Model};
pub use samples::Samples;
pub use session::{BackendKind, NamedTensor, RunResult, Session, SessionOptions};
pub use tensors::read_tensors;
