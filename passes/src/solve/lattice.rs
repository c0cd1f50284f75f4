//! Ideals of a DAG.
//!
//! An *ideal* (down-set) is a set of items that contains every predecessor of its members: exactly the sets of
//! items that can have run at some moment of some order. Ideals ordered by inclusion form a distributive
//! lattice; one step up adds one item. A contiguous pipeline stage is the difference of two ideals and an
//! execution order is a path from the empty ideal to the full one.

use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;
use thiserror::Error;

/// Why a DAG or its lattice could not be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LatticeError {
    /// An edge names an item that does not exist.
    #[error("edge {from} -> {to} names an item outside 0..{len}")]
    Range {
        /// Start of the edge.
        from: usize,
        /// End of the edge.
        to: usize,
        /// Number of items.
        len: usize,
    },
    /// The graph has a cycle; `item` lies on one or behind one.
    #[error("the graph has a cycle at or before item {item}")]
    Cycle {
        /// The lowest item that no order can reach.
        item: usize,
    },
    /// There are more ideals than the caller allowed.
    #[error("the graph has more than {cap} ideals")]
    TooMany {
        /// The cap given by the caller.
        cap: usize,
    },
}

/// A directed acyclic graph over items `0..len`, parallel edges merged, neighbours in index order.
#[derive(Clone, Debug)]
pub struct Dag {
    preds: Vec<Vec<u32>>,
    succs: Vec<Vec<u32>>,
    topo: Vec<u32>,
}

impl Dag {
    /// Builds the graph in O(V + E log E).
    ///
    /// # Errors
    /// [`LatticeError::Range`] or [`LatticeError::Cycle`].
    pub fn new(
        len: usize,
        edges: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<Self, LatticeError> {
        let mut list = Vec::new();
        for (from, to) in edges {
            if from >= len || to >= len {
                return Err(LatticeError::Range { from, to, len });
            }
            list.push((from as u32, to as u32));
        }
        list.sort_unstable();
        list.dedup();
        let mut preds = vec![Vec::new(); len];
        let mut succs = vec![Vec::new(); len];
        for (from, to) in list {
            preds[to as usize].push(from);
            succs[from as usize].push(to);
        }
        let topo = topological(&preds, &succs)?;
        Ok(Self { preds, succs, topo })
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.preds.len()
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.preds.is_empty()
    }

    /// Direct predecessors of `item`, ascending.
    #[must_use]
    pub fn preds(&self, item: usize) -> &[u32] {
        &self.preds[item]
    }

    /// Direct successors of `item`, ascending.
    #[must_use]
    pub fn succs(&self, item: usize) -> &[u32] {
        &self.succs[item]
    }

    /// The lexicographically smallest topological order.
    #[must_use]
    pub fn topological(&self) -> &[u32] {
        &self.topo
    }
}

fn topological(preds: &[Vec<u32>], succs: &[Vec<u32>]) -> Result<Vec<u32>, LatticeError> {
    let mut waiting: Vec<usize> = preds.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<Reverse<u32>> = (0..preds.len())
        .filter(|&v| waiting[v] == 0)
        .map(|v| Reverse(v as u32))
        .collect();
    let mut order = Vec::with_capacity(preds.len());
    while let Some(Reverse(v)) = ready.pop() {
        order.push(v);
        for &s in &succs[v as usize] {
            waiting[s as usize] -= 1;
            if waiting[s as usize] == 0 {
                ready.push(Reverse(s));
            }
        }
    }
    match waiting.iter().position(|&w| w > 0) {
        Some(item) => Err(LatticeError::Cycle { item }),
        None => Ok(order),
    }
}

/// Ideals under construction: an append-only, duplicate-free list of bit sets.
///
/// Id 0 is the empty ideal. A set costs `len / 64` words; finding one costs one hash look-up and one comparison.
#[derive(Debug)]
pub(super) struct Arena {
    words: usize,
    bits: Vec<u64>,
    hashes: Vec<u64>,
    index: FxHashMap<u64, u32>,
    free_start: Vec<usize>,
    free: Vec<u32>,
}

impl Arena {
    /// An arena that holds the empty ideal of `dag`.
    pub(super) fn new(dag: &Dag) -> Self {
        let words = dag.len().div_ceil(64).max(1);
        let free: Vec<u32> = (0..dag.len())
            .filter(|&v| dag.preds(v).is_empty())
            .map(|v| v as u32)
            .collect();
        let mut index = FxHashMap::default();
        index.insert(0, 0);
        Self {
            words,
            bits: vec![0; words],
            hashes: vec![0],
            index,
            free_start: vec![0, free.len()],
            free,
        }
    }

