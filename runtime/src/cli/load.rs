//! From arguments to a session: model, samples, plan, weights.

use std::path::Path;
use std::time::Instant;

use lxpod_ir::front::{Losses, LxmertConfig, ModelOptions, Task};
use lxpod_passes::CompileOptions;
use lxpod_passes::plan::Plan;
use lxpod_runtime::checkpoint::Weights;
use lxpod_runtime::{BUILT_IN, Model, Samples, Session, SessionOptions, read_tensors};

use super::Global;
use super::error::{CliError, Result};
use super::made_up::MadeUp;
use super::options::PlanOptions;
use super::source::{Subject, compile_or_explain, read_plan};

/// What to load.
pub(crate) struct Request<'a> {
    /// A model or a plan.
    pub(crate) subject: &'a Path,
    /// The model of a plan.
    pub(crate) model: Option<&'a str>,
    /// What to run.
    pub(crate) inputs: Inputs<'a>,
    /// What to compile.
    pub(crate) options: &'a PlanOptions,
    /// Whether the gradients of a training step are outputs; there is no update then.
    pub(crate) gradients: bool,
    /// How to run.
    pub(crate) session: SessionOptions,
}

/// The samples to run.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// Those of a file.
    File(&'a Path),
    /// Made-up ones, for the most tokens and boxes there may be.
    Made(&'a MadeUp),
}

/// A plan, its weights and its samples.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) weights: Box<dyn Weights>,
    pub(crate) samples: Samples,
    /// Absent if the plan came from a file.
    compile_seconds: Option<f64>,
    /// When the plan was there.
    planned: Instant,
}

/// A session and its samples.
pub(crate) struct Loaded {
    pub(crate) plan: Plan,
    pub(crate) session: Session,
    pub(crate) samples: Samples,
    /// Absent if the plan came from a file.
    pub(crate) compile_seconds: Option<f64>,
    /// From the plan to a session with all weights.
    pub(crate) load_seconds: f64,
}

impl Request<'_> {
    /// Opens, compiles and loads.
    pub(crate) fn load(&self, global: &Global) -> Result<Loaded> {
        let Prepared {
            plan,
            weights,
            samples,
            compile_seconds,
            planned,
        } = self.prepare(global)?;
        let session = Session::new(plan.clone(), weights.as_ref(), self.session)?;
        Ok(Loaded {
            plan,
            session,
            samples,
            compile_seconds,
            load_seconds: planned.elapsed().as_secs_f64(),
        })
    }

    /// Opens and compiles.
    pub(crate) fn prepare(&self, global: &Global) -> Result<Prepared> {
        match Subject::of(self.subject)? {
            Subject::Plan(_) if self.gradients => {
                let message = "gradients of a plan file; name the model it was compiled from";
                Err(CliError::Unsupported(message.to_owned()))
            }
            Subject::Plan(path) => {
                let plan = read_plan(&path)?;
                self.options.check_settled(&path, &plan)?;
                if self.session.dropout.is_some() && plan.provenance.options["dropout"] != true {
                    let message = "the plan drops nothing; name the model it was compiled from";
                    return Err(CliError::option("--dropout", message));
                }
                let model = self.model_of(&plan)?;
                let task = plan.provenance.options["task"]
                    .as_str()
                    .and_then(|task| task.parse().ok());
                let task = task.unwrap_or_else(|| self.options.task_of(&model));
                let limits = limits(&plan);
                Self::finish(
                    &model,
                    plan,
                    None,
                    |config| self.samples(config, task, limits),
                    global,
                )
            }
            Subject::Model(name) => {
                if self.model.is_some() {
                    let message = "goes with a plan; the model is named already";
                    return Err(CliError::option("--model", message));
                }
                let model = Model::open(&name, self.options.seed.unwrap_or(0))?;
                let task = self.options.task_of(&model);
                let limits = (
                    self.options.seq_len.unwrap_or(20),
                    self.options.boxes.unwrap_or(36),
                );
                let samples = self.samples(&model.config, task, limits)?;
                let built = ModelOptions {
                    dropout: self.session.dropout.is_some(),
                    ..self.options.model_options_for(&model, &samples)?
                };
                let resolved = self.resolve(built, &model.config)?;
                let (plan, report) = compile_or_explain(&model, &resolved, global, &mut |_, _| {})?;
                let seconds = Some(report.duration.as_secs_f64());
                Self::finish(&model, plan, seconds, |_| Ok(samples), global)
            }
            Subject::Graph(path) | Subject::Tensors(path) => Err(CliError::Usage(format!(
                "{}: is neither a model nor a plan; name a folder, lxmert-base, or a FILE.plan",
                path.display()
            ))),
        }
    }

    /// Where to place what was built, and whether it gives gradients.
    fn resolve(&self, built: ModelOptions, config: &LxmertConfig) -> Result<CompileOptions> {
        let lost = matches!(
            built.losses,
            Losses::None | Losses::Answer { loss: None, .. }
        );
        let mut resolved = self.options.compile_options(built, config)?;
        if let Some(training) = resolved.training.as_mut().filter(|_| self.gradients) {
            if lost {
                let message = "gradients need a loss; the inputs have no labels for one";
                return Err(CliError::option("--gradients", message));
            }
            training.update = None;
        }
        Ok(resolved)
    }

    fn finish(
        model: &Model,
        plan: Plan,
        compile_seconds: Option<f64>,
        samples: impl FnOnce(&LxmertConfig) -> Result<Samples>,
        global: &Global,
    ) -> Result<Prepared> {
        let planned = Instant::now();
        let (weights, report) = model.weights(&plan)?;
        for note in &report.notes {
            global.note(note);
        }
        Ok(Prepared {
            samples: samples(&model.config)?,
            plan,
            weights,
            compile_seconds,
            planned,
        })
    }

    /// The model whose weights a plan runs with.
    fn model_of(&self, plan: &Plan) -> Result<Model> {
        let name = match self.model {
            Some(name) => name,
            None if plan.provenance.model == BUILT_IN => BUILT_IN,
            None => {
                let message = format!(
                    "a plan holds no weights; name the folder of `{}`: --model DIR",
                    plan.provenance.model
                );
                return Err(CliError::option("--model", message));
            }
        };
        Ok(Model::open(name, self.options.seed.unwrap_or(0))?)
    }

    /// The samples, for texts of at most so many tokens and images of at most so many boxes.
    fn samples(
        &self,
        config: &LxmertConfig,
        task: Task,
        limits: (usize, usize),
    ) -> Result<Samples> {
        match self.inputs {
            Inputs::File(path) => Ok(Samples::from_tensors(
                &read_tensors(path)?,
                path,
                config,
                task,
            )?),
            Inputs::Made(made_up) => {
                let tensors = made_up.tensors(config, limits)?;
                Ok(Samples::from_tensors(
                    &tensors,
                    Path::new("(made up)"),
                    config,
                    task,
                )?)
            }
        }
    }
}

/// The most tokens and boxes of a plan.
fn limits(plan: &Plan) -> (usize, usize) {
    let option = |name: &str, default: usize| {
        let value = plan.provenance.options[name].as_u64();
        value
            .and_then(|value| usize::try_from(value).ok())
            .unwrap_or(default)
    };
    (option("seq_len", 20), option("boxes", 36))
}
