//! Pictures of graphs, in Graphviz's language.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::ops::Op;
use crate::text::{Numbers, attributes_text};
use crate::{Graph, NodeId, Value};

/// Longer labels are cut, so that a constant's data does not fill the page.
const MAX_ATTRIBUTES: usize = 48;

/// The graph in Graphviz's language: clustered by stage if nodes have stages, else by scope; leaves
/// are boxes with a grey ground, outputs are ovals. Nodes are numbered as their first values are in
/// [`crate::text::print()`].
pub fn dot(graph: &Graph) -> String {
    let numbers = Numbers::new(graph);
    let mut text = format!(
        "digraph {} {{\n  node [shape=box, style=rounded, fontname=monospace];\n  edge [fontname=monospace];\n",
        escaped(&graph.name)
    );
    let placed = graph.nodes().any(|id| graph.node(id).stage.is_some());
    let mut clusters: BTreeMap<Cluster<'_>, Vec<NodeId>> = BTreeMap::new();
    for &id in &numbers.order {
        let node = graph.node(id);
        let cluster = if placed {
            Cluster::Stage(node.stage)
        } else {
            Cluster::Scope(&node.scope)
        };
        clusters.entry(cluster).or_default().push(id);
    }
    for (position, (cluster, nodes)) in clusters.iter().enumerate() {
        let label = match cluster {
            Cluster::Stage(Some(stage)) => format!("stage {stage}"),
            Cluster::Stage(None) => "no stage".to_owned(),
            Cluster::Scope(scope) => (*scope).to_owned(),
        };
        let inside = !label.is_empty();
        if inside {
            let _ = writeln!(text, "  subgraph cluster_{position} {{");
            let _ = writeln!(text, "    label={};", escaped(&label));
        }
        for &id in nodes {
            let indent = if inside { "    " } else { "  " };
            let _ = writeln!(text, "{indent}{}", node_line(graph, &numbers, id));
        }
        if inside {
            text.push_str("  }\n");
        }
    }
    for &id in &numbers.order {
        edges(&mut text, graph, &numbers, id);
    }
    outputs(&mut text, graph, &numbers);
    text.push_str("}\n");
    text
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Cluster<'a> {
    Stage(Option<u32>),
    Scope(&'a str),
}

fn node_line(graph: &Graph, numbers: &Numbers, id: NodeId) -> String {
    let node = graph.node(id);
    let mut attributes = attributes_text(&node.op);
    if let Some((cut, _)) = attributes.char_indices().nth(MAX_ATTRIBUTES) {
        attributes.truncate(cut);
        attributes.push('…');
    }
    let types = node.types.iter().map(|ty| ty.display(&graph.spaces));
    let types: Vec<String> = types.collect();
    let name = numbers.name(graph.value(id));
    let label = format!(
        "{name} {}{attributes}\n{}",
        node.op.name(),
        types.join("\n")
    );
    let style = match &node.op {
        Op::Input(_) => ", style=filled, fillcolor=gray85",
        Op::Param(_) | Op::State(_) | Op::Constant(_) => ", style=filled, fillcolor=gray95",
        Op::Transfer(_) => ", shape=cds",
        _ => "",
    };
    format!(
        "{} [label={}{style}];",
        node_name(numbers, graph.value(id)),
        escaped(&label)
    )
}

/// One edge for each operand, labelled where the operand is a second output.
fn edges(text: &mut String, graph: &Graph, numbers: &Numbers, id: NodeId) {
    let to = node_name(numbers, graph.value(id));
    for value in graph.inputs(id) {
        let from = node_name(numbers, graph.value(value.node));
        let _ = writeln!(text, "  {from} -> {to}{};", edge_label(numbers, value));
    }
}

fn outputs(text: &mut String, graph: &Graph, numbers: &Numbers) {
    for (position, output) in graph.outputs().iter().enumerate() {
        let label = escaped(&output.name);
        let _ = writeln!(
            text,
            "  out{position} [label={label}, shape=oval, style=bold];"
        );
        let from = node_name(
            numbers,
            Value {
                output: 0,
                ..output.value
            },
        );
        let label = edge_label(numbers, output.value);
        let _ = writeln!(text, "  {from} -> out{position}{label};");
    }
}

fn edge_label(numbers: &Numbers, value: Value) -> String {
    match value.output {
        0 => String::new(),
        _ => format!(" [label={}]", escaped(&numbers.name(value))),
    }
}

fn node_name(numbers: &Numbers, first: Value) -> String {
    numbers.name(first).replace('%', "n").replace('?', "one")
}

/// A quoted string of Graphviz.
fn escaped(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
