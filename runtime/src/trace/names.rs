//! Which values are traced, and names for them that stay the same when the plan changes.

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, Layout, NodeId, SpaceId, Value};
use rustc_hash::FxHashMap;

use crate::pack::Packer;
use crate::sharing::RowKind;

/// The float values that ops compute, in topological order. Views and transfers hold their operands'
/// bits, copies of a node its own; what depends on labels that are not there has no meaning.
pub(super) fn op_values(graph: &Graph, packer: &Packer<'_>) -> Vec<Value> {
    let originals = originals(graph);
    let mut values = Vec::new();
    for node in graph.topo() {
        let op = &graph.node(node).op;
        if op.is_leaf() || op.is_view() || originals[node.index()] != node {
            continue;
        }
        let outputs = 0..graph.node(node).types.len() as u16;
        let own = outputs.map(|output| Value { node, output });
        let traced = |value: &Value| graph.ty(*value).dtype.is_float() && packer.is_known(*value);
        values.extend(own.filter(traced));
    }
    values
}

/// For each node by index, the first that computes the same; for a transfer, what it sends. A plan
/// computes a node on several stages where that is cheaper than sending its value.
fn originals(graph: &Graph) -> Vec<NodeId> {
    let topo = graph.topo();
    let mut originals: Vec<NodeId> = Vec::new();
    if let Some(&any) = topo.first() {
        originals.resize(graph.bound(), any);
    }
    let mut known = FxHashMap::default();
    for id in topo {
        let node = graph.node(id);
        let operands = graph.inputs(id);
        let resolved = operands.iter().map(|value| {
            let original = originals[value.node.index()];
            (original, value.output)
        });
        let resolved: Vec<(NodeId, u16)> = resolved.collect();
        originals[id.index()] = match node.op {
            Op::Transfer(_) => resolved[0].0,
            _ => *known
                .entry((format!("{:?}", node.op), resolved))
                .or_insert(id),
        };
    }
    originals
}

/// Rows of a value: those of one space, which may be one part of a union.
pub(super) struct Part {
    /// The name of the traced tensor.
    pub(super) name: String,
    /// What its rows are, if it has any.
    pub(super) kind: Option<RowKind>,
    /// The spaces whose rows precede its own in the value.
    pub(super) after: Vec<SpaceId>,
}

/// The parts of each value, named; see [`Traced::name`](super::Traced::name).
pub(super) fn name_parts(graph: &Graph, packer: &Packer<'_>, values: &[Value]) -> Vec<Vec<Part>> {
    let levels = levels(graph);
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&index| (levels[values[index].node.index()], index));
    let mut counts = BTreeMap::new();
    let mut parts: Vec<Vec<Part>> = values.iter().map(|_| Vec::new()).collect();
    for index in order {
        parts[index] = parts_of(graph, packer, values[index], &mut counts);
    }
    parts
}

/// The parts of one value; `counts` holds how many there were of each scope, op and kind of rows.
fn parts_of(
    graph: &Graph,
    packer: &Packer<'_>,
    value: Value,
    counts: &mut BTreeMap<String, usize>,
) -> Vec<Part> {
    let node = graph.node(value.node);
    let spaces: Vec<Option<SpaceId>> = match graph.ty(value).rows {
        None => vec![None],
        Some(space) => match &graph.spaces.get(space).layout {
            Layout::Union(parts) => parts.iter().copied().map(Some).collect(),
            Layout::Entities | Layout::Segments { .. } => vec![Some(space)],
        },
    };
    let stem = format!("{}/{}", node.scope, node.op.name());
    let output = match value.output {
        0 => String::new(),
        output => format!(":{output}"),
    };
    let part = |(index, &space): (usize, &Option<SpaceId>)| {
        let kind = space.and_then(|space| packer.kind(space));
        let rows = rows_name(kind);
        let count = counts.entry(format!("{stem}{output}{rows}")).or_default();
        *count += 1;
        Part {
            name: format!("{stem}.{}{output}{rows}", *count - 1),
            kind,
            after: spaces[..index].iter().copied().flatten().collect(),
        }
    };
    spaces.iter().enumerate().map(part).collect()
}

/// What the rows of a traced tensor are, at the end of its name.
fn rows_name(kind: Option<RowKind>) -> &'static str {
    match kind {
        None => "",
        Some(kind) if kind.is_text() => "@text",
        Some(kind) if kind.is_boxes() => "@box",
        Some(_) => "@sample",
    }
}

/// How many ops are on the longest way to each node, not counting transfers and casts: an order of a
/// scope's ops that neither the split into stages nor the precision changes.
fn levels(graph: &Graph) -> Vec<usize> {
    let mut levels = vec![0; graph.bound()];
    for id in graph.topo() {
        let operands = graph.inputs(id);
        let deepest = operands.iter().map(|value| levels[value.node.index()]);
        let moves = matches!(graph.node(id).op, Op::Transfer(_) | Op::Cast(_));
        let own = usize::from(!moves);
        levels[id.index()] = deepest.max().map_or(0, |deepest| deepest + own);
    }
    levels
}
