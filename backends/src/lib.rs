//! Backends: what runs or plays a plan.
//!
//! [`cpu`] executes a plan's programs in arenas of planned layout, fast; [`mod@reference`] evaluates the
//! plan's graph by the ops' reference semantics, slowly, as the oracle; [`sim`] plays the plan's
//! schedule against its predicted cycles. All of them take the same [`Feed`]s.

pub mod cpu;
mod overflow;
pub mod reference;
pub mod sim;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use lxpod_ir::{Extents, Graph, NodeId, Tensor};
use lxpod_passes::plan::Memory;
use lxpod_passes::schedule::Phase;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use overflow::Overflow;

/// An error of whoever supplies weights.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Reads rows of a checkpoint tensor, trailing axes flattened, widened to f32: name, rows of axis 0,
/// destination. Called from several threads at once.
pub type Fetch<'a> = &'a (dyn Fn(&str, Range<usize>, &mut [f32]) -> Result<(), SourceError> + Sync);

/// The values of one micro-batch's inputs.
#[derive(Clone, Debug)]
pub struct Feed {
    /// How many rows each row space has.
    pub extents: Extents,
    /// By input name, at those extents.
    pub inputs: BTreeMap<String, Tensor<f32>>,
}

/// The inputs of one update, by name: scalars, and the key of stochastic rounding.
pub type Hyper = BTreeMap<String, Tensor<f32>>;

/// The outputs of one micro-batch, in the order of the graph's outputs, at run-time extents.
pub type Outputs = Vec<Tensor<f32>>;

/// What went wrong in a backend.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The user's data: an input that is missing, of the wrong shape, or out of range.
    #[error("{0}")]
    Data(String),
    /// The source of the weights.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The machine cannot run what was asked for.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A defect of lxpod, such as an access outside a live buffer found by guard mode.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What one tile really used in a run, re-derived from the accesses of its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TileLedger {
    /// The tile: replica x stages + stage.
    pub tile: usize,
    /// Bytes by category; only the executed categories and `max_live` are measured.
    pub memory: Memory,
}

/// What a backend really allocated on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLedger {
    /// Packed weights.
    pub weights: u64,
    /// Arenas of all tiles.
    pub arenas: u64,
    /// Scratch of all workers.
    pub scratch: u64,
}

/// How long one step of a plan took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// The stage.
    pub stage: usize,
    /// The phase.
    pub phase: Phase,
    /// The step's node, in the graph of the phase.
    pub node: NodeId,
    /// Wall time of the whole team, waiting included, over all micro-batches of the last run.
    pub time: Duration,
}

/// A plan ready to run.
pub trait Executable: Send {
    /// Runs one micro-batch per feed, dealt to the replicas in turn, and puts the outputs of each into
    /// `outputs`, whose memory is used again.
    ///
    /// # Errors
    /// A feed does not fit the plan, or holds an index out of range; the outputs are then anything.
    fn run(&mut self, feeds: &[Feed], outputs: &mut Vec<Outputs>) -> Result<(), BackendError>;

    /// The tile ledger of all runs so far; empty where the backend has no tiles.
    fn ledger(&self) -> Vec<TileLedger>;

    /// The time of every step in the last run, by stage and in order of execution; empty where the
    /// backend does not time its steps. What a run takes beyond their sum is the host's: feeding
    /// inputs, fetching outputs, waking the team.
    fn step_times(&self) -> Vec<StepTime>;

    /// The host ledger.
    fn host(&self) -> HostLedger;

    /// What the backend runs on, for reports: kernel table and threads.
    fn description(&self) -> String;
}

/// A plan with an update: its parameters and states change from step to step.
pub trait Trainable: Executable {
    /// One optimiser step: every feed is one micro-batch, run through the schedule in order with gradients
    /// accumulated, then the update, fed with `hyper`, its inputs by name and perhaps more. `outputs` gets each micro-batch's
    /// outputs, `update` the update's (in graph order); those that are stored are empty.
    ///
    /// # Errors
    /// A feed does not fit the plan, or holds an index out of range; parameters and states are then
    /// as before the step.
    fn step(
        &mut self,
        feeds: &[Feed],
        hyper: &Hyper,
        outputs: &mut Vec<Outputs>,
        update: &mut Outputs,
    ) -> Result<(), BackendError>;

    /// Runs the micro-batches of a step anew, without its update, and finds their first value that is
    /// not finite; none where only a sum over micro-batches is not. Parameters and persistent states
    /// stay as they are.
    ///
    /// # Errors
    /// As [`Trainable::step`].
    fn first_overflow(&mut self, feeds: &[Feed]) -> Result<Option<Overflow>, BackendError>;

    /// The persistent tensors by name: `param:BINDING` and `state:NAME` (states that reset are not
    /// persistent), widened to f32.
    fn persistent(&self) -> Vec<(String, Tensor<f32>)>;

    /// Puts a persistent tensor back.
    ///
    /// # Errors
    /// There is none of that name, or it has another shape.
    fn restore(&mut self, name: &str, tensor: &Tensor<f32>) -> Result<(), BackendError>;
}

/// The feed of an update's graph.
fn update_feed(update: &Graph, hyper: &Hyper) -> Feed {
    Feed {
        extents: Extents::full(&update.spaces),
        inputs: hyper.clone(),
    }
}
