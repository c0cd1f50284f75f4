//! The stages that end at one ideal, each once, with what they cost.

use super::{Order, Refusal, Set, contains, set_of};
use crate::solve::Budget;
use crate::solve::partition::{Problem, Value};

/// What a stage may take.
pub(super) struct Allowed {
    /// Cycles.
    pub(super) bound: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Copies of what is stashed.
    pub(super) copies: u64,
}

/// Counts of one value or one block in a stage.
#[derive(Clone, Copy, Default)]
struct Count {
    /// Distinct users.
    all: u32,
    /// Users in the stage.
    inside: u32,
    /// Whether some end lies above the stage: a user, or the producer or what stands for it outside.
    users_above: bool,
    producer_above: bool,
    produced: bool,
}

impl Count {
    /// Whether a device pays for a plain value.
    fn pays(self) -> bool {
        if self.produced {
            self.inside < self.all
        } else {
            self.inside > 0
        }
    }

    /// Whether it will pay whatever joins the stage.
    fn is_certain(self) -> bool {
        if self.produced {
            self.users_above
        } else {
            self.inside > 0 && self.producer_above
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Sums {
    load: u64,
    certain: u64,
    resident: u64,
    workspace: u64,
    stash: u64,
    /// Device cycles of the items that are left.
    work: u64,
}

/// All stages that end, from above, at one ideal.
pub(super) struct Stage<'a> {
    problem: &'a Problem,
    order: &'a Order,
    /// For each item, values it produces or uses.
    values: Vec<Vec<(usize, bool)>>,
    blocks: Vec<Vec<usize>>,
    /// For each item, joint work that it does or asks for.
    joint: Vec<Vec<(usize, bool)>>,
    counts: Vec<Count>,
    holders: Vec<u32>,
    works: Vec<(bool, u32)>,
    rest: Set,
    successors: Vec<u32>,
    /// The values that are passed on.
    relayed: Vec<&'a Value>,
}

/// One item taken: what could follow it, how far that is tried, and the sums before it.
struct Taken {
    item: Option<usize>,
    candidates: Vec<usize>,
    next: usize,
    before: Sums,
}

impl<'a> Stage<'a> {
    /// No stage yet.
    pub(super) fn new(problem: &'a Problem, order: &'a Order) -> Self {
        let len = problem.items.len();
        let mut stage = Stage {
            problem,
            order,
            values: vec![Vec::new(); len],
            blocks: vec![Vec::new(); len],
            joint: vec![Vec::new(); len],
            counts: vec![Count::default(); problem.values.len()],
            holders: vec![0; problem.shared.len()],
            works: vec![(false, 0); problem.joint.len()],
            rest: set_of(&vec![false; len]),
            successors: vec![0; len],
            relayed: problem
                .values
                .iter()
                .filter(|value| value.relayed)
                .collect(),
        };
        let distinct = |users: &[usize]| {
            let mut users = users.to_vec();
            users.sort_unstable();
            users.dedup();
            users
        };
        for (at, value) in problem.values.iter().enumerate() {
            for user in distinct(&value.users)
                .into_iter()
                .filter(|&u| Some(u) != value.producer)
            {
                stage.values[user].push((at, false));
                stage.counts[at].all += 1;
            }
            value
                .producer
                .iter()
                .for_each(|&p| stage.values[p].push((at, true)));
        }
        for (at, block) in problem.shared.iter().enumerate() {
            distinct(&block.users)
                .into_iter()
                .for_each(|u| stage.blocks[u].push(at));
        }
        for (at, work) in problem.joint.iter().enumerate() {
            stage.joint[work.item].push((at, true));
            distinct(&work.with)
                .into_iter()
                .for_each(|u| stage.joint[u].push((at, false)));
        }
        stage
    }

    /// Calls `visit` with what is left of `ideal`, and the device cycles of that, once for each non-empty stage that is
    /// allowed.
    pub(super) fn each(
        &mut self,
        ideal: &Set,
        is_host: bool,
        allowed: Allowed,
        budget: &mut Budget<'_>,
        mut visit: impl FnMut(&[u64], u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut sums = self.begin(ideal, is_host);
        let len = self.problem.items.len();
        let last = |&item: &usize| contains(ideal, item) && self.successors[item] == 0;
        let mut path = vec![Taken {
            item: None,
            candidates: (0..len).filter(last).collect(),
            next: 0,
            before: sums,
        }];
        while let Some(top) = path.last_mut() {
            let Some(&item) = top.candidates.get(top.next) else {
                sums = top.before;
                let item = top.item;
                path.pop();
                item.into_iter()
                    .for_each(|item| self.put_back(item, is_host));
                continue;
            };
            top.next += 1;
            if !budget.spend() {
                return Err(Refusal::Unfinished);
            }
            let before = sums;
            self.take(item, is_host, &mut sums);
            let memory = sums.resident + sums.workspace + sums.stash * allowed.copies;
            if sums.certain > allowed.bound || memory > allowed.memory {
                self.put_back(item, is_host);
                sums = before;
                continue;
            }
            let border = if is_host { 0 } else { self.relayed(&self.rest) };
            if sums.load + border <= allowed.bound {
                visit(&self.rest, sums.work)?;
            }
            // What was tried before `item` stays, so that every set of items has one way to be taken.
            let mut candidates: Vec<usize> = top.candidates[top.next..].to_vec();
            let freed = |&&p: &&usize| self.successors[p] == 0;
            candidates.extend(self.order.before[item].iter().filter(freed));
            path.push(Taken {
                item: Some(item),
                candidates,
                next: 0,
                before,
            });
        }
        Ok(())
    }

    /// The empty stage below `ideal`.
    fn begin(&mut self, ideal: &Set, is_host: bool) -> Sums {
        self.rest.clone_from(ideal);
        let inside = |&&item: &&usize| contains(ideal, item);
        for (count, value) in self.counts.iter_mut().zip(&self.problem.values) {
            count.users_above = !value.users.iter().all(|user| inside(&user));
            count.producer_above =
                !value.producer.iter().all(|p| inside(&p)) || value.producer.is_none();
        }
        let mut work = 0;
        for (item, node) in self.problem.items.iter().enumerate() {
            let after = self.order.after[item].iter();
            self.successors[item] = after.filter(inside).count() as u32;
            if contains(ideal, item) && !node.host_only {
                work += node.cycles;
            }
        }
        let border = if is_host { 0 } else { self.relayed(ideal) };
        Sums {
            load: border,
            certain: border,
            work,
            ..Sums::default()
        }
    }

    /// Cost of the relayed values across the border of a set.
    fn relayed(&self, set: &[u64]) -> u64 {
        let crosses = |value: &&&Value| {
            let mut ends = value.users.iter().chain(&value.producer);
            let first = ends.next().map(|&end| contains(set, end));
            ends.any(|&end| Some(contains(set, end)) != first)
        };
        let crossing = self.relayed.iter().filter(crosses);
        crossing.map(|value| value.cost).sum()
    }

    fn take(&mut self, item: usize, is_host: bool, sums: &mut Sums) {
        self.rest[item / 64] ^= 1 << (item % 64);
        self.order.before[item]
            .iter()
            .for_each(|&p| self.successors[p] -= 1);
        let node = &self.problem.items[item];
        sums.work -= if node.host_only { 0 } else { node.cycles };
        if is_host {
            sums.load += node.host_cycles;
            sums.certain += node.host_cycles;
            return;
        }
        let cycles = if node.host_only {
            u64::MAX / 4
        } else {
            node.cycles
        };
        sums.load += cycles;
        sums.certain += cycles;
        sums.resident += node.resident;
        sums.workspace = sums.workspace.max(node.workspace);
        for &(value, produces) in &self.values[item] {
            let count = &mut self.counts[value];
            let (before, problem) = (*count, &self.problem.values[value]);
            if produces {
                count.produced = true;
            } else {
                count.inside += 1;
            }
            if before.inside == 0 && !before.produced {
                sums.stash += problem.stash;
            }
            let cost = if problem.relayed { 0 } else { problem.cost };
            sums.load += if count.pays() { cost } else { 0 };
            sums.load -= if before.pays() { cost } else { 0 };
            sums.certain += if count.is_certain() && !before.is_certain() {
                cost
            } else {
                0
            };
        }
        for &block in &self.blocks[item] {
            sums.resident += if self.holders[block] == 0 {
                self.problem.shared[block].bytes
            } else {
                0
            };
            self.holders[block] += 1;
        }
        for &(work, does) in &self.joint[item] {
            let (done, asked) = &mut self.works[work];
            let before = *done && *asked > 0;
            if does {
                *done = true;
            } else {
                *asked += 1;
            }
            let cycles = if *done && *asked > 0 && !before {
                self.problem.joint[work].cycles
            } else {
                0
            };
            sums.load += cycles;
            sums.certain += cycles;
        }
    }

    fn put_back(&mut self, item: usize, is_host: bool) {
        self.rest[item / 64] ^= 1 << (item % 64);
        self.order.before[item]
            .iter()
            .for_each(|&p| self.successors[p] += 1);
        if is_host {
            return;
        }
        for &(value, produces) in &self.values[item] {
            let count = &mut self.counts[value];
            if produces {
                count.produced = false;
            } else {
                count.inside -= 1;
            }
        }
        self.blocks[item]
            .iter()
            .for_each(|&block| self.holders[block] -= 1);
        for &(work, does) in &self.joint[item] {
            let (done, asked) = &mut self.works[work];
            if does {
                *done = false;
            } else {
                *asked -= 1;
            }
        }
    }
}
