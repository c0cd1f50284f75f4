//! Execution order with the smallest peak of live bytes.
//!
//! # Problem
//! Items run one at a time. A value is live from the step of its producer (from the beginning if it has none)
//! through the step of its last user (to the end if `kept`); a value nobody uses lives during its producer's
//! step only. While an item runs, its inputs, its outputs, everything that crosses and its workspace are live.
//!
//! # Method
//! What is live between two steps depends only on the set of items that have run, an ideal of the ordering, so
//! the best order is a path through the ideal lattice with the smallest bottleneck, found by dynamic programming
//! over ideals by size (Ahn et al., *Ordering chaos*, MLSys 2020, use the same recurrence). Only ideals that can
//! be reached below the peak of a beam search are visited, which leaves few of them.
//!
//! # Ties
//! Among the orders with the optimal peak, the first in which what leaves least alive runs next, then the lowest
//! item. So little is alive away from the peak, which is what makes it easy to find offsets without gaps.

use super::lattice::{Arena, Dag, LatticeError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderProblem {
    /// Transient bytes of each item while it runs.
    pub workspace: Vec<u64>,
    /// Pairs (earlier, later) beyond what `values` imply.
    pub edges: Vec<(usize, usize)>,
    /// The tensors.
    pub values: Vec<OrderValue>,
}

/// One tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderValue {
    /// Its item; `None` if it is there from the beginning.
    pub producer: Option<usize>,
    /// Its readers.
    pub users: Vec<usize>,
    /// Its size.
    pub bytes: u64,
    /// It stays live to the end.
    pub kept: bool,
}

/// An order and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The items in order of execution.
    pub order: Vec<usize>,
    /// The largest number of live bytes during a step.
    pub peak: u64,
    /// No order has a smaller peak.
    pub lower_bound: u64,
    /// `peak == lower_bound`.
    pub optimal: bool,
}

/// Why there is no order.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OrderError {
    /// The ordering is not a DAG.
    #[error(transparent)]
    Graph(#[from] LatticeError),
    /// A value names an item that does not exist.
    #[error("value {value} names item {item}; there are {len} items")]
    Range {
        /// Position in `values`.
        value: usize,
        /// The item named.
        item: usize,
        /// Number of items.
        len: usize,
    },
    /// The sum of all sizes does not fit.
    #[error("the sum of all bytes exceeds 2^62")]
    Overflow,
}

/// States kept per size in the beam search.
const BEAM: usize = 64;

/// Finds the order with the smallest peak, visiting at most `ideals` ideals; where these do not suffice, returns
/// the best order of a beam search with a valid lower bound.
///
/// O(ideals x (width x references of an item + len / 64)) time.
///
/// # Errors
/// A cyclic or malformed problem.
pub fn minimum_peak_order(problem: &OrderProblem, ideals: usize) -> Result<Ordered, OrderError> {
    let (model, dag) = Model::new(problem)?;
    let mut order: Vec<u32> = dag.topological().to_vec();
    let mut peak = model.peak(&order);
    let floor = model.floor();
    if peak > floor
        && let Some((found, path)) = model.beam(&dag, peak)
    {
        (peak, order) = (found, path);
    }
    let mut lower_bound = floor;
    if peak > floor {
        match model.bottleneck(&dag, peak, ideals) {
            Search::Better(least, path) => (peak, lower_bound, order) = (least, least, path),
            Search::NoBetter => lower_bound = peak,
            Search::Spent => {}
        }
    }
    if let Some(first) = model.first_within(&dag, peak, ideals) {
        order = first;
    }
    let order = order.into_iter().map(|v| v as usize).collect();
    Ok(Ordered {
        order,
        peak,
        lower_bound,
        optimal: peak == lower_bound,
    })
}

/// Peak of live bytes of a given order: O(references).
///
/// # Errors
/// A malformed problem, or an order that is not a topological permutation.
pub fn peak_of(problem: &OrderProblem, order: &[usize]) -> Result<u64, OrderError> {
    let (model, dag) = Model::new(problem)?;
    let mut rank = vec![usize::MAX; dag.len()];
    for (at, &v) in order.iter().enumerate() {
        *rank.get_mut(v).ok_or(LatticeError::Range {
            from: v,
            to: v,
            len: dag.len(),
        })? = at;
    }
    let early = |v: usize| dag.preds(v).iter().any(|&p| rank[p as usize] >= rank[v]);
    match (0..dag.len()).find(|&v| rank[v] == usize::MAX || early(v)) {
        None if order.len() == dag.len() => {
            Ok(model.peak(&order.iter().map(|&v| v as u32).collect::<Vec<_>>()))
        }
        found => Err(LatticeError::Cycle {
            item: found.unwrap_or(0),
        }
        .into()),
    }
}

