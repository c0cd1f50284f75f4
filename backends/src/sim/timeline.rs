//! The intervals of a simulated step: what each tile does when.

use lxpod_passes::plan::StageCycles;
use lxpod_passes::schedule::Slot;

use super::Simulation;

/// What a tile does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    /// Reading inputs from and writing outputs to the host.
    Host,
    /// Computing.
    Compute,
    /// Exchanging data between the cores of the tile.
    Exchange,
    /// Waiting for the cores of the tile.
    Sync,
    /// Sending to and receiving from other tiles.
    Transfer,
}

impl Activity {
    /// Every activity, in the order in which a slot shows them.
    pub const ALL: [Activity; 5] = [
        Activity::Host,
        Activity::Compute,
        Activity::Exchange,
        Activity::Sync,
        Activity::Transfer,
    ];

    /// The name in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Activity::Host => "host",
            Activity::Compute => "compute",
            Activity::Exchange => "exchange",
            Activity::Sync => "sync",
            Activity::Transfer => "transfer",
        }
    }

    fn cycles(self, stage: &StageCycles) -> u64 {
        match self {
            Activity::Host => stage.host,
            Activity::Compute => stage.steps.compute,
            Activity::Exchange => stage.steps.exchange,
            Activity::Sync => stage.steps.sync,
            Activity::Transfer => stage.send + stage.receive,
        }
    }
}

/// One activity of one tile for one micro-batch. A program alternates between its activities step
/// by step; an interval shows all of one kind as one, so only their sum has a place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The stage, which is the tile within a replica.
    pub stage: usize,
    /// The micro-batch, counted per replica.
    pub micro_batch: usize,
    /// What the tile does.
    pub activity: Activity,
    /// First cycle.
    pub start: u64,
    /// Length in cycles, never 0.
    pub cycles: u64,
}

impl Simulation {
    /// The slots of a step that do any work, with their first cycles, in the schedule's order.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, u64)> + '_ {
        let slots = self.schedule.slots(self.micro_batches);
        let working = slots
            .into_iter()
            .filter(|slot| self.stages[slot.stage].total() > 0);
        working.map(|slot| (slot, self.starts[slot.cycle]))
    }

    /// The intervals of one replica's step; every replica has the same.
    pub fn intervals(&self) -> impl Iterator<Item = Interval> + '_ {
        self.slots().flat_map(|(slot, start)| {
            let stage = &self.stages[slot.stage];
            let mut at = start;
            let parts = Activity::ALL.map(|activity| {
                let cycles = activity.cycles(stage);
                let interval = Interval {
                    stage: slot.stage,
                    micro_batch: slot.micro_batch,
                    activity,
                    start: at,
                    cycles,
                };
                at += cycles;
                interval
            });
            parts.into_iter().filter(|interval| interval.cycles > 0)
        })
    }
}
