//! The simulated pod: plays a plan's schedule against the plan's predicted cycles.
//!
//! There is no second cost model. A slot of the schedule takes what [`Plan::stage_cycles`] says,
//! which is what partition minimised; the simulation only adds what waits for what, which is
//! [`Schedule::play`]. What a stage sends and receives is part of its own cycles.
//!
//! When the last micro-batch is through, all tiles begin the update together: the norm of the
//! gradients needs all of them. A tile sums its gradients over replicas, then applies them; the step
//! ends with the slowest tile. Replicas have their own tiles and the same programs, so all of them
//! run the same timeline.
//!
//! # Where the time goes
//! Let b be the tile with the most cycles, T(b) its cycles for one visit of its programs, forward and
//! backward, and m the visits of a step, each of one micro-batch unless the plan groups them. Of the time from the first slot to the last, b works
//! m T(b) cycles: they are shared out to compute, exchange, sync, transfer and host as b's own cycles
//! are. In the others it waits, mostly for the pipeline to fill and to drain; they are `fill_flush`.
//! The update of the slowest tile follows. So the parts of a [`Breakdown`] add up to the step
//! exactly.

mod timeline;
mod trace;

use std::ops::Range;

use lxpod_passes::plan::{Plan, StageCycles};
use lxpod_passes::schedule::{Phase, Schedule, Slot, Timed, Timeline};
use serde::Serialize;

pub use timeline::{Activity, Interval};
pub use trace::write_trace;

/// A simulated step: m micro-batches through every replica's pipeline, from empty to empty, and the
/// update.
#[derive(Clone, Debug)]
pub struct Simulation {
    pod: Pod,
    /// Micro-batches of one replica and step.
    micro_batches: usize,
    /// Micro-batches that one visit computes together: what the schedule takes for one.
    group: usize,
    schedule: Schedule,
    work: Work,
    timeline: Timeline,
}

/// The cycles of the programs of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Work {
    /// By stage: one visit forward, and backward.
    stages: Vec<[StageCycles; 2]>,
    /// By tile: what follows the last micro-batch of a step.
    update: Vec<UpdateCycles>,
}

/// Cycles of one tile after the last micro-batch of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpdateCycles {
    /// Summing gradients over replicas.
    pub collectives: u64,
    /// Applying them.
    pub weight_update: u64,
}

impl UpdateCycles {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.collectives + self.weight_update
    }
}

impl Work {
    /// The cycles of a plan's programs.
    fn of(plan: &Plan) -> Self {
        let phases = [Phase::Forward, Phase::Backward];
        let stage = |stage| phases.map(|phase| plan.stage_cycles(stage, phase));
        let update = |tile| match plan.update {
            Some(_) => UpdateCycles {
                collectives: plan.collective_cycles(tile, plan.replicas),
                weight_update: plan.update_cycles(tile).total(),
            },
            None => UpdateCycles::default(),
        };
        Work {
            stages: (0..plan.stages()).map(stage).collect(),
            update: (0..plan.tiles.len()).map(update).collect(),
        }
    }
}

/// Seconds of a step by what the critical path does; the parts add up to the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Breakdown {
    /// The bottleneck's cores compute.
    pub compute: f64,
    /// The bottleneck's cores exchange data inside their tile.
    pub exchange: f64,
    /// The bottleneck's cores wait for one another.
    pub sync: f64,
    /// The bottleneck sends to and receives from its neighbours.
    pub transfer: f64,
    /// The bottleneck waits: the pipeline fills or drains, or a neighbour is late.
    pub fill_flush: f64,
    /// The slowest tile's optimiser; none in inference.
    pub weight_update: f64,
    /// The slowest tile's sums over replicas; none in inference.
    pub collectives: f64,
    /// The bottleneck exchanges inputs and outputs with the host.
    pub host: f64,
}

impl Breakdown {
    /// The parts by name, in the order of reports.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("compute", self.compute),
            ("exchange", self.exchange),
            ("sync", self.sync),
            ("transfer", self.transfer),
            ("fill_flush", self.fill_flush),
            ("weight_update", self.weight_update),
            ("collectives", self.collectives),
            ("host", self.host),
        ]
    }

    /// The sum of all parts.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// What a simulation predicts of one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Samples of all replicas over the step's time.
    pub samples_per_second: f64,
    /// One step.
    pub step_seconds: f64,
    /// The share of the step in which the bottleneck tile waits, mostly for the pipeline to fill or
    /// drain; (p - 1) / (m + p - 1) with p equal stages, m micro-batches and no update.
    pub bubble_fraction: f64,
    /// The slowest tile, of the first replica.
    pub bottleneck_tile: usize,
    /// What a pipeline that is always full, and never updates, would reach.
    pub steady_samples_per_second: f64,
    /// From a sample's arrival to its result in an empty pipeline, forward.
    pub latency_seconds: f64,
    /// Where the time goes.
    pub breakdown: Breakdown,
}

