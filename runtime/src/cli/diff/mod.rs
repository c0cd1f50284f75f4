//! `lxpod diff`.

mod difference;
mod shown;

use std::path::PathBuf;

use clap::{Args, Parser};

use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::report::Report;
use super::source::plan_of;
use super::{Global, output, quoted};
use difference::Difference;
use shown::Shown;

/// Say how two plans differ: options, what moved, each tile's cycles and bytes, predicted times
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod diff a.plan b.plan\n  \
    lxpod diff \"lxmert-base --stages 4 --place graphcore\" \"lxmert-base --stages 4\"\n  \
    lxpod diff lxmert-base \"lxmert-base --set link.gbps=64\" --json\n\n\
    A and B are each a plan file or a model; a model may be followed, in the same quotes, by plan options,\n\
    a plan by those that it has not settled.\n\n\
    Operators are matched by scope, op and number among the scope's ops of that name; transfers belong to\n\
    no operator. Exit code 0 whether the plans differ or not.")]
pub(crate) struct Diff {
    /// A plan or a model, with options in quotes
    #[arg(value_name = "A")]
    a: String,

    /// What to compare it with
    #[arg(value_name = "B")]
    b: String,
}

/// A plan or a model with its options.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Side {
    #[arg(value_name = "MODEL|FILE.plan")]
    subject: PathBuf,

    #[command(flatten)]
    options: PlanOptions,
}

impl Diff {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let what = "a plan or a model, and plan options";
        let sides = [
            quoted::parse::<Side>("A", &self.a, what)?,
            quoted::parse::<Side>("B", &self.b, what)?,
        ];
        let plan = |side: Side| {
            let options = side.options.resolved(global)?;
            options.usage()?;
            let planned = plan_of(&side.subject, &options, global)?;
            Ok::<_, CliError>((planned.plan, planned.used))
        };
        let [a, b] = sides.map(plan);
        let ((a, used_a), (b, used_b)) = (a?, b?);
        let reports = [Report::new(&a, used_a, None), Report::new(&b, used_b, None)];
        let shown = Shown {
            names: [&self.a, &self.b],
            difference: &Difference::of(&reports),
        };
        if global.json {
            output::json(&shown.document())
        } else {
            output::print(&shown.text())
        }
    }
}
