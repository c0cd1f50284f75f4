//! `lxpod bench machine`.

use clap::Args;
use serde_json::{Value, json};

use super::rates::{bandwidth, beyond_caches, burst, last_cache, table};
use super::timing::percentile;
use crate::cli::Global;
use crate::cli::error::Result;
use crate::cli::machine::Machine as This;
use crate::cli::options::repeats;
use crate::cli::output::{self, HEADING, bytes, plural, styled};
use crate::cli::table::Table;

/// Buffers of this many times the last-level cache do not fit it.
const TIMES_CACHE: usize = 5;

/// Measure what this machine can do: multiply-adds and memory bandwidth
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod bench machine\n  \
    lxpod bench machine --threads 1 --repeat 20 --json")]
pub(super) struct Machine {
    /// Timed runs of each measurement
    #[arg(long, value_name = "N", default_value = "9", value_parser = repeats)]
    repeat: usize,
}

/// A rate of several measurements.
struct Rate {
    name: &'static str,
    threads: usize,
    unit: &'static str,
    best: f64,
    median: f64,
}

impl Rate {
    fn of(name: &'static str, threads: usize, unit: &'static str, measured: &[f64]) -> Rate {
        Rate {
            name,
            threads,
            unit,
            best: percentile(measured, 1.0) / 1e9,
            median: percentile(measured, 0.5) / 1e9,
        }
    }
}

impl Machine {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let this = This::this();
        let threads = global.threads.unwrap_or(this.cpus);
        let kernels = table()?;
        let stream = beyond_caches(TIMES_CACHE);
        let peak =
            |threads| -> Vec<f64> { (0..self.repeat).map(|_| burst(kernels, threads)).collect() };
        let memory: Vec<f64> = (0..self.repeat.div_ceil(3))
            .map(|_| bandwidth(kernels, threads, stream, 3))
            .collect();
        let rates = [
            Rate::of("multiply-adds", 1, "GFLOP/s", &peak(1)),
            Rate::of("multiply-adds", threads, "GFLOP/s", &peak(threads)),
            Rate::of("memory reads", threads, "GB/s", &memory),
        ];
        if global.json {
            return output::json(&document(&this, &rates, stream));
        }
        output::print(&text(&this, &rates, stream))
    }
}

fn document(this: &This, [one, all, memory]: &[Rate; 3], stream: usize) -> Value {
    json!({
        "machine": this.document(),
        "threads": all.threads,
        "peak_gflops_one_thread": one.best,
        "median_gflops_one_thread": one.median,
        "peak_gflops": all.best,
        "median_gflops": all.median,
        "dram_gb_per_second": memory.best,
        "median_dram_gb_per_second": memory.median,
        "dram_buffer_bytes": stream,
        "last_cache_bytes": last_cache(),
    })
}

fn text(this: &This, rates: &[Rate; 3], stream: usize) -> String {
    let mut table = Table::new(&["<rate", "threads", "best", "median", "<unit"]);
    for rate in rates {
        table.row([
            rate.name.to_owned(),
            rate.threads.to_string(),
            format!("{:.1}", rate.best),
            format!("{:.1}", rate.median),
            rate.unit.to_owned(),
        ]);
    }
    let cache = last_cache().map_or("of unknown size".to_owned(), |size| bytes(size as u64));
    format!(
        "{}  {}\n\n{}Multiply-adds stay in registers. Memory is read by {} from {}; the last-level cache is {cache}.\n",
        styled(HEADING, "machine"),
        this.text(),
        table.render(),
        plural(rates[2].threads, "thread"),
        bytes(stream as u64),
    )
}
