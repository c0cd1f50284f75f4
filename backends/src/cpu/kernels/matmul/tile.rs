//! A few rows of one panel, and what becomes of their sums.

use std::marker::PhantomData;

use lxpod_ir::DType;

use super::super::gemm::{BLOCK, Feed};
use super::super::pack::PANEL;
use super::super::simd::{Body, Floats, LANES, Simd, Single, Tiled, step};
use super::super::{Addend, View};
use super::{A_ROW, PACKED, STRIP, SUMS, Share, Strip};

/// How many rows further the results are asked for.
const AHEAD: usize = 12;

/// A few rows of one panel.
pub(super) struct Tile<'a> {
    pub(super) strip: &'a Strip<'a>,
    pub(super) share: Share,
    /// The panel's first column.
    pub(super) column: usize,
    /// The first row, in the block.
    pub(super) first: usize,
    /// Where the panel lies in B and the bytes from row to row, if it is not packed yet.
    pub(super) source: Option<(*const u8, usize)>,
}

/// [`Tile::run`] of R rows.
pub(super) struct Rows<'a, W, const R: usize>(&'a Tile<'a>, &'a mut Feed, PhantomData<W>);

impl<'a, W, const R: usize> Rows<'a, W, R> {
    #[inline(always)]
    pub(super) fn new(tile: &'a Tile<'a>, feed: &'a mut Feed) -> Self {
        Rows(tile, feed, PhantomData)
    }
}

impl<W: Floats, const R: usize> Body for Rows<'_, W, R> {
    #[inline(always)]
    unsafe fn run<S: Tiled>(self, s: S) {
        // SAFETY: the caller's contract, which is that of a tile.
        unsafe { self.0.run::<S, W, R>(s, self.1) }
    }
}

