//! `autodiff`: the gradient of the loss for each parameter.
//!
//! *What it does.* Where the graph has an output [`LOSS`], an f32 scalar, it adds the output
//! `grad:BINDING` for each parameter that the loss depends on: the derivative of the loss with respect
//! to it, f32, of its shape. It walks the nodes in reverse and asks each op for the cotangents of its
//! operands (`OpDef::vjp`). Parameters that the loss does not depend on have no such output.
//!
//! *Why it helps.* Training is then a graph like any other: the same passes, partition and memory
//! plan serve it.
//!
//! *What it needs.* Everything that merges, narrows and chooses dtypes before it: the backward half is
//! then as merged as the forward half, and a cotangent is stored as its value is. What fuses hides
//! values that derivatives read, and stays away.
//!
//! *What it promises.* No bit of another output changes. A value that several nodes read, a parameter of
//! a shared module among them, has one cotangent: the sum of theirs, in the order of the reverse walk,
//! last reader first. Only where the readers are pieces (columns, or parts of a union) that cover the
//! value without overlap is there nothing to add: the cotangent is theirs end to end. Each new node
//! names the forward node it is derived from, a sum of cotangents the one that makes the summed value; only the
//! sum of a parameter's gradients has none. One patch.
//!
//! ```text
//!                                             %3 = linear %0, %1 : f32[text:160,8]
//! %3 = linear %0, %1 : f32[text:160,8]        %4 = bce %3, %2 {factor=1.0} : f32[]
//! %4 = bce %3, %2 {factor=1.0} : f32[]   →    %5 = constant {data=[1.0]} : f32[]
//! return %4 as "loss"                         %6 = bce_grad %5, %3, %2 {factor=1.0} : f32[text:160,8] of %4
//!                                             %7 = weight_grad %6, %0 : f32[8,8] of %3
//!                                             return %4 as "loss"
//!                                             return %7 as "grad:w"
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::{Add, Concat, Constant, Input, Op, Vjp, Zeros};
use lxpod_ir::{
    Binding, DType, Graph, LOSS, Layout, NodeId, Output, Patch, TensorType, Value, Wire,
};
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
    let done = |output: &Output| output.gradient_of().or(output.stored_state()).is_some();
    if outputs.iter().any(done) || *graph.ty(loss) != TensorType::fixed(DType::F32, []) {
        return Ok(None);
    }
    let mut sweep = Sweep {
        graph,
        depends: dependents_of_parameters(graph),
        patch: Patch::new(),
        cotangents: FxHashMap::default(),
        gradients: BTreeMap::new(),
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
    for (binding, gradient) in gradients.into_values() {
        patch.add_gradient(binding, gradient);
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
    /// Of parameters, by the text of their bindings.
    gradients: BTreeMap<String, (&'a Binding, Wire)>,
}

impl<'a> Sweep<'a> {
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
        if !self.depends.contains(id.index()) {
            return Ok(());
        }
        let mut results = Vec::new();
        for value in walk::values(self.graph, id) {
            self.join(value)?;
            results.push(self.cotangents.get(&value).copied());
        }
        if results.iter().all(Option::is_none) {
            return Ok(());
        }
        let (op, operands) = (&self.graph.node(id).op, self.graph.inputs(id));
        if let (Op::Param(param), Some(cotangent)) = (op, results[0]) {
            return self.parameter(id, &param.value, cotangent);
        }
        if place(self.graph, id).is_some() && covering(self.graph, operands[0]).is_some() {
            return Ok(());
        }
        let given = Vjp::new(self.graph, &mut self.patch, id, &results).run()?;
        for (operand, value) in operands.into_iter().enumerate() {
            if !self.depends.contains(value.node.index()) {
                continue;
            }
            let Some(cotangent) = given[operand] else {
                let name = op.name();
                return Err(format!(
                    "operand {operand} of `{name}` depends on a parameter and has no derivative"
                ));
            };
            let sum = match self.cotangents.get(&value) {
                Some(&sum) => self.derive(value.node, Add {}, &[sum, cotangent], &[])?,
                None => cotangent,
            };
            self.cotangents.insert(value, sum);
        }
        Ok(())
    }

    /// Puts the cotangents of the pieces that cover a value end to end.
    fn join(&mut self, value: Value) -> Result<(), String> {
        let Some((axis, pieces)) = covering(self.graph, value) else {
            return Ok(());
        };
        if pieces
            .iter()
            .all(|piece| !self.cotangents.contains_key(piece))
        {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            parts.push(match self.cotangents.get(&piece) {
                Some(&cotangent) => cotangent,
                None => {
                    let ty = [self.graph.ty(piece).cotangent()];
                    self.derive(value.node, Zeros {}, &[], &ty)?
                }
            });
        }
        let whole = self.derive(value.node, Concat { axis }, &parts, &[])?;
        self.cotangents.insert(value, whole);
        Ok(())
    }

    /// Adds a node that is part of the derivative of `forward`.
    fn derive(
        &mut self,
        forward: NodeId,
        op: impl Into<Op>,
        inputs: &[Wire],
        declared: &[TensorType],
    ) -> Result<Wire, String> {
        let patch = &mut self.patch;
        let wire = patch.add_typed(self.graph, forward, op, inputs, declared)?;
        patch.set_forward(wire, forward);
        Ok(wire)
    }

    fn parameter(
        &mut self,
        id: NodeId,
        binding: &'a Binding,
        cotangent: Wire,
    ) -> Result<(), String> {
        let name = binding.to_string();
        let sum = match self.gradients.get(&name) {
            Some(&(_, sum)) => self.patch.add(self.graph, id, Add {}, &[sum, cotangent])?,
            None => cotangent,
        };
        self.gradients.insert(name, (binding, sum));
        Ok(())
    }
}

/// A view of a piece of its operand: along which axis, and which elements or parts of it.
fn place(graph: &Graph, id: NodeId) -> Option<(usize, Range<usize>)> {
    match &graph.node(id).op {
        Op::Slice(slice) => Some((slice.axis, slice.start..slice.end)),
        Op::Part(part) => Some((0, part.index..part.index + 1)),
        _ => None,
    }
}

/// The readers of a value, in order, if they are views of pieces along one axis that cover it without
/// overlap.
fn covering(graph: &Graph, value: Value) -> Option<(usize, Vec<Value>)> {
    let users = graph.users(value);
    let placed = |id: NodeId| place(graph, id).map(|(axis, range)| (axis, range, graph.value(id)));
    let pieces = users.iter().map(|user| placed(user.node));
    let mut pieces = pieces.collect::<Option<Vec<_>>>()?;
    pieces.sort_by_key(|(_, range, _)| range.start);
    let axis = pieces.first()?.0;
    let mut covered = 0;
    for (other, range, _) in &pieces {
        if *other != axis || range.start != covered {
            return None;
        }
        covered = range.end;
    }
    let ty = graph.ty(value);
    let layout = ty.rows.map(|space| &graph.spaces.get(space).layout);
    let extent = match (axis, layout) {
        (0, Some(Layout::Union(parts))) => parts.len(),
        _ => ty.shape[axis],
    };
    let pieces = pieces.into_iter().map(|(_, _, piece)| piece);
    (covered == extent).then(|| (axis, pieces.collect()))
}