impl Simulation {
    /// Plays one step of `micro_batches` micro-batches of `samples` samples per replica.
    pub fn new(plan: &Plan, samples: usize, micro_batches: usize) -> Self {
        let pod = Pod {
            clock_hz: plan.target.tile.clock_hz,
            replicas: plan.replicas,
            samples,
        };
        let sizes = [micro_batches, plan.group];
        Simulation::play(Work::of(plan), plan.schedule.clone(), pod, sizes)
    }

    fn play(work: Work, schedule: Schedule, pod: Pod, [micro_batches, group]: [usize; 2]) -> Self {
        let cycles = |stage: usize, phase: Phase| work.stages[stage][phase as usize].total();
        Simulation {
            timeline: schedule.play(micro_batches.div_ceil(group), cycles),
            pod,
            micro_batches,
            group,
            schedule,
            work,
        }
    }

    /// Cycles of one step.
    pub fn step_cycles(&self) -> u64 {
        self.timeline.makespan + self.update().total()
    }

    /// Micro-batches of one replica and step.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// Tiles of all replicas.
    pub fn tiles(&self) -> usize {
        self.pod.replicas * self.schedule.tiles
    }

    /// What each tile of a replica is called, given what its stages are.
    pub fn tile_labels(&self, stages: &[String]) -> Vec<String> {
        let label = |tile| {
            let own = stages.iter().skip(tile).step_by(self.schedule.tiles);
            own.map(String::as_str).collect::<Vec<_>>().join(" | ")
        };
        (0..self.schedule.tiles).map(label).collect()
    }

    /// The order of programs.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Visits of a program in one step.
    pub fn visits(&self) -> usize {
        self.micro_batches.div_ceil(self.group)
    }

    /// The micro-batches that a slot computes.
    pub fn members(&self, slot: &Slot) -> Range<usize> {
        let first = slot.micro_batch * self.group;
        first..self.micro_batches.min(first + self.group)
    }

    /// Cycles in which a tile works on one visit of a stage, forward and backward.
    pub fn stage_cycles(&self, stage: usize) -> u64 {
        self.work.stages[stage].iter().map(StageCycles::total).sum()
    }

    /// Programs of one visit to a tile: forward and backward of its stages.
    fn programs(&self, tile: usize) -> impl Iterator<Item = &StageCycles> {
        let stages = self.work.stages.iter().skip(tile);
        stages.step_by(self.schedule.tiles).flatten()
    }

    /// Cycles in which a tile works on one visit.
    pub fn tile_cycles(&self, tile: usize) -> u64 {
        self.programs(tile).map(StageCycles::total).sum()
    }

    /// The share of the step in which a tile works.
    pub fn utilisation(&self, tile: usize) -> f64 {
        let busy = self.timeline.busy[tile] + self.work.update[tile].total();
        ratio(busy as f64, self.step_cycles() as f64)
    }

    /// The tile with the most cycles for a visit; the first of several.
    pub fn bottleneck(&self) -> usize {
        let slowest = (0..self.schedule.tiles).rev();
        slowest
            .max_by_key(|&tile| self.tile_cycles(tile))
            .unwrap_or(0)
    }

    /// The update of the slowest tile.
    fn update(&self) -> UpdateCycles {
        let tiles = self.work.update.iter().copied();
        tiles.max_by_key(UpdateCycles::total).unwrap_or_default()
    }

    /// What the simulation says of a step.
    pub fn predict(&self) -> Prediction {
        let step_seconds = self.seconds(self.step_cycles());
        let breakdown = self.breakdown();
        let bottleneck = self.bottleneck();
        let slowest = self.seconds(self.tile_cycles(bottleneck));
        let samples = (self.pod.samples * self.pod.replicas) as f64;
        let forward = |[forward, _]: &[StageCycles; 2]| forward.total();
        let latency: u64 = self.work.stages.iter().map(forward).sum();
        Prediction {
            samples_per_second: ratio(samples * self.micro_batches as f64, step_seconds),
            step_seconds,
            bubble_fraction: ratio(breakdown.fill_flush, step_seconds),
            bottleneck_tile: bottleneck,
            steady_samples_per_second: ratio(samples * self.group as f64, slowest),
            latency_seconds: self.seconds(latency),
            breakdown,
        }
    }

    fn breakdown(&self) -> Breakdown {
        let bottleneck = self.bottleneck();
        let part = |activity: Activity| {
            let cycles = self
                .programs(bottleneck)
                .map(|program| activity.cycles(program));
            self.seconds(cycles.sum::<u64>() * self.visits() as u64)
        };
        let waiting = self.timeline.makespan - self.timeline.busy[bottleneck];
        let update = self.update();
        Breakdown {
            compute: part(Activity::Compute),
            exchange: part(Activity::Exchange),
            sync: part(Activity::Sync),
            transfer: part(Activity::Transfer),
            fill_flush: self.seconds(waiting),
            weight_update: self.seconds(update.weight_update),
            collectives: self.seconds(update.collectives),
            host: part(Activity::Host),
        }
    }

    fn seconds(&self, cycles: u64) -> f64 {
        cycles as f64 / self.pod.clock_hz as f64
    }
}

/// What a pod adds to a pipeline.
#[derive(Clone, Copy, Debug)]
struct Pod {
    clock_hz: u64,
    replicas: usize,
    samples: usize,
}

/// `part / whole`; 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests;
