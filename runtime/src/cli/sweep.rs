//! Every combination of values of some options, one plan and one prediction each.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{CommandFactory, Parser};
use lxpod_runtime::{Fault, Model};
use serde_json::{Map, Value, json};

use super::Global;
use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::report::{Report, micro_batch};
use super::source::compile_model;
use super::table::Table;

/// The most combinations.
const MOST: usize = 10_000;

/// What begins the name of an axis that changes a field of the target.
const SET: &str = "set.";

/// An option and the values it takes in turn.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    name: String,
    values: Vec<String>,
}

/// The plan options alone.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    options: PlanOptions,
}

/// Parses the value of `--sweep`.
pub(crate) fn axis(text: &str) -> std::result::Result<Axis, String> {
    let (name, values) = text
        .split_once('=')
        .ok_or("must be OPTION=VALUE,VALUE such as stages=1,2,4")?;
    let command = Line::command();
    let takes_value = |arg: &&clap::Arg| arg.get_action().takes_values();
    let options = command.get_arguments().filter(takes_value);
    let known: Vec<&str> = options.filter_map(|arg| arg.get_long()).collect();
    if !known.contains(&name) && !name.starts_with(SET) || name == "set" {
        let known: Vec<&str> = known.into_iter().filter(|name| *name != "set").collect();
        let known = known.join(", ");
        return Err(format!(
            "no option `{name}`; use one of {known}, or set.FIELD"
        ));
    }
    let values: Vec<String> = values
        .split(',')
        .map(|value| value.trim().to_owned())
        .collect();
    let distinct: BTreeSet<&String> = values.iter().collect();
    if values.iter().any(String::is_empty) || distinct.len() < values.len() {
        return Err("needs distinct values between its commas".to_owned());
    }
    Ok(Axis {
        name: name.to_owned(),
        values,
    })
}

/// The rows of a sweep, in the order of a counter whose last digit is the last axis.
pub(crate) struct Sweep {
    axes: Vec<Axis>,
    rows: Vec<Row>,
}

/// One combination.
struct Row {
    values: Vec<String>,
    /// What is predicted, or why there is no plan.
    outcome: std::result::Result<Map<String, Value>, String>,
}

/// The figures of a row, in order.
const FIGURES: [&str; 11] = [
    "samples_per_second",
    "step_seconds",
    "latency_seconds",
    "bubble_fraction",
    "global_batch",
    "objective_cycles",
    "lower_bound_cycles",
    "bottleneck_tile",
    "fullest_tile",
    "fullest_bytes",
    "capacity_bytes",
];

