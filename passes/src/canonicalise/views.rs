//! Rules on `slice` and `concat`.

use lxpod_ir::ops::{Concat, Op, Slice};
use lxpod_ir::{Graph, NodeId, Value, Wire};

use super::{Rule, instead};
use crate::pass::Found;
use crate::walk;

pub(super) const RULES: &[Rule] = &[
    whole_slice,
    slice_of_slice,
    slice_of_concat,
    concat_of_one,
    concat_of_concat,
    concat_of_slices,
];

fn slice_at(graph: &Graph, id: NodeId) -> Option<(Slice, Value)> {
    match &graph.node(id).op {
        Op::Slice(slice) => Some((slice.clone(), graph.inputs(id)[0])),
        _ => None,
    }
}

fn concat_axis(graph: &Graph, id: NodeId) -> Option<usize> {
    match graph.node(id).op {
        Op::Concat(Concat { axis }) => Some(axis),
        _ => None,
    }
}

/// slice(x, all of it) = x
fn whole_slice(graph: &Graph, id: NodeId) -> Found {
    match slice_at(graph, id) {
        Some((_, x)) if graph.ty(x).shape == graph.node(id).types[0].shape => {
            instead(graph, id, |_| Ok(x.into()))
        }
        _ => Ok(None),
    }
}

/// slice(slice(x, a..b), c..d) = slice(x, a+c..a+d), along one axis
fn slice_of_slice(graph: &Graph, id: NodeId) -> Found {
    let Some((outer, operand)) = slice_at(graph, id) else {
        return Ok(None);
    };
    match slice_at(graph, operand.node) {
        Some((inner, x)) if inner.axis == outer.axis => {
            let slice = Slice {
                axis: inner.axis,
                start: inner.start + outer.start,
                end: inner.start + outer.end,
            };
            instead(graph, id, |patch| patch.add(graph, id, slice, &[x.into()]))
        }
        _ => Ok(None),
    }
}

/// slice(concat(a, b), within b) = slice(b), along one axis
fn slice_of_concat(graph: &Graph, id: NodeId) -> Found {
    let Some((slice, operand)) = slice_at(graph, id) else {
        return Ok(None);
    };
    if concat_axis(graph, operand.node) != Some(slice.axis) {
        return Ok(None);
    }
    let mut base = 0;
    for part in graph.inputs(operand.node) {
        let end = base + graph.ty(part).shape[slice.axis];
        if base <= slice.start && slice.end <= end {
            let slice = Slice {
                axis: slice.axis,
                start: slice.start - base,
                end: slice.end - base,
            };
            return instead(graph, id, |patch| {
                patch.add(graph, id, slice, &[part.into()])
            });
        }
        base = end;
    }
    Ok(None)
}

/// concat(x) = x, where the type stays
fn concat_of_one(graph: &Graph, id: NodeId) -> Found {
    match (concat_axis(graph, id), &graph.inputs(id)[..]) {
        (Some(_), &[x]) if *graph.ty(x) == graph.node(id).types[0] => {
            instead(graph, id, |_| Ok(x.into()))
        }
        _ => Ok(None),
    }
}

/// concat(a, concat(b, c)) = concat(a, b, c), along one axis that is no union of row spaces
fn concat_of_concat(graph: &Graph, id: NodeId) -> Found {
    let Some(axis) = concat_axis(graph, id) else {
        return Ok(None);
    };
    if axis == 0 && graph.node(id).types[0].rows.is_some() {
        return Ok(None);
    }
    let inner = |value: Value| {
        concat_axis(graph, value.node) == Some(axis) && walk::sole_use(graph, value).is_some()
    };
    let inputs = graph.inputs(id);
    if !inputs.iter().any(|&value| inner(value)) {
        return Ok(None);
    }
    let mut flat: Vec<Wire> = Vec::new();
    for &value in &inputs {
        if inner(value) {
            flat.extend(graph.inputs(value.node).into_iter().map(Wire::Old));
        } else {
            flat.push(value.into());
        }
    }
    instead(graph, id, |patch| {
        patch.add(graph, id, Concat { axis }, &flat)
    })
}

/// concat(slice(x, a..b), slice(x, b..c)) = slice(x, a..c), along one axis
fn concat_of_slices(graph: &Graph, id: NodeId) -> Found {
    let Some(axis) = concat_axis(graph, id) else {
        return Ok(None);
    };
    let mut joined: Option<(Slice, Value)> = None;
    for value in graph.inputs(id) {
        let Some((next, x)) = slice_at(graph, value.node).filter(|(next, _)| next.axis == axis)
        else {
            return Ok(None);
        };
        joined = match joined {
            None => Some((next, x)),
            Some((so_far, of)) if of == x && so_far.end == next.start => Some((
                Slice {
                    end: next.end,
                    ..so_far
                },
                x,
            )),
            Some(_) => return Ok(None),
        };
    }
    match joined {
        Some((slice, x)) => instead(graph, id, |patch| patch.add(graph, id, slice, &[x.into()])),
        None => Ok(None),
    }
}
