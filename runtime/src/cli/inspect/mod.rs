//! `lxpod inspect`.

mod graph;
mod model;
mod plan;
mod tensors;
mod tile;
mod why;

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::source::{Subject, plan_of};

/// Show what a model, a plan, a graph or a file of tensors holds
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod inspect lxmert-base\n  \
    lxpod inspect lxmert.plan --tile 3\n  \
    lxpod inspect lxmert-base --why --stages 4\n  \
    lxpod inspect graph.lx --json\n\n\
    Plan options go with --tile and --why of a model, which is compiled for them.")]
pub(crate) struct Inspect {
    /// A model, a plan, a graph in text form, or a .safetensors file
    #[arg(value_name = "MODEL|FILE")]
    subject: PathBuf,

    /// Show one tile of a plan: its steps, its buffers and a map of its memory
    #[arg(long, value_name = "N")]
    tile: Option<usize>,

    /// Say why a model is cut where it is: the slowest stage, and for each cut the best next to it
    #[arg(long, conflicts_with = "tile")]
    why: bool,

    #[command(flatten)]
    options: PlanOptions,
}

impl Inspect {
    pub(crate) fn run(mut self, global: &Global) -> Result<()> {
        self.options = self.options.resolved(global)?;
        let subject = Subject::of(&self.subject)?;
        if self.why || self.tile.is_some() {
            return self.show_plan(&subject, global);
        }
        let given = self.options.given();
        match subject {
            Subject::Plan(_) => {
                let planned = plan_of(&self.subject, &self.options, global)?;
                plan::show(&planned.plan, global)
            }
            _ if !given.is_empty() => {
                let message = "goes with --tile or --why of a model";
                Err(CliError::option(given[0], message))
            }
            Subject::Model(name) => model::show(&name, global),
            Subject::Graph(path) => graph::show(&path, global),
            Subject::Tensors(path) => tensors::show(&path, global),
        }
    }

    /// What only a plan has.
    fn show_plan(&self, subject: &Subject, global: &Global) -> Result<()> {
        let flag = if self.why { "--why" } else { "--tile" };
        if matches!(subject, Subject::Graph(_) | Subject::Tensors(_)) {
            return Err(CliError::option(flag, "needs a model or a plan"));
        }
        self.options.usage()?;
        let planned = plan_of(&self.subject, &self.options, global)?;
        match (self.tile, &planned.compiled) {
            (Some(tile), _) => tile::show(&planned.plan, tile, global),
            (None, Some(compiled)) => why::show(&planned.plan, &compiled.split, global),
            (None, None) => {
                let message = "needs a model: a plan file keeps the split, not the search; name the model it was \
                               compiled from, with its options";
                Err(CliError::option(flag, message))
            }
        }
    }
}
