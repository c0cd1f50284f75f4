//! `--auto`: the options that a search over the pod finds, and why it found them.

use std::fmt::Write;
use std::time::Instant;

use lxpod_passes::auto::{Assessed, Candidate, Choice, Fixed, Rival, Search, Verdict, search};
use lxpod_passes::{CompileOptions, TrainingOptions};
use lxpod_runtime::Model;
use serde_json::{Value, json};

use super::Global;
use super::error::{CliError, Result};
use super::options::{PlanOptions, Use};
use super::output::{HEADING, bytes, grouped, percent, plural, seconds, styled};
use super::table::Table;

/// The most rows of the front that people are shown.
const MOST_ROWS: usize = 24;

/// What a command compiles, and how it is used.
pub(crate) struct Resolved {
    /// Every option.
    pub(crate) options: CompileOptions,
    /// How the plan is used.
    pub(crate) used: Use,
    /// The search that found the options, if there was one.
    pub(crate) found: Option<Found>,
}

/// A search that is done.
pub(crate) struct Found {
    search: Search,
    clock_hz: u64,
    capacity: u64,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// The options of a compilation: those given, or what `--auto` finds for those left open.
///
/// # Errors
/// As [`PlanOptions::compile_options`]; nothing that is open fits.
pub(crate) fn resolve(options: &PlanOptions, model: &Model, global: &Global) -> Result<Resolved> {
    let used = options.usage()?;
    if !options.auto {
        let options = options.compile_options(options.model_options(model)?, &model.config)?;
        return Ok(Resolved {
            options,
            used,
            found: None,
        });
    }
    let given = PlanOptions {
        auto: false,
        global_batch: None,
        replicas: None,
        stages: None,
        ..options.clone()
    };
    if options.place.is_some() || options.layers_are_given() {
        let message =
            "searches for the stages; leave out --place, or layers_per_ipu of --ipu-config";
        return Err(CliError::option("--auto", message));
    }
    let base = given.compile_options(given.model_options(model)?, &model.config)?;
    check_tiles(options, &base)?;
    let started = Instant::now();
    let threads = global.threads.or_else(|| {
        let cpus = std::thread::available_parallelism();
        cpus.ok().map(std::num::NonZero::get)
    });
    let fixed = fixed(options, base.training.as_ref());
    let search = search(&model.config, &base, &fixed, threads.unwrap_or(1))?;
    let best = search.best.candidate;
    Ok(Resolved {
        options: best.options(&base),
        used: Use {
            micro_batches: best.accumulation,
            schedule: best.schedule.name(),
        },
        found: Some(Found {
            clock_hz: base.target.tile.clock_hz,
            capacity: base.target.capacity(),
            seconds: started.elapsed().as_secs_f64(),
            search,
        }),
    })
}

/// Says which of the sizes given the target has no room for.
fn check_tiles(options: &PlanOptions, base: &CompileOptions) -> Result<()> {
    let sizes = CompileOptions {
        replicas: options.replicas.unwrap_or(1),
        stages: options.stages,
        ..base.clone()
    };
    sizes.resolved_stages()?;
    Ok(())
}

/// The options that the user gave.
fn fixed(options: &PlanOptions, training: Option<&TrainingOptions>) -> Fixed {
    Fixed {
        replicas: options.replicas,
        stages: options.stages,
        micro_batch: options.micro_batch,
        accumulation: options.gradient_accumulation,
        global_batch: options.global_batch,
        recompute: training
            .filter(|_| options.recompute.is_some())
            .map(|training| training.recompute),
        rule: training.and(options.schedule),
        chunks: options.chunks,
        replicated_tensor_sharding: options.replicated_tensor_sharding.then_some(true),
    }
}

/// Refuses a search where its result would not be kept.
///
/// # Errors
/// Names the way out.
pub(crate) fn refuse(options: &PlanOptions) -> Result<()> {
    if options.auto {
        let message = "--auto for this command; compile with `lxpod compile MODEL --auto -o FILE.plan` and give it \
                       FILE.plan";
        return Err(CliError::Unsupported(message.to_owned()));
    }
    Ok(())
}

impl Found {
    fn rate(&self, one: &Assessed) -> f64 {
        one.samples_per_second(self.clock_hz)
    }

    /// The JSON of a search.
    pub(crate) fn document(&self) -> Value {
        let entry = |one: &Assessed| {
            let mut entry = json!(one);
            entry["samples_per_second"] = self.rate(one).into();
            entry["step_seconds"] = (one.step_cycles as f64 / self.clock_hz as f64).into();
            entry
        };
        let rival = |rival: &Rival| {
            let mut entry = entry(&rival.assessed);
            entry["option"] = json!(rival.option);
            entry["value"] = json!(rival.value);
            entry["lost"] = self.lost(&rival.assessed).into();
            entry
        };
        let search = &self.search;
        let [compiled, bounded, out_of_memory] = search.counts;
        json!({
            "best": entry(&search.best),
            "front": search.front.iter().map(entry).collect::<Vec<_>>(),
            "rivals": search.rivals.iter().map(rival).collect::<Vec<_>>(),
            "proven": search.proven,
            "compiled": compiled,
            "bounded": bounded,
            "out_of_memory": out_of_memory,
            "seconds": self.seconds,
        })
    }

