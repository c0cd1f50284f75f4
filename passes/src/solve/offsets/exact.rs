//! Exact search for an assignment within a capacity.
//!
//! Time is cut into the maximal cliques of the interval graph (*sections*), so a buffer covers a range of
//! sections. Every unplaced buffer has a lowest offset `low`, and only assignments in which every buffer rests on
//! offset 0 or on another buffer are considered: pushing buffers down turns any assignment into one of these.
//!
//! A node takes a section whose lowest unplaced buffers have nothing unplaced below them anywhere, and branches on
//! which of them lies at that level of the section, or none. Placing one lifts `low` of everything it meets;
//! placing none lifts `low` of all of them to the lowest top on which they could rest. A node fails when in some
//! section the unplaced bytes no longer fit between the lowest `low` and the capacity. Buffers that no longer
//! meet in time are searched as independent components. Among the eligible sections the one with the fewest
//! branches in proportion to the failures it has caused comes first (Boussemart et al., ECAI 2004); restarts
//! with growing node budgets let those weights take effect, and a restart that ends by itself is a proof.

use super::Buffer;
use std::cmp::Reverse;

/// Result of one capacity test.
pub(super) enum Outcome {
    /// Offsets within the capacity.
    Fits(Vec<u64>),
    /// There are none.
    Impossible,
    /// The node budget ran out.
    Spent,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    Spent,
}

/// A live buffer over sections `first..last`.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    last: usize,
    size: u64,
    align: u64,
    input: usize,
}

impl Block {
    fn meets(&self, other: &Self) -> bool {
        self.first.max(other.first) < self.last.min(other.last)
    }
}

/// The branches of a node.
struct Choice {
    /// Blocks that can lie at `level`, in the order to try.
    blocks: Vec<u32>,
    level: u64,
    /// Whether leaving the level empty is not refuted yet.
    none: bool,
}

/// Search state; failure weights persist over calls.
pub(super) struct Exact {
    blocks: Vec<Block>,
    buffers: usize,
    ranks: Vec<Vec<u32>>,
    weight: Vec<u64>,
    capacity: u64,
    low: Vec<u64>,
    /// Previous values of `low`, newest last.
    trail: Vec<(u32, u64)>,
    floor: Vec<u64>,
    unplaced: Vec<u64>,
    options: Vec<u32>,
    ripe: Vec<bool>,
    attempt: usize,
    nodes: u64,
    stop: u64,
}

impl Exact {
    /// Prepares the search: O(n² log n).
    pub(super) fn new(buffers: &[Buffer]) -> Self {
        let blocks = sections(buffers);
        let count = blocks.iter().map(|b| b.last).max().unwrap_or(0);
        let mut total = vec![0u64; count];
        for b in &blocks {
            total[b.first..b.last].iter_mut().for_each(|t| *t += b.size);
        }
        let ranks = rankings(&blocks, &total, buffers);
        Self {
            buffers: buffers.len(),
            ranks,
            weight: vec![1; count],
            capacity: 0,
            low: vec![0; blocks.len()],
            trail: Vec::new(),
            floor: vec![0; count],
            unplaced: vec![0; count],
            options: vec![0; count],
            ripe: vec![true; count],
            attempt: 0,
            nodes: 0,
            stop: 0,
            blocks,
        }
    }

    /// Nodes searched so far.
    pub(super) fn nodes(&self) -> u64 {
        self.nodes
    }

    /// Looks for an assignment within `capacity` in at most `budget` nodes.
    pub(super) fn fit(&mut self, capacity: u64, budget: u64) -> Outcome {
        self.capacity = capacity;
        let last = self.nodes + budget;
        let all: Vec<u32> = (0..self.blocks.len() as u32).collect();
        let mut slice = FIRST_SLICE;
        while self.nodes < last {
            self.stop = last.min(self.nodes + slice);
            self.low.fill(0);
            self.trail.clear();
            let end = self.solve(&all);
            self.attempt += 1;
            slice += slice / 4;
            match end {
                End::Done => return Outcome::Fits(self.offsets()),
                End::Failed => return Outcome::Impossible,
                End::Spent => {}
            }
        }
        Outcome::Spent
    }

