//! A few rows of one panel or two, and what becomes of their sums.

use std::marker::PhantomData;
use std::ops::Range;

use lxpod_ir::DType;

use super::super::gemm::BLOCK;
use super::super::pack::PANEL;
use super::super::simd::{Body, Floats, LANES, Simd, Single, Tiled, step};
use super::super::{Addend, View};
use super::{A_ROW, Drain, PACKED, PACKED_PANEL, RESULTS, STRIP, SUMS, Share, Strip, Traffic};

/// How many rows further the results are asked for.
const AHEAD: usize = 12;

/// A few rows of some panels.
pub(super) struct Tile<'a> {
    pub(super) strip: &'a Strip<'a>,
    pub(super) share: Share<'a>,
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
    &'a mut Traffic,
    PhantomData<W>,
);

impl<'a, W, const R: usize, const P: usize> Rows<'a, W, R, P> {
    #[inline(always)]
    pub(super) fn new(tile: &'a Tile<'a>, traffic: &'a mut Traffic) -> Self {
        Rows(tile, traffic, PhantomData)
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
    /// Adds the products of one share to R rows of sums, or those of its chains to R rows of totals.
    ///
    /// # Safety
    /// A's share is loaded; the panels are packed or their source may be read.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats, const R: usize, const P: usize>(
        &self,
        s: S,
        traffic: &mut Traffic,
    ) {
        if self.share.last && !self.strip.streams {
            self.ask::<S, R, P>(s);
        }
        // SAFETY: the caller's contract.
        unsafe {
            if const { 2 * R <= S::MAX_ROWS } && self.strip.total.several() {
                self.totals::<S, W, R, P>(s, traffic);
            } else {
                self.one::<S, W, R, P>(s, traffic);
            }
        }
    }

