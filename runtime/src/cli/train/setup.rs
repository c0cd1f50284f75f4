//! From the arguments of `train` to a run.

use std::path::{Path, PathBuf};

use lxpod_ir::front::{AnswerLoss, Losses, ModelOptions, Task, build};
use lxpod_ir::{DType, Graph};
use lxpod_passes::{CompileError, CompileOptions, Precision, config_hash};
use lxpod_runtime::train::{
    Batches, Evaluation, Export, Recipe, RunFolder, Saving, TrainableOptions, Trainer, checkpoints,
    newest, trainable,
};
use lxpod_runtime::{Error, Model, Samples, SessionOptions};
use serde_json::{Map, Value};

use super::Train;
use super::progress::bar;
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::options::{Mode, PlanOptions};
use crate::cli::source::{Subject, explained};

/// A run's parts, checked, before anything is compiled.
pub(crate) struct Setup {
    pub(crate) model: Model,
    pub(crate) task: Task,
    pub(crate) precision: Precision,
    pub(crate) recipe: Recipe,
    compile: CompileOptions,
    micro_batches: usize,
    frozen: Vec<String>,
    seed: u64,
}

impl Setup {
    /// Checks everything that can be checked before the data are read.
    pub(crate) fn new(train: &Train, global: &Global) -> Result<Setup> {
        let Subject::Model(name) = Subject::of(&train.model)? else {
            let message = format!(
                "{}: is no model; name a folder or lxmert-base: train compiles its own plan",
                train.model.display()
            );
            return Err(CliError::Usage(message));
        };
        let options = plan_options(&train.options, global)?;
        let model = Model::open(&name, options.seed.unwrap_or(0))?;
        let task = options.task_of(&model);
        let mut recipe = train.flags.recipe_storing(options.first_moment());
        recipe.loss = options.loss.map_or(recipe.loss, AnswerLoss::from);
        recipe.check()?;
        check_output(train, &model)?;
        let batches = Batches::open(&train.batches, &model.config, task)?;
        let samples = batches.samples(0)?;
        let built = ModelOptions {
            dropout: !train.no_dropout,
            ..model_options(&options, &model, &samples, &recipe)?
        };
        let compile = options.compile_options(built, &model.config)?;
        compile.resolved_stages()?;
        let micro_batches = options.usage()?.micro_batches;
        batches.steps(micro_batches * compile.replicas)?;
        validate(&batches, global)?;
        Ok(Setup {
            task,
            precision: compile.precision,
            micro_batches,
            frozen: train.flags.freeze.clone(),
            seed: options.seed.unwrap_or(0),
            model,
            recipe,
            compile,
        })
    }

    /// Compiles, loads, and puts a checkpoint's state in place.
    pub(crate) fn trainer(&self, train: &Train, global: &Global) -> Result<Trainer> {
        let resumed = resumed(train, global)?;
        let source = match &resumed {
            None => self.model.clone(),
            Some(checkpoint) => Model::open(&checkpoint.to_string_lossy(), 0)?,
        };
        let built = build(&self.model.config, &self.compile.model).map_err(CompileError::from)?;
        self.check_frozen(&built.expected)?;
        let (weights, report) = source.weights_of(&built.expected)?;
        report.notes.iter().for_each(|note| global.note(note));
        let options = self.trainable_options(global);
        let loaded = trainable(&self.model, &options, weights.as_ref());
        let (learner, graph) = loaded.map_err(|error| match error {
            Error::Compile(error) => explained(error, &self.model, &options.with_update()),
            other => other.into(),
        })?;
        let evaluation = self.evaluation(train, &graph, global)?;
        let batches = self.batches(&train.batches)?;
        let record = self.record(&batches);
        let feeds = batches.feeds(graph, self.micro_batches * self.compile.replicas)?;
        let seed = self.seed;
        let feeds = Box::new(feeds.seeded(seed));
        let (expected, dtype) = (built.expected, self.stored());
        let saving = Saving {
            export: Export::new(&source, self.task, expected, weights, dtype)?,
            folder: RunFolder::open(&train.output)?,
            every: train.save_every,
        };
        let recipe = self.recipe.clone();
        let mut trainer = Trainer::new(learner, feeds, recipe, seed, record, evaluation, saving)?;
        if let Some(checkpoint) = &resumed {
            trainer.resume(checkpoint)?;
        }
        Ok(trainer)
    }

    /// # Errors
    /// No tensor's name begins with what `--freeze` names.
    fn check_frozen(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let begins = |start: &str| expected.iter().any(|(name, _)| name.starts_with(start));
        match self.frozen.iter().find(|start| !begins(start)) {
            None => Ok(()),
            Some(start) => {
                let first = expected.first().map_or("", |(name, _)| name);
                let message =
                    format!("no tensor's name begins with `{start}`; names are like `{first}`");
                Err(CliError::option("--freeze", message))
            }
        }
    }

    fn trainable_options(&self, global: &Global) -> TrainableOptions {
        TrainableOptions {
            compile: self.compile.clone(),
            recipe: self.recipe.clone(),
            frozen: self.frozen.clone(),
            session: SessionOptions {
                threads: global.threads.unwrap_or(0),
                ..SessionOptions::default()
            },
        }
    }

