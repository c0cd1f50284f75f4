//! `lxpod simulate`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use lxpod_backends::sim::write_trace;
use lxpod_passes::cost;

use super::auto::Found;
use super::error::{CliError, Result};
use super::options::{PlanOptions, positive};
use super::report::Report;
use super::source::{Subject, plan_of};
use super::sweep::{self, Axis, Sweep};
use super::{Global, files, html, output, predicted};

/// The most slices of a trace; viewers cannot open more.
const MOST_SLICES: usize = 2_000_000;

/// Predict a plan's speed on its target
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod simulate lxmert-base --stages 4 --replicas 4 --gradient-accumulation 16\n  \
    lxpod simulate lxmert.plan --gradient-accumulation 64 --trace trace.json --report report.html\n  \
    lxpod simulate lxmert.plan --explain\n  \
    lxpod simulate lxmert-base --set link.gbps=64 --set tile.memory=1Gi\n  \
    lxpod simulate lxmert-base --sweep stages=1,2,4,8,16 --sweep set.link.gbps=16,32,64 --csv sweep.csv\n\n\
    A sweep compiles every combination; its rows are in the order of a counter whose last digit is the\n\
    last --sweep, and a combination without a plan has a row that says why.")]
pub(crate) struct Simulate {
    /// A model, or a plan file
    #[arg(value_name = "MODEL|FILE.plan")]
    subject: PathBuf,

    /// Steps to simulate; each begins and ends with an empty pipeline
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    steps: usize,

    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,

    /// Write a page with the timeline and the memory of the tiles
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Say what the cost model assumes
    #[arg(long)]
    explain: bool,

    /// Simulate every combination of these values of a plan option, or of a field of the target; may be
    /// given several times
    #[arg(long, value_name = "OPTION=V,V|set.FIELD=V,V", value_parser = sweep::axis,
          conflicts_with_all = ["trace", "report", "explain", "auto"])]
    sweep: Vec<Axis>,

    /// Write the rows of a sweep as comma-separated values
    #[arg(long, value_name = "FILE.csv", requires = "sweep")]
    csv: Option<PathBuf>,

    #[command(flatten)]
    options: PlanOptions,
}

impl Simulate {
    pub(crate) fn run(mut self, global: &Global) -> Result<()> {
        if !self.sweep.is_empty() {
            return self.run_sweep(global);
        }
        self.options = self.options.resolved(global)?;
        self.options.usage()?;
        let planned = plan_of(&self.subject, &self.options, global)?;
        let (plan, found) = (&planned.plan, planned.found());
        let report = Report::new(plan, planned.used, planned.seconds()).beside(planned.rival());
        if let Some(path) = &self.trace {
            write_trace_file(path, &report, self.steps)?;
        }
        if let Some(path) = &self.report {
            files::write(path, html::page(&report).as_bytes())?;
        }
        let explained = self.explain.then(|| explain(&report));
        if global.json {
            let mut document = report.document();
            if let Some(found) = found {
                document["auto"] = found.document();
            }
            document["steps"] = self.steps.into();
            let total = report.simulation().predict().step_seconds * self.steps as f64;
            document["total_seconds"] = total.into();
            if let Some(explained) = explained {
                document["explain"] = explained.into();
            }
            return output::json(&document);
        }
        let mut text = found.map_or_else(String::new, Found::text);
        text += &format!("{}\n{}\n", report.head(), report.tile_table());
        text += &predicted::text(report.simulation(), plan.target.machine);
        if self.steps > 1 {
            let total = report.simulation().predict().step_seconds * self.steps as f64;
            text += &format!(
                "{} take {}.\n",
                output::plural(self.steps, "step"),
                output::seconds(total)
            );
        }
        if let Some(explained) = explained {
            text += &format!("\n{explained}\n");
        }
        output::print(&text)
    }

    fn run_sweep(&self, global: &Global) -> Result<()> {
        let Subject::Model(name) = Subject::of(&self.subject)? else {
            let message = "sweeps compile a model; name a folder or lxmert-base";
            return Err(CliError::option("--sweep", message));
        };
        let sweep = Sweep::run(&name, &self.options, &self.sweep, global)?;
        if let Some(path) = &self.csv {
            files::write(path, sweep.csv().as_bytes())?;
        }
        if global.json {
            return output::json(&sweep.document());
        }
        output::print(&sweep.text())
    }
}

fn write_trace_file(path: &Path, report: &Report<'_>, steps: usize) -> Result<()> {
    let simulation = report.simulation();
    let slots = simulation.slots().count() + simulation.schedule().tiles;
    let slices = (6 * slots).saturating_mul(report.plan().replicas);
    if slices.saturating_mul(steps) > MOST_SLICES {
        let message =
            "the trace would have millions of slices; lower --steps or --gradient-accumulation";
        return Err(CliError::option("--trace", message));
    }
    let write = || {
        let mut out = BufWriter::new(std::fs::File::create(path)?);
        write_trace(simulation, &report.labels(), steps, &mut out)?;
        out.flush()
    };
    Ok(write().map_err(|error| files::problem(path, "write", error))?)
}

/// What the prediction assumes.
fn explain(report: &Report<'_>) -> String {
    let plan = report.plan();
    let target = &plan.target;
    let model = predicted::wrapped(cost::model(target).explain(), 100);
    let schedule = predicted::wrapped(
        "schedule: a program starts when its tile is free and what it reads is there; under popart all programs \
         of a pipeline cycle start together, and a cycle lasts as long as its slowest tile. A stage's cycles are \
         those of its steps, of each value it sends and receives over one link, and of its host buffers over a \
         host link of its own; nothing overlaps. Every tensor is at full capacity. The critical path follows the \
         tile with the most cycles; cycles in which it waits are fill_flush. The update of the slowest tile \
         follows: sums over replicas, then the optimiser. Inference has none.",
        100,
    );
    let rates = format!(
        "{}: {} cores a tile at {:.0} MHz, links {:.0} GB/s with {:.1} µs latency, host {:.0} GB/s",
        target.name,
        target.tile.cores,
        target.tile.clock_hz as f64 / 1e6,
        target.link.bytes_per_second as f64 / 1e9,
        target.link.latency_seconds * 1e6,
        target.host.bytes_per_second as f64 / 1e9,
    );
    format!("{model}\n\n{schedule}\n\n{rates}")
}
