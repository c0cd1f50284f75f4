//! Training data: micro-batches stacked in one `.safetensors` file, in order of use.
//!
//! Every tensor has the axes of `run`'s inputs behind one that counts micro-batches: `input_ids`
//! [steps × accumulation, micro-batch, tokens]. Only one micro-batch is in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_backends::Feed;
use lxpod_ir::Graph;
use lxpod_ir::front::{LxmertConfig, Task};

use crate::error::{Error, Result};
use crate::pack::{Dropping, Packer};
use crate::samples::{Content, FIELDS, IGNORED_LABEL, Samples, Values, reads};
use crate::tensors::TensorFile;

/// Where a training run gets its micro-batches.
pub trait Feeds {
    /// Optimiser steps in a run.
    fn steps(&self) -> usize;

    /// Micro-batches of one step, those of all replicas together.
    fn micro_batches(&self) -> usize;

    /// Samples of one step.
    fn samples(&self) -> usize;

    /// The micro-batches of a step, in order.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&mut self, step: usize) -> Result<Vec<Feed>>;
}

/// An open file of stacked micro-batches.
#[derive(Debug)]
pub struct Batches {
    file: TensorFile,
    config: LxmertConfig,
    task: Task,
    micro_batches: usize,
}

const STACKED: &str =
    "stack micro-batches in order of use: [steps x accumulation, micro-batch, ...]";

impl Batches {
    /// Opens a file and checks that all tensors that the task reads count the same micro-batches.
    ///
    /// # Errors
    /// The file cannot be read, is no safetensors file, or is not stacked; names the tensor.
    pub fn open(path: &Path, config: &LxmertConfig, task: Task) -> Result<Batches> {
        let file = TensorFile::open(path)?;
        let wrong = |name: &str, problem: String| {
            Err(Error::invalid(
                path,
                format!("tensor `{name}`"),
                problem,
                STACKED,
            ))
        };
        let first = "input_ids";
        let micro_batches = match file.get(first).map(|info| info.shape.as_slice()) {
            None => return wrong(first, "is missing".to_owned()),
            Some(&[stacked, _, _]) if stacked > 0 => stacked,
            Some(shape) => return wrong(first, format!("has shape {shape:?}")),
        };
        let batches = Batches {
            file,
            config: config.clone(),
            task,
            micro_batches,
        };
        for name in batches.names() {
            let shape = &batches.file.get(name).map(|info| info.shape.as_slice());
            match shape {
                Some([stacked, _, ..]) if *stacked == micro_batches => {}
                Some([stacked, _, ..]) => {
                    let problem =
                        format!("counts {stacked} micro-batches, `{first}` counts {micro_batches}");
                    return wrong(name, problem);
                }
                other => return wrong(name, format!("has shape {:?}", other.unwrap_or_default())),
            }
        }
        Ok(batches)
    }

