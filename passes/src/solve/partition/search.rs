//! Bisection over bounds, and the choice among optimal splits.

use super::dive::dive;
use super::model::{Kind, Model};
use super::reach::{Ground, NONE, Reach, Test};
use super::walk::{Fence, Walker};
use crate::solve::Budget;
use crate::solve::lattice::Lattice;

/// Whether a search ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The answer is exact on the lattice searched.
    Exact,
    /// The budget ran out.
    Spent,
}

/// A search over one lattice.
pub(super) struct Search<'m> {
    walker: Walker<'m>,
    ground: Ground,
}

impl<'m> Search<'m> {
    /// Prepares a search; O(ideals x references of an item).
    pub(super) fn new(model: &'m Model, lattice: &'m Lattice) -> Self {
        let walker = Walker::new(model, lattice);
        let ground = Ground::new(model, lattice, &walker.borders);
        Self { walker, ground }
    }

    /// The smallest bottleneck on this lattice, starting from `best` if that is given.
    ///
    /// Returns the split, a proven lower bound, and whether the search ended. No split with `Exact` means that
    /// none fits the memory. Without a memory limit there always is one, whatever the budget.
    pub(super) fn minimise(
        &mut self,
        mut best: Option<Vec<usize>>,
        budget: &mut Budget<'_>,
    ) -> (Option<Vec<usize>>, u64, Verdict) {
        let model = self.walker.model;
        let limit = model.memory_limit.unwrap_or(u64::MAX);
        let mut low = self.trivial_bound();
        // The split of a coarser search is often the best; one test then proves it.
        let mut inherited = best.is_some();
        let mut improved = false;
        let mut high = match &best {
            Some(split) => self.bottleneck(split),
            None => match self.any(limit, budget) {
                Test::Feasible(split) => self.bottleneck(best.insert(split)),
                Test::Infeasible(_) => return (None, model.ceiling(), Verdict::Exact),
                Test::Spent => return (None, low, Verdict::Spent),
            },
        };
        while low < high
            && let Some(split) = self.dive(high - 1, limit, budget)
        {
            high = self.bottleneck(best.insert(split));
        }
        while low < high {
            let near = high - low <= high / 16;
            // What is known of the stages ahead refutes bounds near the lowest one sooner than any is found to be kept.
            let informed = near && model.hosts == 0;
            let close = improved && near || inherited && !informed;
            let part = if informed { 4 } else { 2 };
            let middle = if close {
                high - 1
            } else {
                low + (high - low) / part
            };
            (improved, inherited) = (false, false);
            match self.test(middle, limit, budget) {
                Test::Feasible(split) => {
                    improved = !close;
                    high = self.bottleneck(best.insert(split));
                    assert!(high <= middle, "a split found under a bound keeps it");
                }
                Test::Infeasible(next) => low = next.min(high),
                Test::Spent => return (best, low, Verdict::Spent),
            }
        }
        (best, low, Verdict::Exact)
    }

    /// No split on this lattice does better.
    fn trivial_bound(&self) -> u64 {
        let model = self.walker.model;
        let ahead = self
            .ground
            .least(self.walker.lattice.len() - 1, model.devices);
        ahead.max(model.trivial_bound())
    }

    /// If no split on this lattice keeps `bound`: the least bound that one might keep, `u64::MAX` if memory rules out
    /// all. None if one keeps it, or the budget runs out.
    pub(super) fn refute(&mut self, bound: u64, budget: &mut Budget<'_>) -> Option<u64> {
        let model = self.walker.model;
        let trivial = self.trivial_bound();
        if bound < trivial {
            return Some(trivial);
        }
        let limit = model.memory_limit.unwrap_or(u64::MAX);
        let bound = bound.min(model.ceiling());
        if self.dive(bound, limit, budget).is_some() {
            return None;
        }
        match self.test(bound, limit, budget) {
            Test::Infeasible(next) => Some(next),
            Test::Feasible(_) | Test::Spent => None,
        }
    }

