//! Bound tests over the ideal lattice, bisection, and the choice among optimal splits.

use super::model::{Model, Stage, Totals};
use crate::solve::lattice::Lattice;

const NONE: u32 = u32::MAX;

/// Whether a search ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The answer is exact on the lattice searched.
    Exact,
    /// The step budget ran out.
    Spent,
}

/// Result of testing one bound.
enum Test {
    /// The split found, as a device per item.
    Feasible(Vec<usize>),
    /// No split; none has a largest load below the given one either.
    Infeasible(u64),
    /// The step budget ran out.
    Spent,
}

/// What a walk may not exceed.
#[derive(Clone, Copy)]
struct Fence {
    bound: u64,
    memory: u64,
    copies: u64,
}

struct Frame {
    ideal: u32,
    cursor: u32,
    item: u32,
    before: Totals,
}

/// A search over one lattice.
pub(super) struct Search<'m> {
    model: &'m Model,
    lattice: &'m Lattice,
    needs: Vec<u64>,
    borders: Vec<u64>,
    stage: Stage<'m>,
    stamp: Vec<u32>,
    clock: u32,
    stack: Vec<Frame>,
}

impl<'m> Search<'m> {
    /// Prepares a search; O(ideals x references of an item).
    pub(super) fn new(model: &'m Model, lattice: &'m Lattice) -> Self {
        let borders = model.borders(lattice);
        let needs = model
            .needs(lattice)
            .iter()
            .zip(&borders)
            .map(|(n, b)| n + b)
            .collect();
        Self {
            model,
            lattice,
            needs,
            borders,
            stage: Stage::new(model),
            stamp: vec![0; lattice.len()],
            clock: 0,
            stack: Vec::new(),
        }
    }

