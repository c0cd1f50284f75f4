//! Exact split of a DAG into pipeline stages.
//!
//! # Problem
//! Items are laid on `devices` devices numbered in pipeline order, so that no ordering edge runs from a higher to
//! a lower device: every stage is a difference of two ideals (*contiguous*). The load of a device is
//!
//! ```text
//!   sum of cycles of its items
//! + sum of cost of values produced on it with a user elsewhere      (each value once)
//! + sum of cost of values used on it but produced elsewhere         (each value once)
//! + twice the cost of relayed values that only pass through it
//! + cycles of its joint work whose item shares it with another item that asks for it
//! ```
//!
//! and the objective is the largest load. This is the cost model of Tarnawski et al., *Efficient algorithms for
//! device placement of DNN graph operators*, NeurIPS 2020. The bytes of a device are
//!
//! ```text
//!   sum of resident + sum of shared blocks with a user on it + max of workspace
//! + in_flight[non-empty devices after it] * sum of stash of values produced or used on it
//! ```
//!
//! where devices may lie side by side (`branches`), with the devices after it on the longest path instead.
//!
//! # Method
//! A bound B is tested by computing for every ideal the fewest devices that can run all items outside it with no
//! load above B: from each ideal reached, last to first, a depth-first walk removes one item at a time, keeping
//! the load incrementally, and stops where the part of the load that can only grow passes B. Fewest devices
//! dominates because both the room left and the stash factor only get better. The smallest feasible B is found
//! by bisection between the trivial bound and the best chain split; a failed test also yields the smallest
//! bound at which its outcome could change, so the result is exact.
//!
//! # Ties
//! Among the splits with the optimal bottleneck the engine returns one with the least total load (so the least
//! communication), then the fewest non-empty devices, then the first in ideal order. Empty devices come last. With
//! hosts it is the first in the order of the search.

mod branches;
pub mod certificate;
#[cfg(test)]
mod certificate_tests;
mod check;
mod dive;
#[cfg(test)]
mod hosts_tests;
mod model;
mod reach;
mod relaxed;
mod search;
mod separators;
mod stage;
#[cfg(test)]
mod tests;
mod validate;
mod walk;

use super::Budget;
use super::lattice::{Dag, Lattice, LatticeError};
pub use check::Refusal;
use model::Model;
use search::{Search, Verdict};
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// An instance. Indices in `edges`, `values`, `shared` and `joint` are positions in `items`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The atoms to place.
    pub items: Vec<Item>,
    /// Ordering beyond what `values` imply.
    pub edges: Vec<Edge>,
    /// Data that costs time where it crosses between devices.
    pub values: Vec<Value>,
    /// Memory that several items use and each device holds once.
    pub shared: Vec<Shared>,
    /// Work that is done only where two ends of it meet.
    pub joint: Vec<Joint>,
    /// Number of devices; with the hosts at least 1.
    pub devices: usize,
    /// Number of hosts: further devices, numbered behind the others, that may stand anywhere in the pipeline. They
    /// have their own times, pay nothing for values, and have all the memory they need. With hosts no value is relayed
    /// or stashed, and no work is joint.
    pub hosts: usize,
    /// Bytes of each device but the hosts; `None` is unlimited.
    pub memory_limit: Option<u64>,
    /// Copies of its stashed values a device keeps, by the number of non-empty devices behind it; must not
    /// decrease; the last entry holds for all greater depths. Empty means no stash.
    pub in_flight: Vec<u64>,
    /// Devices may lie side by side, in steps of so many micro-batches: a device waits for those it exchanges values
    /// with, and copies go by the devices behind it on the longest path of those. Not with hosts or relayed values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branches: Option<u64>,
}

/// One atom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Time it takes.
    pub cycles: u64,
    /// Bytes that stay on its device, such as weights.
    pub resident: u64,
    /// Lower bound of the transient bytes while it runs.
    pub workspace: u64,
    /// Time it takes on a host.
    pub host_cycles: u64,
    /// Whether only a host can run it.
    pub host_only: bool,
}

/// `from` may not be on a later device than `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The earlier item.
    pub from: usize,
    /// The later item.
    pub to: usize,
}