    /// The search for people.
    pub(crate) fn text(&self) -> String {
        let search = &self.search;
        let [compiled, bounded, out_of_memory] = search.counts;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}  {} combinations in {}: {} compiled, {} bounded, {} out of memory",
            styled(HEADING, "search   "),
            grouped((compiled + bounded + out_of_memory) as u64),
            seconds(self.seconds),
            grouped(compiled as u64),
            grouped(bounded as u64),
            grouped(out_of_memory as u64),
        );
        let _ = writeln!(
            text,
            "{}  {}; {}\n",
            styled(HEADING, "chosen   "),
            described(&search.best),
            if search.proven {
                "no other is faster"
            } else {
                "others may be faster, their bounds do not say"
            },
        );
        text += &self.front();
        text.push('\n');
        text += &self.rivals();
        text.push('\n');
        text
    }

    /// The front; where that is long, the fastest of each global batch and what has the chosen one's.
    fn front(&self) -> String {
        let search = &self.search;
        let mut table = Table::new(&[
            "global batch",
            "samples/s",
            "fullest tile",
            "replicas",
            "stages",
            "micro-batch",
            "accumulation",
            "recompute",
            "schedule",
            "states",
        ]);
        let all = &search.front;
        let is_long = all.len() > MOST_ROWS;
        let batch = |index: usize| all[index].global_batch;
        let shown = (0..all.len()).filter(|&index| {
            let first = index == 0 || batch(index - 1) != batch(index);
            !is_long || first || batch(index) == search.best.global_batch
        });
        let shown: Vec<usize> = shown.collect();
        for one in shown.iter().map(|&index| &all[index]) {
            let found = &one.candidate;
            table.row([
                one.global_batch.to_string(),
                format!("{:.1}", self.rate(one)),
                bytes(one.tile_bytes),
                found.replicas.to_string(),
                found.stages.to_string(),
                found.micro_batch.to_string(),
                found.accumulation.to_string(),
                found.recompute.name().to_owned(),
                found.schedule.name().to_owned(),
                states(found).to_owned(),
            ]);
        }
        let mut text = table.render();
        let left = all.len() - shown.len();
        if left > 0 {
            let _ = writeln!(
                text,
                "… and {} with less memory; --json has all",
                plural(left, "plan")
            );
        }
        text
    }

    /// Why the others lost.
    fn rivals(&self) -> String {
        let mut table = Table::new(&[
            "<instead",
            "<the best such plan",
            "samples/s",
            "<lost because",
        ]);
        for rival in &self.search.rivals {
            let one = &rival.assessed;
            let option = match rival.option {
                Choice::Stages => "stages",
                Choice::Replicas => "replicas",
                Choice::MicroBatch => "micro-batch",
                Choice::Recompute => "recompute",
                Choice::Schedule => "schedule",
                Choice::ReplicatedTensorSharding => "sharing out states",
            };
            let rate = format!("{:.1}", self.rate(one));
            table.row([
                format!("{option} {}", rival.value),
                described(one),
                match one.verdict {
                    Verdict::Compiled => rate,
                    Verdict::Bounded => format!("at most {rate}"),
                    Verdict::OutOfMemory => String::new(),
                },
                self.lost(one),
            ]);
        }
        table.render()
    }

    /// Why a candidate lost against the best.
    fn lost(&self, one: &Assessed) -> String {
        let best = &self.search.best;
        let slower = percent(1.0 - self.rate(one) / self.rate(best));
        match one.verdict {
            Verdict::OutOfMemory => {
                let [needed, held] = [one.tile_bytes, self.capacity].map(bytes);
                if needed == held {
                    format!("no split fits: the fullest tile needs more than {held}")
                } else {
                    format!("the fullest tile needs at least {needed} of {held}")
                }
            }
            Verdict::Bounded if self.rate(one) > self.rate(best) => {
                "not compiled: too many were".to_owned()
            }
            Verdict::Bounded => format!("at least {slower} slower, by its bound"),
            Verdict::Compiled if one.step_cycles != best.step_cycles => format!("{slower} slower"),
            Verdict::Compiled => "as fast, in no less memory".to_owned(),
        }
    }
}

/// A candidate in words.
fn described(one: &Assessed) -> String {
    let found = &one.candidate;
    format!(
        "{} x {}, micro-batch {}, accumulation {}, recompute {}, {}{}",
        plural(found.replicas, "replica"),
        plural(found.stages, "stage"),
        found.micro_batch,
        found.accumulation,
        found.recompute.name(),
        found.schedule.name(),
        if found.replicated_tensor_sharding {
            ", states shared out"
        } else {
            ""
        },
    )
}

/// Where a replica's states of the optimiser are.
fn states(found: &Candidate) -> &'static str {
    if found.replicated_tensor_sharding {
        "shared out"
    } else {
        "whole"
    }
}
