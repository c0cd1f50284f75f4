//! Patches: what they rewire, what they refuse.

use lxpod_ir::ops::{Activate, Activation, Scale};
use lxpod_ir::text::{parse, print};
use lxpod_ir::{Graph, NodeId, Patch, Value, verify};

fn graph() -> Graph {
    parse(
        "graph @g {
  %0 = input {name=x} : f32[2]
  %1 = scale %0 {factor=2.0} : f32[2]
  %2 = scale %0 {factor=2.0} : f32[2]
  %3 = add %1, %2 : f32[2]
  return %3 as \"y\"
  return %2 as \"z\"
}",
    )
    .unwrap()
}

fn value(graph: &Graph, position: usize) -> Value {
    graph.value(graph.topo()[position])
}

fn body(graph: &Graph) -> Vec<String> {
    let text = print(graph);
    let lines = text.lines().map(|line| line.trim().to_owned());
    lines.filter(|line| !line.starts_with("graph")).collect()
}

#[test]
fn a_replacement_may_be_computed_from_what_it_replaces() {
    let mut graph = graph();
    let x = value(&graph, 0);
    let mut patch = Patch::new();
    let op = Activate {
        kind: Activation::Relu,
    };
    let new = patch.add(&graph, x.node, op, &[x.into()]).unwrap();
    patch.replace(x, new);
    patch.apply(&mut graph).unwrap();
    verify(&graph).unwrap();
    assert_eq!(
        body(&graph)[1..4],
        [
            "%1 = activate %0 {kind=relu} : f32[2]",
            "%2 = scale %1 {factor=2.0} : f32[2]",
            "%3 = scale %1 {factor=2.0} : f32[2]"
        ]
    );
}

#[test]
fn a_replaced_node_may_be_removed_at_once() {
    let mut graph = graph();
    let (kept, dropped) = (value(&graph, 1), value(&graph, 2));
    let mut patch = Patch::new();
    patch.replace(dropped, kept);
    patch.remove(dropped.node);
    patch.apply(&mut graph).unwrap();
    verify(&graph).unwrap();
    assert_eq!(
        body(&graph)[2..5],
        [
            "%2 = add %1, %1 : f32[2]",
            "return %2 as \"y\"",
            "return %1 as \"z\""
        ]
    );
}

#[test]
fn replacements_are_followed() {
    let mut graph = graph();
    let values: Vec<Value> = (0..3).map(|position| value(&graph, position)).collect();
    let mut patch = Patch::new();
    patch.replace(values[2], values[1]);
    patch.replace(values[1], values[0]);
    patch.remove(values[1].node);
    patch.remove(values[2].node);
    patch.apply(&mut graph).unwrap();
    assert_eq!(body(&graph)[1], "%1 = add %0, %0 : f32[2]");
}

fn refused(build: impl Fn(&Graph, &mut Patch)) -> String {
    let mut graph = graph();
    let before = print(&graph);
    let mut patch = Patch::new();
    build(&graph, &mut patch);
    let error = patch.apply(&mut graph).unwrap_err();
    assert_eq!(print(&graph), before);
    error
}

fn node(graph: &Graph, position: usize) -> NodeId {
    value(graph, position).node
}

#[test]
fn removing_what_is_used_is_refused() {
    let used = "a patch removes a `scale` that is still used";
    assert_eq!(refused(|graph, patch| patch.remove(node(graph, 1))), used);
    let by_new_node = refused(|graph, patch| {
        let (kept, dropped) = (value(graph, 1), value(graph, 2));
        let op = Scale { factor: 3.0 };
        let new = patch.add(graph, kept.node, op, &[dropped.into()]).unwrap();
        patch.replace(kept, new);
        patch.replace(dropped, kept);
        patch.remove(dropped.node);
    });
    assert_eq!(by_new_node, used);
    let as_replacement = refused(|graph, patch| {
        patch.replace(value(graph, 1), value(graph, 2));
        patch.remove(node(graph, 2));
    });
    assert_eq!(as_replacement, used);
}

#[test]
fn circles_are_refused() {
    let error = refused(|graph, patch| {
        patch.replace(value(graph, 1), value(graph, 2));
        patch.replace(value(graph, 2), value(graph, 1));
    });
    assert_eq!(error, "a patch replaces values in a circle");
}

#[test]
fn another_type_is_refused() {
    let error = refused(|graph, patch| {
        let x = value(graph, 0);
        let op = lxpod_ir::ops::Cast {
            to: lxpod_ir::DType::F16,
        };
        let new = patch.add(graph, x.node, op, &[x.into()]).unwrap();
        patch.replace(x, new);
    });
    assert_eq!(error, "a patch replaces f32[2] by f16[2]");
}
