//! Questions that several passes ask of a graph.

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Patch, User, Value};

/// The outputs of a node.
pub(crate) fn values(graph: &Graph, node: NodeId) -> impl Iterator<Item = Value> + use<> {
    (0..graph.node(node).types.len() as u16).map(move |output| Value { node, output })
}

/// The one use of a value, if it has exactly one and does not leave the graph.
pub(crate) fn sole_use(graph: &Graph, value: Value) -> Option<User> {
    match graph.users(value)[..] {
        [user] if !graph.is_output(value) => Some(user),
        _ => None,
    }
}

/// The patch that removes every node that no output depends on.
pub(crate) fn without_dead(graph: &Graph) -> Patch {
    let mut live = FixedBitSet::with_capacity(graph.bound());
    let mut stack: Vec<NodeId> = graph.outputs().iter().map(|out| out.value.node).collect();
    while let Some(node) = stack.pop() {
        if !live.put(node.index()) {
            stack.extend(graph.inputs(node).iter().map(|value| value.node));
        }
    }
    let mut patch = Patch::new();
    graph
        .nodes()
        .filter(|id| !live.contains(id.index()))
        .for_each(|id| patch.remove(id));
    patch
}

/// The nodes that depend on a node, without itself, by index.
pub(crate) fn dependents(graph: &Graph, node: NodeId) -> FixedBitSet {
    let mut found = FixedBitSet::with_capacity(graph.bound());
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        for user in values(graph, node).flat_map(|value| graph.users(value)) {
            if !found.put(user.node.index()) {
                stack.push(user.node);
            }
        }
    }
    found
}

/// Whether a value is made from parameters alone.
pub(crate) fn is_parametric(graph: &Graph, value: Value) -> bool {
    match &graph.node(value.node).op {
        Op::Param(_) => true,
        Op::Scale(_) | Op::Slice(_) | Op::Concat(_) | Op::Cast(_) => graph
            .inputs(value.node)
            .iter()
            .all(|&operand| is_parametric(graph, operand)),
        _ => false,
    }
}