impl Sweep {
    /// Compiles and simulates each combination of `axes` on top of `options`.
    ///
    /// # Errors
    /// There are too many, an axis is there twice, or the model cannot be opened. What one combination alone lacks
    /// is in its row.
    pub(crate) fn run(
        name: &str,
        options: &PlanOptions,
        axes: &[Axis],
        global: &Global,
    ) -> Result<Sweep> {
        let names: BTreeSet<&str> = axes.iter().map(|axis| axis.name.as_str()).collect();
        if names.len() < axes.len() {
            return Err(CliError::option("--sweep", "names an option twice"));
        }
        let sizes = axes.iter().map(|axis| axis.values.len());
        let total = sizes.fold(1usize, usize::saturating_mul);
        if total > MOST {
            let message = format!("has {total} combinations; at most {MOST} are simulated");
            return Err(CliError::option("--sweep", message));
        }
        // What is wrong with every row is said once.
        let quiet = Global {
            quiet: true,
            ..global.clone()
        };
        let model = Model::open(name, options.seed.unwrap_or(0))?;
        let row = |index: usize| {
            let values = combination(axes, index);
            let outcome = combined(options, axes, &values)
                .and_then(|options| figures(&model, &options.resolved(&quiet)?, &quiet));
            (values, outcome)
        };
        let threads = global.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
        });
        let mut rows = Vec::with_capacity(total);
        for (values, outcome) in in_parallel(total, threads, row) {
            let outcome = match outcome {
                Ok(figures) => Ok(figures),
                Err(error) if error.exit_code() == Fault::Internal.exit_code() => {
                    return Err(error);
                }
                Err(error) => Err(first_line(&error)),
            };
            rows.push(Row { values, outcome });
        }
        Ok(Sweep {
            axes: axes.to_vec(),
            rows,
        })
    }

    /// For programs.
    pub(crate) fn document(&self) -> Value {
        let names = || self.axes.iter().map(|axis| &axis.name);
        let row = |row: &Row| {
            let mut document: Map<String, Value> = names()
                .cloned()
                .zip(row.values.iter().map(|value| json!(value)))
                .collect();
            document.insert("fits".to_owned(), row.outcome.is_ok().into());
            match &row.outcome {
                Ok(figures) => document.extend(figures.clone()),
                Err(why) => drop(document.insert("why".to_owned(), why.as_str().into())),
            }
            Value::Object(document)
        };
        json!({
            "sweep": names().collect::<Vec<_>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// Comma-separated values, as RFC 4180 has them.
    pub(crate) fn csv(&self) -> String {
        let names = self.axes.iter().map(|axis| axis.name.as_str());
        let heading = names.chain(["fits"]).chain(FIGURES).chain(["why"]);
        let mut text = heading.collect::<Vec<_>>().join(",") + "\r\n";
        for row in &self.rows {
            let mut cells: Vec<String> = row.values.clone();
            cells.push(row.outcome.is_ok().to_string());
            for name in FIGURES {
                let figure = row
                    .outcome
                    .as_ref()
                    .ok()
                    .and_then(|figures| figures.get(name));
                cells.push(figure.map_or_else(String::new, Value::to_string));
            }
            cells.push(row.outcome.as_ref().err().cloned().unwrap_or_default());
            let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
            text += &(cells.join(",") + "\r\n");
        }
        text
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&[
            "<options",
            "samples/s",
            "step",
            "bubble",
            "batch",
            "slowest stage",
            "fullest tile",
            "<",
        ]);
        for row in &self.rows {
            let options = self.axes.iter().zip(&row.values);
            let options: Vec<String> = options
                .map(|(axis, value)| format!("{}={value}", axis.name))
                .collect();
            let mut cells = vec![options.join(" ")];
            match &row.outcome {
                Ok(figures) => cells.extend(shown(figures)),
                Err(why) => {
                    cells.extend(std::iter::repeat_n(String::new(), 6));
                    cells.push(why.chars().take(100).collect());
                }
            }
            table.row(cells);
        }
        table.render()
    }
}

/// The cells of a row that has figures.
fn shown(figures: &Map<String, Value>) -> [String; 6] {
    use super::output::{bytes, grouped, percent, seconds};
    let real = |name: &str| figures[name].as_f64().unwrap_or(0.0);
    let whole = |name: &str| figures[name].as_u64().unwrap_or(0);
    [
        format!("{:.1}", real("samples_per_second")),
        seconds(real("step_seconds")),
        percent(real("bubble_fraction")),
        grouped(whole("global_batch")),
        format!("{} cycles", grouped(whole("objective_cycles"))),
        bytes(whole("fullest_bytes")),
    ]
}

/// The values of the combination of that number.
fn combination(axes: &[Axis], mut index: usize) -> Vec<String> {
    let mut values: Vec<String> = Vec::with_capacity(axes.len());
    for axis in axes.iter().rev() {
        values.push(axis.values[index % axis.values.len()].clone());
        index /= axis.values.len();
    }
    values.reverse();
    values
}

/// The options with one value of each axis.
fn combined(options: &PlanOptions, axes: &[Axis], values: &[String]) -> Result<PlanOptions> {
    let (mut words, mut set) = (Vec::new(), options.set.clone());
    for (axis, value) in axes.iter().zip(values) {
        match axis.name.strip_prefix(SET) {
            Some(field) => set.push((field.to_owned(), value.clone())),
            None => words.push(format!("--{}={value}", axis.name)),
        }
    }
    let mut line = Line {
        options: options.clone(),
    };
    let updated = line.try_update_from(words);
    updated.map_err(|error| {
        let shown = error.to_string();
        let first = shown.lines().next().unwrap_or_default();
        CliError::Usage(first.trim_start_matches("error: ").to_owned())
    })?;
    // An update puts flags that no word names back to their defaults.
    Ok(PlanOptions {
        auto: options.auto,
        output_hidden_states: options.output_hidden_states,
        output_attentions: options.output_attentions,
        set,
        ..line.options
    })
}

/// What is predicted of one combination.
fn figures(model: &Model, options: &PlanOptions, global: &Global) -> Result<Map<String, Value>> {
    let used = options.usage()?;
    let resolved = options.compile_options(options.model_options(model)?, &model.config)?;
    let (plan, _) = compile_model(model, &resolved, global, &mut |_, _| {})?;
    let report = Report::new(&plan, used, None);
    let simulation = report.simulation();
    let predicted = simulation.predict();
    let tiles = plan.tiles.iter().map(|tile| tile.memory.total);
    let fullest = tiles
        .enumerate()
        .max_by_key(|&(tile, total)| (total, usize::MAX - tile));
    let (tile, bytes) = fullest.unwrap_or_default();
    let values = [
        json!(predicted.samples_per_second),
        json!(predicted.step_seconds),
        json!(predicted.latency_seconds),
        json!(predicted.bubble_fraction),
        json!(simulation.micro_batches() * plan.replicas * micro_batch(&plan.graph)),
        json!(plan.partition.objective_cycles),
        json!(plan.partition.lower_bound_cycles),
        json!(predicted.bottleneck_tile),
        json!(tile),
        json!(bytes),
        json!(plan.target.capacity()),
    ];
    Ok(FIGURES.into_iter().map(str::to_owned).zip(values).collect())
}

/// `work` of 0 to `count`, in order, done by some threads.
fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let claimed = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return done;
            }
            done.push((index, work(index)));
        }
    };
    let mut all: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(count))
            .map(|_| scope.spawn(claimed))
            .collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}

