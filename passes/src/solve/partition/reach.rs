//! The test of one bound: fewest devices that reach each ideal.

use super::model::{Kind, Model, Relief};
use super::relaxed::Relaxed;
use super::separators::{Open, Separator, separators};
use super::walk::{Fence, Walker};
use crate::solve::Budget;
use crate::solve::lattice::Lattice;
use rustc_hash::FxHashMap;

/// Not reached.
pub(super) const NONE: u32 = u32::MAX;

/// Result of testing one bound.
pub(super) enum Test {
    /// The split found, as a device per item.
    Feasible(Vec<usize>),
    /// No split; none has a largest load below the given one either.
    Infeasible(u64),
    /// The budget ran out.
    Spent,
}

/// What tests of all bounds on one lattice share: lower bounds of what the items of each ideal need, and separators.
pub(super) struct Ground {
    /// Summed loads if devices run all of them: their cycles, and once each value that crosses the ideal's border.
    needs: Vec<u64>,
    /// Their cycles on devices; empty without hosts.
    work: Vec<u64>,
    relief: Relief,
    relaxed: Relaxed,
    separators: Vec<Option<Separator>>,
}

impl Ground {
    /// O(ideals x (references of an item + devices x log ideals)).
    pub(super) fn new(model: &Model, lattice: &Lattice, borders: &[u64]) -> Self {
        let needs = model.needs(lattice);
        let hosted = model.hosts > 0;
        Self {
            needs: needs.iter().zip(borders).map(|(n, b)| n + b).collect(),
            work: if hosted {
                model.work(lattice)
            } else {
                Vec::new()
            },
            relief: Relief::new(model),
            relaxed: Relaxed::new(model, lattice, borders),
            separators: separators(model, lattice),
        }
    }

    /// As [`Ground::new`], from the items' cycles alone.
    pub(super) fn of_work(model: &Model, lattice: &Lattice) -> Self {
        let work = model.work(lattice);
        Self {
            needs: work.clone(),
            work,
            relief: Relief::new(model),
            relaxed: Relaxed::default(),
            separators: separators(model, lattice),
        }
    }

    /// The room under `bound`.
    pub(super) fn room(&self, model: &Model, bound: u64) -> Room {
        let time = |hosts: usize| hosts as u128 * u128::from(bound);
        let relief = (0..=model.hosts).map(|hosts| self.relief.at(time(hosts)));
        Room {
            bound,
            relief: relief.collect(),
        }
    }

    /// Whether that many devices may run ideal `at` alone within `bound`.
    pub(super) fn may_fit(&self, at: usize, devices: usize, bound: u64) -> bool {
        self.needs[at] <= bound.saturating_mul(devices as u64)
            && self.relaxed.least(at, devices) <= bound
    }

    /// No smaller bound is kept where that many devices run ideal `at` alone.
    pub(super) fn least(&self, at: usize, devices: usize) -> u64 {
        self.relaxed.least(at, devices)
    }

    fn fits(&self, at: usize, [devices, hosts]: [u64; 2], bound: u64) -> bool {
        if hosts == 0 {
            return self.needs[at] <= devices.saturating_mul(bound);
        }
        let relief = self.relief.at(u128::from(hosts) * u128::from(bound));
        self.work[at] <= devices.saturating_mul(bound).saturating_add(relief)
    }

