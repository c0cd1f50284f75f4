//! `partition`: gives every node a pipeline stage.
//!
//! The atoms are the operators left after fusion, one each; a view belongs to the atom whose result
//! it names, which loses nothing, since a view takes no time and only the viewed bytes cross a cut.
//! Leaves, zeros, and values that only pick rows of inputs, are no atoms: each stage that reads one
//! gets its own copy. The engine in [`crate::solve::partition`] then finds the split with the smallest
//! bottleneck. A value that crosses cuts is passed on by a `transfer` from each stage to the next; where stages may lie
//! on branches, it is sent straight to each stage that reads it, and the stages that exchange values are the pipeline's
//! edges.
//!
//! Nodes of the backward half ride with the forward operator whose derivative they are part of, or the first
//! of those whose cotangents they read: an atom's cycles are those of both. Their order mirrors that of the forward
//! half, so that cotangents only go to earlier stages, relayed as values are.
//!
//! What the backward half computes again rides with its original. It serves its own stage: later ones received
//! the value itself in the forward half, and compute again from that. So a copy that no reader is left of beside
//! it is dropped, and its cycles count only where one is.

mod pinned;
mod place;
mod split;

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Patch, Target, Value};
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};

use crate::cost::CostModel;
use crate::phase::phases;
use crate::schedule::{Phase, Schedule};
use crate::solve::partition::{
    Edge, Item, Joint, Limits, PartitionError, Problem, Shared, Solution, Value as Moved, refute,
    solve,
};
pub use pinned::{Operator, PinnedStages};
pub use place::place_update;
use place::{Routes, place};
pub use split::{Cut, Moved as MovedOperator, Slowest, Split};

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
    /// A placement by hand, instead of the best one.
    pub pinned: Option<&'a PinnedStages>,
    /// Whether stages may lie on branches, instead of in a chain.
    pub branches: bool,
}

/// Places every node on a stage, inserts transfers, and says how good that is.
///
/// # Errors
/// No split fits the tiles' memory, or the placement by hand is none of this graph.
pub fn partition(
    graph: &mut Graph,
    pipeline: &Pipeline<'_>,
) -> Result<(Partition, Split), PartitionError> {
    partition_among(graph, pipeline, Among::Either)
}

/// Which splits are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// All, as if memory had no end.
    All,
    /// Those that fit.
    Fitting,
    /// All, and if the best of them does not fit, those that do.
    Either,
}

/// [`partition`] among some splits.
pub(crate) fn partition_among(
    graph: &mut Graph,
    pipeline: &Pipeline<'_>,
    among: Among,
) -> Result<(Partition, Split), PartitionError> {
    let atoms = Atoms::of(graph);
    let problem = problem(graph, &atoms, pipeline);
    let operators = atoms.operators(graph);
    let solution = match pipeline.pinned {
        None => best(&problem, among)?,
        Some(pinned) => judged(&problem, pinned::assign(pinned, &problem, &operators)?),
    };
    let stage = |atom: &Option<usize>| atom.map(|atom| solution.device_of[atom] as u32);
    let stages: Vec<Option<u32>> = atoms.of_node.iter().map(stage).collect();
    let routes = match pipeline.branches {
        true => Routes::Direct,
        false => Routes::Relayed,
    };
    place(graph, &stages, &atoms.again, routes);
    drop_unread(graph, &atoms.again);
    let partition = Partition {
        objective_cycles: solution.objective,
        lower_bound_cycles: solution.lower_bound,
        optimal: solution.optimal,
        ideals: solution.ideals,
        atoms: atoms.nodes.len(),
    };
    let split = Split {
        problem,
        stage_of: solution.device_of,
        operators,
    };
    Ok((partition, split))
}

/// The best split. That without a limit on memory is found sooner, and where it keeps the limit, none is better.
fn best(problem: &Problem, among: Among) -> Result<Solution, PartitionError> {
    // With branches the solver begins without a limit itself.
    if among == Among::Fitting || (among == Among::Either && problem.branches.is_some()) {
        return solve(problem, &Limits::default());
    }
    let free = Problem {
        memory_limit: None,
        ..problem.clone()
    };
    let solution = solve(&free, &Limits::default())?;
    match problem.memory_limit {
        Some(limit)
            if among == Among::Either && solution.memory.iter().any(|&bytes| bytes > limit) =>
        {
            solve(problem, &Limits::default())
        }
        _ => Ok(solution),
    }
}

/// If no split has a slowest stage of at most `cycles`: the least that one might have, `u64::MAX` if none fits the
/// memory, where that `is_limited`.
///
/// # Errors
/// The graph makes no problem that can be solved.
pub(crate) fn refuted(
    graph: &Graph,
    pipeline: &Pipeline<'_>,
    cycles: u64,
    is_limited: bool,
) -> Result<Option<u64>, PartitionError> {
    let problem = problem(graph, &Atoms::of(graph), pipeline);
    let free = Problem {
        memory_limit: None,
        ..problem.clone()
    };
    // The test without a limit takes less.
    match refute(&free, cycles, &Limits::default())? {
        None if is_limited => refute(&problem, cycles, &Limits::default()),
        found => Ok(found),
    }
}

