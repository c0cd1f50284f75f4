//! Splits whose devices may lie side by side.
//!
//! A device waits for those it exchanges values with, not for the one before it in number. A step of m micro-batches
//! then takes about
//!
//! ```text
//!   (m - 1) * largest load + the largest sum of loads along a path of devices
//! ```
//!
//! which is exact for equal loads, and a device keeps as many copies of its stash as its longest path behind says.
//!
//! # Method
//! The walks are those of [`refine`](super::search::Search::refine), from the full ideal towards the empty one. What lies
//! behind a stage depends on how the items outside were split: for each item of an ideal with neighbours outside, the
//! ideal's *frontier*, a label keeps the longest paths from the devices that hold those. A label is dropped if another of
//! the same ideal is no worse in anything that counts: devices used, largest load, each path. So nothing better is missed
//! unless the search is given up.

use super::model::{Kind, Model};
use super::reach::Ground;
use super::walk::{Fence, Walker};
use super::{Limits, PartitionError, Problem, Solution, Value, evaluate};
use crate::solve::Budget;
use crate::solve::lattice::{Lattice, LatticeError};

/// Minimises the time of a step over the splits that keep the memory and have no load above nine eighths of the
/// reference: the least largest load that there is, or, if the split found for that needs too much memory, the least of
/// those that fit as a chain. Of steps of very many micro-batches that is the largest load, then the longest path.
///
/// The lower bound is that of the largest load, whatever the memory.
pub(super) fn solve(problem: &Problem, limits: &Limits<'_>) -> Result<Solution, PartitionError> {
    let chain = Problem {
        branches: None,
        ..problem.clone()
    };
    let free = Problem {
        memory_limit: None,
        ..chain.clone()
    };
    let best = super::solve(&free, limits)?;
    let limit = problem.memory_limit.unwrap_or(u64::MAX);
    let fits = |solution: &Solution| solution.memory.iter().all(|&bytes| bytes <= limit);
    let judged = |split| Solution::of(problem, split, best.lower_bound, best.ideals);
    let mut reference = Ok(judged(best.device_of.clone()));
    if reference.as_ref().is_ok_and(|found| !fits(found)) {
        let found = super::solve(&chain, limits).map_err(unproven);
        reference = found.map(|found| judged(found.device_of));
    }
    let reached = reference.as_ref().map(|found| found.objective);
    let load = reached.unwrap_or(best.objective);
    // What is found among few splits spares most of the work among all.
    for bound in [load, load.saturating_add(load / 8)] {
        let known = reference.as_ref().ok().map(|found| &found.device_of[..]);
        if let Some(split) = fastest(problem, bound, known, limits)? {
            reference = Ok(judged(split));
        }
    }
    reference
}

/// Cycles of a step of the problem's micro-batches.
fn step(problem: &Problem, device_of: &[usize]) -> u128 {
    let loads = evaluate(problem, device_of).loads;
    let slowest = loads.iter().copied().max().unwrap_or(0);
    let after = after(problem, device_of);
    let mut paths = vec![0; loads.len()];
    for device in (0..loads.len()).rev() {
        let behind = after[device].iter().map(|&other| paths[other]);
        paths[device] = loads[device] + behind.max().unwrap_or(0);
    }
    time(problem, slowest, paths.into_iter().max().unwrap_or(0))
}

fn time(problem: &Problem, slowest: u64, path: u64) -> u128 {
    let more = problem.branches.unwrap_or(1).saturating_sub(1);
    u128::from(more) * u128::from(slowest) + u128::from(path)
}

/// What a chain needs is no bound for what devices side by side do.
fn unproven(error: PartitionError) -> PartitionError {
    match error {
        PartitionError::Memory {
            devices,
            limit,
            needed,
            ..
        } => PartitionError::Memory {
            devices,
            limit,
            needed,
            proven: false,
        },
        other => other,
    }
}

/// By device: the devices behind it on the longest path of devices that exchange values.
pub(super) fn behind(problem: &Problem, device_of: &[usize]) -> Vec<usize> {
    let after = after(problem, device_of);
    let mut behind = vec![0; after.len()];
    for device in (0..after.len()).rev() {
        let others = after[device].iter().map(|&other| behind[other] + 1);
        behind[device] = others.max().unwrap_or(0);
    }
    behind
}

