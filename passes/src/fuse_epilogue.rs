//! `fuse-epilogue`: an activation joins the linear before it.
//!
//! *What it does.* `activate(linear(x))` becomes a linear that applies the activation to its sum
//! before the store, where nothing else reads the sum.
//!
//! *Why it helps.* The wide inner value of a feed-forward block is written once instead of twice and
//! read once less.
//!
//! *What it needs.* Nothing; it runs before `merge-linear`, which merges equal activations only.
//!
//! *What it promises.* No result changes, not by a bit: it fuses only where the sum was stored in
//! f32, so that no rounding disappears.
//!
//! ```text
//! %3 = linear %0, %1, %2 : f32[4,32]          →    %3 = linear %0, %1, %2 {activation=gelu} : f32[4,32]
//! %4 = activate %3 {kind=gelu} : f32[4,32]
//! ```

use lxpod_ir::ops::{Linear, Op};
use lxpod_ir::{DType, Graph, NodeId, Patch, Wire};

use crate::pass::{Found, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "fuse-epilogue",
    doc: "an activation joins the linear before it",
    run: Run::Each(run),
};

fn run(graph: &Graph, id: NodeId, _: &Options) -> Found {
    let Op::Activate(activate) = &graph.node(id).op else {
        return Ok(None);
    };
    let sum = graph.inputs(id)[0];
    let plain = matches!(
        graph.node(sum.node).op,
        Op::Linear(Linear { activation: None })
    );
    let alone = walk::sole_use(graph, sum).is_some();
    if !plain || !alone || graph.ty(sum).dtype != DType::F32 {
        return Ok(None);
    }
    let operands: Vec<Wire> = graph.inputs(sum.node).into_iter().map(Wire::Old).collect();
    let op = Linear {
        activation: Some(activate.kind),
    };
    let mut patch = Patch::new();
    let fused = patch.add_typed(graph, sum.node, op, &operands, &graph.node(id).types)?;
    patch.replace(graph.value(id), fused);
    Ok(Some(patch))
}
