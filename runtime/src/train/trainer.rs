//! The training loop.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lxpod_backends::{BackendError, Feed, Outputs, Overflow, Trainable};
use lxpod_ir::LOSS;
use lxpod_passes::HISTOGRAM;
use serde_json::{Map, Value};

use super::batches::Feeds;
use super::export::Export;
use super::folder::RunFolder;
use super::hyper::Moment;
use super::loss_scale::{Histogram, LossScaler, LossScaling};
use super::recipe::Recipe;
use super::state::{self, Evaluated, LOG_FILE, Log, Progress};
use crate::error::{Error, Result};
use crate::session::set_loss_scale;

/// So many skipped steps in a row end a run: no scale helps any more.
const MOST_SKIPPED: usize = 100;

/// A plan with an update, loaded, and the names of what it gives and keeps.
pub struct Learner {
    /// What runs it.
    pub executable: Box<dyn Trainable>,
    /// The outputs of a micro-batch, in order; [`LOSS`] is one.
    pub outputs: Vec<String>,
    /// The outputs of the update, in order; `grad_norm` and `factor` are among them.
    pub update: Vec<String>,
    /// The bindings of the parameters that the update changes.
    pub trained: BTreeSet<String>,
    /// Whether micro-batches take a loss scale.
    pub scaled: bool,
}

/// Evaluation between steps.
pub struct Evaluation {
    /// After every so many steps, and after the last.
    pub every: usize,
    /// On what.
    pub feeds: Box<dyn Feeds>,
}

/// Where a run's results go.
pub struct Saving {
    /// The folder.
    pub folder: RunFolder,
    /// What of the model does not change.
    pub export: Export,
    /// A checkpoint after every so many steps; none but for an interrupt if absent.
    pub every: Option<usize>,
}

/// A step that was done.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// The mean of the micro-batches' losses.
    pub loss: f64,
    /// The learning rate.
    pub rate: f64,
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// What multiplied the loss.
    pub loss_scale: f32,
    /// Whether the update was skipped.
    pub skipped: bool,
    /// Why: the first value that was not finite, unless only a sum over micro-batches was not.
    pub overflow: Option<Overflow>,
    /// Samples of the step.
    pub samples: usize,
    /// From reading the step's data to the end of its update.
    pub duration: Duration,
}

/// Follows a run.
pub trait Observer {
    /// A step was done.
    ///
    /// # Errors
    /// Any error ends the run.
    fn step(&mut self, report: &StepReport) -> Result<()>;

    /// The evaluation data was gone through.
    ///
    /// # Errors
    /// Any error ends the run.
    fn evaluated(&mut self, evaluated: &Evaluated) -> Result<()>;

    /// A checkpoint was written.
    fn saved(&mut self, checkpoint: &Path);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and the final model is written.
    Finished,
    /// It was asked to stop, and can go on from this checkpoint.
    Interrupted(PathBuf),
}

/// A training run.
pub struct Trainer {
    learner: Learner,
    feeds: Box<dyn Feeds>,
    recipe: Recipe,
    /// Decides how stored values are rounded by chance.
    seed: u64,
    /// What must be the same for a run to be continued.
    options: Map<String, Value>,
    evaluation: Option<Evaluation>,
    saving: Saving,
    progress: Progress,
    log: Log,
    /// The newest checkpoint of the run that is known to be good.
    last_saved: Option<PathBuf>,
    /// The last step's outputs, whose memory the next step uses.
    outputs: Vec<Outputs>,
    update: Outputs,
}

impl Trainer {
    /// A run at its start. `seed` decides how its updates round by chance; `options` is what else, beside
    /// the recipe, decides the result.
    ///
    /// # Errors
    /// A hyper-parameter is out of range; [`Error::Internal`] when the learner lacks an output.
    pub fn new(
        learner: Learner,
        feeds: Box<dyn Feeds>,
        recipe: Recipe,
        seed: u64,
        mut options: Map<String, Value>,
        evaluation: Option<Evaluation>,
        saving: Saving,
    ) -> Result<Trainer> {
        recipe.check()?;
        learner.check(&recipe)?;
        let record = serde_json::to_value(&recipe).map_err(|e| Error::internal(e.to_string()))?;
        for (name, value) in record.as_object().into_iter().flatten() {
            options.insert(format!("recipe.{name}"), value.clone());
        }
        options.insert("seed".to_owned(), seed.into());
        options.insert("steps".to_owned(), feeds.steps().into());
        options.insert("micro_batches".to_owned(), feeds.micro_batches().into());
        let scaler = learner.scaled.then(|| LossScaler::new(recipe.loss_scaling));
        Ok(Trainer {
            learner,
            feeds,
            recipe,
            seed,
            options,
            evaluation,
            saving,
            progress: Progress {
                step: 0,
                applied: 0,
                skipped_in_a_row: 0,
                scaler,
            },
            log: Log::default(),
            last_saved: None,
            outputs: Vec::new(),
            update: Outputs::new(),
        })
    }

