//! What this machine can do now: the ceilings that measurements are shares of.
//!
//! A machine's speed drifts with its neighbours and its clock, so ceilings are measured beside whatever is
//! compared with them.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use lxpod_backends::cpu::kernels::{Kernels, huge_pages, multiply_adds, read_all};
use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Graph, NodeId, Target};
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
    /// Multiply-adds a cycle of a core with weights of f16 and of f32.
    pub(super) macs: [u64; 2],
}

impl Rates {
    /// The CPU target with as many cores as there are threads, at these rates.
    pub(super) fn target(&self) -> Result<Target> {
        let mut target = Target::named("cpu").map_err(CliError::Internal)?;
        target.tile.cores = self.threads as u64;
        target.tile.clock_hz = (self.clock as u64).max(1);
        [target.tile.macs_half, target.tile.macs_float] = self.macs;
        target.host.bytes_per_second = (self.memory as u64).max(1);
        Ok(target)
    }
}

/// Reads the machine's speed, again and again beside other measurements.
///
/// Two ceilings are read, since neighbours slow them differently: multiply-adds in registers, which shares refer to, and
/// a product whose operands are in the caches, which gives the prediction its clock. A neighbour on the same core
/// takes load ports and caches before it takes multipliers. Weights of f16 and of f32 have kernels of their own, and so
/// products and clocks of their own.
pub(super) struct Gauge {
    kernels: &'static Kernels,
    threads: usize,
    products: [Product; 2],
    flops: Vec<f64>,
}

/// A product whose operands are in the caches.
struct Product {
    weights: DType,
    runner: Runner,
    /// Cycles that the cost model gives it.
    cycles: f64,
    clocks: Vec<f64>,
}

impl Product {
    fn new(weights: DType, kernels: &Kernels, threads: usize) -> Result<Product> {
        let graph = Case::in_caches(threads, weights).graph(1);
        let graph = graph.map_err(CliError::Internal)?;
        let runner = Runner::new(&graph, On::Cpu(threads))?;
        let rates = Rates {
            threads,
            flops: 0.0,
            memory: (1_u64 << 50) as f64,
            clock: 1e9,
            macs: kernels.multiply_adds_a_cycle(),
        };
        let (target, graph) = (rates.target()?, runner.graph());
        let model = cost::model(&target);
        let cycles: u64 = graph.nodes().map(|id| model.node(graph, id).total()).sum();
        Ok(Product {
            weights,
            cycles: cycles as f64,
            clocks: Vec::new(),
            runner,
        })
    }

    fn read(&mut self) -> Result<()> {
        let mut seconds = Vec::new();
        for _ in 0..PRODUCTS {
            self.runner.run()?;
            let steps = self.runner.step_times();
            seconds.push(steps.iter().map(|step| step.time.as_secs_f64()).sum());
        }
        let clock = self.cycles / percentile(&seconds, 0.5).max(1e-9);
        self.clocks.push(clock);
        Ok(())
    }
}

impl Gauge {
    /// A gauge of that many threads that has read nothing yet.
    pub(super) fn new(threads: usize) -> Result<Gauge> {
        let kernels = table()?;
        let product = |weights| Product::new(weights, kernels, threads);
        Ok(Gauge {
            kernels,
            threads,
            products: [product(DType::F16)?, product(DType::F32)?],
            flops: Vec::new(),
        })
    }

    /// Reads all ceilings.
    pub(super) fn read(&mut self) -> Result<()> {
        self.flops.push(burst(self.kernels, self.threads));
        self.products.iter_mut().try_for_each(Product::read)
    }

    /// The medians since the last call, for weights of that dtype, beside a rate of the memory.
    pub(super) fn rates(&mut self, weights: DType, memory: f64) -> Rates {
        let mut clock = 0.0;
        for product in &mut self.products {
            let clocks = std::mem::take(&mut product.clocks);
            if product.weights == weights {
                clock = percentile(&clocks, 0.5);
            }
        }
        Rates {
            threads: self.threads,
            flops: percentile(&std::mem::take(&mut self.flops), 0.5),
            clock,
            memory,
            macs: self.kernels.multiply_adds_a_cycle(),
        }
    }
}

/// The dtype of most weights of a graph.
pub(super) fn weights(graph: &Graph) -> DType {
    let linear = |id: &NodeId| matches!(graph.node(*id).op, Op::Linear(_));
    let half = |id: NodeId| graph.input_types(id)[1].dtype == DType::F16;
    let (halves, others): (Vec<NodeId>, _) = graph.nodes().filter(linear).partition(|&id| half(id));
    if halves.len() > others.len() {
        DType::F16
    } else {
        DType::F32
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
pub(super) fn bandwidth(
    kernels: &'static Kernels,
    threads: usize,
    bytes: usize,
    repeat: usize,
) -> f64 {
    let length = bytes / size_of::<f32>();
    let mut data: Vec<f32> = Vec::with_capacity(length);
    huge_pages(data.spare_capacity_mut());
    data.resize(length, 1.0);
    let share = data.len().div_ceil(threads).max(1);
    let read = |part: &[f32]| black_box(read_all(kernels, part));
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
        let rates = gauge.rates(DType::F16, 1e9);
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
            macs: [64, 32],
        };
        let target = rates.target().expect("built in");
        target.check().expect("a possible machine");
        assert_eq!(
            (target.tile.cores, target.tile.clock_hz),
            (3, 2_000_000_000)
        );
        assert_eq!(target.host.bytes_per_second, 10_000_000_000);
        assert_eq!((target.tile.macs_half, target.tile.macs_float), (64, 32));
        let none = Rates {
            clock: 0.0,
            memory: f64::NAN,
            ..rates
        };
        assert_eq!(none.target().expect("built in").tile.clock_hz, 1);
    }
}
