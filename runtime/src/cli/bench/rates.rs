//! What this machine can do now: the ceilings that measurements are shares of.
//!
//! A machine's speed drifts with its neighbours and its clock, so ceilings are measured beside whatever is
//! compared with them.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use lxpod_backends::cpu::kernels::{Kernels, multiply_adds};
use lxpod_ir::Target;
use lxpod_passes::cost;

use super::cases::Case;
use super::graphs::{On, Runner};
use super::timing::{each, percentile};
use crate::cli::error::{CliError, Result};

/// How long one measurement of the multiply-adds lasts, and the rounds between two looks at the clock.
const BURST: Duration = Duration::from_millis(2);
const ROUNDS: u64 = 20_000;
/// Products of which one reading takes the median.
const PRODUCTS: usize = 5;

/// Rates of all threads together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Threads that the rates are of.
    pub(super) threads: usize,
    /// Floating-point operations a second.
    pub(super) flops: f64,
    /// Bytes a second read from memory that no cache holds.
    pub(super) memory: f64,
    /// Cycles a second at which the cost model takes a product in the caches as long as it took.
    pub(super) clock: f64,
}

impl Rates {
    /// The CPU target with as many cores as there are threads, at these rates.
    pub(super) fn target(&self) -> Result<Target> {
        let mut target = Target::named("cpu").map_err(CliError::Internal)?;
        target.tile.cores = self.threads as u64;
        target.tile.clock_hz = (self.clock as u64).max(1);
        target.host.bytes_per_second = (self.memory as u64).max(1);
        Ok(target)
    }
}

/// Reads the machine's speed, again and again beside other measurements.
///
/// Two ceilings are read, since neighbours slow them differently: multiply-adds in registers, which shares refer to, and
/// a product whose operands are in the caches, which gives the prediction its clock. A neighbour on the same core
/// takes load ports and caches before it takes multipliers.
pub(super) struct Gauge {
    kernels: &'static Kernels,
    threads: usize,
    product: Runner,
    /// Cycles that the cost model gives the product.
    cycles: f64,
    flops: Vec<f64>,
    clocks: Vec<f64>,
}

impl Gauge {
    /// A gauge of that many threads that has read nothing yet.
    pub(super) fn new(threads: usize) -> Result<Gauge> {
        let graph = Case::in_caches(threads)
            .graph(1)
            .map_err(CliError::Internal)?;
        let product = Runner::new(&graph, On::Cpu(threads))?;
        let mut target = Target::named("cpu").map_err(CliError::Internal)?;
        target.tile.cores = threads as u64;
        target.host.bytes_per_second = 1 << 50;
        let (model, graph) = (cost::model(&target), product.graph());
        let cycles: u64 = graph.nodes().map(|id| model.node(graph, id).total()).sum();
        Ok(Gauge {
            kernels: table()?,
            threads,
            cycles: cycles as f64,
            product,
            flops: Vec::new(),
            clocks: Vec::new(),
        })
    }

    /// Reads both ceilings.
    pub(super) fn read(&mut self) -> Result<()> {
        self.flops.push(burst(self.kernels, self.threads));
        let mut seconds = Vec::new();
        for _ in 0..PRODUCTS {
            self.product.run()?;
            let steps = self.product.step_times();
            seconds.push(steps.iter().map(|step| step.time.as_secs_f64()).sum());
        }
        let clock = self.cycles / percentile(&seconds, 0.5).max(1e-9);
        self.clocks.push(clock);
        Ok(())
    }

    /// The medians since the last call, beside a rate of the memory.
    pub(super) fn rates(&mut self, memory: f64) -> Rates {
        Rates {
            threads: self.threads,
            flops: percentile(&std::mem::take(&mut self.flops), 0.5),
            clock: percentile(&std::mem::take(&mut self.clocks), 0.5),
            memory,
        }
    }
}

/// The kernels in use.
pub(super) fn table() -> Result<&'static Kernels> {
    Kernels::select().map_err(|error| CliError::Usage(error.to_string()))
}

/// Floating-point operations a second of `threads` threads that multiply and add in registers.
pub(super) fn burst(kernels: &'static Kernels, threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let work = || {
        start.wait();
        let (began, mut done) = (Instant::now(), 0);
        while began.elapsed() < BURST {
            done += multiply_adds(kernels, ROUNDS);
        }
        done as f64 / began.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let rates = others.into_iter().filter_map(|thread| thread.join().ok());
        work() + rates.sum::<f64>()
    })
}

/// Bytes a second that `threads` threads read together of `bytes` bytes: the best of `repeat` times.
pub(super) fn bandwidth(threads: usize, bytes: usize, repeat: usize) -> f64 {
    let data = vec![1u64; bytes / size_of::<u64>()];
    let share = data.len().div_ceil(threads).max(1);
    let read = |part: &[u64]| black_box(xor(part));
    let all = || {
        std::thread::scope(|scope| {
            let mut parts = data.chunks(share);
            let own = parts.next().unwrap_or_default();
            for part in parts {
                scope.spawn(move || read(part));
            }
            read(own);
        });
    };
    bytes as f64 / percentile(&each(1, repeat, all), 0.0).max(1e-9)
}

/// Cache lines of 8 words, and places that are read in turn: one stream alone waits for the memory.
const LINE: usize = 8;
const STREAMS: usize = 8;

/// All words of whole lines, in several streams.
fn xor(words: &[u64]) -> u64 {
    let (lines, _) = words.as_chunks::<LINE>();
    let length = lines.len() / STREAMS;
    let mut sums = [0u64; LINE];
    for at in 0..length {
        for stream in 0..STREAMS {
            let line = &lines[stream * length + at];
            for (sum, word) in sums.iter_mut().zip(line) {
                *sum ^= word;
            }
        }
    }
    sums.into_iter().fold(0, |all, sum| all ^ sum)
}

/// Bytes of the last-level cache, if the system says.
pub(super) fn last_cache() -> Option<usize> {
    let path = "/sys/devices/system/cpu/cpu0/cache/index3/size";
    let text = std::fs::read_to_string(path).ok()?;
    let kibibytes: usize = text.trim().strip_suffix('K')?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Bytes of a buffer that no cache holds: `times` the last-level cache, 1 GiB at most.
pub(super) fn beyond_caches(times: usize) -> usize {
    const UNKNOWN: usize = 32 << 20;
    (last_cache().unwrap_or(UNKNOWN).max(UNKNOWN) * times).min(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_reads_rates() {
        let mut gauge = Gauge::new(2).expect("kernels");
        gauge.read().expect("runs");
        let rates = gauge.rates(1e9);
        assert!(rates.flops > 0.0 && rates.clock > 0.0, "{rates:?}");
        assert!(rates.target().expect("built in").check().is_ok());
    }

    #[test]
    fn a_target_has_the_rates() {
        let rates = Rates {
            threads: 3,
            flops: 192e9,
            memory: 10e9,
            clock: 2e9,
        };
        let target = rates.target().expect("built in");
        target.check().expect("a possible machine");
        assert_eq!(
            (target.tile.cores, target.tile.clock_hz),
            (3, 2_000_000_000)
        );
        assert_eq!(target.host.bytes_per_second, 10_000_000_000);
        let none = Rates {
            clock: 0.0,
            memory: f64::NAN,
            ..rates
        };
        assert_eq!(none.target().expect("built in").tile.clock_hz, 1);
    }
}
