//! The cost model in the form the search needs: dense adjacency and a stage whose cost is kept incrementally.

use super::{PartitionError, Problem};
use crate::solve::lattice::{Dag, Lattice};

/// How a value's ends lie in the ordering, which decides what part of its cost is permanent while a stage grows
/// towards the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Every user is a successor of the producer.
    Forward,
    /// Every user is a predecessor of the producer, or the value comes from outside the pod.
    Backward,
    /// Neither.
    Mixed,
}

#[derive(Clone, Debug)]
struct Link {
    producer: Option<u32>,
    users: Vec<u32>,
    cost: u64,
    stash: u64,
    flow: Flow,
}

/// A value that is passed on from device to device: a stage pays for it where it crosses either of the stage's borders.
#[derive(Clone, Debug)]
struct Relay {
    /// Its producer and its users.
    ends: Vec<u32>,
    cost: u64,
}

/// One reference of an item to a value.
#[derive(Clone, Copy, Debug)]
struct Touch {
    value: u32,
    produces: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    cycles: u64,
    resident: u64,
    workspace: u64,
    touches: Vec<Touch>,
    shared: Vec<u32>,
    /// The joint work that is this item's.
    works: Vec<u32>,
    /// The joint work that this item asks for.
    asks: Vec<u32>,
}

/// A checked problem: indices in range, users distinct, sums that cannot overflow.
#[derive(Debug)]
pub(super) struct Model {
    nodes: Vec<Node>,
    links: Vec<Link>,
    relays: Vec<Relay>,
    shared: Vec<u64>,
    /// Cycles of joint work.
    joint: Vec<u64>,
    in_flight: Vec<u64>,
    pub(super) devices: usize,
    pub(super) memory_limit: Option<u64>,
}

/// Copies of the stash with `behind` non-empty devices behind.
pub(super) fn copies(in_flight: &[u64], behind: usize) -> u64 {
    in_flight
        .get(behind)
        .or(in_flight.last())
        .copied()
        .unwrap_or(0)
}

impl Model {
    /// Checks `problem` and builds its ordering.
    pub(super) fn new(problem: &Problem) -> Result<(Self, Dag), PartitionError> {
        check(problem)?;
        let ordered = problem.values.iter().filter(|v| !v.feedback || v.relayed);
        let implied = ordered.flat_map(|v| {
            let ends = |p, u| if v.feedback { (u, p) } else { (p, u) };
            let users = move |&p| v.users.iter().map(move |&u| ends(p, u));
            v.producer.iter().flat_map(users)
        });
        let edges = problem
            .edges
            .iter()
            .map(|e| (e.from, e.to))
            .chain(implied)
            .filter(|(a, b)| a != b);
        let dag = Dag::new(problem.items.len(), edges)?;
        let mut nodes: Vec<Node> = problem
            .items
            .iter()
            .map(|i| Node {
                cycles: i.cycles,
                resident: i.resident,
                workspace: i.workspace,
                ..Node::default()
            })
            .collect();
        let links = links(problem, &dag, &mut nodes);
        for (index, block) in problem.shared.iter().enumerate() {
            for user in distinct(&block.users) {
                nodes[user as usize].shared.push(index as u32);
            }
        }
        for (index, work) in problem.joint.iter().enumerate() {
            nodes[work.item].works.push(index as u32);
            for other in distinct(&work.with) {
                nodes[other as usize].asks.push(index as u32);
            }
        }
        let model = Self {
            nodes,
            links,
            relays: relays(problem),
            shared: problem.shared.iter().map(|b| b.bytes).collect(),
            joint: problem.joint.iter().map(|work| work.cycles).collect(),
            in_flight: problem.in_flight.clone(),
            devices: problem.devices,
            memory_limit: problem.memory_limit,
        };
        Ok((model, dag))
    }

    /// Number of items.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Copies of the stash with `behind` non-empty devices behind.
    pub(super) fn copies(&self, behind: usize) -> u64 {
        copies(&self.in_flight, behind)
    }

    /// No split does better than the largest item, or than all items spread evenly.
    pub(super) fn trivial_bound(&self) -> u64 {
        let total: u64 = self.nodes.iter().map(|n| n.cycles).sum();
        let largest = self.nodes.iter().map(|n| n.cycles).max().unwrap_or(0);
        largest.max(total.div_ceil(self.devices as u64))
    }

