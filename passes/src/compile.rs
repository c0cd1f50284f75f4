//! From a configuration to a plan: front end, passes, partition, schedule, memory.

mod fit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lxpod_ir::front::{FrontError, Losses, LxmertConfig, ModelOptions, build};
use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Graph, LOSS, Target, verify};
use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cost;
use crate::manager::{Manager, PassError, PassReport};
use crate::partition::{Partition, Pipeline, Split, place_update, split};
use crate::pass::{
    LossScale, MICRO_BATCH, Mode, Options, PIPELINE, Pass, Precision, Recompute, TRAINING,
};
use crate::plan::{Plan, PlanError, Provenance, Work, lower};
use crate::recompute;
use crate::schedule::{Phase, Rule, Schedule};
use crate::solve::partition::PartitionError;
use crate::update::{Optimizer, UpdateOptions, update_graph};

/// What to compile for.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What to build of the model.
    pub model: ModelOptions,
    /// The machine.
    pub target: Target,
    /// Copies of the pipeline.
    pub replicas: usize,
    /// Stages of the pipeline; as many as the replica has tiles if not given.
    pub stages: Option<usize>,
    /// How values are stored.
    pub precision: Precision,
    /// What a training step is; none for inference.
    pub training: Option<TrainingOptions>,
}

/// A training step.
#[derive(Clone, Debug)]
pub struct TrainingOptions {
    /// The order of programs.
    pub rule: Rule,
    /// Stages of a tile, where the rule interleaves.
    pub chunks: usize,
    /// Micro-batches of each replica that are summed before an update.
    pub accumulation: usize,
    /// Which values are computed again for the backward half.
    pub recompute: Recompute,
    /// How sums of gradients are stored: f32 or f16.
    pub accumulator: DType,
    /// The optimiser. Without one the plan has no update: the outputs of each micro-batch are its
    /// gradients, `grad:B` for each parameter B.
    pub update: Option<UpdateOptions>,
}

impl Default for TrainingOptions {
    /// gpipe over one micro-batch; AdamW without decay, everything in f32.
    fn default() -> Self {
        TrainingOptions {
            rule: Rule::GPipe,
            chunks: 2,
            accumulation: 1,
            recompute: Recompute::None,
            accumulator: DType::F32,
            update: Some(UpdateOptions {
                optimizer: Optimizer::Adam {
                    betas: [0.9, 0.999],
                    eps: 1e-8,
                },
                decay: 0.0,
                decay_everything: false,
                max_norm: None,
                moments: [DType::F32; 2],
                masters: true,
                stochastic: false,
                frozen: Vec::new(),
            }),
        }
    }
}

impl CompileOptions {
    /// One replica over all tiles of `target`, mixed precision.
    pub fn new(model: ModelOptions, target: Target) -> Self {
        CompileOptions {
            model,
            target,
            replicas: 1,
            stages: None,
            precision: Precision::Mixed,
            training: None,
        }
    }

    /// The number of stages.
    ///
    /// # Errors
    /// The target has too few tiles.
    pub fn resolved_stages(&self) -> Result<usize, CompileError> {
        let tiles = self.target.tiles;
        let problem = |flag, message| Err(CompileError::Option { flag, message });
        if self.replicas == 0 || self.replicas > tiles {
            let message = format!(
                "{} replicas on {tiles} tiles; use 1 to {tiles}",
                self.replicas
            );
            return problem("--replicas", message);
        }
        let most = tiles / self.replicas;
        match self.stages {
            None => Ok(most),
            Some(stages) if (1..=most).contains(&stages) => Ok(stages),
            Some(stages) => {
                let message =
                    format!("{stages} stages a replica on {tiles} tiles; use 1 to {most}");
                problem("--stages", message)
            }
        }
    }

    /// The order of programs, and the micro-batches of a step.
    ///
    /// # Errors
    /// The target has too few tiles, or the rule cannot order that many micro-batches.
    pub fn schedule(&self) -> Result<(Schedule, usize), CompileError> {
        let tiles = self.resolved_stages()?;
        let Some(training) = &self.training else {
            return Ok((Schedule::inference(tiles), 1));
        };
        let interleaved = training.rule == Rule::Interleaved;
        let schedule = Schedule {
            rule: training.rule,
            tiles,
            chunks: if interleaved {
                training.chunks.max(1)
            } else {
                1
            },
            training: true,
        };
        let problem = |message| CompileError::Option {
            flag: "--schedule",
            message,
        };
        let micro_batches = training.accumulation.max(1);
        schedule.check(micro_batches).map_err(problem)?;
        Ok((schedule, micro_batches))
    }

    /// What passes are told.
    fn passes(&self) -> Options {
        let mixed = self.precision == Precision::Mixed;
        let training = self.training.as_ref();
        Options {
            mode: training.map_or(Mode::Inference, |_| Mode::Training),
            precision: self.precision,
            loss_scale: if mixed {
                LossScale::Input
            } else {
                LossScale::One
            },
            recompute: training.map_or(Recompute::None, |training| training.recompute),
            accumulator: training.map_or(DType::F32, |training| training.accumulator),
        }
    }

