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
//! branches in proportion to the logarithm of the failures it has caused comes first (weights as in Boussemart et
//! al., ECAI 2004); restarts with growing node budgets let those weights take effect, and a restart that ends by
//! itself is a proof.
//!
//! Two neighbouring sections that the capacity leaves no gap in determine what happens between them: see
//! [`blocks::joined`] and [`Exact::align_swaps`].

use super::Buffer;
use super::blocks::{self, Block, Swap};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The branches of a node.
struct Choice {
    /// Blocks that can lie at `level`, in the order to try.
    blocks: Vec<u32>,
    level: u64,
    /// Whether leaving the level empty is not refuted yet.
    none: bool,
}

/// Search state; failure weights persist over calls.
pub(super) struct Exact<'a> {
    plain: Vec<Block>,
    blocks: Vec<Block>,
    buffers: usize,
    ranks: Vec<Vec<u32>>,
    /// Failures of the sections, as the strategy under way counts them; all are 1 between attempts.
    weight: Vec<u64>,
    /// The failures each strategy has counted.
    weights: Vec<Vec<u64>>,
    /// The ranking under way.
    rank: usize,
    capacity: u64,
    low: Vec<u64>,
    placed: Vec<bool>,
    /// Previous values of `low`, or [`PLACED`], newest last.
    trail: Vec<(u32, u64)>,
    swaps: Vec<Swap>,
    order: Vec<(u64, u32)>,
    floor: Vec<u64>,
    unplaced: Vec<u64>,
    options: Vec<u32>,
    ripe: Vec<bool>,
    attempt: usize,
    depth: usize,
    nodes: u64,
    stop: u64,
    halt: Option<&'a AtomicBool>,
}

impl<'a> Exact<'a> {
    /// Prepares the search: O(n log n). It ends as if the nodes were spent soon after `halt` becomes true.
    pub(super) fn new(buffers: &[Buffer], halt: Option<&'a AtomicBool>) -> Self {
        let plain = blocks::sections(buffers);
        let count = plain.iter().map(|b| b.last).max().unwrap_or(0);
        Self {
            buffers: buffers.len(),
            weight: vec![1; count],
            weights: Vec::new(),
            rank: 0,
            floor: vec![0; count],
            unplaced: vec![0; count],
            options: vec![0; count],
            ripe: vec![true; count],
            blocks: Vec::new(),
            ranks: Vec::new(),
            low: Vec::new(),
            placed: Vec::new(),
            swaps: Vec::new(),
            order: Vec::new(),
            trail: Vec::new(),
            capacity: 0,
            attempt: 0,
            depth: 0,
            nodes: 0,
            stop: 0,
            halt,
            plain,
        }
    }

    /// Nodes searched so far.
    pub(super) fn nodes(&self) -> u64 {
        self.nodes
    }