    /// The least bound in `low..high` at which ideal `at` may fit that many devices and hosts, or `high`.
    fn least_beyond(&self, at: usize, left: [u64; 2], mut low: u64, mut high: u64) -> u64 {
        if low >= high || !self.fits(at, left, high - 1) {
            return high;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.fits(at, left, middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low.max(self.relaxed.least(at, left[0] as usize))
    }
}

/// How a state was reached: the ideal before, the hosts used there, and what runs the items between.
#[derive(Clone, Copy)]
struct Origin {
    ideal: u32,
    hosts: u32,
    kind: Kind,
}

/// The fewest devices that run all items outside each ideal, given at most so many hosts beside them, with no load
/// above a bound.
pub(super) struct Reach {
    row: usize,
    used: Vec<u32>,
    origins: Vec<Origin>,
}

/// What the devices may take.
pub(super) struct Room {
    /// Cycles of each device and each host.
    pub(super) bound: u64,
    /// Device cycles that no hosts, one, two and so on take off the devices within it.
    pub(super) relief: Vec<u64>,
}

/// One test under way.
struct Explorer<'a, 'm> {
    walker: &'a mut Walker<'m>,
    ground: &'a Ground,
    room: Room,
    memory: u64,
    /// The least bound at which the outcome could change.
    next: u64,
    /// Stages on devices and on hosts that have taken a separator, by the ideal below it.
    open: FxHashMap<u32, [Vec<Open>; 2]>,
    reach: Reach,
}

impl Reach {
    /// Tests `bound` under a limit of `memory` bytes; the states are complete only where it is infeasible.
    pub(super) fn test(
        walker: &mut Walker<'_>,
        ground: &Ground,
        room: Room,
        memory: u64,
        budget: &mut Budget<'_>,
    ) -> (Test, Self) {
        let (full, row) = (walker.lattice.len() - 1, walker.model.hosts + 1);
        let nowhere = Origin {
            ideal: NONE,
            hosts: 0,
            kind: Kind::Device,
        };
        let mut reach = Reach {
            row,
            used: vec![NONE; (full + 1) * row],
            origins: vec![nowhere; (full + 1) * row],
        };
        reach.used[full * row..].fill(0);
        let mut explorer = Explorer {
            walker,
            ground,
            room,
            memory,
            next: u64::MAX,
            open: FxHashMap::default(),
            reach,
        };
        let test = explorer.explore(budget);
        (test, explorer.reach)
    }

    /// The fewest devices that run what lies outside ideal `at`, by hosts; [`NONE`] where none was found to.
    pub(super) fn used(&self, at: usize) -> &[u32] {
        &self.used[at * self.row..][..self.row]
    }

    /// Makes what is reached with some hosts count for more hosts.
    pub(super) fn settle(&mut self, at: usize) {
        let at = at * self.row;
        for h in 1..self.row {
            if self.used[at + h - 1] <= self.used[at + h] {
                self.used[at + h] = self.used[at + h - 1];
                self.origins[at + h] = self.origins[at + h - 1];
            }
        }
    }

    /// States of ideal `at`: hosts and the fewest devices with them, dominated ones left out.
    fn states(&mut self, at: usize) -> Vec<(usize, u32)> {
        self.settle(at);
        let used = self.used(at);
        let is_least = |&h: &usize| used[h] < NONE && (h == 0 || used[h] < used[h - 1]);
        let states = (0..self.row).filter(is_least);
        states.map(|h| (h, used[h])).collect()
    }

    /// Reads a split off the origins, from the empty ideal up.
    fn split(&self, walker: &Walker<'_>, mut hosts: usize) -> Vec<usize> {
        let (lattice, model) = (walker.lattice, walker.model);
        let mut device_of = vec![0; model.len()];
        let (mut at, mut device, mut host) = (0, 0, model.devices);
        while at + 1 < lattice.len() {
            let origin = self.origins[at * self.row + hosts];
            let stage = match origin.kind {
                Kind::Device => &mut device,
                Kind::Host => &mut host,
            };
            for item in lattice.difference(at, origin.ideal as usize) {
                device_of[item as usize] = *stage;
            }
            *stage += 1;
            (at, hosts) = (origin.ideal as usize, origin.hosts as usize);
        }
        device_of
    }
}

impl Explorer<'_, '_> {
    fn explore(&mut self, budget: &mut Budget<'_>) -> Test {
        let devices = self.walker.model.devices as u32;
        for high in (1..self.walker.lattice.len()).rev() {
            if self.resume(high, budget).is_none() || self.begin(high, budget).is_none() {
                return Test::Spent;
            }
            if self.reach.used(0).iter().any(|&used| used <= devices) {
                break;
            }
        }
        match self.reach.used(0).iter().position(|&used| used <= devices) {
            Some(hosts) => Test::Feasible(self.reach.split(self.walker, hosts)),
            None => Test::Infeasible(self.next),
        }
    }

    /// Begins one more stage at ideal `high`.
    fn begin(&mut self, high: usize, budget: &mut Budget<'_>) -> Option<()> {
        let (devices, hosts) = (self.walker.model.devices, self.walker.model.hosts);
        let states = self.reach.states(high);
        let stage = |&(hosts, used): &(usize, u32)| Open {
            start: high as u32,
            used,
            hosts: hosts as u32,
            load: 0,
            memory: 0,
        };
        let free = |open: &Open| (open.used as usize) < devices;
        let on_device: Vec<Open> = states.iter().map(stage).filter(free).collect();
        self.extend(Kind::Device, high, None, &on_device, budget)?;
        let free = |open: &Open| (open.hosts as usize) < hosts;
        let on_host: Vec<Open> = states.iter().map(stage).filter(free).collect();
        self.extend(Kind::Host, high, None, &on_host, budget)
    }

    /// Goes on with the stages that have taken the separator above ideal `high`.
    fn resume(&mut self, high: usize, budget: &mut Budget<'_>) -> Option<()> {
        let Some([on_device, on_host]) = self.open.remove(&(high as u32)) else {
            return Some(());
        };
        let separator = self.ground.separators[high];
        self.extend(Kind::Device, high, separator, &on_device, budget)?;
        self.extend(Kind::Host, high, separator, &on_host, budget)
    }

    /// Ends the stages `from`, which lie above ideal `high`, at every ideal below it.
    fn extend(
        &mut self,
        kind: Kind,
        high: usize,
        separator: Option<Separator>,
        from: &[Open],
        budget: &mut Budget<'_>,
    ) -> Option<()> {
        let Some(least) = from.iter().map(|open| open.load).min() else {
            return Some(());
        };
        let model = self.walker.model;
        let lightest = from.iter().map(|open| open.memory).min().unwrap_or(0);
        let twice = separator.map_or((0, 0), |s| s.counted_twice(model, kind));
        let limit = match kind {
            Kind::Device => self.memory,
            Kind::Host => u64::MAX,
        };
        let fence = Fence {
            kind,
            bound: (self.room.bound - least).saturating_add(twice.0),
            memory: (limit - lightest).saturating_add(twice.1),
            copies: model.copies(from[0].used as usize),
        };
        let Self {
            walker,
            ground,
            room,
            next,
            open,
            reach,
            ..
        } = self;
        let taken = separator.map(|s| s.item);
        let cut = walker.walk_open(taken, high as u32, fence, budget, |ideal, totals| {
            let (load, bytes) = (totals.load - twice.0, totals.memory(fence.copies) - twice.1);
            let at = ideal as usize;
            let mut end = End {
                ground,
                room,
                next,
                reach,
                kind,
                model,
            };
            for stage in from {
                if stage.memory + bytes <= limit {
                    end.stage(*stage, at, stage.load + load);
                }
            }
            let Some(separator) = &ground.separators[at] else {
                return true;
            };
            let (side, below) = match kind {
                Kind::Device => (0, separator.below),
                Kind::Host => (1, 0),
            };
            let side = &mut open.entry(ideal).or_default()[side];
            for stage in from {
                let grown = Open {
                    load: stage.load + load - below,
                    memory: stage.memory + bytes,
                    ..*stage
                };
                if grown.load > room.bound {
                    *next = grown.load.min(*next);
                } else if grown.memory <= limit {
                    grown.join(side);
                }
            }
            false
        })?;
        *next = cut.saturating_sub(twice.0).saturating_add(least).min(*next);
        Some(())
    }
}

/// The end of a stage.
struct End<'a> {
    ground: &'a Ground,
    room: &'a Room,
    next: &'a mut u64,
    reach: &'a mut Reach,
    kind: Kind,
    model: &'a Model,
}

impl End<'_> {
    /// Ends `stage` with that load at ideal `at`, if it is within the bound and the rest may be too.
    fn stage(&mut self, stage: Open, at: usize, load: u64) {
        if load > self.room.bound {
            *self.next = load.min(*self.next);
            return;
        }
        let (hosts, used) = match self.kind {
            Kind::Device => (stage.hosts as usize, stage.used + 1),
            Kind::Host => (stage.hosts as usize + 1, stage.used),
        };
        let state = at * self.reach.row + hosts;
        if used >= self.reach.used[state] {
            return;
        }
        let devices_left = self.model.devices - used as usize;
        let hosts_left = self.model.hosts - hosts;
        let bound = self.room.bound;
        let fits = match hosts_left {
            0 => self.ground.may_fit(at, devices_left, bound),
            _ => {
                let room = bound.saturating_mul(devices_left as u64);
                self.ground.work[at] <= room.saturating_add(self.room.relief[hosts_left])
            }
        };
        if !fits {
            let left = [devices_left, hosts_left].map(|count| count as u64);
            let least = self.ground.least_beyond(at, left, bound + 1, *self.next);
            *self.next = least.min(*self.next);
            return;
        }
        self.reach.used[state] = used;
        self.reach.origins[state] = Origin {
            ideal: stage.start,
            hosts: stage.hosts,
            kind: self.kind,
        };
    }
}
