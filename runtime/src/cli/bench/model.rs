//! `lxpod bench model`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use lxpod_ir::{Graph, Target};
use lxpod_passes::cost;
use lxpod_passes::plan::Plan;
use lxpod_runtime::SessionOptions;
use serde_json::{Value, json};

use super::saved::{self, Times};
use super::timing::{each, percentile};
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::load::{Inputs, Loaded, Request};
use crate::cli::machine::{Machine, peak_rss_bytes};
use crate::cli::options::{PlanOptions, positive, repeats, repeats_or_none};
use crate::cli::output::{self, HEADING, STRONG, bytes, styled};
use crate::cli::report::Report;
use crate::cli::table::Table;

/// Measure the latency of a model or a plan on this machine
#[derive(Args)]
pub(super) struct Model {
    /// A model, or a plan file
    #[arg(value_name = "MODEL|FILE.plan", default_value = "lxmert-base")]
    subject: PathBuf,

    /// The model whose weights a plan runs with
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Run these samples instead of made-up ones
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "batch")]
    inputs: Option<PathBuf>,

    /// Samples to make up
    #[arg(long, value_name = "B", default_value = "1", value_parser = positive)]
    batch: usize,

    /// Timed runs
    #[arg(long, value_name = "N", default_value = "10", value_parser = repeats)]
    repeat: usize,

    /// Untimed runs before
    #[arg(long, value_name = "K", default_value = "2", value_parser = repeats_or_none)]
    warmup: usize,

    /// Compare with a file of --save
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Keep the median for --baseline
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    #[command(flatten)]
    options: PlanOptions,
}

impl Model {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let used = self.options.usage()?;
        let baseline = self.baseline.as_deref().map(saved::read).transpose()?;
        let request = Request {
            subject: &self.subject,
            model: self.model.as_deref(),
            inputs: match &self.inputs {
                Some(path) => Inputs::File(path),
                None => Inputs::Made { batch: self.batch },
            },
            options: &self.options,
            session: SessionOptions {
                threads: global.threads.unwrap_or(0),
                ..SessionOptions::default()
            },
        };
        let mut loaded = request.load(global)?;
        let times = self.measure(&mut loaded)?;
        let median = percentile(&times, 0.5);
        let name = format!(
            "model {} batch {}",
            loaded.plan.provenance.model, loaded.samples.batch
        );
        if let Some(path) = &self.save {
            saved::save(path, &Times::from([(name.clone(), median)]))?;
        }
        let speedup = saved::speedup(baseline.as_ref(), &name, median);
        let report = Report::new(&loaded.plan, used, loaded.compile_seconds);
        if global.json {
            return output::json(&document(&report, &loaded, &times));
        }
        output::print(&text(&report, &loaded, &times, &speedup))
    }

    fn measure(&self, loaded: &mut Loaded) -> Result<Vec<f64>> {
        let Loaded {
            session, samples, ..
        } = loaded;
        let mut failure = None;
        let times = each(self.warmup, self.repeat, || {
            if failure.is_none()
                && let Err(error) = session.run(samples)
            {
                failure = Some(error);
            }
        });
        match failure {
            Some(error) => Err(CliError::Library(error)),
            None => Ok(times),
        }
    }
}

/// Seconds that the CPU's cost model predicts for one micro-batch at full capacity, by op.
fn predicted_ops(plan: &Plan) -> Vec<Value> {
    let Ok(target) = Target::named("cpu") else {
        return Vec::new();
    };
    let model = cost::model(&target);
    let graph: &Graph = &plan.graph;
    let mut ops: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for id in graph.nodes() {
        let op = &graph.node(id).op;
        if !op.is_leaf() && !op.is_view() {
            let entry = ops.entry(op.name()).or_default();
            entry.0 += 1;
            entry.1 += graph.cost(id).flops;
            entry.2 += model.node(graph, id).total();
        }
    }
    let clock = target.tile.clock_hz as f64;
    let document = |(name, (nodes, flops, cycles)): (&str, (u64, u64, u64))| json!({"op": name, "nodes": nodes, "flops": flops, "predicted_ms": cycles as f64 / clock * 1e3});
    ops.into_iter().map(document).collect()
}

fn document(report: &Report<'_>, loaded: &Loaded, times: &[f64]) -> Value {
    let mut document = report.document();
    let milliseconds = |rank| percentile(times, rank) * 1e3;
    let rate = loaded.samples.batch as f64 / percentile(times, 0.5).max(1e-9);
    let fields = json!({
        "latency_ms": times.iter().map(|time| time * 1e3).collect::<Vec<_>>(),
        "p50_ms": milliseconds(0.5),
        "p90_ms": milliseconds(0.9),
        "p99_ms": milliseconds(0.99),
        "samples": loaded.samples.batch,
        "samples_per_second": rate,
        "load_seconds": loaded.load_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "ops": predicted_ops(&loaded.plan),
        "backend": loaded.session.description(),
        "host": loaded.session.host(),
        "machine": Machine::this().document(),
    });
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    document
}

fn text(report: &Report<'_>, loaded: &Loaded, times: &[f64], speedup: &str) -> String {
    let line =
        |name: &str, value: &str| format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")));
    let milliseconds = |rank| format!("{:.3} ms", percentile(times, rank) * 1e3);
    let median = percentile(times, 0.5);
    let mut text = report.head();
    text += &line(
        "measured",
        &format!(
            "{} for {}: p50 {}, p90 {}, p99 {} of {}",
            styled(
                STRONG,
                format!(
                    "{:.1} samples/s",
                    loaded.samples.batch as f64 / median.max(1e-9)
                )
            ),
            output::plural(loaded.samples.batch, "sample"),
            milliseconds(0.5),
            milliseconds(0.9),
            milliseconds(0.99),
            output::plural(times.len(), "run"),
        ),
    );
    if !speedup.is_empty() {
        text += &line("baseline", &format!("{speedup} as fast"));
    }
    text += &line(
        "on",
        &format!(
            "{}; {}",
            loaded.session.description(),
            Machine::this().text()
        ),
    );
    let peak = peak_rss_bytes().map_or("unknown".to_owned(), bytes);
    text += &line(
        "memory",
        &format!(
            "{} of packed weights, peak resident {peak}",
            bytes(loaded.session.host().weights)
        ),
    );
    let mut table = Table::new(&["<op", "nodes", "GFLOP", "predicted"]);
    for op in predicted_ops(&loaded.plan) {
        let number = |field: &str| op[field].as_f64().unwrap_or(0.0);
        table.row([
            op["op"].as_str().unwrap_or_default().to_owned(),
            format!("{}", number("nodes")),
            format!("{:.3}", number("flops") / 1e9),
            format!("{:.3} ms", number("predicted_ms")),
        ]);
    }
    text.push('\n');
    text += &table.render();
    text + "Predicted for one micro-batch by the CPU's roofline at the rates of the target file `cpu`.\n"
}