    /// Number of ideals held.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Items that can be added to ideal `id`, ascending.
    pub(super) fn addable(&self, id: usize) -> &[u32] {
        &self.free[self.free_start[id]..self.free_start[id + 1]]
    }

    /// Whether ideal `id` contains `item`.
    pub(super) fn contains(&self, id: usize, item: u32) -> bool {
        self.bits[id * self.words + item as usize / 64] >> (item % 64) & 1 != 0
    }

    /// The id of `id` plus the addable `item`, and whether it is new.
    pub(super) fn grow(&mut self, dag: &Dag, id: usize, item: u32) -> (usize, bool) {
        let hash = self.hashes[id] ^ mix(item);
        let fresh = self.len();
        let mut slot = hash;
        loop {
            match self.index.entry(slot) {
                Entry::Vacant(entry) => {
                    entry.insert(fresh as u32);
                    break;
                }
                Entry::Occupied(entry) => {
                    let other = *entry.get() as usize;
                    if differ_by(&self.bits, self.words, id, other, item) {
                        return (other, false);
                    }
                    slot = slot.wrapping_add(1);
                }
            }
        }
        self.hashes.push(hash);
        self.bits
            .extend_from_within(id * self.words..(id + 1) * self.words);
        self.bits[fresh * self.words + item as usize / 64] |= 1 << (item % 64);
        self.extend_addable(dag, id, item, fresh);
        (fresh, true)
    }

