//! A relaxation that looks at what lies ahead: stages between any two ideals, whether or not one is part of the other.
//!
//! The load of a stage between ideals `J` and `S` of a split is at least `end(S) - begin(J)`, where
//!
//! ```text
//!   end(S)   = work(S) + border(S) - joint work of items in S that nothing in S asks for
//!   begin(J) = work(J) - border(J) + joint work of items outside J that something in J asks for
//! ```
//!
//! `work` counts cycles and all joint work of the items, and a border costs what the relayed values that cross it do. If
//! any `J` with no more work may come before `S`, the least bound under which `k` devices run `S` is
//!
//! ```text
//!   least(S, k) = min over J of max(least(J, k - 1), end(S) - begin(J))
//! ```
//!
//! a lower bound of what splits need. In order of work, ideals come after all that they contain; of those that came before
//! only the ones matter that are not worse than another both in `least` and in `begin`, among which a bisection finds
//! the best.

use super::model::Model;
use crate::solve::lattice::Lattice;

/// With more pairs of an ideal and a number of devices, nothing is known ahead.
const MOST_PAIRS: usize = 1 << 24;

/// The least bounds, by ideal and number of devices; none known if empty.
#[derive(Default)]
pub(super) struct Relaxed {
    row: usize,
    least: Vec<u64>,
}

impl Relaxed {
    /// O(ideals x (devices x log ideals + references of an item)) time. Hosts pay nothing for values and have their
    /// own times, so with hosts nothing is known.
    pub(super) fn new(model: &Model, lattice: &Lattice, borders: &[u64]) -> Self {
        let row = model.devices.min(model.len()) + 1;
        if model.hosts > 0 || lattice.len().saturating_mul(row) > MOST_PAIRS {
            return Self::default();
        }
        let ends = Ends::new(model, lattice, borders);
        let mut order: Vec<usize> = (0..lattice.len()).collect();
        order.sort_by_key(|&at| (ends.work[at], at));
        let mut least = vec![u64::MAX; lattice.len() * row];
        let mut fronts = vec![Front::default(); row];
        for at in order {
            let least = &mut least[at * row..][..row];
            least[0] = if at == 0 { 0 } else { u64::MAX };
            for devices in 1..row {
                let ahead = fronts[devices - 1].best(ends.end[at]);
                least[devices] = least[devices - 1].min(ahead);
            }
            for (front, &least) in fronts.iter_mut().zip(&*least) {
                front.insert(least, ends.begin[at]);
            }
        }
        Self { row, least }
    }

    /// No split in which so many devices run ideal `at` keeps a smaller bound.
    #[inline]
    pub(super) fn least(&self, at: usize, devices: usize) -> u64 {
        match self.row {
            0 => 0,
            row => self.least[at * row + devices.min(row - 1)],
        }
    }
}

/// What stages pay at least, by the ideals at which they end and begin.
struct Ends {
    work: Vec<u64>,
    end: Vec<i64>,
    begin: Vec<i64>,
}

impl Ends {
    fn new(model: &Model, lattice: &Lattice, borders: &[u64]) -> Self {
        let asking = model.asking();
        let mut work = model.work(lattice);
        // Joint work inside, of which what nothing there asks for; and what is asked for there but outside.
        let mut joint = vec![[0u64; 3]; lattice.len()];
        for at in 1..lattice.len() {
            let step = lattice.down(at)[0];
            let mut sums = joint[step.ideal as usize];
            for index in model.joint_of(step.item) {
                for (id, grows) in [(step.ideal as usize, false), (at, true)] {
                    let is_in = |&item: &u32| lattice.contains(id, item);
                    let (item, asks) = &asking[index];
                    let (inside, asked) = (is_in(item), asks.iter().any(is_in));
                    for (sum, counts) in
                        sums.iter_mut()
                            .zip([inside, inside && !asked, asked && !inside])
                    {
                        let cycles = if counts { model.joint[index] } else { 0 };
                        *sum = if grows { *sum + cycles } else { *sum - cycles };
                    }
                }
            }
            joint[at] = sums;
        }
        let (mut end, mut begin) = (Vec::new(), Vec::new());
        for ((work, border), [inside, unasked, asked]) in work.iter_mut().zip(borders).zip(joint) {
            *work += inside;
            let [work, border, unasked, asked] =
                [*work, *border, unasked, asked].map(u64::cast_signed);
            end.push(work + border - unasked);
            begin.push(work - border + asked);
        }
        Self { work, end, begin }
    }
}

/// Ideals that a stage may begin at, none worse than another: ascending in both the least bound for what they contain,
/// and `begin`.
#[derive(Clone, Default)]
struct Front(Vec<(u64, i64)>);

impl Front {
    /// The least bound for an ideal with that `end`.
    fn best(&self, end: i64) -> u64 {
        let load = |&(_, begin): &(u64, i64)| u64::try_from(end - begin).unwrap_or(0);
        let split = self.0.partition_point(|one| one.0 < load(one));
        let cheap = self.0[..split].last().map(load);
        let near = self.0.get(split).map(|one| one.0);
        cheap.into_iter().chain(near).min().unwrap_or(u64::MAX)
    }

    fn insert(&mut self, least: u64, begin: i64) {
        let at = self.0.partition_point(|one| one.0 <= least);
        let is_worse = self.0[..at].last().is_some_and(|one| one.1 >= begin);
        if is_worse || least == u64::MAX {
            return;
        }
        let from = self.0[..at].partition_point(|one| one.0 < least);
        let worse = self.0[at..].partition_point(|one| one.1 <= begin);
        self.0.splice(from..at + worse, [(least, begin)]);
    }
}
