//! The plan options, shared by every command that compiles.

mod sources;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use lxpod_ir::Target;
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions, Task};
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileOptions, Precision, TrainingOptions};
use lxpod_runtime::{Error, Model, Samples};

use super::error::{CliError, Result};
use super::{auto, files};
use sources::{Configured, setting};

/// The most micro-batches of one step that are simulated.
const MOST_MICRO_BATCHES: usize = 1 << 16;
/// The most threads that make any sense.
const MOST_THREADS: usize = 4096;

/// What to compile, and for what. Whatever is absent has its default.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Plan options")]
pub(crate) struct PlanOptions {
    /// What the plan is for [default: inference]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,

    /// The machine: pod4, pod16, bow-pod16, pod64, cpu, or a .toml file [default: pod16]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) target: Option<PathBuf>,

    /// Copies of the pipeline on their own tiles [default: 1]
    #[arg(long, value_name = "R", value_parser = positive)]
    pub(crate) replicas: Option<usize>,

    /// Pipeline stages of a replica [default: as many as it has tiles]
    #[arg(long, value_name = "S", value_parser = positive)]
    pub(crate) stages: Option<usize>,

    /// Let stages that exchange nothing lie side by side, the towers of language and vision for one, instead of
    /// all in a chain: a micro-batch then passes the stages of the longest path only
    #[arg(long, conflicts_with = "auto")]
    pub(crate) branches: bool,

    /// Search the pod for the fastest plan that fits: replicas, stages, micro-batch, accumulation, recomputation,
    /// schedule and sharing out of states, as far as they are not given
    #[arg(long)]
    pub(crate) auto: bool,

    /// Samples of one step that --auto is to keep: replicas x micro-batch x accumulation [default: at most 256]
    #[arg(long, value_name = "N", value_parser = positive, requires = "auto")]
    pub(crate) global_batch: Option<usize>,

    /// Take what is not given here from optimum-graphcore's ipu_config.json
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) ipu_config: Option<PathBuf>,

    /// Place scopes on stages by hand: graphcore (optimum-graphcore's four stages), or a .toml file with a
    /// list of scopes for each stage
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) place: Option<PathBuf>,

    /// Change a field of the target, as a what-if: link.gbps=64, tile.memory=1Gi, or any field of its .toml
    /// file; may be given several times
    #[arg(long, value_name = "FIELD=VALUE", value_parser = setting)]
    pub(crate) set: Vec<(String, String)>,

    #[arg(skip)]
    pub(super) configured: Configured,

    /// The model class: qa, pretraining or base [default: from config.json]
    #[arg(long)]
    pub(crate) task: Option<Task>,

    /// The most tokens of a text [default: 20]
    #[arg(long, value_name = "T", value_parser = positive)]
    pub(crate) seq_len: Option<usize>,

    /// The most boxes of an image [default: 36]
    #[arg(long, value_name = "V", value_parser = positive)]
    pub(crate) boxes: Option<usize>,

    /// Samples that pass through the pipeline together [default: 1]
    #[arg(long, value_name = "B", value_parser = positive)]
    pub(crate) micro_batch: Option<usize>,

    /// Micro-batches of one replica in one step [default: 1]
    #[arg(long, value_name = "G", value_parser = positive)]
    pub(crate) gradient_accumulation: Option<usize>,

    /// Micro-batches of a step that a tile computes together, so that it reads its parameters once for all of them;
    /// changes no result [default: 1; on cpu as many as pay and fit]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "auto")]
    pub(crate) group: Option<usize>,

    /// How values are stored: fp32 or mixed [default: mixed]
    #[arg(long)]
    pub(crate) precision: Option<Precision>,

    /// What training computes twice to save memory [default: none]
    #[arg(long, value_enum)]
    pub(crate) recompute: Option<Recompute>,

    /// Let replicas share out the optimiser's state of each large parameter, instead of each keeping all
    /// of it; changes no result
    #[arg(long)]
    pub(crate) replicated_tensor_sharding: bool,

    /// The order of micro-batches: 1f1b, gpipe, interleaved or popart; inference has one order under every
    /// name [default: gpipe]
    #[arg(long)]
    pub(crate) schedule: Option<Rule>,

    /// Parts of a tile's work under the interleaved schedule [default: 2]
    #[arg(long, value_name = "V", value_parser = positive)]
    pub(crate) chunks: Option<usize>,

    /// What the output `loss` is, given labels
    #[arg(long, value_enum)]
    pub(crate) loss: Option<Loss>,

    /// Make embeddings and the output of each layer outputs too
    #[arg(long)]
    pub(crate) output_hidden_states: bool,

    /// Make attention probabilities outputs too
    #[arg(long)]
    pub(crate) output_attentions: bool,

    /// Makes the random weights of lxmert-base, and decides what dropout drops [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Inference,
    Training,
}

/// What training computes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Recompute {
    None,
    Layer,
    Auto,
}

/// The loss of question answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    CrossEntropy,
    Bce,
    BceTimesLabels,
}

