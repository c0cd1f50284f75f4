//! `fuse-norm`: a residual joins the layer norm behind it.
//!
//! *What it does.* `layer_norm(add(x, r))` becomes a layer norm with the residual r, where nothing
//! else reads the sum. x is the operand that a linear computes, if one is.
//!
//! *Why it helps.* The sum is neither written nor read: each block of a transformer ends this way,
//! twice a layer.
//!
//! *What it needs.* Nothing; after `merge-linear` a linear may stand behind `part` and `slice`.
//!
//! *What it promises.* No result changes, not by a bit: it fuses only where the sum was stored in
//! f32, and addition commutes.
//!
//! ```text
//! %4 = add %0, %3 : f32[4,8]
//! %5 = layer_norm %4, %1, %2 : f32[4,8]    →    %5 = layer_norm %3, %1, %2, %0 : f32[4,8]
//! ```

use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Graph, NodeId, Patch, Value};

use crate::pass::{Found, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "fuse-norm",
    doc: "a residual joins the layer norm behind it",
    run: Run::Each(run),
};

fn run(graph: &Graph, id: NodeId, _: &Options) -> Found {
    let node = graph.node(id);
    let (Op::LayerNorm(_), &[sum, gain, bias]) = (&node.op, &graph.inputs(id)[..]) else {
        return Ok(None);
    };
    let is_sum = matches!(graph.node(sum.node).op, Op::Add(_));
    if !is_sum || walk::sole_use(graph, sum).is_none() || graph.ty(sum).dtype != DType::F32 {
        return Ok(None);
    }
    let terms = graph.inputs(sum.node);
    let (x, residual) = match (is_linear(graph, terms[0]), is_linear(graph, terms[1])) {
        (false, true) => (terms[1], terms[0]),
        _ => (terms[0], terms[1]),
    };
    let operands = [x, gain, bias, residual].map(Into::into);
    let mut patch = Patch::new();
    let fused = patch.add_typed(graph, id, node.op.clone(), &operands, &node.types)?;
    patch.replace(graph.value(id), fused);
    Ok(Some(patch))
}

/// Whether a linear computes the value, seen through views.
fn is_linear(graph: &Graph, value: Value) -> bool {
    let op = &graph.node(value.node).op;
    if op.is_view() {
        is_linear(graph, graph.inputs(value.node)[0])
    } else {
        matches!(op, Op::Linear(_))
    }
}
