//! `lxpod bench model`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lxpod_runtime::SessionOptions;
use serde_json::{Value, json};

use super::profile::{Profile, Recorder};
use super::rates::{Gauge, Rates, bandwidth, beyond_caches, table, weights};
use super::saved::{self, Times};
use super::timing::percentile;
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::load::{Inputs, Loaded, Request};
use crate::cli::machine::{Machine, peak_rss_bytes};
use crate::cli::made_up::{Lengths, MadeUp};
use crate::cli::options::{Mode, PlanOptions, positive, repeats, repeats_or_none};
use crate::cli::output::{self, HEADING, STRONG, bytes, percent, plural, styled};
use crate::cli::report::Report;

/// Buffers of this many times the last-level cache are read to measure the memory.
const TIMES_CACHE: usize = 4;

/// Where training is measured.
const TRAINING: &str = "answers are measured here; `lxpod train --json` measures steps";

/// Measure the latency of a model or a plan on this machine, op by op
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod bench model lxmert-base --repeat 20\n  \
    lxpod bench model lxmert-base --batch 8 --lengths gqa --images 1\n  \
    lxpod bench model lxmert-base --seq-len 512 --lengths 12 -v\n  \
    lxpod bench model lxmert.plan --threads 1 --json")]
pub(super) struct Model {
    /// A model, or a plan file
    #[arg(value_name = "MODEL|FILE.plan", default_value = "lxmert-base")]
    subject: PathBuf,

    /// The model whose weights a plan runs with
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Run these samples instead of made-up ones
    #[arg(long, value_name = "FILE.safetensors", conflicts_with_all = ["batch", "lengths", "images"])]
    inputs: Option<PathBuf>,

    /// Samples to make up
    #[arg(long, value_name = "B", default_value = "1", value_parser = positive)]
    batch: usize,

    /// Real tokens of the made-up texts, taken in turn, or gqa: quantiles of GQA's questions [default: all]
    #[arg(long, value_name = "N,N,...|gqa", value_parser = Lengths::parse)]
    lengths: Option<Lengths>,

    /// Distinct images of the made-up samples, taken in turn [default: one per sample]
    #[arg(long, value_name = "N", value_parser = positive)]
    images: Option<usize>,

    /// Timed runs
    #[arg(long, value_name = "N", default_value = "10", value_parser = repeats)]
    repeat: usize,

    /// Untimed runs between the first, cold one and the timed ones
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

/// The times of runs.
struct Measured {
    /// Seconds of the first run.
    cold: f64,
    /// Seconds of each timed run, in order.
    times: Vec<f64>,
    /// The most memory resident until then, if the system says.
    peak_rss: Option<u64>,
    profile: Profile,
}

impl Measured {
    fn milliseconds(&self, rank: f64) -> f64 {
        percentile(&self.times, rank) * 1e3
    }

    /// Samples a second, at the median.
    fn rate(&self, samples: usize) -> f64 {
        samples as f64 / percentile(&self.times, 0.5).max(1e-9)
    }
}

impl Model {
    pub(super) fn run(mut self, global: &Global) -> Result<()> {
        self.options = self.options.resolved(global)?;
        if self.options.mode == Some(Mode::Training) {
            return Err(CliError::option("--mode", TRAINING));
        }
        let used = self.options.usage()?;
        let baseline = self.baseline.as_deref().map(saved::read).transpose()?;
        let made_up = MadeUp {
            batch: self.batch,
            lengths: self.lengths.clone().unwrap_or_default(),
            images: self.images,
        };
        let request = Request {
            subject: &self.subject,
            model: self.model.as_deref(),
            inputs: match &self.inputs {
                Some(path) => Inputs::File(path),
                None => Inputs::Made(&made_up),
            },
            options: &self.options,
            gradients: false,
            session: SessionOptions {
                threads: global.threads.unwrap_or(0),
                ..SessionOptions::default()
            },
        };
        let mut loaded = request.load(global)?;
        if loaded.plan.update.is_some() {
            let message = format!("{}: is for training; {TRAINING}", self.subject.display());
            return Err(CliError::Unsupported(message));
        }
        let threads = global.threads.unwrap_or(Machine::this().cpus);
        let measured = self.measure(&mut loaded, threads)?;
        let name = format!(
            "model {} batch {}",
            loaded.plan.provenance.model, loaded.samples.batch
        );
        let median = percentile(&measured.times, 0.5);
        if let Some(path) = &self.save {
            saved::save(path, &Times::from([(name.clone(), median)]))?;
        }
        let speedup = saved::speedup(baseline.as_ref(), &name, median);
        let report = Report::new(&loaded.plan, used, loaded.compile_seconds);
        if global.json {
            return output::json(&document(&report, &loaded, &measured));
        }
        output::print(&text(
            &report,
            &loaded,
            &measured,
            &speedup,
            global.verbose > 0,
        ))
    }

