//! Rules on `scale` and on the factor of attention: powers of two move into parameters.

use lxpod_ir::ops::{Attention, Linear, Op, Scale};
use lxpod_ir::{DType, Graph, NodeId, Patch, Value, Wire};

use super::{Rule, instead};
use crate::pass::Found;
use crate::walk;

pub(super) const RULES: &[Rule] = &[scale_by_one, dropout_of_none, scale_of_scale];

/// The rules that scale parameters.
pub(super) const INTO_PARAMETERS: &[Rule] = &[absorbed_scale, absorbed_by_query];

fn factor_of(graph: &Graph, id: NodeId) -> Option<f32> {
    match graph.node(id).op {
        Op::Scale(Scale { factor }) => Some(factor),
        _ => None,
    }
}

/// scale(1, x) = x, where the type stays
fn scale_by_one(graph: &Graph, id: NodeId) -> Found {
    let one = factor_of(graph, id) == Some(1.0);
    if one && *graph.ty(graph.inputs(id)[0]) == graph.node(id).types[0] {
        let x = graph.inputs(id)[0];
        instead(graph, id, |_| Ok(x.into()))
    } else {
        Ok(None)
    }
}

/// dropout(x) = x at rate 0, where the type stays
fn dropout_of_none(graph: &Graph, id: NodeId) -> Found {
    let x = match &graph.node(id).op {
        Op::Dropout(dropout) if dropout.rate == 0.0 => graph.inputs(id)[0],
        _ => return Ok(None),
    };
    if *graph.ty(x) == graph.node(id).types[0] {
        instead(graph, id, |_| Ok(x.into()))
    } else {
        Ok(None)
    }
}

/// scale(a, scale(b, x)) = scale(a·b, x), where a or b only moves the exponent
fn scale_of_scale(graph: &Graph, id: NodeId) -> Found {
    let Some(outer) = factor_of(graph, id) else {
        return Ok(None);
    };
    let operand = graph.inputs(id)[0];
    match factor_of(graph, operand.node).and_then(|inner| product(outer, inner)) {
        Some(factor) if graph.ty(operand).dtype == DType::F32 => {
            let x = graph.inputs(operand.node)[0];
            instead(graph, id, |patch| {
                let types = &graph.node(id).types;
                patch.add_typed(graph, id, Scale { factor }, &[x.into()], types)
            })
        }
        _ => Ok(None),
    }
}

/// The one factor equal to two, if multiplying by either of them rounds nothing.
fn product(a: f32, b: f32) -> Option<f32> {
    let exact = Scale::is_exact(a) || Scale::is_exact(b);
    Some(a * b).filter(|product| exact && product.is_normal())
}

/// scale(f, op(.., parameters)) = op(.., scale(f, parameters)), for linear, layer_norm and sums of
/// them
fn absorbed_scale(graph: &Graph, id: NodeId) -> Found {
    let Some(factor) = factor_of(graph, id).filter(|&factor| Scale::is_exact(factor)) else {
        return Ok(None);
    };
    let x = graph.inputs(id)[0];
    if graph.node(id).types[0] != *graph.ty(x) || !absorbs(graph, x, factor) {
        return Ok(None);
    }
    instead(graph, id, |patch| absorb(graph, patch, x, factor))
}

/// attention(q) with factor f = attention(scale(f, q)) with factor 1, where q can absorb it
fn absorbed_by_query(graph: &Graph, id: NodeId) -> Found {
    let node = graph.node(id);
    let Op::Attention(attention) = &node.op else {
        return Ok(None);
    };
    let query = graph.inputs(id)[0];
    let factor = attention.scale;
    if factor == 1.0 || !Scale::is_exact(factor) || !absorbs(graph, query, factor) {
        return Ok(None);
    }
    let mut patch = Patch::new();
    let mut operands: Vec<Wire> = graph.inputs(id).into_iter().map(Wire::Old).collect();
    operands[0] = absorb(graph, &mut patch, query, factor)?;
    let op = Attention {
        scale: 1.0,
        ..attention.clone()
    };
    let context = patch.add_typed(graph, id, op, &operands, &node.types)?;
    for old in walk::values(graph, id) {
        let new = match context {
            Wire::New(index, _) => Wire::New(index, old.output),
            old @ Wire::Old(_) => old,
        };
        patch.replace(old, new);
    }
    Ok(Some(patch))
}

/// Whether `factor` times a value with one user can be had by scaling parameters.
fn absorbs(graph: &Graph, value: Value, factor: f32) -> bool {
    if walk::sole_use(graph, value).is_none() || graph.ty(value).dtype != DType::F32 {
        return false;
    }
    let inputs = graph.inputs(value.node);
    match parameters(graph, value.node) {
        Some(mut parameters) => parameters.all(|operand| {
            let param = inputs[operand];
            matches!(graph.node(param.node).op, Op::Param(_))
                && graph.ty(param).dtype == DType::F32
                && !graph.is_output(param)
                && graph.users(param).iter().all(|user| {
                    user.node == value.node
                        || factor_of(graph, user.node) == Some(factor)
                        || is_twin(graph, user.node, value.node, factor)
                })
        }),
        None => {
            matches!(graph.node(value.node).op, Op::Add(_))
                && inputs.iter().all(|&term| absorbs(graph, term, factor))
        }
    }
}

/// The operands that are parameters in which the op's result is linear.
fn parameters(graph: &Graph, id: NodeId) -> Option<std::ops::Range<usize>> {
    match graph.node(id).op {
        Op::Linear(Linear { activation: None }) => Some(1..graph.inputs(id).len()),
        Op::LayerNorm(_) => Some(1..3),
        _ => None,
    }
}

/// Whether `other` has the parameters of `id`, and its one user wants the same factor of it.
fn is_twin(graph: &Graph, other: NodeId, id: NodeId, factor: f32) -> bool {
    let (Some(theirs), Some(own)) = (parameters(graph, other), parameters(graph, id)) else {
        return false;
    };
    let wants = |user: lxpod_ir::User| match &graph.node(user.node).op {
        Op::Scale(scale) => scale.factor == factor,
        Op::Attention(attention) => user.input == 0 && attention.scale == factor,
        _ => false,
    };
    let value = graph.value(other);
    graph.inputs(other)[theirs] == graph.inputs(id)[own]
        && graph.ty(value).dtype == DType::F32
        && walk::sole_use(graph, value).is_some_and(wants)
}

/// `factor` times a value that [`absorbs`] it.
fn absorb(graph: &Graph, patch: &mut Patch, value: Value, factor: f32) -> Result<Wire, String> {
    let node = graph.node(value.node);
    let scaled = parameters(graph, value.node);
    let mut operands = Vec::new();
    for (index, &operand) in graph.inputs(value.node).iter().enumerate() {
        operands.push(match &scaled {
            None => absorb(graph, patch, operand, factor)?,
            Some(scaled) if scaled.contains(&index) => {
                patch.add(graph, value.node, Scale { factor }, &[operand.into()])?
            }
            Some(_) => operand.into(),
        });
    }
    patch.add_typed(graph, value.node, node.op.clone(), &operands, &node.types)
}
