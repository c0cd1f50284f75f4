//! What a graph in text form holds.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_ir::Graph;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::error::Result;
use crate::cli::opt::read_graph;
use crate::cli::output::{self, HEADING, bytes, grouped, plural, styled};
use crate::cli::report::parameter_elements;
use crate::cli::table::Table;

/// Nodes of one op.
#[derive(Default)]
struct Kind {
    nodes: u64,
    flops: u64,
    written: u64,
}

pub(super) fn show(path: &Path, global: &Global) -> Result<()> {
    let (graph, ..) = read_graph(path)?;
    let kinds = kinds(&graph);
    if global.json {
        return output::json(&document(&graph, &kinds));
    }
    output::print(&text(&graph, &kinds))
}

fn kinds(graph: &Graph) -> BTreeMap<&'static str, Kind> {
    let mut kinds: BTreeMap<&'static str, Kind> = BTreeMap::new();
    for id in graph.nodes() {
        let kind = kinds.entry(graph.node(id).op.name()).or_default();
        let cost = graph.cost(id);
        kind.nodes += 1;
        kind.flops = kind.flops.saturating_add(cost.flops);
        kind.written = kind.written.saturating_add(cost.written);
    }
    kinds
}

fn parameters(graph: &Graph) -> u64 {
    graph.nodes().fold(0, |sum, id| {
        parameter_elements(graph, id).saturating_add(sum)
    })
}

fn stages(graph: &Graph) -> u32 {
    graph
        .nodes()
        .filter_map(|id| graph.node(id).stage)
        .max()
        .map_or(0, |last| last.saturating_add(1))
}

fn document(graph: &Graph, kinds: &BTreeMap<&'static str, Kind>) -> Value {
    let ops: BTreeMap<&str, Value> = kinds
        .iter()
        .map(|(&name, kind)| {
            (
                name,
                json!({"nodes": kind.nodes, "flops": kind.flops, "bytes_written": kind.written}),
            )
        })
        .collect();
    let spaces = graph
        .spaces
        .iter()
        .map(|(_, space)| json!({"name": space.name, "capacity": space.capacity}));
    let outputs = graph.outputs().iter().map(|output| {
        json!({"name": output.name, "type": graph.ty(output.value).display(&graph.spaces)})
    });
    json!({
        "graph": graph.name,
        "verified": true,
        "nodes": graph.len(),
        "stages": stages(graph),
        "parameters": parameters(graph),
        "flops": kinds.values().fold(0u64, |sum, kind| sum.saturating_add(kind.flops)),
        "ops": ops,
        "spaces": spaces.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
    })
}

fn text(graph: &Graph, kinds: &BTreeMap<&'static str, Kind>) -> String {
    let mut ops = Table::new(&["<op", "nodes", "GFLOP", "writes"]);
    for (name, kind) in kinds {
        let flops = format!("{:.3}", kind.flops as f64 / 1e9);
        ops.row([
            (*name).to_owned(),
            kind.nodes.to_string(),
            flops,
            bytes(kind.written),
        ]);
    }
    let mut spaces = Table::new(&["<row space", "capacity"]);
    for (_, space) in graph.spaces.iter() {
        spaces.row([space.name.clone(), grouped(space.capacity as u128)]);
    }
    let mut outputs = Table::new(&["<output", "<type"]);
    for output in graph.outputs() {
        outputs.row([
            output.name.clone(),
            graph.ty(output.value).display(&graph.spaces),
        ]);
    }
    let placed = match stages(graph) {
        0 => "not placed".to_owned(),
        stages => format!("placed on {}", plural(stages as usize, "stage")),
    };
    format!(
        "{}  {}: {}, {} parameters, {placed}; every invariant holds\n\n{}\n{}\n{}",
        styled(HEADING, "graph"),
        graph.name,
        plural(graph.len(), "node"),
        grouped(parameters(graph)),
        ops.render(),
        spaces.render(),
        outputs.render(),
    )
}