    /// [`Tile::run`] of one chain, or a part of it.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn one<S: Tiled, W: Floats, const R: usize, const P: usize>(
        &self,
        s: S,
        traffic: &mut Traffic,
    ) {
        // SAFETY: the caller's contract; the scratch has room for the sums.
        unsafe {
            let mut acc = if self.share.first {
                zeros::<S, R, P>(s)
            } else {
                self.load::<S, R, P>(s)
            };
            self.add_products::<S, W, R, P>(s, &mut acc, 0..self.share.depth, traffic);
            self.store(s, acc, self.strip.total.add(), &mut traffic.drain);
        }
    }

    /// [`Tile::run`] of several whole chains, whose total is in registers.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn totals<S: Tiled, W: Floats, const R: usize, const P: usize>(
        &self,
        s: S,
        traffic: &mut Traffic,
    ) {
        // SAFETY: the caller's contract; the scratch has room for the totals.
        unsafe {
            let mut totals = if self.share.first {
                self.begin::<S, R, P>(s)
            } else {
                self.load::<S, R, P>(s)
            };
            let mut start = 0;
            for chain in self.share.chains {
                let steps = start..start + chain.depth();
                start = steps.end;
                let mut acc = zeros::<S, R, P>(s);
                self.add_products::<S, W, R, P>(s, &mut acc, steps, traffic);
                for (totals, acc) in totals.iter_mut().zip(acc) {
                    for (total, acc) in totals.iter_mut().zip(acc) {
                        *total = s.add_columns(acc, *total);
                    }
                }
            }
            self.store(s, totals, Addend::Nothing, &mut traffic.drain);
        }
    }

    /// Adds the products of some steps of the share: whole blocks, then those that are left.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[inline(always)]
    unsafe fn add_products<S: Tiled, W: Floats, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: &mut [[S::C; R]; P],
        steps: Range<usize>,
        traffic: &mut Traffic,
    ) {
        const PANEL_BYTES: usize = PACKED_PANEL * size_of::<f32>();
        let a = self
            .strip
            .work
            .wrapping_add(self.first * A_ROW)
            .cast_const();
        let packed = self.strip.work.wrapping_add(PACKED);
        let whole = steps.start + steps.len() / BLOCK * BLOCK;
        let (mut feed, mut drain) = (traffic.feed, traffic.drain);
        // SAFETY: the caller's contract.
        unsafe {
            for i in (steps.start..whole).step_by(BLOCK) {
                if !drain.is_empty() {
                    drain.some(s);
                }
                feed.ask_at_once(s);
                let copy = packed.add(i * PANEL);
                let a = (a.add(i), A_ROW);
                match self.source {
                    Some((b, step)) => {
                        let b = (b.wrapping_add(i * step), step);
                        let copy = (copy, PANEL_BYTES);
                        s.eight_packing_steps::<R, P, W>(acc, a, b, copy);
                    }
                    None => {
                        let w = (copy.cast_const().cast(), PANEL_BYTES);
                        s.eight_steps::<R, P, Single>(acc, a, w, None);
                    }
                }
            }
            *traffic = Traffic { feed, drain };
            for i in whole..steps.end {
                let copy = packed.add(i * PANEL);
                if let Some((b, step)) = self.source {
                    for p in 0..P {
                        let b = b.wrapping_add(i * step + p * PANEL * W::SIZE);
                        s.store_columns(copy.add(p * PACKED_PANEL), W::load(s, b));
                    }
                }
                let w = (copy.cast_const().cast(), PANEL_BYTES);
                step::<S, Single, R, P>(s, acc, (a.add(i), A_ROW), w);
            }
        }
    }

    /// Asks for the places of results [`AHEAD`] rows further; after the last row come those of the next panel, which may
    /// not be there.
    #[inline(always)]
    fn ask<S: Simd, const R: usize, const P: usize>(&self, s: S) {
        let (rows, panel) = (
            self.strip.rows.len(),
            PANEL * self.strip.total.out().dtype().size(),
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
        let (out, column) = (self.strip.total.out(), self.column + p * PANEL);
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

    /// What totals begin with.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn begin<S: Tiled, const R: usize, const P: usize>(&self, s: S) -> [[S::C; R]; P] {
        let mut totals = zeros::<S, R, P>(s);
        let Some(add) = self.strip.total.add().view() else {
            return totals;
        };
        for (p, totals) in totals.iter_mut().enumerate() {
            let column = self.column + p * PANEL;
            for (r, total) in totals.iter_mut().enumerate() {
                let row = add.row(self.strip.rows.start + self.first + r);
                // SAFETY: the caller's contract; only columns that exist are read.
                unsafe {
                    *total = if column + PANEL <= add.cols() {
                        s.load_columns(row.at(column).cast())
                    } else {
                        let half = |column| match add.cols().saturating_sub(column) {
                            0 => s.splat(0.0),
                            left => row.load_up_to(s, column, left),
                        };
                        s.columns([half(column), half(column + LANES)])
                    };
                }
            }
        }
        totals
    }

    /// The sums that were left.
    ///
    /// # Safety
    /// As [`Tile::leave`].
    #[inline(always)]
    unsafe fn load<S: Tiled, const R: usize, const P: usize>(&self, s: S) -> [[S::C; R]; P] {
        let mut acc = zeros::<S, R, P>(s);
        for (p, acc) in acc.iter_mut().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller's contract.
                *acc = unsafe { s.load_columns(self.sums(p, r)) };
            }
        }
        acc
    }

    /// Leaves sums for the next share.
    ///
    /// # Safety
    /// The scratch has room for them.
    #[inline(always)]
    unsafe fn leave<S: Tiled, const R: usize, const P: usize>(&self, s: S, acc: [[S::C; R]; P]) {
        for (p, acc) in acc.into_iter().enumerate() {
            for (r, acc) in acc.into_iter().enumerate() {
                // SAFETY: the caller's contract.
                unsafe { s.store_columns(self.sums(p, r), acc) };
            }
        }
    }

    /// Leaves sums for the next share, or finishes them.
    ///
    /// # Safety
    /// As [`Tile::leave`] and [`Tile::finish`].
    #[inline(always)]
    unsafe fn store<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: [[S::C; R]; P],
        add: Addend<'_>,
        drain: &mut Drain,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.share.last {
                self.finish(s, acc, add, drain);
            } else {
                self.leave(s, acc);
            }
        }
    }

    /// Adds what is to be added to finished sums and stores the results.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: [[S::C; R]; P],
        add: Addend<'_>,
        drain: &mut Drain,
    ) {
        let out = self.strip.total.out();
        let added = add.view().map_or(out.dtype(), View::dtype);
        let whole = self.column + P * PANEL <= out.cols();
        let streams = whole && self.strip.streams;
        // SAFETY: the caller's contract; the scratch has room for the results of a tile.
        unsafe {
            if streams {
                drain.all(s);
            }
            for (p, acc) in acc.into_iter().enumerate() {
                let column = self.column + p * PANEL;
                match (out.dtype(), added) {
                    (DType::F32, DType::F32) if whole => {
                        let to = if streams {
                            (self.result(p), P * PANEL * size_of::<f32>())
                        } else {
                            self.place(p, 0)
                        };
                        self.finish_whole(s, (p, acc), add, to);
                    }
                    (DType::F16, DType::F16) if whole => {
                        self.finish_panel(s, (column, acc), add, Some(DType::F16));
                    }
                    _ => self.finish_panel(s, (column, acc), add, None),
                }
            }
            if streams {
                *drain = Drain::of(self.result(0).cast(), self.place(0, 0), R, P);
            }
        }
    }

    /// Where the first row of results of panel `p` waits for the drain.
    #[inline(always)]
    fn result(&self, p: usize) -> *mut u8 {
        self.strip.work.wrapping_add(RESULTS + p * PANEL).cast()
    }

    /// [`Tile::finish`] of panel `p` where everything is f32 and all 16 columns exist; rows go to `to` and `step` bytes on.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn finish_whole<S: Tiled, const R: usize>(
        &self,
        s: S,
        (p, acc): (usize, [S::C; R]),
        add: Addend<'_>,
        (to, step): (*mut u8, usize),
    ) {
        let from = add.view().map(|add| {
            let row = add.row(self.strip.rows.start + self.first);
            let step = add.stride() * size_of::<f32>();
            (row.at(self.column + p * PANEL), step)
        });
        let zeros = s.columns([s.splat(0.0); 2]);
        for (r, mut y) in acc.into_iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe {
                if let Some((from, step)) = from {
                    y = s.add_columns(y, s.load_columns(from.wrapping_add(r * step).cast()));
                } else if matches!(add, Addend::Zeros) {
                    y = s.add_columns(y, zeros);
                }
                s.store_columns(to.wrapping_add(r * step).cast(), y);
            }
        }
    }

    /// [`Tile::finish`] of the panel from `column` on; `known` is the dtype of results and what is added, where all 16 columns
    /// exist.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish_panel<S: Tiled, const R: usize>(
        &self,
        s: S,
        (column, acc): (usize, [S::C; R]),
        added: Addend<'_>,
        known: Option<DType>,
    ) {
        let all = self.strip.total.out();
        let (end, zeros) = (all.cols(), matches!(added, Addend::Zeros));
        for (r, sums) in acc.into_iter().enumerate() {
            let row = self.strip.rows.start + self.first + r;
            let out = all.row(row).known(known);
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

/// Sums of nothing.
#[inline(always)]
fn zeros<S: Tiled, const R: usize, const P: usize>(s: S) -> [[S::C; R]; P] {
    [[s.columns([s.splat(0.0); 2]); R]; P]
}
