//! The CPU's cost model: a roofline and a barrier.

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Target, Tile};

use super::{CostModel, Cycles};

/// A shared-memory processor: each node computes at the peak rate or moves its bytes at the
/// memory's rate, whichever is slower, and ends at a barrier.
pub(super) struct Cpu {
    tile: Tile,
}

impl Cpu {
    pub(super) fn new(target: &Target) -> Self {
        Cpu {
            tile: target.tile.clone(),
        }
    }
}

impl CostModel for Cpu {
    fn explain(&self) -> &'static str {
        "cpu: max(flops / peak, bytes / memory bandwidth) + one barrier per step; rates from the target file"
    }

    fn node(&self, graph: &Graph, id: NodeId) -> Cycles {
        let op = &graph.node(id).op;
        if op.is_leaf() || op.is_view() || matches!(op, Op::Transfer(_)) {
            return Cycles::default();
        }
        let cost = graph.cost(id);
        let compute = cost
            .flops
            .div_ceil(2 * self.tile.macs_float * self.tile.cores);
        let memory = (cost.read + cost.written)
            .div_ceil(self.tile.exchange_bytes_per_cycle * self.tile.cores);
        Cycles {
            compute,
            exchange: memory.saturating_sub(compute),
            sync: self.tile.sync_cycles,
        }
    }
}
