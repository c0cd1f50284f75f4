//! The passes on the shape of LXMERT: what falls out of general laws.

mod support;

use lxpod_ir::DType;
use lxpod_ir::ops::Op;
use lxpod_passes::{Options, Precision, optimise};
use support::lxmert::{Layers, build};
use support::{World, binding, count, exact, named, output, same_bits, ty};

const SMALL: Layers = Layers {
    language: 2,
    vision: 1,
    cross: 2,
};

fn optimised(layers: Layers) -> (lxpod_ir::Graph, lxpod_ir::Graph) {
    let before = build(layers);
    let mut after = before.clone();
    let options = Options {
        precision: Precision::Fp32,
        ..Options::default()
    };
    optimise(&mut after, &options).unwrap_or_else(|error| panic!("{error}"));
    for seed in 0..3 {
        let world = World::new(&before, seed);
        same_bits(&world.run(&before), &world.run(&after), "lxmert");
    }
    (before, after)
}

#[test]
fn every_attention_projects_once() {
    let (before, after) = optimised(SMALL);
    // 2 visual, 3 towers of 6, 2 cross layers of 2·4 + 2·6, 1 pooler, 2 of the answer
    assert_eq!(count(&before, "linear"), 2 + 3 * 6 + 2 * 20 + 3);
    // a tower layer has QKV, dense and two of the FFN; a whole cross layer has QKV and dense over
    // both streams and a tower layer for each; of the last one, Q, KV and dense, then Q, KV, dense
    // and the FFN are left
    assert_eq!(
        count(&after, "linear"),
        2 + 3 * 4 + (2 + 2 * 4) + (3 + 5) + 3
    );
    assert_eq!(count(&after, "attention"), 3 + 4 + 2);
    // the sum of the visual embedding's two norms
    assert_eq!(count(&after, "add"), 1);
    assert_eq!(count(&after, "scale") + count(&after, "activate"), 0);
}

#[test]
fn the_shared_cross_attention_is_one_tall_and_wide_product() {
    let (_, after) = optimised(SMALL);
    let tall: Vec<_> = named(&after, "linear")
        .into_iter()
        .filter(|&id| ty(&after, id).contains("text+box"))
        .collect();
    assert_eq!(tall.len(), 2);
    assert_eq!(ty(&after, tall[0]), "f32[text+box:21,24]");
    assert_eq!(
        binding(&after, tall[0], 1),
        "concat(cross.0.visual_attention.key.weight, cross.0.visual_attention.value.weight, \
         scale(0.5, cross.0.visual_attention.query.weight))"
    );
    assert_eq!(
        binding(&after, tall[1], 1),
        "cross.0.visual_attention.output.dense.weight"
    );
    assert_eq!(count(&after, "concat"), 2);
}

#[test]
fn the_last_layer_computes_what_the_answer_reads() {
    let (_, after) = optimised(SMALL);
    let mut last: Vec<String> = Vec::new();
    for id in named(&after, "linear") {
        let weight = binding(&after, id, 1);
        if weight.contains("cross.1") {
            last.push(format!("{} {weight}", ty(&after, id)));
        }
    }
    let p = |name: &str| format!("cross.1.{name}.weight");
    assert_eq!(
        last,
        [
            format!(
                "f32[box:9,16] concat({}, {})",
                p("visual_attention.key"),
                p("visual_attention.value")
            ),
            format!("f32[text:12,8] scale(0.5, {})", p("visual_attention.query")),
            format!("f32[text:12,8] {}", p("visual_attention.output.dense")),
            format!(
                "f32[text:12,16] concat({}, {})",
                p("lang.attention.key"),
                p("lang.attention.value")
            ),
            format!("f32[sample:3,8] scale(0.5, {})", p("lang.attention.query")),
            format!("f32[sample:3,8] {}", p("lang.attention.output.dense")),
            format!("f32[sample:3,16] {}", p("lang.inter")),
            format!("f32[sample:3,8] {}", p("lang.output.dense")),
        ]
    );
    assert_eq!(count(&after, "gather_rows"), 2);
}

#[test]
fn factors_end_up_in_parameters() {
    let after = exact(&build(SMALL), "canonicalise,cse,fold,dce");
    assert_eq!(count(&after, "scale"), 0);
    for id in named(&after, "attention") {
        assert!(matches!(&after.node(id).op, Op::Attention(op) if op.scale == 1.0));
    }
    let halved = named(&after, "layer_norm")
        .into_iter()
        .filter(|&id| binding(&after, id, 1).starts_with("scale(0.5, "));
    assert_eq!(halved.count(), 2);
}

#[test]
fn mixed_precision_stores_matrices_in_f16_and_norms_and_the_score_in_f32() {
    let mut graph = build(SMALL);
    optimise(&mut graph, &Options::default()).unwrap();
    for id in graph.nodes() {
        let value = graph.value(id);
        let ty = graph.ty(value);
        let expected = match &graph.node(id).op {
            _ if !ty.dtype.is_float() || id == output(&graph, 0) => ty.dtype,
            Op::Input(_) | Op::LayerNorm(_) => DType::F32,
            Op::GatherRows(_) | Op::Concat(_) | Op::Slice(_) | Op::Part(_) => {
                graph.ty(graph.inputs(id)[0]).dtype
            }
            _ if ty.shape.len() < 2 => DType::F32,
            _ => DType::F16,
        };
        assert_eq!(ty.dtype, expected, "{}", graph.node(id).op.name());
    }
    assert_eq!(ty(&graph, output(&graph, 0)), "f32[sample:3,5]");
    let world = World::new(&build(SMALL), 1);
    let (exact, mixed) = (world.run(&build(SMALL)), world.run(&graph));
    for (a, b) in exact[0].reals().iter().zip(mixed[0].reals()) {
        assert!((a - b).abs() < 0.05, "{a} became {b}");
    }
}

#[test]
fn without_cross_layers_the_vision_tower_is_dead() {
    let (_, after) = optimised(Layers { cross: 0, ..SMALL });
    let inputs: Vec<_> = named(&after, "input");
    assert_eq!(inputs.len(), 3);
}

#[test]
fn optimising_twice_is_optimising_once() {
    let (_, mut twice) = optimised(SMALL);
    let options = Options {
        precision: Precision::Fp32,
        ..Options::default()
    };
    let report = optimise(&mut twice, &options).unwrap();
    assert_eq!(report.patches(), 0);
}
