//! One encoder layer, and the whole of LXMERT at base size, on the CPU backend with one worker per
//! CPU: one sample of 20 tokens and 36 boxes, seeded weights.
//!
//! `cargo bench --bench model -- --quick`; the f32 weights of the whole model take 0.9 GB.

#![allow(
    missing_docs,
    reason = "criterion's macros make items without documentation"
)]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use lxpod_backends::cpu::{Cpu, CpuOptions, PackedWeights};
use lxpod_backends::{Executable, Feed, SourceError};
use lxpod_ir::front::{AnswerLoss, Task};
use lxpod_ir::ops::Op;
use lxpod_ir::{Binding, Extents, Graph, Target, Tensor, text};
use lxpod_passes::plan::{Plan, Provenance};
use lxpod_passes::schedule::Schedule;
use lxpod_passes::{
    CompileOptions, Group, Options, Placement, Precision, compile, optimise, plan_graph,
};
use lxpod_runtime::tensors::{HostData, HostTensor};
use lxpod_runtime::{BUILT_IN, Model, Samples, Session, SessionOptions};

use support::{Random, settings};

const PRECISIONS: [Precision; 2] = [Precision::Mixed, Precision::Fp32];
const TOKENS: usize = 20;
const BOXES: usize = 36;

/// A plan of a graph that has no configuration, on one tile.
fn plan_of(mut graph: Graph, precision: Precision) -> Plan {
    let expected = parameters(&graph);
    optimise(
        &mut graph,
        &Options {
            precision,
            ..Options::default()
        },
    )
    .expect("passes keep every invariant");
    let target = Target::named("cpu").expect("a built-in target");
    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: graph.name.clone(),
        config_hash: String::new(),
        config: serde_json::Value::Null,
        options: serde_json::Value::Null,
        expected,
    };
    let placement = Placement {
        target: &target,
        replicas: 1,
        schedule: Schedule::inference(1),
        accumulation: 1,
        group: Group::Exactly(1),
        pinned: None,
        branches: false,
    };
    let work = (graph, None);
    plan_graph(work, provenance, placement, &mut Vec::new(), &mut |_, _| {}).expect("it fits")
}

/// The checkpoint tensors a graph reads, which it must read whole.
fn parameters(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let nodes = graph.nodes().map(|id| graph.node(id));
    nodes
        .filter_map(|node| match &node.op {
            Op::Param(param) => match &param.value {
                Binding::Tensor(name) => Some((name.clone(), node.types[0].shape.to_vec())),
                other => panic!("{other} is more than a tensor"),
            },
            _ => None,
        })
        .collect()
}

fn layer(c: &mut Criterion) {
    for precision in PRECISIONS {
        let graph = text::parse(include_str!("support/layer.lx")).expect("it is well-formed");
        let plan = plan_of(graph, precision);
        let extents = Extents::full(&plan.graph.spaces);
        let fetch = |name: &str, rows: Range<usize>, out: &mut [f32]| -> Result<(), SourceError> {
            let seed = (name.len() * 4096 + rows.start) as u64;
            let values = Random::new(seed).reals(out.len(), 0.05);
            out.copy_from_slice(&values);
            Ok(())
        };
        let mut cpu = Cpu::load(
            plan,
            &fetch,
            &PackedWeights::default(),
            CpuOptions {
                threads: 0,
                guard: false,
            },
        )
        .expect("it loads");
        let x = Random::new(7).reals(TOKENS * 768, 1.0);
        let inputs = BTreeMap::from([
            ("x".to_owned(), Tensor::real([TOKENS, 768], x)),
            ("mask".to_owned(), Tensor::real([TOKENS], vec![1.0; TOKENS])),
        ]);
        let feeds = [Feed { extents, inputs }];
        c.bench_function(&format!("layer T={TOKENS} {precision}"), |b| {
            let mut outputs = Vec::new();
            b.iter(|| cpu.run(&feeds, &mut outputs).expect("it runs"));
        });
    }
}

/// One question about one image.
fn samples(model: &Model) -> Samples {
    let mut random = Random::new(11);
    let config = &model.config;
    let ids = random.indices(TOKENS, config.vocab_size);
    let tensors = [
        ("input_ids", vec![1, TOKENS], HostData::I32(ids)),
        (
            "visual_feats",
            vec![1, BOXES, config.visual_feat_dim],
            HostData::F32(random.reals(BOXES * config.visual_feat_dim, 1.0)),
        ),
        (
            "visual_pos",
            vec![1, BOXES, config.visual_pos_dim],
            HostData::F32(random.reals(BOXES * config.visual_pos_dim, 1.0)),
        ),
    ];
    let tensor = |(name, shape, data): (&str, Vec<usize>, HostData)| {
        let tensor = HostTensor::new(name, shape, data).expect("the shape fits the data");
        (name.to_owned(), tensor)
    };
    let tensors = tensors.into_iter().map(tensor).collect();
    Samples::from_tensors(&tensors, Path::new("(memory)"), config, Task::Qa).expect("valid samples")
}

fn forward(c: &mut Criterion) {
    let model = Model::open(BUILT_IN, 0).expect("it is built in");
    let samples = samples(&model);
    for precision in PRECISIONS {
        for stages in [1, 16] {
            let options = samples.model_options(Task::Qa, AnswerLoss::CrossEntropy);
            let target = Target::named("pod16").expect("a built-in target");
            let mut options = CompileOptions::new(options, target);
            options.stages = Some(stages);
            options.precision = precision;
            if stages == 1 && precision == Precision::Fp32 {
                // The weights exceed the memory of one Mk2; one tile as large as this host has room.
                options.target = Target::named("cpu").expect("a built-in target");
            }
            let (plan, _) =
                compile(&model.config, &model.name, &options, &mut |_, _| {}).expect("a plan");
            let (weights, _) = model.weights(&plan).expect("seeded weights");
            let mut session =
                Session::new(plan, weights.as_ref(), SessionOptions::default()).expect("it loads");
            let tiles = if stages == 1 { "tile" } else { "tiles" };
            c.bench_function(
                &format!("lxmert-base B=1 T={TOKENS} {stages} {tiles} {precision}"),
                |b| {
                    b.iter(|| session.run(&samples).expect("it runs"));
                },
            );
        }
    }
}

criterion_group! { name = benches; config = settings(); targets = layer, forward }
criterion_main!(benches);
