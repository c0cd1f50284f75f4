//! Greedy assignment: buffers in a fixed order, each into a gap among those already placed that it meets.

use super::{Buffer, peak};
use std::cmp::Reverse;

/// How a gap is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The lowest that is large enough.
    First,
    /// The one with the least bytes left over, then the lowest; above everything only if there is none.
    Best,
}

/// The best of all orders and fits; stops at the first peak of at most `target`. O(orders x n² log n).
pub(super) fn portfolio(buffers: &[Buffer], target: u64) -> Vec<u64> {
    let mut best = Vec::new();
    let mut least = u64::MAX;
    for order in orders(buffers) {
        for fit in [Fit::First, Fit::Best] {
            let offsets = place(buffers, &order, fit);
            let peak = peak(buffers, &offsets);
            if peak < least {
                (least, best) = (peak, offsets);
            }
            if least <= target {
                return best;
            }
        }
    }
    best
}

/// By size, area, lifetime, bytes met, and start; larger first, ties by index.
fn orders(buffers: &[Buffer]) -> Vec<Vec<usize>> {
    let life = |i: usize| u64::from(buffers[i].end.saturating_sub(buffers[i].start));
    let size = |i: usize| buffers[i].size;
    let area = |i: usize| u128::from(size(i)) * u128::from(life(i));
    let met: Vec<u64> = buffers
        .iter()
        .map(|a| buffers.iter().filter(|b| a.meets(b)).map(|b| b.size).sum())
        .collect();
    let sorted = |key: &dyn Fn(usize) -> (u128, u128)| {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| (Reverse(key(i)), i));
        order
    };
    vec![
        sorted(&|i| (size(i).into(), life(i).into())),
        sorted(&|i| (area(i), size(i).into())),
        sorted(&|i| (life(i).into(), size(i).into())),
        sorted(&|i| (met[i].into(), area(i))),
        sorted(&|i| (u128::from(u32::MAX - buffers[i].start), life(i).into())),
        sorted(&|i| (buffers[i].end.into(), life(i).into())),
    ]
}

/// Offsets for one order and fit.
pub(super) fn place(buffers: &[Buffer], order: &[usize], fit: Fit) -> Vec<u64> {
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    for &i in order {
        let buffer = &buffers[i];
        if !buffer.is_live() {
            continue;
        }
        let mut at = 0u64;
        let mut choice: Option<(u64, u64)> = None;
        for &j in placed.iter().filter(|&&j| buffers[j].meets(buffer)) {
            if offsets[j] >= at + buffer.size {
                let left = offsets[j] - at - buffer.size;
                if choice.is_none_or(|(least, _)| left < least) {
                    choice = Some((left, at));
                }
                if fit == Fit::First {
                    break;
                }
            }
            at = at.max((offsets[j] + buffers[j].size).next_multiple_of(buffer.align));
        }
        offsets[i] = choice.map_or(at, |(_, offset)| offset);
        let rank = placed.partition_point(|&j| (offsets[j], j) < (offsets[i], i));
        placed.insert(rank, i);
    }
    offsets
}