    /// No device has a larger load: all cycles, and each value paid for once.
    pub(super) fn ceiling(&self) -> u64 {
        let cycles: u64 = self.nodes.iter().map(|n| n.cycles).sum();
        let relayed: u64 = self.relays.iter().map(|r| r.cost).sum();
        let cycles = cycles + self.joint.iter().sum::<u64>();
        cycles + self.links.iter().map(|l| l.cost).sum::<u64>() + 2 * relayed
    }

    /// No device needs more memory than this.
    pub(super) fn memory_ceiling(&self) -> u64 {
        let resident: u64 = self.nodes.iter().map(|n| n.resident).sum();
        let workspace = self.nodes.iter().map(|n| n.workspace).max().unwrap_or(0);
        let stash: u64 = self.links.iter().map(|l| l.stash).sum();
        resident + workspace + self.shared.iter().sum::<u64>() + stash * self.copies(self.devices)
    }

    /// For each ideal, the cost of the relayed values that cross its border. O(ideals x relays).
    pub(super) fn borders(&self, lattice: &Lattice) -> Vec<u64> {
        let crosses = |relay: &&Relay, id: usize| {
            let first = lattice.contains(id, relay.ends[0]);
            let rest = relay.ends[1..].iter();
            rest.into_iter()
                .any(|&end| lattice.contains(id, end) != first)
        };
        let border = |id| {
            self.relays
                .iter()
                .filter(|r| crosses(r, id))
                .map(|r| r.cost)
                .sum()
        };
        (0..lattice.len()).map(border).collect()
    }

    /// What each device pays for relayed values.
    pub(super) fn relay_loads(&self, device_of: &[usize]) -> Vec<u64> {
        let mut loads = vec![0; self.devices];
        for relay in &self.relays {
            let devices = || relay.ends.iter().map(|&end| device_of[end as usize]);
            let (first, last) = (devices().min().unwrap_or(0), devices().max().unwrap_or(0));
            for device in first..last {
                loads[device] += relay.cost;
                loads[device + 1] += relay.cost;
            }
        }
        loads
    }

    /// For each ideal, a lower bound of the summed loads of the devices that run it: its cycles, and once each
    /// value that crosses its border (one end or the other pays inside).
    pub(super) fn needs(&self, lattice: &Lattice) -> Vec<u64> {
        let mut needs = vec![0u64; lattice.len()];
        for id in 1..lattice.len() {
            let step = lattice.down(id)[0];
            let node = &self.nodes[step.item as usize];
            let mut need = needs[step.ideal as usize] + node.cycles;
            for touch in &node.touches {
                let link = &self.links[touch.value as usize];
                need += if link.crosses(lattice, id) {
                    link.cost
                } else {
                    0
                };
                need -= if link.crosses(lattice, step.ideal as usize) {
                    link.cost
                } else {
                    0
                };
            }
            needs[id] = need;
        }
        needs
    }
}

impl Link {
    /// Whether some device inside ideal `id` pays for the value, whatever the split inside.
    fn crosses(&self, lattice: &Lattice, id: usize) -> bool {
        match self.producer {
            Some(p) if lattice.contains(id, p) => {
                self.users.iter().any(|&u| !lattice.contains(id, u))
            }
            _ => self.users.iter().any(|&u| lattice.contains(id, u)),
        }
    }
}

fn relays(problem: &Problem) -> Vec<Relay> {
    let relayed = problem.values.iter().filter(|v| v.relayed && v.cost > 0);
    let relay = |v: &super::Value| {
        let ends: Vec<usize> = v.users.iter().copied().chain([v.producer?]).collect();
        let ends = distinct(&ends);
        (ends.len() > 1).then_some(Relay { ends, cost: v.cost })
    };
    relayed.filter_map(relay).collect()
}

fn distinct(users: &[usize]) -> Vec<u32> {
    let mut users: Vec<u32> = users.iter().map(|&u| u as u32).collect();
    users.sort_unstable();
    users.dedup();
    users
}

