//! The intervals of a simulated step: what each tile does when.

use lxpod_passes::plan::StageCycles;
use lxpod_passes::schedule::{Phase, Slot};

use super::{Simulation, Timed};

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
    /// Summing gradients over replicas.
    Collectives,
    /// Applying gradients.
    WeightUpdate,
}

impl Activity {
    /// The activities of a slot, in the order in which it shows them.
    pub const OF_SLOT: [Activity; 5] = [
        Activity::Host,
        Activity::Compute,
        Activity::Exchange,
        Activity::Sync,
        Activity::Transfer,
    ];

    /// The activities of the update, in their order.
    pub const OF_UPDATE: [Activity; 2] = [Activity::Collectives, Activity::WeightUpdate];

    /// The name in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Activity::Host => "host",
            Activity::Compute => "compute",
            Activity::Exchange => "exchange",
            Activity::Sync => "sync",
            Activity::Transfer => "transfer",
            Activity::Collectives => "collectives",
            Activity::WeightUpdate => "weight_update",
        }
    }

    /// Its cycles in a program of a slot.
    pub(super) fn cycles(self, stage: &StageCycles) -> u64 {
        match self {
            Activity::Host => stage.host,
            Activity::Compute => stage.steps.compute,
            Activity::Exchange => stage.steps.exchange,
            Activity::Sync => stage.steps.sync,
            Activity::Transfer => stage.send + stage.receive,
            Activity::Collectives | Activity::WeightUpdate => 0,
        }
    }
}

/// One activity of one tile in one slot, or in the update. A program alternates between its activities
/// step by step; an interval shows all of one kind as one, so only their sum has a place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The tile within a replica.
    pub tile: usize,
    /// What it works on; nothing during the update.
    pub slot: Option<Slot>,
    /// What the tile does.
    pub activity: Activity,
    /// First cycle.
    pub start: u64,
    /// Length in cycles, never 0.
    pub cycles: u64,
}

impl Interval {
    /// The phase of the step it belongs to.
    pub fn phase(&self) -> Phase {
        self.slot.map_or(Phase::Update, |slot| slot.phase)
    }
}

impl Simulation {
    /// The slots of a step that do any work, in the schedule's order.
    pub fn slots(&self) -> impl Iterator<Item = &Timed> + '_ {
        let slots = self.timeline.slots.iter();
        slots.filter(|timed| timed.end > timed.start)
    }

    /// The intervals of one replica's step; every replica has the same.
    pub fn intervals(&self) -> impl Iterator<Item = Interval> + '_ {
        let slots = self.slots().flat_map(|timed| {
            let slot = timed.slot;
            let program = &self.work.stages[slot.stage][slot.phase as usize];
            let parts = Activity::OF_SLOT.map(|activity| (activity, activity.cycles(program)));
            intervals(slot.tile, Some(slot), timed.start, parts)
        });
        let updates = self.work.update.iter().enumerate();
        let updates = updates.flat_map(|(tile, update)| {
            let cycles = [update.collectives, update.weight_update];
            let parts = [0, 1].map(|part| (Activity::OF_UPDATE[part], cycles[part]));
            intervals(tile, None, self.timeline.makespan, parts)
        });
        slots.chain(updates)
    }
}

/// Activities one behind the other, without those that take no time.
fn intervals<const N: usize>(
    tile: usize,
    slot: Option<Slot>,
    mut at: u64,
    parts: [(Activity, u64); N],
) -> impl Iterator<Item = Interval> {
    let intervals = parts.map(|(activity, cycles)| {
        let start = at;
        at += cycles;
        Interval {
            tile,
            slot,
            activity,
            start,
            cycles,
        }
    });
    intervals.into_iter().filter(|interval| interval.cycles > 0)
}
