//! A plan beside another that it is to be judged by: a placement by hand beside the compiler's own, branches beside a
//! chain.

use lxpod_passes::CompileOptions;
use lxpod_passes::plan::Plan;
use lxpod_runtime::Model;
use serde_json::{Value, json};

use super::Global;
use super::options::Use;
use super::output::{HEADING, STRONG, grouped, seconds, styled};
use super::report::Report;
use super::source::compile_model;

/// The plan of the same options that another is judged by, or why there is none.
pub(crate) struct Rival {
    kind: Kind,
    plan: Result<Plan, String>,
}

/// What sets the two apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The plan was placed by hand; the rival was not.
    Placement,
    /// The plan's stages may lie on branches; the rival's lie in a chain.
    Branches,
}

impl Kind {
    /// The field of documents.
    fn field(self) -> &'static str {
        match self {
            Kind::Placement => "placement",
            Kind::Branches => "branches",
        }
    }

    /// The names of the plan and of its rival.
    fn names(self) -> [&'static str; 2] {
        match self {
            Kind::Placement => ["by hand", "automatic"],
            Kind::Branches => ["branches", "chain"],
        }
    }
}

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
    /// The compiler's own plan for the same options, if they pin one; a chain, if they allow branches.
    pub(crate) fn of(model: &Model, options: &CompileOptions, global: &Global) -> Option<Rival> {
        let mut other = options.clone();
        let kind = match (other.pinned.take(), options.branches) {
            (Some(_), _) => Kind::Placement,
            (None, true) => Kind::Branches,
            (None, false) => return None,
        };
        other.branches = options.branches && kind == Kind::Placement;
        let compiled = compile_model(model, &other, global, &mut |_, _| {});
        let plan = compiled.map(|(plan, _)| plan).map_err(|error| {
            let shown = error.to_string();
            shown.lines().next().unwrap_or_default().to_owned()
        });
        Some(Rival { kind, plan })
    }

    /// Both, used alike.
    fn judged(&self, report: &Report<'_>, used: Use) -> Result<[Judged; 2], &str> {
        let other = self.plan.as_ref().map_err(String::as_str)?;
        let other = Judged::of(&Report::new(other, used, None));
        Ok([Judged::of(report), other])
    }

    /// For programs: the field, and what it holds.
    pub(crate) fn document(&self, report: &Report<'_>, used: Use) -> (&'static str, Value) {
        let names = self.kind.names().map(|name| name.replace(' ', "_"));
        let document = match self.judged(report, used) {
            Err(message) => json!({&names[1]: null, "problem": message}),
            Ok(both) => {
                let [slower, faster] = self.ordered(&both);
                json!({
                    &names[0]: both[0].document(),
                    &names[1]: both[1].document(),
                    "objective_ratio": ratio(slower.bottleneck_cycles as f64, faster.bottleneck_cycles as f64),
                    "step_ratio": ratio(slower.step_seconds, faster.step_seconds),
                })
            }
        };
        (self.kind.field(), document)
    }

    /// The one that is expected to be slower first: a placement by hand, a chain.
    fn ordered<'j>(&self, [own, other]: &'j [Judged; 2]) -> [&'j Judged; 2] {
        match self.kind {
            Kind::Placement => [own, other],
            Kind::Branches => [other, own],
        }
    }

    /// For people.
    pub(crate) fn text(&self, report: &Report<'_>, used: Use) -> String {
        let line = |name: &str, value: &str| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        let names = self.kind.names();
        match self.judged(report, used) {
            Err(message) => line(names[1], message),
            Ok(both) => {
                let [slower, faster] = self.ordered(&both);
                let step = ratio(slower.step_seconds, faster.step_seconds);
                let cycles = |judged: &Judged| judged.bottleneck_cycles as f64;
                let bottleneck = ratio(cycles(slower), cycles(faster));
                let what = match self.kind {
                    Kind::Placement => "the placement by hand",
                    Kind::Branches => "a chain",
                };
                let step = styled(STRONG, format!("{step:.2} x"));
                line(names[0], &both[0].text())
                    + &line(names[1], &both[1].text())
                    + &line(
                        "ratio",
                        &format!(
                            "{what} takes {step} the time of a step, {bottleneck:.2} x that of the slowest stage"
                        ),
                    )
            }
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 1.0 }
}