    /// Continues from a checkpoint, as if the run had never ended.
    ///
    /// # Errors
    /// It is damaged, or of another run; names the file and what differs.
    pub fn resume(&mut self, checkpoint: &Path) -> Result<()> {
        let executable = self.learner.executable.as_mut();
        let micro_batches = self.feeds.micro_batches();
        let (progress, log) = state::read(checkpoint, &self.options, micro_batches, executable)?;
        let sound = match (progress.scaler, self.progress.scaler) {
            (Some(scaler), Some(_)) => scaler.is_sound(self.recipe.loss_scaling),
            (stored, wanted) => stored.is_none() && wanted.is_none(),
        };
        if !sound || progress.step > self.feeds.steps() || progress.applied > progress.step as u64 {
            let problem = "its counters are none that this run can have";
            let help = "name another checkpoint-N";
            return Err(Error::invalid(checkpoint, state::STATE_FILE, problem, help));
        }
        self.progress = progress;
        self.log = log;
        self.last_saved = Some(checkpoint.to_owned());
        Ok(())
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.progress.step
    }

    /// Steps of the run.
    pub fn steps(&self) -> usize {
        self.feeds.steps()
    }

    /// The figures so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Updates applied.
    pub fn applied(&self) -> u64 {
        self.progress.applied
    }

    /// Does the remaining steps and writes the final model, or, once `stop` is set, finishes the
    /// step and writes a checkpoint.
    ///
    /// # Errors
    /// Reading, running or writing fails; too many steps in a row were skipped. Checkpoints that
    /// were written before stay good.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        while self.progress.step < self.feeds.steps() {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Interrupted(self.save(observer)?));
            }
            let report = self.one_step()?;
            observer.step(&report)?;
            self.evaluate(observer)?;
            let done = self.progress.step;
            if self
                .saving
                .every
                .is_some_and(|every| done.is_multiple_of(every))
            {
                self.save(observer)?;
            }
        }
        let persistent = self.learner.executable.persistent();
        let (export, trained) = (&self.saving.export, &self.learner.trained);
        self.saving.folder.publish(|staging| {
            staging.file(LOG_FILE, self.log.text().as_bytes())?;
            export.write(staging, trained, &persistent)
        })?;
        Ok(Outcome::Finished)
    }

    /// Writes a checkpoint of this step, unless it is there.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf> {
        let Saving { folder, export, .. } = &self.saving;
        let last = self
            .last_saved
            .as_deref()
            .filter(|last| is_inside(last, folder.path()));
        let last_step = last.and_then(super::folder::step_of);
        if let Some(last) = last
            && last_step == Some(self.progress.step)
        {
            return Ok(last.to_owned());
        }
        let persistent = self.learner.executable.persistent();
        let trained = &self.learner.trained;
        let path = folder.save(self.progress.step, last_step, |staging| {
            state::write(
                staging,
                &persistent,
                self.progress,
                &self.options,
                &self.log,
            )?;
            export.write(staging, trained, &persistent)
        })?;
        observer.saved(&path);
        self.last_saved = Some(path.clone());
        Ok(path)
    }

    fn one_step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        let (step, steps) = (self.progress.step, self.feeds.steps());
        let loss_scale = self.progress.scaler.map_or(1.0, |scaler| scaler.scale());
        let mut feeds = self.feeds.read(step)?;
        self.learner.scale(&mut feeds, loss_scale);
        let hyper = self.recipe.hyper(&Moment {
            step,
            steps,
            applied: self.progress.applied,
            micro_batches: feeds.len(),
            loss_scale,
            seed: self.seed,
        });
        self.learner
            .executable
            .step(&feeds, &hyper, &mut self.outputs, &mut self.update)?;
        let losses = self.learner.losses(&self.outputs)?;
        let grad_norm = f64::from(self.learner.updated("grad_norm", &self.update)?);
        let skipped = !self.learner.updated("factor", &self.update)?.is_finite();
        let overflow = match skipped {
            true => self.learner.executable.first_overflow(&feeds)?,
            false => None,
        };
        let histogram = self.learner.histogram(&self.update);
        if let Some(scaler) = &mut self.progress.scaler {
            scaler.moved(skipped, histogram)?;
        }
        let report = StepReport {
            step: step + 1,
            steps,
            loss: mean(&losses),
            rate: self.recipe.rate(step, steps),
            grad_norm,
            loss_scale,
            skipped,
            overflow,
            samples: self.feeds.samples(),
            duration: start.elapsed(),
        };
        self.record(&report, &losses)?;
        Ok(report)
    }

    fn record(&mut self, report: &StepReport, losses: &[f64]) -> Result<()> {
        self.log.loss.push(finite(report.loss));
        self.log
            .micro_loss
            .extend(losses.iter().copied().map(finite));
        self.log.lr.push(report.rate);
        self.log.grad_norm.push(finite(report.grad_norm));
        self.log.loss_scale.push(report.loss_scale);
        self.progress.step = report.step;
        if !report.skipped {
            self.progress.applied += 1;
            self.progress.skipped_in_a_row = 0;
            return Ok(());
        }
        self.log.skipped.push(report.step - 1);
        self.log.overflow.push(report.overflow.clone());
        self.progress.skipped_in_a_row += 1;
        if self.progress.skipped_in_a_row < MOST_SKIPPED {
            return Ok(());
        }
        Err(Error::Option {
            flag: "--learning-rate",
            message: format!(
                "the gradients of the last {MOST_SKIPPED} steps, up to step {}, were not finite; \
                 lower it, lengthen the warm-up, or try --precision fp32",
                report.step
            ),
        })
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let (step, last) = (self.progress.step, self.progress.step == self.feeds.steps());
        let Some(Evaluation { every, feeds }) = &mut self.evaluation else {
            return Ok(());
        };
        if !last && !step.is_multiple_of(*every) {
            return Ok(());
        }
        let mut losses = Vec::new();
        for index in 0..feeds.steps() {
            let mut read = feeds.read(index)?;
            self.learner.scale(&mut read, 1.0);
            self.learner.executable.run(&read, &mut self.outputs)?;
            losses.extend(self.learner.losses(&self.outputs)?);
        }
        let evaluated = Evaluated {
            step,
            loss: finite(mean(&losses)),
        };
        self.log.eval.push(evaluated);
        observer.evaluated(&evaluated)
    }
}

