//! A run allocates nothing on the heap once the memory of the first is there.
//!
//! A test binary of its own, since it counts every allocation of the process.

use std::path::Path;
use std::time::Duration;

use lxpod_backends::cpu::{Cpu, CpuOptions, PackedWeights};
use lxpod_backends::{Executable, Feed, Outputs, SourceError};
use lxpod_ir::front::{AnswerLoss, Task};
use lxpod_ir::ops::Op;
use lxpod_ir::random::{random_extents, random_feeds};
use lxpod_ir::{Extents, Graph, Target};
use lxpod_passes::{CompileOptions, compile};
use lxpod_runtime::{Model, Samples, read_tensors};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Random inputs of a graph at these extents.
fn feed(graph: &Graph, extents: Extents, seed: u64) -> Feed {
    let feeds = random_feeds(graph, &extents, seed);
    let inputs = graph.nodes().filter_map(|id| match &graph.node(id).op {
        op @ Op::Input(input) => {
            let tensor = feeds.feed(op, &graph.node(id).types[0]);
            Some((input.name.clone(), tensor.expect("a value for each input")))
        }
        _ => None,
    });
    let inputs = inputs.collect();
    Feed { extents, inputs }
}

/// Waits for the end of the threads that packed the weights: they allocate on their way out, later than the pool they were in. Others
/// are the test's own, its harness's and the second worker's.
fn wait_for_loaders() {
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .expect("the threads of a process")
            .count()
    };
    for _ in 0..10_000 {
        if threads() <= 3 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} threads after loading", threads());
}

#[test]
fn a_run_allocates_nothing_after_the_first() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pretrain_all");
    let model = Model::open(folder, 0).expect("a model");
    let path = Path::new(folder).join("inputs.safetensors");
    let tensors = read_tensors(&path).expect("inputs");
    let samples = Samples::from_tensors(&tensors, &path, &model.config, Task::Pretraining);
    let options = samples
        .expect("samples")
        .model_options(Task::Pretraining, AnswerLoss::CrossEntropy);
    let target = Target::named("pod16").expect("built in");
    let mut options = CompileOptions::new(options, target);
    options.stages = Some(4);
    let (plan, _) = compile(&model.config, &model.name, &options, &mut |_, _| {}).expect("a plan");
    let graph = plan.graph.clone();
    let fetch = |_: &str, rows: std::ops::Range<usize>, out: &mut [f32]| {
        let values = (rows.start..).map(|at| ((at * 37) % 19) as f32 * 0.01 - 0.09);
        out.iter_mut()
            .zip(values)
            .for_each(|(out, value)| *out = value);
        Ok::<(), SourceError>(())
    };
    let cpu_options = CpuOptions {
        threads: 2,
        guard: false,
    };
    let packed = PackedWeights::default();
    let mut cpu = Cpu::load(plan, &fetch, &packed, cpu_options).expect("it loads");
    let full = Extents::full(&graph.spaces);
    let shorter = random_extents(&graph.spaces, 3);
    let feeds = [feed(&graph, full, 1), feed(&graph, shorter, 2)];
    let mut outputs: Vec<Outputs> = Vec::new();
    cpu.run(&feeds, &mut outputs).expect("it runs");
    let first = outputs.clone();

    wait_for_loaders();
    let _profiler = dhat::Profiler::builder().testing().build();
    cpu.run(&feeds, &mut outputs).expect("it runs");
    let stats = dhat::HeapStats::get();
    assert_eq!(stats.total_blocks, 0, "{} bytes", stats.total_bytes);
    assert_eq!(outputs, first);
}
