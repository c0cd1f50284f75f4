//! `autodiff`: the gradient of the loss for each parameter.
//!
//! *What it does.* Where the graph has an output [`LOSS`], an f32 scalar, it adds the output
//! `grad:NAME` for each checkpoint tensor that the loss depends on: the derivative of the loss with
//! respect to it, f32, of its shape. It walks the nodes in reverse and asks each op for the cotangents
//! of its operands (`OpDef::vjp`). Tensors that the loss does not depend on have no such output.
//!
//! *Why it helps.* Training is then a graph like any other: the same passes, precision, partition and
//! memory plan serve it.
//!
//! *What it needs.* `narrow` before it, so that the gradient too leaves out what nobody reads, and
//! `canonicalise` and `fold`, which change bindings: a gradient is led back through the binding to
//! the tensors in it. It runs before what fuses, which then sees who else reads a value.
//!
//! *What it promises.* No bit of another output changes. A value that several nodes read, a parameter of
//! a shared module among them, has one cotangent: the sum of theirs, in the order of the reverse walk,
//! last reader first; a tensor in several parameters likewise. One patch.
//!
//! ```text
//!                                             %3 = linear %0, %1 : f32[text:160,8]
//! %3 = linear %0, %1 : f32[text:160,8]        %4 = bce %3, %2 {factor=1.0} : f32[]
//! %4 = bce %3, %2 {factor=1.0} : f32[]   →    %5 = constant {data=[1.0]} : f32[]
//! return %4 as "loss"                         %6 = bce_grad %5, %3, %2 {factor=1.0} : f32[text:160,8]
//!                                             %7 = weight_grad %6, %0 : f32[8,8]
//!                                             return %4 as "loss"
//!                                             return %7 as "grad:w"
//! ```

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::{Add, Concat, Constant, Input, Op, Param, Scale, Slice, Vjp, Zeros};
use lxpod_ir::{Binding, DType, Graph, LOSS, NodeId, Patch, Shape, TensorType, Value, Wire};
use rustc_hash::FxHashMap;

use crate::pass::{Found, LossScale, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "autodiff",
    doc: "adds the gradient of the loss for each parameter",
    run: Run::Whole(run),
};

/// The input that multiplies the loss before it is differentiated; see [`LossScale::Input`].
pub const LOSS_SCALE: &str = "loss_scale";

fn run(graph: &Graph, options: &Options) -> Found {
    let outputs = graph.outputs();
    let loss = outputs.iter().find(|output| output.name == LOSS);
    let Some(loss) = loss.map(|output| output.value) else {
        return Ok(None);
    };
    let done = outputs.iter().any(|output| output.gradient_of().is_some());
    if done || *graph.ty(loss) != TensorType::fixed(DType::F32, []) {
        return Ok(None);
    }
    let mut sweep = Sweep {
        graph,
        depends: dependents_of_parameters(graph),
        patch: Patch::new(),
        cotangents: FxHashMap::default(),
        gradients: Gradients::new(graph),
    };
    sweep.seed(loss, options.loss_scale)?;
    for id in graph.topo().into_iter().rev() {
        sweep.node(id)?;
    }
    let Sweep {
        mut patch,
        gradients,
        ..
    } = sweep;
    for (name, gradient) in gradients.by_tensor {
        patch.add_gradient(&name, gradient);
    }
    Ok((!patch.is_empty()).then_some(patch))
}

/// The nodes whose values depend on parameters, these among them, by index.
fn dependents_of_parameters(graph: &Graph) -> FixedBitSet {
    let mut found = FixedBitSet::with_capacity(graph.bound());
    for id in graph.topo() {
        let operands = graph.inputs(id);
        let depends = operands
            .iter()
            .any(|value| found.contains(value.node.index()));
        if depends || matches!(graph.node(id).op, Op::Param(_)) {
            found.insert(id.index());
        }
    }
    found
}

/// The reverse walk.
struct Sweep<'a> {
    graph: &'a Graph,
    depends: FixedBitSet,
    patch: Patch,
    cotangents: FxHashMap<Value, Wire>,
    gradients: Gradients,
}

