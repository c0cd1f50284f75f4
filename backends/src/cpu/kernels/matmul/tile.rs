//! A few rows of one panel or two, and what becomes of their sums.

use std::marker::PhantomData;

use lxpod_ir::DType;

use super::super::gemm::{BLOCK, Feed};
use super::super::pack::PANEL;
use super::super::simd::{Body, Floats, LANES, Simd, Single, Tiled, step};
use super::super::{Addend, View};
use super::{A_ROW, Chain, PACKED, PACKED_PANEL, STRIP, SUMS, Share, Strip};

/// How many rows further the results are asked for.
const AHEAD: usize = 12;

/// A few rows of some panels.
pub(super) struct Tile<'a> {
    pub(super) strip: &'a Strip<'a>,
    pub(super) share: Share,
    /// The first panel's first column.
    pub(super) column: usize,
    /// The first row, in the block.
    pub(super) first: usize,
    /// Where the panels lie in B and the bytes from row to row, if they are not packed yet.
    pub(super) source: Option<(*const u8, usize)>,
}

/// [`Tile::run`] of R rows and P panels.
pub(super) struct Rows<'a, W, const R: usize, const P: usize>(
    &'a Tile<'a>,
    &'a mut Feed,
    PhantomData<W>,
);

impl<'a, W, const R: usize, const P: usize> Rows<'a, W, R, P> {
    #[inline(always)]
    pub(super) fn new(tile: &'a Tile<'a>, feed: &'a mut Feed) -> Self {
        Rows(tile, feed, PhantomData)
    }
}

impl<W: Floats, const R: usize, const P: usize> Body for Rows<'_, W, R, P> {
    #[inline(always)]
    unsafe fn run<S: Tiled>(self, s: S) {
        // SAFETY: the caller's contract, which is that of a tile.
        unsafe { self.0.run::<S, W, R, P>(s, self.1) }
    }
}