    fn extend_addable(&mut self, dag: &Dag, id: usize, item: u32, fresh: usize) {
        let from = self.free.len();
        for at in self.free_start[id]..self.free_start[id + 1] {
            if self.free[at] != item {
                self.free.push(self.free[at]);
            }
        }
        for &s in dag.succs(item as usize) {
            if dag
                .preds(s as usize)
                .iter()
                .all(|&p| self.contains(fresh, p))
            {
                self.free.push(s);
            }
        }
        self.free[from..].sort_unstable();
        self.free_start.push(self.free.len());
    }
}

/// Whether set `other` is set `id` plus `item`.
fn differ_by(bits: &[u64], words: usize, id: usize, other: usize, item: u32) -> bool {
    let a = &bits[id * words..(id + 1) * words];
    let b = &bits[other * words..(other + 1) * words];
    let at = item as usize / 64;
    a.iter().zip(b).enumerate().all(|(w, (x, y))| {
        if w == at {
            x | 1 << (item % 64) == *y
        } else {
            x == y
        }
    })
}

/// A fixed pseudo-random word per item (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).
fn mix(item: u32) -> u64 {
    let mut z = (u64::from(item) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One covering pair of the lattice: the item in which two neighbouring ideals differ, and the other ideal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The item added or removed.
    pub item: u32,
    /// The neighbouring ideal.
    pub ideal: u32,
}

/// All ideals of a DAG and their covering relation.
///
/// Ids ascend with size; among ideals of one size, with the order of discovery in index order. Id 0 is empty,
/// the last is full.
#[derive(Debug)]
pub struct Lattice {
    arena: Arena,
    up: Vec<Step>,
    down_start: Vec<usize>,
    down: Vec<Step>,
}

impl Lattice {
    /// Enumerates the ideals of `dag`: O(ideals x (width + len / 64)) time and memory.
    ///
    /// # Errors
    /// [`LatticeError::TooMany`] as soon as there are more than `cap`.
    pub fn enumerate(dag: &Dag, cap: usize) -> Result<Self, LatticeError> {
        let mut arena = Arena::new(dag);
        let mut up = Vec::new();
        let mut id = 0;
        while id < arena.len() {
            for at in arena.free_start[id]..arena.free_start[id + 1] {
                let item = arena.free[at];
                let (ideal, _) = arena.grow(dag, id, item);
                up.push(Step {
                    item,
                    ideal: ideal as u32,
                });
            }
            if arena.len() > cap {
                return Err(LatticeError::TooMany { cap });
            }
            id += 1;
        }
        let (down_start, down) = invert(&arena, &up);
        Ok(Self {
            arena,
            up,
            down_start,
            down,
        })
    }

    /// The lattice of a total order, whose ideals are its prefixes.
    ///
    /// # Errors
    /// [`LatticeError::Range`] or [`LatticeError::Cycle`] if `order` is not a permutation.
    pub fn chain(order: &[u32]) -> Result<Self, LatticeError> {
        let links = order.windows(2).map(|w| (w[0] as usize, w[1] as usize));
        Self::enumerate(&Dag::new(order.len(), links)?, order.len() + 1)
    }

    /// Number of ideals, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the empty ideal always exists")]
    pub fn len(&self) -> usize {
        self.arena.len()
    }

    /// Whether ideal `id` contains `item`.
    #[must_use]
    pub fn contains(&self, id: usize, item: u32) -> bool {
        self.arena.contains(id, item)
    }

    /// Steps that add one item to `id`, ascending by item.
    #[must_use]
    pub fn up(&self, id: usize) -> &[Step] {
        &self.up[self.arena.free_start[id]..self.arena.free_start[id + 1]]
    }

    /// Steps that remove one item from `id`, ascending by ideal.
    #[must_use]
    pub fn down(&self, id: usize) -> &[Step] {
        &self.down[self.down_start[id]..self.down_start[id + 1]]
    }

    /// The items of ideal `high` that are not in ideal `low`, ascending.
    #[must_use]
    pub fn difference(&self, low: usize, high: usize) -> Vec<u32> {
        let words = self.arena.words as u32;
        (0..words * 64)
            .filter(|&v| self.contains(high, v) && !self.contains(low, v))
            .collect()
    }
}

fn invert(arena: &Arena, up: &[Step]) -> (Vec<usize>, Vec<Step>) {
    let mut start = vec![0; arena.len() + 1];
    for step in up {
        start[step.ideal as usize + 1] += 1;
    }
    for id in 0..arena.len() {
        start[id + 1] += start[id];
    }
    let mut cursor = start.clone();
    let mut down = vec![Step { item: 0, ideal: 0 }; up.len()];
    for id in 0..arena.len() {
        for step in &up[arena.free_start[id]..arena.free_start[id + 1]] {
            let at = &mut cursor[step.ideal as usize];
            down[*at] = Step {
                item: step.item,
                ideal: id as u32,
            };
            *at += 1;
        }
    }
    (start, down)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lattice(len: usize, edges: &[(usize, usize)]) -> Lattice {
        Lattice::enumerate(&Dag::new(len, edges.iter().copied()).unwrap(), 1 << 20).unwrap()
    }

    #[test]
    fn counts_of_known_shapes() {
        assert_eq!(lattice(0, &[]).len(), 1);
        assert_eq!(lattice(5, &[]).len(), 32);
        assert_eq!(lattice(5, &[(0, 1), (1, 2), (2, 3), (3, 4)]).len(), 6);
        let two_chains: Vec<_> = (0..69).chain(70..109).map(|v| (v, v + 1)).collect();
        assert_eq!(lattice(110, &two_chains).len(), 71 * 41);
    }

    #[test]
    fn steps_are_inverse_and_sorted() {
        let l = lattice(5, &[(0, 2), (1, 2), (2, 3), (1, 4)]);
        for id in 0..l.len() {
            assert!(l.up(id).windows(2).all(|w| w[0].item < w[1].item));
            for s in l.up(id) {
                assert!(s.ideal as usize > id && !l.contains(id, s.item));
                assert!(l.down(s.ideal as usize).contains(&Step {
                    item: s.item,
                    ideal: id as u32
                }));
                assert_eq!(l.difference(id, s.ideal as usize), [s.item]);
            }
        }
        assert!(l.up(l.len() - 1).is_empty());
    }

    #[test]
    fn errors_are_values() {
        let dag = Dag::new(5, []).unwrap();
        assert_eq!(
            Lattice::enumerate(&dag, 31).unwrap_err(),
            LatticeError::TooMany { cap: 31 }
        );
        assert_eq!(
            Dag::new(2, [(0, 1), (1, 0)]).unwrap_err(),
            LatticeError::Cycle { item: 0 }
        );
        assert_eq!(
            Dag::new(2, [(0, 2)]).unwrap_err(),
            LatticeError::Range {
                from: 0,
                to: 2,
                len: 2
            }
        );
        assert!(Lattice::chain(&[1, 1]).is_err());
    }
}