/// One tensor and who reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// Its item; `None` if it comes from outside the pod, and then only its receivers pay.
    pub producer: Option<usize>,
    /// Its readers, in any order.
    pub users: Vec<usize>,
    /// Cycles to move it, paid once by the sender and once by each receiving device.
    pub cost: u64,
    /// Bytes kept for the backward pass on each device that produces or uses it, per micro-batch in flight.
    pub stash: u64,
    /// The value runs against the pipeline (a cotangent, whose ends share atoms with their forward counterparts).
    /// If it is relayed, its users may not be on later devices than its producer; otherwise it orders nothing.
    pub feedback: bool,
    /// The value is passed on from device to device: every device between its producer and its furthest user
    /// receives it and, but for the last, sends it, at `cost` each. Not for values from outside.
    pub relayed: bool,
}

impl Value {
    /// Its ends in the pipeline's direction, the earlier one first: a pair for each user but the producer itself.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let users = move |producer| self.users.iter().map(move |&user| (producer, user));
        let pairs = self.producer.into_iter().flat_map(users);
        let pairs = pairs.filter(|(producer, user)| producer != user);
        pairs.map(|(producer, user)| match self.feedback {
            true => (user, producer),
            false => (producer, user),
        })
    }
}

impl Problem {
    /// The pairs of items of which the first may not be on a later device than the second.
    pub(crate) fn ordering(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let edges = self.edges.iter().map(|edge| (edge.from, edge.to));
        let ordered = self.values.iter().filter(|v| !v.feedback || v.relayed);
        let implied = ordered.flat_map(Value::ends);
        edges.chain(implied).filter(|(from, to)| from != to)
    }
}

/// Work of an item that only serves others beside it: a value computed again, which other devices do not ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// Time it takes.
    pub cycles: u64,
    /// Whose device does it.
    pub item: usize,
    /// The other items, of which at least one must be on that device.
    pub with: Vec<usize>,
}

/// Bytes held once by each device that has at least one user, such as a weight used by two atoms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Size.
    pub bytes: u64,
    /// Items that use it.
    pub users: Vec<usize>,
}

/// Bounds on the work; deterministic substitutes for a time limit, unless `stop` is given.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Above this many ideals the engine splits chains instead and does not claim optimality.
    pub ideals: usize,
    /// Steps of all walks together; when spent, the best split so far is returned.
    pub steps: u64,
    /// Ends the search as if the steps were spent, soon after it becomes true.
    pub stop: Option<&'a AtomicBool>,
}

impl Default for Limits<'_> {
    /// 100,000 ideals and 4e9 steps (some tens of seconds).
    fn default() -> Self {
        Self {
            ideals: 100_000,
            steps: 4_000_000_000,
            stop: None,
        }
    }
}

/// A split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solution {
    /// The device of each item.
    pub device_of: Vec<usize>,
    /// The largest load, in cycles.
    pub objective: u64,
    /// No contiguous split has a smaller largest load.
    pub lower_bound: u64,
    /// `objective == lower_bound`.
    pub optimal: bool,
    /// Ideals of the ordering; 0 if there were more than the limit.
    pub ideals: usize,
    /// Cycles of each device.
    pub loads: Vec<u64>,
    /// Bytes of each device.
    pub memory: Vec<u64>,
}

impl Solution {
    /// What a placement comes to, beside a lower bound of all contiguous ones; `ideals` as in [`Solution::ideals`].
    pub(crate) fn of(
        problem: &Problem,
        device_of: Vec<usize>,
        lower_bound: u64,
        ideals: usize,
    ) -> Self {
        let Evaluation { loads, memory } = evaluate(problem, &device_of);
        let objective = loads.iter().copied().max().unwrap_or(0);
        Solution {
            device_of,
            objective,
            lower_bound,
            optimal: objective == lower_bound,
            ideals,
            loads,
            memory,
        }
    }
}

/// Why there is no split.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PartitionError {
    /// The ordering is not a DAG.
    #[error(transparent)]
    Graph(#[from] LatticeError),
    /// A field of the problem has no meaning.
    #[error("{0}")]
    Invalid(String),
    /// No split fits.
    #[error(
        "no split over {devices} devices fits {limit} bytes each: {} {needed} bytes on the fullest device",
        if *.proven { "every split needs at least" } else { "the best split found needs" }
    )]
    Memory {
        /// Number of devices.
        devices: usize,
        /// The limit given.
        limit: u64,
        /// The smallest limit at which a split was found.
        needed: u64,
        /// Whether `needed` is also a lower bound over all contiguous splits.
        proven: bool,
    },
}

