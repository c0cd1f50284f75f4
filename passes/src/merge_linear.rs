//! `merge-linear`: linears that share an operand become one.
//!
//! *What it does.*
//! - *Tall*: linears of equal weight and bias over different rows become one over all the rows end to
//!   end (`concat` along axis 0, in the union of the row spaces), and each user takes its `part`.
//! - *Wide*: linears of the same rows with different weights become one whose weight and bias are
//!   those of all end to end, and each user takes its column `slice`.
//!
//! *Why it helps.* One large matrix product has better reuse than several small ones: a weight is
//! read once for both directions of LXMERT's cross attention, which share it, and the rows once for
//! query, key and value. There, six linears become one.
//!
//! *What it needs.* `cse` before it, so that equal parameters are one node, and `fuse-epilogue`, so
//! that the activation stands on the linear; `fold` after it, for the parameters end to end.
//!
//! *What it promises.* No result changes, not by a bit: each element is the same sum in the same
//! order. Tall merges join linears of which none depends on another, so no cycle arises. Wide merges
//! take weights that nothing else uses, so no weight is stored twice. Activation, presence of a bias
//! and dtypes agree in all that merge.
//!
//! ```text
//! %6 = linear %0, %1, %2 : f32[text:160,8]          %6 = concat %1, %3 {axis=0} : f32[16,8]
//! %7 = linear %0, %3, %4 : f32[text:160,8]          %7 = concat %2, %4 {axis=0} : f32[16]
//!                                             →     %8 = linear %0, %6, %7 : f32[text:160,16]
//!                                                   %9 = slice %8 {axis=1, end=8, start=0} : f32[text:160,8]
//!                                                   %10 = slice %8 {axis=1, end=16, start=8} : f32[text:160,8]
//! ```

use lxpod_ir::ops::{Concat, Op, Part, Slice};
use lxpod_ir::{Graph, Layout, MAX_ROWS, NodeId, Patch, SpaceId, Value, Wire};

use crate::pass::{Found, Options, Pass, Run};
use crate::walk;

/// See the module.
pub const PASS: Pass = Pass {
    name: "merge-linear",
    doc: "linears that share an operand become one",
    run: Run::Each(run),
};

fn run(graph: &Graph, id: NodeId, _: &Options) -> Found {
    if !matches!(graph.node(id).op, Op::Linear(_)) {
        return Ok(None);
    }
    let same_weight = tall_group(graph, id);
    if same_weight.len() > 1 && has_union(graph, &same_weight) {
        return merge_tall(graph, &same_weight).map(Some);
    }
    let same_rows = wide_group(graph, id);
    if same_rows.len() > 1 {
        return merge_wide(graph, &same_rows).map(Some);
    }
    Ok(None)
}

/// The linears that use `value` as operand `input`, in node order, and agree with `like` in the op, the
/// number of operands and the dtypes of rows and result.
fn alike(graph: &Graph, value: Value, input: u16, like: NodeId) -> Vec<NodeId> {
    let (node, count) = (graph.node(like), graph.inputs(like).len());
    let rows = graph.ty(graph.inputs(like)[0]).dtype;
    let agrees = |id: NodeId| {
        let (other, inputs) = (graph.node(id), graph.inputs(id));
        other.op == node.op
            && other.stage == node.stage
            && other.types[0].dtype == node.types[0].dtype
            && inputs.len() == count
            && graph.ty(inputs[0]).dtype == rows
            && graph.is_used(id)
    };
    let users = graph.users(value);
    users
        .iter()
        .filter(|user| user.input == input && agrees(user.node))
        .map(|user| user.node)
        .collect()
}

/// Linears of the weight and bias of `id` over different values in row spaces that are no unions,
/// none of which depends on another, `id` among them. Ordered by row space, then by rows, so that groups over the same values agree.
fn tall_group(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let inputs = graph.inputs(id);
    let stacks = |rows: Value| {
        let space = graph.ty(rows).rows.map(|space| graph.spaces.get(space));
        space.is_some_and(|space| !matches!(space.layout, Layout::Union(_)))
    };
    if !stacks(inputs[0]) {
        return Vec::new();
    }
    let mut group = vec![id];
    for other in alike(graph, inputs[1], 1, id) {
        let rows = graph.inputs(other)[0];
        let fits = graph.inputs(other)[1..] == inputs[1..]
            && stacks(rows)
            && group.iter().all(|&member| {
                graph.inputs(member)[0] != rows && independent(graph, member, other)
            });
        if fits {
            group.push(other);
        }
    }
    group.sort_by_key(|&member| {
        let rows = graph.inputs(member)[0];
        (graph.ty(rows).rows, rows)
    });
    group
}