    /// The names of the file's tensors that the task reads.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names().filter(|&name| {
            let known = FIELDS.iter().any(|field| field.name == name);
            name == "image_index" || known && reads(self.task, name)
        })
    }

    /// Micro-batches in the file.
    pub fn len(&self) -> usize {
        self.micro_batches
    }

    /// Never true: a file of no micro-batch is refused.
    pub fn is_empty(&self) -> bool {
        self.micro_batches == 0
    }

    /// What tells this file from another, without reading it whole: name, type and shape of each
    /// tensor that is read.
    pub fn description(&self) -> serde_json::Value {
        let entry = |name: &str| {
            let info = self.file.get(name)?;
            Some((
                name.to_owned(),
                serde_json::json!([info.dtype.to_string(), info.shape]),
            ))
        };
        self.names().filter_map(entry).collect()
    }

    /// One micro-batch.
    ///
    /// # Errors
    /// As [`Samples::from_tensors`]; the message counts micro-batches from 0.
    pub fn samples(&self, index: usize) -> Result<Samples> {
        let mut tensors = BTreeMap::new();
        for name in self.names() {
            let tensor = self.file.read_rows(name, index..index + 1)?.into_entry()?;
            tensors.insert(name.to_owned(), tensor);
        }
        Samples::from_tensors(&tensors, self.file.path(), &self.config, self.task)
            .map_err(|error| within(index, error))
    }

    /// Reads the whole file once, a micro-batch at a time, and checks every value. `progress` hears
    /// of each micro-batch.
    ///
    /// # Errors
    /// A value is not finite or out of range, or all labels of a micro-batch are ignored, so that
    /// its loss has no value; names the micro-batch, the tensor and the element.
    pub fn validate(&self, progress: &mut dyn FnMut(usize)) -> Result<()> {
        for index in 0..self.micro_batches {
            let samples = self.samples(index)?;
            let wrong = |(name, problem): (&str, String)| {
                let help = "correct the file: a training run must not meet this half-way";
                let field = format!("tensor `{name}`");
                within(
                    index,
                    Error::invalid(self.file.path(), field, problem, help),
                )
            };
            find_problem(&samples).map_or(Ok(()), |found| Err(wrong(found)))?;
            progress(index);
        }
        Ok(())
    }

    /// The number of steps of `per_step` micro-batches each.
    ///
    /// # Errors
    /// The file holds no whole number of steps.
    pub fn steps(&self, per_step: usize) -> Result<usize> {
        let found = self.micro_batches;
        if !found.is_multiple_of(per_step) {
            let problem = format!(
                "holds {found} micro-batches, no multiple of the {per_step} of a step \
                 (--gradient-accumulation times --replicas)"
            );
            return Err(Error::invalid(
                self.file.path(),
                "leading axis",
                problem,
                STACKED,
            ));
        }
        Ok(found / per_step)
    }

    /// The micro-batches as a plan's graph takes them, `per_step` in each step.
    ///
    /// # Errors
    /// The file holds no whole number of steps, or its micro-batches are larger than the plan's.
    pub fn feeds(self, graph: Graph, per_step: usize) -> Result<BatchFeeds> {
        self.steps(per_step)?;
        let samples = self.samples(0)?;
        if Packer::new(&graph, &samples)?.micro_batches().len() != 1 {
            let problem = format!(
                "micro-batches of {} are larger than the plan's",
                samples.batch
            );
            let (field, help) = (
                "tensor `input_ids`",
                "stack micro-batches of the training data's size",
            );
            return Err(Error::invalid(self.file.path(), field, problem, help));
        }
        let samples = samples.batch * per_step;
        Ok(BatchFeeds {
            seed: None,
            batches: self,
            graph,
            per_step,
            samples,
        })
    }
}

/// Micro-batches of a file, packed for a graph.
#[derive(Debug)]
pub struct BatchFeeds {
    /// Decides what is dropped, if anything is.
    seed: Option<u64>,
    batches: Batches,
    graph: Graph,
    per_step: usize,
    samples: usize,
}

impl BatchFeeds {
    /// The same, with what is dropped decided by this seed; without one, nothing is dropped.
    #[must_use]
    pub fn seeded(self, seed: u64) -> BatchFeeds {
        BatchFeeds {
            seed: Some(seed),
            ..self
        }
    }
}

impl Feeds for BatchFeeds {
    fn steps(&self) -> usize {
        self.batches.micro_batches / self.per_step
    }

    fn micro_batches(&self) -> usize {
        self.per_step
    }

    fn samples(&self) -> usize {
        self.samples
    }

    fn read(&mut self, step: usize) -> Result<Vec<Feed>> {
        let first = step * self.per_step;
        let feed = |index| {
            let samples = self.batches.samples(index)?;
            let dropping = self.seed.map(|seed| Dropping {
                seed,
                step: step as u64,
                first: (index - first) * samples.batch,
            });
            let packer = Packer::new(&self.graph, &samples)?.dropping(dropping);
            packer.pack(0..samples.batch)
        };
        (first..first + self.per_step).map(feed).collect()
    }
}

/// The first value that training cannot use: its tensor and what is wrong.
fn find_problem(samples: &Samples) -> Option<(&'static str, String)> {
    samples.values.iter().find_map(|(&name, values)| {
        let problem = match values {
            Values::Floats(values) => {
                let at = values.iter().position(|value| !value.is_finite())?;
                format!("element {at} is {}; must be finite", values[at])
            }
            Values::Ints(values) => {
                let field = FIELDS.iter().find(|field| field.name == name)?;
                let Content::Index(_, true, _) = field.content else {
                    return None;
                };
                let kept = values.iter().any(|&label| label != IGNORED_LABEL);
                (!kept).then(|| format!("every label is {IGNORED_LABEL}; the loss has no value"))?
            }
        };
        Some((name, problem))
    })
}

/// The error with the micro-batch in the field it names.
fn within(index: usize, error: Error) -> Error {
    match error {
        Error::InvalidFile {
            path,
            field,
            problem,
            help,
        } => Error::InvalidFile {
            path,
            field: format!("micro-batch {index}, {field}"),
            problem,
            help,
        },
        other => other,
    }
}
