//! What to compile for, and what follows from it.

use lxpod_ir::front::{Losses, ModelOptions};
use lxpod_ir::{DType, Machine, Target};

use super::CompileError;
use crate::partition::PinnedStages;
use crate::pass::{LossScale, Mode, Options, Precision, Recompute};
use crate::schedule::{Branches, Rule, Schedule};
use crate::update::{Optimizer, UpdateOptions};

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
    /// A placement by hand; without one the best is searched for.
    pub pinned: Option<PinnedStages>,
    /// Whether stages that exchange nothing may lie side by side, instead of all in a chain.
    pub branches: bool,
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
    /// Micro-batches that one visit of a program computes together, so that it reads its parameters once for all of
    /// them. Without it one, or for a processor whose parameters lie behind its caches as many as pay and fit.
    pub group: Option<usize>,
    /// Which values are computed again for the backward half.
    pub recompute: Recompute,
    /// How sums of gradients are stored: f32 or f16.
    pub accumulator: DType,
    /// Whether replicas share out the optimiser's states instead of each keeping all of them.
    pub replicated_tensor_sharding: bool,
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
            group: None,
            recompute: Recompute::None,
            accumulator: DType::F32,
            replicated_tensor_sharding: false,
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
                histogram_edge: None,
                shards: 1,
            }),
        }
    }
}

/// Rows of a product beyond which it is bound by computing, not by reading its weights: several blocks of the CPU's kernels.
const ROWS_THAT_PAY: usize = 384;
/// The most micro-batches that are computed together unless told: with more, what is read once for all of them is no share of
/// the step that counts, and activations take more and more memory.
const MOST_TOGETHER: usize = 8;

/// Micro-batches that one visit of a program computes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// So many.
    Exactly(usize),
    /// So many, or as many as fit the tiles' memory.
    AtMost(usize),
}

impl Group {
    /// The sizes to try for a step of that many micro-batches, the best first: visits are as equal as can be, and doubled
    /// in number from one to the next.
    pub(super) fn sizes(self, micro_batches: usize) -> impl Iterator<Item = usize> {
        let (first, last) = match self {
            Group::Exactly(group) => (group, group),
            Group::AtMost(most) => (micro_batches.div_ceil(micro_batches.div_ceil(most)), 1),
        };
        std::iter::successors(Some(first), move |&group| {
            (group > last).then(|| group.div_ceil(2))
        })
    }
}

/// Checks that a step's micro-batches can be computed in groups.
fn check_group(
    schedule: &Schedule,
    micro_batches: usize,
    group: usize,
) -> Result<(), CompileError> {
    let flag = "--group";
    if !(1..=micro_batches).contains(&group) {
        let message = format!(
            "is {group}; a step has {micro_batches} micro-batches (--gradient-accumulation), so use 1 to {micro_batches}"
        );
        return Err(CompileError::Option { flag, message });
    }
    let visits = micro_batches.div_ceil(group);
    schedule.check(visits).map_err(|_| CompileError::Option {
        flag,
        message: format!(
            "of {group} makes {visits} groups of {micro_batches} micro-batches, which --schedule {} cannot order over {} \
             tiles; leave it out, or use --schedule 1f1b or gpipe",
            schedule.rule, schedule.tiles
        ),
    })
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
            pinned: None,
            branches: false,
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
            branches: Branches::chain(),
        };
        let problem = |message| CompileError::Option {
            flag: "--schedule",
            message,
        };
        if interleaved && self.branches {
            let message = "interleaved takes no --branches; leave them out, or use 1f1b";
            return Err(problem(message.to_owned()));
        }
        let micro_batches = training.accumulation.max(1);
        schedule.check(micro_batches).map_err(problem)?;
        if let Some(group) = training.group {
            check_group(&schedule, micro_batches, group)?;
        }
        Ok((schedule, micro_batches))
    }

    /// How many micro-batches a visit computes together.
    pub(super) fn group(&self) -> Group {
        let Some(training) = &self.training else {
            return Group::Exactly(1);
        };
        match (training.group, self.target.machine) {
            (Some(group), _) => Group::Exactly(group),
            (None, Machine::Cpu) if training.update.is_some() => {
                // Boxes are rows that every sample has; texts may be shorter than planned.
                let rows = (self.model.micro_batch * self.model.boxes).max(1);
                Group::AtMost(ROWS_THAT_PAY.div_ceil(rows).min(MOST_TOGETHER))
            }
            (None, _) => Group::Exactly(1),
        }
    }

    /// What the update is, for so many replicas.
    pub(super) fn update(&self) -> Option<UpdateOptions> {
        let training = self.training.as_ref()?;
        let shards = match training.replicated_tensor_sharding {
            true => self.replicas,
            false => 1,
        };
        let update = training.update.as_ref()?;
        Some(UpdateOptions {
            shards,
            ..update.clone()
        })
    }

    /// What passes are told.
    pub(super) fn passes(&self) -> Options {
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
    pub(super) fn record(&self, stages: usize) -> serde_json::Value {
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
        if self.branches {
            record["branches"] = true.into();
        }
        if let Some(pinned) = &self.pinned {
            record["placement"] = serde_json::json!(pinned.stages);
        }
        if let Some(training) = training {
            record["schedule"] = training.rule.name().into();
            record["gradient_accumulation"] = training.accumulation.into();
            record["recompute"] = training.recompute.name().into();
            record["replicated_tensor_sharding"] = training.replicated_tensor_sharding.into();
            record["gradients"] = training.update.is_none().into();
        }
        record
    }
}
