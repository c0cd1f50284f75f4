//! What to say of a plan that does not fit: where it misses, what takes the room, and which changes would fit.
//!
//! The plan is compiled once more for tiles that are just large enough, so that all of it can be shown. Every change
//! that is offered was compiled for the real target.

use std::cmp::Ordering;

use lxpod_backends::sim::Simulation;
use lxpod_ir::Value;
use lxpod_passes::plan::{Buffer, Category, Plan};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileError, CompileOptions, Precision, Recompute, compile};
use rayon::prelude::*;
use serde::Serialize;

use crate::model::Model;

/// Tensors that are named.
const LARGEST: usize = 5;
/// Changes that are offered.
const OFFERED: usize = 6;
/// Compilations for larger and larger tiles.
const MOST_GROWTHS: usize = 24;

/// A plan that does not fit its target, and what would.
#[derive(Clone, Debug, Serialize)]
pub struct OutOfMemory {
    /// The tile of the first replica that misses most.
    pub tile: usize,
    /// Bytes it needs, in the split that needs least where the search found one.
    pub needed: u64,
    /// Bytes it has.
    pub capacity: u64,
    /// The category that takes the most.
    pub category: &'static str,
    /// Bytes of each category, the largest first.
    pub categories: Vec<(&'static str, u64)>,
    /// The largest tensors of the tile, the largest first.
    pub largest: Vec<Tensor>,
    /// Changes that fit, the fastest first.
    pub changes: Vec<Change>,
    /// How many changes were compiled.
    pub tried: usize,
}

/// A tensor in a tile's memory.
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    /// What it is for.
    pub category: &'static str,
    /// The op that makes it, or the parameter or state it is.
    pub of: String,
    /// The path of the module.
    pub scope: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes of one slot.
    pub bytes: u64,
    /// Slots, for micro-batches that are alive at once.
    pub slots: u32,
}

/// Options with which the plan fits.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The options, as on the command line.
    pub options: String,
    /// Predicted time of a sample, as a multiple of what the plan would take on tiles that are large enough.
    pub time_per_sample: f64,
    /// Predicted time of a step, likewise; a step may have other samples than before.
    pub time_per_step: f64,
    /// Predicted samples a second.
    pub samples_per_second: f64,
    /// Bytes of the fullest tile.
    pub fullest: u64,
}

/// Explains why a plan does not fit; none if it does, or if tiles of any size would be too small.
pub fn explain(model: &Model, options: &CompileOptions) -> Option<OutOfMemory> {
    let plan = on_larger_tiles(model, options)?;
    let capacity = options.target.capacity();
    let totals = plan.tiles.iter().map(|tile| tile.memory.total);
    let (tile, needed) = totals
        .enumerate()
        .max_by_key(|&(tile, total)| (total, usize::MAX - tile))?;
    let memory = &plan.tiles[tile].memory;
    let mut categories = memory.executed().to_vec();
    categories.extend([("code", memory.code), ("reserved", memory.reserved)]);
    categories.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let category = categories.first().map_or("weights", |&(name, _)| name);
    let base = Speed::of(&plan);
    let (changes, tried) = changes(model, options, base);
    Some(OutOfMemory {
        tile,
        needed,
        capacity,
        category,
        categories,
        largest: largest(&plan, tile),
        changes,
        tried,
    })
}

/// The plan for tiles that are just large enough, or nearly.
fn on_larger_tiles(model: &Model, options: &CompileOptions) -> Option<Plan> {
    let mut larger = options.clone();
    for _ in 0..MOST_GROWTHS {
        let error = match compiled(model, &larger) {
            Ok(plan) => return Some(plan),
            Err(error) => error,
        };
        let needed = error.bytes_needed(&larger.target)?;
        let tile = &mut larger.target.tile;
        let least = tile.core_memory + tile.core_memory / 64 + 1;
        tile.core_memory = needed.div_ceil(tile.cores).max(least);
        larger.target.check().ok()?;
    }
    None
}

fn compiled(model: &Model, options: &CompileOptions) -> Result<Plan, CompileError> {
    compile(&model.config, &model.name, options, &mut |_, _| {}).map(|(plan, _)| plan)
}

/// Predicted times.
#[derive(Clone, Copy, Debug)]
struct Speed {
    seconds_per_sample: f64,
    step_seconds: f64,
}

impl Speed {
    /// Of a training step, or of inference with the pipeline always full.
    fn of(plan: &Plan) -> Speed {
        let spaces = lxpod_ir::front::RowSpaces::find(&plan.graph.spaces);
        let samples = spaces.map_or(1, |spaces| plan.graph.spaces.get(spaces.sample).capacity);
        let predicted = Simulation::new(plan, samples, plan.accumulation).predict();
        let rate = match plan.update {
            Some(_) => predicted.samples_per_second,
            None => predicted.steady_samples_per_second,
        };
        Speed {
            seconds_per_sample: 1.0 / rate.max(f64::MIN_POSITIVE),
            step_seconds: predicted.step_seconds,
        }
    }
}

