//! `accumulate`: gradients are summed over the micro-batches of a step.
//!
//! *What it does.* Each output `grad:B` becomes the output `state:acc:B`, the sum of the state `acc:B` and
//! the gradient. The state reads as zeros in the first micro-batch of a step. It is stored as
//! [`Options::accumulator`] says. A `weight_grad`, `sum_rows` or `scatter_add_rows` that nothing else reads
//! takes the state as its last operand; elsewhere an `add` sums.
//!
//! *Why it helps.* A step of many micro-batches needs one tensor for each parameter, whatever their
//! number, and a gradient that is a large matrix is never held beside its sum.
//!
//! *What it needs.* `autodiff`, and no pass behind it that looks for gradients.
//!
//! *What it promises.* Nothing but these outputs changes. Micro-batches are added in the order in which they run. One patch.
//!
//! ```text
//!                                        %2 = state {name="acc:w", reset=true} : f32[8,8]
//! %2 = weight_grad %0, %1 : f32[8,8]     %3 = weight_grad %0, %1, %2 : f32[8,8]
//! return %2 as "grad:w"             →    return %3 as "state:acc:w"
//! ```

use lxpod_ir::ops::{Add, Op, State};
use lxpod_ir::{DType, Graph, NodeId, Output, Patch, Value, Wire};

use crate::pass::{Found, Options, Pass, Run};

/// See the module.
pub const PASS: Pass = Pass {
    name: "accumulate",
    doc: "sums gradients over the micro-batches of a step",
    run: Run::Whole(run),
};

/// What the name of a parameter's accumulator begins with; the binding follows.
pub const ACCUMULATOR: &str = "acc:";

fn run(graph: &Graph, options: &Options) -> Found {
    let mut patch = Patch::new();
    for output in graph.outputs() {
        let Some(parameter) = output.gradient_of() else {
            continue;
        };
        let name = format!("{ACCUMULATOR}{parameter}");
        let sum = add(graph, &mut patch, output.value, &name, options.accumulator)?;
        patch.drop_output(&output.name);
        patch.add_output(&Output::state_name(&name), sum);
    }
    Ok((!patch.is_empty()).then_some(patch))
}

/// The state of that name plus a gradient.
fn add(
    graph: &Graph,
    patch: &mut Patch,
    gradient: Value,
    name: &str,
    dtype: DType,
) -> Result<Wire, String> {
    let id = gradient.node;
    let stored = [graph.ty(gradient).with_dtype(dtype)];
    let state = State {
        name: name.to_owned(),
        reset: true,
        shards: 1,
    };
    let state = patch.add_typed(graph, id, state, &[], &stored)?;
    if !takes_accumulator(graph, id) {
        return patch.add_typed(graph, id, Add {}, &[state, gradient.into()], &stored);
    }
    let mut operands: Vec<Wire> = graph.inputs(id).into_iter().map(Wire::Old).collect();
    operands.push(state);
    patch.add_typed(graph, id, graph.node(id).op.clone(), &operands, &stored)
}

/// Whether a gradient is read by nothing but its one output, and its op can start from a sum it does
/// not start from yet.
fn takes_accumulator(graph: &Graph, id: NodeId) -> bool {
    let operands = match graph.node(id).op {
        Op::WeightGrad(_) | Op::ScatterAddRows(_) => 2,
        Op::SumRows(_) => 1,
        _ => return false,
    };
    let value = graph.value(id);
    let leaving = graph
        .outputs()
        .iter()
        .filter(|output| output.value == value);
    graph.inputs(id).len() == operands && graph.users(value).is_empty() && leaving.count() == 1
}
