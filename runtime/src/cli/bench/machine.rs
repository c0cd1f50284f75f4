//! `lxpod bench machine`.

use std::hint::black_box;

use clap::Args;
use lxpod_backends::cpu::kernels::{
    Kernels as Table, Linear, Panels, Scratch, View, ViewMut, linear, linear_scratch,
};
use lxpod_ir::DType;
use serde_json::json;

use super::timing::{each, per_call, percentile};
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::load::Sequence;
use crate::cli::machine::Machine as This;
use crate::cli::options::positive;
use crate::cli::output::{self, HEADING, styled};

/// Operands of the peak's product: few enough bytes for the second-level cache, enough rows to fill
/// every register tile.
const ROWS: usize = 96;
const INPUTS: usize = 768;
const OUTPUTS: usize = 64;
/// Bytes that no cache holds.
const STREAM: usize = 256 << 20;

/// Measure what this machine can do: multiply-adds and memory bandwidth
#[derive(Args)]
pub(super) struct Machine {
    /// Timed runs of each measurement
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    repeat: usize,
}

impl Machine {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let this = This::this();
        let threads = global.threads.unwrap_or(this.cpus);
        let kernels = table()?;
        let one = fma_peak(kernels, self.repeat);
        let all = together(threads, || fma_peak(kernels, self.repeat))
            .into_iter()
            .sum::<f64>();
        let bandwidth = bandwidth(threads, self.repeat);
        if global.json {
            return output::json(&json!({
                "machine": this.document(),
                "threads": threads,
                "peak_gflops_one_thread": one / 1e9,
                "peak_gflops": all / 1e9,
                "dram_gb_per_second": bandwidth / 1e9,
            }));
        }
        let line = |name: &str, value: String| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        let text = line("machine", this.text())
            + &line(
                "multiply",
                format!(
                    "{:.1} GFLOP/s on one thread, {:.1} on {}: the matrix kernel, operands in cache",
                    one / 1e9,
                    all / 1e9,
                    output::plural(threads, "thread"),
                ),
            )
            + &line(
                "memory",
                format!(
                    "{:.1} GB/s read by {}",
                    bandwidth / 1e9,
                    output::plural(threads, "thread")
                ),
            );
        output::print(&text)
    }
}

/// The kernels in use.
pub(super) fn table() -> Result<&'static Table> {
    Table::select().map_err(|error| CliError::Usage(error.to_string()))
}

/// Operations per second of the matrix kernel on one thread with its operands in cache: what other
/// kernels' shares refer to. It is what the kernel reaches, a little below what the units can do.
pub(super) fn fma_peak(kernels: &Table, repeat: usize) -> f64 {
    let mut random = Sequence(7);
    let mut values = |count: usize| (0..count).map(|_| random.float()).collect::<Vec<f32>>();
    let (x, weights) = (values(ROWS * INPUTS), values(OUTPUTS * INPUTS));
    let mut panels = Panels::new(OUTPUTS, INPUTS, DType::F32);
    panels.fill_rows(0, &weights);
    let layer = Linear {
        x: View::new(&x, ROWS, INPUTS),
        weights: &panels,
        bias: None,
        activation: None,
    };
    let mut out = vec![0.0f32; ROWS * OUTPUTS];
    let mut scratch = Scratch::new(linear_scratch(ROWS, INPUTS));
    let seconds = per_call(1, repeat, || {
        let out = ViewMut::new(&mut out, ROWS, OUTPUTS);
        let mut units = std::iter::once(0..layer.units());
        linear(kernels, &layer, out, &mut units, &mut scratch);
    });
    (2 * ROWS * INPUTS * OUTPUTS) as f64 / seconds.max(1e-12)
}

/// What `threads` threads give that do the same at once.
fn together<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        started
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    })
}

/// Bytes per second that `threads` threads read together from memory no cache holds.
fn bandwidth(threads: usize, repeat: usize) -> f64 {
    let data = vec![1u64; STREAM / size_of::<u64>()];
    let share = data.len().div_ceil(threads);
    let read = || {
        std::thread::scope(|scope| {
            for part in data.chunks(share) {
                scope.spawn(move || black_box(part.iter().fold(0u64, |sum, value| sum ^ value)));
            }
        });
    };
    STREAM as f64 / percentile(&each(1, repeat, read), 0.0).max(1e-9)
}
