//! The verifier: every invariant of a graph, every violation at once.
//!
//! 1. *Order*: no node depends on itself.
//! 2. *Arity*: operands are numbered 0..n without gaps, and the op takes n of them.
//! 3. *Types*: each node's output types are what its op's type rule says of its operands.
//! 4. *Spaces*: a row space named by a type exists, and axis 0 is its capacity; every space is
//!    well-formed ([`crate::Spaces::check`]).
//! 5. *Names*: the inputs of one stage, its states and the outputs have unique names; outputs name existing
//!    values.
//! 6. *Stages*: either no node has a stage, or every node has one; a value is used on the stage
//!    that computes it, or on the stage its `transfer` goes to. No stage feeds an earlier one.
//! 7. *Numbers*: attributes are finite.
//! 8. *Derivatives*: the forward node that a backward node names exists, and is no backward node.
//! 9. *Stores*: the output `state:NAME` has the type of every `state` of that name, and there is one;
//!    `param:BINDING` likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value as Json;

use crate::ops::{Infer, Op};
use crate::text::{Numbers, node_text};
use crate::{Graph, NodeId, Output, TensorType, Types, Value};

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The node it is about, if it is about one.
    pub node: Option<NodeId>,
    /// The position of the output it is about, if it is about one.
    pub output: Option<usize>,
    /// What is wrong; starts with the node's op and scope.
    pub message: String,
    /// The node in the text form; empty if it is about none.
    pub line: String,
}

/// Everything wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyErrors(pub Vec<VerifyError>);

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the graph breaks an invariant")?,
            count => write!(f, "the graph breaks invariants in {count} places")?,
        }
        for error in &self.0 {
            write!(f, "\n  {}", error.message)?;
            if !error.line.is_empty() {
                write!(f, "\n    {}", error.line)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for VerifyErrors {}

/// Checks every invariant.
///
/// # Errors
/// All violations: of row spaces, then of nodes in their order, then of outputs.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    let mut verifier = Verifier {
        graph,
        placed: graph.nodes().any(|id| graph.node(id).stage.is_some()),
        circular: circular(graph),
        inputs: BTreeSet::new(),
        states: BTreeSet::new(),
        errors: Vec::new(),
    };
    verifier.row_spaces();
    for id in graph.nodes() {
        verifier.node(id);
    }
    verifier.outputs();
    if verifier.errors.is_empty() {
        Ok(())
    } else {
        Err(VerifyErrors(verifier.with_lines()))
    }
}

/// The nodes on cycles, or on a way from one cycle to another.
fn circular(graph: &Graph) -> BTreeSet<NodeId> {
    let sorted: BTreeSet<NodeId> = graph.topo().into_iter().collect();
    let mut left: BTreeSet<NodeId> = graph.nodes().filter(|id| !sorted.contains(id)).collect();
    let ends = |left: &BTreeSet<NodeId>, id: NodeId| {
        !graph.successors(id).any(|user| left.contains(&user))
    };
    let mut ended: Vec<NodeId> = left.iter().copied().filter(|&id| ends(&left, id)).collect();
    while let Some(id) = ended.pop() {
        left.remove(&id);
        let operands = graph.inputs(id);
        ended.extend(
            operands
                .iter()
                .map(|value| value.node)
                .filter(|&id| left.contains(&id) && ends(&left, id)),
        );
    }
    left
}

