//! `partition`: gives every node a pipeline stage.
//!
//! The atoms are the operators left after fusion, one each; a view belongs to the atom whose result
//! it names, which loses nothing, since a view takes no time and only the viewed bytes cross a cut.
//! Leaves, and values that only pick rows of inputs, are no atoms: each stage that reads one gets
//! its own copy. The engine in [`crate::solve::partition`] then finds the split with the smallest
//! bottleneck. A value that crosses cuts is passed on by a `transfer` from each stage to the next.

use std::collections::BTreeMap;

use lxpod_ir::ops::{Op, Transfer};
use lxpod_ir::{Graph, NodeId, Patch, Target, User, Value, Wire};
use serde::{Deserialize, Serialize};

use crate::cost::CostModel;
use crate::solve::partition::{
    Item, Limits, PartitionError, Problem, Shared, Value as Moved, solve,
};

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

/// Places every node on one of `stages` stages, inserts transfers, and says how good that is.
///
/// # Errors
/// No split fits the tiles' memory.
pub fn partition(
    graph: &mut Graph,
    target: &Target,
    cost: &dyn CostModel,
    stages: usize,
) -> Result<Partition, PartitionError> {
    let atoms = Atoms::of(graph);
    let problem = problem(graph, &atoms, target, cost, stages);
    let solution = solve(&problem, &Limits::default())?;
    let stage_of =
        |node: NodeId| atoms.of_node[node.index()].map(|atom| solution.device_of[atom] as u32);
    place(graph, &stage_of);
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
    /// The atom of each node; none for sources.
    of_node: Vec<Option<usize>>,
}

impl Atoms {
    fn of(graph: &Graph) -> Self {
        let mut atoms = Atoms {
            nodes: Vec::new(),
            of_node: vec![None; graph.bound()],
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
            if op.is_leaf() || picks_inputs || (op.is_view() && from_sources) {
                source[id.index()] = true;
            } else if op.is_view() {
                atoms.of_node[id.index()] = atoms.of_node[inputs[0].node.index()];
            } else {
                atoms.of_node[id.index()] = Some(atoms.nodes.len());
                atoms.nodes.push(id);
            }
        }
        atoms
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
}

fn problem(
    graph: &Graph,
    atoms: &Atoms,
    target: &Target,
    cost: &dyn CostModel,
    stages: usize,
) -> Problem {
    let item = |(atom, &id)| {
        let outputs = graph.outputs().iter().map(|output| output.value);
        let leaving = outputs.filter(|value| atoms.of_node[value.node.index()] == Some(atom));
        let host = leaving.map(|value| target.host_cycles(graph.ty(value).bytes() as u64));
        Item {
            cycles: cost.node(graph, id).total() + host.sum::<u64>(),
            resident: 0,
            workspace: workspace(graph, id),
        }
    };
    let mut problem = Problem {
        items: atoms.nodes.iter().enumerate().map(item).collect(),
        edges: Vec::new(),
        values: Vec::new(),
        shared: Vec::new(),
        devices: stages,
        memory_limit: Some(target.capacity() - target.tile.code - target.tile.reserved),
        in_flight: Vec::new(),
    };
    for id in graph.nodes() {
        let node = graph.node(id);
        for (output, ty) in node.types.iter().enumerate() {
            let value = Value {
                node: id,
                output: output as u16,
            };
            let users = atoms.users(graph, value);
            if users.is_empty() {
                continue;
            }
            let bytes = ty.bytes() as u64;
            let producer = atoms.of_node[id.index()];
            let cycles = match &node.op {
                Op::Param(_) => {
                    problem.shared.push(Shared { bytes, users });
                    continue;
                }
                Op::Input(_) => target.host_cycles(bytes),
                _ if producer.is_none() => cost.node(graph, id).total(),
                _ => target.link_cycles(bytes),
            };
            problem.values.push(Moved {
                producer,
                users,
                cost: cycles,
                stash: 0,
                feedback: false,
                relayed: producer.is_some(),
            });
        }
    }
    problem
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

/// Writes the stages into the graph: atoms and their views first, then a copy of each source for
/// each stage that reads it, then transfers.
fn place(graph: &mut Graph, stage_of: &dyn Fn(NodeId) -> Option<u32>) {
    let mut patch = Patch::new();
    let mut copies = SourceCopies::default();
    for id in graph.topo() {
        let Some(stage) = stage_of(id) else { continue };
        patch.place(id, stage);
        for (input, value) in graph.inputs(id).into_iter().enumerate() {
            let home = stage_of(value.node);
            let wire = match home {
                None => copies.on_stage(graph, &mut patch, value, stage),
                Some(home) if home != stage => {
                    copies.transfer(graph, &mut patch, value, home, stage)
                }
                Some(_) => continue,
            };
            if wire != Wire::Old(value) {
                patch.rewire(
                    User {
                        node: id,
                        input: input as u16,
                    },
                    wire,
                );
            }
        }
    }
    for output in graph.outputs() {
        if stage_of(output.value.node).is_none() {
            copies.on_stage(graph, &mut patch, output.value, 0);
        }
    }
    patch.apply(graph).expect("placement keeps every type");
    let unused: Vec<NodeId> = graph
        .nodes()
        .filter(|&id| graph.node(id).stage.is_none())
        .collect();
    let mut patch = Patch::new();
    unused.into_iter().for_each(|id| patch.place(id, 0));
    patch.apply(graph).expect("placement keeps every type");
}

/// Sources and transferred values already present on each stage.
#[derive(Default)]
struct SourceCopies {
    wires: BTreeMap<(Value, u32), Wire>,
    homes: BTreeMap<NodeId, u32>,
}

impl SourceCopies {
    /// The source `value` on `stage`: the original for the first stage that asks, copies for others.
    fn on_stage(&mut self, graph: &Graph, patch: &mut Patch, value: Value, stage: u32) -> Wire {
        if let Some(&wire) = self.wires.get(&(value, stage)) {
            return wire;
        }
        let inputs: Vec<Wire> = graph
            .inputs(value.node)
            .into_iter()
            .map(|input| self.on_stage(graph, patch, input, stage))
            .collect();
        let wire = if *self.homes.entry(value.node).or_insert(stage) == stage {
            patch.place(value.node, stage);
            for (input, (&wire, old)) in inputs.iter().zip(graph.inputs(value.node)).enumerate() {
                if wire != Wire::Old(old) {
                    patch.rewire(
                        User {
                            node: value.node,
                            input: input as u16,
                        },
                        wire,
                    );
                }
            }
            Wire::Old(value)
        } else {
            let node = graph.node(value.node);
            let copy = patch
                .add_typed(graph, value.node, node.op.clone(), &inputs, &node.types)
                .expect("a copy of a node has its types");
            patch.set_stage(copy, stage);
            copy
        };
        self.wires.insert((value, stage), wire);
        wire
    }

    /// The value in the memory of stage `to`, passed on from stage to stage.
    fn transfer(
        &mut self,
        graph: &Graph,
        patch: &mut Patch,
        value: Value,
        from: u32,
        to: u32,
    ) -> Wire {
        if from == to {
            return Wire::Old(value);
        }
        if let Some(&wire) = self.wires.get(&(value, to)) {
            return wire;
        }
        let before = self.transfer(graph, patch, value, from, to - 1);
        let wire = patch
            .add(graph, value.node, Transfer { to }, &[before])
            .expect("any value can be transferred");
        patch.set_stage(wire, to - 1);
        self.wires.insert((value, to), wire);
        wire
    }
}
