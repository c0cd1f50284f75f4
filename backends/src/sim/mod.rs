//! The simulated pod: plays a plan's schedule against the plan's predicted cycles.
//!
//! There is no second cost model. A slot of the schedule takes what [`Plan::stage_cycles`] says,
//! which is what partition minimised; the simulation only adds what waits for what. Time is
//! bulk-synchronous: all slots of one pipeline cycle start together, and the cycle lasts as long as
//! its slowest working stage. What a stage sends and receives is part of its own cycles, so a value
//! sent in one pipeline cycle is there when the next begins.
//!
//! Replicas have their own tiles and, without gradients to sum, nothing to wait for in one another:
//! all of them run the same timeline.
//!
//! # Where the time goes
//! Let b be the stage with the most cycles, T(b) its cycles, m the micro-batches of a step. Every
//! pipeline cycle in which b works lasts T(b), and there are m of them: they are shared out to
//! compute, exchange, sync, transfer and host as b's own cycles are. The other pipeline cycles fill
//! and drain the pipeline; they are `fill_flush`. So the parts of a [`Breakdown`] add up to the step
//! exactly, and with p equal stages of t cycles a step takes (m + p - 1) t cycles.

mod timeline;
mod trace;

use lxpod_passes::plan::{Plan, StageCycles};
use lxpod_passes::schedule::Schedule;
use serde::Serialize;

pub use timeline::{Activity, Interval};
pub use trace::write_trace;

/// A simulated step: m micro-batches through every replica's pipeline, from empty to empty.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Cycles per second.
    clock_hz: u64,
    /// Whole copies of the pipeline.
    replicas: usize,
    /// Samples of one micro-batch.
    samples: usize,
    /// Micro-batches of one replica and step.
    micro_batches: usize,
    /// The order of programs.
    schedule: Schedule,
    /// Cycles of each stage for one micro-batch.
    stages: Vec<StageCycles>,
    /// First cycle of each pipeline cycle, and of the step's end.
    starts: Vec<u64>,
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
    /// The bottleneck has nothing to do: the pipeline fills or drains.
    pub fill_flush: f64,
    /// The optimiser; none in inference.
    pub weight_update: f64,
    /// Sums over replicas; none in inference.
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
    /// The share of the step in which the bottleneck tile waits for the pipeline to fill or drain;
    /// (p - 1) / (m + p - 1) with p equal stages and m micro-batches.
    pub bubble_fraction: f64,
    /// The slowest tile, of the first replica.
    pub bottleneck_tile: usize,
    /// What a pipeline that is always full would reach.
    pub steady_samples_per_second: f64,
    /// From a sample's arrival to its result in an empty pipeline.
    pub latency_seconds: f64,
    /// Where the time goes.
    pub breakdown: Breakdown,
}

impl Simulation {
    /// Plays one step of `micro_batches` micro-batches of `samples` samples per replica.
    pub fn new(plan: &Plan, samples: usize, micro_batches: usize) -> Self {
        let stages = (0..plan.stages()).map(|stage| plan.stage_cycles(stage, lxpod_passes::schedule::Phase::Forward));
        Simulation::play(
            stages.collect(),
            plan.schedule,
            Pod {
                clock_hz: plan.target.tile.clock_hz,
                replicas: plan.replicas,
                samples,
            },
            micro_batches,
        )
    }

    fn play(stages: Vec<StageCycles>, schedule: Schedule, pod: Pod, micro_batches: usize) -> Self {
        let mut starts = vec![0];
        let mut longest = 0;
        for slot in schedule.slots(micro_batches) {
            while starts.len() <= slot.cycle {
                starts.push(end_of(&starts, longest));
                longest = 0;
            }
            longest = stages[slot.stage].total().max(longest);
        }
        starts.push(end_of(&starts, longest));
        Simulation {
            clock_hz: pod.clock_hz,
            replicas: pod.replicas,
            samples: pod.samples,
            micro_batches,
            schedule,
            stages,
            starts,
        }
    }

    /// Cycles of one step.
    pub fn step_cycles(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Micro-batches of one replica and step.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// Tiles of all replicas.
    pub fn tiles(&self) -> usize {
        self.replicas * self.stages.len()
    }

    /// Stages of one replica.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Cycles in which the tile of that stage works on one micro-batch.
    pub fn stage_cycles(&self, stage: usize) -> StageCycles {
        self.stages[stage]
    }

    /// The share of the step in which a stage's tile works.
    pub fn utilisation(&self, stage: usize) -> f64 {
        let busy = self.stages[stage].total() as f64 * self.micro_batches as f64;
        ratio(busy, self.step_cycles() as f64)
    }

    /// The stage with the most cycles; the first of several.
    pub fn bottleneck(&self) -> usize {
        let slowest = (0..self.stages.len()).rev();
        slowest
            .max_by_key(|&stage| self.stages[stage].total())
            .unwrap_or(0)
    }

    /// What the simulation says of a step.
    pub fn predict(&self) -> Prediction {
        let step_seconds = self.seconds(self.step_cycles());
        let breakdown = self.breakdown();
        let bottleneck = self.bottleneck();
        let slowest = self.seconds(self.stages[bottleneck].total());
        let samples = (self.samples * self.replicas) as f64;
        let latency: u64 = self.stages.iter().map(StageCycles::total).sum();
        Prediction {
            samples_per_second: ratio(samples * self.micro_batches as f64, step_seconds),
            step_seconds,
            bubble_fraction: ratio(breakdown.fill_flush, step_seconds),
            bottleneck_tile: bottleneck,
            steady_samples_per_second: ratio(samples, slowest),
            latency_seconds: self.seconds(latency),
            breakdown,
        }
    }

    fn breakdown(&self) -> Breakdown {
        let stage = self.stages[self.bottleneck()];
        let micro_batches = self.micro_batches as u64;
        let part = |cycles: u64| self.seconds(cycles * micro_batches);
        let working = stage.total() * micro_batches;
        Breakdown {
            compute: part(stage.steps.compute),
            exchange: part(stage.steps.exchange),
            sync: part(stage.steps.sync),
            transfer: part(stage.send + stage.receive),
            host: part(stage.host),
            fill_flush: self.seconds(self.step_cycles() - working),
            ..Breakdown::default()
        }
    }

    fn seconds(&self, cycles: u64) -> f64 {
        cycles as f64 / self.clock_hz as f64
    }
}

/// What a pod adds to a pipeline.
#[derive(Clone, Copy, Debug)]
struct Pod {
    clock_hz: u64,
    replicas: usize,
    samples: usize,
}

fn end_of(starts: &[u64], length: u64) -> u64 {
    starts.last().copied().unwrap_or(0) + length
}

/// `part / whole`; 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests;
