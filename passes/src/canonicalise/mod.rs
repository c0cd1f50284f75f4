#![doc = include_str!("README.md")]

mod casts;
mod rows;
mod scales;
mod views;

use lxpod_ir::{Graph, NodeId, Patch};

use crate::pass::{Found, Mode, Options, Pass, Run};

/// See the module.
pub const PASS: Pass = Pass {
    name: "canonicalise",
    doc: "brings each meaning into one form, and factors of two into parameters",
    run: Run::Each(run),
};

/// A local law: what a node is to be replaced by.
type Rule = fn(&Graph, NodeId) -> Found;

/// Every rule that serves both modes, by topic; the first that applies is taken.
const RULES: [&[Rule]; 4] = [views::RULES, rows::RULES, casts::RULES, scales::RULES];

fn run(graph: &Graph, id: NodeId, options: &Options) -> Found {
    let mut rules = RULES.concat();
    if options.mode == Mode::Inference {
        rules.extend(scales::INTO_PARAMETERS);
    }
    for rule in rules {
        let found = rule(graph, id)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The patch that gives all users of a node's first output another value.
fn instead(
    graph: &Graph,
    id: NodeId,
    new: impl FnOnce(&mut Patch) -> Result<lxpod_ir::Wire, String>,
) -> Found {
    let mut patch = Patch::new();
    let wire = new(&mut patch)?;
    patch.replace(graph.value(id), wire);
    Ok(Some(patch))
}
