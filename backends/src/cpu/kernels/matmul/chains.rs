//! What the sums of a product are over, and in which shares they are taken.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::gemm::BLOCK;
use super::super::scratch::LINE;
use super::super::{View, ViewMut};
use super::DEPTH;

/// What sums begin with.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// +0.
    Zero,
    /// +0, in the place of an accumulator that is first of all overwritten: nothing reads the results soon, so that they may go past the
    /// caches.
    Reset,
    /// These values; \[m, n\].
    From(View<'a>),
}

/// One sum of each result of a product.
pub struct Chain<'a> {
    over: &'a [Range<usize>],
    pub(super) start: Start<'a>,
    pub(super) out: ViewMut<'a>,
    depth: usize,
}

impl<'a> Chain<'a> {
    /// The sum over some ranges of the summed index, in this order, from `start` on; it goes to `out`, \[m, n\], which may be the
    /// memory of `start`.
    pub fn new(over: &'a [Range<usize>], start: Start<'a>, out: ViewMut<'a>) -> Self {
        Chain {
            over,
            start,
            out,
            depth: over.iter().map(ExactSizeIterator::len).sum(),
        }
    }

    /// Checks that it is over products of so many, and that its results are of that shape.
    ///
    /// # Panics
    /// If not.
    pub(super) fn check(&self, depth: usize, shape: (usize, usize)) {
        let exists = |range: &Range<usize>| range.start <= range.end && range.end <= depth;
        let over = self.over;
        assert!(over.iter().all(exists), "sums over {over:?} of {depth}");
        let out = (self.out.rows(), self.out.cols());
        assert_eq!(out, shape, "output shape of a product");
        if let Start::From(start) = self.start {
            let start = (start.rows(), start.cols());
            assert_eq!(start, shape, "shape of what a product's sums begin with");
        }
    }

    /// Nearly equal shares of whole blocks. A sum of nothing has one of no products.
    #[inline(always)]
    pub(super) fn shares(&self) -> impl Iterator<Item = Share> {
        let all = self.depth;
        let count = all.div_ceil(DEPTH).max(1);
        let most = all.div_ceil(count).next_multiple_of(BLOCK).max(1);
        (0..all.max(1)).step_by(most).map(move |start| Share {
            start,
            depth: most.min(all - start),
            first: start == 0,
            last: start + most >= all,
        })
    }

    /// The ranges of the summed index that a share is of.
    #[inline(always)]
    pub(super) fn pieces(&self, share: Share) -> impl Iterator<Item = Range<usize>> {
        let (mut before, mut left) = (share.start, share.depth);
        let ranges = self.over.iter().map(move |range| {
            let skipped = before.min(range.len());
            let count = left.min(range.len() - skipped);
            (before, left) = (before - skipped, left - count);
            let start = range.start + skipped;
            start..start + count
        });
        ranges.filter(|piece| !piece.is_empty())
    }

    /// The first row of either side, in memory, that a share is of; as many from there on are asked for.
    #[inline(always)]
    pub(super) fn first(&self, share: Share) -> usize {
        let starts = self.pieces(share).map(|piece| piece.start);
        starts.min().unwrap_or(0)
    }

    /// Whether the results go past the caches: they may, and the 16 columns of a panel are a cache line.
    pub(super) fn streams(&self) -> bool {
        let line = LINE * size_of::<f32>();
        let out = &self.out;
        let start = out.as_view().row(0).at(0).addr();
        let whole = (start | (out.stride() * size_of::<f32>())).is_multiple_of(line);
        matches!(self.start, Start::Reset) && out.dtype() == DType::F32 && out.rows() > 0 && whole
    }
}

/// A share of a chain: a panel's part of it is one visit of all tiles.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Products of the chain before it.
    pub(super) start: usize,
    pub(super) depth: usize,
    /// Whether sums begin in it.
    pub(super) first: bool,
    /// Whether sums are finished after it.
    pub(super) last: bool,
}
