//! `fold`: computes once what depends on constants or on parameters alone.
//!
//! *What it does.*
//! - An op whose operands are all constants becomes a constant, by the op's reference semantics in
//!   f32, if the result has at most 4,096 elements.
//! - `scale` in f32 by a power of two, `concat` and `slice` along axis 0 of parameters become part
//!   of a parameter's binding, which is evaluated when a plan is loaded. In training no `scale` does, so
//!   that a parameter holds rows of checkpoint tensors as they are, and can be written back.
//!
//! *Why it helps.* Nothing of it is left at run time. Merged query, key and value weights become one
//! resident buffer; the 1/8 of LXMERT's attention and the 1/2 of its visual embedding disappear.
//!
//! *What it needs.* Nothing. A parameter with other users is not folded, since its tensor would be
//! resident twice; equal uses and slices that do not overlap are no other users.
//!
//! *What it promises.* No result changes short of underflow: a binding's factors are powers of two.
//! Constants stay finite.
//!
//! ```text
//! %0 = param {value=a} : f32[8,8]
//! %1 = param {value=b} : f32[8,8]           →    %0 = param {value="concat(a, b)"} : f32[16,8]
//! %2 = concat %0, %1 {axis=0} : f32[16,8]
//! ```

use lxpod_ir::ops::{Concat, Constant, Eval, Op, Param, Scale, Slice};
use lxpod_ir::{Binding, DType, Data, Extents, Graph, NodeId, Patch, Tensor, Value};

use crate::pass::{Found, Mode, Options, Pass, Run};

/// See the module.
pub const PASS: Pass = Pass {
    name: "fold",
    doc: "computes once what depends on constants or on parameters alone",
    run: Run::Each(run),
};

/// The most elements of a constant made here: constants are stored in the plan.
const MOST_ELEMENTS: usize = 4096;

fn run(graph: &Graph, id: NodeId, options: &Options) -> Found {
    let node = graph.node(id);
    if node.op.is_leaf() || node.types.len() != 1 || matches!(node.op, Op::Transfer(_)) {
        return Ok(None);
    }
    let folded: Option<Op> = match constant(graph, id) {
        Some(constant) => Some(constant.into()),
        None => binding(graph, id, options.mode).map(|value| Param { value }.into()),
    };
    let Some(leaf) = folded else { return Ok(None) };
    let mut patch = Patch::new();
    let leaf = patch.add_typed(graph, id, leaf, &[], &node.types)?;
    patch.replace(graph.value(id), leaf);
    Ok(Some(patch))
}

/// The value of a node over constants, if it is small and finite.
fn constant(graph: &Graph, id: NodeId) -> Option<Constant> {
    let node = graph.node(id);
    let known = |value: &Value| matches!(graph.node(value.node).op, Op::Constant(_));
    let small = node.types[0].rows.is_none() && node.types[0].shape.elements() <= MOST_ELEMENTS;
    if !small || !graph.inputs(id).iter().all(known) {
        return None;
    }
    let types = graph.input_types(id);
    let extents = Extents::full(&graph.spaces);
    let eval = |op: &Op, inputs: &[&Tensor<f32>], types: &[_], outputs: &[_]| {
        let cx = Eval {
            inputs,
            types,
            outputs,
            extents: &extents,
            spaces: &graph.spaces,
        };
        op.eval(&cx).ok()?.pop()
    };
    let operands: Vec<Tensor<f32>> = graph
        .inputs(id)
        .iter()
        .map(|value| graph.node(value.node))
        .map(|leaf| eval(&leaf.op, &[], &[], &leaf.types))
        .collect::<Option<_>>()?;
    let operands: Vec<&Tensor<f32>> = operands.iter().collect();
    let data: Vec<f64> = match eval(&node.op, &operands, &types, &node.types)?.data {
        Data::Real(values) => values.into_iter().map(f64::from).collect(),
        Data::Int(values) => values.into_iter().map(f64::from).collect(),
    };
    data.iter()
        .all(|value| value.is_finite())
        .then_some(Constant { data })
}

/// The binding of a node over parameters, if a binding can say it and the parameters have no other
/// users.
fn binding(graph: &Graph, id: NodeId, mode: Mode) -> Option<Binding> {
    let inputs = graph.inputs(id);
    let dtype = graph.node(id).types[0].dtype;
    let mut parts = Vec::with_capacity(inputs.len());
    for &value in &inputs {
        let Op::Param(param) = &graph.node(value.node).op else {
            return None;
        };
        if graph.ty(value).dtype != dtype || !is_consumed(graph, value, id) {
            return None;
        }
        parts.push(param.value.clone());
    }
    match (&graph.node(id).op, parts.pop()?) {
        (Op::Scale(Scale { factor }), inner) if dtype == DType::F32 && mode == Mode::Inference => {
            scaled(*factor, inner)
        }
        (
            &Op::Slice(Slice {
                axis: 0,
                start,
                end,
            }),
            inner,
        ) => Some(rows(start, end, inner)),
        (Op::Concat(Concat { axis: 0 }), last) => {
            parts.push(last);
            Some(joined(parts))
        }
        _ => None,
    }
}

/// Whether all that uses a parameter is equal to `id`, or is, like `id`, a slice of rows that
/// overlaps no other, so that folding stores no element twice.
fn is_consumed(graph: &Graph, value: Value, id: NodeId) -> bool {
    let slice_of = |id: NodeId| match graph.node(id).op {
        Op::Slice(Slice {
            axis: 0,
            start,
            end,
        }) => Some(start..end),
        _ => None,
    };
    let own = slice_of(id);
    !graph.is_output(value)
        && graph.users(value).iter().all(|user| {
            let other = user.node;
            let equal = graph.node(other).op == graph.node(id).op
                && graph.inputs(other) == graph.inputs(id)
                && graph.node(other).types == graph.node(id).types;
            let apart = match (&own, slice_of(other)) {
                (Some(own), Some(other)) => own.end <= other.start || other.end <= own.start,
                _ => false,
            };
            equal || apart
        })
}

fn scaled(factor: f32, inner: Binding) -> Option<Binding> {
    let (product, inner) = match inner {
        Binding::Scale(own, inner) => (factor * own, inner),
        inner => (factor, Box::new(inner)),
    };
    let exact = Scale::is_exact(factor) && Scale::is_exact(product);
    exact.then_some(Binding::Scale(product, inner))
}

fn rows(start: usize, end: usize, inner: Binding) -> Binding {
    match inner {
        Binding::Rows(first, _, inner) => Binding::Rows(first + start, first + end, inner),
        inner => Binding::Rows(start, end, Box::new(inner)),
    }
}

fn joined(parts: Vec<Binding>) -> Binding {
    let mut flat = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Binding::Concat(inner) => flat.extend(inner),
            other => flat.push(other),
        }
    }
    Binding::Concat(flat)
}
