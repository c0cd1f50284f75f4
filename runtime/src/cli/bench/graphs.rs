//! Any graph on the executor: planned for one tile of this machine, with random inputs and weights.

use std::ops::Range;

use lxpod_backends::cpu::{Cpu, CpuOptions, PackedWeights};
use lxpod_backends::reference::Reference;
use lxpod_backends::{Executable, Feed, Outputs, SourceError, StepTime};
use lxpod_ir::ops::{Op, Param};
use lxpod_ir::random::{Rng, random_feeds};
use lxpod_ir::{Binding, DType, Extents, Graph, Patch, Target, Tensor, Wire};
use lxpod_passes::plan::{Plan, Provenance};
use lxpod_passes::schedule::Schedule;
use lxpod_passes::{Group, Placement, plan_graph};
use serde_json::Value;

use crate::cli::error::{CliError, Result};

const SEED: u64 = 1;
/// The most bytes of all values of a graph together.
const MOST_BYTES: usize = 6 << 30;

/// A graph ready to run at full extents.
pub(super) struct Runner {
    graph: Graph,
    executable: Box<dyn Executable>,
    feed: Feed,
    outputs: Vec<Outputs>,
}

/// What runs a graph.
#[derive(Clone, Copy, Debug)]
pub(super) enum On {
    /// The CPU backend, on that many threads.
    Cpu(usize),
    /// The ops' reference semantics.
    Reference,
}

impl Runner {
    /// Plans and loads a verified graph.
    ///
    /// # Errors
    /// The graph is split over stages, does not fit the machine, or has an op that a plan or the backend does not.
    pub(super) fn new(graph: &Graph, on: On) -> Result<Runner> {
        let plan = plan(graph)?;
        let graph = plan.graph.clone();
        let executable: Box<dyn Executable> = match on {
            On::Cpu(threads) => {
                let options = CpuOptions {
                    threads,
                    guard: false,
                };
                Box::new(Cpu::load(
                    plan,
                    &weights,
                    &PackedWeights::default(),
                    options,
                )?)
            }
            On::Reference => {
                let expected = &plan.provenance.expected;
                Box::new(Reference::load(plan.graph, expected, &weights)?)
            }
        };
        Ok(Runner {
            feed: feed(&graph)?,
            graph,
            executable,
            outputs: Vec::new(),
        })
    }

    /// Runs the graph once.
    pub(super) fn run(&mut self) -> Result<()> {
        let feeds = std::slice::from_ref(&self.feed);
        Ok(self.executable.run(feeds, &mut self.outputs)?)
    }

    /// The time of every step in the last run.
    pub(super) fn step_times(&self) -> Vec<StepTime> {
        self.executable.step_times()
    }

    /// The graph as planned.
    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The extents it runs at.
    pub(super) fn extents(&self) -> &Extents {
        &self.feed.extents
    }

    /// Compares the last run's outputs with those of the reference's, which has some of them, perhaps only
    /// their first columns.
    ///
    /// # Errors
    /// A defect: an output differs by more than the tolerance of the coarsest dtype of the graph's values.
    pub(super) fn check(&self, reference: &Runner) -> Result<()> {
        let graph = &reference.graph;
        let types = graph.nodes().flat_map(|id| &graph.node(id).types);
        let allowed = types.map(|ty| tolerance(ty.dtype)).fold(0.0, f64::max);
        let expected = reference.outputs.iter().flatten();
        for (output, expected) in reference.graph.outputs().iter().zip(expected) {
            let got = self.outputs.iter().flatten();
            let mut named = self.graph.outputs().iter().zip(got);
            let found = named.find(|(other, _)| other.name == output.name);
            let Some((_, got)) = found else { continue };
            compare(got, expected, allowed).map_err(|problem| {
                CliError::Internal(format!("output `{}`: {problem}", output.name))
            })?;
        }
        Ok(())
    }
}

/// How much a kernel's result may differ from the reference's, as a share of the largest value of
/// the output: rounding of each stored value, and another order of summation.
pub(super) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / 128.0,
        DType::BF16 => 1.0 / 16.0,
        _ => 1e-4,
    }
}

