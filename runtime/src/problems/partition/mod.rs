//! Device placement problems of Tarnawski et al., *Efficient algorithms for device placement of DNN graph
//! operators*, NeurIPS 2020.
//!
//! # Format
//! ```json
//! {"maxSizePerFPGA": 1e9, "maxFPGAs": 6, "maxCPUs": 1,
//!  "nodes": [{"id": 0, "supportedOnFpga": true, "cpuLatency": 10.5, "fpgaLatency": 1.5,
//!             "isBackwardNode": false, "colorClass": 3, "size": 4096.0}],
//!  "edges": [{"sourceId": 0, "destId": 1, "cost": 0.25}]}
//! ```
//! `colorClass` and `size` may be absent; other members are ignored. An edge's cost is the time to move its
//! source's result, so it is the same on all edges of one source.
//!
//! # Problem
//! Nodes of one colour class share a device. The load of an accelerator is the sum of `fpgaLatency` and, for
//! each node on one side of its border with an edge across it, once the cost; that of a CPU is the sum of
//! `cpuLatency`. Sizes on an accelerator sum up to at most `maxSizePerFPGA`. The largest load is minimised among
//! placements in which the forward nodes of each device are *contiguous*, the difference of two down-sets;
//! backward nodes ride along with their colour class. [`contract`](Instance::contract) says which down-sets.

mod contract;
mod scale;
mod split;
#[cfg(test)]
mod tests;

use std::path::Path;

use rustc_hash::{FxHashMap, FxHashSet};

pub use contract::Contracted;
pub use split::Split;

use super::fields::{Field, parse, read_text};
use crate::Result;

/// A problem as its file states it. Nodes are numbered in file order.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Number of accelerators: devices `0..accelerators`.
    pub accelerators: usize,
    /// Number of CPUs: the devices behind the accelerators.
    pub hosts: usize,
    /// Bytes of an accelerator.
    pub memory_limit: f64,
    /// The operators.
    pub nodes: Vec<Node>,
    /// Pairs of nodes, the second of which reads the first's result.
    pub edges: Vec<(usize, usize)>,
}

/// One operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name in the file.
    pub id: i64,
    /// Whether an accelerator can run it.
    pub accelerated: bool,
    /// Time on an accelerator.
    pub time: f64,
    /// Time on a CPU.
    pub host_time: f64,
    /// Time to move its result to or from an accelerator.
    pub cost: f64,
    /// Bytes on an accelerator.
    pub size: f64,
    /// Whether it belongs to the backward pass.
    pub backward: bool,
    /// Nodes of one class share a device.
    pub colour: Option<i64>,
}

/// What each device of a placement carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Loads {
    /// Time, in the file's unit.
    pub time: Vec<f64>,
    /// Bytes.
    pub bytes: Vec<f64>,
}

impl Loads {
    /// The largest load.
    #[must_use]
    pub fn objective(&self) -> f64 {
        self.time.iter().copied().fold(0.0, f64::max)
    }
}

/// More devices than this are refused.
const MOST_DEVICES: usize = 1 << 12;

