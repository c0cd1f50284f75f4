//! From a configuration to a plan: front end, passes, partition, schedule, memory.

use std::time::{Duration, Instant};

use lxpod_ir::front::{FrontError, Losses, LxmertConfig, ModelOptions, build};
use lxpod_ir::{Graph, Target, verify};
use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cost;
use crate::manager::{Manager, PassError, PassReport};
use crate::partition::{Partition, partition};
use crate::pass::{Options, PIPELINE, Precision};
use crate::plan::{Plan, PlanError, Provenance, lower};
use crate::schedule::{Rule, Schedule};

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
        serde_json::json!({
            "mode": "inference",
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
        })
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
    let stages = options.resolved_stages()?;
    let built = build(config, &options.model)?;
    let mut graph = built.graph;
    observe("build", &graph);
    let mut manager = Manager::new(Options {
        precision: options.precision,
        ..Options::default()
    });
    manager = manager
        .print_after("all", &mut *observe)
        .expect("`all` is no pass's name");
    let mut passes = manager.run(PIPELINE, &mut graph)?.passes;
    drop(manager);
    let provenance = {
        let config = config.to_json();
        Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: name.to_owned(),
            config_hash: config_hash(&config),
            config,
            options: options.record(stages),
            expected: built.expected,
        }
    };
    let placement = Placement {
        target: &options.target,
        replicas: options.replicas,
        stages,
    };
    let plan = plan_graph(graph, provenance, placement, &mut passes, observe)?;
    Ok((
        plan,
        CompileReport {
            passes,
            duration: start.elapsed(),
        },
    ))
}

/// Where the work of a plan goes.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The machine.
    pub target: &'a Target,
    /// Copies of the pipeline, at least 1.
    pub replicas: usize,
    /// Stages of the pipeline, at least 1; with the replicas at most as many as the target has
    /// tiles.
    pub stages: usize,
}

/// Plans any verified graph without transfers: splits it over the stages and lays out every byte.
/// `passes` gets a report of both; `observe` sees the split graph.
///
/// # Errors
/// The graph does not fit the target, or holds what plans cannot express.
pub fn plan_graph(
    mut graph: Graph,
    provenance: Provenance,
    placement: Placement<'_>,
    passes: &mut Vec<PassReport>,
    observe: Observer<'_>,
) -> Result<Plan, CompileError> {
    let Placement {
        target,
        replicas,
        stages,
    } = placement;
    let cost = cost::model(target);
    let partition = timed(passes, "partition", &mut graph, |graph| {
        let found = partition(graph, target, cost.as_ref(), stages).map_err(PlanError::from)?;
        verify(graph).map_err(|errors| PassError::Invalid {
            pass: "partition",
            errors,
        })?;
        *graph = graph.compacted();
        Ok::<Partition, CompileError>(found)
    })?;
    observe("partition", &graph);
    let programs = timed(passes, "memory", &mut graph, |graph| {
        lower(graph, target, cost.as_ref(), stages)
    })?;
    Ok(Plan {
        provenance,
        target: target.clone(),
        replicas,
        graph,
        partition,
        programs,
        schedule: Schedule {
            rule: Rule::GPipe,
            stages,
        },
    })
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
