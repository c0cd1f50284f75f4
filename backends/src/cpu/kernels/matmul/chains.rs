//! What each result of a product is the sum of, and the order it is summed in.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::gemm::BLOCK;
use super::super::scratch::LINE;
use super::super::{Addend, ViewMut};
use super::DEPTH;

/// One sum of each result of a product.
pub struct Chain<'a> {
    pub(super) over: &'a [Range<usize>],
    pub(super) add: Addend<'a>,
    pub(super) out: ViewMut<'a>,
    /// Products.
    pub(super) depth: usize,
}

impl<'a> Chain<'a> {
    /// The sum over some ranges of the summed index, in this order. When it is finished, `add` is added, \[m, n\], and the result
    /// goes to `out`, \[m, n\], which may be the memory of `add`, of this chain and of those behind it.
    pub fn new(over: &'a [Range<usize>], add: Addend<'a>, out: ViewMut<'a>) -> Self {
        let depth = over.iter().map(ExactSizeIterator::len).sum();
        Chain {
            over,
            add,
            out,
            depth,
        }
    }
}

/// Chains whose results meet in one place: one, or several of which each is added to what those before it left there.
#[derive(Clone, Copy)]
pub(super) struct Total<'a> {
    chains: &'a [Chain<'a>],
}

impl<'a> Total<'a> {
    /// The totals of all chains: one, if sums may stay in registers until it is finished, else one for each.
    pub(super) fn all(chains: &'a [Chain<'a>]) -> impl ExactSizeIterator<Item = Self> + Clone {
        let count = if meet(chains) { chains.len() } else { 1 };
        chains.chunks(count.max(1)).map(|chains| Total { chains })
    }

    /// Whether it is of several chains.
    pub(super) fn several(self) -> bool {
        self.chains.len() > 1
    }

    /// What the total begins with.
    pub(super) fn add(self) -> Addend<'a> {
        self.chains[0].add
    }

    /// Where the total goes.
    pub(super) fn out(self) -> &'a ViewMut<'a> {
        &self.chains[self.chains.len() - 1].out
    }

    /// Its products in shares.
    pub(super) fn shares(self) -> Shares<'a> {
        Shares {
            chains: self.chains,
            several: self.several(),
            over: self.chains[0].over,
            done: 0,
            left: self.chains.iter().map(|chain| chain.depth).sum(),
            first: true,
        }
    }

    /// Whether the total goes past the caches: it starts a sum that the next micro-batch, or the update, goes on with, and
    /// the 16 columns of a panel are a cache line.
    pub(super) fn streams(self) -> bool {
        let line = LINE * size_of::<f32>();
        let out = self.out();
        let start = out.as_view().row(0).at(0).addr();
        let whole = (start | (out.stride() * size_of::<f32>())).is_multiple_of(line);
        matches!(self.add(), Addend::Zeros) && out.dtype() == DType::F32 && out.rows() > 0 && whole
    }
}

/// Whether each chain after the first adds to what the one before left, in f32, in the same place, over the products that
/// follow its; and each fits a share.
fn meet(chains: &[Chain<'_>]) -> bool {
    let Some(first) = chains.first() else {
        return false;
    };
    let begins = match first.add {
        Addend::Nothing => false,
        Addend::Zeros => true,
        Addend::View(add) => add.dtype() == DType::F32,
    };
    let mut end = first.over.first().map_or(0, |range| range.start);
    let mut ranges = chains.iter().flat_map(|chain| chain.over);
    begins
        && chains
            .iter()
            .all(|chain| chain.depth <= DEPTH && chain.out.dtype() == DType::F32)
        && chains.windows(2).all(|pair| {
            let added = pair[1].add.view();
            added.is_some_and(|add| pair[0].out.is(add) && pair[1].out.is(add))
        })
        && ranges.all(|range| range.start == std::mem::replace(&mut end, range.end))
}

/// A share of the summed index: a panel's part of it is one visit of all tiles.
#[derive(Clone, Copy)]
pub(super) struct Share<'a> {
    pub(super) start: usize,
    pub(super) depth: usize,
    /// The chains that it holds whole, where it is of a total of several; else none.
    pub(super) chains: &'a [Chain<'a>],
    /// Whether sums start at zero, and totals with what they begin with.
    pub(super) first: bool,
    /// Whether sums and totals are finished after it.
    pub(super) last: bool,
}

/// The shares of a total: none reaches from one range into the next, but of several chains, whose products lie end to end,
/// each is of as many as fit. A total of nothing has one of no products.
#[derive(Clone)]
pub(super) struct Shares<'a> {
    chains: &'a [Chain<'a>],
    several: bool,
    over: &'a [Range<usize>],
    /// Products of the first range that are in shares already.
    done: usize,
    /// Products that are in none yet.
    left: usize,
    first: bool,
}

impl<'a> Iterator for Shares<'a> {
    type Item = Share<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Share<'a>> {
        if self.several {
            return self.next_chains();
        }
        while self
            .over
            .first()
            .is_some_and(|range| range.len() == self.done)
        {
            self.over = &self.over[1..];
            self.done = 0;
        }
        if self.left == 0 && !self.first {
            return None;
        }
        let range = self
            .over
            .first()
            .map_or(0..0, |range| range.start + self.done..range.end);
        // Nearly equal shares of whole blocks.
        let count = range.len().div_ceil(DEPTH).max(1);
        let depth = range.len().div_ceil(count).next_multiple_of(BLOCK);
        let depth = depth.min(range.len());
        self.left -= depth;
        self.done += depth;
        Some(self.share(range.start, depth, &[], self.left == 0))
    }
}

impl<'a> Shares<'a> {
    /// As many of the chains that are left as fit a share.
    #[inline(always)]
    fn next_chains(&mut self) -> Option<Share<'a>> {
        let start = self.chains.iter().flat_map(|chain| chain.over).next();
        let start = start.map_or(0, |range| range.start);
        let (mut count, mut depth) = (0, 0);
        for chain in self.chains {
            if depth + chain.depth > DEPTH {
                break;
            }
            depth += chain.depth;
            count += 1;
        }
        let (now, later) = self.chains.split_at(count);
        self.chains = later;
        (count > 0).then(|| self.share(start, depth, now, later.is_empty()))
    }

    #[inline(always)]
    fn share(
        &mut self,
        start: usize,
        depth: usize,
        chains: &'a [Chain<'a>],
        last: bool,
    ) -> Share<'a> {
        Share {
            start,
            depth,
            chains,
            first: std::mem::replace(&mut self.first, false),
            last,
        }
    }
}
