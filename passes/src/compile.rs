//! From a configuration to a plan: front end, passes, partition, schedule, memory.

mod fit;
mod options;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lxpod_ir::front::{FrontError, LxmertConfig, build};
use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, LOSS, Target, sharding, verify};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cost::{self, CostModel};
use crate::manager::{Manager, PassError, PassReport};
use crate::partition::{
    Among, Partition, PinnedStages, Pipeline, Split, partition_among, place_update,
};
use crate::pass::{MICRO_BATCH, PIPELINE, Pass, Recompute, TRAINING};
use crate::plan::{Plan, PlanError, Provenance, Work, lower};
use crate::recompute;
use crate::schedule::{Branches, Phase, Schedule};
use crate::solve::partition::PartitionError;
use crate::update::update_graph;
pub use options::{CompileOptions, Group, TrainingOptions};

/// Why a plan could not be compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The configuration or an option of the model; see [`FrontError`].
    #[error(transparent)]
    Front(#[from] FrontError),
    /// An option of the pipeline does not fit the target.
    #[error("{flag}: {message}")]
    Option {
        /// The flag.
        flag: &'static str,
        /// What is wrong and what would do.
        message: String,
    },
    /// The model does not fit the target, or asks for what plans cannot express.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pass broke a graph. Our bug.
    #[error(transparent)]
    Pass(#[from] PassError),
}

impl CompileError {
    /// Bytes that the fullest tile would need at least, code and reserve included, if too few are what is wrong.
    pub fn bytes_needed(&self, target: &Target) -> Option<u64> {
        match self {
            CompileError::Plan(PlanError::OutOfMemory { total, .. }) => Some(*total),
            CompileError::Plan(PlanError::Partition(PartitionError::Memory { needed, .. })) => {
                Some(needed.saturating_add(target.tile.code + target.tile.reserved))
            }
            _ => None,
        }
    }

    /// Whether tiles have too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            CompileError::Plan(
                PlanError::OutOfMemory { .. } | PlanError::Partition(PartitionError::Memory { .. })
            )
        )
    }
}

/// What the compiler did, beside the plan.
#[derive(Clone, Debug)]
pub struct CompileReport {
    /// Every pass, in order, the planning steps included.
    pub passes: Vec<PassReport>,
    /// The split into stages, to be questioned.
    pub split: Split,
    /// From the configuration to the finished plan.
    pub duration: Duration,
}

/// Receives the graph after each pass: its name and the graph.
pub type Observer<'a> = &'a mut dyn FnMut(&'static str, &Graph);

/// Compiles a plan. `name` is recorded as the model's name; `observe` sees the graph after each pass.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(
    config: &LxmertConfig,
    name: &str,
    options: &CompileOptions,
    observe: Observer<'_>,
) -> Result<(Plan, CompileReport), CompileError> {
    let start = Instant::now();
    let told = options.training.as_ref().map(|training| training.recompute);
    let (plan, split, passes) = match told {
        Some(Recompute::Auto) => fit::compile_to_fit(config, name, options, observe)?,
        told => compile_with(config, name, options, told.unwrap_or_default(), observe)?,
    };
    let report = CompileReport {
        passes,
        split,
        duration: start.elapsed(),
    };
    Ok((plan, report))
}

/// A plan, the split into its stages, and what was done for it.
type Compiled = Result<(Plan, Split, Vec<PassReport>), CompileError>;

