//! `cse`: computes each value once.
//!
//! *What it does.* Where two nodes have equal ops, equal operands, equal types and the same stage,
//! the users of the later one use the earlier one. Inputs are equal by name, parameters by binding.
//! The operands of `add` count in either order, since floating-point addition commutes.
//!
//! *Why it helps.* A model that uses one module twice declares its parameters twice; merging linears
//! needs to see that they are one. Narrowing leaves several equal gathers behind.
//!
//! *What it needs.* Nothing.
//!
//! *What it promises.* No result changes, not by a bit. One run is enough. Transfers are not merged.
//!
//! ```text
//! %2 = add %0, %1 : f32[4,8]          %2 = add %0, %1 : f32[4,8]
//! %3 = add %1, %0 : f32[4,8]     →    %4 = add %2, %2 : f32[4,8]
//! %4 = add %2, %3 : f32[4,8]
//! ```

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Patch, Types, Value};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::pass::{Found, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "cse",
    doc: "computes each value once",
    run: Run::Whole(run),
};

/// What equal nodes agree in, but for the op's attributes.
type Key = (&'static str, Option<u32>, SmallVec<[Value; 4]>, Types);

fn run(graph: &Graph, _: &Options) -> Found {
    let mut first: Vec<Option<NodeId>> = vec![None; graph.bound()];
    let mut known: FxHashMap<Key, SmallVec<[NodeId; 1]>> = FxHashMap::default();
    let mut patch = Patch::new();
    for id in graph.topo() {
        let candidates = known.entry(key(graph, id, &first)).or_default();
        let equal = candidates
            .iter()
            .copied()
            .find(|&other| graph.node(other).op == graph.node(id).op);
        first[id.index()] = Some(equal.unwrap_or(id));
        match equal {
            Some(other) if graph.is_used(id) && may_merge(graph, id) => {
                for value in walk::values(graph, id) {
                    patch.replace(
                        value,
                        Value {
                            node: other,
                            ..value
                        },
                    );
                }
            }
            Some(_) => first[id.index()] = Some(id),
            None => candidates.push(id),
        }
    }
    Ok((!patch.is_empty()).then_some(patch))
}

fn may_merge(graph: &Graph, id: NodeId) -> bool {
    !matches!(graph.node(id).op, Op::Transfer(_))
}

/// `first` gives the node that stands for each node before this one.
fn key(graph: &Graph, id: NodeId, first: &[Option<NodeId>]) -> Key {
    let node = graph.node(id);
    let mut operands: SmallVec<[Value; 4]> = graph
        .inputs(id)
        .iter()
        .map(|value| Value {
            node: first[value.node.index()].unwrap_or(value.node),
            ..*value
        })
        .collect();
    if matches!(node.op, Op::Add(_)) {
        operands.sort_unstable();
    }
    (node.op.name(), node.stage, operands, node.types.clone())
}
