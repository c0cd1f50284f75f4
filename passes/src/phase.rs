//! What part of a training step each node belongs to.

use fixedbitset::FixedBitSet;
use lxpod_ir::{Graph, NodeId, Output};

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// From inputs to losses and scores, once per micro-batch.
    Forward,
    /// From losses to gradients, once per micro-batch.
    Backward,
    /// From gradients to parameters, once per step.
    Update,
}

/// The phase of each node, by its index.
///
/// It follows from the outputs. A graph that stores a parameter is an update as a whole. In any other, a
/// node is forward if an output depends on it that is neither a gradient nor stored, and backward
/// otherwise.
pub fn phases(graph: &Graph) -> Vec<Phase> {
    let outputs = graph.outputs();
    if outputs.iter().any(|output| output.stored_param().is_some()) {
        return vec![Phase::Update; graph.bound()];
    }
    let forward = |output: &&Output| output.gradient_of().or(output.stored_state()).is_none();
    let ends = outputs.iter().filter(forward);
    let mut stack: Vec<NodeId> = ends.map(|output| output.value.node).collect();
    let mut found = FixedBitSet::with_capacity(graph.bound());
    while let Some(id) = stack.pop() {
        if !found.put(id.index()) {
            stack.extend(graph.inputs(id).iter().map(|value| value.node));
        }
    }
    let phase = |index| match found.contains(index) {
        true => Phase::Forward,
        false => Phase::Backward,
    };
    (0..graph.bound()).map(phase).collect()
}