impl Sweep<'_> {
    /// The cotangent of the loss itself.
    fn seed(&mut self, loss: Value, scale: LossScale) -> Result<(), String> {
        let op: Op = match scale {
            LossScale::One => Constant { data: vec![1.0] }.into(),
            LossScale::Input => Input {
                name: LOSS_SCALE.to_owned(),
            }
            .into(),
        };
        let scalar = [TensorType::fixed(DType::F32, [])];
        let (graph, like) = (self.graph, loss.node);
        let seed = self.patch.add_typed(graph, like, op, &[], &scalar)?;
        self.cotangents.insert(loss, seed);
        Ok(())
    }

    /// Leads the cotangents of a node's results on to its operands.
    fn node(&mut self, id: NodeId) -> Result<(), String> {
        let results =
            walk::values(self.graph, id).map(|value| self.cotangents.get(&value).copied());
        let results: Vec<Option<Wire>> = results.collect();
        if !self.depends.contains(id.index()) || results.iter().all(Option::is_none) {
            return Ok(());
        }
        if let (Op::Param(param), Some(cotangent)) = (&self.graph.node(id).op, results[0]) {
            let gradients = &mut self.gradients;
            return gradients.lead_back(self.graph, &mut self.patch, id, &param.value, cotangent);
        }
        let given = Vjp::new(self.graph, &mut self.patch, id, &results).run()?;
        for (operand, value) in self.graph.inputs(id).into_iter().enumerate() {
            if !self.depends.contains(value.node.index()) {
                continue;
            }
            let Some(cotangent) = given[operand] else {
                let name = self.graph.node(id).op.name();
                return Err(format!(
                    "operand {operand} of `{name}` depends on a parameter and has no derivative"
                ));
            };
            let sum = match self.cotangents.get(&value) {
                Some(&sum) => add(self.graph, &mut self.patch, value.node, sum, cotangent)?,
                None => cotangent,
            };
            self.cotangents.insert(value, sum);
        }
        Ok(())
    }
}

fn add(graph: &Graph, patch: &mut Patch, like: NodeId, a: Wire, b: Wire) -> Result<Wire, String> {
    patch.add(graph, like, Add {}, &[a, b])
}

/// The gradients of checkpoint tensors.
struct Gradients {
    /// The shapes of tensors that a parameter is as a whole, since a binding names tensors only.
    shapes: BTreeMap<String, Shape>,
    by_tensor: BTreeMap<String, Wire>,
}

impl Gradients {
    fn new(graph: &Graph) -> Self {
        let whole = graph.nodes().filter_map(|id| {
            let node = graph.node(id);
            match &node.op {
                Op::Param(Param {
                    value: Binding::Tensor(name),
                }) => Some((name.clone(), node.types[0].shape.clone())),
                _ => None,
            }
        });
        Gradients {
            shapes: whole.collect(),
            by_tensor: BTreeMap::new(),
        }
    }

    /// Adds the cotangent of a binding's value to those of the tensors in it.
    fn lead_back(
        &mut self,
        graph: &Graph,
        patch: &mut Patch,
        param: NodeId,
        binding: &Binding,
        cotangent: Wire,
    ) -> Result<(), String> {
        match binding {
            Binding::Tensor(name) => {
                let sum = match self.by_tensor.get(name) {
                    Some(&sum) => add(graph, patch, param, sum, cotangent)?,
                    None => cotangent,
                };
                self.by_tensor.insert(name.clone(), sum);
                Ok(())
            }
            &Binding::Scale(factor, ref inner) => {
                let scaled = patch.add(graph, param, Scale { factor }, &[cotangent])?;
                self.lead_back(graph, patch, param, inner, scaled)
            }
            Binding::Concat(parts) => {
                let (axis, mut start) = (0, 0);
                for part in parts {
                    let end = start + self.rows(part)?;
                    let slice = Slice { axis, start, end };
                    let rows = patch.add(graph, param, slice, &[cotangent])?;
                    self.lead_back(graph, patch, param, part, rows)?;
                    start = end;
                }
                Ok(())
            }
            &Binding::Rows(start, end, ref inner) => {
                let after = self.rows(inner)? - end;
                let whole = padded(graph, patch, param, cotangent, [start, after])?;
                self.lead_back(graph, patch, param, inner, whole)
            }
        }
    }

    fn rows(&self, binding: &Binding) -> Result<usize, String> {
        let shape = binding.shape(&|name| self.shapes.get(name).cloned());
        Ok(shape?.rows())
    }
}

/// A value with so many rows of zeros before and after it.
fn padded(
    graph: &Graph,
    patch: &mut Patch,
    like: NodeId,
    value: Wire,
    [before, after]: [usize; 2],
) -> Result<Wire, String> {
    let shape = patch.ty(graph, value).shape.clone();
    let mut zeros = |rows: usize| {
        let ty = TensorType::fixed(DType::F32, shape.with_rows(rows));
        patch.add_typed(graph, like, Zeros {}, &[], &[ty])
    };
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(zeros(before)?);
    }
    parts.push(value);
    if after > 0 {
        parts.push(zeros(after)?);
    }
    patch.add(graph, like, Concat { axis: 0 }, &parts)
}
