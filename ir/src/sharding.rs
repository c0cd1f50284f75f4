//! Values that replicas share out.
//!
//! Replicas of a pipeline hold a value each, with two exceptions that begin at a state
//! ([`State::shards`](crate::ops::State::shards)): of R replicas that share a value out, each has the elements
//! [`shard`] of the flattened tensor, and the others are undefined there. Types stay those of whole tensors, and
//! ops mean what they mean of whole tensors; sharding says who computes and who holds which elements. It goes on
//! through ops that work element by element, and ends at ops that sum over all elements, whose result
//! all replicas have.

use std::ops::Range;

use crate::graph::{Graph, NodeId, Value};
use crate::ops::{Op, SumSquares};

/// The elements that replica `index` of `shards` has of a flat tensor of so many: whole blocks of
/// [`SumSquares::BLOCK`], so that no block that is summed on its own lies on two replicas.
pub fn shard(elements: usize, shards: usize, index: usize) -> Range<usize> {
    let size = largest_shard(elements, shards);
    let at = |index: usize| index.saturating_mul(size).min(elements);
    at(index)..at(index + 1)
}

/// The elements of the largest shard, the first.
pub fn largest_shard(elements: usize, shards: usize) -> usize {
    let share = elements.div_ceil(shards.max(1));
    if shards > 1 {
        share.next_multiple_of(SumSquares::BLOCK).min(elements)
    } else {
        share
    }
}

/// How many replicas share a value out; 1 if each has all of it.
pub fn shards(graph: &Graph, value: Value) -> usize {
    match &graph.node(value.node).op {
        Op::State(state) => state.shards,
        Op::Sgd(_) | Op::Adam(_) | Op::Lamb(_) | Op::Cast(_) | Op::Transfer(_) => {
            operand_shards(graph, value.node)
        }
        _ => 1,
    }
}

/// How many replicas share out what a node reads, and so its work.
pub fn operand_shards(graph: &Graph, node: NodeId) -> usize {
    let inputs = graph.inputs(node).into_iter();
    inputs.map(|value| shards(graph, value)).max().unwrap_or(1)
}

/// Whether all replicas contribute to the node's result, so that it is there only once all have run it.
pub fn combines_replicas(graph: &Graph, node: NodeId) -> bool {
    let sums = matches!(
        graph.node(node).op,
        Op::SumSquares(_) | Op::Histogram(_) | Op::TrustRatio(_)
    );
    sums && operand_shards(graph, node) > 1
}

/// Bytes of the largest share that a replica has of a value.
pub fn shard_bytes(graph: &Graph, value: Value) -> usize {
    let ty = graph.ty(value);
    match shards(graph, value) {
        1 => ty.bytes(),
        shards => largest_shard(ty.shape.elements(), shards) * ty.dtype.size(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_lie_end_to_end_in_whole_blocks(elements in 0..100_000_usize, shards in 1..20_usize) {
            let mut end = 0;
            for index in 0..shards {
                let own = shard(elements, shards, index);
                prop_assert_eq!(own.start, end);
                prop_assert!(own.len() <= largest_shard(elements, shards));
                let whole = shards == 1 || own.is_empty() || own.start.is_multiple_of(SumSquares::BLOCK);
                prop_assert!(whole, "{:?}", own);
                end = own.end;
            }
            prop_assert_eq!(end, elements);
            prop_assert_eq!(shard(elements, shards, 0).len(), largest_shard(elements, shards));
        }
    }
}
