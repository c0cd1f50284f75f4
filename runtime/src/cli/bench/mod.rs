//! `lxpod bench`.

mod cases;
mod graphs;
mod kernels;
mod machine;
mod model;
mod profile;
mod rates;
mod saved;
mod timing;

use clap::{Args, Subcommand};

use super::Global;
use super::error::Result;

/// Measure kernels, a model or this machine
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod bench model lxmert-base --batch 8 --repeat 20\n  \
    lxpod bench kernels linear f16 --save before.json\n  \
    lxpod bench kernels --shape 20,768,3072 --threads 1\n  \
    lxpod bench machine --json")]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Kernels(kernels::Kernels),
    Model(Box<model::Model>),
    Machine(machine::Machine),
}

impl Bench {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        match self.what {
            What::Kernels(bench) => bench.run(global),
            What::Model(bench) => bench.run(global),
            What::Machine(bench) => bench.run(global),
        }
    }
}
