//! `lxpod run`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use lxpod_backends::TileLedger;
use lxpod_passes::plan::Plan;
use lxpod_runtime::tensors::write_f32;
use lxpod_runtime::{BackendKind, NamedTensor, RunResult, SessionOptions};
use serde_json::{Value, json};

use super::error::{CliError, Result};
use super::load::{Inputs, Loaded, Request};
use super::machine::Machine;
use super::options::{Mode, PlanOptions, Use};
use super::output::{HEADING, STRONG, seconds, styled};
use super::report::{Report, micro_batch};
use super::table::Table;
use super::{Global, output};

/// Run a model or a plan on samples
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod run path/to/checkpoint --inputs in.safetensors --outputs out.safetensors\n  \
    lxpod run lxmert.plan --model path/to/checkpoint --inputs in.safetensors --json\n  \
    lxpod run lxmert-base --inputs in.safetensors --precision fp32 --backend reference\n  \
    lxpod run path/to/checkpoint --inputs in.safetensors --mode training \
    --gradients gradients.safetensors\n\n\
    Inputs: input_ids, visual_feats, visual_pos, and optionally attention_mask, token_type_ids,\n\
    visual_attention_mask, image_index and labels, as Transformers names them.")]
pub(crate) struct Run {
    /// A model, or a plan file
    #[arg(value_name = "MODEL|FILE.plan")]
    subject: PathBuf,

    /// The model whose weights a plan runs with
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// The samples
    #[arg(long, value_name = "IN.safetensors")]
    inputs: PathBuf,

    /// Write the outputs, in f32
    #[arg(long, value_name = "OUT.safetensors")]
    outputs: Option<PathBuf>,

    /// What runs the plan: the fast kernels, or the ops' definitions
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Backend,

    /// Check every access against the plan's live buffers; slow
    #[arg(long)]
    guard: bool,

    /// Drop out as the model's configuration says; --seed decides what
    #[arg(long)]
    dropout: bool,

    /// Write the gradient of every parameter, in f32; needs --mode training
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,

    #[command(flatten)]
    options: PlanOptions,
}

/// What runs a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    Cpu,
    Reference,
}

impl From<Backend> for BackendKind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Cpu => BackendKind::Cpu,
            Backend::Reference => BackendKind::Reference,
        }
    }
}

impl Run {
    pub(crate) fn run(mut self, global: &Global) -> Result<()> {
        self.options = self.options.resolved(global)?;
        self.check_supported()?;
        let used = self.options.usage()?;
        let request = Request {
            subject: &self.subject,
            model: self.model.as_deref(),
            inputs: Inputs::File(&self.inputs),
            options: &self.options,
            gradients: self.gradients.is_some(),
            session: SessionOptions {
                backend: self.backend.into(),
                threads: global.threads.unwrap_or(0),
                guard: self.guard,
                dropout: self.dropout.then(|| self.options.seed.unwrap_or(0)),
            },
        };
        let mut loaded = request.load(global)?;
        let result = loaded.session.run(&loaded.samples)?;
        let files = [
            (&self.outputs, &result.outputs),
            (&self.gradients, &result.gradients),
        ];
        for (path, tensors) in files {
            if let Some(path) = path {
                write_tensors(path, &loaded.plan, tensors)?;
            }
        }
        let used = Use {
            micro_batches: micro_batches(&loaded).min(1 << 16),
            ..used
        };
        let report = Report::new(&loaded.plan, used, loaded.compile_seconds);
        if global.json {
            let mut document = report.document();
            document["measured"] = measured(&loaded, &result);
            document["outputs"] = result.outputs.iter().map(output_document).collect();
            if self.gradients.is_some() {
                document["gradients"] = result.gradients.iter().map(shape_document).collect();
            }
            return output::json(&document);
        }
        let mut text = text(&report, &loaded, &result);
        let written = [("Outputs", &self.outputs), ("Gradients", &self.gradients)];
        for (what, path) in written {
            if let Some(path) = path {
                text += &format!("\n{what} written to {}.\n", path.display());
            }
        }
        output::print(&text)
    }

    fn check_supported(&self) -> Result<()> {
        match (
            self.options.mode == Some(Mode::Training),
            self.gradients.is_some(),
        ) {
            (false, true) => {
                let message = "inference has none; add --mode training";
                return Err(CliError::option("--gradients", message));
            }
            (true, false) => {
                let message = "training writes gradients; name a file: --gradients FILE";
                return Err(CliError::option("--mode", message));
            }
            (true, true) | (false, false) => {}
        }
        if self.gradients.is_some() && self.options.gradient_accumulation.is_some() {
            let message = "gradients are those of one micro-batch; leave it out";
            return Err(CliError::option("--gradient-accumulation", message));
        }
        if self.guard && self.backend == Backend::Reference {
            let message = "the reference backend has no tiles to guard; leave one of the two out";
            return Err(CliError::option("--guard", message));
        }
        Ok(())
    }
}

