//! The plan: the frozen result of compilation.
//!
//! A plan has two levels. A [`Program`] is what one stage does for one micro-batch, forward or
//! backward: steps over buffers at fixed offsets of its tile's memory. A [`Schedule`] orders the
//! programs: which tile works on which micro-batch when. Where the plan groups micro-batches, one *visit* of
//! a program computes a group of them, and a visit is what the schedule takes for a micro-batch. The CPU and
//! the simulator play the same list, and nothing is unrolled over micro-batches. After the last micro-batch of a training step come the
//! programs of the update, which have a graph of their own.

mod collective;
mod file;
mod layout;
mod lower;
mod order;
mod reorder;
mod values;

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, SpaceId, Target, Value, sharding};
use serde::{Deserialize, Serialize};

pub(crate) use collective::{ring_bytes, ring_cycles};
pub use file::PlanError;
pub use lower::{Work, lower};
pub use reorder::Programs;

use crate::cost::Cycles;
use crate::partition::Partition;
use crate::phase::phases;
use crate::schedule::{Phase, Schedule};

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the plan comes from.
    pub provenance: Provenance,
    /// The machine it is for.
    pub target: Target,
    /// Whole copies of the pipeline on their own tiles.
    pub replicas: usize,
    /// The placed graph of one micro-batch. Node ids are 0.. in order.
    pub graph: Graph,
    /// The placed graph of the update that ends a training step. Node ids are 0.. in order.
    pub update: Option<Graph>,
    /// How good the split into stages is.
    pub partition: Partition,
    /// The tiles of one replica, empty ones included; every replica has the same.
    pub tiles: Vec<Tile>,
    /// The order of programs.
    pub schedule: Schedule,
    /// Micro-batches of one replica in a training step; 1 of an inference plan, which takes any number.
    pub accumulation: usize,
    /// Micro-batches that one visit of a program computes together; the last visit of a phase may have fewer.
    pub group: usize,
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
    /// States of the optimiser, or a replica's share of them.
    Optimizer,
    /// States that start each training step at zero: sums of gradients.
    Accumulators,
    /// Values the host writes, and values it reads.
    HostIo,
    /// Values received from another stage.
    Transfer,
    /// Values of the forward programs that backward programs read.
    Stash,
    /// Everything else computed by a step.
    Activations,
}

impl Category {
    /// Every category, in the order of their regions in a tile's memory.
    pub const ALL: [Category; 7] = [
        Category::Weights,
        Category::Optimizer,
        Category::Accumulators,
        Category::HostIo,
        Category::Transfer,
        Category::Stash,
        Category::Activations,
    ];
}

/// One tile: its programs and the memory they share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tile {
    /// For each stage of the tile its forward program, then the backward programs, then the rounds of
    /// the update. Steps are numbered through all of them, in this order.
    pub programs: Vec<Program>,
    /// The buffers their operands lie in.
    pub buffers: Vec<Buffer>,
    /// Bytes by category.
    pub memory: Memory,
}

impl Tile {
    /// The number of the first step of each program, and the number of all steps.
    pub fn first_steps(&self) -> Vec<usize> {
        let mut first = vec![0];
        for program in &self.programs {
            first.push(first[first.len() - 1] + program.steps.len());
        }
        first
    }

    /// The position of a program in [`Tile::programs`]; none if the stage does nothing in that phase.
    pub fn program(&self, stage: usize, phase: Phase) -> Option<usize> {
        let is_it = |program: &Program| program.stage == stage && program.phase == phase;
        self.programs.iter().position(is_it)
    }

    /// Every step, with its program.
    pub fn steps(&self) -> impl Iterator<Item = (&Program, &Step)> {
        let steps = |program| Program::steps_of(program);
        self.programs.iter().flat_map(steps)
    }
}

/// What one stage does for one micro-batch in one phase, or a tile in one round of the update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The stage.
    pub stage: usize,
    /// The phase.
    pub phase: Phase,
    /// The round of the update: what is sent in one round has arrived in the next. 0 in other phases.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round: usize,
    /// In order of execution; sends to other stages come last.
    pub steps: Vec<Step>,
}

impl Program {
    fn steps_of(program: &Program) -> impl Iterator<Item = (&Program, &Step)> {
        program.steps.iter().map(move |step| (program, step))
    }
}

/// The execution of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The node, by index, in the graph of the program's phase.
    pub node: usize,
    /// Where its operands lie.
    pub inputs: Vec<Place>,
    /// Where its outputs lie; those of a `transfer` lie in the tile of the receiving stage.
    pub outputs: Vec<Place>,
    /// Predicted cycles of one visit.
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
    /// Index in [`Tile::buffers`].
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

fn is_false(value: &bool) -> bool {
    !value
}

/// A range of a tile's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// The node whose value it holds, by index.
    pub node: usize,
    /// Whether the node is one of the update's graph.
    #[serde(default, skip_serializing_if = "is_false")]
    pub update: bool,
    /// Which of the node's outputs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output: usize,
    /// What it is for.
    pub category: Category,
    /// First byte in the tile's memory.
    pub offset: u64,
    /// Bytes of one slot at full capacity, unpadded: what one visit has of the value.
    pub bytes: u64,
    /// Slots: visit i uses slot i mod slots, since those of several visits may be alive in it.
    pub slots: u32,
    /// The step that first writes it.
    pub birth: u32,
    /// One past the last step that reads it.
    pub death: u32,
}

impl Buffer {
    /// Bytes from one slot to the next.
    pub fn slot_stride(&self) -> u64 {
        self.bytes.next_multiple_of(layout::ALIGNMENT)
    }