impl From<Loss> for AnswerLoss {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::CrossEntropy => AnswerLoss::CrossEntropy,
            Loss::Bce => AnswerLoss::Bce,
            Loss::BceTimesLabels => AnswerLoss::BceTimesLabels,
        }
    }
}

/// How a plan is used, beside what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// Micro-batches of one replica in one step.
    pub(crate) micro_batches: usize,
    /// The schedule's name.
    pub(crate) schedule: &'static str,
}

impl Use {
    /// How that plan is used: a training plan has settled it.
    pub(crate) fn of(self, plan: &Plan) -> Use {
        match plan.update {
            None => self,
            Some(_) => Use {
                micro_batches: plan.accumulation,
                schedule: plan.schedule.rule.name(),
            },
        }
    }
}

impl PlanOptions {
    /// How the plan is used.
    ///
    /// # Errors
    /// An option that this version does not have.
    pub(crate) fn usage(&self) -> Result<Use> {
        self.check_supported()?;
        let micro_batches = self.gradient_accumulation.unwrap_or(1);
        if micro_batches > MOST_MICRO_BATCHES {
            let message = format!("is {micro_batches}; at most {MOST_MICRO_BATCHES} are simulated");
            return Err(CliError::option("--gradient-accumulation", message));
        }
        let schedule = self.schedule.unwrap_or_default().name();
        Ok(Use {
            micro_batches,
            schedule,
        })
    }

    /// What to build of `model`.
    ///
    /// # Errors
    /// An option that this version does not have, or that does not fit the others.
    pub(crate) fn model_options(&self, model: &Model) -> Result<ModelOptions> {
        self.check_supported()?;
        let task = self.task_of(model);
        let losses = self.losses(task)?;
        Ok(self.sized(ModelOptions {
            task,
            losses,
            ..ModelOptions::default()
        }))
    }

    /// What to build of `model` for these samples: whatever the options leave open is as the samples
    /// need it.
    ///
    /// # Errors
    /// As [`PlanOptions::model_options`].
    pub(crate) fn model_options_for(
        &self,
        model: &Model,
        samples: &Samples,
    ) -> Result<ModelOptions> {
        self.check_supported()?;
        let task = self.task_of(model);
        self.losses(task)?;
        let loss = self.loss.map_or(AnswerLoss::CrossEntropy, AnswerLoss::from);
        Ok(self.sized(samples.model_options(task, loss)))
    }

    fn sized(&self, built: ModelOptions) -> ModelOptions {
        ModelOptions {
            micro_batch: self.micro_batch.unwrap_or(built.micro_batch),
            seq_len: self.seq_len.unwrap_or(built.seq_len),
            boxes: self.boxes.unwrap_or(built.boxes),
            hidden_states: self.output_hidden_states,
            attentions: self.output_attentions,
            ..built
        }
    }

    /// Where to place what was built.
    ///
    /// # Errors
    /// The target is unknown or its file is wrong, or the placement by hand is none of this model.
    pub(crate) fn compile_options(
        &self,
        built: ModelOptions,
        config: &LxmertConfig,
    ) -> Result<CompileOptions> {
        auto::refuse(self)?;
        let mut options = CompileOptions::new(built, self.target()?);
        options.replicas = self.replicas.unwrap_or(1);
        options.pinned = self.pinned(config)?;
        options.stages = self.stages.or_else(|| {
            let pinned = options.pinned.as_ref()?.stages.len();
            Some(pinned.div_ceil(self.chunks_of_a_tile()))
        });
        options.branches = self.branches;
        options.precision = self.precision.unwrap_or(Precision::Mixed);
        options.training = (self.mode == Some(Mode::Training)).then(|| self.training());
        Ok(options)
    }

    /// The training step asked for; its update is AdamW's.
    fn training(&self) -> TrainingOptions {
        let mut defaults = TrainingOptions::default();
        if let (Some(dtype), Some(update)) = (self.stored_first_moment(), &mut defaults.update) {
            update.moments[0] = dtype;
        }
        TrainingOptions {
            rule: self.schedule.unwrap_or_default(),
            chunks: self.chunks.unwrap_or(defaults.chunks),
            accumulation: self.gradient_accumulation.unwrap_or(1),
            group: self.group,
            replicated_tensor_sharding: self.replicated_tensor_sharding,
            recompute: match self.recompute.unwrap_or(Recompute::None) {
                Recompute::None => lxpod_passes::Recompute::None,
                Recompute::Layer => lxpod_passes::Recompute::Layer,
                Recompute::Auto => lxpod_passes::Recompute::Auto,
            },
            ..defaults
        }
    }

    /// The task asked for, or the checkpoint's.
    pub(crate) fn task_of(&self, model: &Model) -> Task {
        self.task
            .unwrap_or_else(|| Task::from_architectures(&model.config.architectures))
    }

    /// The machine asked for, with what `--set` changes.
    ///
    /// # Errors
    /// It is unknown, its file is wrong, or a field is.
    pub(crate) fn target(&self) -> Result<Target> {
        let mut target = self.named_target()?;
        for (field, value) in &self.set {
            let set = target.set(field, value);
            set.map_err(|message| CliError::option("--set", message))?;
        }
        Ok(target)
    }

