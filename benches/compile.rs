//! The compiler on LXMERT at base size for 16 tiles: all of it, and its two solvers alone.
//!
//! `cargo bench --bench compile -- --quick`

#![allow(
    missing_docs,
    reason = "criterion's macros make items without documentation"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use lxpod_ir::front::{LxmertConfig, ModelOptions, build};
use lxpod_ir::{Graph, Target};
use lxpod_passes::partition::{Pipeline, partition};
use lxpod_passes::plan::{Work, lower};
use lxpod_passes::schedule::Schedule;
use lxpod_passes::{CompileOptions, Options, compile, cost, optimise};

const STAGES: usize = 16;

fn target() -> Target {
    Target::named("pod16").expect("a built-in target")
}

/// The graph that partition gets.
fn optimised() -> Graph {
    let built = build(&LxmertConfig::base(), &ModelOptions::default()).expect("the base model");
    let mut graph = built.graph;
    optimise(&mut graph, &Options::default()).expect("passes keep every invariant");
    graph
}

fn whole(c: &mut Criterion) {
    let config = LxmertConfig::base();
    let options = CompileOptions::new(ModelOptions::default(), target());
    c.bench_function("compile/lxmert-base pod16", |b| {
        b.iter(|| compile(&config, "lxmert-base", &options, &mut |_, _| {}).expect("a plan"));
    });
}

fn parts(c: &mut Criterion) {
    let target = target();
    let graph = optimised();
    let schedule = Schedule::inference(STAGES);
    let states = BTreeMap::new();
    // The model keeps the products it has planned, so that a fresh one belongs to what is measured.
    let split = |graph: &mut Graph| {
        let cost = cost::model(&target);
        let pipeline = Pipeline {
            target: &target,
            cost: cost.as_ref(),
            schedule: &schedule,
            accumulation: 1,
            states: &states,
            pinned: None,
            branches: false,
        };
        partition(graph, &pipeline).expect("a split")
    };
    c.bench_function("partition/lxmert-base pod16", |b| {
        let run = |mut graph: Graph| split(&mut graph);
        b.iter_batched(|| graph.clone(), run, BatchSize::LargeInput);
    });
    let cost = cost::model(&target);
    let mut placed = graph.clone();
    split(&mut placed);
    let placed = placed.compacted();
    let work = Work {
        graph: &placed,
        update: None,
        schedule: &schedule,
        accumulation: 1,
        group: 1,
    };
    c.bench_function("memory/lxmert-base pod16", |b| {
        b.iter(|| lower(work, &target, cost.as_ref()).expect("programs"));
    });
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! { name = benches; config = settings(); targets = whole, parts }
criterion_main!(benches);