struct Tensor {
    users: Vec<u32>,
    bytes: u64,
    kept: bool,
}

struct Model {
    /// Bytes that appear when an item runs: outputs and workspace, and of these the ones that outlast the step
    /// for certain or until a user has run.
    appear: Vec<u64>,
    stay: Vec<u64>,
    /// Values an item may be the last to use.
    reads: Vec<Vec<u32>>,
    values: Vec<Tensor>,
    initial: u64,
}

/// Outcome of an exact search for an order below some peak.
enum Search {
    /// The smallest peak and an order that attains it.
    Better(u64, Vec<u32>),
    /// There is none.
    NoBetter,
    /// Too many ideals.
    Spent,
}

/// Search state per ideal of an arena.
#[derive(Default)]
struct Trail {
    live: Vec<u64>,
    peak: Vec<u64>,
    parent: Vec<(u32, u32)>,
}

impl Trail {
    fn new(initial: u64) -> Self {
        Self {
            live: vec![initial],
            peak: vec![initial],
            parent: vec![(0, 0)],
        }
    }

    fn push(&mut self, live: u64, peak: u64, parent: (u32, u32)) {
        self.live.push(live);
        self.peak.push(peak);
        self.parent.push(parent);
    }

    fn path(&self, mut id: usize) -> Vec<u32> {
        let mut path = Vec::new();
        while id != 0 {
            path.push(self.parent[id].1);
            id = self.parent[id].0 as usize;
        }
        path.reverse();
        path
    }
}

impl Model {
    fn new(problem: &OrderProblem) -> Result<(Self, Dag), OrderError> {
        let len = problem.workspace.len();
        for (value, v) in problem.values.iter().enumerate() {
            if let Some(&item) = v.users.iter().chain(&v.producer).find(|&&i| i >= len) {
                return Err(OrderError::Range { value, item, len });
            }
        }
        let sizes = problem
            .workspace
            .iter()
            .copied()
            .chain(problem.values.iter().map(|v| v.bytes));
        if sizes.map(u128::from).sum::<u128>() > u128::from(u64::MAX / 4) {
            return Err(OrderError::Overflow);
        }
        let implied = |v: &OrderValue| {
            v.producer
                .map(|p| v.users.iter().map(move |&u| (p, u)).collect::<Vec<_>>())
        };
        let edges = problem
            .edges
            .iter()
            .copied()
            .chain(problem.values.iter().filter_map(implied).flatten());
        let dag = Dag::new(len, edges)?;
        let mut model = Self {
            appear: problem.workspace.clone(),
            stay: vec![0; len],
            reads: vec![Vec::new(); len],
            values: Vec::new(),
            initial: 0,
        };
        problem.values.iter().for_each(|v| model.add(v));
        Ok((model, dag))
    }

    fn add(&mut self, value: &OrderValue) {
        let mut users: Vec<u32> = value.users.iter().map(|&u| u as u32).collect();
        users.sort_unstable();
        users.dedup();
        let stays = value.kept || !users.is_empty();
        match value.producer {
            Some(p) => {
                self.appear[p] += value.bytes;
                self.stay[p] += if stays { value.bytes } else { 0 };
            }
            None => self.initial += if stays { value.bytes } else { 0 },
        }
        for &user in &users {
            self.reads[user as usize].push(self.values.len() as u32);
        }
        self.values.push(Tensor {
            users,
            bytes: value.bytes,
            kept: value.kept,
        });
    }

    fn len(&self) -> usize {
        self.stay.len()
    }

    /// Bytes that die with `item`, given which items have run with it.
    fn dying(&self, item: u32, ran: impl Fn(u32) -> bool) -> u64 {
        let last = |v: &&Tensor| !v.kept && v.users.iter().all(|&u| u == item || ran(u));
        self.reads[item as usize]
            .iter()
            .map(|&v| &self.values[v as usize])
            .filter(last)
            .map(|v| v.bytes)
            .sum()
    }

    fn peak(&self, order: &[u32]) -> u64 {
        let (mut live, mut peak) = (self.initial, self.initial);
        let mut ran = vec![false; self.len()];
        for &item in order {
            peak = peak.max(live + self.appear[item as usize]);
            live = live + self.stay[item as usize] - self.dying(item, |u| ran[u as usize]);
            ran[item as usize] = true;
        }
        peak
    }

