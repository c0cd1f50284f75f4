//! `lxpod inspect`.

mod graph;
mod model;
mod plan;
mod tensors;
mod tile;

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::error::{CliError, Result};
use super::source::{Subject, read_plan};

/// Show what a model, a plan, a graph or a file of tensors holds
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod inspect lxmert-base\n  \
    lxpod inspect lxmert.plan --tile 3\n  \
    lxpod inspect graph.lx --json")]
pub(crate) struct Inspect {
    /// A model, a plan, a graph in text form, or a .safetensors file
    #[arg(value_name = "MODEL|FILE")]
    subject: PathBuf,

    /// Show one tile of a plan: its steps, its buffers and a map of its memory
    #[arg(long, value_name = "N")]
    tile: Option<usize>,
}

impl Inspect {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let subject = Subject::of(&self.subject)?;
        match (subject, self.tile) {
            (Subject::Plan(path), None) => plan::show(&read_plan(&path)?, global),
            (Subject::Plan(path), Some(tile)) => tile::show(&read_plan(&path)?, tile, global),
            (_, Some(_)) => {
                let message = "needs a plan; make one with `lxpod compile MODEL -o FILE.plan`";
                Err(CliError::option("--tile", message))
            }
            (Subject::Model(name), None) => model::show(&name, global),
            (Subject::Graph(path), None) => graph::show(&path, global),
            (Subject::Tensors(path), None) => tensors::show(&path, global),
        }
    }
}
