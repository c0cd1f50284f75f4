//! Which half of a training step a node belongs to.

use lxpod_ir::Graph;

use crate::schedule::Phase;

/// The phase of each node of a micro-batch's graph, by index: forward if an output that is neither a
/// gradient nor stored depends on it, backward otherwise. A graph without gradients is all forward.
pub fn phases(graph: &Graph) -> Vec<Phase> {
    let is_result = |name: &lxpod_ir::Output| name.gradient_of().is_none() && !name.is_stored();
    let trains = graph.outputs().iter().any(|output| !is_result(output));
    let default = if trains { Phase::Backward } else { Phase::Forward };
    let mut phases = vec![default; graph.bound()];
    let results = graph.outputs().iter().filter(|output| is_result(output));
    let mut open: Vec<_> = results.map(|output| output.value.node).collect();
    while let Some(id) = open.pop() {
        phases[id.index()] = Phase::Forward;
        let operands = graph.inputs(id).into_iter().map(|value| value.node);
        open.extend(operands.filter(|id| trains && phases[id.index()] != Phase::Forward));
    }
    phases
}