/// By device: the later ones it exchanges values with.
fn after(problem: &Problem, device_of: &[usize]) -> Vec<Vec<usize>> {
    let mut after = vec![Vec::new(); problem.devices + problem.hosts];
    for (one, others) in later(problem).iter().enumerate() {
        let device = device_of[one];
        let devices = others.iter().map(|&other| device_of[other as usize]);
        after[device].extend(devices.filter(|&other| other != device));
    }
    after
}

/// By item: the later ones it exchanges values with, ascending.
fn later(problem: &Problem) -> Vec<Vec<u32>> {
    let mut later = vec![Vec::new(); problem.items.len()];
    for (one, other) in problem.values.iter().flat_map(Value::ends) {
        later[one].push(other as u32);
    }
    for list in &mut later {
        list.sort_unstable();
        list.dedup();
    }
    later
}

/// Of the splits with no load above `bound` that keep the memory, one with the fastest step, if that is faster than
/// `known`. None if there is none, or the limits end the search.
fn fastest(
    problem: &Problem,
    bound: u64,
    known: Option<&[usize]>,
    limits: &Limits<'_>,
) -> Result<Option<Vec<usize>>, PartitionError> {
    let (model, dag) = Model::new(problem)?;
    let lattice = match Lattice::enumerate(&dag, limits.ideals) {
        Ok(lattice) => lattice,
        Err(LatticeError::TooMany { .. }) => return Ok(None),
        Err(other) => return Err(other.into()),
    };
    let mut budget = Budget::new(limits.steps, limits.stop);
    let walker = Walker::new(&model, &lattice);
    let later = later(problem);
    let search = Search {
        ahead: ahead(problem, dag.topological(), &later),
        later,
        labels: vec![Vec::new(); lattice.len()],
        frontiers: vec![None; lattice.len()],
        ground: Ground::new(&model, &lattice, &walker.borders),
        lattice: &lattice,
        model: &model,
        problem,
        bound,
        best: known.map_or(u128::MAX, |split| step(problem, split)),
        work: 0,
    };
    Ok(search.run(walker, &mut budget))
}

/// By item: the largest sum of cycles along a path of items that ends with it.
fn ahead(problem: &Problem, order: &[u32], later: &[Vec<u32>]) -> Vec<u64> {
    let mut ahead: Vec<u64> = problem.items.iter().map(|item| item.cycles).collect();
    for &one in order {
        for &other in &later[one as usize] {
            let other = other as usize;
            ahead[other] = ahead[other].max(ahead[one as usize] + problem.items[other].cycles);
        }
    }
    ahead
}

/// The longest path from a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Path {
    /// Its devices.
    devices: usize,
    /// The sum of their loads.
    load: u64,
}

impl Path {
    fn max(self, other: Path) -> Path {
        Path {
            devices: self.devices.max(other.devices),
            load: self.load.max(other.load),
        }
    }

    fn is_within(self, other: Path) -> bool {
        self.devices <= other.devices && self.load <= other.load
    }
}

/// A way to split the items outside an ideal.
#[derive(Clone, Debug)]
struct Label {
    /// Devices used.
    used: usize,
    /// The largest load.
    slowest: u64,
    /// The longest path.
    longest: Path,
    /// The longest path from a neighbour outside, by the items of the ideal's frontier.
    paths: Vec<Path>,
    /// The ideal before, and the position of the label there.
    parent: (u32, u32),
}

impl Label {
    /// Whether nothing that follows from `other` is better than what follows from it.
    fn is_no_worse(&self, other: &Label) -> bool {
        let mut paths = self.paths.iter().zip(&other.paths);
        self.used <= other.used
            && self.slowest <= other.slowest
            && self.longest.is_within(other.longest)
            && paths.all(|(own, its)| own.is_within(*its))
    }
}