    /// Runs the samples. The machine's speed is read after each timed run, that of the memory at the end,
    /// so that its buffer is not taken for memory of the runs.
    fn measure(&self, loaded: &mut Loaded, threads: usize) -> Result<Measured> {
        let Loaded {
            session,
            samples,
            plan,
            ..
        } = loaded;
        let mut gauge = Gauge::new(threads)?;
        let mut timed = || {
            let start = Instant::now();
            session.run(samples)?;
            Ok::<_, lxpod_runtime::Error>((start.elapsed().as_secs_f64(), session.step_times()))
        };
        let (cold, _) = timed()?;
        for _ in 0..self.warmup {
            timed()?;
        }
        let (mut times, mut recorder) = (Vec::new(), Recorder::default());
        for _ in 0..self.repeat {
            let (seconds, steps) = timed()?;
            times.push(seconds);
            recorder.add(&steps);
            gauge.read()?;
        }
        let peak_rss = peak_rss_bytes();
        let rates = gauge.rates(
            weights(&plan.graph),
            bandwidth(table()?, threads, beyond_caches(TIMES_CACHE), 2),
        );
        let extents = session.extents(samples)?;
        let total = percentile(&times, 0.5);
        Ok(Measured {
            cold,
            peak_rss,
            profile: Profile::new(&plan.graph, &extents, &recorder, total, rates)?,
            times,
        })
    }
}

fn document(report: &Report<'_>, loaded: &Loaded, measured: &Measured) -> Value {
    let mut document = report.document();
    let profile = &measured.profile;
    let fields = json!({
        "latency_ms": measured.times.iter().map(|time| time * 1e3).collect::<Vec<_>>(),
        "cold_ms": measured.cold * 1e3,
        "p50_ms": measured.milliseconds(0.5),
        "p90_ms": measured.milliseconds(0.9),
        "p99_ms": measured.milliseconds(0.99),
        "predicted_ms": profile.predicted() * 1e3,
        "samples": loaded.samples.batch,
        "samples_per_second": measured.rate(loaded.samples.batch),
        "load_seconds": loaded.load_seconds,
        "peak_rss_bytes": measured.peak_rss,
        "threads": profile.rates.threads,
        "peak_gflops": profile.rates.flops / 1e9,
        "dram_gb_per_second": profile.rates.memory / 1e9,
        "product_clock_ghz": profile.rates.clock / 1e9,
        "ops": profile.ops_document(),
        "steps": profile.steps_document(),
        "backend": loaded.session.description(),
        "host": loaded.session.host(),
        "machine": Machine::this().document(),
    });
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    document
}

fn text(
    report: &Report<'_>,
    loaded: &Loaded,
    measured: &Measured,
    speedup: &str,
    steps: bool,
) -> String {
    let line =
        |name: &str, value: &str| format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")));
    let milliseconds = |rank| format!("{:.3} ms", measured.milliseconds(rank));
    let samples = loaded.samples.batch;
    let profile = &measured.profile;
    let mut text = report.head();
    text += &line(
        "measured",
        &format!(
            "{} for {}: p50 {}, p90 {}, p99 {} of {}; cold {:.3} ms",
            styled(STRONG, format!("{:.1} samples/s", measured.rate(samples))),
            plural(samples, "sample"),
            milliseconds(0.5),
            milliseconds(0.9),
            milliseconds(0.99),
            plural(measured.times.len(), "run"),
            measured.cold * 1e3,
        ),
    );
    if !speedup.is_empty() {
        text += &line("baseline", &format!("{speedup} as fast"));
    }
    text += &line(
        "predicted",
        &format!(
            "{:.3} ms, {} of p50, by the CPU's cost model at the rates of this machine",
            profile.predicted() * 1e3,
            percent(profile.predicted() / profile.total.max(1e-9)),
        ),
    );
    text += &line("rates", &rates(&profile.rates));
    text += &line(
        "on",
        &format!(
            "{}; {}",
            loaded.session.description(),
            Machine::this().text()
        ),
    );
    let peak = measured.peak_rss.map_or("unknown".to_owned(), bytes);
    let weights = bytes(loaded.session.host().weights);
    text += &line(
        "memory",
        &format!("{weights} of packed weights, peak resident {peak}"),
    );
    text.push('\n');
    text += &profile.text(steps);
    text + "Times are medians; operations and bytes are those of the rows really computed. `host` is the rest of p50.\n"
}

/// The machine's rates, for people.
pub(super) fn rates(rates: &Rates) -> String {
    format!(
        "measured beside the runs on {}: {:.1} GFLOP/s of multiply-adds, {:.1} GB/s from memory, products as at {:.2} GHz",
        plural(rates.threads, "thread"),
        rates.flops / 1e9,
        rates.memory / 1e9,
        rates.clock / 1e9,
    )
}