/// What a placement costs, by the definition in the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Cycles of each device.
    pub loads: Vec<u64>,
    /// Bytes of each device.
    pub memory: Vec<u64>,
}

/// Cost of any placement, contiguous or not: O(devices x references) and independent of the search.
///
/// # Panics
/// If `device_of` does not give each item a device below `problem.devices + problem.hosts`.
#[must_use]
pub fn evaluate(problem: &Problem, device_of: &[usize]) -> Evaluation {
    let devices = problem.devices + problem.hosts;
    assert_eq!(device_of.len(), problem.items.len(), "one device per item");
    let mut eval = Evaluation {
        loads: vec![0; devices],
        memory: vec![0; devices],
    };
    let mut workspace = vec![0; devices];
    let mut stash = vec![0; devices];
    let mut used = vec![false; devices];
    for (item, &d) in problem.items.iter().zip(device_of) {
        let on_host = d >= problem.devices;
        eval.loads[d] += if on_host {
            item.host_cycles
        } else {
            item.cycles
        };
        eval.memory[d] += item.resident;
        workspace[d] = item.workspace.max(workspace[d]);
        used[d] = true;
    }
    for value in &problem.values {
        let home = value.producer.map(|p| device_of[p]);
        let ends = || {
            value
                .users
                .iter()
                .chain(&value.producer)
                .map(|&e| device_of[e])
        };
        let (first, last) = (ends().min(), ends().max());
        let reads = |d: usize| value.users.iter().any(|&u| device_of[u] == d);
        let devices = eval.loads[..problem.devices].iter_mut();
        for (d, (load, stash)) in devices.zip(&mut stash).enumerate() {
            let (enters, leaves) = if value.relayed {
                (
                    first < Some(d) && Some(d) <= last,
                    first <= Some(d) && Some(d) < last,
                )
            } else {
                let leaves = home == Some(d) && value.users.iter().any(|&u| device_of[u] != d);
                (home != Some(d) && reads(d), leaves)
            };
            *load += value.cost * (u64::from(enters) + u64::from(leaves));
            *stash += if home == Some(d) || reads(d) {
                value.stash
            } else {
                0
            };
        }
    }
    for work in &problem.joint {
        let home = device_of[work.item];
        if work.with.iter().any(|&other| device_of[other] == home) {
            eval.loads[home] += work.cycles;
        }
    }
    for block in &problem.shared {
        for (d, memory) in eval.memory.iter_mut().enumerate() {
            *memory += if block.users.iter().any(|&u| device_of[u] == d) {
                block.bytes
            } else {
                0
            };
        }
    }
    let behind = match problem.branches {
        Some(_) => branches::behind(problem, device_of),
        None => (1..=devices)
            .map(|d| used[d..].iter().filter(|&&u| u).count())
            .collect(),
    };
    for (d, &behind) in behind.iter().enumerate() {
        eval.memory[d] += workspace[d] + stash[d] * model::copies(&problem.in_flight, behind);
    }
    eval
}