fn links(problem: &Problem, dag: &Dag, nodes: &mut [Node]) -> Vec<Link> {
    let behind = problem
        .values
        .iter()
        .any(|v| v.feedback)
        .then(|| ancestors(dag));
    let mut links = Vec::new();
    for value in &problem.values {
        let producer = value.producer.map(|p| p as u32);
        let users: Vec<u32> = distinct(&value.users)
            .into_iter()
            .filter(|&u| Some(u) != producer)
            .collect();
        let flow = match (producer, &behind) {
            (None, _) => Flow::Backward,
            (Some(p), Some(behind)) if value.feedback => {
                let back = users
                    .iter()
                    .all(|&u| behind[p as usize].contains(u as usize));
                if back { Flow::Backward } else { Flow::Mixed }
            }
            _ => Flow::Forward,
        };
        let cost = if value.relayed { 0 } else { value.cost };
        if cost == 0 && value.stash == 0 {
            continue;
        }
        let index = links.len() as u32;
        if let Some(p) = producer {
            nodes[p as usize].touches.push(Touch {
                value: index,
                produces: true,
            });
        }
        for &user in &users {
            nodes[user as usize].touches.push(Touch {
                value: index,
                produces: false,
            });
        }
        links.push(Link {
            producer,
            users,
            cost,
            stash: value.stash,
            flow,
        });
    }
    links
}

fn ancestors(dag: &Dag) -> Vec<fixedbitset::FixedBitSet> {
    let mut sets = vec![fixedbitset::FixedBitSet::with_capacity(dag.len()); dag.len()];
    for &v in dag.topological() {
        let mut set = std::mem::take(&mut sets[v as usize]);
        for &p in dag.preds(v as usize) {
            set.union_with(&sets[p as usize]);
            set.insert(p as usize);
        }
        sets[v as usize] = set;
    }
    sets
}

fn check(problem: &Problem) -> Result<(), PartitionError> {
    let invalid = |text: String| Err(PartitionError::Invalid(text));
    let len = problem.items.len();
    if problem.devices == 0 {
        return invalid("devices is 0; at least one is needed".into());
    }
    if len > 1 << 20 || problem.devices > 1 << 16 {
        return invalid(format!(
            "{len} items on {} devices: at most 2^20 and 2^16",
            problem.devices
        ));
    }
    let references = problem
        .values
        .iter()
        .map(|v| ("value", &v.users, v.producer))
        .chain(
            problem
                .shared
                .iter()
                .map(|s| ("shared block", &s.users, None)),
        )
        .chain(
            problem
                .joint
                .iter()
                .map(|work| ("joint work", &work.with, Some(work.item))),
        );
    for (what, users, producer) in references {
        if let Some(bad) = users.iter().chain(&producer).find(|&&u| u >= len) {
            return invalid(format!("a {what} names item {bad}; there are {len} items"));
        }
    }
    if problem
        .values
        .iter()
        .any(|v| v.relayed && v.producer.is_none())
    {
        return invalid("a relayed value comes from outside".into());
    }
    if problem.in_flight.windows(2).any(|w| w[0] > w[1]) {
        return invalid("in_flight decreases with depth".into());
    }
    let wide = |list: &mut dyn Iterator<Item = u64>| list.map(u128::from).sum::<u128>();
    let time = wide(&mut problem.items.iter().map(|i| i.cycles))
        + wide(&mut problem.joint.iter().map(|work| work.cycles))
        + wide(&mut problem.values.iter().map(|v| v.cost)) * (2 * problem.devices as u128 + 2);
    let bytes = wide(&mut problem.items.iter().flat_map(|i| [i.resident, i.workspace]))
        + wide(&mut problem.shared.iter().map(|s| s.bytes))
        + wide(&mut problem.values.iter().map(|v| v.stash))
            .saturating_mul(u128::from(problem.in_flight.last().copied().unwrap_or(0)));
    if time > u128::from(u64::MAX / 4) || bytes > u128::from(u64::MAX / 4) {
        return invalid("the sum of all cycles or of all bytes exceeds 2^62".into());
    }
    Ok(())
}

/// Scalar state of a [`Stage`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// Cycles with communication.
    pub(super) load: u64,
    /// The part of `load` that no further item can take away.
    pub(super) committed: u64,
    resident: u64,
    stash: u64,
    workspace: u64,
}

