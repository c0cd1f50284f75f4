//! Sums over replicas: what a tile sends and receives before it updates.

use lxpod_ir::ops::{Op, SumSquares};
use lxpod_ir::{NodeId, Target, Value, sharding};

use super::Plan;
use crate::accumulate::ACCUMULATOR;

impl Plan {
    /// Cycles in which a tile sums its accumulators over that many replicas: rings in which each replica sends and
    /// receives (R - 1) / R of what is scattered, as much of what is gathered, and both of what all need the sum of
    /// (Patarasuk and Yuan, JPDC 2009). Of what replicas share out, gradients are scattered and parameters gathered,
    /// and so are the sums over blocks.
    pub fn collective_cycles(&self, tile: usize, replicas: usize) -> u64 {
        let shared = Shared::of(self, tile);
        let whole = self.tiles[tile].memory.accumulators - shared.gradients;
        let bytes = 2 * whole + shared.gradients + shared.parameters + shared.sums;
        ring_cycles(&self.target, bytes, replicas)
    }
}

/// Cycles in which a tile passes bytes around a ring of replicas, each of which sends and receives all but its own
/// share of them.
pub(crate) fn ring_cycles(target: &Target, bytes: u64, replicas: usize) -> u64 {
    let replicas = replicas as u64;
    match (replicas - 1) * bytes / replicas {
        0 => 0,
        moved => 2 * target.link_cycles(moved),
    }
}

/// Bytes of what replicas share out on a tile.
#[derive(Default)]
struct Shared {
    gradients: u64,
    parameters: u64,
    /// The sums of blocks that all replicas need.
    sums: u64,
}

impl Shared {
    fn of(plan: &Plan, tile: usize) -> Self {
        let mut shared = Shared::default();
        let Some(update) = &plan.update else {
            return shared;
        };
        let here = |id: NodeId| {
            let stage = match &update.node(id).op {
                Op::Transfer(transfer) => Some(transfer.to),
                _ => update.node(id).stage,
            };
            stage.is_some_and(|stage| plan.schedule.tile_of(stage as usize) == tile)
        };
        let bytes = |value: Value| update.ty(value).bytes() as u64;
        for id in update.nodes().filter(|&id| here(id)) {
            match &update.node(id).op {
                Op::State(state) if state.name.starts_with(ACCUMULATOR) && state.shards > 1 => {
                    shared.gradients += bytes(update.value(id));
                }
                _ if sharding::combines_replicas(update, id) => {
                    let elements = update.input_types(id)[0].shape.elements();
                    shared.sums += (elements.div_ceil(SumSquares::BLOCK) * size_of::<f64>()) as u64;
                }
                _ => {}
            }
        }
        for output in update.outputs() {
            let gathered = output.stored_param().is_some()
                && sharding::shards(update, output.value) > 1
                && here(output.value.node);
            if gathered {
                shared.parameters += bytes(output.value);
            }
        }
        shared
    }
}
