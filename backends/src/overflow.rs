//! Where a step first left the finite numbers.

use std::fmt;

use lxpod_ir::text::print_value;
use lxpod_ir::{Graph, Value};
use lxpod_passes::phases;
use lxpod_passes::schedule::Phase;
use serde::{Deserialize, Serialize};

/// The first value of a step, in order of execution, that is not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overflow {
    /// The micro-batch that it is of, counted from 0 within the step.
    pub micro_batch: usize,
    /// The half of the step.
    pub phase: Phase,
    /// The op that computed it.
    pub op: String,
    /// The path of the module that the op belongs to; may be empty.
    pub scope: String,
    /// Its name and type in the text form of the plan's graph.
    pub value: String,
}

impl Overflow {
    /// A value of a micro-batch's graph.
    pub fn new(graph: &Graph, value: Value, micro_batch: usize) -> Overflow {
        let node = graph.node(value.node);
        Overflow {
            micro_batch,
            phase: phases(graph)[value.node.index()],
            op: node.op.name().to_owned(),
            scope: node.scope.to_string(),
            value: print_value(graph, value),
        }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = self.phase.name();
        write!(f, "{}", self.op)?;
        if !self.scope.is_empty() {
            write!(f, " in {}", self.scope)?;
        }
        write!(
            f,
            " ({}, {half}, micro-batch {})",
            self.value, self.micro_batch
        )
    }
}