    /// Bytes of all slots, unpadded.
    pub fn held(&self) -> u64 {
        self.bytes * u64::from(self.slots)
    }
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
        self.schedule.stages()
    }

    /// The stages that lie on a tile of a replica.
    pub fn stages_of(&self, tile: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.stages()).filter(move |&stage| self.schedule.tile_of(stage) == tile)
    }

    /// The phase of each node of a phase's graph.
    pub fn phases(&self, phase: Phase) -> Vec<Phase> {
        match phase {
            Phase::Forward | Phase::Backward => phases(&self.graph),
            Phase::Update => vec![Phase::Update; self.graph_of(phase).bound()],
        }
    }

    /// Visits that so many micro-batches of a replica take.
    pub fn visits(&self, micro_batches: usize) -> usize {
        micro_batches.div_ceil(self.group)
    }

    /// Cycles in which a tile works on one visit, forward and backward.
    pub fn tile_cycles(&self, tile: usize) -> StageCycles {
        let phases = [Phase::Forward, Phase::Backward];
        let cycles = self
            .stages_of(tile)
            .flat_map(|stage| phases.map(|phase| self.stage_cycles(stage, phase)));
        cycles.fold(StageCycles::default(), |sum, more| sum + more)
    }

    /// Cycles of a tile's part of the update, that of an inference plan none.
    pub fn update_cycles(&self, tile: usize) -> StageCycles {
        let stages = self.stages_of(tile);
        let stages = stages.filter(|_| self.update.is_some());
        let cycles = stages.map(|stage| self.stage_cycles(stage, Phase::Update));
        cycles.fold(StageCycles::default(), |sum, more| sum + more)
    }

    /// The graph whose nodes the programs of a phase run.
    ///
    /// # Panics
    /// If an inference plan is asked for its update.
    pub fn graph_of(&self, phase: Phase) -> &Graph {
        match (phase, &self.update) {
            (Phase::Forward | Phase::Backward, _) => &self.graph,
            (Phase::Update, Some(update)) => update,
            (Phase::Update, None) => panic!("an inference plan has no update"),
        }
    }

    /// The nodes whose work stage `stage` does for a micro-batch.
    pub fn stage_nodes(&self, stage: usize) -> impl Iterator<Item = NodeId> + '_ {
        self.graph
            .nodes()
            .filter(move |&id| self.graph.node(id).stage == Some(stage as u32))
    }

    /// Cycles in which the stage's tile works on one visit in that phase: its steps, what it
    /// sends and receives, and its host buffers. Partition minimises the largest sum over the phases
    /// of a micro-batch.
    pub fn stage_cycles(&self, stage: usize, phase: Phase) -> StageCycles {
        let graph = self.graph_of(phase);
        let tile = &self.tiles[self.schedule.tile_of(stage)];
        let own = |program: &&Program| program.stage == stage && program.phase == phase;
        let programs = tile.programs.iter().filter(own);
        let steps = programs.flat_map(|program| &program.steps);
        let phase_of = phases(graph);
        let members = if phase == Phase::Update {
            1
        } else {
            self.group
        };
        let bytes = |value: Value| (sharding::shard_bytes(graph, value) * members) as u64;
        let in_phase = |id: NodeId| phase == Phase::Update || phase_of[id.index()] == phase;
        let at_home = |id: &NodeId| lower::home(graph, *id) == Some(stage as u32);
        let here: Vec<NodeId> = graph.nodes().filter(at_home).collect();
        let is_send =
            |id: &&NodeId| matches!(graph.node(**id).op, Op::Transfer(_)) && in_phase(**id);
        let is_input = |id: &&NodeId| matches!(graph.node(**id).op, Op::Input(_));
        let loads = here
            .iter()
            .filter(is_input)
            .filter(|_| phase != Phase::Backward);
        let outputs = graph.outputs().iter().filter(|output| !output.is_stored());
        let stores = outputs.map(|output| output.value);
        let stores = stores.filter(|value| at_home(&value.node) && in_phase(value.node));
        let host = loads.map(|&id| graph.value(id)).chain(stores);
        let target = &self.target;
        StageCycles {
            steps: steps.clone().map(|step| step.cycles).sum(),
            send: {
                let sends = steps.filter(|step| step.receiver(graph).is_some());
                let ids: Vec<NodeId> = sends.map(|step| step.id(graph)).collect();
                sent(graph, phase, &ids)
                    .map(|value| target.link_cycles(bytes(value)))
                    .sum()
            },
            receive: here
                .iter()
                .filter(is_send)
                .map(|&id| target.link_cycles(bytes(graph.value(id))))
                .sum(),
            host: host.map(|value| target.host_cycles(bytes(value))).sum(),
        }
    }
}

/// The values that transfers of a phase send: of a micro-batch each once, over the links to all of its readers at the same
/// time; of the update, whose readers may be all tiles, once for each.
fn sent(graph: &Graph, phase: Phase, transfers: &[NodeId]) -> impl Iterator<Item = Value> {
    let mut sent: Vec<Value> = transfers.iter().map(|&id| graph.inputs(id)[0]).collect();
    if phase != Phase::Update {
        sent.sort_unstable();
        sent.dedup();
    }
    sent.into_iter()
}

/// Cycles of one stage for one visit.
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

impl std::ops::Add for StageCycles {
    type Output = StageCycles;

    fn add(self, more: StageCycles) -> StageCycles {
        StageCycles {
            steps: [self.steps, more.steps].into_iter().sum(),
            send: self.send + more.send,
            receive: self.receive + more.receive,
            host: self.host + more.host,
        }
    }
}

impl StageCycles {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.steps.total() + self.send + self.receive + self.host
    }
}