    /// The smallest bottleneck on this lattice, starting from `best` if that is given.
    ///
    /// Returns the split, a proven lower bound, and whether the search ended. No split with `Exact` means that
    /// none fits the memory.
    pub(super) fn minimise(
        &mut self,
        mut best: Option<Vec<usize>>,
        steps: &mut u64,
    ) -> (Option<Vec<usize>>, u64, Verdict) {
        let limit = self.model.memory_limit.unwrap_or(u64::MAX);
        let mut low = self.model.trivial_bound();
        let ceiling = self.model.ceiling();
        let mut high = match &best {
            Some(split) => self.bottleneck(split),
            None => match self.test(ceiling, limit, steps) {
                Test::Feasible(split) => self.bottleneck(best.insert(split)),
                Test::Infeasible(_) => return (None, ceiling, Verdict::Exact),
                Test::Spent => return (None, low, Verdict::Spent),
            },
        };
        let mut improved = false;
        while low < high {
            // Close to the end the latest split is often the best; one test then proves it.
            let close = improved && high - low <= high / 16;
            let middle = if close {
                high - 1
            } else {
                low + (high - low) / 2
            };
            improved = false;
            match self.test(middle, limit, steps) {
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

    /// The smallest memory limit under which a split exists on this lattice.
    ///
    /// If `steps` runs out the result is only an upper bound.
    pub(super) fn least_memory(&mut self, steps: &mut u64) -> (u64, Verdict) {
        let ceiling = self.model.ceiling();
        let (mut low, mut high) = (0, self.model.memory_ceiling());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.test(ceiling, middle, steps) {
                Test::Feasible(_) => high = middle,
                Test::Infeasible(_) => low = middle + 1,
                Test::Spent => return (high, Verdict::Spent),
            }
        }
        (low, Verdict::Exact)
    }

    /// Largest load of a contiguous split.
    fn bottleneck(&mut self, device_of: &[usize]) -> u64 {
        let mut members = vec![Vec::new(); self.model.devices];
        for (item, &device) in device_of.iter().enumerate() {
            members[device].push(item as u32);
        }
        let mut largest = 0;
        for (items, relayed) in members.iter().zip(self.model.relay_loads(device_of)) {
            let mut totals = Totals::default();
            items.iter().for_each(|&i| self.stage.add(i, &mut totals));
            items.iter().for_each(|&i| self.stage.remove(i));
            largest = largest.max(totals.load + relayed);
        }
        largest
    }

    /// Fewest devices for the items outside each ideal with every load within `bound`.
    fn test(&mut self, bound: u64, memory: u64, steps: &mut u64) -> Test {
        let (full, devices) = (self.lattice.len() - 1, self.model.devices as u32);
        let mut used = vec![NONE; full + 1];
        let mut parent = vec![NONE; full + 1];
        let mut next = u64::MAX;
        used[full] = 0;
        for high in (1..=full).rev() {
            let behind = used[high];
            if behind >= devices {
                continue;
            }
            let left = devices - behind - 1;
            let needs = std::mem::take(&mut self.needs);
            let mut over = u64::MAX;
            let fence = Fence {
                bound,
                memory,
                copies: self.model.copies(behind as usize),
            };
            let pruned = self.walk(high as u32, fence, steps, |ideal, totals| {
                let at = ideal as usize;
                let required = if left == 0 {
                    u64::MAX
                } else {
                    needs[at].div_ceil(u64::from(left))
                };
                if totals.load > bound {
                    over = over.min(totals.load);
                } else if required > bound && needs[at] > 0 {
                    over = over.min(required);
                } else if behind + 1 < used[at] {
                    used[at] = behind + 1;
                    parent[at] = high as u32;
                }
            });
            self.needs = needs;
            let Some(pruned) = pruned else {
                return Test::Spent;
            };
            next = next.min(pruned).min(over);
            if used[0] <= devices {
                break;
            }
        }
        if used[0] <= devices {
            Test::Feasible(self.split(|at, _| parent[at]))
        } else {
            Test::Infeasible(next)
        }
    }

    /// Among the splits no worse than `best`, the one with the least total load, then the fewest devices.
    pub(super) fn refine(&mut self, best: Vec<usize>, steps: &mut u64) -> Vec<usize> {
        let bound = self.bottleneck(&best);
        let memory = self.model.memory_limit.unwrap_or(u64::MAX);
        let (full, devices) = (
            self.lattice.len() - 1,
            self.model.devices.min(self.model.len()),
        );
        let row = devices + 1;
        let mut total = vec![u64::MAX; (full + 1) * row];
        let mut parent = vec![NONE; (full + 1) * row];
        total[full * row] = 0;
        let needs = std::mem::take(&mut self.needs);
        for high in (1..=full).rev() {
            let from: Vec<(usize, u64)> = (0..devices)
                .map(|c| (c, total[high * row + c]))
                .filter(|(_, t)| *t < u64::MAX)
                .collect();
            let Some(&(first, _)) = from.first() else {
                continue;
            };
            let fence = Fence {
                bound,
                memory,
                copies: self.model.copies(first),
            };
            let model = self.model;
            let done = self.walk(high as u32, fence, steps, |ideal, totals| {
                if totals.load > bound {
                    return;
                }
                for &(behind, sum) in &from {
                    let at = ideal as usize * row + behind + 1;
                    let room = bound.saturating_mul((devices - behind - 1) as u64);
                    let fits = totals.memory(model.copies(behind)) <= memory;
                    if fits && needs[ideal as usize] <= room && sum + totals.load < total[at] {
                        total[at] = sum + totals.load;
                        parent[at] = high as u32;
                    }
                }
            });
            if done.is_none() {
                self.needs = needs;
                return best;
            }
        }
        self.needs = needs;
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
        let mut device_of = vec![0; self.model.len()];
        let (mut at, mut stage) = (0, 0);
        while at + 1 < self.lattice.len() {
            let high = parent(at, stage) as usize;
            for item in self.lattice.difference(at, high) {
                device_of[item as usize] = stage;
            }
            (at, stage) = (high, stage + 1);
        }
        device_of
    }

    /// Visits every ideal below `from` whose difference to it keeps within `fence`, with the totals of that
    /// difference. Loads above the bound are visited as long as their committed part is within it.
    ///
    /// Returns the smallest committed load that was cut off, or `None` if `steps` ran out.
    fn walk(
        &mut self,
        from: u32,
        fence: Fence,
        steps: &mut u64,
        mut visit: impl FnMut(u32, &Totals),
    ) -> Option<u64> {
        let Self {
            lattice,
            stage,
            stamp,
            clock,
            stack,
            borders,
            ..
        } = self;
        *clock += 1;
        if *clock == u32::MAX {
            stamp.fill(0);
            *clock = 1;
        }
        let mut cut = u64::MAX;
        let mut totals = Totals::passing(borders[from as usize]);
        stack.push(Frame {
            ideal: from,
            cursor: 0,
            item: NONE,
            before: totals,
        });
        while let Some(frame) = stack.last_mut() {
            let Some(&step) = lattice
                .down(frame.ideal as usize)
                .get(frame.cursor as usize)
            else {
                if frame.item != NONE {
                    stage.remove(frame.item);
                    totals = frame.before;
                }
                stack.pop();
                continue;
            };
            frame.cursor += 1;
            if std::mem::replace(&mut stamp[step.ideal as usize], *clock) == *clock {
                continue;
            }
            let least = totals.committed + stage.cycles(step.item);
            if least > fence.bound {
                cut = cut.min(least);
                continue;
            }
            *steps = steps.saturating_sub(1);
            if *steps == 0 {
                stack
                    .iter()
                    .rev()
                    .filter(|f| f.item != NONE)
                    .for_each(|f| stage.remove(f.item));
                stack.clear();
                return None;
            }
            let before = totals;
            stage.add(step.item, &mut totals);
            if totals.committed > fence.bound || totals.memory(fence.copies) > fence.memory {
                if totals.committed > fence.bound {
                    cut = cut.min(totals.committed);
                }
                stage.remove(step.item);
                totals = before;
                continue;
            }
            visit(
                step.ideal,
                &totals.with_border(borders[step.ideal as usize]),
            );
            stack.push(Frame {
                ideal: step.ideal,
                cursor: 0,
                item: step.item,
                before,
            });
        }
        Some(cut)
    }
}