struct Verifier<'a> {
    graph: &'a Graph,
    /// Whether any node has a stage.
    placed: bool,
    /// The nodes that depend on themselves.
    circular: BTreeSet<NodeId>,
    /// The names of inputs seen so far, by stage.
    inputs: BTreeSet<(&'a str, Option<u32>)>,
    /// Likewise, of states.
    states: BTreeSet<(&'a str, Option<u32>)>,
    errors: Vec<VerifyError>,
}

impl<'a> Verifier<'a> {
    fn report(&mut self, id: NodeId, message: &str) {
        let node = self.graph.node(id);
        let place = if node.scope.is_empty() {
            String::new()
        } else {
            format!(" in {}", node.scope)
        };
        self.errors.push(VerifyError {
            node: Some(id),
            output: None,
            message: format!("{}{place}: {message}", node.op.name()),
            line: String::new(),
        });
    }

    fn report_graph(&mut self, output: Option<usize>, message: String) {
        self.errors.push(VerifyError {
            node: None,
            output,
            message,
            line: String::new(),
        });
    }

    /// The errors, each with the text of its node.
    fn with_lines(self) -> Vec<VerifyError> {
        let numbers = Numbers::new(self.graph);
        let mut errors = self.errors;
        for error in &mut errors {
            error.line = error
                .node
                .map(|id| node_text(self.graph, &numbers, id))
                .unwrap_or_default();
        }
        errors
    }

    fn row_spaces(&mut self) {
        let errors = self.graph.spaces.check_all().err().unwrap_or_default();
        for message in errors {
            self.report_graph(None, message);
        }
    }

    fn node(&mut self, id: NodeId) {
        if self.circular.contains(&id) {
            self.report(id, "depends on itself");
        }
        self.types(id);
        self.spaces(id);
        self.stages(id);
        self.leaf_names(id);
        self.numbers(id);
        self.forward(id);
    }

    fn types(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let inputs = self.graph.inputs(id);
        let numbers = self.graph.operand_numbers(id);
        if (0..).zip(&numbers).any(|(index, &number)| index != number) {
            return self.report(id, "lacks an operand between others, or has one twice");
        }
        let missing = inputs
            .iter()
            .any(|v| usize::from(v.output) >= self.graph.node(v.node).types.len());
        if missing {
            return self.report(id, "uses an output that its operand does not have");
        }
        let operands: Vec<TensorType> = inputs
            .iter()
            .map(|&value| self.graph.ty(value).clone())
            .collect();
        let spaces = &self.graph.spaces;
        let known = |ty: &TensorType| ty.rows.is_none_or(|space| spaces.contains(space));
        if !operands.iter().chain(&node.types).all(known) {
            return;
        }
        match node.op.infer(&Infer {
            inputs: &operands,
            declared: &node.types,
            spaces,
            extents: None,
        }) {
            Err(error) => self.report(id, &error),
            Ok(types) if types == node.types => {}
            Ok(types) => {
                let message = format!(
                    "has type {}, its operands give {}",
                    self.show(&node.types),
                    self.show(&types)
                );
                self.report(id, &message);
            }
        }
    }

    fn show(&self, types: &[TensorType]) -> String {
        let types = types.iter().map(|ty| ty.display(&self.graph.spaces));
        types.collect::<Vec<_>>().join(", ")
    }

    fn spaces(&mut self, id: NodeId) {
        let spaces = &self.graph.spaces;
        for ty in &self.graph.node(id).types {
            match ty.rows {
                Some(space) if !spaces.contains(space) => {
                    self.report(id, "names a row space that does not exist")
                }
                Some(space) if ty.shape.first() != Some(&spaces.get(space).capacity) => {
                    let message = format!(
                        "{} does not have the capacity of its row space",
                        ty.display(spaces)
                    );
                    self.report(id, &message);
                }
                _ => {}
            }
        }
    }

    fn stages(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let Some(stage) = node.stage else {
            if self.placed {
                self.report(id, "has no stage, others have");
            }
            return;
        };
        let mut operands = self.graph.inputs(id);
        operands.sort_unstable();
        operands.dedup();
        for value in operands {
            let source = self.graph.node(value.node);
            let home = match &source.op {
                Op::Transfer(transfer) => Some(transfer.to),
                _ => source.stage,
            };
            if home != Some(stage) {
                let home = home.map_or("no stage".to_owned(), |home| format!("stage {home}"));
                let message = format!(
                    "runs on stage {stage} and uses `{}` of {home}",
                    source.op.name()
                );
                self.report(id, &message);
            }
        }
        if let Op::Transfer(transfer) = &node.op
            && transfer.to <= stage
        {
            let message = format!("goes from stage {stage} back to {}", transfer.to);
            self.report(id, &message);
        }
    }

    fn leaf_names(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let (names, name) = match &node.op {
            Op::Input(input) => (&mut self.inputs, &input.name),
            Op::State(state) => (&mut self.states, &state.name),
            _ => return,
        };
        if !names.insert((name, node.stage)) {
            self.report(id, &format!("a second {} named `{name}`", node.op.name()));
        }
    }

    fn numbers(&mut self, id: NodeId) {
        for (key, value) in self.graph.node(id).op.attributes() {
            if has_hole(&value) {
                self.report(id, &format!("attribute `{key}` is not finite"));
            }
        }
    }

    fn forward(&mut self, id: NodeId) {
        match self.graph.node(id).forward {
            Some(forward) if !self.graph.contains(forward) => {
                self.report(
                    id,
                    "is part of the derivative of a node that does not exist",
                );
            }
            Some(forward) if self.graph.node(forward).forward.is_some() => {
                self.report(id, "is part of the derivative of a backward node");
            }
            _ => {}
        }
    }

    fn outputs(&mut self) {
        let mut names = BTreeSet::new();
        let replaced = self.replaced();
        for (position, output) in self.graph.outputs().iter().enumerate() {
            let Value {
                node,
                output: index,
            } = output.value;
            let exists =
                self.graph.contains(node) && usize::from(index) < self.graph.node(node).types.len();
            let name = &output.name;
            if !exists {
                self.report_graph(Some(position), format!("nothing behind output `{name}`"));
            }
            if !names.insert(name) {
                self.report_graph(Some(position), format!("a second output named `{name}`"));
            }
            if exists && output.is_stored() {
                let leaves = replaced.get(name).map_or(&[][..], Vec::as_slice);
                self.store(position, output, leaves);
            }
        }
    }

    /// The types of the leaves that each stored value takes the place of, by the output's name; of
    /// none where nothing is stored.
    fn replaced(&self) -> BTreeMap<String, Vec<&'a Types>> {
        let mut replaced: BTreeMap<String, Vec<&Types>> = BTreeMap::new();
        if self.graph.outputs().iter().any(Output::is_stored) {
            for node in self.graph.nodes().map(|id| self.graph.node(id)) {
                let name = match &node.op {
                    Op::State(state) => Output::state_name(&state.name),
                    Op::Param(param) => Output::param_name(&param.value),
                    _ => continue,
                };
                replaced.entry(name).or_default().push(&node.types);
            }
        }
        replaced
    }

    /// Checks that a stored value can take the place of leaves of these types.
    fn store(&mut self, position: usize, output: &Output, replaced: &[&Types]) {
        let name = &output.name;
        let stored = std::slice::from_ref(self.graph.ty(output.value));
        let other = replaced.iter().find(|types| types[..] != *stored);
        let message = match other {
            _ if replaced.is_empty() => {
                format!("output `{name}` stores what the graph does not have")
            }
            Some(other) => {
                let (stored, other) = (self.show(stored), self.show(other));
                format!("output `{name}` stores {stored} in {other}")
            }
            None => return,
        };
        self.report_graph(Some(position), message);
    }
}

/// Whether the value, or a part of it, is what numbers that are not finite become.
fn has_hole(value: &Json) -> bool {
    match value {
        Json::Array(items) => items.iter().any(has_hole),
        Json::Object(fields) => fields.values().any(has_hole),
        value => value.is_null(),
    }
}
