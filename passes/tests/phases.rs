//! Training graphs: what is forward, what is computed again, how much is kept.

mod support;

use lxpod_ir::text::parse;
use lxpod_ir::{Graph, NodeId, verify};
use lxpod_passes::{Manager, Options, Phase, Precision, Recompute, find, phases};
use support::World;

/// Two layers of a linear and an activation: the first with wide rows, the second with narrow ones.
fn layers() -> Graph {
    let text = include_str!("../../tests/filetests/recompute/inside_of_layers.lx");
    parse(text.split("\n; expect\n").next().unwrap()).unwrap()
}

fn recomputed(recompute: Recompute) -> Graph {
    let mut graph = layers();
    let options = Options {
        precision: Precision::Fp32,
        recompute,
        ..Options::default()
    };
    let pass = find("recompute").unwrap();
    Manager::new(options).run(&[pass], &mut graph).unwrap();
    verify(&graph).unwrap();
    graph
}

/// The scopes of what is computed again.
fn again(graph: &Graph) -> Vec<String> {
    let copies = graph.nodes().map(|id| graph.node(id)).filter(|node| {
        let same = |forward: NodeId| graph.node(forward).op == node.op;
        node.forward.is_some_and(same)
    });
    let mut scopes: Vec<String> = copies.map(|node| node.scope.to_string()).collect();
    scopes.sort();
    scopes
}

#[test]
fn a_node_is_forward_if_a_score_depends_on_it() {
    let mut graph = layers();
    let forward = |graph: &Graph| {
        let phases = phases(graph);
        let found = graph
            .nodes()
            .filter(|id| phases[id.index()] == Phase::Forward);
        found.map(NodeId::index).collect::<Vec<_>>()
    };
    assert_eq!(forward(&graph), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    graph.retain_outputs(|output| output.gradient_of().is_some());
    assert!(forward(&graph).is_empty());
    let update = "graph @update {
  %0 = param {value=a} : f32[4]
  %1 = add %0, %0 : f32[4]
  return %1 as \"param:a\"
  return %1 as \"norm\"
}";
    let update = parse(update).unwrap();
    assert_eq!(phases(&update), [Phase::Update; 2]);
}

#[test]
fn recomputation_changes_no_bit_and_keeps_borders() {
    let plain = layers();
    let after = recomputed(Recompute::Layer);
    let world = World::new(&plain, 3);
    support::same_bits(&world.run(&plain), &world.run(&after), "recompute");
    assert_eq!(
        again(&after),
        ["m.layer.0.dense", "m.layer.1", "m.layer.1.dense"]
    );
    let phases = phases(&after);
    for id in after
        .nodes()
        .filter(|id| phases[id.index()] == Phase::Backward)
    {
        for value in after.inputs(id) {
            let node = after.node(value.node);
            let kept = phases[value.node.index()] == Phase::Forward && !node.op.is_leaf();
            assert!(
                !kept || &*node.scope == "m.layer.0",
                "{} is kept",
                node.op.name()
            );
        }
    }
}

#[test]
fn a_budget_chooses_the_layers_that_save_most() {
    // 8 rows of 4 for each of two values of the first layer, 8 rows of 3 for each of the second's
    let all = 2 * 8 * 4 * 4 + 2 * 8 * 3 * 4;
    let under = |bytes: u64| again(&recomputed(Recompute::Auto { bytes }));
    assert!(under(all).is_empty());
    // an activation costs more for each byte than a small linear
    let first = ["m.layer.0.dense"];
    assert_eq!(under(all - 1), first);
    assert_eq!(under(all - 8 * 4 * 4), first);
    assert_eq!(under(all - 8 * 4 * 4 - 1).len(), 3);
    assert!(again(&recomputed(Recompute::None)).is_empty());
}
