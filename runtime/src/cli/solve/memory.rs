//! `lxpod solve memory`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lxpod_passes::solve::offsets::{self, Assignment, Limits, OffsetError};
use lxpod_runtime::Error;
use lxpod_runtime::problems::memory::Instance;
use serde_json::json;

use crate::cli::error::{CliError, Result};
use crate::cli::output::{self, grouped, percent, plural};
use crate::cli::{Global, files};

use super::{Patience, picture};

/// Give buffers with fixed lifetimes offsets, so that the peak is least, or so that they fit a capacity
///
/// FILE.csv has the columns id, lower, upper and size, as MiniMalloc's: a buffer is live from lower up to, but not
/// including, upper. Without --capacity the peak is minimised.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod solve memory A.1048576.csv --capacity 1048576\n  \
    lxpod solve memory buffers.csv --time-limit 10 --json\n  \
    lxpod solve memory buffers.csv --svg buffers.svg")]
pub(crate) struct Memory {
    /// The problem
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,

    /// Stop at the first assignment within that many bytes
    #[arg(long, value_name = "BYTES")]
    capacity: Option<u64>,

    #[command(flatten)]
    patience: Patience,

    /// Draw the buffers over time into a file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// Nodes of the exact search: some minutes.
const NODES: u64 = 50_000_000;

impl Memory {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let over = self.patience.start();
        let started = Instant::now();
        let instance = Instance::read(&self.file)?;
        let limits = Limits {
            capacity: self.capacity,
            nodes: NODES,
            stop: Some(&over),
        };
        let found = offsets::assign(&instance.buffers, &limits);
        let found = found.map_err(|error| self.refused(error))?;
        let seconds = started.elapsed().as_secs_f64();
        if let Some((a, b)) = offsets::conflict(&instance.buffers, &found.offsets) {
            let (a, b) = (&instance.names[a], &instance.names[b]);
            return Err(CliError::Internal(format!("buffers {a} and {b} overlap")));
        }
        if let Some(capacity) = self
            .capacity
            .filter(|&capacity| found.lower_bound > capacity)
        {
            let least = found.lower_bound;
            let message = format!("no assignment fits {capacity} bytes; give at least {least}");
            return Err(CliError::option("--capacity", message));
        }
        let fits = self.capacity.is_none_or(|capacity| found.peak <= capacity);
        if !fits {
            global.note("warning: no assignment within --capacity was found, and none excluded");
        }
        if let Some(path) = &self.svg {
            files::write(path, picture::svg(&instance, &found).as_bytes())?;
        }
        if global.json {
            return output::json(&json!({
                "objective": found.peak,
                "lower_bound": found.lower_bound,
                "optimal": found.optimal,
                "seconds": seconds,
                "offsets": found.offsets,
                "max_live": offsets::max_live(&instance.buffers),
                "fits": fits,
                "buffers": instance.buffers.len(),
            }));
        }
        output::print(&self.report(&instance, &found, seconds))
    }

    fn refused(&self, error: OffsetError) -> CliError {
        CliError::Library(Error::InvalidFile {
            path: self.file.clone(),
            field: "size".to_owned(),
            problem: error.to_string(),
            help: "use a larger unit for sizes and alignments".to_owned(),
        })
    }

    fn report(&self, instance: &Instance, found: &Assignment, seconds: f64) -> String {
        let live = offsets::max_live(&instance.buffers);
        let proof = match (found.optimal, self.capacity) {
            (true, _) => "optimal",
            (false, Some(capacity)) if found.peak <= capacity => "within the capacity",
            (false, _) => "not proved optimal",
        };
        let over = found.peak as f64 / live.max(1) as f64 - 1.0;
        format!(
            "problem    {}, at most {} bytes live at once\n\
             result     peak {} bytes, lower bound {} ({proof}), {} above the live bytes\n\
             solved     in {}\n\n{}",
            plural(instance.buffers.len(), "buffer"),
            grouped(live),
            grouped(found.peak),
            grouped(found.lower_bound),
            percent(over.max(0.0)),
            output::seconds(seconds),
            picture::text(instance, found),
        )
    }
}