/// Checks rows of `got` against rows of `expected`, as many columns as the latter has.
fn compare(got: &Tensor<f32>, expected: &Tensor<f32>, tolerance: f64) -> Result<(), String> {
    let (rows, width) = (expected.shape.rows(), expected.shape.row_elements());
    if got.shape.rows() != rows || got.shape.row_elements() < width || got.ints() != expected.ints()
    {
        return Err(format!(
            "is {}, the reference gives {}",
            got.shape, expected.shape
        ));
    }
    let largest = expected
        .reals()
        .iter()
        .fold(0.0f64, |most, &value| most.max(f64::from(value).abs()));
    let allowed = tolerance * largest.max(1.0);
    for row in 0..rows.min(expected.reals().len()) {
        for (column, (&got, &want)) in got.row(row).iter().zip(expected.row(row)).enumerate() {
            let error = (f64::from(got) - f64::from(want)).abs();
            let same = got == want || (got.is_nan() && want.is_nan());
            if !same && (error.is_nan() || error > allowed) {
                return Err(format!(
                    "row {row}, column {column} is {got}, the reference gives {want}; {allowed:.2e} is allowed"
                ));
            }
        }
    }
    Ok(())
}

/// A plan for one tile of the CPU target.
fn plan(graph: &Graph) -> Result<Plan> {
    let split = |op: &Op| matches!(op, Op::Transfer(_));
    if graph.nodes().any(|id| split(&graph.node(id).op)) {
        return Err(CliError::Usage(
            "the graph is split over stages by `transfer`; emit it with `lxpod compile MODEL --stages 1 --emit FILE.lx`"
                .to_owned(),
        ));
    }
    let types = graph.nodes().flat_map(|id| &graph.node(id).types);
    let bytes = types.fold(0usize, |sum, ty| sum.saturating_add(ty.bytes()));
    if bytes > MOST_BYTES {
        return Err(CliError::Usage(format!(
            "the graph's values take {bytes} bytes; at most {MOST_BYTES} are benched, so lower its sizes"
        )));
    }
    let mut graph = graph.clone();
    let expected = name_parameters(&mut graph).map_err(CliError::Internal)?;
    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: graph.name.clone(),
        config_hash: String::new(),
        config: Value::Null,
        options: Value::Null,
        expected,
    };
    let target = Target::named("cpu").map_err(CliError::Internal)?;
    let placement = Placement {
        target: &target,
        replicas: 1,
        schedule: Schedule::inference(1),
        accumulation: 1,
        group: Group::Exactly(1),
        pinned: None,
        branches: false,
    };
    Ok(plan_graph(
        (graph, None),
        provenance,
        placement,
        &mut Vec::new(),
        &mut |_, _| {},
    )?)
}

/// Makes each parameter a tensor of its own, so that its shape alone says what to read; returns their
/// names and shapes.
fn name_parameters(graph: &mut Graph) -> Result<Vec<(String, Vec<usize>)>, String> {
    let mut patch = Patch::new();
    let mut expected = Vec::new();
    for id in graph.nodes() {
        let Op::Param(_) = &graph.node(id).op else {
            continue;
        };
        let name = format!("parameter {}", expected.len());
        let ty = graph.node(id).types[0].clone();
        expected.push((name.clone(), ty.shape.to_vec()));
        let param = Param {
            value: Binding::Tensor(name),
        };
        let new: Wire = patch.add_typed(graph, id, param, &[], &[ty])?;
        patch.replace(graph.value(id), new);
        patch.remove(id);
    }
    if !expected.is_empty() {
        patch.apply(graph)?;
    }
    Ok(expected)
}

/// Random weights: a value depends on the tensor's name and the position, and rows have about the
/// length 1, so that activations neither grow nor vanish.
fn weights(name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), SourceError> {
    let base = Rng::keyed(SEED, name);
    let width = out.len() / rows.len().max(1);
    let scale = if width > 1 {
        (3.0 / width as f64).sqrt()
    } else {
        1.0
    };
    let first = rows.start * width;
    for (at, value) in out.iter_mut().enumerate() {
        *value = (base.at(first + at).unit() * scale) as f32;
    }
    Ok(())
}

/// Random inputs at full extents.
fn feed(graph: &Graph) -> Result<Feed> {
    let extents = Extents::full(&graph.spaces);
    let feeds = random_feeds(graph, &extents, SEED);
    let mut inputs = std::collections::BTreeMap::new();
    for id in graph.nodes() {
        let node = graph.node(id);
        if let Op::Input(input) = &node.op {
            let value = feeds.feed(&node.op, &node.types[0]);
            inputs.insert(input.name.clone(), value.map_err(CliError::Usage)?);
        }
    }
    Ok(Feed { extents, inputs })
}