/// A plan that computes that much again.
fn compile_with(
    config: &LxmertConfig,
    name: &str,
    options: &CompileOptions,
    recompute: Recompute,
    observe: Observer<'_>,
) -> Compiled {
    let (schedule, accumulation) = options.schedule()?;
    let told = CompileOptions {
        training: options.training.clone().map(|training| TrainingOptions {
            recompute,
            ..training
        }),
        ..options.clone()
    };
    let mut passes = Vec::new();
    let mut model = Optimised::new(config, &told, &mut passes, &mut *observe)?;
    model.complete(&told, &mut passes, &mut *observe)?;
    let update = model.update(&told)?;
    let provenance = {
        let config = config.to_json();
        Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: name.to_owned(),
            config_hash: config_hash(&config),
            config,
            options: options.record(schedule.tiles),
            expected: model.expected,
        }
    };
    let placement = Placement {
        target: &options.target,
        replicas: options.replicas,
        schedule,
        accumulation,
        group: options.group(),
        pinned: options.pinned.as_ref(),
        branches: options.branches,
    };
    let graphs = (model.graph, update);
    let (plan, split) = split_graph(graphs, provenance, placement, &mut passes, observe)?;
    Ok((plan, split, passes))
}

/// A model after the graph passes that no choice of recomputation, schedule or placement changes.
#[derive(Clone)]
pub(crate) struct Optimised {
    /// The graph of a micro-batch.
    pub(crate) graph: Graph,
    /// The tensors a checkpoint must hold.
    pub(crate) expected: Vec<(String, Vec<usize>)>,
}

impl Optimised {
    /// Builds the graph of `options.model`, and differentiates it if it is to be trained.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(crate) fn new(
        config: &LxmertConfig,
        options: &CompileOptions,
        passes: &mut Vec<PassReport>,
        observe: Observer<'_>,
    ) -> Result<Self, CompileError> {
        let built = build(config, &options.model)?;
        let mut graph = built.graph;
        let has_loss = graph.outputs().iter().any(|output| output.name == LOSS);
        if options.training.is_some() && !has_loss {
            return Err(CompileError::Option {
                flag: "--mode",
                message:
                    "training needs a loss: samples with labels, and a task that has one or --loss"
                        .to_owned(),
            });
        }
        observe("build", &graph);
        let list = match options.training {
            Some(_) => TRAINING,
            None => PIPELINE,
        };
        passes.extend(manager(options, observe).run(list, &mut graph)?.passes);
        Ok(Optimised {
            graph,
            expected: built.expected,
        })
    }

    /// Decides what is computed again, and sums gradients over micro-batches.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(crate) fn complete(
        &mut self,
        options: &CompileOptions,
        passes: &mut Vec<PassReport>,
        observe: Observer<'_>,
    ) -> Result<(), CompileError> {
        if let Some(training) = &options.training {
            let list: &[&Pass] = match training.update {
                Some(_) => MICRO_BATCH,
                None => &[&recompute::PASS],
            };
            let report = manager(options, observe).run(list, &mut self.graph)?;
            passes.extend(report.passes);
        }
        Ok(())
    }

    /// The graph of the update, if there is one, of a completed model. It depends on the checkpoint's tensors and the
    /// optimiser, and on nothing of the micro-batch.
    ///
    /// # Errors
    /// See [`update_graph`].
    pub(crate) fn update(&self, options: &CompileOptions) -> Result<Option<Graph>, CompileError> {
        let update = options.update().map(|update| {
            update_graph(&self.graph, &self.expected, &update).map_err(PlanError::Unsupported)
        });
        Ok(update.transpose()?)
    }
}

/// Runs passes as `options` say, and shows the graph after each.
fn manager<'a>(options: &CompileOptions, observe: Observer<'a>) -> Manager<'a> {
    let manager = Manager::new(options.passes());
    let shown = manager.print_after("all", observe);
    shown.expect("`all` is no pass's name")
}

/// Where the work of a plan goes.
#[derive(Clone, Debug)]
pub struct Placement<'a> {
    /// The machine.
    pub target: &'a Target,
    /// Copies of the pipeline, at least 1.
    pub replicas: usize,
    /// The order of programs, over at least 1 tile; with the replicas at most as many as the target
    /// has.
    pub schedule: Schedule,
    /// Micro-batches of one replica in a training step; 1 for inference.
    pub accumulation: usize,
    /// How many of them a visit computes together.
    pub group: Group,
    /// A placement by hand, if there is one.
    pub pinned: Option<&'a PinnedStages>,
    /// Whether stages may lie on branches; those of the schedule are then the ones that the split makes.
    pub branches: bool,
}