    fn named_target(&self) -> Result<Target> {
        let name = self.target.as_deref().unwrap_or(Path::new("pod16"));
        if name.extension().is_none_or(|extension| extension != "toml") {
            let found = Target::named(&name.to_string_lossy());
            return found.map_err(|message| CliError::option("--target", message));
        }
        let text = files::read_text(name)?;
        Ok(
            Target::from_toml(&text).map_err(|problem| Error::InvalidFile {
                path: name.into(),
                field: "target".to_owned(),
                problem: problem.trim_end().to_owned(),
                help: "correct the field; the built-in targets in ir/targets have all of them"
                    .to_owned(),
            })?,
        )
    }

    /// Refuses options that a finished plan has settled.
    ///
    /// # Errors
    /// Names them.
    pub(crate) fn check_settled(&self, path: &Path, plan: &Plan) -> Result<()> {
        let has = |name: &str| plan.provenance.options[name] == true;
        let mut settled = self.given();
        settled.retain(|flag| match *flag {
            "--output-hidden-states" => !has("hidden_states"),
            "--output-attentions" => !has("attentions"),
            "--replicated-tensor-sharding" => !has("replicated_tensor_sharding"),
            "--branches" => !has("branches"),
            _ => true,
        });
        if settled.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{}: the plan has settled {}; compile the model again, or leave the option out",
            path.display(),
            settled.join(" ")
        );
        Err(CliError::Usage(message))
    }

    /// The flags given of what a plan settles.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        if self.ipu_config.is_some() {
            return vec!["--ipu-config"];
        }
        let given = [
            ("--mode", self.mode.is_some()),
            ("--target", self.target.is_some()),
            ("--replicas", self.replicas.is_some()),
            ("--stages", self.stages.is_some()),
            ("--branches", self.branches),
            ("--auto", self.auto),
            ("--place", self.place.is_some()),
            ("--set", !self.set.is_empty()),
            ("--task", self.task.is_some()),
            ("--seq-len", self.seq_len.is_some()),
            ("--boxes", self.boxes.is_some()),
            ("--micro-batch", self.micro_batch.is_some()),
            ("--group", self.group.is_some()),
            ("--precision", self.precision.is_some()),
            ("--recompute", self.recompute.is_some()),
            ("--chunks", self.chunks.is_some()),
            (
                "--replicated-tensor-sharding",
                self.replicated_tensor_sharding,
            ),
            ("--loss", self.loss.is_some()),
            ("--output-hidden-states", self.output_hidden_states),
            ("--output-attentions", self.output_attentions),
        ];
        given
            .into_iter()
            .filter(|(_, given)| *given)
            .map(|(flag, _)| flag)
            .collect()
    }

    fn losses(&self, task: Task) -> Result<Losses> {
        let loss = match self.loss {
            None if self.mode == Some(Mode::Training) => Loss::CrossEntropy,
            None => return Ok(Losses::None),
            Some(loss) => loss,
        };
        match (task, loss) {
            (Task::Qa, loss) => Ok(Losses::Answer {
                loss: Some(loss.into()),
                bce: true,
            }),
            (Task::Pretraining, Loss::CrossEntropy) => Ok(Losses::all_pretraining()),
            (Task::Pretraining | Task::Base, _) => {
                let message = format!("the task {task} has no such loss; choose another --task");
                Err(CliError::option("--loss", message))
            }
        }
    }

    fn check_supported(&self) -> Result<()> {
        let training = self.mode == Some(Mode::Training);
        let unsupported = [
            (
                !training
                    && self
                        .recompute
                        .is_some_and(|recompute| recompute != Recompute::None),
                "--recompute layer or auto for inference; they are for --mode training",
            ),
            (
                !training && matches!(self.schedule, Some(Rule::Interleaved | Rule::PopArt)),
                "--schedule interleaved or popart for inference; use gpipe or 1f1b",
            ),
            (
                !training && self.replicated_tensor_sharding,
                "--replicated-tensor-sharding for inference; it is for --mode training",
            ),
            (
                !training && self.group.is_some(),
                "--group for inference; it is for --mode training",
            ),
            (
                self.chunks.is_some() && self.schedule != Some(Rule::Interleaved),
                "--chunks, which is for --schedule interleaved",
            ),
        ];
        match unsupported.into_iter().find(|(found, _)| *found) {
            Some((_, message)) => Err(CliError::Unsupported(message.to_owned())),
            None => Ok(()),
        }
    }
}

/// Parses a number of at least 1.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a whole number of at least 1".to_owned()),
    }
}

/// Parses a number of repetitions, each of which keeps a figure.
pub(crate) fn repeats(text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match text.parse() {
        Ok(number) if (1..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number from 1 to {MOST}")),
    }
}

/// Parses a number of repetitions that may be none.
pub(crate) fn repeats_or_none(text: &str) -> Result<usize, String> {
    if text == "0" { Ok(0) } else { repeats(text) }
}

/// Parses a number of threads.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    let number = positive(text)?;
    if number > MOST_THREADS {
        return Err(format!("at most {MOST_THREADS} threads are supported"));
    }
    Ok(number)
}
