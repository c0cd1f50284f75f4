//! From operators to the items of the engine.
//!
//! The steps and their order are those of the published exact solver, since they decide which placements there are:
//!
//! 1. The nodes of a colour class become one item; a node without a class is its own.
//! 2. A class of backward nodes alone gets a forward part that takes no time, and forward edges that mirror the
//!    edges between it and other backward classes.
//! 3. Items whose forward parts now lie on a cycle become one.
//! 4. As long as there is one, an item that takes no time and whose forward part has a single edge, to another
//!    item's forward part, joins that item.
//!
//! Step 1 to 3 keep every contiguous placement. Step 4 gives up those that separate such an item (typically a weight)
//! from its only reader.

use std::collections::{BTreeSet, VecDeque};

use lxpod_passes::solve::partition::Problem;

use super::{Instance, scale};
use crate::{Error, Result};
use std::path::Path;

/// Times below this are no time, as in the published solver.
const NO_TIME: f64 = 1e-6;

/// An instance in the engine's terms.
#[derive(Clone, Debug)]
pub struct Contracted {
    /// The engine's problem; devices as in the instance.
    pub problem: Problem,
    /// The item of each node.
    pub item_of: Vec<usize>,
    /// Engine cycles per unit of the file's time: a power of two.
    pub time_scale: f64,
    /// Engine bytes per byte: a power of two.
    pub size_scale: f64,
}

impl Contracted {
    /// The device of each node, in file order, for a device of each item.
    #[must_use]
    pub fn assignment(&self, device_of: &[usize]) -> Vec<usize> {
        self.item_of.iter().map(|&item| device_of[item]).collect()
    }
}

impl Instance {
    /// The instance in the engine's terms. Times become integers at a resolution of at most 2^-50 of their sum.
    ///
    /// # Errors
    /// There is no device, a node that nothing can run, or the sums are beyond the range of numbers.
    pub fn contract(&self, path: &Path) -> Result<Contracted> {
        let mut classes = Classes::of(self);
        let orphans = classes.orphans(self);
        let mirrored = classes.mirrored(self, &orphans);
        classes.join_cycles(&self.forward_edges(), &mirrored);
        classes.join_idle(self, &mirrored);
        let (item_of, count) = classes.numbered();
        let mut edges: BTreeSet<(usize, usize)> = BTreeSet::new();
        for (from, to) in self.forward_edges() {
            edges.insert((item_of[from], item_of[to]));
        }
        for &(from, to) in &mirrored {
            edges.insert((item_of[from], item_of[to]));
        }
        edges.retain(|(from, to)| from != to);
        scale::problem(self, item_of, count, &edges)
            .map_err(|(field, problem, help)| Error::invalid(path, field, problem, help))
    }

    fn forward_edges(&self) -> Vec<(usize, usize)> {
        let forward = |&&(_, to): &&(usize, usize)| !self.nodes[to].backward;
        self.edges.iter().filter(forward).copied().collect()
    }
}

/// A partition of the nodes, as a union-find forest.
struct Classes {
    parent: Vec<usize>,
}

impl Classes {
    /// Step 1.
    fn of(instance: &Instance) -> Self {
        let mut first = rustc_hash::FxHashMap::default();
        let class = |(at, node): (usize, &super::Node)| match node.colour {
            Some(colour) => *first.entry(colour).or_insert(at),
            None => at,
        };
        let parent = instance.nodes.iter().enumerate().map(class).collect();
        Classes { parent }
    }

    fn find(&mut self, node: usize) -> usize {
        let mut root = node;
        while self.parent[root] != root {
            root = self.parent[root];
        }
        let mut at = node;
        while self.parent[at] != root {
            at = std::mem::replace(&mut self.parent[at], root);
        }
        root
    }