impl Placement<'_> {
    /// What splits are searched by, given the target's rates and the bytes beside each parameter.
    pub(crate) fn pipeline<'p>(
        &'p self,
        cost: &'p dyn CostModel,
        states: &'p BTreeMap<String, u64>,
    ) -> Pipeline<'p> {
        Pipeline {
            target: self.target,
            cost,
            schedule: &self.schedule,
            accumulation: self.accumulation,
            states,
            pinned: self.pinned,
            branches: self.branches,
        }
    }
}

/// Plans verified graphs without transfers, of a micro-batch and of the update: splits them over the
/// stages and lays out every byte. `passes` gets a report of both; `observe` sees the split graph.
///
/// # Errors
/// The graph does not fit the target, or holds what plans cannot express.
pub fn plan_graph(
    graphs: (Graph, Option<Graph>),
    provenance: Provenance,
    placement: Placement<'_>,
    passes: &mut Vec<PassReport>,
    observe: Observer<'_>,
) -> Result<Plan, CompileError> {
    split_graph(graphs, provenance, placement, passes, observe).map(|(plan, _)| plan)
}

/// [`plan_graph`], with the split.
fn split_graph(
    graphs: (Graph, Option<Graph>),
    provenance: Provenance,
    placement: Placement<'_>,
    passes: &mut Vec<PassReport>,
    observe: Observer<'_>,
) -> Result<(Plan, Split), CompileError> {
    let placed = Placed::new(graphs, &placement, Among::Either, passes)?;
    observe("partition", &placed.graph);
    let split = placed.split.clone();
    Ok((placed.lower(provenance, placement, passes)?, split))
}

/// Graphs split over the stages.
pub(crate) struct Placed {
    graph: Graph,
    update: Option<Graph>,
    partition: Partition,
    branches: Branches,
    /// The split.
    pub(crate) split: Split,
}

impl Placed {
    /// Splits the graphs of a micro-batch and of the update.
    ///
    /// # Errors
    /// No split fits the target's memory, or the placement by hand is none of this graph.
    pub(crate) fn new(
        (mut graph, mut update): (Graph, Option<Graph>),
        placement: &Placement<'_>,
        among: Among,
        passes: &mut Vec<PassReport>,
    ) -> Result<Self, CompileError> {
        let cost = cost::model(placement.target);
        let (partition, split) = timed(passes, "partition", &mut graph, |graph| {
            let states = state_bytes(update.as_ref());
            let pipeline = placement.pipeline(cost.as_ref(), &states);
            let found = partition_among(graph, &pipeline, among).map_err(PlanError::from)?;
            *graph = checked(graph)?;
            if let Some(update) = &mut update {
                place_update(update, graph);
                *update = checked(update)?;
            }
            Ok::<(Partition, Split), CompileError>(found)
        })?;
        let branches = match placement.branches {
            true => exchanges(&graph, placement.schedule.stages()),
            false => Branches::chain(),
        };
        Ok(Placed {
            graph,
            update,
            partition,
            branches,
            split,
        })
    }

    /// Lays out every byte. The placement is that of the split, but for the memory of its target.
    ///
    /// # Errors
    /// A tile's memory is too small, or the graphs hold what plans cannot express.
    pub(crate) fn lower(
        self,
        provenance: Provenance,
        placement: Placement<'_>,
        passes: &mut Vec<PassReport>,
    ) -> Result<Plan, CompileError> {
        let Placed {
            mut graph,
            update,
            partition,
            branches,
            ..
        } = self;
        let Placement {
            target,
            replicas,
            accumulation,
            group,
            ..
        } = placement;
        let schedule = Schedule {
            branches,
            ..placement.schedule
        };
        let (group, tiles) = timed(passes, "memory", &mut graph, |graph| {
            let work = |group| Work {
                graph,
                update: update.as_ref(),
                schedule: &schedule,
                accumulation,
                group,
            };
            let cost = cost::model(target);
            let tiles = |group| lower(work(group), target, cost.as_ref());
            let mut sizes = group.sizes(accumulation).peekable();
            loop {
                let group = sizes.next().expect("a group of one at last");
                match tiles(group) {
                    Err(PlanError::OutOfMemory { .. }) if sizes.peek().is_some() => {}
                    found => return found.map(|tiles| (group, tiles)),
                }
            }
        })?;
        let mut plan = Plan {
            provenance,
            target: target.clone(),
            replicas,
            graph,
            update,
            partition,
            tiles,
            schedule,
            accumulation,
            group,
        };
        plan.partition = attained(&plan);
        if plan.schedule.training {
            plan.provenance.options["group"] = group.into();
        }
        Ok(plan)
    }
}

