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

/// `%1` is the forward node of `%2`, which reads `%0`.
fn backward() -> Graph {
    parse(
        "graph @g {
  %0 = input {name=x} : f32[2]
  %1 = scale %0 {factor=2.0} : f32[2]
  %2 = scale %0 {factor=4.0} : f32[2] of %1
  return %1 as \"y\"
  return %2 as \"z\"
}",
    )
    .unwrap()
}

#[test]
fn a_replaced_forward_node_is_named_no_more() {
    let mut graph = backward();
    let (x, old) = (value(&graph, 0), value(&graph, 1));
    let mut patch = Patch::new();
    let new = patch.add(&graph, old.node, Scale { factor: 8.0 }, &[x.into()]);
    patch.replace(old, new.unwrap());
    patch.apply(&mut graph).unwrap();
    verify(&graph).unwrap();
    let lines = body(&graph);
    assert_eq!(lines[2], "%2 = scale %0 {factor=4.0} : f32[2] of %3");
    assert_eq!(lines[3], "%3 = scale %0 {factor=8.0} : f32[2]");
}

#[test]
fn a_forward_node_that_its_replacement_reads_is_still_named() {
    let mut graph = backward();
    let old = value(&graph, 1);
    let mut patch = Patch::new();
    let new = patch.add(&graph, old.node, Scale { factor: 8.0 }, &[old.into()]);
    patch.replace(old, new.unwrap());
    patch.apply(&mut graph).unwrap();
    assert_eq!(graph.node(node(&graph, 2)).forward, Some(old.node));
}

#[test]
fn what_replaces_a_backward_node_is_backward_and_what_replaces_a_named_one_forward() {
    let mut graph = backward();
    let [x, forward, old] = [0, 1, 2].map(|position| value(&graph, position));
    let mut patch = Patch::new();
    let new = patch.add(&graph, old.node, Scale { factor: 8.0 }, &[x.into()]);
    patch.replace(old, new.unwrap());
    patch.remove(old.node);
    patch.apply(&mut graph).unwrap();
    let new = value(&graph, 2);
    assert_eq!(graph.node(new.node).forward, Some(forward.node));
    let mut patch = Patch::new();
    patch.replace(forward, new);
    patch.remove(forward.node);
    patch.apply(&mut graph).unwrap();
    verify(&graph).unwrap();
    assert_eq!(graph.node(new.node).forward, None);
}

#[test]
fn compaction_renames_forward_nodes() {
    let mut graph = backward();
    let [x, forward] = [0, 1].map(|position| value(&graph, position));
    let mut patch = Patch::new();
    let op = Scale { factor: 8.0 };
    let between = patch.add(&graph, x.node, op, &[x.into()]).unwrap();
    let op = Scale { factor: 0.25 };
    let new = patch.add(&graph, x.node, op, &[between]).unwrap();
    patch.replace(forward, new);
    patch.remove(forward.node);
    patch.apply(&mut graph).unwrap();
    let compact = graph.compacted();
    assert_eq!(compact.to_string(), graph.to_string());
    assert_ne!(node(&compact, 3), node(&graph, 3));
    assert_eq!(
        compact.node(node(&compact, 1)).forward,
        Some(node(&compact, 3))
    );
}

#[test]
fn a_dropped_output_needs_its_node_no_more() {
    let mut graph = graph();
    let z = value(&graph, 2);
    let mut patch = Patch::new();
    let one = Scale { factor: 1.0 };
    let new = patch.add(&graph, z.node, one, &[z.into()]).unwrap();
    patch.drop_output("z");
    patch.add_output("w", new);
    patch.apply(&mut graph).unwrap();
    assert_eq!(
        body(&graph)[5..7],
        ["return %3 as \"y\"", "return %4 as \"w\""]
    );
    let mut patch = Patch::new();
    patch.drop_output("w");
    patch.remove(graph.outputs()[1].value.node);
    patch.apply(&mut graph).unwrap();
    assert_eq!(graph.outputs().len(), 1);
}
