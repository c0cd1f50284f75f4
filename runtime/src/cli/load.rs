//! From arguments to a session: model, samples, plan, weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lxpod_ir::front::{LxmertConfig, Task};
use lxpod_passes::plan::Plan;
use lxpod_runtime::tensors::{HostData, HostTensor};
use lxpod_runtime::{BUILT_IN, Model, Samples, Session, SessionOptions, read_tensors};

use super::Global;
use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::source::{Subject, compile_model, read_plan};

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
    /// How to run.
    pub(crate) session: SessionOptions,
}

/// The samples to run.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// Those of a file.
    File(&'a Path),
    /// That many made-up ones, as long as texts and images may be.
    Made { batch: usize },
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
        match Subject::of(self.subject)? {
            Subject::Plan(path) => {
                let plan = read_plan(&path)?;
                self.options.check_settled(&path, &plan)?;
                let model = self.model_of(&plan)?;
                let task = plan.provenance.options["task"]
                    .as_str()
                    .and_then(|task| task.parse().ok());
                let task = task.unwrap_or_else(|| self.options.task_of(&model));
                let limits = limits(&plan);
                self.finish(
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
                let built = self.options.model_options_for(&model, &samples)?;
                let resolved = self.options.compile_options(built)?;
                let (plan, report) = compile_model(&model, &resolved, global, &mut |_, _| {})?;
                let seconds = Some(report.duration.as_secs_f64());
                self.finish(&model, plan, seconds, |_| Ok(samples), global)
            }
            Subject::Graph(path) | Subject::Tensors(path) => Err(CliError::Usage(format!(
                "{}: is neither a model nor a plan; name a folder, lxmert-base, or a FILE.plan",
                path.display()
            ))),
        }
    }

    fn finish(
        &self,
        model: &Model,
        plan: Plan,
        compile_seconds: Option<f64>,
        samples: impl FnOnce(&LxmertConfig) -> Result<Samples>,
        global: &Global,
    ) -> Result<Loaded> {
        let start = Instant::now();
        let (weights, report) = model.weights(&plan)?;
        for note in &report.notes {
            global.note(note);
        }
        let samples = samples(&model.config)?;
        let session = Session::new(plan.clone(), weights.as_ref(), self.session)?;
        let load_seconds = start.elapsed().as_secs_f64();
        Ok(Loaded {
            plan,
            session,
            samples,
            compile_seconds,
            load_seconds,
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
            Inputs::Made { batch } => {
                let tensors = made_up(config, batch, limits)?;
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

/// The most elements of made-up inputs.
const MOST_ELEMENTS: usize = 1 << 30;

/// `batch` samples without padding: different words, features between 0 and 1.
fn made_up(
    config: &LxmertConfig,
    batch: usize,
    (tokens, boxes): (usize, usize),
) -> Result<BTreeMap<String, HostTensor>> {
    let features = config.visual_feat_dim + config.visual_pos_dim;
    let elements = batch.saturating_mul(boxes.saturating_mul(features).saturating_add(tokens));
    if elements > MOST_ELEMENTS {
        let message = format!("{batch} samples of that size do not fit memory; lower it");
        return Err(CliError::option("--batch", message));
    }
    let mut random = Sequence(0x5eed);
    let vocabulary = config.vocab_size as u64;
    let words = (0..batch * tokens)
        .map(|_| (random.next() % vocabulary) as i64)
        .collect();
    let mut floats = |count: usize| {
        (0..count)
            .map(|_| (random.next() % 1024) as f32 / 1024.0)
            .collect()
    };
    let made = [
        ("input_ids", vec![batch, tokens], HostData::I64(words)),
        (
            "visual_feats",
            vec![batch, boxes, config.visual_feat_dim],
            HostData::F32(floats(batch * boxes * config.visual_feat_dim)),
        ),
        (
            "visual_pos",
            vec![batch, boxes, config.visual_pos_dim],
            HostData::F32(floats(batch * boxes * config.visual_pos_dim)),
        ),
    ];
    let mut tensors = BTreeMap::new();
    for (name, shape, data) in made {
        tensors.insert(name.to_owned(), HostTensor::new(name, shape, data)?);
    }
    Ok(tensors)
}

/// Numbers that look random and are the same everywhere: Marsaglia's xorshift64.
pub(crate) struct Sequence(pub(crate) u64);

impl Sequence {
    /// The next number, never 0.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A float in -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
