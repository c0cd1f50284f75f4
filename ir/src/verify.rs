//! The verifier: every invariant of a graph, every violation at once.
//!
//! 1. *Order*: no node depends on itself.
//! 2. *Arity*: operands are numbered 0..n without gaps, and the op takes n of them.
//! 3. *Types*: each node's output types are what its op's type rule says of its operands.
//! 4. *Spaces*: a row space named by a type exists, and axis 0 is its capacity.
//! 5. *Names*: inputs and outputs have unique names; outputs name existing values.
//! 6. *Stages*: either no node has a stage, or every node has one; a value is used on the stage
//!    that computes it, or on the stage its `transfer` goes to. No stage feeds an earlier one.

use std::collections::BTreeSet;
use std::fmt;

use crate::ops::{Infer, Op};
use crate::{Graph, NodeId, TensorType, Value};

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The node it is about, if it is about one.
    pub node: Option<NodeId>,
    /// What is wrong; starts with the node's op and scope.
    pub message: String,
}

/// Everything wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyErrors(pub Vec<VerifyError>);

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the graph breaks {} invariants", self.0.len())?;
        for error in &self.0 {
            write!(f, "\n  {}", error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for VerifyErrors {}

/// Checks every invariant.
///
/// # Errors
/// All violations, in node order.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    let mut verifier = Verifier {
        graph,
        errors: Vec::new(),
    };
    verifier.order();
    for id in graph.nodes() {
        verifier.types(id);
        verifier.spaces(id);
        verifier.stages(id);
    }
    verifier.names();
    if verifier.errors.is_empty() {
        Ok(())
    } else {
        Err(VerifyErrors(verifier.errors))
    }
}

struct Verifier<'a> {
    graph: &'a Graph,
    errors: Vec<VerifyError>,
}

impl Verifier<'_> {
    fn report(&mut self, id: NodeId, message: &str) {
        let node = self.graph.node(id);
        let place = if node.scope.is_empty() {
            String::new()
        } else {
            format!(" in {}", node.scope)
        };
        let message = format!("{}{place}: {message}", node.op.name());
        self.errors.push(VerifyError {
            node: Some(id),
            message,
        });
    }

    fn order(&mut self) {
        let sorted: BTreeSet<NodeId> = self.graph.topo().into_iter().collect();
        for id in self
            .graph
            .nodes()
            .filter(|id| !sorted.contains(id))
            .collect::<Vec<_>>()
        {
            self.report(id, "depends on itself");
        }
    }

    fn types(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let inputs = self.graph.inputs(id);
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
        match node.op.infer(&Infer {
            inputs: &operands,
            declared: &node.types,
            spaces,
        }) {
            Err(error) => self.report(id, &error),
            Ok(types) if types == node.types => {}
            Ok(types) => {
                let show = |types: &[TensorType]| {
                    types
                        .iter()
                        .map(|ty| ty.display(spaces))
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                let message = format!(
                    "has type {}, its operands give {}",
                    show(&node.types),
                    show(&types)
                );
                self.report(id, &message);
            }
        }
    }

    fn spaces(&mut self, id: NodeId) {
        let spaces = &self.graph.spaces;
        for ty in self.graph.node(id).types.clone() {
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
            if self
                .graph
                .nodes()
                .next()
                .is_some_and(|first| self.graph.node(first).stage.is_some())
            {
                self.report(id, "has no stage, others have");
            }
            return;
        };
        for value in self.graph.inputs(id) {
            let source = self.graph.node(value.node);
            let home = match &source.op {
                Op::Transfer(transfer) => Some(transfer.to),
                _ => source.stage,
            };
            if home != Some(stage) {
                let home = home.map_or("no stage".to_owned(), |home| format!("stage {home}"));
                self.report(
                    id,
                    &format!(
                        "runs on stage {stage} and uses a `{}` of {home}",
                        source.op.name()
                    ),
                );
            }
        }
        if let Op::Transfer(transfer) = &node.op
            && transfer.to <= stage
        {
            self.report(
                id,
                &format!("goes from stage {stage} back to {}", transfer.to),
            );
        }
    }

    fn names(&mut self) {
        let mut inputs = BTreeSet::new();
        for id in self.graph.nodes() {
            let node = self.graph.node(id);
            if let Op::Input(input) = &node.op
                && !inputs.insert((input.name.clone(), node.stage))
            {
                self.report(id, &format!("a second input named `{}`", input.name));
            }
        }
        let mut outputs = BTreeSet::new();
        for output in self.graph.outputs() {
            let Value {
                node,
                output: index,
            } = output.value;
            let exists =
                self.graph.contains(node) && usize::from(index) < self.graph.node(node).types.len();
            if !exists || !outputs.insert(&output.name) {
                let message = if exists {
                    "second output named"
                } else {
                    "nothing behind output"
                };
                self.errors.push(VerifyError {
                    node: None,
                    message: format!("{message} `{}`", output.name),
                });
            }
        }
    }
}
