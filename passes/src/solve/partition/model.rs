//! The cost model in the form the search needs: dense adjacency, and bounds.

use super::{PartitionError, Problem, validate};
use crate::solve::lattice::{Dag, Lattice};

/// How a value's ends lie in the ordering, which decides what part of its cost is permanent while a stage grows
/// towards the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Every user is a successor of the producer.
    Forward,
    /// Every user is a predecessor of the producer, or the value comes from outside the pod.
    Backward,
    /// Neither.
    Mixed,
}

#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) producer: Option<u32>,
    pub(super) users: Vec<u32>,
    pub(super) cost: u64,
    pub(super) stash: u64,
    pub(super) flow: Flow,
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
pub(super) struct Touch {
    pub(super) value: u32,
    pub(super) produces: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) cycles: u64,
    pub(super) resident: u64,
    pub(super) workspace: u64,
    pub(super) host_cycles: u64,
    pub(super) host_only: bool,
    pub(super) touches: Vec<Touch>,
    pub(super) shared: Vec<u32>,
    /// The joint work that is this item's.
    pub(super) works: Vec<u32>,
    /// The joint work that this item asks for.
    pub(super) asks: Vec<u32>,
}

/// A checked problem: indices in range, users distinct, sums that cannot overflow.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    relays: Vec<Relay>,
    /// Bytes of shared blocks.
    pub(super) shared: Vec<u64>,
    /// Cycles of joint work.
    pub(super) joint: Vec<u64>,
    in_flight: Vec<u64>,
    pub(super) devices: usize,
    pub(super) hosts: usize,
    pub(super) memory_limit: Option<u64>,
}