/// The largest buffers of a tile.
fn largest(plan: &Plan, tile: usize) -> Vec<Tensor> {
    let mut buffers: Vec<&Buffer> = plan.tiles[tile].buffers.iter().collect();
    buffers.sort_by_key(|buffer| (std::cmp::Reverse(buffer.held()), buffer.offset));
    let tensor = |buffer: &&Buffer| {
        let graph = match &plan.update {
            Some(update) if buffer.update => update,
            _ => &plan.graph,
        };
        let id = graph.at(buffer.node)?;
        let node = graph.node(id);
        let output = u16::try_from(buffer.output).ok()?;
        let of = match &node.op {
            lxpod_ir::ops::Op::Param(param) => param.value.to_string(),
            lxpod_ir::ops::Op::State(state) => state.name.clone(),
            op => op.name().to_owned(),
        };
        Some(Tensor {
            category: name(buffer.category),
            of,
            scope: node.scope.to_string(),
            ty: graph.ty(Value { node: id, output }).display(&graph.spaces),
            bytes: buffer.bytes,
            slots: buffer.slots,
        })
    };
    buffers.iter().filter_map(tensor).take(LARGEST).collect()
}

/// A category's name in reports.
fn name(category: Category) -> &'static str {
    match category {
        Category::Weights => "weights",
        Category::Optimizer => "optimizer",
        Category::Accumulators => "accumulators",
        Category::HostIo => "host_io",
        Category::Transfer => "transfer",
        Category::Stash => "stash",
        Category::Activations => "activations",
    }
}

/// One way to need less: its options, from the smallest change to the largest.
type Way = Vec<(String, CompileOptions)>;

/// The changes that fit, the fastest first, and how many were compiled: each way alone as far as it takes, and only
/// if none is enough several together.
fn changes(model: &Model, options: &CompileOptions, base: Speed) -> (Vec<Change>, usize) {
    let single = WAYS.map(|way| way(options));
    let (mut found, mut tried) = first_that_fit(model, &single, base);
    let mut together: Vec<Way> = vec![vec![(String::new(), options.clone())]];
    for way in WAYS {
        if !found.is_empty() {
            break;
        }
        // What came before is taken to its end, and the next way step by step.
        let last = together.last().and_then(|way| way.last().cloned());
        let Some((flags, changed)) = last else { break };
        let joined = |(more, options)| (format!("{flags} {more}").trim().to_owned(), options);
        let next: Way = way(&changed).into_iter().map(joined).collect();
        if next.is_empty() {
            continue;
        }
        let first = flags.is_empty();
        together.push(next);
        if !first {
            let (more, count) = first_that_fit(model, &together[together.len() - 1..], base);
            found.extend(more);
            tried += count;
        }
    }
    let by_time = |a: &Change, b: &Change| {
        let order = a.time_per_sample.partial_cmp(&b.time_per_sample);
        order
            .unwrap_or(Ordering::Equal)
            .then_with(|| a.options.cmp(&b.options))
    };
    found.sort_by(by_time);
    found.truncate(OFFERED);
    (found, tried)
}

/// Of each way the smallest change that fits.
fn first_that_fit(model: &Model, ways: &[Way], base: Speed) -> (Vec<Change>, usize) {
    let attempt = |way: &Way| {
        let mut tried = 0;
        let fits = way.iter().find_map(|(flags, options)| {
            tried += 1;
            compiled(model, options).ok().map(|plan| (flags, plan))
        });
        (fits.map(|(flags, plan)| change(flags, &plan, base)), tried)
    };
    let results: Vec<(Option<Change>, usize)> = ways.par_iter().map(attempt).collect();
    let tried = results.iter().map(|(_, tried)| tried).sum();
    (
        results
            .into_iter()
            .filter_map(|(change, _)| change)
            .collect(),
        tried,
    )
}

fn change(flags: &str, plan: &Plan, base: Speed) -> Change {
    let speed = Speed::of(plan);
    Change {
        options: flags.to_owned(),
        time_per_sample: speed.seconds_per_sample / base.seconds_per_sample,
        time_per_step: speed.step_seconds / base.step_seconds,
        samples_per_second: 1.0 / speed.seconds_per_sample,
        fullest: plan
            .tiles
            .iter()
            .map(|tile| tile.memory.total)
            .max()
            .unwrap_or(0),
    }
}