impl Tile<'_> {
    /// Adds the products of one share to R rows of sums.
    ///
    /// # Safety
    /// A's share is loaded; the panels are packed or their source may be read.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats, const R: usize, const P: usize>(
        &self,
        s: S,
        feed: &mut Feed,
    ) {
        const PANEL_BYTES: usize = PACKED_PANEL * size_of::<f32>();
        let Share {
            depth, first, last, ..
        } = self.share;
        if last && !self.strip.streams {
            self.ask::<S, R, P>(s);
        }
        let mut acc = [[s.columns([s.splat(0.0); 2]); R]; P];
        // SAFETY: the caller's contract; the scratch has room for the sums.
        unsafe {
            if !first {
                for (p, acc) in acc.iter_mut().enumerate() {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = s.load_columns(self.sums(p, r));
                    }
                }
            }
            let a = self.strip.work.add(self.first * A_ROW);
            let whole = depth / BLOCK * BLOCK;
            let packed = self.strip.work.add(PACKED);
            let mut ahead = *feed;
            for i in (0..whole).step_by(BLOCK) {
                let copy = packed.add(i * PANEL);
                let next = ahead.ask::<S, P>(s, copy.cast_const().cast());
                match self.source {
                    Some((b, step)) => {
                        let b = (b.wrapping_add(i * step), step);
                        let copy = (copy, PANEL_BYTES);
                        s.eight_packing_steps::<R, P, W>(
                            &mut acc,
                            (a.add(i), A_ROW),
                            b,
                            copy,
                            next,
                        );
                    }
                    None => {
                        let w = (copy.cast_const().cast(), PANEL_BYTES);
                        s.eight_steps::<R, P, Single>(&mut acc, (a.add(i), A_ROW), w, next);
                    }
                }
            }
            *feed = ahead;
            for i in whole..depth {
                let copy = packed.add(i * PANEL);
                if let Some((b, step)) = self.source {
                    for p in 0..P {
                        let b = b.wrapping_add(i * step + p * PANEL * W::SIZE);
                        s.store_columns(copy.add(p * PACKED_PANEL), W::load(s, b));
                    }
                }
                let w = (copy.cast_const().cast(), PANEL_BYTES);
                step::<S, Single, R, P>(s, &mut acc, (a.add(i), A_ROW), w);
            }
            for (p, acc) in acc.into_iter().enumerate() {
                self.store(s, p, acc);
            }
        }
    }

    /// Asks for the places of results [`AHEAD`] rows further; after the last row come those of the next panel, which may
    /// not be there.
    #[inline(always)]
    fn ask<S: Simd, const R: usize, const P: usize>(&self, s: S) {
        let (rows, panel) = (
            self.strip.rows.len(),
            PANEL * self.strip.chain.out.dtype().size(),
        );
        let (start, step) = self.place(0, 0);
        let next = start.wrapping_sub(rows * step).wrapping_add(P * panel);
        for r in AHEAD..AHEAD + R {
            let start = if self.first + r < rows { start } else { next };
            for p in 0..P {
                s.prefetch(start.wrapping_add(r * step + p * panel));
            }
        }
    }

    /// Where row `r` of the result begins in panel `p`, and the bytes from row to row.
    #[inline(always)]
    fn place(&self, p: usize, r: usize) -> (*mut u8, usize) {
        let (out, column) = (&self.strip.chain.out, self.column + p * PANEL);
        let (start, step) = (
            out.as_view().row(self.strip.rows.start).at(column),
            out.stride() * out.dtype().size(),
        );
        (start.cast_mut().wrapping_add((self.first + r) * step), step)
    }

    /// Where the sums of row `r` of the tile in panel `p` wait between shares.
    #[inline(always)]
    fn sums(&self, p: usize, r: usize) -> *mut f32 {
        let column = self.column - self.strip.columns.start + p * PANEL;
        let at = (self.first + r) * STRIP * PANEL + column;
        self.strip.work.wrapping_add(SUMS + at)
    }

    /// Leaves the sums of panel `p`, or finishes them.
    ///
    /// # Safety
    /// The scratch has room for the sums, and the rows and columns exist.
    #[inline(always)]
    unsafe fn store<S: Tiled, const R: usize>(&self, s: S, p: usize, acc: [S::C; R]) {
        let Chain { add, out, .. } = self.strip.chain;
        let added = add.view().map_or(out.dtype(), View::dtype);
        let column = self.column + p * PANEL;
        let whole = column + PANEL <= out.cols();
        // SAFETY: the caller's contract.
        unsafe {
            if !self.share.last {
                for (r, acc) in acc.into_iter().enumerate() {
                    s.store_columns(self.sums(p, r), acc);
                }
            } else {
                match (out.dtype(), added) {
                    (DType::F32, DType::F32) if whole => self.finish_whole(s, p, acc),
                    (DType::F16, DType::F16) if whole => {
                        self.finish(s, column, acc, Some(DType::F16))
                    }
                    _ => self.finish(s, column, acc, None),
                }
            }
        }
    }

    /// [`Tile::finish`] of panel `p` where everything is f32 and all 16 columns exist.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn finish_whole<S: Tiled, const R: usize>(&self, s: S, p: usize, acc: [S::C; R]) {
        let (to, step) = self.place(p, 0);
        let add = self.strip.chain.add;
        let from = add.view().map(|add| {
            let row = add.row(self.strip.rows.start + self.first);
            let step = add.stride() * size_of::<f32>();
            (row.at(self.column + p * PANEL), step)
        });
        let zeros = s.columns([s.splat(0.0); 2]);
        for (r, mut y) in acc.into_iter().enumerate() {
            let to = to.wrapping_add(r * step).cast::<f32>();
            // SAFETY: the caller's contract; streams are of whole aligned cache lines.
            unsafe {
                if let Some((from, step)) = from {
                    y = s.add_columns(y, s.load_columns(from.wrapping_add(r * step).cast()));
                } else if matches!(add, Addend::Zeros) {
                    y = s.add_columns(y, zeros);
                }
                if self.strip.streams {
                    s.stream_columns(to, y);
                } else {
                    s.store_columns(to, y);
                }
            }
        }
    }

    /// Adds what is to be added to the panel from `column` on and stores the result; `known` is the dtype of both where all 16
    /// columns exist.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish<S: Tiled, const R: usize>(
        &self,
        s: S,
        column: usize,
        acc: [S::C; R],
        known: Option<DType>,
    ) {
        let (end, added) = (self.strip.chain.out.cols(), self.strip.chain.add);
        let zeros = matches!(added, Addend::Zeros);
        for (r, sums) in acc.into_iter().enumerate() {
            let row = self.strip.rows.start + self.first + r;
            let out = self.strip.chain.out.row(row).known(known);
            let add = added.view().map(|add| add.row(row).known(known));
            for (column, mut y) in (column..).step_by(LANES).zip(s.halves(sums)) {
                let left = if known.is_some() {
                    LANES
                } else {
                    end.saturating_sub(column)
                };
                // SAFETY: the caller's contract; so many columns exist.
                unsafe {
                    if zeros {
                        y = s.add(y, s.splat(0.0));
                    }
                    if let Some(add) = add.filter(|_| left > 0) {
                        y = s.add(y, add.load_up_to(s, column, left));
                    }
                    if left > 0 {
                        out.store(s, column, left, y);
                    }
                }
            }
        }
    }
}
