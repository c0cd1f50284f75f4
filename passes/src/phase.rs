//! What part of a training step each node belongs to.

use lxpod_ir::{Graph, NodeId, Output};

use crate::schedule::Phase;

/// The phase of each node, by its index.
///
/// It follows from the outputs. A graph that stores a parameter is an update as a whole. In any other that
/// has gradients or stores states, a node is forward if an output depends on it that is neither, and
/// backward otherwise. A graph of inference is all forward.
pub fn phases(graph: &Graph) -> Vec<Phase> {
    let outputs = graph.outputs();
    if outputs.iter().any(|output| output.stored_param().is_some()) {
        return vec![Phase::Update; graph.bound()];
    }
    let is_result = |output: &&Output| output.gradient_of().is_none() && !output.is_stored();
    if outputs.iter().all(|output| is_result(&output)) {
        return vec![Phase::Forward; graph.bound()];
    }
    let mut phases = vec![Phase::Backward; graph.bound()];
    let results = outputs.iter().filter(is_result);
    let mut stack: Vec<NodeId> = results.map(|output| output.value.node).collect();
    while let Some(id) = stack.pop() {
        if std::mem::replace(&mut phases[id.index()], Phase::Forward) == Phase::Backward {
            stack.extend(graph.inputs(id).iter().map(|value| value.node));
        }
    }
    phases
}
