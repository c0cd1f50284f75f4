//! Buffers in the form the exact search needs: ranges of sections, joined where a capacity forces it.

use super::Buffer;
use smallvec::{SmallVec, smallvec};
use std::cmp::Reverse;

/// Live buffers that share one offset, over sections `first..last`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) size: u64,
    pub(super) align: u64,
    /// Steps of all its buffers.
    life: u64,
    /// Positions in the input.
    pub(super) inputs: SmallVec<[usize; 1]>,
}

impl Block {
    /// Whether both cover some section.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.first.max(other.first) < self.last.min(other.last)
    }

    /// Whether the two can be exchanged in any assignment.
    pub(super) fn is_twin(&self, other: &Self) -> bool {
        (self.first, self.last, self.size, self.align)
            == (other.first, other.last, other.size, other.align)
    }
}

/// Live buffers over maximal cliques, sorted by first section, then by input.
pub(super) fn sections(buffers: &[Buffer]) -> Vec<Block> {
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
                life: u64::from(b.end - b.start),
                inputs: smallvec![input],
            }
        })
        .collect();
    blocks.sort_by_key(|b| (b.first, b.inputs[0]));
    blocks
}

/// Orders in which to try the blocks of a section: fullest section reached, lifetime, area and size, in turn.
pub(super) fn rankings(blocks: &[Block]) -> Vec<Vec<u32>> {
    let total = totals(blocks);
    let life = |b: &Block| u128::from(b.life);
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

/// Bytes live in each section.
fn totals(blocks: &[Block]) -> Vec<u64> {
    let mut total = vec![0; blocks.iter().map(|b| b.last).max().unwrap_or(0)];
    for b in blocks {
        total[b.first..b.last].iter_mut().for_each(|t| *t += b.size);
    }
    total
}

/// What changes between two neighbouring full sections.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    /// The later section.
    pub(super) section: usize,
    /// Blocks whose last section is the earlier one.
    pub(super) ends: Vec<u32>,
    /// Blocks whose first section is the later one.
    pub(super) begins: Vec<u32>,
}

/// The changes between neighbouring sections that `capacity` leaves no gap in, by section.
pub(super) fn swaps(blocks: &[Block], capacity: u64) -> Vec<Swap> {
    let total = totals(blocks);
    let full = |t: &usize| total[t - 1] == capacity && total[*t] == capacity;
    let select = |f: &dyn Fn(&Block) -> bool| {
        (0..blocks.len() as u32)
            .filter(|&b| f(&blocks[b as usize]))
            .collect()
    };
    let swap = |section| Swap {
        section,
        ends: select(&|b| b.last == section),
        begins: select(&|b| b.first == section),
    };
    (1..total.len()).filter(full).map(swap).collect()
}

/// Joins blocks that every assignment within `capacity` puts at one offset: where two neighbouring sections are
/// both full and only one block ends and one begins between them, the second takes the place of the first.
pub(super) fn joined(blocks: &[Block], capacity: u64) -> Vec<Block> {
    let mut next: Vec<Option<usize>> = vec![None; blocks.len()];
    let mut is_joined = vec![false; blocks.len()];
    for swap in swaps(blocks, capacity) {
        if let ([a], [b]) = (&swap.ends[..], &swap.begins[..])
            && blocks[*a as usize].align == blocks[*b as usize].align
        {
            next[*a as usize] = Some(*b as usize);
            is_joined[*b as usize] = true;
        }
    }
    let mut out = Vec::new();
    for first in (0..blocks.len()).filter(|&i| !is_joined[i]) {
        let mut block = blocks[first].clone();
        let mut at = first;
        while let Some(follower) = next[at] {
            block.last = blocks[follower].last;
            block.life += blocks[follower].life;
            block.inputs.extend_from_slice(&blocks[follower].inputs);
            at = follower;
        }
        out.push(block);
    }
    out
}