impl Tile<'_> {
    /// Adds the products of one share to R rows of sums.
    ///
    /// # Safety
    /// A's share is loaded; the panel is packed or its source may be read.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats, const R: usize>(&self, s: S, feed: &mut Feed) {
        let Share {
            depth, first, last, ..
        } = self.share;
        if last && !self.strip.streams {
            self.ask::<S, R>(s);
        }
        let mut acc = [[s.columns([s.splat(0.0); 2]); R]];
        // SAFETY: the caller's contract; the scratch has room for the sums.
        unsafe {
            if !first {
                for (r, acc) in acc[0].iter_mut().enumerate() {
                    *acc = s.load_columns(self.sums(r));
                }
            }
            let a = self.strip.work.add(self.first * A_ROW);
            let whole = depth / BLOCK * BLOCK;
            let packed = self.strip.work.add(PACKED);
            for i in (0..whole).step_by(BLOCK) {
                feed.advance(s);
                let copy = packed.add(i * PANEL);
                match self.source {
                    Some((b, step)) => {
                        let b = (b.wrapping_add(i * step), step);
                        s.eight_packing_steps::<R, W>(&mut acc, a.add(i), A_ROW, b, copy);
                    }
                    None => {
                        let w = copy.cast_const().cast();
                        s.eight_steps::<R, 1, Single>(&mut acc, (a.add(i), A_ROW), (w, 0), [w; 2]);
                    }
                }
            }
            for i in whole..depth {
                let copy = packed.add(i * PANEL);
                if let Some((b, step)) = self.source {
                    s.store_columns(copy, W::load(s, b.wrapping_add(i * step)));
                }
                step::<S, Single, R, 1>(s, &mut acc, (a.add(i), A_ROW), (copy.cast(), 0));
            }
            let [acc] = acc;
            self.store(s, acc);
        }
    }

    /// Asks for the places of results [`AHEAD`] rows further; after the last row come those of the next panel, which may
    /// not be there.
    #[inline(always)]
    fn ask<S: Simd, const R: usize>(&self, s: S) {
        let rows = self.strip.rows.len();
        let (start, step) = self.place(0);
        let next = start
            .wrapping_sub(rows * step)
            .wrapping_add(PANEL * self.strip.out.dtype().size());
        for r in AHEAD..AHEAD + R {
            let start = if self.first + r < rows { start } else { next };
            s.prefetch(start.wrapping_add(r * step));
        }
    }

    /// Where row `r` of the result begins in the panel, and the bytes from row to row.
    #[inline(always)]
    fn place(&self, r: usize) -> (*mut u8, usize) {
        let out = self.strip.out;
        let (start, step) = (
            out.as_view().row(self.strip.rows.start).at(self.column),
            out.stride() * out.dtype().size(),
        );
        (start.cast_mut().wrapping_add((self.first + r) * step), step)
    }

    /// Where the sums of row `r` of the tile wait between shares.
    #[inline(always)]
    fn sums(&self, r: usize) -> *mut f32 {
        let at = (self.first + r) * STRIP * PANEL + self.column - self.strip.columns.start;
        self.strip.work.wrapping_add(SUMS + at)
    }

    /// # Safety
    /// The scratch has room for the sums, and the rows and columns exist.
    #[inline(always)]
    unsafe fn store<S: Tiled, const R: usize>(&self, s: S, acc: [S::C; R]) {
        let (product, out) = (self.strip.product, self.strip.out);
        let added = product.add.view().map_or(out.dtype(), View::dtype);
        let whole = self.column + PANEL <= out.cols();
        // SAFETY: the caller's contract.
        unsafe {
            if !self.share.last {
                for (r, acc) in acc.into_iter().enumerate() {
                    s.store_columns(self.sums(r), acc);
                }
            } else {
                let mut halves = [[s.splat(0.0); 2]; R];
                for (halves, acc) in halves.iter_mut().zip(acc) {
                    *halves = s.halves(acc);
                }
                let acc = halves;
                match (out.dtype(), added) {
                    (DType::F32, DType::F32) if whole => self.finish_whole(s, acc),
                    (DType::F16, DType::F16) if whole => self.finish(s, acc, Some(DType::F16)),
                    _ => self.finish(s, acc, None),
                }
            }
        }
    }

    /// [`Tile::finish`] where everything is f32 and all 16 columns exist.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn finish_whole<S: Simd, const R: usize>(&self, s: S, acc: [[S::V; 2]; R]) {
        let (to, step) = self.place(0);
        let (from, from_step) = match self.strip.product.add {
            Addend::View(add) => {
                let row = add.row(self.strip.rows.start + self.first);
                (row.at(self.column), add.stride() * size_of::<f32>())
            }
            Addend::Nothing | Addend::Zeros => (std::ptr::null(), 0),
        };
        let zeros = matches!(self.strip.product.add, Addend::Zeros);
        for (r, mut sums) in acc.into_iter().enumerate() {
            let to = to.wrapping_add(r * step).cast::<f32>();
            let from = from.wrapping_add(r * from_step).cast::<f32>();
            for (half, y) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's contract; streams are of whole aligned cache lines.
                unsafe {
                    if zeros {
                        *y = s.add(*y, s.splat(0.0));
                    } else if !from.is_null() {
                        *y = s.add(*y, s.load_f32(from.add(half * LANES)));
                    }
                    if self.strip.streams {
                        s.stream_f32(to.add(half * LANES), *y);
                    } else {
                        s.store_f32(to.add(half * LANES), *y);
                    }
                }
            }
        }
    }

    /// Adds what is to be added and stores the result; `known` is the dtype of both where all 16 columns exist.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize>(
        &self,
        s: S,
        acc: [[S::V; 2]; R],
        known: Option<DType>,
    ) {
        let (end, added) = (self.strip.out.cols(), self.strip.product.add);
        let zeros = matches!(added, Addend::Zeros);
        for (r, sums) in acc.into_iter().enumerate() {
            let row = self.strip.rows.start + self.first + r;
            let out = self.strip.out.row(row).known(known);
            let add = added.view().map(|add| add.row(row).known(known));
            for (column, mut y) in (self.column..).step_by(LANES).zip(sums) {
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