/// How good stages are that were not searched for, beside what no split can do better than.
fn judged(problem: &Problem, stage_of: Vec<usize>) -> Solution {
    let cycles = || problem.items.iter().map(|item| item.cycles);
    let even = cycles().sum::<u64>().div_ceil(problem.devices as u64);
    let lower_bound = even.max(cycles().max().unwrap_or(0));
    Solution::of(problem, stage_of, lower_bound, 0)
}

/// What no split of a graph does without.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Floor {
    /// Cycles of all stages together for one micro-batch, without what moves between them.
    pub(crate) cycles: u64,
    /// Cycles of the largest atom.
    pub(crate) largest: u64,
    /// Bytes of all stages together that stay: parameters and states.
    pub(crate) resident: u64,
    /// Bytes of all stages together that are kept of one micro-batch.
    pub(crate) stash: u64,
}

/// What every split of a graph comes to at least.
pub(crate) fn floor(graph: &Graph, pipeline: &Pipeline<'_>) -> Floor {
    let problem = problem(graph, &Atoms::of(graph), pipeline);
    let items = || problem.items.iter().map(|item| item.cycles);
    let outside = problem
        .values
        .iter()
        .filter(|value| value.producer.is_none());
    Floor {
        cycles: items().sum::<u64>() + outside.map(|value| value.cost).sum::<u64>(),
        largest: items().max().unwrap_or(0),
        resident: problem.shared.iter().map(|block| block.bytes).sum(),
        stash: problem.values.iter().map(|value| value.stash).sum(),
    }
}

/// What the tiles of a target hold for each stage, code and reserve left out.
pub(crate) fn memory_limit(target: &Target, schedule: &Schedule) -> u64 {
    (target.capacity() - target.tile.code - target.tile.reserved) / schedule.chunks as u64
}

/// Which nodes are placed together.
struct Atoms {
    /// The operator of each atom, in topological order.
    nodes: Vec<NodeId>,
    /// The nodes of the backward half that ride with each atom.
    riders: Vec<Vec<NodeId>>,
    /// The atom of each node; none for sources.
    of_node: Vec<Option<usize>>,
    /// The nodes of the backward half that compute a value of the forward half again.
    again: FixedBitSet,
    phases: Vec<Phase>,
}

