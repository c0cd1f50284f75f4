//! The plan: the frozen result of compilation.
//!
//! A plan has two levels. A [`Program`] is what one stage does for one micro-batch: steps over
//! buffers at fixed offsets of the tile's memory. A [`Schedule`] orders the programs: which tile
//! works on which micro-batch when. The CPU and the simulator play the same list, and nothing is
//! unrolled over micro-batches.

mod file;
mod layout;
mod lower;
mod order;

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, SpaceId, Target};
use serde::{Deserialize, Serialize};

pub use file::PlanError;
pub use lower::lower;

use crate::cost::Cycles;
use crate::partition::Partition;
use crate::schedule::Schedule;

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the plan comes from.
    pub provenance: Provenance,
    /// The machine it is for.
    pub target: Target,
    /// Whole copies of the pipeline on their own tiles.
    pub replicas: usize,
    /// The placed graph. Node ids are 0.. in order.
    pub graph: Graph,
    /// How good the split into stages is.
    pub partition: Partition,
    /// One program per stage, empty ones included; every replica runs the same.
    pub programs: Vec<Program>,
    /// The order of programs.
    pub schedule: Schedule,
}

/// What made a plan, so that a plan file explains itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The compiler's version.
    pub version: String,
    /// The model's name as the user gave it, without its folder.
    pub model: String,
    /// SHA-256 of what binds the plan to the configuration; see [`crate::config_hash`].
    pub config_hash: String,
    /// The configuration.
    pub config: serde_json::Value,
    /// Every option, resolved.
    pub options: serde_json::Value,
    /// Tensors the checkpoint must hold, with their shapes, including those that no output needs.
    pub expected: Vec<(String, Vec<usize>)>,
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Parameters, resident between runs.
    Weights,
    /// Values the host writes, and values it reads.
    HostIo,
    /// Values received from the stage before.
    Transfer,
    /// Everything else computed by a step.
    Activations,
}

impl Category {
    /// Every category, in the order of their regions in a tile's memory.
    pub const ALL: [Category; 4] = [
        Category::Weights,
        Category::HostIo,
        Category::Transfer,
        Category::Activations,
    ];
}

/// What one stage does for one micro-batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// In order of execution; sends to other stages come last.
    pub steps: Vec<Step>,
    /// The buffers its operands lie in.
    pub buffers: Vec<Buffer>,
    /// Bytes by category.
    pub memory: Memory,
}

/// The execution of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The node, by index.
    pub node: usize,
    /// Where its operands lie.
    pub inputs: Vec<Place>,
    /// Where its outputs lie; those of a `transfer` lie in the program of the receiving stage.
    pub outputs: Vec<Place>,
    /// Predicted cycles.
    pub cycles: Cycles,
}

impl Step {
    /// The node's id in the plan's graph.
    pub fn id(&self, graph: &Graph) -> NodeId {
        graph
            .at(self.node)
            .expect("a plan's steps name nodes of its graph")
    }

    /// The stage that receives what the step sends, if it is a transfer.
    pub fn receiver(&self, graph: &Graph) -> Option<usize> {
        match &graph.node(self.id(graph)).op {
            Op::Transfer(transfer) => Some(transfer.to as usize),
            _ => None,
        }
    }
}

/// A strided matrix inside a buffer: how a value lies in memory. Views share their operand's buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Index in [`Program::buffers`].
    pub buffer: usize,
    /// Elements of each row before the value's first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub column: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Row spaces whose rows precede the value's, in a union.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<SpaceId>,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// A range of a tile's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// The node whose value it holds, by index.
    pub node: usize,
    /// Which of the node's outputs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output: usize,
    /// What it is for.
    pub category: Category,
    /// First byte in the tile's memory.
    pub offset: u64,
    /// Bytes at full capacity, unpadded.
    pub bytes: u64,
    /// The step that first writes it.
    pub birth: u32,
    /// One past the last step that reads it.
    pub death: u32,
}

/// Bytes of one tile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Parameters.
    pub weights: u64,
    /// Optimiser state.
    pub optimizer: u64,
    /// Gradient accumulators.
    pub accumulators: u64,
    /// The extent of the activations' region.
    pub activations: u64,
    /// Activations kept for the backward pass.
    pub stash: u64,
    /// Values received from the stage before.
    pub transfer: u64,
    /// Host buffers.
    pub host_io: u64,
    /// Estimated code.
    pub code: u64,
    /// Set aside.
    pub reserved: u64,
    /// The peak of the whole memory, padding included.
    pub total: u64,
    /// What the tile has.
    pub capacity: u64,
    /// The fullest core, when every buffer spreads evenly over the cores in grains of 8 bytes.
    pub core_max: u64,
    /// What a core has.
    pub core_capacity: u64,
    /// The most unpadded bytes of activations alive at once, in this order of steps.
    pub max_live: u64,
    /// A lower bound of `max_live` over every order of the steps.
    pub best_max_live: u64,
}

impl Memory {
    /// The executed categories by their names in reports.
    pub fn executed(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("optimizer", self.optimizer),
            ("accumulators", self.accumulators),
            ("activations", self.activations),
            ("stash", self.stash),
            ("transfer", self.transfer),
            ("host_io", self.host_io),
        ]
    }
}

impl Plan {
    /// Pipeline stages of one replica.
    pub fn stages(&self) -> usize {
        self.programs.len()
    }

    /// The nodes whose work stage `stage` does.
    pub fn stage_nodes(&self, stage: usize) -> impl Iterator<Item = NodeId> + '_ {
        self.graph
            .nodes()
            .filter(move |&id| self.graph.node(id).stage == Some(stage as u32))
    }

    /// Cycles in which the stage's tile works on one micro-batch: its steps, what it sends and
    /// receives, and its host buffers. What partition minimises the largest of.
    pub fn stage_cycles(&self, stage: usize) -> StageCycles {
        let graph = &self.graph;
        let program = &self.programs[stage];
        let sends = program
            .steps
            .iter()
            .filter(|step| step.receiver(graph).is_some());
        let sent = sends.map(|step| graph.node(step.id(graph)).types[0].bytes() as u64);
        let received = program
            .buffers
            .iter()
            .filter(|buffer| buffer.category == Category::Transfer);
        let inputs = self
            .stage_nodes(stage)
            .filter(|&id| matches!(graph.node(id).op, Op::Input(_)));
        let inputs = inputs.map(|id| graph.value(id));
        let outputs = graph.outputs().iter().map(|output| output.value);
        let outputs = outputs.filter(|value| lower::home(graph, value.node) == Some(stage as u32));
        let host = inputs
            .chain(outputs)
            .map(|value| graph.ty(value).bytes() as u64);
        StageCycles {
            steps: program.steps.iter().map(|step| step.cycles).sum(),
            send: sent.map(|bytes| self.target.link_cycles(bytes)).sum(),
            receive: received
                .map(|buffer| self.target.link_cycles(buffer.bytes))
                .sum(),
            host: host.map(|bytes| self.target.host_cycles(bytes)).sum(),
        }
    }
}

/// Cycles of one stage for one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageCycles {
    /// The steps.
    pub steps: Cycles,
    /// Sending each value that leaves once.
    pub send: u64,
    /// Receiving each value that arrives.
    pub receive: u64,
    /// Host buffers.
    pub host: u64,
}

impl StageCycles {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.steps.total() + self.send + self.receive + self.host
    }
}