    /// Every order has at least this peak: what is there at the beginning, or one item with all it touches.
    fn floor(&self) -> u64 {
        let item = |v: usize| {
            let inputs: u64 = self.reads[v]
                .iter()
                .map(|&x| self.values[x as usize].bytes)
                .sum();
            self.appear[v] + inputs
        };
        (0..self.len())
            .map(item)
            .max()
            .unwrap_or(0)
            .max(self.initial)
    }

    /// Adds `item` to ideal `id` unless the step's peak reaches `limit`; returns the ideal and whether it is new.
    fn step(
        &self,
        (dag, arena, trail): (&Dag, &mut Arena, &mut Trail),
        id: usize,
        item: u32,
        limit: u64,
    ) -> Option<(usize, bool)> {
        let peak = trail.peak[id].max(trail.live[id] + self.appear[item as usize]);
        if peak >= limit {
            return None;
        }
        let (next, new) = arena.grow(dag, id, item);
        if new {
            let dead = self.dying(item, |u| arena.contains(id, u));
            trail.push(
                trail.live[id] + self.stay[item as usize] - dead,
                peak,
                (id as u32, item),
            );
        } else if peak < trail.peak[next] {
            trail.peak[next] = peak;
            trail.parent[next] = (id as u32, item);
        }
        Some((next, new))
    }

    /// The best order with a peak below `limit` among those that stay within the [`BEAM`] best ideals per size.
    fn beam(&self, dag: &Dag, limit: u64) -> Option<(u64, Vec<u32>)> {
        let (mut arena, mut trail) = (Arena::new(dag), Trail::new(self.initial));
        let mut level = vec![0];
        for _ in 0..self.len() {
            let mut next = Vec::new();
            for &id in &level {
                for item in arena.addable(id).to_vec() {
                    if let Some((ideal, true)) =
                        self.step((dag, &mut arena, &mut trail), id, item, limit)
                    {
                        next.push(ideal);
                    }
                }
            }
            next.sort_by_key(|&id| (trail.peak[id], trail.live[id], id));
            next.truncate(BEAM);
            level = next;
        }
        level.first().map(|&id| (trail.peak[id], trail.path(id)))
    }

    /// The smallest peak of any order, if it is below `limit`.
    fn bottleneck(&self, dag: &Dag, limit: u64, cap: usize) -> Search {
        let (mut arena, mut trail) = (Arena::new(dag), Trail::new(self.initial));
        let mut items = Vec::new();
        let mut steps = vec![0];
        let mut id = 0;
        while id < arena.len() {
            items.clear();
            items.extend_from_slice(arena.addable(id));
            for &item in &items {
                if let Some((_, true)) = self.step((dag, &mut arena, &mut trail), id, item, limit) {
                    steps.push(steps[id] + 1);
                }
            }
            if arena.len() > cap {
                return Search::Spent;
            }
            id += 1;
        }
        let last = arena.len() - 1;
        if steps[last] == self.len() {
            Search::Better(trail.peak[last], trail.path(last))
        } else {
            Search::NoBetter
        }
    }

    /// The first order with a peak of at most `peak` when what leaves least alive runs next; `None` if there is none or
    /// more than `cap` ideals would have to be visited. Depth-first: an ideal met again is a dead end.
    fn first_within(&self, dag: &Dag, peak: u64, cap: usize) -> Option<Vec<u32>> {
        let (mut arena, mut trail) = (Arena::new(dag), Trail::new(self.initial));
        if self.len() == 0 {
            return Some(Vec::new());
        }
        let mut stack = vec![(0, self.by_growth(&arena, 0).into_iter())];
        while let Some((id, items)) = stack.last_mut() {
            let (id, Some(item)) = (*id, items.next()) else {
                stack.pop();
                continue;
            };
            if let Some((ideal, true)) =
                self.step((dag, &mut arena, &mut trail), id, item, peak + 1)
            {
                stack.push((ideal, self.by_growth(&arena, ideal).into_iter()));
            }
            if stack.len() > self.len() {
                return stack.last().map(|&(full, _)| trail.path(full));
            }
            if arena.len() > cap {
                return None;
            }
        }
        None
    }

    /// The items that can run next after ideal `id`: first what leaves least alive, then the lowest.
    fn by_growth(&self, arena: &Arena, id: usize) -> Vec<u32> {
        let growth = |&item: &u32| {
            let dead = self.dying(item, |u| arena.contains(id, u));
            self.stay[item as usize].cast_signed() - dead.cast_signed()
        };
        let mut items = arena.addable(id).to_vec();
        items.sort_by_cached_key(|item| (growth(item), *item));
        items
    }
}

#[cfg(test)]
mod tests;
