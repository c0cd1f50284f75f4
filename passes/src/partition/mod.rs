//! `partition`: gives every node a pipeline stage.
//!
//! The atoms are the operators left after fusion, one each; a view belongs to the atom whose result
//! it names, which loses nothing, since a view takes no time and only the viewed bytes cross a cut.
//! Leaves, zeros, and values that only pick rows of inputs, are no atoms: each stage that reads one
//! gets its own copy. The engine in [`crate::solve::partition`] then finds the split with the smallest
//! bottleneck. A value that crosses cuts is passed on by a `transfer` from each stage to the next.
//!
//! Nodes of the backward half ride with the forward operator whose derivative they are part of: an
//! atom's cycles are those of both. A sum of cotangents, which belongs to no single operator, is
//! reckoned with the first of its operands' atoms, and placed on the earliest of its operands' stages. Cotangents
//! go straight to the stage that reads them.

mod place;

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Target, Value};
use serde::{Deserialize, Serialize};

use crate::cost::CostModel;
use crate::phase::phases;
use crate::schedule::{Phase, Schedule};
use crate::solve::partition::{
    Item, Limits, PartitionError, Problem, Shared, Value as Moved, solve,
};
pub use place::place_update;
use place::{Routes, place};

/// How good a split is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Cycles of the slowest stage, with the communication it causes.
    pub objective_cycles: u64,
    /// No contiguous split over the same atoms has a faster slowest stage.
    pub lower_bound_cycles: u64,
    /// Whether the two are equal.
    pub optimal: bool,
    /// Ideals of the atoms' order, which are the cuts there are; 0 if there were too many to list.
    pub ideals: usize,
    /// Operators placed.
    pub atoms: usize,
}

/// What the split is for.
#[derive(Clone, Copy)]
pub struct Pipeline<'a> {
    /// The machine.
    pub target: &'a Target,
    /// Its rates.
    pub cost: &'a dyn CostModel,
    /// The order of programs, which says how many micro-batches a stage keeps values of.
    pub schedule: &'a Schedule,
    /// Micro-batches of a training step.
    pub accumulation: usize,
    /// Bytes that are resident beside each parameter, by binding: states of the optimiser, sums of
    /// gradients.
    pub states: &'a BTreeMap<String, u64>,
}

/// Places every node on a stage, inserts transfers, and says how good that is.
///
/// # Errors
/// No split fits the tiles' memory.
pub fn partition(graph: &mut Graph, pipeline: &Pipeline<'_>) -> Result<Partition, PartitionError> {
    let atoms = Atoms::of(graph);
    let problem = problem(graph, &atoms, pipeline);
    let solution = solve(&problem, &Limits::default())?;
    let device = |atom: usize| solution.device_of[atom] as u32;
    let stages = atoms.stages(graph, &device);
    place(graph, &stages, Routes::Relayed);
    Ok(Partition {
        objective_cycles: solution.objective,
        lower_bound_cycles: solution.lower_bound,
        optimal: solution.optimal,
        ideals: solution.ideals,
        atoms: atoms.nodes.len(),
    })
}

/// Which nodes are placed together.
struct Atoms {
    /// The operator of each atom, in topological order.
    nodes: Vec<NodeId>,
    /// The nodes of the backward half that ride with each atom.
    riders: Vec<Vec<NodeId>>,
    /// The atom of each node; none for sources.
    of_node: Vec<Option<usize>>,
    phases: Vec<Phase>,
}

impl Atoms {
    fn of(graph: &Graph) -> Self {
        let mut atoms = Atoms {
            nodes: Vec::new(),
            riders: Vec::new(),
            of_node: vec![None; graph.bound()],
            phases: phases(graph),
        };
        let mut source = vec![false; graph.bound()];
        for id in graph.topo() {
            let op = &graph.node(id).op;
            let inputs = graph.inputs(id);
            let from_sources = inputs.iter().all(|value| source[value.node.index()]);
            let picks_inputs = matches!(op, Op::GatherRows(_))
                && from_sources
                && inputs
                    .iter()
                    .all(|value| !matches!(graph.node(value.node).op, Op::Param(_)));
            let from_nothing = op.is_leaf() || matches!(op, Op::Zeros(_));
            if from_nothing || picks_inputs || (op.is_view() && from_sources) {
                source[id.index()] = true;
            } else if op.is_view() {
                atoms.of_node[id.index()] = atoms.of_node[inputs[0].node.index()];
            } else if atoms.phases[id.index()] == Phase::Backward {
                let atom = atoms.carrier(graph, id);
                atoms.of_node[id.index()] = Some(atom);
                atoms.riders[atom].push(id);
            } else {
                atoms.of_node[id.index()] = Some(atoms.nodes.len());
                atoms.nodes.push(id);
                atoms.riders.push(Vec::new());
            }
        }
        atoms
    }

    /// The atom that a node of the backward half rides with.
    fn carrier(&self, graph: &Graph, id: NodeId) -> usize {
        let own = graph.node(id).forward;
        let own = own.and_then(|forward| self.of_node[forward.index()]);
        let operands = graph.inputs(id).into_iter().map(|value| value.node);
        let of_operands = || operands.filter_map(|node| self.of_node[node.index()]).min();
        own.or_else(of_operands)
            .unwrap_or_else(|| self.nodes.len().saturating_sub(1))
    }

