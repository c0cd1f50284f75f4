//! Sums over replicas: what a tile sends and receives before it updates.

use lxpod_ir::ops::{Op, SumSquares};
use lxpod_ir::{Graph, NodeId, Target, Value, sharding};

use super::Plan;
use super::lower::home;
use crate::accumulate::ACCUMULATOR;

/// Bytes that go around the ring of replicas for what of an update lies `here`: what replicas sum goes around twice,
/// scattered and gathered (Patarasuk and Yuan, JPDC 2009). Of what they share out, gradients are scattered and
/// parameters gathered, and so are the sums over blocks.
pub(crate) fn ring_bytes(update: &Graph, here: impl Fn(NodeId) -> bool) -> u64 {
    let bytes = |value: Value| update.ty(value).bytes() as u64;
    let of_node = |id: NodeId| match &update.node(id).op {
        Op::State(state) if state.name.starts_with(ACCUMULATOR) => {
            let times = if state.shards > 1 { 1 } else { 2 };
            times * bytes(update.value(id))
        }
        _ if sharding::combines_replicas(update, id) => {
            let elements = update.input_types(id)[0].shape.elements();
            (elements.div_ceil(SumSquares::BLOCK) * size_of::<f64>()) as u64
        }
        _ => 0,
    };
    let nodes = update.nodes().filter(|&id| here(id)).map(of_node);
    let gathered = update.outputs().iter().filter(|output| {
        output.stored_param().is_some()
            && sharding::shards(update, output.value) > 1
            && here(output.value.node)
    });
    nodes.sum::<u64>() + gathered.map(|output| bytes(output.value)).sum::<u64>()
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

impl Plan {
    /// Cycles in which a tile sums its gradients over that many replicas.
    pub fn collective_cycles(&self, tile: usize, replicas: usize) -> u64 {
        ring_cycles(&self.target, self.ring_bytes(tile), replicas)
    }

    /// Bytes that a tile passes around the ring of replicas; none if it updates nothing.
    pub(super) fn ring_bytes(&self, tile: usize) -> u64 {
        let Some(update) = &self.update else {
            return 0;
        };
        ring_bytes(update, |id| {
            let stage = home(update, id);
            stage.is_some_and(|stage| self.schedule.tile_of(stage as usize) == tile)
        })
    }
}
