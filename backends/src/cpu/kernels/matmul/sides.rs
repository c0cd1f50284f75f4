//! The sides of a product on their way to its tiles: what is packed, and what is asked for meanwhile.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::View;
use super::super::gemm::{Feed, Tiles, copy_columns, widen};
use super::super::pack::PANEL;
use super::super::simd::{Floats, LANES, Left, Simd, Tiled, WIDE_ROWS};
use super::super::view::Row;
use super::chains::{Chain, Share};
use super::{Block, LEFT, RIGHT, ROW, TOGETHER};

impl Block<'_> {
    /// A's share of the first of some tiles. Where A is given by columns, the share of all is packed as f32, the rows of a product side by
    /// side, those of one tile [`LEFT`] values behind those of another.
    ///
    /// # Safety
    /// As [`Block::run`]; the share and the tiles exist, at most [`TOGETHER`] of them, and one where A is given by rows.
    #[inline(always)]
    pub(super) unsafe fn left<S: Simd>(
        &self,
        s: S,
        share: Share,
        tiles: Tiles,
        some: &Range<usize>,
    ) -> Left {
        if !self.product.transposed {
            // SAFETY: the caller's contract.
            return unsafe { self.rows_of_left(s, share, tiles.tile(some.start)) };
        }
        let (a, mut to) = (self.product.a, self.work);
        let mut firsts = [0; TOGETHER];
        for (first, tile) in firsts.iter_mut().zip(some.clone()) {
            *first = self.rows.start + tiles.tile(tile).0;
        }
        let firsts = &firsts[..some.len()];
        for piece in self.chain.pieces(share) {
            let values = piece.len() * WIDE_ROWS;
            // SAFETY: the scratch has room for the share of so many tiles of the most rows. Whole vectors where they exist: values after
            // a tile's rows do not count.
            unsafe { copy_columns(s, a, piece, firsts, (to, LEFT)) };
            to = to.wrapping_add(values);
        }
        Left::Packed(self.work)
    }

    /// The rows (first in the block, count) of A's share, which is given by rows: where they are, if they are f32 in one piece, else as
    /// f32 in the scratch.
    ///
    /// # Safety
    /// As [`Block::left`].
    #[inline(always)]
    unsafe fn rows_of_left<S: Simd>(
        &self,
        s: S,
        share: Share,
        (first, count): (usize, usize),
    ) -> Left {
        let (a, first) = (self.product.a, self.rows.start + first);
        if let Some(start) = self.in_one_piece(a, share) {
            return Left::Rows(a.row(first).at(start).cast(), a.stride());
        }
        for r in 0..count {
            let mut to = self.work.wrapping_add(r * ROW);
            for piece in self.chain.pieces(share) {
                let (columns, values) = (a.col_range(piece.clone()), piece.len());
                // SAFETY: the rows exist, and the scratch has room for the share of a tile's rows, rounded up to whole vectors.
                unsafe { widen(s, columns.row(first + r), values, to) };
                to = to.wrapping_add(values);
            }
        }
        Left::Rows(self.work, ROW)
    }

    /// The first of the rows of B's share, and the values from one to the next, if the tiles pack them: those of rows of A, where they
    /// are f32 in one piece.
    #[inline(always)]
    pub(super) fn rows_of_right(&self, share: Share) -> Option<(Row, usize)> {
        let b = self.product.b;
        let start = self.in_one_piece(b, share);
        let by_tiles = start.filter(|_| !self.product.transposed);
        by_tiles.map(|start| (b.row(start), b.stride()))
    }

    /// Where a share of a side begins, if tiles can read it as it is: as f32, in one piece.
    #[inline(always)]
    fn in_one_piece(&self, side: View<'_>, share: Share) -> Option<usize> {
        let mut pieces = self.chain.pieces(share);
        match (pieces.next(), pieces.next(), side.dtype()) {
            (Some(piece), None, DType::F32) => Some(piece.start),
            _ => None,
        }
    }

    /// B's share of the block's columns as f32, group by group of panels, whose rows lie side by side; missing columns are zeros. The
    /// groups of the widest tiles are left out if these pack them.
    ///
    /// # Safety
    /// As [`Block::run`]; the share exists.
    #[inline(always)]
    pub(super) unsafe fn pack_right<S: Tiled, W: Floats>(
        &self,
        s: S,
        share: Share,
        by_tiles: bool,
    ) {
        let wide = S::WIDE.1 * PANEL;
        let known = matches!(self.product.b.dtype(), DType::F16 | DType::F32);
        let whole = if known { self.columns.len() / wide } else { 0 };
        if by_tiles && whole * wide == self.columns.len() {
            return;
        }
        let left_out = if by_tiles { whole } else { 0 };
        for (i, row) in self.chain.pieces(share).flatten().enumerate() {
            let row = self.product.b.row(row);
            let to = self.right(share, self.columns.start).wrapping_add(i * wide);
            for group in left_out..whole {
                let to = to.wrapping_add(group * share.depth * wide);
                for column in (0..wide).step_by(PANEL) {
                    let from = row.at(self.columns.start + group * wide + column);
                    // SAFETY: the caller's contract; the scratch has room for the share, and the columns exist.
                    unsafe { s.store_columns(to.add(column), W::load(s, from)) };
                }
            }
            for (first, panels) in self.groups::<S>().skip(whole) {
                let to = self.right(share, first).wrapping_add(i * panels * PANEL);
                for column in (0..panels * PANEL).step_by(PANEL) {
                    // SAFETY: as above; only columns that exist are read.
                    unsafe {
                        let values = load_up_to(s, row, first + column, self.product.b.cols());
                        s.store_columns(to.add(column), values);
                    }
                }
            }
        }
    }

    /// Where the group from `column` on begins in B's share.
    #[inline(always)]
    pub(super) fn right(&self, share: Share, column: usize) -> *mut f32 {
        let at = (column - self.columns.start) * share.depth;
        self.work.wrapping_add(RIGHT + at)
    }

    /// What is packed next of A, where it is given by columns, while some tiles are at work: that of the tiles behind them, of the share
    /// `ahead`, or of what follows the block.
    #[inline(always)]
    pub(super) fn feed_left<S: Tiled>(
        &self,
        share: Share,
        ahead: Option<Share>,
        tiles: Tiles,
        some: &Range<usize>,
    ) -> Feed {
        let (a, size) = (self.product.a, self.product.a.dtype().size());
        let next = if some.end < tiles.count() {
            let row = self.rows.start + tiles.tile(some.end).0;
            Some((self.chain, share, row))
        } else {
            let behind = self.behind(ahead);
            behind.map(|(chain, share, (row, _))| (chain, share, row))
        };
        let Some((chain, next, row)) = next.filter(|(_, next, _)| next.depth > 0) else {
            return Feed::none();
        };
        let rows = (TOGETHER * S::WIDE.0).min(a.cols() - row);
        Feed::runs(
            a.row(chain.first(next)).at(row),
            next.depth,
            (rows * size, a.stride() * size),
            some.len() * self.groups::<S>().count() * share.depth,
        )
    }

    /// What is packed of B after a share, by so many tiles of rows: the share `ahead` of the same columns, or what follows the block.
    #[inline(always)]
    pub(super) fn feed_right<S: Tiled>(
        &self,
        share: Share,
        ahead: Option<Share>,
        tiles: usize,
    ) -> Feed {
        let b = self.product.b;
        let behind = self.behind(ahead);
        let Some((chain, next, (_, column))) = behind.filter(|(_, next, _)| next.depth > 0) else {
            return Feed::none();
        };
        let columns = self.columns.len().min(b.cols() - column);
        let size = b.dtype().size();
        Feed::runs(
            b.row(chain.first(next)).at(column),
            next.depth,
            (columns * size, b.stride() * size),
            self.groups::<S>().count() * tiles * share.depth,
        )
    }

    /// What follows a share, as (chain, share, first row and column): the share `ahead`, or what follows the block.
    #[inline(always)]
    fn behind(&self, ahead: Option<Share>) -> Option<(&Chain<'_>, Share, (usize, usize))> {
        if let Some(share) = ahead {
            return Some((self.chain, share, (self.rows.start, self.columns.start)));
        }
        let (chain, place) = self.next?;
        Some((chain, chain.shares().next()?, place))
    }
}

/// The sixteen values of a row from `column` on, widened; those from `end` on are zeros.
///
/// # Safety
/// The row has those before `end`.
#[inline(always)]
pub(super) unsafe fn load_up_to<S: Tiled>(s: S, row: Row, column: usize, end: usize) -> S::C {
    let half = |column: usize| match end.saturating_sub(column) {
        0 => s.splat(0.0),
        // SAFETY: the caller's contract.
        left => unsafe { row.load_up_to(s, column, left) },
    };
    s.columns([half(column), half(column + LANES)])
}