    fn offsets(&self) -> Vec<u64> {
        let mut offsets = vec![0; self.buffers];
        for (block, &low) in self.blocks.iter().zip(&self.low) {
            offsets[block.input] = low;
        }
        offsets
    }

    /// Places `rest`, sorted by first section, component by component; on failure `low` is as before.
    fn solve(&mut self, rest: &[u32]) -> End {
        let mark = self.trail.len();
        let mut from = 0;
        while from < rest.len() {
            let mut reach = self.blocks[rest[from] as usize].last;
            let mut to = from + 1;
            while to < rest.len() && self.blocks[rest[to] as usize].first < reach {
                reach = reach.max(self.blocks[rest[to] as usize].last);
                to += 1;
            }
            let end = self.branch(&rest[from..to]);
            if end != End::Done {
                self.undo(mark);
                return end;
            }
            from = to;
        }
        End::Done
    }

    /// One node: places the connected component `part`.
    fn branch(&mut self, part: &[u32]) -> End {
        if self.nodes >= self.stop {
            return End::Spent;
        }
        self.nodes += 1;
        let Some(choice) = self.examine(part) else {
            return End::Failed;
        };
        let mut rest = Vec::with_capacity(part.len());
        for &block in &choice.blocks {
            let mark = self.trail.len();
            self.place(block, part);
            rest.clear();
            rest.extend(part.iter().copied().filter(|&b| b != block));
            match self.solve(&rest) {
                End::Failed => self.undo(mark),
                end => return end,
            }
        }
        if choice.none {
            let mark = self.trail.len();
            self.lift(&choice, part);
            match self.branch(part) {
                End::Failed => self.undo(mark),
                end => return end,
            }
        }
        End::Failed
    }

    fn undo(&mut self, mark: usize) {
        for (block, low) in self.trail.drain(mark..).rev() {
            self.low[block as usize] = low;
        }
    }

    fn raise(&mut self, block: u32, to: u64) {
        let at = block as usize;
        let to = to.next_multiple_of(self.blocks[at].align);
        if to > self.low[at] {
            self.trail.push((block, self.low[at]));
            self.low[at] = to;
        }
    }

    /// Fixes `block` at its `low`; all it meets in `part` goes above.
    fn place(&mut self, block: u32, part: &[u32]) {
        let mine = self.blocks[block as usize];
        let top = self.low[block as usize] + mine.size;
        for &other in part {
            if other != block && self.blocks[other as usize].meets(&mine) {
                self.raise(other, top);
            }
        }
    }

    /// Nothing lies at the level: its candidates rest on something else.
    fn lift(&mut self, choice: &Choice, part: &[u32]) {
        for &block in &choice.blocks {
            let mine = self.blocks[block as usize];
            let supports = part
                .iter()
                .filter(|&&o| o != block && self.blocks[o as usize].meets(&mine));
            let tops = supports.map(|&o| self.low[o as usize] + self.blocks[o as usize].size);
            let lowest = tops.min().unwrap_or(u64::MAX / 2);
            self.raise(block, lowest.max(choice.level + 1));
        }
    }

    /// Checks every section of `part` and picks the branches; `None` if some section cannot hold its blocks.
    fn examine(&mut self, part: &[u32]) -> Option<Choice> {
        let first = self.blocks[part[0] as usize].first;
        let last = part.iter().map(|&b| self.blocks[b as usize].last).max()?;
        self.floor[first..last].fill(u64::MAX);
        self.unplaced[first..last].fill(0);
        self.options[first..last].fill(0);
        self.ripe[first..last].fill(true);
        for &b in part {
            let block = self.blocks[b as usize];
            let low = self.low[b as usize];
            if low + block.size > self.capacity {
                self.weight[block.first] += 1;
                return None;
            }
            for t in block.first..block.last {
                self.floor[t] = self.floor[t].min(low);
                self.unplaced[t] += block.size;
            }
        }
        if let Some(t) = (first..last)
            .find(|&t| self.unplaced[t] > 0 && self.floor[t] + self.unplaced[t] > self.capacity)
        {
            self.weight[t] += 1;
            return None;
        }
        for &b in part {
            let block = self.blocks[b as usize];
            let low = self.low[b as usize];
            let clear = self.floor[block.first..block.last]
                .iter()
                .all(|&f| f == low);
            for t in block.first..block.last {
                if self.floor[t] == low {
                    self.options[t] += 1;
                    self.ripe[t] &= clear;
                }
            }
        }
        self.pick(part, first, last)
    }