struct Search<'m> {
    later: Vec<Vec<u32>>,
    /// By item: what a path of devices takes at least up to its own.
    ahead: Vec<u64>,
    /// By ideal; none of one dominates another.
    labels: Vec<Vec<Label>>,
    /// By ideal that is reached: its items with neighbours outside.
    frontiers: Vec<Option<Vec<u32>>>,
    ground: Ground,
    lattice: &'m Lattice,
    model: &'m Model,
    problem: &'m Problem,
    bound: u64,
    /// The time of a step to beat.
    best: u128,
    /// Labels looked at.
    work: u64,
}

/// A search that looks at more labels is given up, which bounds its time to some seconds.
const MOST_WORK: u64 = 1_000_000_000;

impl Search<'_> {
    fn run(mut self, mut walker: Walker<'_>, budget: &mut Budget<'_>) -> Option<Vec<usize>> {
        let full = self.lattice.len() - 1;
        self.labels[full].push(Label {
            used: 0,
            slowest: 0,
            longest: Path::default(),
            paths: Vec::new(),
            parent: (0, 0),
        });
        self.frontiers[full] = Some(Vec::new());
        let memory = self.model.memory_limit.unwrap_or(u64::MAX);
        for high in (1..=full).rev() {
            let from = std::mem::take(&mut self.labels[high]);
            if from.is_empty() {
                continue;
            }
            let fence = Fence {
                kind: Kind::Device,
                bound: self.bound,
                memory,
                copies: self.model.copies(0),
            };
            walker.walk(high as u32, fence, budget, |low, totals| {
                if totals.load <= self.bound {
                    let fits = |behind| totals.memory(self.model.copies(behind)) <= memory;
                    self.end((high, low as usize), (&from, totals.load), fits);
                }
                true
            })?;
            if self.work > MOST_WORK {
                return None;
            }
            self.labels[high] = from;
        }
        let time = |label: &Label| time(self.problem, label.slowest, label.longest.load);
        let ended = self.labels[0].iter().enumerate();
        let (best, _) = ended.min_by_key(|(at, label)| (time(label), label.used, *at))?;
        Some(self.split(best))
    }

    /// Ends a stage between two ideals, with that load, for each label of the upper one.
    fn end(
        &mut self,
        (high, low): (usize, usize),
        (from, load): (&[Label], u64),
        fits: impl Fn(usize) -> bool,
    ) {
        self.work += from.len() as u64;
        if self.work > MOST_WORK {
            return;
        }
        for (at, label) in from.iter().enumerate() {
            let Some(left) = self.model.devices.checked_sub(label.used + 1) else {
                continue;
            };
            let slowest = label.slowest.max(load);
            let outlook = slowest.max(self.ground.least(low, left));
            if !self.ground.may_fit(low, left, self.bound)
                || time(self.problem, outlook, label.longest.load) >= self.best
            {
                continue;
            }
            let (path, paths) = self.extended((high, low), label, load);
            let longest = label.longest.max(path);
            let whole = longest.load.max(self.whole(low, &paths));
            if fits(path.devices - 1) && time(self.problem, outlook, whole) < self.best {
                let label = Label {
                    used: label.used + 1,
                    slowest,
                    longest,
                    paths,
                    parent: (high as u32, at as u32),
                };
                self.work += self.labels[low].len() as u64;
                keep(&mut self.labels[low], label);
            }
        }
    }

    /// The longest path from a stage between two ideals, behind which a label of the upper one lies, and those from
    /// neighbours of the lower one's frontier.
    fn extended(
        &mut self,
        (high, low): (usize, usize),
        label: &Label,
        load: u64,
    ) -> (Path, Vec<Path>) {
        if self.frontiers[low].is_none() {
            self.frontiers[low] = Some(self.frontier(low));
        }
        let frontier = |ideal: usize| self.frontiers[ideal].as_deref().unwrap_or_default();
        let above = frontier(high);
        let inside = above.iter().zip(&label.paths);
        let inside = inside.filter(|&(&item, _)| !self.lattice.contains(low, item));
        let behind = inside.fold(Path::default(), |longest, (_, &path)| longest.max(path));
        let path = Path {
            devices: behind.devices + 1,
            load: behind.load + load,
        };
        let path_from = |item: &u32| {
            let before = above.binary_search(item);
            let before = before.map_or_else(|_| Path::default(), |at| label.paths[at]);
            let mut others = self.later[*item as usize].iter();
            let is_inside = |&other: &u32| {
                self.lattice.contains(high, other) && !self.lattice.contains(low, other)
            };
            before.max(if others.any(is_inside) {
                path
            } else {
                Path::default()
            })
        };
        let paths = frontier(low).iter().map(path_from).collect();
        (path, paths)
    }

    /// No path through an item of an ideal's frontier takes less.
    fn whole(&self, ideal: usize, paths: &[Path]) -> u64 {
        let frontier = self.frontiers[ideal].as_deref().unwrap_or_default();
        let through = frontier.iter().zip(paths);
        let through = through.map(|(&item, path)| self.ahead[item as usize] + path.load);
        through.max().unwrap_or(0)
    }

    /// The items of an ideal with neighbours outside.
    fn frontier(&self, ideal: usize) -> Vec<u32> {
        let outside = |&other: &u32| !self.lattice.contains(ideal, other);
        let items = (0..self.later.len() as u32).filter(|&item| self.lattice.contains(ideal, item));
        items
            .filter(|&item| self.later[item as usize].iter().any(outside))
            .collect()
    }

    /// Reads a split off the parents of a label of the empty ideal.
    fn split(&self, label: usize) -> Vec<usize> {
        let mut device_of = vec![0; self.model.len()];
        let (mut low, mut label, mut device) = (0, label, 0);
        while low + 1 < self.lattice.len() {
            let (high, before) = self.labels[low][label].parent;
            for item in self.lattice.difference(low, high as usize) {
                device_of[item as usize] = device;
            }
            (low, label, device) = (high as usize, before as usize, device + 1);
        }
        device_of
    }
}

