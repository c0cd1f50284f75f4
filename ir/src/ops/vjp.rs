//! What the derivative of an op is given: reverse-mode differentiation of one node.

use smallvec::SmallVec;

use super::{Cast, Op};
use crate::{DType, Graph, NodeId, Patch, TensorType, Value, Wire};

/// One node with the cotangents of its results, the derivatives of a scalar with respect to them. The
/// op emits the nodes that compute the cotangents of its operands: a vector-Jacobian product.
///
/// A cotangent has the type that [`TensorType::cotangent`] says. What an op emits for an operand that
/// needs no cotangent is dead code, which passes remove.
#[derive(Debug)]
pub struct Vjp<'a> {
    graph: &'a Graph,
    patch: &'a mut Patch,
    node: NodeId,
    inputs: SmallVec<[Value; 4]>,
    results: &'a [Option<Wire>],
    given: Vec<Option<Wire>>,
    /// The number of the first node that the op emits.
    first: usize,
}

impl<'a> Vjp<'a> {
    /// The product of `node` with these cotangents, one for each result that has one. New nodes go
    /// to `patch`.
    pub fn new(
        graph: &'a Graph,
        patch: &'a mut Patch,
        node: NodeId,
        results: &'a [Option<Wire>],
    ) -> Self {
        let inputs = graph.inputs(node);
        Vjp {
            first: patch.added(),
            graph,
            patch,
            node,
            given: vec![None; inputs.len()],
            inputs,
            results,
        }
    }

    /// Asks the node's op for the cotangents of its operands: one for each operand that has one. One
    /// that is stored otherwise than its operand's cotangent is, is stored so in the first place, or
    /// cast.
    ///
    /// # Errors
    /// The op has no derivative, or emits nodes that do not fit. Our bug, or a graph that nothing
    /// can differentiate.
    pub fn run(mut self) -> Result<Vec<Option<Wire>>, String> {
        let op = &self.graph.node(self.node).op;
        op.vjp(&mut self)
            .map_err(|error| format!("{}: {error}", op.name()))?;
        let mut settled = Vec::new();
        for operand in 0..self.given.len() {
            if let Some(wire) = self.given[operand] {
                let own = matches!(wire, Wire::New(index, _) if index >= self.first);
                let wire = self.stored(operand, wire, own && !settled.contains(&wire))?;
                settled.push(wire);
                self.given[operand] = Some(wire);
            }
        }
        Ok(self.given)
    }

    /// A cotangent, stored as the cotangent of `operand` is. `free` says that nothing else relies on how
    /// it is stored.
    fn stored(&mut self, operand: usize, wire: Wire, free: bool) -> Result<Wire, String> {
        let to = self.operand_type(operand).cotangent().dtype;
        let as_it_is = self.patch.ty(self.graph, wire).dtype == to;
        if as_it_is || (free && self.patch.store_as(self.graph, wire, to)) {
            return Ok(wire);
        }
        self.emit(Cast { to }, &[wire])
    }

    /// The operands.
    pub fn operands(&self) -> Vec<Wire> {
        self.inputs.iter().copied().map(Wire::Old).collect()
    }

    /// The type of an operand.
    pub fn operand_type(&self, operand: usize) -> &'a TensorType {
        self.graph.ty(self.inputs[operand])
    }

    /// The graph's row spaces.
    pub fn spaces(&self) -> &'a crate::Spaces {
        &self.graph.spaces
    }

    /// The cotangent of the first result: that of an op with one result.
    ///
    /// # Errors
    /// Only another result has one.
    pub fn cotangent(&self) -> Result<Wire, String> {
        self.cotangent_of(0)
            .ok_or_else(|| "no cotangent of the first result".to_owned())
    }

    /// The cotangent of a result, if it has one.
    pub fn cotangent_of(&self, result: usize) -> Option<Wire> {
        self.results[result]
    }

    /// Adds a node whose results are stored in f32, and returns the first.
    ///
    /// # Errors
    /// The op's type rule rejects the operands.
    pub fn emit(&mut self, op: impl Into<Op>, inputs: &[Wire]) -> Result<Wire, String> {
        let declared = [(); 3].map(|()| TensorType::fixed(DType::F32, []));
        self.emit_typed(op, inputs, &declared)
    }

    /// Adds a node whose result is the cotangent of a value of type `like`.
    ///
    /// # Errors
    /// The op's type rule rejects them.
    pub fn emit_like(
        &mut self,
        op: impl Into<Op>,
        inputs: &[Wire],
        like: &TensorType,
    ) -> Result<Wire, String> {
        self.emit_typed(op, inputs, &[like.cotangent()])
    }

    fn emit_typed(
        &mut self,
        op: impl Into<Op>,
        inputs: &[Wire],
        declared: &[TensorType],
    ) -> Result<Wire, String> {
        let wire = self
            .patch
            .add_typed(self.graph, self.node, op, inputs, declared)?;
        self.patch.set_forward(wire, self.node);
        Ok(wire)
    }

    /// Gives an operand its cotangent.
    pub fn give(&mut self, operand: usize, cotangent: Wire) {
        self.given[operand] = Some(cotangent);
    }
}