    /// The smaller root becomes the root of both.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b)] = a.min(b);
    }

    fn roots(&mut self) -> Vec<usize> {
        (0..self.parent.len()).map(|node| self.find(node)).collect()
    }

    /// By root, whether a class has backward nodes alone.
    fn orphans(&mut self, instance: &Instance) -> Vec<bool> {
        let mut orphan = vec![true; self.parent.len()];
        for (root, node) in self.roots().into_iter().zip(&instance.nodes) {
            orphan[root] &= node.backward;
        }
        orphan
    }

    /// Step 2: the mirrored edges, between roots.
    fn mirrored(&mut self, instance: &Instance, orphan: &[bool]) -> BTreeSet<(usize, usize)> {
        let mut mirrored = BTreeSet::new();
        for &(from, to) in &instance.edges {
            let backward = instance.nodes[from].backward && instance.nodes[to].backward;
            let (from, to) = (self.find(from), self.find(to));
            if backward && from != to && (orphan[from] || orphan[to]) {
                mirrored.insert((to, from));
            }
        }
        mirrored
    }

    /// Step 3: strongly connected components become one class (Tarjan's algorithm, without recursion).
    fn join_cycles(&mut self, forward: &[(usize, usize)], mirrored: &BTreeSet<(usize, usize)>) {
        let len = self.parent.len();
        let mut out = vec![Vec::new(); len];
        for &(from, to) in forward.iter().chain(mirrored) {
            let (from, to) = (self.find(from), self.find(to));
            out[from].push(to);
        }
        const NEW: usize = usize::MAX;
        let (mut index, mut low) = (vec![NEW; len], vec![0; len]);
        let (mut open, mut is_open) = (Vec::new(), vec![false; len]);
        let mut clock = 0;
        for root in 0..len {
            if index[root] != NEW {
                continue;
            }
            let mut path = vec![(root, 0)];
            while let Some((at, cursor)) = path.last_mut() {
                let at = *at;
                if *cursor == 0 && index[at] == NEW {
                    (index[at], low[at]) = (clock, clock);
                    clock += 1;
                    open.push(at);
                    is_open[at] = true;
                }
                if let Some(&next) = out[at].get(*cursor) {
                    *cursor += 1;
                    if index[next] == NEW {
                        path.push((next, 0));
                    } else if is_open[next] {
                        low[at] = low[at].min(index[next]);
                    }
                    continue;
                }
                path.pop();
                if let Some(&(before, _)) = path.last() {
                    low[before] = low[before].min(low[at]);
                }
                if low[at] == index[at] {
                    while let Some(member) = open.pop() {
                        is_open[member] = false;
                        self.join(member, at);
                        if member == at {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Step 4, from the first such item on; each joining can make its only neighbour the next.
    fn join_idle(&mut self, instance: &Instance, mirrored: &BTreeSet<(usize, usize)>) {
        let len = self.parent.len();
        let roots = self.roots();
        let mut time = vec![[0.0f64; 3]; len];
        let mut crosses = vec![false; len];
        for (&root, node) in roots.iter().zip(&instance.nodes) {
            if node.backward {
                time[root][2] += node.time + node.host_time;
            } else {
                time[root][0] += node.time;
                time[root][1] += node.host_time;
            }
        }
        // An edge of the file and a mirrored one count apart.
        let mut edges: BTreeSet<(usize, usize, bool)> = BTreeSet::new();
        for &(from, to) in &instance.edges {
            if !instance.nodes[from].backward && instance.nodes[to].backward {
                crosses[roots[from]] = true;
            }
            if !instance.nodes[to].backward && roots[from] != roots[to] {
                edges.insert((roots[from], roots[to], false));
            }
        }
        for &(from, to) in mirrored {
            if roots[from] != roots[to] {
                edges.insert((roots[from], roots[to], true));
            }
        }
        let mut near = vec![Vec::new(); len];
        let mut degree = vec![0usize; len];
        for &(from, to, _) in &edges {
            near[from].push(to);
            near[to].push(from);
            degree[from] += 1;
            degree[to] += 1;
        }
        let mut is_gone = vec![false; len];
        let idle = |root: usize, degree: &[usize]| {
            degree[root] == 1 && !crosses[root] && time[root].iter().all(|&t| t < NO_TIME)
        };
        let mut queue: VecDeque<usize> = (0..len)
            .filter(|&n| roots[n] == n && idle(n, &degree))
            .collect();
        while let Some(at) = queue.pop_front() {
            let only = near[at].iter().copied().find(|&n| !is_gone[n]);
            let Some(only) = only.filter(|_| degree[at] == 1) else {
                continue;
            };
            is_gone[at] = true;
            degree[at] = 0;
            degree[only] -= 1;
            self.join(at, only);
            if idle(only, &degree) {
                queue.push_back(only);
            }
        }
    }

    /// The item of each node, items numbered in the order of their first nodes; and how many there are.
    fn numbered(&mut self) -> (Vec<usize>, usize) {
        let mut number = vec![usize::MAX; self.parent.len()];
        let mut count = 0;
        let of = |root: usize| {
            if number[root] == usize::MAX {
                number[root] = count;
                count += 1;
            }
            number[root]
        };
        let items = self.roots().into_iter().map(of).collect();
        (items, count)
    }
}
