//! The examples of each pass under `tests/filetests`: there are some, and no bit of what they compute changes.

mod support;

use std::fs;
use std::path::Path;

use lxpod_ir::Graph;
use lxpod_ir::text::parse;
use lxpod_passes::{PIPELINE, names};
use support::exact;

/// The graphs in the folder of that name, each as it stands before the pass.
fn examples(folder: &str) -> Vec<Graph> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests");
    let entries = fs::read_dir(root.join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut graphs = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let source = text.split("\n; expect\n").next().unwrap();
        graphs.push(parse(source).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }
    assert!(!graphs.is_empty(), "{folder} has no examples");
    graphs
}

#[test]
fn each_pass_keeps_every_bit_of_its_examples() {
    for pass in names() {
        for graph in examples(pass) {
            exact(&graph, pass);
        }
    }
}

#[test]
fn the_pipeline_keeps_every_bit_of_its_examples() {
    let passes: Vec<&str> = PIPELINE.iter().map(|pass| pass.name).collect();
    for graph in examples("pipeline") {
        exact(&graph, &passes.join(","));
    }
}
