//! `lxpod solve`: the planning engines on published problem formats.

mod check;
mod memory;
mod partition;
mod picture;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::Result;
use super::options::positive;
use super::output::{bytes, plural};
use super::{Global, files};

/// Solve a partition or a memory problem from a file
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod solve partition bert_l-12_inference.json --certificate bert.cert.json\n  \
    lxpod solve check bert_l-12_inference.json bert.cert.json\n  \
    lxpod solve memory A.1048576.csv --capacity 1048576 --json")]
pub(crate) struct Solve {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Partition(partition::Partition),
    Memory(memory::Memory),
    Check(check::Check),
}

impl Solve {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        match self.what {
            What::Partition(command) => command.run(global),
            What::Memory(command) => command.run(global),
            What::Check(command) => command.run(global),
        }
    }
}

/// The machine, where it is another than the file's.
#[derive(Args, Clone, Debug)]
struct Machine {
    /// Use K accelerators and no CPU [default: the file's devices]
    #[arg(long, value_name = "K", value_parser = devices)]
    devices: Option<usize>,

    /// Give each accelerator that many bytes [default: the file's]
    #[arg(long, value_name = "BYTES")]
    capacity: Option<u64>,
}

/// When to stop, if not at the proof.
#[derive(Args, Clone, Debug)]
struct Patience {
    /// Stop after S seconds, with the best so far and its lower bound [default: at the proof, or when the budget of
    /// steps is spent]
    #[arg(long, value_name = "S", value_parser = seconds)]
    time_limit: Option<Duration>,
}

impl Patience {
    /// A flag that becomes true when the time is over.
    fn start(&self) -> Arc<AtomicBool> {
        let over = Arc::new(AtomicBool::new(self.time_limit == Some(Duration::ZERO)));
        if let Some(limit) = self.time_limit {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                thread::sleep(limit);
                over.store(true, Ordering::Relaxed);
            });
        }
        over
    }
}

/// A problem's file.
#[derive(Args, Clone, Debug)]
struct Problem {
    /// The problem
    #[arg(value_name = "FILE.json")]
    file: PathBuf,

    #[command(flatten)]
    machine: Machine,
}

/// Writes a certificate of so many ideals, and says so.
pub(super) fn write_certificate(
    path: &Path,
    certificate: &impl Serialize,
    ideals: usize,
) -> Result<String> {
    let text = serde_json::to_vec(certificate).expect("a certificate has a text form");
    files::write(path, &text)?;
    let (ideals, size) = (plural(ideals, "ideal"), bytes(text.len() as u64));
    Ok(format!(
        "certificate of {ideals}, {size}: {}",
        path.display()
    ))
}

fn devices(text: &str) -> Result<usize, String> {
    const MOST: usize = 4096;
    let number = positive(text)?;
    match number <= MOST {
        true => Ok(number),
        false => Err(format!("at most {MOST} devices are supported")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "give a number of seconds".to_owned())?;
    if !(0.0..=1e9).contains(&number) {
        return Err("give a number of seconds from 0 to 1e9".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}
