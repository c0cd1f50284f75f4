//! Stages written into a graph: copies of sources, transfers.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::{Op, Param, Transfer};
use lxpod_ir::{Graph, NodeId, Output, Patch, User, Value, Wire};

/// Writes the stages into the graph: atoms and their views first, then a copy of each source for
/// each stage that reads it, then transfers.
///
/// `again` are the nodes that compute a value again: on other stages than theirs, which the value
/// itself reached in the forward half, that is read.
pub(super) fn place(
    graph: &mut Graph,
    stages: &[Option<u32>],
    again: &FixedBitSet,
    routes: Routes,
) {
    let stage_of = |node: NodeId| stages[node.index()];
    let mut patch = Patch::new();
    let mut copies = Copies {
        routes,
        wires: BTreeMap::new(),
        homes: BTreeMap::new(),
    };
    for id in graph.topo() {
        let Some(stage) = stage_of(id) else { continue };
        patch.place(id, stage);
        for (input, read) in graph.inputs(id).into_iter().enumerate() {
            let home = stage_of(read.node);
            let value = match graph.node(read.node).forward {
                Some(node) if again.contains(read.node.index()) && home != Some(stage) => {
                    Value { node, ..read }
                }
                _ => read,
            };
            let wire = match home {
                None => copies.on_stage(graph, &mut patch, value, stage),
                Some(home) if home != stage => {
                    copies.transfer(graph, &mut patch, value, home, stage)
                }
                Some(_) => continue,
            };
            if wire != Wire::Old(read) {
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

/// How a value reaches another stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routes {
    /// Every stage between passes it on.
    Relayed,
    /// Straight.
    Direct,
}

/// Sources and transferred values already present on each stage.
struct Copies {
    routes: Routes,
    wires: BTreeMap<(Value, u32), Wire>,
    homes: BTreeMap<NodeId, u32>,
}

impl Copies {
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

    /// The value in the memory of stage `to`: passed on from stage to stage if
    /// routes are relayed, sent straight otherwise.
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
        let sender = match self.routes {
            Routes::Direct => from,
            Routes::Relayed if from < to => to - 1,
            Routes::Relayed => to + 1,
        };
        let before = self.transfer(graph, patch, value, from, sender);
        let wire = patch
            .add(graph, value.node, Transfer { to }, &[before])
            .expect("any value can be transferred");
        patch.set_stage(wire, sender);
        self.wires.insert((value, to), wire);
        wire
    }
}

/// Places an update's nodes: what reads a parameter or a state on the stage where the micro-batch's
/// graph keeps the gradient's sum, what brings norms together on the first. A parameter that other
/// stages read too is sent to them.
///
/// # Panics
/// If the update is not one of this micro-batch's graph.
pub fn place_update(update: &mut Graph, micro: &Graph) {
    let owners = owners(micro);
    let owner = |id: NodeId| match &update.node(id).op {
        Op::Param(param) => owners.get(&param.value.to_string()).copied(),
        Op::State(state) => {
            let binding = state.name.split_once(':').map(|(_, binding)| binding);
            binding.and_then(|binding| owners.get(binding).copied())
        }
        _ => None,
    };
    let mut stages: Vec<Option<u32>> = vec![None; update.bound()];
    for id in update
        .topo()
        .into_iter()
        .filter(|&id| !update.node(id).op.is_leaf())
    {
        let operands = update.inputs(id).into_iter().map(|value| value.node);
        let own = operands.clone().find_map(owner);
        let earliest = operands.filter_map(|node| stages[node.index()]).min();
        stages[id.index()] = own.or(earliest).or(Some(0));
    }
    // A parameter with an f32 weight behind it is stored, but no node of the update reads it.
    let unread =
        |id: &NodeId| update.node(*id).op.is_leaf() && update.users(update.value(*id)).is_empty();
    for id in update.nodes().filter(unread) {
        stages[id.index()] = owner(id);
    }
    let copies = copies(micro, &owners);
    place(update, &stages, &FixedBitSet::new(), Routes::Direct);
    for (binding, stage) in copies {
        send_copy(update, micro, &binding, stage);
    }
}

/// The stage that keeps the sum of each parameter's gradients, by binding.
fn owners(micro: &Graph) -> BTreeMap<String, u32> {
    let stage = |output: &Output| {
        let binding = output.stored_state()?.strip_prefix("acc:")?;
        Some((binding.to_owned(), micro.node(output.value.node).stage?))
    };
    micro.outputs().iter().filter_map(stage).collect()
}

/// The parameters that stages other than their owner read.
fn copies(micro: &Graph, owners: &BTreeMap<String, u32>) -> Vec<(String, u32)> {
    let copy = |id: NodeId| match &micro.node(id).op {
        Op::Param(param) => {
            let (binding, stage) = (param.value.to_string(), micro.node(id).stage?);
            let owner = *owners.get(&binding)?;
            (owner != stage).then_some((binding, stage))
        }
        _ => None,
    };
    micro.nodes().filter_map(copy).collect()
}

/// Sends the new value of a parameter to a stage that has a copy.
fn send_copy(update: &mut Graph, micro: &Graph, binding: &str, to: u32) {
    let stored = |output: &&Output| output.stored_param() == Some(binding);
    let Some(new) = update.outputs().iter().find(stored).cloned() else {
        return;
    };
    let copy = micro.nodes().find_map(|id| match &micro.node(id).op {
        Op::Param(param) if param.value.to_string() == binding => Some((id, param.value.clone())),
        _ => None,
    });
    let (node, value) = copy.expect("a copy is a parameter of the micro-batch's graph");
    let ty = micro.node(node).types.clone();
    let mut patch = Patch::new();
    let leaf = patch
        .add_typed(update, new.value.node, Param { value }, &[], &ty)
        .expect("a copy of a parameter has its type");
    patch.set_stage(leaf, to);
    let sent = patch
        .add(
            update,
            new.value.node,
            Transfer { to },
            &[Wire::Old(new.value)],
        )
        .expect("any value can be transferred");
    let home = update.node(new.value.node).stage.unwrap_or(0);
    patch.set_stage(sent, home);
    patch.add_output(&new.name, sent);
    patch.apply(update).expect("a transfer changes no type");
}
