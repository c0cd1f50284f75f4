//! `lxpod bench kernels`.

use std::path::{Path, PathBuf};

use clap::Args;
use lxpod_ir::{DType, Graph};
use serde_json::{Value, json};

use super::cases::{Case, Shape, all};
use super::graphs::{On, Runner, tolerance};
use super::model::rates as rates_text;
use super::profile::{Part, Profile, Recorder};
use super::rates::{Gauge, Rates, bandwidth, beyond_caches, table, weights};
use super::saved::{self, Times};
use super::timing::percentile;
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::machine::Machine;
use crate::cli::opt::read_graph;
use crate::cli::options::{repeats, repeats_or_none};
use crate::cli::output::{self, HEADING, bytes, percent, seconds, styled};
use crate::cli::table::Table;

/// Buffers of this many times the last-level cache are read to measure the memory, and the layers of a `linear` have
/// as many bytes of weights, so that no cache keeps them from one run to the next.
const TIMES_CACHE: usize = 4;

/// Bytes of weights that a `linear` takes turns through.
fn cold_bytes() -> usize {
    beyond_caches(TIMES_CACHE)
}

/// Measure kernels on the executor, each checked against its reference first
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod bench kernels linear f16 m20\n  \
    lxpod bench kernels --shape 20,768,3072 --dtype f16 --dtype f32 --threads 1\n  \
    lxpod bench kernels graph.lx --repeat 20\n  \
    lxpod bench kernels attention --save before.json")]
pub(super) struct Kernels {
    /// Only kernels whose name has all of these words; or graphs in text form, FILE.lx
    #[arg(value_name = "FILTER|FILE.lx")]
    subjects: Vec<String>,

    /// A linear layer of M rows, N outputs and K inputs, instead of the list; may be repeated
    #[arg(long = "shape", value_name = "M,N,K")]
    shapes: Vec<Shape>,

    /// How the layers of --shape are stored: f16 or f32; may be repeated [default: f16]
    #[arg(long = "dtype", value_name = "f16|f32", value_parser = stored, requires = "shapes")]
    dtypes: Vec<DType>,

    /// Timed runs of each kernel
    #[arg(long, value_name = "N", default_value = "5", value_parser = repeats)]
    repeat: usize,

    /// Untimed runs before
    #[arg(long, value_name = "K", default_value = "1", value_parser = repeats_or_none)]
    warmup: usize,

    /// Compare with a file of --save
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Keep the times for --baseline
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Name the kernels without measuring them
    #[arg(long)]
    list: bool,
}

fn stored(text: &str) -> Result<DType, String> {
    match text.parse() {
        Ok(dtype @ (DType::F16 | DType::F32)) => Ok(dtype),
        _ => Err("must be f16 or f32".to_owned()),
    }
}

/// What is measured.
enum Subject {
    Case(Case),
    File(PathBuf, Box<Graph>),
}

impl Subject {
    fn name(&self) -> String {
        match self {
            Subject::Case(case) => case.name(),
            Subject::File(path, _) => path.display().to_string(),
        }
    }
}

/// A subject's measurement.
struct Measured {
    name: String,
    /// One of the case's ops; a whole run of a file.
    part: Part,
    profile: Profile,
    /// Whether the subject is a file, whose ops are shown.
    file: bool,
}

impl Kernels {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let baseline = self.baseline.as_deref().map(saved::read).transpose()?;
        let subjects = self.resolve()?;
        if self.list {
            return list(&subjects, global);
        }
        let threads = global.threads.unwrap_or(Machine::this().cpus);
        let memory = bandwidth(table()?, threads, beyond_caches(TIMES_CACHE), 3);
        let mut gauge = Gauge::new(threads)?;
        let mut all = Vec::new();
        for subject in &subjects {
            global.detail(&subject.name());
            all.push(self.measure(subject, threads, memory, &mut gauge)?);
        }
        if let Some(path) = &self.save {
            let times = all.iter().map(|one| (one.name.clone(), one.part.seconds));
            saved::save(path, &times.collect::<Times>())?;
        }
        if global.json {
            return output::json(&document(&all, threads, memory, baseline.as_ref()));
        }
        output::print(&text(&all, global.verbose > 0, baseline.as_ref()))
    }

    /// The files, shapes or listed cases that the arguments name.
    fn resolve(&self) -> Result<Vec<Subject>> {
        let is_file = |word: &&String| Path::new(word).extension().is_some_and(|kind| kind == "lx");
        let mut subjects = Vec::new();
        for file in self.subjects.iter().filter(is_file) {
            let path = PathBuf::from(file);
            let (graph, ..) = read_graph(&path)?;
            subjects.push(Subject::File(path, Box::new(graph)));
        }
        let dtypes = if self.dtypes.is_empty() {
            &[DType::F16][..]
        } else {
            &self.dtypes
        };
        for &shape in &self.shapes {
            subjects.extend(
                dtypes
                    .iter()
                    .map(|&dtype| Subject::Case(Case::linear(shape, dtype))),
            );
        }
        let words: Vec<&String> = self.subjects.iter().filter(|word| !is_file(word)).collect();
        if subjects.is_empty() || !words.is_empty() {
            let matches = |case: &Case| {
                let name = case.name();
                words
                    .iter()
                    .all(|word| name.split(' ').any(|known| known == *word))
            };
            let found = all().into_iter().filter(matches).map(Subject::Case);
            let before = subjects.len();
            subjects.extend(found);
            if subjects.len() == before {
                let message = "no kernel has all of these words in its name; see `lxpod bench kernels --list`";
                return Err(CliError::Usage(message.to_owned()));
            }
        }
        Ok(subjects)
    }

    /// Checks a subject against its reference, then times it, and reads the machine's speed after each
    /// run.
    fn measure(
        &self,
        subject: &Subject,
        threads: usize,
        memory: f64,
        gauge: &mut Gauge,
    ) -> Result<Measured> {
        let defect = |error: String| CliError::Internal(format!("{}: {error}", subject.name()));
        let (graph, reference) = match subject {
            Subject::Case(case) => (
                case.graph(cold_bytes()).map_err(defect)?,
                case.reference().map_err(defect)?,
            ),
            Subject::File(_, graph) => ((**graph).clone(), (**graph).clone()),
        };
        let mut runner = Runner::new(&graph, On::Cpu(threads))?;
        let mut reference = Runner::new(&reference, On::Reference)?;
        reference.run()?;
        runner.run()?;
        runner.check(&reference)?;
        drop(reference);
        for _ in 0..self.warmup {
            runner.run()?;
        }
        let (mut recorder, mut totals) = (Recorder::default(), Vec::new());
        for _ in 0..self.repeat {
            let start = std::time::Instant::now();
            runner.run()?;
            totals.push(start.elapsed().as_secs_f64());
            recorder.add(&runner.step_times());
            gauge.read()?;
        }
        let rates = gauge.rates(weights(&graph), memory);
        let total = percentile(&totals, 0.5);
        let extents = std::slice::from_ref(runner.extents());
        let profile = Profile::new(runner.graph(), extents, &recorder, total, rates)?;
        let (part, file) = match subject {
            Subject::Case(case) => (profile.one_of(case.op()), false),
            Subject::File(..) => (profile.whole(), true),
        };
        Ok(Measured {
            name: subject.name(),
            part,
            profile,
            file,
        })
    }
}