    /// The options as a plan records them.
    fn record(&self, stages: usize) -> serde_json::Value {
        let ModelOptions {
            task,
            micro_batch,
            seq_len,
            boxes,
            hidden_states,
            attentions,
            losses,
            dropout,
        } = &self.model;
        let training = self.training.as_ref();
        let mut record = serde_json::json!({
            "mode": if training.is_some() { "training" } else { "inference" },
            "task": task.name(),
            "micro_batch": micro_batch,
            "seq_len": seq_len,
            "boxes": boxes,
            "hidden_states": hidden_states,
            "attentions": attentions,
            "losses": losses != &Losses::None,
            "dropout": dropout,
            "replicas": self.replicas,
            "stages": stages,
            "precision": self.precision.name(),
        });
        if let Some(training) = training {
            record["schedule"] = training.rule.name().into();
            record["gradient_accumulation"] = training.accumulation.into();
            record["recompute"] = training.recompute.name().into();
            record["gradients"] = training.update.is_none().into();
        }
        record
    }
}

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
    /// Whether less to keep could help.
    fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            CompileError::Plan(
                PlanError::OutOfMemory { .. } | PlanError::Partition(PartitionError::Memory { .. })
            )
        )
    }
}

/// What the compiler did, beside the plan.
#[derive(Clone, Debug, Serialize)]
pub struct CompileReport {
    /// Every pass, in order, the planning steps included.
    pub passes: Vec<PassReport>,
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
    let (plan, passes) = match told {
        Some(Recompute::Auto) => fit::compile_to_fit(config, name, options, observe)?,
        told => compile_with(config, name, options, told.unwrap_or_default(), observe)?,
    };
    let duration = start.elapsed();
    Ok((plan, CompileReport { passes, duration }))
}

/// A plan, and what was done for it.
type Compiled = Result<(Plan, Vec<PassReport>), CompileError>;

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
    let update = model.complete(&told, &mut passes, &mut *observe)?;
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
    };
    let graphs = (model.graph, update);
    let plan = plan_graph(graphs, provenance, placement, &mut passes, observe)?;
    Ok((plan, passes))
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
                message: "training needs a loss; name one with --loss, or a task that has one"
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

    /// Decides what is computed again, sums gradients over micro-batches, and returns the graph of the update, if
    /// there is one.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(crate) fn complete(
        &mut self,
        options: &CompileOptions,
        passes: &mut Vec<PassReport>,
        observe: Observer<'_>,
    ) -> Result<Option<Graph>, CompileError> {
        let Some(training) = &options.training else {
            return Ok(None);
        };
        let list: &[&Pass] = match training.update {
            Some(_) => MICRO_BATCH,
            None => &[&recompute::PASS],
        };
        let report = manager(options, observe).run(list, &mut self.graph)?;
        passes.extend(report.passes);
        let update = training.update.as_ref();
        let update = update.map(|update| {
            update_graph(&self.graph, &self.expected, update).map_err(PlanError::Unsupported)
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
#[derive(Clone, Copy, Debug)]
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
    Ok(plan_split(graphs, provenance, placement, passes, observe)?.0)
}

/// [`plan_graph`], with the split.
pub(crate) fn plan_split(
    (mut graph, mut update): (Graph, Option<Graph>),
    provenance: Provenance,
    placement: Placement<'_>,
    passes: &mut Vec<PassReport>,
    observe: Observer<'_>,
) -> Result<(Plan, Split), CompileError> {
    let Placement {
        target,
        replicas,
        schedule,
        accumulation,
    } = placement;
    let cost = cost::model(target);
    let (partition, found) = timed(passes, "partition", &mut graph, |graph| {
        let pipeline = Pipeline {
            target,
            cost: cost.as_ref(),
            schedule: &schedule,
            accumulation,
            states: &state_bytes(update.as_ref()),
        };
        let found = split(graph, &pipeline).map_err(PlanError::from)?;
        *graph = checked(graph)?;
        if let Some(update) = &mut update {
            place_update(update, graph);
            *update = checked(update)?;
        }
        Ok::<(Partition, Split), CompileError>(found)
    })?;
    observe("partition", &graph);
    let tiles = timed(passes, "memory", &mut graph, |graph| {
        let work = Work {
            graph,
            update: update.as_ref(),
            schedule: &schedule,
            accumulation,
        };
        lower(work, target, cost.as_ref())
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
    };
    plan.partition = attained(&plan);
    Ok((plan, found))
}

/// How good the split is as it was placed: if a stage has more to do than the search reckoned with, the plan
/// says so and is not called optimal.
fn attained(plan: &Plan) -> Partition {
    let cycles = |stage| {
        let phases = [Phase::Forward, Phase::Backward];
        let of = |phase| plan.stage_cycles(stage, phase).total();
        phases.map(of).into_iter().sum::<u64>()
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
    let nodes = update.map(|graph| graph.nodes().map(|id| graph.node(id)));
    for node in nodes.into_iter().flatten() {
        if let Op::State(state) = &node.op
            && let Some((_, binding)) = state.name.split_once(':')
        {
            *bytes.entry(binding.to_owned()).or_default() += node.types[0].bytes() as u64;
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