/// Ways to need less memory, those first that cost the least.
const WAYS: [fn(&CompileOptions) -> Way; 10] = [
    automatic_placement,
    smaller_groups,
    mixed_precision,
    shared_states,
    early_backward,
    recomputation,
    more_stages,
    fewer_replicas,
    smaller_micro_batch,
    fewer_tokens,
];

/// A change of one thing.
fn changed(
    options: &CompileOptions,
    flags: impl Into<String>,
    apply: impl FnOnce(&mut CompileOptions),
) -> (String, CompileOptions) {
    let mut changed = options.clone();
    apply(&mut changed);
    (flags.into(), changed)
}

fn automatic_placement(options: &CompileOptions) -> Way {
    match options.pinned {
        Some(_) => vec![changed(options, "(placed by the compiler)", |o| {
            o.pinned = None
        })],
        None => Vec::new(),
    }
}

fn mixed_precision(options: &CompileOptions) -> Way {
    match options.precision {
        Precision::Fp32 => vec![changed(options, "--precision mixed", |o| {
            o.precision = Precision::Mixed;
        })],
        Precision::Mixed => Vec::new(),
    }
}

/// Fewer micro-batches at once have fewer activations.
fn smaller_groups(options: &CompileOptions) -> Way {
    let group = options
        .training
        .as_ref()
        .and_then(|training| training.group);
    let with = |group: usize| {
        changed(options, format!("--group {group}"), |o| {
            if let Some(training) = &mut o.training {
                training.group = Some(group);
            }
        })
    };
    halved(group.unwrap_or(1)).map(with).collect()
}

/// Replicas share out what only the update reads.
fn shared_states(options: &CompileOptions) -> Way {
    match &options.training {
        Some(training) if options.replicas > 1 && !training.replicated_tensor_sharding => {
            vec![changed(options, "--replicated-tensor-sharding", |o| {
                if let Some(training) = &mut o.training {
                    training.replicated_tensor_sharding = true;
                }
            })]
        }
        _ => Vec::new(),
    }
}

/// A schedule that begins the backward half early keeps fewer micro-batches.
fn early_backward(options: &CompileOptions) -> Way {
    match &options.training {
        Some(training) if training.rule == Rule::GPipe && training.accumulation > 1 => {
            vec![changed(options, "--schedule 1f1b", |o| {
                if let Some(training) = &mut o.training {
                    training.rule = Rule::OneFOneB;
                }
            })]
        }
        _ => Vec::new(),
    }
}

fn recomputation(options: &CompileOptions) -> Way {
    match &options.training {
        Some(training) if training.recompute == Recompute::None => {
            vec![changed(options, "--recompute layer", |o| {
                if let Some(training) = &mut o.training {
                    training.recompute = Recompute::Layer;
                }
            })]
        }
        _ => Vec::new(),
    }
}

fn more_stages(options: &CompileOptions) -> Way {
    let Ok(stages) = options.resolved_stages() else {
        return Vec::new();
    };
    let most = options.target.tiles / options.replicas;
    let larger = doubled(stages).take_while(|&more| more <= most);
    let with = |stages: usize| {
        changed(options, format!("--stages {stages}"), |o| {
            (o.stages, o.pinned) = (Some(stages), None);
        })
    };
    larger.map(with).collect()
}

/// The tiles of fewer replicas hold longer pipelines; a step then has fewer samples.
fn fewer_replicas(options: &CompileOptions) -> Way {
    let Ok(stages) = options.resolved_stages() else {
        return Vec::new();
    };
    let halves = halved(options.replicas);
    let with = |replicas: usize| {
        let stages = stages * (options.replicas / replicas);
        let flags = format!("--replicas {replicas} --stages {stages}");
        changed(options, flags, |o| {
            (o.replicas, o.stages, o.pinned) = (replicas, Some(stages), None);
        })
    };
    halves.map(with).collect()
}

fn smaller_micro_batch(options: &CompileOptions) -> Way {
    let with = |batch: usize| {
        changed(options, format!("--micro-batch {batch}"), |o| {
            o.model.micro_batch = batch;
        })
    };
    halved(options.model.micro_batch).map(with).collect()
}

fn fewer_tokens(options: &CompileOptions) -> Way {
    let with = |tokens: usize| {
        changed(options, format!("--seq-len {tokens}"), |o| {
            o.model.seq_len = tokens
        })
    };
    halved(options.model.seq_len)
        .filter(|&tokens| tokens >= 8)
        .map(with)
        .collect()
}

fn doubled(number: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(number.checked_mul(2), |&number| number.checked_mul(2))
}

fn halved(number: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(number / 2), |&number| Some(number / 2)).take_while(|&half| half > 0)
}