    /// Looks for an assignment within `capacity` in at most `budget` nodes.
    pub(super) fn fit(&mut self, capacity: u64, budget: u64) -> Outcome {
        self.capacity = capacity;
        self.blocks = blocks::joined(&self.plain, capacity);
        self.ranks = blocks::rankings(&self.blocks);
        let sets = self.ranks.len() + 1;
        self.weights.resize(sets, self.weight.clone());
        self.swaps = blocks::swaps(&self.blocks, capacity);
        self.low = vec![0; self.blocks.len()];
        self.placed = vec![false; self.blocks.len()];
        let last = self.nodes + budget;
        let all: Vec<u32> = (0..self.blocks.len() as u32).collect();
        let mut slice = FIRST_SLICE.max(self.blocks.len() as u64);
        self.attempt = 0;
        while self.nodes < last && !self.is_halted() {
            let long = if self.attempt % LONG == LONG - 1 {
                LONG as u64
            } else {
                1
            };
            self.stop = last.min(self.nodes + slice * long);
            self.low.fill(0);
            self.placed.fill(false);
            self.trail.clear();
            let set = self.strategy();
            std::mem::swap(&mut self.weight, &mut self.weights[set]);
            let end = self.solve(&all);
            std::mem::swap(&mut self.weight, &mut self.weights[set]);
            self.attempt += 1;
            slice += slice / 32;
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
            block.inputs.iter().for_each(|&input| offsets[input] = low);
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

    /// Chooses the ranking of the next attempt, and the failures it goes by: in turn those of all rankings and its own.
    /// What one ranking learns can help another, and can mislead it.
    fn strategy(&mut self) -> usize {
        self.rank = self.attempt / 2 % self.ranks.len();
        if self.attempt.is_multiple_of(2) {
            0
        } else {
            1 + self.rank
        }
    }

    fn is_halted(&self) -> bool {
        self.halt.is_some_and(|halt| halt.load(Ordering::Relaxed))
    }

    /// One node: places the connected component `part`.
    fn branch(&mut self, part: &[u32]) -> End {
        let look = self.nodes.is_multiple_of(INTERVAL);
        if self.nodes >= self.stop || self.depth == DEEPEST || look && self.is_halted() {
            return End::Spent;
        }
        self.nodes += 1;
        self.depth += 1;
        let end = self.expand(part);
        self.depth -= 1;
        end
    }

    fn expand(&mut self, part: &[u32]) -> End {
        let Some(choice) = self.examine(part) else {
            return End::Failed;
        };
        let mut rest = Vec::with_capacity(part.len());
        for &block in &choice.blocks {
            let mark = self.trail.len();
            self.place(block, part);
            self.placed[block as usize] = true;
            self.trail.push((block, PLACED));
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
            if low == PLACED {
                self.placed[block as usize] = false;
            } else {
                self.low[block as usize] = low;
            }
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
        let mine = self.blocks[block as usize].clone();
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
            let mine = self.blocks[block as usize].clone();
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
        self.align_swaps(first, last);
        self.floor[first..last].fill(u64::MAX);
        self.unplaced[first..last].fill(0);
        self.options[first..last].fill(0);
        self.ripe[first..last].fill(true);
        // From the top down, so that each section is checked above every level.
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(part.iter().map(|&b| (self.low[b as usize], b)));
        order.sort_unstable_by(|a, b| b.cmp(a));
        let fits = order.iter().all(|&(low, b)| self.stack(b, low));
        self.order = order;
        if !fits {
            return None;
        }
        for &b in part {
            let block = &self.blocks[b as usize];
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

    /// Adds a block below all those already counted; whether its sections still hold them.
    fn stack(&mut self, block: u32, low: u64) -> bool {
        let block = &self.blocks[block as usize];
        for t in block.first..block.last {
            self.floor[t] = low;
            self.unplaced[t] += block.size;
            if low + self.unplaced[t] > self.capacity {
                self.weight[t] += 1;
                return false;
            }
        }
        true
    }

    /// Where full neighbouring sections are filled to the same height, what ends and what begins between them
    /// takes the same places, so the lowest of both lie at the same offset.
    fn align_swaps(&mut self, first: usize, last: usize) {
        let from = self.swaps.partition_point(|s| s.section <= first);
        for at in from..self.swaps.len() {
            let swap = &self.swaps[at];
            if swap.section >= last {
                break;
            }
            let open = |side: &[u32]| {
                let mine = side.iter().filter(|&&b| !self.placed[b as usize]);
                mine.fold((0, u64::MAX), |(n, low), &b| {
                    (
                        n + self.blocks[b as usize].size,
                        low.min(self.low[b as usize]),
                    )
                })
            };
            let (ends, begins) = (open(&swap.ends), open(&swap.begins));
            if ends.0 != begins.0 || ends.0 == 0 || ends.1 == begins.1 {
                continue;
            }
            let level = ends.1.max(begins.1);
            let swap = self.swaps[at].clone();
            for b in swap.ends.into_iter().chain(swap.begins) {
                if !self.placed[b as usize] {
                    self.raise(b, level);
                }
            }
        }
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
                // Logarithmic, so that old failures fade against new ones.
                u64::from(u64::BITS - self.weight[t].leading_zeros())
            };
            let better = |(b, w, u): (u64, u64, usize)| {
                let (mine, its) = (
                    u128::from(branches) * u128::from(w),
                    u128::from(b) * u128::from(weight),
                );
                mine < its || mine == its && self.unplaced[t] > self.unplaced[u]
            };
            if best.is_none_or(better) {
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
        let rank = &self.ranks[self.rank];
        blocks.sort_unstable_by_key(|&b| rank[b as usize]);
        let none = level + self.unplaced[t] < self.capacity;
        blocks.dedup_by(|a, b| self.blocks[*a as usize].is_twin(&self.blocks[*b as usize]));
        Some(Choice {
            blocks,
            level,
            none,
        })
    }
}

/// Nodes of the first attempt, or one per block if that is more; each further attempt has 1/32 more.
const FIRST_SLICE: u64 = 500;

/// Every so many attempts one is that many times as long, which bounds the cost of a proof.
const LONG: usize = 16;

/// Nodes between two looks at the flag that ends the search.
const INTERVAL: u64 = 64;

/// Nested decisions of one component; deeper attempts are given up, which bounds the stack.
const DEEPEST: usize = 2_000;

/// Marks a placement on the trail.
const PLACED: u64 = u64::MAX;