fn list(subjects: &[Subject], global: &Global) -> Result<()> {
    let names: Vec<String> = subjects.iter().map(Subject::name).collect();
    if global.json {
        return output::json(&json!({"kernels": names}));
    }
    output::print(&(names.join("\n") + "\n"))
}

fn document(all: &[Measured], threads: usize, memory: f64, baseline: Option<&Times>) -> Value {
    let kernel = |one: &Measured| {
        let Measured {
            name,
            part,
            profile,
            file,
        } = one;
        let rates = &profile.rates;
        json!({
            "name": name,
            "nodes": part.nodes,
            "seconds": part.seconds,
            "gflops": part.flop_rate() / 1e9,
            "gb_per_second": part.byte_rate() / 1e9,
            "peak_gflops": rates.flops / 1e9,
            "share_of_peak": part.flop_rate() / rates.flops,
            "share_of_memory": part.byte_rate() / rates.memory,
            "predicted_seconds": part.predicted,
            "baseline_seconds": baseline.and_then(|times| times.get(name)),
            "ops": file.then(|| profile.ops_document()),
            "steps": file.then(|| profile.steps_document()),
        })
    };
    json!({
        "machine": Machine::this().document(),
        "threads": threads,
        "dram_gb_per_second": memory / 1e9,
        "cold_weight_bytes": cold_bytes(),
        "tolerance": {"f16": tolerance(DType::F16), "f32": tolerance(DType::F32)},
        "kernels": all.iter().map(kernel).collect::<Vec<_>>(),
    })
}

fn text(all: &[Measured], steps: bool, baseline: Option<&Times>) -> String {
    let mut heading = vec![
        "<kernel",
        "time",
        "GFLOP/s",
        "of peak",
        "GB/s",
        "of memory",
        "predicted",
    ];
    if baseline.is_some() {
        heading.push("speed-up");
    }
    let mut table = Table::new(&heading);
    for Measured {
        name,
        part,
        profile,
        ..
    } in all
    {
        table.row([
            name.clone(),
            seconds(part.seconds),
            format!("{:.1}", part.flop_rate() / 1e9),
            percent(part.flop_rate() / profile.rates.flops),
            format!("{:.1}", part.byte_rate() / 1e9),
            percent(part.byte_rate() / profile.rates.memory),
            seconds(part.predicted),
            saved::speedup(baseline, name, part.seconds),
        ]);
    }
    let median = |rate: fn(&Rates) -> f64| {
        let rates: Vec<f64> = all.iter().map(|one| rate(&one.profile.rates)).collect();
        percentile(&rates, 0.5)
    };
    let rates = all.first().map(|one| Rates {
        threads: one.profile.rates.threads,
        flops: median(|rates| rates.flops),
        memory: median(|rates| rates.memory),
        clock: median(|rates| rates.clock),
        macs: one.profile.rates.macs,
    });
    let mut text = format!(
        "{}  {}\n{}  {}\n{}  each against its reference: within {:.1e} of the largest value in f16, {:.1e} in f32\n\n{}",
        styled(HEADING, "machine"),
        Machine::this().text(),
        styled(HEADING, "rates  "),
        rates.as_ref().map(rates_text).unwrap_or_default(),
        styled(HEADING, "checked"),
        tolerance(DType::F16),
        tolerance(DType::F32),
        table.render(),
    );
    text += &format!(
        "Time is the median of one op; `linear` takes turns through {} of weights, so that they come from memory. \
         Shares are of the rates measured beside each kernel.\n",
        bytes(cold_bytes() as u64)
    );
    for one in all.iter().filter(|one| one.file) {
        text += &format!(
            "\n{}\n{}",
            styled(HEADING, &one.name),
            one.profile.text(steps)
        );
    }
    text
}