impl Atoms {
    fn of(graph: &Graph) -> Self {
        let mut atoms = Atoms {
            nodes: Vec::new(),
            riders: Vec::new(),
            of_node: vec![None; graph.bound()],
            again: FixedBitSet::with_capacity(graph.bound()),
            phases: phases(graph),
        };
        let mut source = vec![false; graph.bound()];
        for id in graph.topo() {
            let phase = atoms.phases[id.index()];
            let again = phase == Phase::Backward && atoms.is_again(graph, id);
            atoms.again.set(id.index(), again);
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
            } else if op.is_view() && atoms.phases[inputs[0].node.index()] == phase {
                atoms.of_node[id.index()] = atoms.of_node[inputs[0].node.index()];
            } else if phase == Phase::Backward
                && let Some(atom) = atoms.carrier(graph, id)
            {
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

    /// Their names, in order.
    fn operators(&self, graph: &Graph) -> Vec<Operator> {
        let nodes = self.nodes.iter().map(|&id| graph.node(id));
        let operator = |node: &lxpod_ir::Node| Operator {
            op: node.op.name(),
            scope: node.scope.to_string(),
        };
        nodes.map(operator).collect()
    }

    /// Whether a node of the backward half has the op and the operands of its forward node, or copies
    /// of these.
    fn is_again(&self, graph: &Graph, id: NodeId) -> bool {
        let node = graph.node(id);
        let Some(forward) = node.forward else {
            return false;
        };
        let original = graph.node(forward);
        let (own, operands) = (graph.inputs(id), graph.inputs(forward));
        let same = |(&own, &operand): (&Value, &Value)| {
            own == operand || self.original(graph, own) == Some(operand)
        };
        original.op == node.op
            && original.types == node.types
            && own.len() == operands.len()
            && own.iter().zip(&operands).all(same)
    }

    /// The value that is computed again, if `value` is.
    fn original(&self, graph: &Graph, value: Value) -> Option<Value> {
        let again = self.again.contains(value.node.index());
        let node = graph.node(value.node).forward.filter(|_| again)?;
        Some(Value { node, ..value })
    }

    /// The atom that a node of the backward half rides with: its own, or that of a cotangent it reads if
    /// that comes before. Atoms are in order, so that cotangents only go to earlier atoms. None if there is no atom
    /// before it.
    fn carrier(&self, graph: &Graph, id: NodeId) -> Option<usize> {
        let forward = graph.node(id).forward;
        let own = forward.and_then(|forward| self.of_node[forward.index()]);
        if let Some(own) = own
            && self.again.contains(id.index())
        {
            return Some(own);
        }
        let is_cotangent = |node: &NodeId| {
            self.phases[node.index()] == Phase::Backward && !self.again.contains(node.index())
        };
        let operands = graph.inputs(id).into_iter().map(|value| value.node);
        let cotangents = operands.clone().filter(is_cotangent);
        let first = cotangents
            .filter_map(|node| self.of_node[node.index()])
            .min();
        let any = || operands.filter_map(|node| self.of_node[node.index()]).min();
        let last = self.nodes.len().checked_sub(1);
        own.into_iter().chain(first).min().or_else(any).or(last)
    }

    /// For each node that computes a value again, the atoms that read it or what is computed again
    /// from it; by index, ascending.
    fn readers(&self, graph: &Graph) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); graph.bound()];
        let order = graph.topo().into_iter().rev();
        for id in order.filter(|id| self.again.contains(id.index())) {
            let mut found: Vec<usize> = Vec::new();
            for user in crate::walk::values(graph, id).flat_map(|value| graph.users(value)) {
                let user = user.node.index();
                match self.again.contains(user) {
                    true => found.extend(&readers[user]),
                    false => found.extend(self.of_node[user]),
                }
            }
            found.sort_unstable();
            found.dedup();
            readers[id.index()] = found;
        }
        readers
    }

    /// The atoms that use a value or copies of it, directly or through sources made of it.
    fn users(&self, graph: &Graph, value: Value) -> Vec<usize> {
        let mut users = Vec::new();
        let copies = self.again.ones().filter_map(|index| graph.at(index));
        let copies = copies.filter(|&copy| graph.node(copy).forward == Some(value.node));
        let copies = copies.map(|node| Value { node, ..value });
        for user in copies.chain([value]).flat_map(|value| graph.users(value)) {
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

/// Removes the copies that nothing reads.
fn drop_unread(graph: &mut Graph, again: &FixedBitSet) {
    let order = graph.topo().into_iter().rev();
    let copies: Vec<NodeId> = order.filter(|id| again.contains(id.index())).collect();
    let (mut patch, mut dropped) = (Patch::new(), FxHashSet::default());
    for id in copies {
        let users = crate::walk::values(graph, id).flat_map(|value| graph.users(value));
        if users.into_iter().all(|user| dropped.contains(&user.node)) {
            dropped.insert(id);
            patch.remove(id);
        }
    }
    patch.apply(graph).expect("nothing reads what is removed");
}

fn problem(graph: &Graph, atoms: &Atoms, pipeline: &Pipeline<'_>) -> Problem {
    let Pipeline {
        target,
        schedule,
        accumulation,
        ..
    } = *pipeline;
    let readers = atoms.readers(graph);
    // What is computed again for other atoms alone.
    let is_joint = |atom: usize, id: NodeId| {
        atoms.again.contains(id.index()) && readers[id.index()].binary_search(&atom).is_err()
    };
    let item = |(atom, &id): (usize, &NodeId)| {
        let riders = atoms.riders[atom].iter().copied();
        let riders = riders.filter(|&id| !is_joint(atom, id));
        let nodes = [id].into_iter().chain(riders);
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
            ..Item::default()
        }
    };
    let mut problem = Problem {
        items: atoms.nodes.iter().enumerate().map(item).collect(),
        edges: Vec::new(),
        values: Vec::new(),
        shared: Vec::new(),
        joint: Vec::new(),
        devices: schedule.stages(),
        hosts: 0,
        memory_limit: Some(memory_limit(target, schedule)),
        in_flight: in_flight(schedule, accumulation),
        branches: pipeline.branches.then_some(match schedule.training {
            true => accumulation as u64,
            // Inference goes on: what counts is the slowest stage, and then the path.
            false => 1 << 32,
        }),
    };
    for id in graph.nodes().filter(|id| !atoms.again.contains(id.index())) {
        for value in crate::walk::values(graph, id) {
            add_value(graph, atoms, pipeline, value, &mut problem);
        }
    }
    let riders = atoms.riders.iter().enumerate();
    let riders = riders.flat_map(|(atom, riders)| riders.iter().map(move |&id| (atom, id)));
    let joint = riders.filter(|&(atom, id)| is_joint(atom, id));
    problem.joint.extend(joint.map(|(item, id)| Joint {
        cycles: pipeline.cost.node(graph, id).total(),
        item,
        with: readers[id.index()].clone(),
    }));
    problem
}

/// Micro-batches whose values a stage keeps, by the number of stages after it.
pub(crate) fn in_flight(schedule: &Schedule, accumulation: usize) -> Vec<u64> {
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
    let feedback = backward && producer.is_some();
    let relayed = producer.is_some() && !pipeline.branches;
    if feedback && !relayed {
        let to = producer.unwrap_or(0);
        let edges = users.iter().map(|&from| Edge { from, to });
        problem.edges.extend(edges);
    }
    let kept = !backward && producer.is_some() && atoms.is_stashed(graph, value);
    problem.values.push(Moved {
        producer,
        users,
        cost,
        stash: if kept { bytes } else { 0 },
        feedback,
        relayed,
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