impl Learner {
    /// # Errors
    /// An output that the loop reads is missing.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        let tracked = |name: &String| name.starts_with(HISTOGRAM);
        let by_histogram = self.scaled && recipe.loss_scaling == LossScaling::Histogram;
        if by_histogram && !self.update.iter().any(tracked) {
            let what = "--loss-scaling histogram with an update that counts no gradients; use auto";
            return Err(BackendError::Unsupported(what.to_owned()).into());
        }
        let has = |names: &[String], name: &str| names.iter().any(|other| other == name);
        let needed = [
            (&self.outputs, LOSS),
            (&self.update, "grad_norm"),
            (&self.update, "factor"),
        ];
        match needed.into_iter().find(|(names, name)| !has(names, name)) {
            None => Ok(()),
            Some((_, name)) => Err(Error::internal(format!("a training plan without `{name}`"))),
        }
    }

    /// Sets the loss scale of micro-batches, where the plan takes one.
    pub fn scale(&self, feeds: &mut [Feed], loss_scale: f32) {
        if self.scaled {
            set_loss_scale(feeds, loss_scale);
        }
    }

    /// The loss of each micro-batch.
    fn losses(&self, outputs: &[Outputs]) -> Result<Vec<f64>> {
        let loss = |outputs: &Outputs| Ok(f64::from(scalar(&self.outputs, LOSS, outputs)?));
        outputs.iter().map(loss).collect()
    }

    /// A scalar output of the update.
    fn updated(&self, name: &str, update: &Outputs) -> Result<f32> {
        scalar(&self.update, name, update)
    }

    /// The histograms of all tracked gradients together, if the update gives any.
    fn histogram(&self, update: &Outputs) -> Option<Histogram> {
        let tracked = self.update.iter().zip(update);
        let mut found = tracked
            .filter(|(name, _)| name.starts_with(HISTOGRAM))
            .peekable();
        found.peek()?;
        let mut histogram = Histogram::default();
        for (_, tensor) in found {
            if let &[lower, upper] = tensor.reals() {
                histogram.add([lower, upper]);
            }
        }
        Some(histogram)
    }
}

/// The scalar of that name among outputs.
fn scalar(names: &[String], name: &str, outputs: &Outputs) -> Result<f32> {
    let index = names.iter().position(|other| other == name);
    let value = index.and_then(|index| outputs.get(index)?.reals().first().copied());
    value.ok_or_else(|| Error::internal(format!("a run without the output `{name}`")))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What JSON can hold.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Whether a checkpoint lies directly in a folder.
pub(super) fn is_inside(checkpoint: &Path, folder: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    let parent = real(checkpoint).and_then(|path| path.parent().map(Path::to_path_buf));
    parent.is_some() && parent == real(folder)
}