/// Minimises the largest load; where devices may lie side by side, the time of a step.
///
/// # Errors
/// A malformed problem, or one that does not fit the memory.
pub fn solve(problem: &Problem, limits: &Limits<'_>) -> Result<Solution, PartitionError> {
    if problem.branches.is_some() {
        return branches::solve(problem, limits);
    }
    let (model, dag) = Model::new(problem)?;
    let mut budget = Budget::new(limits.steps, limits.stop);
    let mut best = None;
    let chains = chain_orders(&dag)
        .iter()
        .map(|o| Lattice::chain(o))
        .collect::<Result<Vec<_>, _>>()?;
    for chain in &chains {
        best = Search::new(&model, chain).minimise(best, &mut budget).0;
    }
    let lattice = match Lattice::enumerate(&dag, limits.ideals) {
        Ok(lattice) => lattice,
        Err(LatticeError::TooMany { .. }) => {
            let best = best.ok_or_else(|| tightest(problem, &model, &chains, &mut budget).0)?;
            let chains = chains.iter().filter(|_| problem.hosts == 0);
            let splits = chains.map(|c| Search::new(&model, c).refine(best.clone(), &mut budget));
            let best = splits
                .min_by_key(|s| evaluate(problem, s).loads.iter().sum::<u64>())
                .unwrap_or(best);
            return Ok(Solution::of(problem, best, model.trivial_bound(), 0));
        }
        Err(other) => return Err(other.into()),
    };
    let mut search = Search::new(&model, &lattice);
    let (best, bound, verdict) = search.minimise(best, &mut budget);
    let Some(best) = best else {
        let (error, found) = tightest(problem, &model, std::slice::from_ref(&lattice), &mut budget);
        let proven = verdict == Verdict::Exact && found == Verdict::Exact;
        return Err(if proven {
            error
        } else {
            tightest(problem, &model, &chains, &mut Budget::unlimited()).0
        });
    };
    let best = match problem.hosts {
        0 => search.refine(best, &mut budget),
        _ => best,
    };
    Ok(Solution::of(problem, best, bound, lattice.len()))
}

/// One test instead of a search: if no split has a largest load of at most `bound`, the least that one might have,
/// `u64::MAX` if none fits the memory. None if there is such a split, or the limits end the test.
///
/// # Errors
/// A malformed problem.
pub fn refute(
    problem: &Problem,
    bound: u64,
    limits: &Limits<'_>,
) -> Result<Option<u64>, PartitionError> {
    let (model, dag) = Model::new(problem)?;
    match Lattice::enumerate(&dag, limits.ideals) {
        Ok(lattice) => {
            let mut budget = Budget::new(limits.steps, limits.stop);
            Ok(Search::new(&model, &lattice).refute(bound, &mut budget))
        }
        Err(LatticeError::TooMany { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Total orders worth cutting: index order, and depth-first from the sources and from the sinks, which keep
/// branches together.
fn chain_orders(dag: &Dag) -> Vec<Vec<u32>> {
    let mut orders = vec![dag.topological().to_vec()];
    let sources = (0..dag.len()).filter(|&v| dag.preds(v).is_empty());
    let mut forward = depth_first(dag, sources, Dag::succs);
    forward.reverse();
    orders.push(forward);
    let sinks = (0..dag.len()).filter(|&v| dag.succs(v).is_empty());
    orders.push(depth_first(dag, sinks, Dag::preds));
    orders.dedup();
    orders
}

/// Post-order of a depth-first search along `next`.
fn depth_first(
    dag: &Dag,
    roots: impl Iterator<Item = usize>,
    next: impl Fn(&Dag, usize) -> &[u32],
) -> Vec<u32> {
    let mut seen = vec![false; dag.len()];
    let mut order = Vec::with_capacity(dag.len());
    for root in roots {
        let mut stack = vec![(root, 0)];
        seen[root] = true;
        while let Some((v, cursor)) = stack.last_mut() {
            match next(dag, *v).get(*cursor) {
                Some(&w) => {
                    *cursor += 1;
                    if !std::mem::replace(&mut seen[w as usize], true) {
                        stack.push((w as usize, 0));
                    }
                }
                None => {
                    order.push(*v as u32);
                    stack.pop();
                }
            }
        }
    }
    order
}

/// The error for a problem without a split: the smallest memory limit at which there is one on `lattices`.
fn tightest(
    problem: &Problem,
    model: &Model,
    lattices: &[Lattice],
    budget: &mut Budget<'_>,
) -> (PartitionError, Verdict) {
    let mut needed = u64::MAX;
    let mut verdict = Verdict::Exact;
    for lattice in lattices {
        let (least, end) = Search::new(model, lattice).least_memory(budget);
        needed = needed.min(least);
        verdict = if end == Verdict::Spent { end } else { verdict };
    }
    let limit = problem.memory_limit.unwrap_or(u64::MAX);
    let proven = lattices.len() == 1 && verdict == Verdict::Exact;
    (
        PartitionError::Memory {
            devices: problem.devices,
            limit,
            needed,
            proven,
        },
        verdict,
    )
}
