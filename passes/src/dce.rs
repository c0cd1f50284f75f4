//! `dce`: removes what no output depends on.
//!
//! *What it does.* Walks from the outputs to their operands and removes every node not met: ops,
//! inputs and parameters alike.
//!
//! *Why it helps.* A graph that returns only answers does not need the vision half of LXMERT's last
//! cross layer: 16 parameter tensors, 7 million weights at base size.
//!
//! *What it needs.* Nothing.
//!
//! *What it promises.* Every node left reaches an output. An input or parameter that disappears need
//! not be given.
//!
//! ```text
//! %0 = input {name=x} : f32[4,8]
//! %1 = scale %0 {factor=2.0} : f32[4,8]      ; removed
//! return %0 as "y"
//! ```

use lxpod_ir::Graph;

use crate::pass::{Found, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "dce",
    doc: "removes what no output depends on",
    run: Run::Whole(run),
};

fn run(graph: &Graph, _: &Options) -> Found {
    let patch = walk::without_dead(graph);
    Ok((!patch.is_empty()).then_some(patch))
}
