//! Tests of training, on a model small enough to compute by hand.

mod batches;
mod checkpoints;
mod export;
mod linear;
mod run;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lxpod_ir::DType;
use lxpod_ir::front::Task;
use serde_json::Map;

use super::{
    Evaluated, Evaluation, Export, Feeds, Gate, Learner, LossScaling, Observer, Outcome, Recipe,
    RecipeName, RunFolder, Saving, StepReport, Trainer, WarmUp,
};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::model::{BUILT_IN, Model};
use linear::{Linear, LinearFeeds};

/// Steps of a whole run.
const STEPS: usize = 7;

/// The checkpoint behind the linear model; `frozen` has no gradient.
struct Tensors(BTreeMap<&'static str, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    fn new() -> Tensors {
        let third = |from: f32, count: usize| (0..count).map(|at| from + at as f32 / 3.0).collect();
        Tensors(BTreeMap::from([
            ("a", (vec![1, 3], third(0.1, 3))),
            ("b", (vec![1, 3], third(-1.0, 3))),
            ("frozen", (vec![5], third(7.0, 5))),
        ]))
    }

    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let entry = |(name, (shape, _)): (&&str, &(Vec<usize>, Vec<f32>))| {
            ((*name).to_owned(), shape.clone())
        };
        self.0.iter().map(entry).collect()
    }
}

impl Weights for Tensors {
    fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.0[name].0)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (shape, values) = &self.0[name];
        let width: usize = shape[1..].iter().product();
        out.copy_from_slice(&values[rows.start * width..rows.end * width]);
        Ok(())
    }
}

/// What a test varies.
struct Setup {
    recipe: Recipe,
    /// The largest scaled gradient that is stored; larger ones become infinite.
    largest: f32,
    scaled: bool,
    histogram: bool,
    every: Option<usize>,
    evaluation: Option<usize>,
    dtype: DType,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            recipe: Recipe {
                learning_rate: 0.05,
                warmup: WarmUp::Steps(1),
                loss_scaling: LossScaling::Static(1024.0),
                ..Recipe::named(RecipeName::Hf)
            },
            largest: f32::INFINITY,
            scaled: false,
            histogram: false,
            every: None,
            evaluation: None,
            dtype: DType::F32,
        }
    }

    fn trainer(&self, folder: &Path) -> Result<Trainer> {
        self.trainer_of(folder, STEPS)
    }

    fn trainer_of(&self, folder: &Path, steps: usize) -> Result<Trainer> {
        self.build(folder, Box::new(|_| Ok(())), steps)
    }

    fn gated(&self, folder: &Path, gate: Gate) -> Result<Trainer> {
        self.build(folder, gate, STEPS)
    }

    fn build(&self, folder: &Path, gate: Gate, steps: usize) -> Result<Trainer> {
        let tensors = Tensors::new();
        let export = Export::new(
            &Model::open(BUILT_IN, 0)?,
            Task::Qa,
            tensors.expected(),
            Box::new(Tensors::new()),
            self.dtype,
        )?;
        let learner: Learner = Linear::learner(self, &tensors);
        let feeds = |steps| -> Box<dyn Feeds> { Box::new(LinearFeeds { steps }) };
        let evaluation = self.evaluation.map(|every| Evaluation {
            every,
            feeds: feeds(2),
        });
        let saving = Saving {
            folder: RunFolder::with_gate(folder, gate)?,
            export,
            every: self.every,
        };
        Trainer::new(
            learner,
            feeds(steps),
            self.recipe.clone(),
            0,
            Map::new(),
            evaluation,
            saving,
        )
    }
}

/// Stops a run after a number of steps, and counts what it hears.
#[derive(Default)]
struct Watch {
    stop_after: Option<usize>,
    reports: Vec<StepReport>,
    evaluated: Vec<Evaluated>,
    saved: Vec<PathBuf>,
}

impl Watch {
    fn until(stop_after: Option<usize>) -> Watch {
        Watch {
            stop_after,
            ..Watch::default()
        }
    }

    fn run(&mut self, trainer: &mut Trainer) -> Result<Outcome> {
        // The flag is shared with the observer, as a signal handler shares it.
        let stop = Arc::new(AtomicBool::new(false));
        let mut listener = Listener {
            watch: self,
            stop: stop.clone(),
        };
        trainer.run(&mut listener, &stop)
    }
}

struct Listener<'a> {
    watch: &'a mut Watch,
    stop: Arc<AtomicBool>,
}

impl Observer for Listener<'_> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.watch.reports.push(report.clone());
        if self.watch.stop_after == Some(report.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn evaluated(&mut self, evaluated: &Evaluated) -> Result<()> {
        self.watch.evaluated.push(*evaluated);
        Ok(())
    }

    fn saved(&mut self, checkpoint: &Path) {
        self.watch.saved.push(checkpoint.to_owned());
    }
}

/// Runs to the end, or until so many steps are done.
fn run(trainer: &mut Trainer, stop_after: Option<usize>) -> Result<Outcome> {
    Watch::until(stop_after).run(trainer)
}

/// The bytes of a final model and its log.
fn results(folder: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "log.json"].map(|name| std::fs::read(folder.join(name)).unwrap())
}