/// Micro-batches that the busiest replica gets.
fn micro_batches(loaded: &Loaded) -> usize {
    let size = micro_batch(&loaded.plan.graph) * loaded.plan.replicas;
    loaded.samples.batch.div_ceil(size.max(1)).max(1)
}

/// Writes tensors in f32.
fn write_tensors(path: &Path, plan: &Plan, tensors: &[NamedTensor]) -> Result<()> {
    let provenance = &plan.provenance;
    let metadata = BTreeMap::from([
        (
            "producer".to_owned(),
            format!("lxpod {}", env!("CARGO_PKG_VERSION")),
        ),
        ("model".to_owned(), provenance.model.clone()),
        ("config_hash".to_owned(), provenance.config_hash.clone()),
        ("options".to_owned(), provenance.options.to_string()),
    ]);
    let tensors = tensors.iter().map(|tensor| {
        let NamedTensor {
            name,
            shape,
            values,
        } = tensor;
        (name.as_str(), shape.as_slice(), values.as_slice())
    });
    Ok(write_f32(path, &metadata, tensors)?)
}

fn measured(loaded: &Loaded, result: &RunResult) -> Value {
    let time = result.duration.as_secs_f64();
    json!({
        "seconds": time,
        "samples_per_second": rate(loaded, time),
        "samples": loaded.samples.batch,
        "load_seconds": loaded.load_seconds,
        "backend": loaded.session.description(),
        "machine": Machine::this().document(),
        "ledger": loaded.session.ledger().iter().map(ledger_document).collect::<Vec<_>>(),
        "host": loaded.session.host(),
    })
}

/// What a tile really used: the executed categories, zeros included.
fn ledger_document(ledger: &TileLedger) -> Value {
    let mut memory: serde_json::Map<String, Value> = ledger
        .memory
        .executed()
        .into_iter()
        .map(|(category, bytes)| (category.to_owned(), json!(bytes)))
        .collect();
    memory.insert("max_live".to_owned(), json!(ledger.memory.max_live));
    json!({"tile": ledger.tile, "memory": memory})
}

fn rate(loaded: &Loaded, seconds: f64) -> f64 {
    loaded.samples.batch as f64 / seconds.max(1e-9)
}

fn shape_document(tensor: &NamedTensor) -> Value {
    json!({"name": tensor.name, "shape": tensor.shape})
}

fn output_document(output: &NamedTensor) -> Value {
    let mut document = shape_document(output);
    if let ([], [value]) = (output.shape.as_slice(), output.values.as_slice()) {
        // JSON has no NaN; a loss over no label is one.
        document["value"] = json!(value.is_finite().then_some(value));
    }
    document
}

fn text(report: &Report<'_>, loaded: &Loaded, result: &RunResult) -> String {
    let time = result.duration.as_secs_f64();
    let line =
        |name: &str, value: &str| format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")));
    let mut text = report.head();
    text += &line(
        "measured",
        &format!(
            "{}: {} in {}, after loading for {}",
            styled(STRONG, format!("{:.1} samples/s", rate(loaded, time))),
            output::plural(loaded.samples.batch, "sample"),
            seconds(time),
            seconds(loaded.load_seconds),
        ),
    );
    text += &line(
        "on",
        &format!(
            "{}; {}",
            loaded.session.description(),
            Machine::this().text()
        ),
    );
    text += &line(
        "ledger",
        &ledger_verdict(&loaded.plan, &loaded.session.ledger()),
    );
    text.push('\n');
    text += &outputs(result);
    text
}

/// Whether any tile used more than planned.
fn ledger_verdict(plan: &Plan, ledger: &[TileLedger]) -> String {
    if ledger.is_empty() {
        return "none: this backend has no tiles".to_owned();
    }
    for entry in ledger {
        let planned = plan.tiles[entry.tile % plan.tiles.len()].memory.executed();
        for ((name, used), (_, planned)) in entry.memory.executed().into_iter().zip(planned) {
            if used > planned {
                return format!(
                    "tile {} used {used} bytes of {name}, {planned} were planned",
                    entry.tile
                );
            }
        }
    }
    format!(
        "{} within the plan, in every category",
        output::plural(ledger.len(), "tile")
    )
}

/// A table of the outputs.
fn outputs(result: &RunResult) -> String {
    let mut table = Table::new(&["<output", "<shape", "smallest", "largest", "mean"]);
    for output in &result.outputs {
        let values = &output.values;
        let number = |value: f64| format!("{value:.6}");
        let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mean =
            values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64;
        let mut cells = vec![output.name.clone(), format!("{:?}", output.shape)];
        if !values.is_empty() {
            cells.extend([
                number(smallest.into()),
                number(largest.into()),
                number(mean),
            ]);
        }
        table.row(cells);
    }
    table.render()
}
