//! Predictions in words and numbers.

use std::fmt::Write;

use lxpod_backends::sim::{Prediction, Simulation};
use lxpod_ir::Machine;
use serde_json::{Value, json};

use super::output::{HEADING, STRONG, percent, plural, seconds, styled};
use super::table::Table;

/// The model's known error, said with every prediction.
pub(crate) fn error_note(machine: Machine) -> &'static str {
    match machine {
        Machine::Mk2 => {
            "Predicted by an analytic model that is not calibrated. Of published Mk2 runs, a model of the device \
             alone is known to predict about 2 to 4 times the measured throughput: it knows nothing of the host's \
             data path and of work per step outside the pipeline. Compare plans with it; do not quote it."
        }
        Machine::Cpu => {
            "Predicted by a roofline with the target file's rates, which are not this machine's. \
             Compare plans with it; do not quote it."
        }
    }
}

/// The JSON of a prediction.
pub(crate) fn document(prediction: &Prediction, machine: Machine) -> Value {
    let mut document = json!(prediction);
    document["note"] = json!(error_note(machine));
    document
}

/// The prediction for people.
pub(crate) fn text(simulation: &Simulation, machine: Machine) -> String {
    let prediction = simulation.predict();
    let mut text = String::new();
    let rate = |rate: f64| format!("{rate:.1} samples/s");
    let _ = writeln!(
        text,
        "{}  {} in steps of {} a replica",
        styled(HEADING, "predicted"),
        styled(STRONG, rate(prediction.samples_per_second)),
        micro_batches(simulation.micro_batches()),
    );
    let _ = writeln!(
        text,
        "  step {}, latency of a sample {}, {} with the pipeline always full",
        seconds(prediction.step_seconds),
        seconds(prediction.latency_seconds),
        rate(prediction.steady_samples_per_second),
    );
    let _ = writeln!(
        text,
        "  bottleneck tile {}, bubble {} of the step",
        prediction.bottleneck_tile,
        percent(prediction.bubble_fraction),
    );
    text.push('\n');
    text.push_str(&breakdown(&prediction));
    let _ = write!(text, "\n{}\n", wrapped(error_note(machine), 100));
    text
}

fn breakdown(prediction: &Prediction) -> String {
    let mut table = Table::new(&["<critical path", "time", "share"]);
    for (name, part) in prediction.breakdown.parts() {
        let share = if prediction.step_seconds > 0.0 {
            part / prediction.step_seconds
        } else {
            0.0
        };
        table.row([name.to_owned(), seconds(part), percent(share)]);
    }
    table.row([
        "step".to_owned(),
        seconds(prediction.step_seconds),
        percent(1.0),
    ]);
    table.render()
}

fn micro_batches(number: usize) -> String {
    match number {
        1 => "1 micro-batch".to_owned(),
        _ => plural(number, "micro-batche"),
    }
}

/// Text in lines of at most `width` characters.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + 1 + word.chars().count() > width
        {
            lines.push(word.to_owned());
        } else {
            let separator = if lines[last].is_empty() { "" } else { " " };
            lines[last] += separator;
            lines[last] += word;
        }
    }
    lines.join("\n")
}