fn first_line(error: &CliError) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A cell, in quotes if it needs them.
fn escaped(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_axis_counts_first() {
        let axes =
            [axis("stages=1,2,4"), axis("set.link.gbps=16,32")].map(|axis| axis.expect("an axis"));
        let all: Vec<String> = (0..6)
            .map(|index| combination(&axes, index).join(" "))
            .collect();
        assert_eq!(all, ["1 16", "1 32", "2 16", "2 32", "4 16", "4 32"]);
    }

    #[test]
    fn flags_and_earlier_options_stay() {
        let words = ["--output-attentions", "--replicas=2", "--set=link.gbps=8"];
        let options = Line::try_parse_from(words).expect("options").options;
        let axes = [
            axis("stages=3").expect("an axis"),
            axis("set.tiles=8").expect("an axis"),
        ];
        let values = ["3", "8"].map(str::to_owned);
        let found = combined(&options, &axes, &values).expect("options");
        assert!(found.output_attentions);
        assert_eq!(
            (found.replicas, found.stages, found.set.len()),
            (Some(2), Some(3), 2)
        );
        let wrong = combined(&options, &axes[..1], &["none".to_owned()]);
        assert!(wrong.unwrap_err().to_string().contains("--stages"));
    }

    #[test]
    fn axes_that_are_none_are_refused() {
        for text in [
            "stages",
            "speed=1",
            "set=1",
            "stages=1,,2",
            "stages=1,1",
            "auto=1",
        ] {
            assert!(axis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn work_comes_back_in_order() {
        assert_eq!(
            in_parallel(50, 4, |index| index * 2),
            (0..50).map(|n| n * 2).collect::<Vec<_>>()
        );
        assert!(in_parallel(0, 4, |index| index).is_empty());
    }

    #[test]
    fn cells_are_quoted_where_they_must() {
        assert_eq!(escaped("a,b \"c\""), "\"a,b \"\"c\"\"\"");
        assert_eq!(escaped("plain"), "plain");
    }
}
