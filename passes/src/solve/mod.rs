//! The solvers behind partitioning and memory planning, free of the IR.
//!
//! Everything here is a pure function of integers: the same input gives the same output on every machine and
//! for every thread count. Work is bounded by counts of ideals, steps and nodes; by time only where a caller asks for it.
//!
//! - [`lattice`]: the ideals (down-sets) of a DAG, shared by the solvers below;
//! - [`partition`]: the exact split of a DAG into pipeline stages with the smallest bottleneck;
//! - [`order`]: the execution order with the smallest peak of live bytes;
//! - [`chain`]: which layers of a chain to compute again, so that it fits a pipeline;
//! - [`offsets`]: byte offsets for buffers whose lifetimes are fixed.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod chain;
pub mod lattice;
pub mod offsets;
pub mod order;
pub mod partition;

/// Work that a search may still do.
#[derive(Debug)]
struct Budget<'a> {
    left: u64,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Budget<'a> {
    /// That many units, or fewer once `stop` is true.
    fn new(units: u64, stop: Option<&'a AtomicBool>) -> Self {
        Budget { left: units, stop }
    }

    /// More than any search takes.
    fn unlimited() -> Self {
        Budget::new(u64::MAX, None)
    }

    /// Takes one unit; false if there was none left.
    #[inline]
    fn spend(&mut self) -> bool {
        /// Units between two looks at `stop`.
        const INTERVAL: u64 = 1 << 12;
        if self.left.is_multiple_of(INTERVAL)
            && self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
        {
            self.left = 0;
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}
