//! Memory offset assignment for buffers with fixed lifetimes.
//!
//! # Problem
//! Each buffer gets a byte offset, a multiple of its alignment, such that buffers whose lifetimes meet do not
//! overlap. Minimise the peak, the largest end of a buffer, or find any assignment within a capacity
//! (strongly NP-hard: Garey and Johnson, problem SR2).
//!
//! # Method
//! A portfolio of greedy orders with first fit and best fit comes first; where its peak equals the largest number
//! of live bytes it is optimal. Otherwise the exact search of `exact.rs` tests capacities, each component of
//! buffers connected in time on its own.
//!
//! # Ties
//! The first assignment found, in a fixed order of greedy rules and search nodes: the same input always gives
//! the same offsets.

mod blocks;
mod exact;
mod greedy;
#[cfg(test)]
mod tests;

use exact::Outcome;
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// A block of memory live during steps `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Bytes.
    pub size: u64,
    /// First step at which it is live.
    pub start: u32,
    /// First step at which it no longer is; at most `start` means never live, and the offset is 0.
    pub end: u32,
    /// The offset is a multiple of this; at least 1.
    pub align: u64,
}

impl Buffer {
    /// Whether both are live at some step.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    fn is_live(&self) -> bool {
        self.start < self.end && self.size > 0
    }
}

/// Bounds on the work.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Stop at the first assignment whose peak is at most this; `None` minimises.
    pub capacity: Option<u64>,
    /// Nodes of the exact search over all capacities tried; 0 turns it off.
    pub nodes: u64,
    /// Ends the search as if the nodes were spent, soon after it becomes true.
    pub stop: Option<&'a AtomicBool>,
}

impl Default for Limits<'_> {
    /// Minimise with two million nodes (some seconds).
    fn default() -> Self {
        Self {
            capacity: None,
            nodes: 2_000_000,
            stop: None,
        }
    }
}

/// Offsets and what is known about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Byte offset of each buffer, in input order.
    pub offsets: Vec<u64>,
    /// The largest end of a buffer.
    pub peak: u64,
    /// No assignment has a smaller peak. At least the largest number of live bytes, and more where the search
    /// proved more.
    pub lower_bound: u64,
    /// `peak == lower_bound`.
    pub optimal: bool,
}

/// Why there is no assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OffsetError {
    /// An alignment of zero.
    #[error("buffer {0} has alignment 0; use 1 for none")]
    Alignment(usize),
    /// The sum of all sizes and alignments does not fit.
    #[error("the sum of all buffer sizes and alignments exceeds 2^62")]
    Overflow,
}

/// The largest number of bytes live at one step: a lower bound of every peak. O(n log n).
#[must_use]
pub fn max_live(buffers: &[Buffer]) -> u64 {
    let live = buffers.iter().filter(|b| b.is_live());
    let mut events: Vec<(u32, bool, u64)> = live
        .flat_map(|b| [(b.end, false, b.size), (b.start, true, b.size)])
        .collect();
    events.sort_unstable();
    let (mut now, mut most) = (0u64, 0);
    for (_, starts, size) in events {
        now = if starts { now + size } else { now - size };
        most = most.max(now);
    }
    most
}

/// The largest end of a live buffer under `offsets`.
#[must_use]
pub fn peak(buffers: &[Buffer], offsets: &[u64]) -> u64 {
    let ends = buffers
        .iter()
        .zip(offsets)
        .filter(|(b, _)| b.is_live())
        .map(|(b, o)| o + b.size);
    ends.max().unwrap_or(0)
}

/// The first pair of buffers that meet in time and overlap in memory, or a buffer paired with itself if it is
/// misaligned. O(n²), independent of the solvers.
#[must_use]
pub fn conflict(buffers: &[Buffer], offsets: &[u64]) -> Option<(usize, usize)> {
    for (i, a) in buffers.iter().enumerate() {
        if !offsets[i].is_multiple_of(a.align) {
            return Some((i, i));
        }
        for (j, b) in buffers.iter().enumerate().skip(i + 1) {
            if a.meets(b) && offsets[i] < offsets[j] + b.size && offsets[j] < offsets[i] + a.size {
                return Some((i, j));
            }
        }
    }
    None
}

/// Assigns an offset to every buffer.
///
/// With a capacity, an assignment whose peak exceeds it means that none was found, and if also `lower_bound`
/// exceeds it, that there is none.
///
/// # Errors
/// An alignment of zero or sizes beyond 2^62.
pub fn assign(buffers: &[Buffer], limits: &Limits<'_>) -> Result<Assignment, OffsetError> {
    if let Some(bad) = buffers.iter().position(|b| b.align == 0) {
        return Err(OffsetError::Alignment(bad));
    }
    let bytes: u128 = buffers
        .iter()
        .map(|b| u128::from(b.size) + u128::from(b.align))
        .sum();
    if bytes > u128::from(u64::MAX / 4) {
        return Err(OffsetError::Overflow);
    }
    let low = max_live(buffers);
    let target = limits.capacity.unwrap_or(0).max(low);
    let mut offsets = greedy::portfolio(buffers, target);
    let mut lower_bound = low;
    if peak(buffers, &offsets) > target && limits.nodes > 0 {
        lower_bound = improve(buffers, &mut offsets, target, limits);
    }
    let peak = peak(buffers, &offsets);
    Ok(Assignment {
        offsets,
        peak,
        lower_bound,
        optimal: peak == lower_bound,
    })
}

/// Bisects on the capacity between the proven bound and the best peak, in steps of the granularity of all peaks.
/// Returns the proven lower bound.
fn improve(buffers: &[Buffer], offsets: &mut Vec<u64>, target: u64, limits: &Limits<'_>) -> u64 {
    let grain = buffers
        .iter()
        .filter(|b| b.is_live())
        .fold(0, |g, b| gcd(gcd(g, b.size), b.align))
        .max(1);
    let mut search = exact::Exact::new(buffers, limits.stop);
    let mut nodes = limits.nodes;
    let mut proven = max_live(buffers).next_multiple_of(grain);
    let mut low = proven;
    let mut high = peak(buffers, offsets);
    // The bound itself is the likeliest answer, so it is tried first and gets half of the nodes.
    let mut capacity = target.max(low) / grain * grain;
    let mut share = if limits.capacity.is_some() {
        nodes
    } else {
        nodes / 2
    };
    while low < high && nodes > 0 {
        let before = search.nodes();
        match search.fit(capacity, share.min(nodes)) {
            Outcome::Fits(found) => {
                high = peak(buffers, &found);
                *offsets = found;
            }
            Outcome::Impossible => {
                proven = proven.max(capacity + grain);
                low = low.max(capacity + grain);
            }
            Outcome::Spent => low = capacity + grain,
        }
        nodes = nodes.saturating_sub(search.nodes() - before);
        if limits
            .capacity
            .is_some_and(|c| high <= c || proven > c || low > c)
        {
            break;
        }
        capacity = (low + (high - low.min(high)) / 2) / grain * grain;
        share = (limits.nodes / 16).max(1);
    }
    proven.min(high)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