    /// The smallest memory limit under which a split exists on this lattice.
    ///
    /// If the budget runs out the result is only an upper bound.
    pub(super) fn least_memory(&mut self, budget: &mut Budget<'_>) -> (u64, Verdict) {
        let ceiling = self.walker.model.ceiling();
        let (mut low, mut high) = (0, self.walker.model.memory_ceiling());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.test(ceiling, middle, budget) {
                Test::Feasible(_) => high = middle,
                Test::Infeasible(_) => low = middle + 1,
                Test::Spent => return (high, Verdict::Spent),
            }
        }
        (low, Verdict::Exact)
    }

    /// Any split that fits; where memory is no limit that is a walk along one path, which costs nothing.
    fn any(&mut self, memory: u64, budget: &mut Budget<'_>) -> Test {
        let ceiling = self.walker.model.ceiling();
        match self.walker.model.memory_limit {
            None => self.test(ceiling, memory, &mut Budget::unlimited()),
            Some(_) => match self.dive(ceiling, memory, budget) {
                Some(split) => Test::Feasible(split),
                None => self.test(ceiling, memory, budget),
            },
        }
    }

    fn dive(&mut self, bound: u64, memory: u64, budget: &mut Budget<'_>) -> Option<Vec<usize>> {
        dive(&mut self.walker, &self.ground, bound, memory, budget)
    }

    fn test(&mut self, bound: u64, memory: u64, budget: &mut Budget<'_>) -> Test {
        let room = self.ground.room(self.walker.model, bound);
        Reach::test(&mut self.walker, &self.ground, room, memory, budget).0
    }

    /// Largest load of a contiguous split.
    fn bottleneck(&mut self, device_of: &[usize]) -> u64 {
        let model = self.walker.model;
        let mut members = vec![Vec::new(); model.devices + model.hosts];
        for (item, &device) in device_of.iter().enumerate() {
            members[device].push(item as u32);
        }
        let relayed = model.relay_loads(device_of);
        let (devices, hosts) = members.split_at(model.devices);
        let mut largest = 0;
        for (items, relayed) in devices.iter().zip(relayed) {
            largest = largest.max(self.walker.load(Kind::Device, items) + relayed);
        }
        for items in hosts {
            largest = largest.max(self.walker.load(Kind::Host, items));
        }
        largest
    }

    /// Among the splits no worse than `best`, the one with the least total load, then the fewest devices.
    pub(super) fn refine(&mut self, best: Vec<usize>, budget: &mut Budget<'_>) -> Vec<usize> {
        let bound = self.bottleneck(&best);
        let (walker, ground) = (&mut self.walker, &self.ground);
        let model = walker.model;
        let memory = model.memory_limit.unwrap_or(u64::MAX);
        let (full, devices) = (walker.lattice.len() - 1, model.devices.min(model.len()));
        let row = devices + 1;
        let mut total = vec![u64::MAX; (full + 1) * row];
        let mut parent = vec![NONE; (full + 1) * row];
        total[full * row] = 0;
        for high in (1..=full).rev() {
            let from: Vec<(usize, u64)> = (0..devices)
                .map(|c| (c, total[high * row + c]))
                .filter(|(_, t)| *t < u64::MAX)
                .collect();
            let Some(&(first, _)) = from.first() else {
                continue;
            };
            let fence = Fence {
                kind: Kind::Device,
                bound,
                memory,
                copies: model.copies(first),
            };
            let done = walker.walk(high as u32, fence, budget, |ideal, totals| {
                if totals.load > bound {
                    return true;
                }
                for &(behind, sum) in &from {
                    let at = ideal as usize * row + behind + 1;
                    let fits = totals.memory(model.copies(behind)) <= memory
                        && ground.may_fit(ideal as usize, devices - behind - 1, bound);
                    if fits && sum + totals.load < total[at] {
                        total[at] = sum + totals.load;
                        parent[at] = high as u32;
                    }
                }
                true
            });
            if done.is_none() {
                return best;
            }
        }
        let Some(count) = (0..row)
            .filter(|&c| total[c] < u64::MAX)
            .min_by_key(|&c| (total[c], c))
        else {
            return best;
        };
        self.split(|at, stage| parent[at * row + count - stage])
    }

    /// Reads a split off parent pointers, from the empty ideal up; `parent(ideal, stages before it)`.
    fn split(&self, parent: impl Fn(usize, usize) -> u32) -> Vec<usize> {
        let mut device_of = vec![0; self.walker.model.len()];
        let (mut at, mut stage) = (0, 0);
        while at + 1 < self.walker.lattice.len() {
            let high = parent(at, stage) as usize;
            for item in self.walker.lattice.difference(at, high) {
                device_of[item as usize] = stage;
            }
            (at, stage) = (high, stage + 1);
        }
        device_of
    }
}