impl Totals {
    /// An empty stage whose upper border relayed values of that cost cross.
    pub(super) fn passing(border: u64) -> Self {
        Totals {
            load: border,
            committed: border,
            ..Totals::default()
        }
    }

    /// The totals once the stage ends at a lower border of that cost.
    pub(super) fn with_border(self, border: u64) -> Self {
        Totals {
            load: self.load + border,
            ..self
        }
    }

    /// Bytes with `copies` of the stash; never falls as a stage grows.
    pub(super) fn memory(&self, copies: u64) -> u64 {
        self.resident + self.workspace + self.stash * copies
    }
}

/// A stage that grows from a fixed upper ideal towards the sources, one maximal item at a time.
///
/// [`add`](Stage::add) and [`remove`](Stage::remove) cost O(references of the item) and nest like brackets.
#[derive(Debug)]
pub(super) struct Stage<'m> {
    model: &'m Model,
    produced: Vec<bool>,
    users: Vec<u32>,
    holders: Vec<u32>,
    works: Vec<bool>,
    asks: Vec<u32>,
}

impl<'m> Stage<'m> {
    /// The empty stage.
    pub(super) fn new(model: &'m Model) -> Self {
        let links = model.links.len();
        Self {
            model,
            produced: vec![false; links],
            users: vec![0; links],
            holders: vec![0; model.shared.len()],
            works: vec![false; model.joint.len()],
            asks: vec![0; model.joint.len()],
        }
    }

    /// Cycles of `item` alone.
    pub(super) fn cycles(&self, item: u32) -> u64 {
        self.model.nodes[item as usize].cycles
    }

    /// Adds `item`, whose successors must all be in the stage or beyond it, and updates `totals`.
    pub(super) fn add(&mut self, item: u32, totals: &mut Totals) {
        let node = &self.model.nodes[item as usize];
        totals.load += node.cycles;
        totals.committed += node.cycles;
        totals.resident += node.resident;
        totals.workspace = totals.workspace.max(node.workspace);
        for &touch in &node.touches {
            self.attach(touch, totals);
        }
        for &block in &node.shared {
            let holders = &mut self.holders[block as usize];
            totals.resident += if *holders == 0 {
                self.model.shared[block as usize]
            } else {
                0
            };
            *holders += 1;
        }
        let mut joint = 0;
        for &work in &node.asks {
            let work = work as usize;
            self.asks[work] += 1;
            let first = self.asks[work] == 1 && self.works[work];
            joint += if first { self.model.joint[work] } else { 0 };
        }
        for &work in &node.works {
            let work = work as usize;
            self.works[work] = true;
            joint += if self.asks[work] > 0 {
                self.model.joint[work]
            } else {
                0
            };
        }
        totals.load += joint;
        totals.committed += joint;
    }

    fn attach(&mut self, touch: Touch, totals: &mut Totals) {
        let index = touch.value as usize;
        let link = &self.model.links[index];
        let (inside, all) = (self.users[index], link.users.len() as u32);
        if inside == 0 && !self.produced[index] {
            totals.stash += link.stash;
        }
        if touch.produces {
            totals.load -= if inside > 0 { link.cost } else { 0 };
            if inside < all {
                totals.load += link.cost;
                totals.committed += if link.flow == Flow::Forward {
                    link.cost
                } else {
                    0
                };
            }
            self.produced[index] = true;
            return;
        }
        self.users[index] += 1;
        if self.produced[index] {
            totals.load -= if inside + 1 == all { link.cost } else { 0 };
        } else if inside == 0 {
            totals.load += link.cost;
            totals.committed += if link.flow == Flow::Backward {
                link.cost
            } else {
                0
            };
        }
    }

    /// Takes back the latest [`add`](Stage::add); the caller restores its totals.
    pub(super) fn remove(&mut self, item: u32) {
        let node = &self.model.nodes[item as usize];
        for touch in &node.touches {
            if touch.produces {
                self.produced[touch.value as usize] = false;
            } else {
                self.users[touch.value as usize] -= 1;
            }
        }
        for &block in &node.shared {
            self.holders[block as usize] -= 1;
        }
        for &work in &node.asks {
            self.asks[work as usize] -= 1;
        }
        for &work in &node.works {
            self.works[work as usize] = false;
        }
    }
}