/// Which stages of a placed graph exchange values.
fn exchanges(graph: &Graph, stages: usize) -> Branches {
    let sent = |id| match &graph.node(id).op {
        Op::Transfer(transfer) => Some((graph.node(id).stage? as usize, transfer.to as usize)),
        _ => None,
    };
    Branches::of(stages, graph.nodes().filter_map(sent))
}

/// How good the split is as it was placed: if a stage has more to do for a micro-batch than the search reckoned with, the
/// plan says so and is not called optimal.
fn attained(plan: &Plan) -> Partition {
    let cycles = |stage| {
        let phases = [Phase::Forward, Phase::Backward];
        let of = |phase| plan.stage_cycles(stage, phase).total();
        let visit: u64 = phases.map(of).into_iter().sum();
        visit.div_ceil(plan.group as u64)
    };
    let slowest = (0..plan.stages()).map(cycles).max().unwrap_or(0);
    let found = plan.partition.clone();
    let objective_cycles = slowest.max(found.objective_cycles);
    Partition {
        objective_cycles,
        optimal: found.optimal && objective_cycles == found.objective_cycles,
        ..found
    }
}

/// The graph after its placement, verified, its nodes numbered in order.
fn checked(graph: &Graph) -> Result<Graph, PassError> {
    verify(graph).map_err(|errors| PassError::Invalid {
        pass: "partition",
        errors,
    })?;
    Ok(graph.compacted())
}

/// Bytes of the states beside each parameter, by binding.
pub(crate) fn state_bytes(update: Option<&Graph>) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    let nodes = update.map(|graph| graph.nodes().map(move |id| (graph, id)));
    for (graph, id) in nodes.into_iter().flatten() {
        let node = graph.node(id);
        if let Op::State(state) = &node.op
            && let Some((kind, binding)) = state.name.split_once(':')
        {
            // Sums of gradients are whole on each replica.
            let held = match kind {
                "acc" => node.types[0].bytes(),
                _ => sharding::shard_bytes(graph, graph.value(id)),
            };
            *bytes.entry(binding.to_owned()).or_default() += held as u64;
        }
    }
    bytes
}

/// Fields of a configuration that change nothing a plan for inference computes.
const NOT_BINDING: [&str; 6] = [
    "architectures",
    "attention_probs_dropout_prob",
    "dtype",
    "hidden_dropout_prob",
    "initializer_range",
    "transformers_version",
];

/// SHA-256, in hexadecimal, of the canonical JSON of what binds a plan to a configuration.
pub fn config_hash(config: &serde_json::Value) -> String {
    let mut binding = config.clone();
    if let Some(fields) = binding.as_object_mut() {
        fields.retain(|field, _| !NOT_BINDING.contains(&field.as_str()));
    }
    let digest = Sha256::digest(binding.to_string());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn timed<T, E>(
    passes: &mut Vec<PassReport>,
    name: &'static str,
    graph: &mut Graph,
    run: impl FnOnce(&mut Graph) -> Result<T, E>,
) -> Result<T, E> {
    let (start, nodes_before) = (Instant::now(), graph.len());
    let result = run(graph)?;
    passes.push(PassReport {
        name,
        patches: 1,
        nodes_before,
        nodes_after: graph.len(),
        duration: start.elapsed(),
    });
    Ok(result)
}