    /// The stage of each node; none for sources.
    fn stages(&self, graph: &Graph, device: &dyn Fn(usize) -> u32) -> Vec<Option<u32>> {
        let mut stages = vec![None; graph.bound()];
        for id in graph.topo() {
            let Some(atom) = self.of_node[id.index()] else {
                continue;
            };
            let node = graph.node(id);
            let operands = graph.inputs(id).into_iter();
            let arriving = operands.map(|value| value.node).filter(|node| {
                self.phases[node.index()] == Phase::Backward || graph.node(id).op.is_view()
            });
            let earliest = arriving.filter_map(|node| stages[node.index()]).min();
            let own = Some(device(atom));
            stages[id.index()] = match self.phases[id.index()] {
                _ if node.op.is_view() => earliest.or(own),
                Phase::Backward if node.forward.is_none() => earliest.or(own),
                // Cotangents only move to earlier stages.
                Phase::Backward => own.map(|own| earliest.map_or(own, |stage| stage.min(own))),
                Phase::Forward | Phase::Update => own,
            };
        }
        stages
    }

    /// The atoms that use a value, directly or through sources made of it.
    fn users(&self, graph: &Graph, value: Value) -> Vec<usize> {
        let mut users = Vec::new();
        for user in graph.users(value) {
            match self.of_node[user.node.index()] {
                Some(atom) => users.push(atom),
                None => users.extend(self.users(graph, graph.value(user.node))),
            }
        }
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Whether the backward half reads a value of the forward half, directly or through views.
    fn is_stashed(&self, graph: &Graph, value: Value) -> bool {
        graph.users(value).iter().any(|user| {
            self.phases[user.node.index()] == Phase::Backward
                || (graph.node(user.node).op.is_view()
                    && self.is_stashed(graph, graph.value(user.node)))
        })
    }
}

fn problem(graph: &Graph, atoms: &Atoms, pipeline: &Pipeline<'_>) -> Problem {
    let Pipeline {
        target,
        schedule,
        accumulation,
        ..
    } = *pipeline;
    let chunks = schedule.chunks as u64;
    let item = |(atom, &id): (usize, &NodeId)| {
        let nodes = [id].into_iter().chain(atoms.riders[atom].iter().copied());
        let outputs = graph.outputs().iter().filter(|output| !output.is_stored());
        let outputs = outputs.map(|output| output.value);
        let leaving = outputs.filter(|value| atoms.of_node[value.node.index()] == Some(atom));
        let host = leaving.map(|value| target.host_cycles(graph.ty(value).bytes() as u64));
        let work = nodes
            .clone()
            .map(|id| pipeline.cost.node(graph, id).total());
        Item {
            cycles: work.sum::<u64>() + host.sum::<u64>(),
            resident: 0,
            workspace: nodes.map(|id| workspace(graph, id)).max().unwrap_or(0),
        }
    };
    let mut problem = Problem {
        items: atoms.nodes.iter().enumerate().map(item).collect(),
        edges: Vec::new(),
        values: Vec::new(),
        shared: Vec::new(),
        devices: schedule.stages(),
        memory_limit: Some((target.capacity() - target.tile.code - target.tile.reserved) / chunks),
        in_flight: in_flight(schedule, accumulation),
    };
    for id in graph.nodes() {
        for value in crate::walk::values(graph, id) {
            add_value(graph, atoms, pipeline, value, &mut problem);
        }
    }
    problem
}

/// Micro-batches whose values a stage keeps, by the number of stages after it.
fn in_flight(schedule: &Schedule, accumulation: usize) -> Vec<u64> {
    let kept = |stage| {
        let (from, to) = ((stage, Phase::Forward), (stage, Phase::Backward));
        schedule.depth(from, to, accumulation) as u64
    };
    match schedule.training {
        true => (0..schedule.stages()).rev().map(kept).collect(),
        false => Vec::new(),
    }
}

/// What a value costs where it crosses, and takes where it stays.
fn add_value(
    graph: &Graph,
    atoms: &Atoms,
    pipeline: &Pipeline<'_>,
    value: Value,
    problem: &mut Problem,
) {
    let (node, bytes) = (graph.node(value.node), graph.ty(value).bytes() as u64);
    let users = atoms.users(graph, value);
    if users.is_empty() {
        return;
    }
    let producer = atoms.of_node[value.node.index()];
    let cost = match &node.op {
        Op::Param(param) => {
            let states = pipeline.states.get(&param.value.to_string());
            problem.shared.push(Shared {
                bytes: bytes + states.copied().unwrap_or(0),
                users,
            });
            return;
        }
        Op::State(_) => return,
        Op::Input(_) => pipeline.target.host_cycles(bytes),
        _ if producer.is_none() => pipeline.cost.node(graph, value.node).total(),
        _ => pipeline.target.link_cycles(bytes),
    };
    let backward = atoms.phases[value.node.index()] == Phase::Backward;
    let kept = !backward && producer.is_some() && atoms.is_stashed(graph, value);
    problem.values.push(Moved {
        producer,
        users,
        cost,
        stash: if kept { bytes } else { 0 },
        feedback: backward && producer.is_some(),
        relayed: !backward && producer.is_some(),
    });
}

/// Bytes a node's operands and results take while it runs.
fn workspace(graph: &Graph, id: NodeId) -> u64 {
    let is_param = |value: &Value| matches!(graph.node(value.node).op, Op::Param(_));
    let mut inputs = graph.inputs(id);
    inputs.sort_unstable();
    inputs.dedup();
    let read = inputs
        .iter()
        .filter(|value| !is_param(value))
        .map(|&value| graph.ty(value).bytes());
    let written = graph.node(id).types.iter().map(|ty| ty.bytes());
    read.chain(written).map(|bytes| bytes as u64).sum()
}
