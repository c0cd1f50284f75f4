//! Training graphs: how merged and how precise gradients are, what is forward, what is computed again.

mod support;

use lxpod_ir::ops::Op;
use lxpod_ir::text::parse;
use lxpod_ir::{DType, Graph, NodeId, verify};
use lxpod_passes::{
    Manager, Mode, Options, PIPELINE, Pass, Phase, Precision, Recompute, TRAINING, find, phases,
};
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
fn layers_are_chosen_by_their_bits_and_named_by_the_chain() {
    let graph = layers();
    let target = lxpod_ir::Target::named("pod16").unwrap();
    let cost = lxpod_passes::cost::model(&target);
    let states = std::collections::BTreeMap::from([("a".to_owned(), 1000)]);
    let chain = lxpod_passes::recompute::chain(&graph, cost.as_ref(), &states);
    let world = World::new(&graph, 3);
    let plain = world.run(&graph);
    // 8 rows of 4 for each of two values of the first layer, 8 rows of 3 for each of the second's
    let (wide, narrow) = (8 * 4 * 4, 8 * 3 * 4);
    assert_eq!(chain[0].resident, 4 * 4 * 4 + 1000);
    let bytes = |layer: &lxpod_passes::solve::chain::Layer| (layer.kept, layer.border);
    assert_eq!(bytes(&chain[0]), (2 * wide, wide));
    assert_eq!(bytes(&chain[1]), (2 * narrow, 0));
    assert!(
        chain[..2]
            .iter()
            .all(|layer| 0 < layer.again && layer.again < layer.cycles)
    );
    let first = ["m.layer.0.dense"];
    let second = ["m.layer.1", "m.layer.1.dense"];
    for (chosen, scopes) in [(0, &[][..]), (1, &first[..]), (2, &second[..])] {
        let after = recomputed(Recompute::Layers { chosen });
        assert_eq!(again(&after), scopes);
        support::same_bits(&plain, &world.run(&after), "some layers");
    }
    assert_eq!(
        again(&recomputed(Recompute::Layers { chosen: u64::MAX })).len(),
        3
    );
    for none in [Recompute::None, Recompute::Auto] {
        assert!(again(&recomputed(none)).is_empty());
    }
}

#[test]
fn training_differentiates_the_pipeline_without_fusion() {
    let names = |passes: &[&Pass]| passes.iter().map(|pass| pass.name).collect::<Vec<_>>();
    let mut forward = names(PIPELINE);
    forward.retain(|name| !name.starts_with("fuse-"));
    let training = names(TRAINING);
    let (before, after) = training.split_at(forward.len());
    assert_eq!(before, forward);
    assert_eq!(after, ["autodiff", "canonicalise", "cse", "dce"]);
}

/// A graph whose three linears of the same rows merge, in mixed precision.
fn merged() -> Graph {
    let mut graph = parse(
        "graph @merged {
  rows sample = 2
  rows text = 8 by sample, 4 each
  %0 = input {name=ids} : i32[text:8]
  %1 = param {value=table} : f32[5,4]
  %2 = gather_rows %1, %0 : f32[text:8,4]
  %3 = param {value=q} : f32[4,4]
  %4 = param {value=k} : f32[4,4]
  %5 = param {value=v} : f32[4,4]
  %6 = linear %2, %3 : f32[text:8,4]
  %7 = linear %2, %4 : f32[text:8,4]
  %8 = linear %2, %5 : f32[text:8,4]
  %9 = input {name=mask} : f32[text:8]
  %10 = attention %6, %7, %8, %9 {heads=2, scale=0.5} : f32[text:8,4]
  %11 = param {value=out} : f32[5,4]
  %12 = linear %10, %11 : f32[text:8,5]
  %13 = input {name=labels} : i32[text:8]
  %14 = cross_entropy %12, %13 {reduction=mean} : f32[]
  return %14 as \"loss\"
}",
    )
    .unwrap();
    let options = Options {
        mode: Mode::Training,
        ..Options::default()
    };
    Manager::new(options).run(TRAINING, &mut graph).unwrap();
    graph
}

#[test]
fn merged_linears_have_one_gradient_that_nothing_adds_up() {
    let graph = merged();
    let names: Vec<&str> = graph.outputs().iter().map(|o| &*o.name).collect();
    assert_eq!(
        names,
        ["loss", "grad:concat(q, k, v)", "grad:out", "grad:table"]
    );
    let count = |name: &str| {
        let ops = graph.nodes().map(|id| graph.node(id).op.name());
        ops.filter(|op| *op == name).count()
    };
    assert_eq!([count("zeros"), count("add"), count("concat")], [0, 0, 1]);
    assert_eq!(count("weight_grad"), 2);
}

#[test]
fn cotangents_are_stored_as_values_are_and_gradients_in_f32() {
    let graph = merged();
    let mut half = 0;
    for id in graph.nodes() {
        let node = graph.node(id);
        if node.forward.is_some() {
            let expected = match node.types[0].rows {
                Some(_) if node.op.name() == "cross_entropy_grad" => DType::F32,
                Some(_) => DType::F16,
                None => DType::F32,
            };
            assert_eq!(node.types[0].dtype, expected, "{}", node.op.name());
            half += usize::from(expected == DType::F16);
        }
    }
    assert_eq!(half, 4);
}

#[test]
fn no_scale_moves_into_a_parameter_of_a_training_graph() {
    let graph = merged();
    let scales = graph.nodes().filter_map(|id| match &graph.node(id).op {
        Op::Attention(attention) => Some(attention.scale),
        _ => None,
    });
    assert_eq!(scales.collect::<Vec<_>>(), [0.5]);
}
