//! `lxpod bench kernels`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::cases::{Case, all};
use super::machine::{fma_peak, table};
use super::saved::{self, Times};
use super::timing::per_call;
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::machine::Machine;
use crate::cli::options::positive;
use crate::cli::output::{self, HEADING, percent, seconds, styled};
use crate::cli::table::Table;

/// Measure the CPU kernels at LXMERT's shapes, on one thread; each is checked first
#[derive(Args)]
pub(super) struct Kernels {
    /// Only kernels whose name has all of these words, such as `linear f16 m36`
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,

    /// Timed batches of each kernel
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    repeat: usize,

    /// Untimed batches before
    #[arg(long, value_name = "K", default_value = "1")]
    warmup: usize,

    /// Compare with a file of --save
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Keep the times for --baseline
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Name the kernels without measuring them
    #[arg(long)]
    list: bool,
}

/// One kernel's measurement.
struct Measured {
    name: String,
    seconds: f64,
    gflops: f64,
    gigabytes: f64,
    share: f64,
}

impl Kernels {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let baseline = self.baseline.as_deref().map(saved::read).transpose()?;
        let matches = |case: &Case| {
            self.filters
                .iter()
                .all(|word| case.name().contains(word.as_str()))
        };
        let cases: Vec<Case> = all().into_iter().filter(matches).collect();
        if cases.is_empty() {
            let message =
                "no kernel has all of these words in its name; see `lxpod bench kernels --list`";
            return Err(CliError::Usage(message.to_owned()));
        }
        if self.list {
            return list(&cases, global);
        }
        let kernels = table()?;
        let peak = fma_peak(kernels, self.repeat);
        let mut measured = Vec::new();
        for case in &cases {
            global.detail(&case.name());
            let mut kernel = case.prepare(kernels);
            kernel.call();
            kernel
                .check()
                .map_err(|error| CliError::Internal(format!("{}: {error}", case.name())))?;
            let seconds = per_call(self.warmup, self.repeat, || kernel.call()).max(1e-12);
            let (flops, bytes) = kernel.work();
            measured.push(Measured {
                name: case.name(),
                seconds,
                gflops: flops / seconds / 1e9,
                gigabytes: bytes / seconds / 1e9,
                share: flops / seconds / peak,
            });
        }
        if let Some(path) = &self.save {
            let times: Times = measured
                .iter()
                .map(|kernel| (kernel.name.clone(), kernel.seconds))
                .collect();
            saved::save(path, &times)?;
        }
        if global.json {
            return output::json(&document(&measured, peak, baseline.as_ref()));
        }
        output::print(&text(&measured, peak, baseline.as_ref()))
    }
}

fn list(cases: &[Case], global: &Global) -> Result<()> {
    let names: Vec<String> = cases.iter().map(Case::name).collect();
    if global.json {
        return output::json(&json!({"kernels": names}));
    }
    output::print(&(names.join("\n") + "\n"))
}

fn document(measured: &[Measured], peak: f64, baseline: Option<&Times>) -> Value {
    let kernel = |kernel: &Measured| {
        json!({
            "name": kernel.name,
            "seconds": kernel.seconds,
            "gflops": kernel.gflops,
            "gb_per_second": kernel.gigabytes,
            "share_of_peak": kernel.share,
            "baseline_seconds": baseline.and_then(|times| times.get(&kernel.name)),
        })
    };
    json!({
        "machine": Machine::this().document(),
        "threads": 1,
        "peak_gflops": peak / 1e9,
        "kernels": measured.iter().map(kernel).collect::<Vec<_>>(),
    })
}

fn text(measured: &[Measured], peak: f64, baseline: Option<&Times>) -> String {
    let mut heading = vec!["<kernel", "time", "GFLOP/s", "of peak", "GB/s"];
    if baseline.is_some() {
        heading.push("speed-up");
    }
    let mut table = Table::new(&heading);
    for kernel in measured {
        table.row([
            kernel.name.clone(),
            seconds(kernel.seconds),
            format!("{:.1}", kernel.gflops),
            percent(kernel.share),
            format!("{:.1}", kernel.gigabytes),
            saved::speedup(baseline, &kernel.name, kernel.seconds),
        ]);
    }
    format!(
        "{}  {}; one thread; peak {:.1} GFLOP/s\n\n{}",
        styled(HEADING, "measured"),
        Machine::this().text(),
        peak / 1e9,
        table.render(),
    )
}