/// Adds a label unless one dominates it, and drops those it dominates.
fn keep(labels: &mut Vec<Label>, label: Label) {
    if !labels.iter().any(|one| one.is_no_worse(&label)) {
        labels.retain(|one| !label.is_no_worse(one));
        labels.push(label);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Item;
    use super::*;

    /// Small problems: values forward and back, stashes, and devices with little memory.
    fn problems() -> impl Strategy<Value = Problem> {
        let items = prop::collection::vec((1_u64..20, 0_u64..4), 1..10);
        let values = prop::collection::vec(
            (0_usize..10, 0_usize..10, 0_u64..4, 0_u64..6, any::<bool>()),
            4..16,
        );
        let micro_batches = prop_oneof![1_u64..24, Just(1 << 32)];
        (
            items,
            values,
            1_usize..5,
            prop::option::of(10_u64..90),
            (
                micro_batches,
                prop_oneof![Just([1, 2, 3, 4]), Just([0, 0, 9, 9]), Just([0, 0, 0, 9])],
            ),
        )
            .prop_map(
                |(items, values, devices, memory_limit, (micro_batches, in_flight))| {
                    let value =
                        |&(a, b, cost, stash, feedback): &(usize, usize, u64, u64, bool)| {
                            let (first, last) = (a.min(b), a.max(b));
                            let (producer, user) = if feedback {
                                (last, first)
                            } else {
                                (first, last)
                            };
                            Value {
                                producer: Some(producer),
                                users: vec![user],
                                cost,
                                stash,
                                feedback,
                                relayed: false,
                            }
                        };
                    let known = |value: &&(usize, usize, u64, u64, bool)| {
                        value.0.max(value.1) < items.len() && value.0 != value.1
                    };
                    let values: Vec<Value> = values.iter().filter(known).map(value).collect();
                    let back = values.iter().filter(|value| value.feedback);
                    let edges = back.map(|value| super::super::Edge {
                        from: value.users[0],
                        to: value.producer.unwrap_or(0),
                    });
                    let edges = edges.collect();
                    let item = |&(cycles, resident): &(u64, u64)| Item {
                        cycles,
                        resident,
                        ..Item::default()
                    };
                    Problem {
                        items: items.iter().map(item).collect(),
                        edges,
                        values,
                        devices,
                        memory_limit,
                        in_flight: in_flight.to_vec(),
                        branches: Some(micro_batches),
                        ..Problem::default()
                    }
                },
            )
    }

    /// The fastest step of all contiguous splits that fit and have no load above `bound`, and the least largest load of
    /// those that fit.
    fn brute(problem: &Problem, bound: u64) -> (u128, u64) {
        let mut best = (u128::MAX, u64::MAX);
        extend(problem, bound, &later(problem), &mut Vec::new(), &mut best);
        best
    }

    /// Places the next item on every device that those before it, which are lower in number, allow.
    fn extend(
        problem: &Problem,
        bound: u64,
        later: &[Vec<u32>],
        device_of: &mut Vec<usize>,
        best: &mut (u128, u64),
    ) {
        let item = device_of.len() as u32;
        if later.len() > device_of.len() {
            let before = (0..device_of.len()).filter(|&one| later[one].contains(&item));
            let least = before.map(|one| device_of[one]).max().unwrap_or(0);
            for device in least..problem.devices {
                device_of.push(device);
                extend(problem, bound, later, device_of, best);
                device_of.pop();
            }
            return;
        }
        let found = evaluate(problem, device_of);
        let limit = problem.memory_limit.unwrap_or(u64::MAX);
        if found.memory.iter().all(|&bytes| bytes <= limit) {
            let slowest = found.loads.into_iter().max().unwrap_or(0);
            best.1 = best.1.min(slowest);
            if slowest <= bound {
                best.0 = best.0.min(step(problem, device_of));
            }
        }
    }

    /// Of two labels with the same devices used and the same paths, that with the faster slowest device is behind the
    /// fastest step.
    #[test]
    fn a_slower_device_is_no_better_for_a_shorter_path() {
        let item = |cycles| Item {
            cycles,
            ..Item::default()
        };
        let value = |(producer, user, cost)| Value {
            producer: Some(producer),
            users: vec![user],
            cost,
            ..Value::default()
        };
        let values = [(3, 5, 3), (1, 2, 1), (0, 6, 0), (5, 6, 0), (3, 4, 1)];
        let problem = Problem {
            items: [13, 11, 3, 9, 4, 15, 7, 8].map(item).to_vec(),
            values: values.map(value).to_vec(),
            devices: 4,
            branches: Some(3),
            ..Problem::default()
        };
        let found = super::super::solve(&problem, &Limits::default()).expect("a split");
        let (fastest, least) = brute(&problem, 20 + 20 / 8);
        assert_eq!(
            (step(&problem, &found.device_of), found.lower_bound),
            (fastest, least)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_step_is_the_fastest_there_is(problem in problems()) {
            let chain = Problem { branches: None, ..problem.clone() };
            let free = Problem { memory_limit: None, ..problem.clone() };
            let (_, least) = brute(&free, 0);
            let limit = problem.memory_limit.unwrap_or(u64::MAX);
            match super::super::solve(&problem, &Limits::default()) {
                Ok(found) => {
                    prop_assert!(found.memory.iter().all(|&bytes| bytes <= limit));
                    prop_assert_eq!(found.lower_bound, least);
                    let unlimited = super::super::solve(&Problem { memory_limit: None, ..chain.clone() }, &Limits::default()).expect("a split");
                    let fits = evaluate(&problem, &unlimited.device_of).memory.iter().all(|&bytes| bytes <= limit);
                    let load = match super::super::solve(&chain, &Limits::default()) {
                        _ if fits => unlimited.objective,
                        Ok(found) => evaluate(&problem, &found.device_of).loads.into_iter().max().unwrap_or(0),
                        Err(_) => unlimited.objective,
                    };
                    let (fastest, _) = brute(&problem, load + load / 8);
                    prop_assert_eq!(step(&problem, &found.device_of), fastest);
                }
                // What fits as a chain also does with branches.
                Err(PartitionError::Memory { proven, .. }) => {
                    prop_assert!(!proven);
                    prop_assert!(super::super::solve(&chain, &Limits::default()).is_err());
                    prop_assert_eq!(brute(&problem, least + least / 8).0, u128::MAX);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
