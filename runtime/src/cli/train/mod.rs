//! `lxpod train`.

mod flags;
mod progress;
mod setup;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use lxpod_runtime::train::{EventWriter, Outcome, Trainer};
use serde_json::{Value, json};

use super::error::{CliError, Result};
use super::options::{PlanOptions, positive};
use super::output::{self, HEADING, STRONG, seconds, styled};
use super::{Global, machine::Machine};
use flags::Flags;
use progress::Progress;
use setup::Setup;

/// Train a model on batches
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod train path/to/checkpoint --batches train.safetensors -o out\n  \
    lxpod train lxmert-base --batches train.safetensors --recipe ipu --learning-rate 1e-5 \
    --gradient-accumulation 8 --save-every 100 -o out\n  \
    lxpod train path/to/checkpoint --batches train.safetensors --resume out -o out\n\n\
    Batches: the inputs of `run`, labels among them, stacked in order of use on a leading axis\n\
    [steps x accumulation x replicas, micro-batch, ...]. Micro-batch, tokens and boxes are the file's.\n\n\
    The folder gets config.json, model.safetensors, the vocabulary and log.json at the end, and\n\
    checkpoint-N every N steps of --save-every; the two newest stay. Ctrl-C finishes the step, writes\n\
    a checkpoint and exits with 130; --resume goes on from it, bit for bit as if never interrupted.")]
pub(crate) struct Train {
    /// The model to start from
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Micro-batches in order of use
    #[arg(long, value_name = "IN.safetensors")]
    batches: PathBuf,

    /// Where checkpoints, the final model and log.json go
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Write a checkpoint after every N steps
    #[arg(long, value_name = "N", value_parser = positive)]
    save_every: Option<usize>,

    /// Go on from the newest complete checkpoint in DIR, or from the checkpoint DIR
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,

    /// Evaluate after every N steps and after the last
    #[arg(long, value_name = "N", value_parser = positive, requires = "eval_batches")]
    eval_every: Option<usize>,

    /// Micro-batches to evaluate on
    #[arg(long, value_name = "IN.safetensors", requires = "eval_every")]
    eval_batches: Option<PathBuf>,

    /// Drop nothing out, whatever the probabilities in config.json
    #[arg(long)]
    no_dropout: bool,

    /// Write event files for TensorBoard
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,

    #[command(flatten)]
    flags: Flags,

    #[command(flatten)]
    options: PlanOptions,
}

impl Train {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let setup = Setup::new(&self, global)?;
        let mut trainer = setup.trainer(&self, global)?;
        let resumed = trainer.step();
        let events = self.tensorboard.as_deref().map(EventWriter::create);
        let events = events.transpose()?;
        let mut progress = Progress::new(global, trainer.steps(), resumed, events);
        let stop = stop_at_interrupt()?;
        let outcome = trainer.run(&mut progress, &stop);
        progress.finish();
        let summary = Summary {
            train: &self,
            setup: &setup,
            trainer: &trainer,
            progress: &progress,
            resumed,
            outcome: outcome?,
        };
        if global.json {
            output::json(&summary.document())?;
        } else {
            output::print(&summary.text())?;
        }
        match &summary.outcome {
            Outcome::Finished => Ok(()),
            Outcome::Interrupted(checkpoint) => Err(CliError::Interrupted(how_to_resume(
                checkpoint,
                &self.output,
            ))),
        }
    }
}

/// A flag that the first Ctrl-C sets. The second ends the process at once, which harms no
/// checkpoint: none is ever there in part.
fn stop_at_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let set = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            #[expect(clippy::exit, reason = "the second Ctrl-C is not to wait for anything")]
            std::process::exit(130);
        }
        output::diagnose("interrupted: finishing the step; press Ctrl-C again to stop at once");
    });
    set.map_err(|error| CliError::Internal(format!("no handler for Ctrl-C: {error}")))?;
    Ok(stop)
}

fn how_to_resume(checkpoint: &Path, output: &Path) -> String {
    format!(
        "interrupted: the run is saved in {}\n  help: go on with the same command and --resume {}",
        checkpoint.display(),
        output.display()
    )
}

/// What a run came to.
struct Summary<'a> {
    train: &'a Train,
    setup: &'a Setup,
    trainer: &'a Trainer,
    progress: &'a Progress<'a>,
    /// Steps done by an earlier run.
    resumed: usize,
    outcome: Outcome,
}

impl Summary<'_> {
    fn document(&self) -> Value {
        let (log, steps) = (self.trainer.log(), self.progress.steps());
        let checkpoint = match &self.outcome {
            Outcome::Finished => None,
            Outcome::Interrupted(path) => Some(path.display().to_string()),
        };
        json!({
            "mode": "training",
            "model": self.setup.model.name,
            "task": self.setup.task.name(),
            "precision": self.setup.precision.name(),
            "recipe": self.train.flags.recipe.name(),
            "hyper_parameters": self.setup.recipe,
            "steps": self.trainer.steps(),
            "steps_done": self.trainer.step(),
            "resumed_from": self.resumed,
            "updates_applied": self.trainer.applied(),
            "updates_skipped": log.skipped.len(),
            "skipped": log.skipped,
            "overflow": log.overflow,
            "first_loss": log.loss.first(),
            "last_loss": log.loss.last(),
            "eval_loss": log.eval.last().map(|evaluated| evaluated.loss),
            "finished": self.outcome == Outcome::Finished,
            "checkpoint": checkpoint,
            "output": self.train.output.display().to_string(),
            "measured": {
                "seconds": self.progress.busy().as_secs_f64(),
                "step_seconds": steps.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
                "samples": self.progress.samples(),
                "samples_per_second": self.progress.rate(),
                "machine": Machine::this().document(),
            },
        })
    }

    fn text(&self) -> String {
        let line = |name: &str, value: &str| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        let log = self.trainer.log();
        let figure = |value: Option<&Option<f64>>| match value.copied().flatten() {
            Some(value) => format!("{value:.4}"),
            None => "no number".to_owned(),
        };
        let mut text = line(
            "trained",
            &format!(
                "{} of {} steps, {} skipped; recipe {}",
                self.trainer.step(),
                self.trainer.steps(),
                log.skipped.len(),
                self.train.flags.recipe
            ),
        );
        let (first, last) = (figure(log.loss.first()), figure(log.loss.last()));
        text += &line("loss", &format!("{first} at first, {last} at last"));
        if let Some(evaluated) = log.eval.last() {
            text += &line("evaluated", &figure(Some(&evaluated.loss)));
        }
        let rate = styled(STRONG, format!("{:.1} samples/s", self.progress.rate()));
        let samples = output::plural(self.progress.samples(), "sample");
        let time = seconds(self.progress.busy().as_secs_f64());
        text += &line("measured", &format!("{rate}: {samples} in {time}"));
        text += &line("on", &Machine::this().text());
        if self.outcome == Outcome::Finished {
            text += &format!("\nWritten to {}.\n", self.train.output.display());
        }
        text
    }
}
