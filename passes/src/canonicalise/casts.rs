//! Rules on `cast`.

use lxpod_ir::ops::{Cast, Op};
use lxpod_ir::{DType, Graph, NodeId, Value};

use super::{Rule, instead};
use crate::pass::Found;

pub(super) const RULES: &[Rule] = &[cast_to_same, cast_of_cast];

fn operand_of_cast(graph: &Graph, id: NodeId) -> Option<Value> {
    match graph.node(id).op {
        Op::Cast(_) => Some(graph.inputs(id)[0]),
        _ => None,
    }
}

/// cast(x) to the dtype it has = x
fn cast_to_same(graph: &Graph, id: NodeId) -> Found {
    match operand_of_cast(graph, id) {
        Some(x) if *graph.ty(x) == graph.node(id).types[0] => instead(graph, id, |_| Ok(x.into())),
        _ => Ok(None),
    }
}

/// cast(cast(x)) = cast(x), where the inner cast keeps every value
fn cast_of_cast(graph: &Graph, id: NodeId) -> Found {
    let to = graph.node(id).types[0].dtype;
    let Some(inner) = operand_of_cast(graph, id) else {
        return Ok(None);
    };
    match operand_of_cast(graph, inner.node) {
        Some(x) if graph.ty(inner).dtype == DType::F32 => instead(graph, id, |patch| {
            patch.add(graph, id, Cast { to }, &[x.into()])
        }),
        _ => Ok(None),
    }
}
