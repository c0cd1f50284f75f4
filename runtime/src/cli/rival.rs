//! A placement by hand beside the compiler's own.

use lxpod_passes::CompileOptions;
use lxpod_passes::plan::Plan;
use lxpod_runtime::Model;
use serde_json::{Value, json};

use super::Global;
use super::options::Use;
use super::output::{HEADING, STRONG, grouped, seconds, styled};
use super::report::Report;
use super::source::compile_model;

/// The plan that the compiler finds where another was placed by hand, or why there is none.
pub(crate) struct Rival(Result<Plan, String>);

/// What two plans are compared by.
struct Judged {
    bottleneck_cycles: u64,
    step_seconds: f64,
    samples_per_second: f64,
}

impl Judged {
    fn of(report: &Report<'_>) -> Judged {
        let predicted = report.simulation().predict();
        Judged {
            bottleneck_cycles: report.plan().partition.objective_cycles,
            step_seconds: predicted.step_seconds,
            samples_per_second: predicted.samples_per_second,
        }
    }

    fn document(&self) -> Value {
        json!({
            "objective_cycles": self.bottleneck_cycles,
            "step_seconds": self.step_seconds,
            "samples_per_second": self.samples_per_second,
        })
    }

    fn text(&self) -> String {
        format!(
            "slowest stage {} cycles, step {}, {:.1} samples/s",
            grouped(self.bottleneck_cycles),
            seconds(self.step_seconds),
            self.samples_per_second
        )
    }
}

impl Rival {
    /// The compiler's own plan for the same options, if they pin one.
    pub(crate) fn of(model: &Model, options: &CompileOptions, global: &Global) -> Option<Rival> {
        options.pinned.as_ref()?;
        let own = CompileOptions {
            pinned: None,
            ..options.clone()
        };
        let compiled = compile_model(model, &own, global, &mut |_, _| {});
        let found = compiled.map(|(plan, _)| plan).map_err(|error| {
            let shown = error.to_string();
            shown.lines().next().unwrap_or_default().to_owned()
        });
        Some(Rival(found))
    }

    /// Both, used alike.
    fn judged(&self, report: &Report<'_>, used: Use) -> Result<[Judged; 2], &str> {
        let own = self.0.as_ref().map_err(String::as_str)?;
        let own = Judged::of(&Report::new(own, used, None));
        Ok([Judged::of(report), own])
    }

    /// For programs.
    pub(crate) fn document(&self, report: &Report<'_>, used: Use) -> Value {
        match self.judged(report, used) {
            Err(message) => json!({"automatic": null, "problem": message}),
            Ok([by_hand, own]) => json!({
                "by_hand": by_hand.document(),
                "automatic": own.document(),
                "objective_ratio": ratio(by_hand.bottleneck_cycles as f64, own.bottleneck_cycles as f64),
                "step_ratio": ratio(by_hand.step_seconds, own.step_seconds),
            }),
        }
    }

    /// For people.
    pub(crate) fn text(&self, report: &Report<'_>, used: Use) -> String {
        let line = |name: &str, value: &str| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        match self.judged(report, used) {
            Err(message) => line("automatic", message),
            Ok([by_hand, own]) => {
                let step = ratio(by_hand.step_seconds, own.step_seconds);
                let bottleneck = ratio(
                    by_hand.bottleneck_cycles as f64,
                    own.bottleneck_cycles as f64,
                );
                line("by hand", &by_hand.text())
                    + &line("automatic", &own.text())
                    + &line(
                        "ratio",
                        &format!(
                            "the placement by hand takes {} the time of a step, {bottleneck:.2} x that of the slowest stage",
                            styled(STRONG, format!("{step:.2} x"))
                        ),
                    )
            }
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 1.0 }
}