/// What kind of device a stage is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One that pays for values and has a memory limit.
    Device,
    /// A host.
    Host,
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
        validate::check(problem)?;
        let dag = Dag::new(problem.items.len(), problem.ordering())?;
        let mut nodes: Vec<Node> = problem
            .items
            .iter()
            .map(|i| Node {
                cycles: i.cycles,
                resident: i.resident,
                workspace: i.workspace,
                host_cycles: i.host_cycles,
                host_only: i.host_only,
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
            hosts: problem.hosts,
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

    /// No split does better than the largest item where it is fastest, or than all items spread evenly.
    pub(super) fn trivial_bound(&self) -> u64 {
        let work: u64 = self.nodes.iter().map(Node::device_cycles).sum();
        let least = |n: &Node| match (self.hosts > 0, n.host_only) {
            (false, _) => n.cycles,
            (true, true) => n.host_cycles,
            (true, false) => n.cycles.min(n.host_cycles),
        };
        let largest = self.nodes.iter().map(least).max().unwrap_or(0);
        let relief = Relief::new(self);
        let mut low = largest;
        let mut high = largest.max(self.ceiling());
        while low < high {
            let bound = low + (high - low) / 2;
            if self.spread(&relief, bound) >= u128::from(work) {
                high = bound;
            } else {
                low = bound + 1;
            }
        }
        low
    }

    fn spread(&self, relief: &Relief, bound: u64) -> u128 {
        let time = u128::from(bound) * self.hosts as u128;
        u128::from(bound) * self.devices as u128 + u128::from(relief.at(time))
    }

    /// No device has a larger load: all cycles, and each value paid for once.
    pub(super) fn ceiling(&self) -> u64 {
        let cycles: u64 = self.nodes.iter().map(|n| n.cycles).sum();
        let relayed: u64 = self.relays.iter().map(|r| r.cost).sum();
        let cycles = cycles + self.joint.iter().sum::<u64>();
        let device = cycles + self.links.iter().map(|l| l.cost).sum::<u64>() + 2 * relayed;
        let hosted = || self.nodes.iter().map(|n| n.host_cycles).sum();
        device.max(if self.hosts > 0 { hosted() } else { 0 })
    }

    /// No device needs more memory than this.
    pub(super) fn memory_ceiling(&self) -> u64 {
        let resident: u64 = self.nodes.iter().map(|n| n.resident).sum();
        let workspace = self.nodes.iter().map(|n| n.workspace).max().unwrap_or(0);
        let stash: u64 = self.links.iter().map(|l| l.stash).sum();
        resident + workspace + self.shared.iter().sum::<u64>() + stash * self.copies(self.devices)
    }

    /// For each ideal, the cost of the relayed values that cross its border. O(ideals x relayed values of an item).
    pub(super) fn borders(&self, lattice: &Lattice) -> Vec<u64> {
        let mut touched = vec![Vec::new(); self.len()];
        for relay in &self.relays {
            for &end in &relay.ends {
                touched[end as usize].push(relay);
            }
        }
        let crosses = |relay: &Relay, id: usize| {
            let first = lattice.contains(id, relay.ends[0]);
            let rest = &relay.ends[1..];
            rest.iter().any(|&end| lattice.contains(id, end) != first)
        };
        let mut borders = vec![0; lattice.len()];
        for id in 1..lattice.len() {
            let step = lattice.down(id)[0];
            let relays = &touched[step.item as usize];
            let of = |id| {
                relays
                    .iter()
                    .filter(move |r| crosses(r, id))
                    .map(|r| r.cost)
            };
            let (before, now) = (of(step.ideal as usize).sum::<u64>(), of(id).sum::<u64>());
            borders[id] = borders[step.ideal as usize] + now - before;
        }
        borders
    }

    /// Whose each joint work is, and who asks for it.
    pub(super) fn asking(&self) -> Vec<(u32, Vec<u32>)> {
        let mut asking = vec![(0, Vec::new()); self.joint.len()];
        for (item, node) in (0..).zip(&self.nodes) {
            node.works
                .iter()
                .for_each(|&work| asking[work as usize].0 = item);
            node.asks
                .iter()
                .for_each(|&work| asking[work as usize].1.push(item));
        }
        asking
    }

    /// The joint work that an item does or asks for, each once.
    pub(super) fn joint_of(&self, item: u32) -> impl Iterator<Item = usize> {
        let node = &self.nodes[item as usize];
        let asks = node.asks.iter().filter(|work| !node.works.contains(work));
        node.works.iter().chain(asks).map(|&work| work as usize)
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
            let mut need = needs[step.ideal as usize] + node.device_cycles();
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

    /// Whether load and memory of a stage are sums of what its items and values contribute, so that they can be taken
    /// apart.
    pub(super) fn is_additive(&self) -> bool {
        let plain = self.relays.is_empty() && self.joint.is_empty();
        let resident = self.shared.is_empty()
            && self.links.iter().all(|link| link.stash == 0)
            && self.nodes.iter().all(|node| node.workspace == 0);
        plain && (resident || self.memory_limit.is_none())
    }

    /// Costs of the values between `item` and what lies outside `high`, and of those between it and `low`; none if
    /// there are values between those two sets. `high` is `low` and the item.
    pub(super) fn sides(
        &self,
        lattice: &Lattice,
        item: u32,
        low: usize,
        high: usize,
    ) -> Option<(u64, u64)> {
        let is_below = |&end: &u32| lattice.contains(low, end);
        let is_above = |end: &u32| !lattice.contains(high, *end);
        let spans =
            |link: &&Link| link.ends().any(|e| is_below(&e)) && link.ends().any(|e| is_above(&e));
        if self.links.iter().any(|link| spans(&link)) {
            return None;
        }
        let touches = &self.nodes[item as usize].touches;
        let mut links: Vec<u32> = touches.iter().map(|touch| touch.value).collect();
        links.sort_unstable();
        links.dedup();
        let (mut above, mut below) = (0, 0);
        for link in links.into_iter().map(|link| &self.links[link as usize]) {
            let side = if link.ends().any(|e| is_below(&e)) {
                &mut below
            } else {
                &mut above
            };
            *side += link.cost;
        }
        Some((above, below))
    }

    /// Cycles of one item; more than any bound where it cannot run.
    pub(super) fn cycles(&self, kind: Kind, item: u32) -> u64 {
        let node = &self.nodes[item as usize];
        match (kind, node.host_only) {
            (Kind::Host, _) => node.host_cycles,
            (Kind::Device, true) => u64::MAX / 2,
            (Kind::Device, false) => node.cycles,
        }
    }

    /// Bytes that stay with one item.
    pub(super) fn resident(&self, item: u32) -> u64 {
        self.nodes[item as usize].resident
    }

    /// For each ideal, the device cycles of its items.
    pub(super) fn work(&self, lattice: &Lattice) -> Vec<u64> {
        let mut work = vec![0u64; lattice.len()];
        for id in 1..lattice.len() {
            let step = lattice.down(id)[0];
            let node = &self.nodes[step.item as usize];
            work[id] = work[step.ideal as usize] + node.device_cycles();
        }
        work
    }
}

impl Link {
    /// Its producer and its users.
    fn ends(&self) -> impl Iterator<Item = u32> {
        self.users.iter().copied().chain(self.producer)
    }

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

impl Node {
    /// Cycles on a device; none for what only a host can run.
    fn device_cycles(&self) -> u64 {
        if self.host_only { 0 } else { self.cycles }
    }
}

/// What hosts can take off the devices.
#[derive(Clone, Debug)]
pub(super) struct Relief {
    /// Device cycles and host cycles of the items, the best exchange first; summed up.
    sums: Vec<(u64, u64)>,
}

impl Relief {
    /// O(items log items).
    pub(super) fn new(model: &Model) -> Self {
        let nodes = model.nodes.iter().filter(|_| model.hosts > 0);
        let mut items: Vec<(u64, u64)> = nodes
            .map(|n| (n.device_cycles(), n.host_cycles))
            .filter(|&(cycles, _)| cycles > 0)
            .collect();
        items.sort_unstable_by(|a, b| {
            let (left, right) = (
                u128::from(b.0) * u128::from(a.1),
                u128::from(a.0) * u128::from(b.1),
            );
            left.cmp(&right)
        });
        let mut sum = (0, 0);
        for item in &mut items {
            sum = (sum.0 + item.0, sum.1 + item.1);
            *item = sum;
        }
        Self { sums: items }
    }

    /// Device and host cycles of the item that hosts are best given last if they have `time` cycles: the rate at which
    /// more time would be worth it.
    pub(super) fn rate(&self, time: u128) -> (u64, u64) {
        let full = self.full(time);
        let before = full.checked_sub(1).map_or((0, 0), |at| self.sums[at]);
        let next = self.sums.get(full);
        next.map_or((0, 1), |next| (next.0 - before.0, next.1 - before.1))
    }

    /// Number of items that hosts can take whole.
    fn full(&self, time: u128) -> usize {
        let fits = |&(_, host): &(u64, u64)| u128::from(host) <= time;
        self.sums.partition_point(fits)
    }

    /// The most device cycles that hosts take off the devices in `time` cycles of theirs: the fractional knapsack.
    pub(super) fn at(&self, time: u128) -> u64 {
        let full = self.full(time);
        let before = full.checked_sub(1).map_or((0, 0), |at| self.sums[at]);
        let Some(&next) = self.sums.get(full) else {
            return before.0;
        };
        let (cycles, host) = (next.0 - before.0, next.1 - before.1);
        let part = u128::from(cycles) * (time - u128::from(before.1));
        before.0 + part.div_ceil(u128::from(host)) as u64
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
    let feedback = problem.values.iter().any(|v| v.feedback);
    let behind = (feedback && dag.len() <= MOST_CLASSIFIED).then(|| ancestors(dag));
    let mut links = Vec::new();
    for value in &problem.values {
        let producer = value.producer.map(|p| p as u32);
        let users: Vec<u32> = distinct(&value.users)
            .into_iter()
            .filter(|&u| Some(u) != producer)
            .collect();
        let flow = match (producer, &behind) {
            (None, _) => Flow::Backward,
            (Some(_), _) if !value.feedback => Flow::Forward,
            (Some(p), Some(behind)) => {
                let before = |a: u32, b: u32| behind[b as usize].contains(a as usize);
                if users.iter().all(|&u| before(u, p)) {
                    Flow::Backward
                } else if users.iter().all(|&u| before(p, u)) {
                    Flow::Forward
                } else {
                    Flow::Mixed
                }
            }
            (Some(_), None) => Flow::Mixed,
        };
        let is_moved = !value.relayed && !users.is_empty();
        let cost = if is_moved { value.cost } else { 0 };
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

/// With more items than this, values against the pipeline are not classified, which would take items^2 bits.
const MOST_CLASSIFIED: usize = 1 << 14;

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
