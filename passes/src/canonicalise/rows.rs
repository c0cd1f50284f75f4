//! Rules on rows: `part` and `concat` of row spaces, `gather_rows`, unused probabilities.

use lxpod_ir::ops::{Attention, Concat, GatherRows, Op, Part};
use lxpod_ir::{Graph, NodeId, Patch, Value, Wire};

use super::{Rule, instead};
use crate::pass::Found;
use crate::walk;

pub(super) const RULES: &[Rule] = &[
    part_of_concat,
    concat_of_parts,
    gather_of_gather,
    unused_probabilities,
];

fn is_stack(op: &Op) -> bool {
    matches!(op, Op::Concat(Concat { axis: 0 }))
}

/// part k of concat(a, b, ..) = the k-th operand
fn part_of_concat(graph: &Graph, id: NodeId) -> Found {
    let Op::Part(Part { index }) = graph.node(id).op else {
        return Ok(None);
    };
    let stack = graph.inputs(id)[0].node;
    if is_stack(&graph.node(stack).op) {
        instead(graph, id, |_| Ok(graph.inputs(stack)[index].into()))
    } else {
        Ok(None)
    }
}

/// concat(part 0 of u, part 1 of u, .. to the last) = u
fn concat_of_parts(graph: &Graph, id: NodeId) -> Found {
    if !is_stack(&graph.node(id).op) {
        return Ok(None);
    }
    let inputs = graph.inputs(id);
    let union_of = |(index, value): (usize, &Value)| match graph.node(value.node).op {
        Op::Part(Part { index: own }) if own == index => Some(graph.inputs(value.node)[0]),
        _ => None,
    };
    let Some(union) = union_of((0, &inputs[0])) else {
        return Ok(None);
    };
    let all = inputs
        .iter()
        .enumerate()
        .all(|part| union_of(part) == Some(union));
    if all && *graph.ty(union) == graph.node(id).types[0] {
        instead(graph, id, |_| Ok(union.into()))
    } else {
        Ok(None)
    }
}

/// gather_rows(gather_rows(x, i), j) = gather_rows(x, gather_rows(i, j)), where nothing else reads
/// the inner rows, so that they need not be moved, and all outer rows give gradients
fn gather_of_gather(graph: &Graph, id: NodeId) -> Found {
    if graph.node(id).op != Op::GatherRows(GatherRows::default()) {
        return Ok(None);
    }
    let outer = graph.inputs(id);
    let inner = outer[0].node;
    let Op::GatherRows(table) = &graph.node(inner).op else {
        return Ok(None);
    };
    if walk::sole_use(graph, outer[0]).is_none() {
        return Ok(None);
    }
    let picked = graph.inputs(inner);
    instead(graph, id, |patch| {
        let index = [picked[1].into(), outer[1].into()];
        let index = patch.add(graph, id, GatherRows::default(), &index)?;
        patch.add(graph, id, table.clone(), &[picked[0].into(), index])
    })
}

/// Attention does not return probabilities that nothing reads.
fn unused_probabilities(graph: &Graph, id: NodeId) -> Found {
    let node = graph.node(id);
    let Op::Attention(attention) = &node.op else {
        return Ok(None);
    };
    let second = Value {
        node: id,
        output: 1,
    };
    let read = graph.is_output(second) || !graph.users(second).is_empty();
    if !attention.probabilities || read {
        return Ok(None);
    }
    let op = Attention {
        probabilities: false,
        ..attention.clone()
    };
    let operands: Vec<Wire> = graph.inputs(id).into_iter().map(Wire::Old).collect();
    instead(graph, id, |patch: &mut Patch| {
        patch.add_typed(graph, id, op, &operands, &node.types[..1])
    })
}
