//! `precision`: how each value is stored.
//!
//! *What it does.* Under `fp32`, nothing. Under `mixed`, values stored in f32 become f16, but for
//! - inputs and constants, which come as they are;
//! - vectors and scalars: gains, biases, masks, losses;
//! - sums over rows, which gradients of parameters are;
//! - what norms make, in graphs without a backward half: the residual stream passes through dozens of them, and each
//!   rounding of it stays to the end. In training they are kept for the backward half, whose bytes count for more;
//! - what only losses and their gradients read or only leaves the graph, unless attention computes it: scores are not
//!   rounded before anyone sees them.
//!
//! Ops compute in f32 whatever is stored, so sums, norms and exponentials keep their precision.
//! Values tied by ops that keep their operand's dtype (views, `gather_rows`, `concat`, `transfer`)
//! are decided together; what is decided for one member against f16 holds for all.
//!
//! *Why it helps.* Half the bytes of weights and activations: LXMERT has to read 424 MB instead of
//! 848 MB for an answer.
//!
//! *What it needs.* To run after everything that fuses, since each store between ops rounds.
//!
//! *What it promises.* Only dtypes change, all in one patch, and only from f32 to f16. No cast is
//! added: an op reads operands of any float dtype.
//!
//! ```text
//! %1 = param {value=w} : f32[8,8]                  %1 = param {value=w} : f16[8,8]
//! %2 = linear %0, %1, %3 : f32[text:160,8]    →    %2 = linear %0, %1, %3 : f16[text:160,8]
//! %4 = linear %2, %5, %6 : f32[text:160,2]         %4 = linear %2, %5, %6 : f32[text:160,2]
//! return %4 as "score"
//! ```

use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Graph, NodeId, Patch, TensorType, Value};

use crate::pass::{Found, Options, Pass, Precision, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "precision",
    doc: "chooses how each value is stored",
    run: Run::Whole(run),
};

fn run(graph: &Graph, options: &Options) -> Found {
    match options.precision {
        Precision::Fp32 => Ok(None),
        Precision::Mixed => Ok(mixed(graph)),
    }
}

fn mixed(graph: &Graph) -> Option<Patch> {
    let mut ties = Ties::new(graph);
    let mut full = vec![false; ties.values.len()];
    let mut read = vec![false; ties.values.len()];
    let keeps_norms = !graph.has_backward();
    for slot in 0..ties.values.len() {
        let root = ties.root(slot);
        let value = ties.values[slot];
        let is_norm = matches!(graph.node(value.node).op, Op::LayerNorm(_));
        full[root] |= is_full(graph, value) || (keeps_norms && is_norm);
        read[root] |= is_read(graph, value);
    }
    let mut patch = Patch::new();
    for slot in 0..ties.values.len() {
        let root = ties.root(slot);
        let ty = graph.ty(ties.values[slot]);
        if ty.dtype == DType::F32 && !full[root] && read[root] {
            patch.retype(ties.values[slot], ty.with_dtype(DType::F16));
        }
    }
    (!patch.is_empty()).then_some(patch)
}

/// Whether a value must stay as it is, whoever reads it.
fn is_full(graph: &Graph, value: Value) -> bool {
    let ty: &TensorType = graph.ty(value);
    match graph.node(value.node).op {
        Op::Input(_) | Op::Constant(_) | Op::Cast(_) => true,
        _ => ty.dtype != DType::F32 || ty.shape.len() < 2 || is_gradient(graph, value),
    }
}

/// Whether a value is a sum over rows, as gradients of parameters are, or made of such sums: it is in
/// no row space, and not made from parameters alone.
fn is_gradient(graph: &Graph, value: Value) -> bool {
    graph.ty(value).rows.is_none() && !walk::is_parametric(graph, value)
}

/// Whether a value is to be kept small: something other than a loss computes with it, or attention
/// makes it. Ops that only pass it on are asked about what they pass on.
fn is_read(graph: &Graph, value: Value) -> bool {
    let made_by_attention = matches!(graph.node(value.node).op, Op::Attention(_));
    let mut users = graph.users(value).into_iter();
    made_by_attention
        || users.any(|user| {
            let passed_on = kept(graph, user.node).any(|operand| operand == value);
            !passed_on && !is_loss(&graph.node(user.node).op)
        })
}

fn is_loss(op: &Op) -> bool {
    matches!(
        op,
        Op::CrossEntropy(_)
            | Op::Bce(_)
            | Op::SmoothL1(_)
            | Op::CrossEntropyGrad(_)
            | Op::BceGrad(_)
            | Op::SmoothL1Grad(_)
    )
}

/// The operands whose dtype is the dtype of the node's output.
fn kept(graph: &Graph, id: NodeId) -> impl Iterator<Item = Value> + use<> {
    let inputs = graph.inputs(id);
    let count = match graph.node(id).op {
        Op::GatherRows(_) | Op::Slice(_) | Op::Part(_) | Op::Transfer(_) => 1,
        Op::Concat(_) => inputs.len(),
        _ => 0,
    };
    inputs.into_iter().take(count)
}

/// Values that are stored alike: a forest over all values of a graph.
struct Ties {
    values: Vec<Value>,
    parent: Vec<usize>,
}

impl Ties {
    fn new(graph: &Graph) -> Self {
        let mut values = Vec::new();
        let mut first = vec![0; graph.bound()];
        for id in graph.nodes() {
            first[id.index()] = values.len();
            values.extend(walk::values(graph, id));
        }
        let mut ties = Ties {
            parent: (0..values.len()).collect(),
            values,
        };
        for id in graph.nodes() {
            for operand in kept(graph, id) {
                let slot = first[operand.node.index()] + usize::from(operand.output);
                let (a, b) = (ties.root(first[id.index()]), ties.root(slot));
                ties.parent[a.max(b)] = a.min(b);
            }
        }
        ties
    }

    fn root(&mut self, mut slot: usize) -> usize {
        while self.parent[slot] != slot {
            self.parent[slot] = self.parent[self.parent[slot]];
            slot = self.parent[slot];
        }
        slot
    }
}