    fn batches(&self, path: &Path) -> Result<Batches> {
        Ok(Batches::open(path, &self.model.config, self.task)?)
    }

    fn evaluation(
        &self,
        train: &Train,
        graph: &Graph,
        global: &Global,
    ) -> Result<Option<Evaluation>> {
        let (Some(path), Some(every)) = (&train.eval_batches, train.eval_every) else {
            return Ok(None);
        };
        let batches = self.batches(path)?;
        validate(&batches, global)?;
        let feeds = Box::new(batches.feeds(graph.clone(), 1)?);
        Ok(Some(Evaluation { every, feeds }))
    }

    /// How trained parameters are stored in checkpoints.
    fn stored(&self) -> DType {
        match self.precision {
            Precision::Mixed if !self.recipe.master_weights => DType::F16,
            Precision::Mixed | Precision::Fp32 => DType::F32,
        }
    }

    /// What, beside the recipe, decides a run's result. Where it is placed does not.
    fn record(&self, batches: &Batches) -> Map<String, Value> {
        Map::from_iter([
            (
                "config".to_owned(),
                config_hash(&self.model.config.to_json()).into(),
            ),
            ("task".to_owned(), self.task.name().into()),
            ("precision".to_owned(), self.precision.name().into()),
            ("replicas".to_owned(), self.compile.replicas.into()),
            ("dropout".to_owned(), self.compile.model.dropout.into()),
            ("batches".to_owned(), batches.description()),
        ])
    }
}

/// The checkpoint to go on from, if any.
fn resumed(train: &Train, global: &Global) -> Result<Option<PathBuf>> {
    let Some(folder) = &train.resume else {
        return Ok(None);
    };
    let (checkpoint, notes) = newest(folder)?;
    notes.iter().for_each(|note| global.note(note));
    global.note(&format!("resuming from {}", checkpoint.display()));
    Ok(Some(checkpoint))
}

/// The plan options, without those that `train` decides.
fn plan_options(given: &PlanOptions, global: &Global) -> Result<PlanOptions> {
    if given.mode == Some(Mode::Inference) {
        return Err(CliError::option("--mode", "train trains; leave it out"));
    }
    let options = PlanOptions {
        mode: Some(Mode::Training),
        ..given.clone()
    };
    let options = options.resolved(global)?;
    options.usage()?;
    Ok(options)
}

/// What to build: of the sizes of the batches, with the loss that is minimised.
fn model_options(
    options: &PlanOptions,
    model: &Model,
    samples: &Samples,
    recipe: &Recipe,
) -> Result<ModelOptions> {
    let sizes = [
        ("--micro-batch", options.micro_batch, samples.batch),
        ("--seq-len", options.seq_len, samples.tokens),
        ("--boxes", options.boxes, samples.boxes),
    ];
    for (flag, given, found) in sizes {
        if given.is_some_and(|given| given != found) {
            let message = format!("the batches have {found}; leave it out");
            return Err(CliError::option(flag, message));
        }
    }
    let task = options.task_of(model);
    let losses = samples.model_options(task, recipe.loss).losses;
    let problem = match (&losses, recipe.loss) {
        (Losses::Answer { loss: Some(_), .. } | Losses::Pretraining(_), _) => None,
        (_, _) if task == Task::Base => Some("the task base has no loss; choose another --task"),
        (_, AnswerLoss::CrossEntropy) if task == Task::Qa => {
            Some("cross-entropy needs `labels` in the batches; with soft_labels: --loss bce")
        }
        (_, _) if task == Task::Qa => {
            Some("needs `soft_labels` in the batches; with labels: --loss cross-entropy")
        }
        (_, _) => Some("the batches have no labels for any loss of this task"),
    };
    match problem {
        Some(message) => Err(CliError::option("--loss", message)),
        None => Ok(ModelOptions {
            losses,
            ..options.model_options_for(model, samples)?
        }),
    }
}

/// # Errors
/// The folder is the model's own, or holds checkpoints of a run that is not resumed.
fn check_output(train: &Train, model: &Model) -> Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    let Some(output) = real(&train.output) else {
        return Ok(());
    };
    let own = model.folder().and_then(real);
    if own
        .as_ref()
        .is_some_and(|own| *own == output || own.starts_with(&output))
    {
        let message = "is the folder of the model to train; name another";
        return Err(CliError::option("--output", message));
    }
    let resumed = train.resume.as_deref().and_then(real);
    if output.is_dir()
        && !checkpoints(&output)?.is_empty()
        && !resumed.is_some_and(|resumed| resumed.starts_with(&output))
    {
        let shown = train.output.display();
        let message = format!(
            "{shown} holds checkpoints of an earlier run; go on with --resume {shown}, or name another folder"
        );
        return Err(CliError::option("--output", message));
    }
    Ok(())
}

/// Reads all batches once.
fn validate(batches: &Batches, global: &Global) -> Result<()> {
    let bar = bar(global, "checking batches", batches.len());
    let checked = batches.validate(&mut |index| bar.set_position(index as u64 + 1));
    bar.finish_and_clear();
    Ok(checked?)
}
