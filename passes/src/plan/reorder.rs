//! The programs of a plan in another order: what a step takes, and what a tile holds.
//!
//! The order of programs decides how long tiles wait, and how many micro-batches a buffer is to hold. It changes
//! no program, and no place inside the region of activations. So what a plan would be under another schedule of
//! the same stages, over another number of micro-batches or replicas, follows from the plan itself.

use lxpod_ir::Value;

use super::values::Values;
use super::{Category, Plan, ring_cycles};
use crate::schedule::{Phase, Schedule};

/// A plan's programs and what they take.
pub struct Programs<'a> {
    plan: &'a Plan,
    /// By stage: cycles of a visit forward and backward.
    stages: Vec<[u64; 2]>,
    /// By tile: cycles of the update, and the bytes that go around the ring of replicas before it.
    update: Vec<[u64; 2]>,
}

impl<'a> Programs<'a> {
    /// The programs of a plan.
    pub fn new(plan: &'a Plan) -> Self {
        let phases = [Phase::Forward, Phase::Backward];
        let stage = |stage| phases.map(|phase| plan.stage_cycles(stage, phase).total());
        let update = |tile| [plan.update_cycles(tile).total(), plan.ring_bytes(tile)];
        Programs {
            plan,
            stages: (0..plan.stages()).map(stage).collect(),
            update: match plan.update {
                Some(_) => (0..plan.tiles.len()).map(update).collect(),
                None => Vec::new(),
            },
        }
    }

    /// Cycles of a step of that many micro-batches a replica, from an empty pipeline to an empty one and through
    /// the update, as the simulator plays it. The schedule must have as many stages as the plan, and of states that
    /// replicas share out there are as many replicas as shares.
    pub fn step_cycles(&self, schedule: &Schedule, micro_batches: usize, replicas: usize) -> u64 {
        let cycles = |stage: usize, phase: Phase| self.stages[stage][phase as usize];
        let tile =
            |[cycles, ring]: &[u64; 2]| cycles + ring_cycles(&self.plan.target, *ring, replicas);
        let update = self.update.iter().map(tile).max();
        let visits = self.plan.visits(micro_batches);
        schedule.play(visits, cycles).makespan + update.unwrap_or(0)
    }

    /// Bytes of each tile under that schedule, code and padding included: what
    /// [`lower`](super::lower) would plan.
    pub fn tile_bytes(&self, schedule: &Schedule, accumulation: usize) -> Vec<u64> {
        let graph = &self.plan.graph;
        let values = Values::of_micro_batch(graph, schedule, accumulation, self.plan.group);
        let slots = |buffer: &super::Buffer| match graph.at(buffer.node) {
            Some(node) if !buffer.update => {
                let output = buffer.output as u16;
                values.slots(Value { node, output }).0
            }
            _ => buffer.slots,
        };
        let tile = |tile: &super::Tile| {
            let whole = tile
                .buffers
                .iter()
                .filter(|buffer| buffer.category != Category::Activations);
            let whole = whole.map(|buffer| buffer.slot_stride() * u64::from(slots(buffer)));
            let memory = &tile.memory;
            whole.sum::<u64>() + memory.activations + memory.code + memory.reserved
        };
        self.plan.tiles.iter().map(tile).collect()
    }
}