impl Instance {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is not of the format, or states no problem: unknown or repeated ids, numbers that
    /// are negative or not finite, costs that differ on the edges of one source, edges from the backward pass to the
    /// forward pass, a cycle.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_text(path)?)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Instance::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let document = parse(path, text)?;
        let root = Field::root(path, &document);
        let list = root.member("nodes")?;
        let nodes = list.entries()?.map(|field| node(&field));
        let mut instance = Instance {
            accelerators: root.member("maxFPGAs")?.count(MOST_DEVICES)?,
            hosts: root.member("maxCPUs")?.count(MOST_DEVICES)?,
            memory_limit: root.member("maxSizePerFPGA")?.amount()?,
            nodes: nodes.collect::<Result<_>>()?,
            edges: Vec::new(),
        };
        let mut by_id = FxHashMap::default();
        for (at, field) in list.entries()?.enumerate() {
            let id = instance.nodes[at].id;
            if by_id.insert(id, at).is_some() {
                let help = "give every node its own id";
                return Err(field.error(format!("has the id {id} of an earlier node"), help));
            }
        }
        instance.read_edges(&root.member("edges")?, &by_id)?;
        if let Some(at) = instance.on_cycle() {
            let id = instance.nodes[at].id;
            let problem = format!("form a cycle; the node with id {id} lies on one or behind one");
            let help = "remove the edge that closes it; operators form a DAG";
            return Err(root.member("edges")?.error(problem, help));
        }
        Ok(instance)
    }

    fn read_edges(&mut self, list: &Field<'_>, by_id: &FxHashMap<i64, usize>) -> Result<()> {
        let mut cost: Vec<Option<f64>> = vec![None; self.nodes.len()];
        let mut seen = FxHashSet::default();
        for edge in list.entries()? {
            let end = |name| {
                let field = edge.member(name)?;
                let id = field.id()?;
                let unknown = || {
                    let problem = format!("is {id}, which is no node's id");
                    field.error(problem, "name the id of an entry of `nodes`")
                };
                by_id.get(&id).copied().ok_or_else(unknown)
            };
            let (from, to) = (end("sourceId")?, end("destId")?);
            if self.nodes[from].backward && !self.nodes[to].backward {
                let problem = "goes from a backward node to a forward node";
                return Err(edge.error(problem, "turn it round, or mark both ends alike"));
            }
            let field = edge.member("cost")?;
            let own = field.amount()?;
            let first = *cost[from].get_or_insert(own);
            if (first - own).abs() > 1e-6 {
                let id = self.nodes[from].id;
                let problem = format!("is {own}, but {first} on an earlier edge from node {id}");
                let help = "a node's result costs the same wherever it goes";
                return Err(field.error(problem, help));
            }
            self.nodes[from].cost = first;
            if seen.insert((from, to)) {
                self.edges.push((from, to));
            }
        }
        Ok(())
    }

    /// A node on a cycle or behind one.
    fn on_cycle(&self) -> Option<usize> {
        let mut waiting = vec![0usize; self.nodes.len()];
        let mut out = vec![Vec::new(); self.nodes.len()];
        for &(from, to) in &self.edges {
            waiting[to] += 1;
            out[from].push(to);
        }
        let mut ready: Vec<usize> = (0..waiting.len()).filter(|&n| waiting[n] == 0).collect();
        while let Some(node) = ready.pop() {
            for &to in &out[node] {
                waiting[to] -= 1;
                if waiting[to] == 0 {
                    ready.push(to);
                }
            }
        }
        waiting.iter().position(|&left| left > 0)
    }

    /// What each device carries under a placement, which gives a device below `accelerators + hosts` per node.
    /// Plain sums over sets of the file's nodes and edges: nothing of the contraction or the engine.
    ///
    /// # Panics
    /// If `device_of` is no such placement.
    #[must_use]
    pub fn evaluate(&self, device_of: &[usize]) -> Loads {
        assert_eq!(device_of.len(), self.nodes.len(), "one device per node");
        let devices = self.accelerators + self.hosts;
        let mut loads = Loads {
            time: vec![0.0; devices],
            bytes: vec![0.0; devices],
        };
        for (node, &device) in self.nodes.iter().zip(device_of) {
            let host = device >= self.accelerators;
            loads.time[device] += if host { node.host_time } else { node.time };
            loads.bytes[device] += node.size;
        }
        let mut paid = FxHashSet::default();
        for &(from, to) in &self.edges {
            let ends = [device_of[from], device_of[to]];
            for device in ends.into_iter().filter(|_| ends[0] != ends[1]) {
                if device < self.accelerators && paid.insert((from, device)) {
                    loads.time[device] += self.nodes[from].cost;
                }
            }
        }
        loads
    }
}

fn node(field: &Field<'_>) -> Result<Node> {
    let optional = |name| field.find(name);
    Ok(Node {
        id: field.member("id")?.id()?,
        accelerated: field.member("supportedOnFpga")?.flag()?,
        time: field.member("fpgaLatency")?.amount()?,
        host_time: field.member("cpuLatency")?.amount()?,
        cost: 0.0,
        size: optional("size")?.map_or(Ok(0.0), |size| size.amount())?,
        backward: field.member("isBackwardNode")?.flag()?,
        colour: optional("colorClass")?
            .map(|class| class.id())
            .transpose()?,
    })
}