    fn pick(&self, part: &[u32], first: usize, last: usize) -> Option<Choice> {
        let mut best: Option<(u64, u64, usize)> = None;
        for t in first..last {
            if self.unplaced[t] == 0 || !self.ripe[t] {
                continue;
            }
            let tight = self.floor[t] + self.unplaced[t] == self.capacity;
            let branches = u64::from(self.options[t]) + u64::from(!tight);
            let weight = if branches == 1 {
                u64::MAX >> 16
            } else {
                self.weight[t]
            };
            if best.is_none_or(|(b, w, _)| {
                u128::from(branches) * u128::from(w) < u128::from(b) * u128::from(weight)
            }) {
                best = Some((branches, weight, t));
            }
        }
        let (_, _, t) = best?;
        let level = self.floor[t];
        let here = |b: &u32| {
            let block = &self.blocks[*b as usize];
            block.first <= t && t < block.last && self.low[*b as usize] == level
        };
        let mut blocks: Vec<u32> = part.iter().copied().filter(here).collect();
        let rank = &self.ranks[self.attempt % self.ranks.len()];
        blocks.sort_unstable_by_key(|&b| rank[b as usize]);
        let none = level + self.unplaced[t] < self.capacity;
        let twin = |a: u32, b: u32| {
            let (a, b) = (&self.blocks[a as usize], &self.blocks[b as usize]);
            (a.first, a.last, a.size, a.align) == (b.first, b.last, b.size, b.align)
        };
        blocks.dedup_by(|a, b| twin(*a, *b));
        Some(Choice {
            blocks,
            level,
            none,
        })
    }
}

/// Nodes of the first attempt; each further attempt has a quarter more.
const FIRST_SLICE: u64 = 2_000;

/// Live buffers over maximal cliques, sorted by first section, then by input.
fn sections(buffers: &[Buffer]) -> Vec<Block> {
    let live: Vec<usize> = (0..buffers.len())
        .filter(|&i| buffers[i].is_live())
        .collect();
    // A clique is maximal where a start is followed by an end.
    let mut events: Vec<(u32, bool)> = live
        .iter()
        .flat_map(|&i| [(buffers[i].end, false), (buffers[i].start, true)])
        .collect();
    events.sort_unstable();
    let mut instants = Vec::new();
    for pair in events.windows(2) {
        if pair[0].1 && !pair[1].1 {
            instants.push(pair[0].0);
        }
    }
    let mut blocks: Vec<Block> = live
        .into_iter()
        .map(|input| {
            let b = &buffers[input];
            let first = instants.partition_point(|&t| t < b.start);
            let last = instants.partition_point(|&t| t < b.end);
            Block {
                first,
                last,
                size: b.size,
                align: b.align,
                input,
            }
        })
        .collect();
    blocks.sort_by_key(|b| (b.first, b.input));
    blocks
}

/// Orders in which to try the blocks of a section: fullest section reached, lifetime, area and size, in turn.
fn rankings(blocks: &[Block], total: &[u64], buffers: &[Buffer]) -> Vec<Vec<u32>> {
    let life = |b: &Block| u128::from(buffers[b.input].end - buffers[b.input].start);
    let size = |b: &Block| u128::from(b.size);
    let fullest = |b: &Block| u128::from(total[b.first..b.last].iter().copied().max().unwrap_or(0));
    let sorted = |key: &dyn Fn(&Block) -> [u128; 3]| {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        // The rest of the key keeps blocks that can be exchanged next to each other.
        order.sort_by_key(|&i| {
            (
                Reverse(key(&blocks[i])),
                blocks[i].first,
                blocks[i].last,
                blocks[i].align,
                i,
            )
        });
        let mut rank = vec![0; blocks.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(r, &i)| rank[i] = r as u32);
        rank
    };
    vec![
        sorted(&|b| [fullest(b), life(b), size(b)]),
        sorted(&|b| [life(b) * size(b), life(b), size(b)]),
        sorted(&|b| [life(b), size(b), 0]),
        sorted(&|b| [size(b), life(b), 0]),
    ]
}
