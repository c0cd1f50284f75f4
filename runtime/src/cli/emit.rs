//! Graphs in the forms other tools read.

use std::path::{Path, PathBuf};

use lxpod_ir::{Graph, dot};
use serde_json::{Value, json};

use super::error::{CliError, Result};
use super::{files, output};

/// Where a graph goes, and in which form.
#[derive(Clone, Debug)]
pub(crate) enum Emit {
    /// The text form, to standard output.
    Ir,
    /// Graphviz's language, to standard output.
    Dot,
    /// A file; its extension decides the form.
    File(PathBuf, Form),
}

/// The form of a graph in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Text,
    Dot,
    Json,
}

impl Form {
    fn render(self, graph: &Graph) -> String {
        match self {
            Form::Text => graph.to_string(),
            Form::Dot => dot(graph),
            Form::Json => format!("{:#}\n", document(graph)),
        }
    }
}

/// Parses the value of `--emit`.
pub(crate) fn parse(text: &str) -> Result<Emit, String> {
    let path = Path::new(text);
    match (
        text,
        path.extension().and_then(|extension| extension.to_str()),
    ) {
        ("ir", _) => Ok(Emit::Ir),
        ("dot", _) => Ok(Emit::Dot),
        (_, Some("lx")) => Ok(Emit::File(path.into(), Form::Text)),
        (_, Some("dot")) => Ok(Emit::File(path.into(), Form::Dot)),
        (_, Some("json")) => Ok(Emit::File(path.into(), Form::Json)),
        _ => Err("expected ir, dot, or a file ending in .lx, .dot or .json".to_owned()),
    }
}

impl Emit {
    /// Whether it writes to standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Emit::Ir | Emit::Dot)
    }

    /// Writes the graph.
    pub(crate) fn write(&self, graph: &Graph) -> Result<()> {
        match self {
            Emit::Ir => output::print(&Form::Text.render(graph)),
            Emit::Dot => output::print(&Form::Dot.render(graph)),
            Emit::File(path, form) => files::write(path, form.render(graph).as_bytes()),
        }
    }

    /// Refuses two documents on one standard output.
    pub(crate) fn check(&self, json: bool) -> Result<()> {
        if json && self.is_stdout() {
            let message =
                "ir and dot go to standard output, where --json writes its document; name a file";
            return Err(CliError::option("--emit", message));
        }
        Ok(())
    }
}

/// A graph as JSON: nodes in topological order, operands as [node, output].
pub(crate) fn document(graph: &Graph) -> Value {
    let nodes: Vec<Value> = graph
        .topo()
        .into_iter()
        .map(|id| {
            let node = graph.node(id);
            let inputs = graph.inputs(id);
            let inputs: Vec<[usize; 2]> = inputs
                .iter()
                .map(|value| [value.node.index(), usize::from(value.output)])
                .collect();
            let types: Vec<String> = node
                .types
                .iter()
                .map(|ty| ty.display(&graph.spaces))
                .collect();
            json!({
                "id": id.index(),
                "op": node.op.name(),
                "attributes": node.op.attributes(),
                "inputs": inputs,
                "types": types,
                "scope": node.scope.as_ref(),
                "stage": node.stage,
                "flops": graph.cost(id).flops,
            })
        })
        .collect();
    let outputs = graph.outputs().iter().map(|output| {
        json!({"name": output.name, "value": [output.value.node.index(), usize::from(output.value.output)]})
    });
    let spaces = graph
        .spaces
        .iter()
        .map(|(_, space)| json!({"name": space.name, "capacity": space.capacity}));
    json!({
        "name": graph.name,
        "spaces": spaces.collect::<Vec<_>>(),
        "nodes": nodes,
        "outputs": outputs.collect::<Vec<_>>(),
    })
}
