//! DOT output.

use lxpod_ir::random::random_placed_graph;
use lxpod_ir::{dot, text::parse};

#[test]
fn a_small_graph() {
    let graph = parse(
        "graph @ffn {
  rows sample = 2
  %x = input {name=hidden} : f32[sample:2,4] in \"layer\"
  %w = param {value=\"dense.weight\"} : f32[8,4] in \"layer.dense\"
  %y = linear %x, %w {activation=gelu} : f32[sample:2,8] in \"layer.dense\"
  return %y as \"y\"
}",
    )
    .unwrap();
    assert_eq!(
        dot(&graph),
        r#"digraph "ffn" {
  node [shape=box, style=rounded, fontname=monospace];
  edge [fontname=monospace];
  subgraph cluster_0 {
    label="layer";
    n0 [label="%0 input {name=hidden}\nf32[sample:2,4]", style=filled, fillcolor=gray85];
  }
  subgraph cluster_1 {
    label="layer.dense";
    n1 [label="%1 param {value=\"dense.weight\"}\nf32[8,4]", style=filled, fillcolor=gray95];
    n2 [label="%2 linear {activation=gelu}\nf32[sample:2,8]"];
  }
  n0 -> n2;
  n1 -> n2;
  out0 [label="y", shape=oval, style=bold];
  n2 -> out0;
}
"#
    );
}

#[test]
fn placed_graphs_are_clustered_by_stage() {
    let text = dot(&random_placed_graph(1, 30, 3));
    for stage in [
        "label=\"stage 0\"",
        "label=\"stage 1\"",
        "label=\"stage 2\"",
    ] {
        assert_eq!(text.matches(stage).count(), 1, "{text}");
    }
    assert_eq!(text, dot(&random_placed_graph(1, 30, 3)));
}
