//! What a run carries from step to step beside the plan's persistent tensors.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_backends::{Overflow, Trainable};
use lxpod_ir::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::folder::Staging;
use super::loss_scale::LossScaler;
use crate::error::{Error, Result, quote};
use crate::tensors::{Dtype, TensorFile, TensorSpec};

/// The persistent tensors and, as metadata, the [`Progress`] and options of a run.
pub const STATE_FILE: &str = "training_state.safetensors";
/// The [`Log`].
pub const LOG_FILE: &str = "log.json";
/// The layout of a checkpoint.
const VERSION: u32 = 1;
const DAMAGED: &str = "name another checkpoint-N";

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done, skipped ones included: the position in the data.
    pub step: usize,
    /// Updates applied.
    pub applied: u64,
    /// Steps skipped in a row, up to the last.
    pub skipped_in_a_row: usize,
    /// What multiplies the loss; none in fp32.
    pub scaler: Option<LossScaler>,
}

/// The figures of a run, step by step. A figure that is no number, or infinite, is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// The mean loss of each step's micro-batches, before the update.
    pub loss: Vec<Option<f64>>,
    /// The loss of each micro-batch.
    pub micro_loss: Vec<Option<f64>>,
    /// The learning rate of each step.
    pub lr: Vec<f64>,
    /// The norm of each step's gradients, before clipping.
    pub grad_norm: Vec<Option<f64>>,
    /// What multiplied the loss in each step.
    pub loss_scale: Vec<f32>,
    /// The steps whose update was skipped because a gradient was not finite.
    pub skipped: Vec<usize>,
    /// For each of them, the first value that was not finite; null where only a sum over
    /// micro-batches was not.
    #[serde(default)]
    pub overflow: Vec<Option<Overflow>>,
    /// The mean loss of the evaluation data, and after how many steps.
    pub eval: Vec<Evaluated>,
}

/// The result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Steps done.
    pub step: usize,
    /// The mean loss of all micro-batches.
    pub loss: Option<f64>,
}

impl Log {
    /// The text of `log.json`.
    pub(super) fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Whether this can be the log of so many steps and micro-batches.
    fn fits(&self, steps: usize, micro_batches: usize) -> bool {
        let lengths = [
            self.loss.len(),
            self.lr.len(),
            self.grad_norm.len(),
            self.loss_scale.len(),
        ];
        lengths.into_iter().all(|length| length == steps) && self.micro_loss.len() == micro_batches
    }
}

/// Metadata of the state file.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    producer: String,
    progress: Progress,
    options: Map<String, Value>,
}

/// Writes the persistent tensors, the progress and the log.
pub(super) fn write(
    staging: &Staging<'_>,
    persistent: &[(String, Tensor<f32>)],
    progress: Progress,
    options: &Map<String, Value>,
    log: &Log,
) -> Result<()> {
    let record = Record {
        version: VERSION,
        producer: format!("lxpod {}", env!("CARGO_PKG_VERSION")),
        progress,
        options: options.clone(),
    };
    let record =
        serde_json::to_string(&record).map_err(|error| Error::internal(error.to_string()))?;
    let metadata = BTreeMap::from([("training".to_owned(), record)]);
    let spec = |(name, tensor): &(String, Tensor<f32>)| TensorSpec {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: tensor.shape.to_vec(),
    };
    let specs: Vec<TensorSpec> = persistent.iter().map(spec).collect();
    staging.tensors(STATE_FILE, &metadata, &specs, |writer| {
        let mut each = persistent.iter();
        each.try_for_each(|(name, tensor)| writer.write_f32(name, tensor.reals()))
    })?;
    staging.file(LOG_FILE, log.text().as_bytes())
}

/// Puts the state of a checkpoint into `executable` and returns progress and log.
///
/// # Errors
/// A file is damaged, or the checkpoint is of a run with other options; names what differs.
pub(super) fn read(
    folder: &Path,
    options: &Map<String, Value>,
    micro_batches: usize,
    executable: &mut dyn Trainable,
) -> Result<(Progress, Log)> {
    let file = TensorFile::open(&folder.join(STATE_FILE))?;
    let record = record_of(&file)?;
    check_options(file.path(), &record.options, options)?;
    let log = read_log(&folder.join(LOG_FILE))?;
    let progress = record.progress;
    let done = progress.step.checked_mul(micro_batches);
    if super::folder::step_of(folder) != Some(progress.step)
        || !done.is_some_and(|done| log.fits(progress.step, done))
    {
        let problem = format!("counts {} steps, unlike its folder or log", progress.step);
        return Err(Error::invalid(file.path(), "metadata", problem, DAMAGED));
    }
    let kept = executable.persistent();
    if let Some(name) = file
        .names()
        .find(|name| !kept.iter().any(|(kept, _)| kept == name))
    {
        let problem = "the plan keeps no such tensor";
        return Err(Error::invalid(file.path(), quote(name), problem, DAMAGED));
    }
    for (name, tensor) in kept {
        let stored = file.read(&name)?;
        if stored.shape() != &*tensor.shape {
            let problem = format!(
                "has shape {:?}, the plan needs {}",
                stored.shape(),
                tensor.shape
            );
            return Err(Error::invalid(file.path(), quote(&name), problem, DAMAGED));
        }
        executable.restore(&name, &Tensor::real(tensor.shape, stored.to_f32()?))?;
    }
    Ok((progress, log))
}

fn record_of(file: &TensorFile) -> Result<Record> {
    let wrong = |problem: String| Error::invalid(file.path(), "metadata", problem, DAMAGED);
    let text = file.metadata().get("training");
    let text = text.ok_or_else(|| wrong("holds no state of a training run".to_owned()))?;
    let record: Record = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if record.version != VERSION {
        let found = record.version;
        let problem = format!("is of layout {found}, this version reads {VERSION}");
        return Err(Error::unsupported(
            file.path(),
            "metadata",
            problem,
            format!("resume with the version that wrote it: {}", record.producer),
        ));
    }
    Ok(record)
}

/// # Errors
/// An option differs from the checkpoint's: the run would be another one.
fn check_options(
    path: &Path,
    stored: &Map<String, Value>,
    given: &Map<String, Value>,
) -> Result<()> {
    let names = stored.keys().chain(given.keys());
    for name in names {
        let (was, is) = (stored.get(name), given.get(name));
        if was != is {
            let show = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
            let problem = format!("was {} and is {} now", quote(&show(was)), quote(&show(is)));
            let help = "resume with the options, model and batches of the run, or start a new one";
            return Err(Error::invalid(
                path,
                format!("option `{name}`"),
                problem,
                help,
            ));
        }
    }
    Ok(())
}

fn read_log(path: &Path) -> Result<Log> {
    let bytes = std::fs::read(path).map_err(|error| Error::reading(path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid(path, "contents", error.to_string(), DAMAGED))
}