fn independent(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    !walk::dependents(graph, a).contains(b.index())
        && !walk::dependents(graph, b).contains(a.index())
}

/// The row spaces of linears in row spaces.
fn spaces_of(graph: &Graph, group: &[NodeId]) -> Vec<SpaceId> {
    let rows = |&id: &NodeId| graph.ty(graph.inputs(id)[0]).rows;
    group.iter().filter_map(rows).collect()
}

/// Whether a row space has room for the rows of all.
fn has_union(graph: &Graph, group: &[NodeId]) -> bool {
    let capacities = spaces_of(graph, group).into_iter();
    let rows: usize = capacities
        .map(|space| graph.spaces.get(space).capacity)
        .sum();
    rows <= MAX_ROWS
}

fn merge_tall(graph: &Graph, group: &[NodeId]) -> Result<Patch, String> {
    let first = group[0];
    let rows: Vec<Value> = group.iter().map(|&id| graph.inputs(id)[0]).collect();
    let mut patch = Patch::new();
    let stacked = match existing_concat(graph, &rows, first) {
        Some(value) => value.into(),
        None => {
            patch.declare_union(&spaces_of(graph, group));
            concat(graph, &mut patch, first, &rows)?
        }
    };
    let mut operands = vec![stacked];
    operands.extend(graph.inputs(first)[1..].iter().copied().map(Wire::Old));
    let node = graph.node(first);
    let tall = patch.add_typed(graph, first, node.op.clone(), &operands, &node.types)?;
    for (index, &member) in group.iter().enumerate() {
        let part = patch.add(graph, member, Part { index }, &[tall])?;
        patch.replace(graph.value(member), part);
    }
    Ok(patch)
}

/// A `concat` along axis 0 of exactly these values, on the stage of `like`.
fn existing_concat(graph: &Graph, values: &[Value], like: NodeId) -> Option<Value> {
    graph
        .users(values[0])
        .iter()
        .map(|user| user.node)
        .find(|&id| {
            graph.node(id).op == Op::Concat(Concat { axis: 0 })
                && graph.node(id).stage == graph.node(like).stage
                && graph.inputs(id)[..] == *values
        })
        .map(|id| graph.value(id))
}

/// Linears of the rows of `id` whose parameters nothing else uses, `id` among them, in node order; none if
/// those of `id` are used elsewhere.
fn wide_group(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let owns = |other: NodeId| {
        graph.inputs(other)[1..].iter().all(|&value| {
            walk::is_parametric(graph, value) && walk::sole_use(graph, value).is_some()
        })
    };
    let dtypes = |other: NodeId| {
        let inputs = graph.inputs(other);
        inputs[1..]
            .iter()
            .map(|&value| graph.ty(value).dtype)
            .collect::<Vec<_>>()
    };
    if !owns(id) {
        return Vec::new();
    }
    let rows = graph.inputs(id)[0];
    let mut group = alike(graph, rows, 0, id);
    group.retain(|&other| owns(other) && dtypes(other) == dtypes(id));
    group
}

fn merge_wide(graph: &Graph, group: &[NodeId]) -> Result<Patch, String> {
    let first = group[0];
    let inputs = graph.inputs(first);
    let mut patch = Patch::new();
    let mut operands = vec![Wire::Old(inputs[0])];
    for operand in 1..inputs.len() {
        let parts: Vec<Value> = group.iter().map(|&id| graph.inputs(id)[operand]).collect();
        operands.push(concat(graph, &mut patch, first, &parts)?);
    }
    let node = graph.node(first);
    let wide = patch.add_typed(graph, first, node.op.clone(), &operands, &node.types)?;
    let mut start = 0;
    for &member in group {
        let end = start + graph.node(member).types[0].shape.last_axis();
        let columns = Slice {
            axis: 1,
            start,
            end,
        };
        let slice = patch.add(graph, member, columns, &[wide])?;
        patch.replace(graph.value(member), slice);
        start = end;
    }
    Ok(patch)
}

fn concat(graph: &Graph, patch: &mut Patch, like: NodeId, parts: &[Value]) -> Result<Wire, String> {
    let parts: Vec<Wire> = parts.iter().copied().map(Wire::Old).collect();
    patch.add(graph, like, Concat { axis: 0 }, &parts)
}
