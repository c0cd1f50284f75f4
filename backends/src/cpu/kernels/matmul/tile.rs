//! A few rows of some panels, and what becomes of their sums.

use std::ops::Range;

use lxpod_ir::DType;

use super::super::pack::PANEL;
use super::super::simd::{Body, LANES, Tiled, WIDE_ROWS, wide_steps};
use super::super::{Addend, View};
use super::{Block, Drain, PANELS, RESULTS, SUMS, Share, Traffic, load_up_to};

/// The most steps between which nothing else is done.
const STEPS: usize = 48;

/// A few rows of some panels; their values of A and of B are packed.
pub(super) struct Tile<'a> {
    pub(super) block: &'a Block<'a>,
    pub(super) share: Share<'a>,
    /// The first panel's first column.
    pub(super) column: usize,
    /// The first row, in the block.
    pub(super) first: usize,
}

/// [`Tile::run`] of R rows and P panels.
struct Rows<'a, const R: usize, const P: usize>(&'a Tile<'a>, &'a mut Traffic);

impl<const R: usize, const P: usize> Body for Rows<'_, R, P> {
    #[inline(always)]
    unsafe fn run<S: Tiled>(self, s: S) {
        // SAFETY: the caller's contract, which is that of a tile.
        unsafe { self.0.run::<S, R, P>(s, self.1) }
    }
}

impl Tile<'_> {
    /// Adds the products of one share to so many rows and panels of sums.
    ///
    /// # Safety
    /// The rows and columns exist; A's and B's shares are packed.
    #[inline(always)]
    pub(super) unsafe fn add_share<S: Tiled>(
        &self,
        s: S,
        rows: usize,
        panels: usize,
        traffic: &mut Traffic,
    ) {
        /// The tile of so many rows and panels, where the instruction set has it.
        macro_rules! tile {
            ($($count:literal),+) => {
                match (rows, panels) {
                    $(($count, 1) if const { $count <= S::WIDE.0 } => {
                        s.apart(Rows::<$count, 1>(self, traffic))
                    })+
                    $(($count, 3) if const { $count <= S::WIDE.0 && S::WIDE.1 == 3 } => {
                        s.apart(Rows::<$count, 3>(self, traffic))
                    })+
                    _ => unreachable!("a tile of {rows} rows and {panels} panels"),
                }
            };
        }
        // SAFETY: the caller's contract.
        unsafe { tile!(1, 2, 3, 4, 5, 6, 7, 8) }
    }

    /// [`Tile::add_share`] of R rows and P panels.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn run<S: Tiled, const R: usize, const P: usize>(&self, s: S, traffic: &mut Traffic) {
        if self.share.last && !self.block.streams {
            self.ask::<S, R, P>(s);
        }
        // A copy, in registers.
        let mut copy = *traffic;
        // SAFETY: the caller's contract.
        unsafe {
            if self.block.total.several() {
                self.chains::<S, R, P>(s, &mut copy);
            } else {
                let mut acc = if self.share.first {
                    zeros::<S, R, P>(s)
                } else {
                    self.load::<S, R, P>(s)
                };
                self.add_products(s, &mut acc, 0..self.share.depth, &mut copy);
                self.store(s, acc, self.block.total.add(), &mut copy.drain);
            }
        }
        *traffic = copy;
    }

    /// [`Tile::run`] of several whole chains: their total waits in the first-level cache.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn chains<S: Tiled, const R: usize, const P: usize>(&self, s: S, traffic: &mut Traffic) {
        let mut start = 0;
        // SAFETY: the caller's contract; the scratch has room for the totals.
        unsafe {
            if self.share.first {
                let totals = self.begin::<S, R, P>(s);
                self.leave(s, totals);
            }
            for (i, chain) in self.share.chains.iter().enumerate() {
                let steps = start..start + chain.depth;
                start = steps.end;
                let mut acc = zeros::<S, R, P>(s);
                self.add_products(s, &mut acc, steps, traffic);
                self.add_sums(s, &mut acc);
                if i + 1 < self.share.chains.len() {
                    self.leave(s, acc);
                } else {
                    self.store(s, acc, Addend::Nothing, &mut traffic.drain);
                }
            }
        }
    }

    /// Adds the products of some steps of the share.
    ///
    /// # Safety
    /// As [`Tile::add_share`].
    #[inline(always)]
    unsafe fn add_products<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: &mut [[S::C; R]; P],
        steps: Range<usize>,
        traffic: &mut Traffic,
    ) {
        let left = self.block.work.cast_const();
        let right = self.block.right(self.share, self.column).cast_const();
        let Range { mut start, end } = steps;
        while start < end {
            let count = STEPS.min(end - start);
            // SAFETY: the caller's contract.
            unsafe {
                traffic.drain.some(s, count);
                traffic.feed.ask_at_once(s, count);
                let (a, b) = (left.add(start * WIDE_ROWS), right.add(start * P * PANEL));
                wide_steps::<S, R, P>(s, acc, a, b, count);
            }
            start += count;
        }
    }

    /// Asks for the places of the results.
    #[inline(always)]
    fn ask<S: Tiled, const R: usize, const P: usize>(&self, s: S) {
        for p in 0..P {
            let (start, step) = self.place(p, 0);
            for r in 0..R {
                s.prefetch(start.wrapping_add(r * step));
            }
        }
    }

    /// Where row `r` of the result begins in panel `p`, and the bytes from row to row.
    #[inline(always)]
    fn place(&self, p: usize, r: usize) -> (*mut u8, usize) {
        let (out, column) = (self.block.total.out(), self.column + p * PANEL);
        let (start, step) = (
            out.as_view().row(self.block.rows.start).at(column),
            out.stride() * out.dtype().size(),
        );
        (start.cast_mut().wrapping_add((self.first + r) * step), step)
    }

    /// Where the sums of the tile's R rows wait, panel after panel; if they wait for no other share, in the same place for all tiles.
    #[inline(always)]
    fn sums<const R: usize>(&self) -> *mut f32 {
        let column = self.column - self.block.columns.start;
        let tile = if self.share.first && self.share.last {
            0
        } else {
            self.first * PANELS * PANEL + column * R
        };
        self.block.work.wrapping_add(SUMS + tile)
    }

    /// What totals begin with.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn begin<S: Tiled, const R: usize, const P: usize>(&self, s: S) -> [[S::C; R]; P] {
        let mut totals = zeros::<S, R, P>(s);
        let Some(add) = self.block.total.add().view() else {
            return totals;
        };
        for (p, totals) in totals.iter_mut().enumerate() {
            let column = self.column + p * PANEL;
            for (r, total) in totals.iter_mut().enumerate() {
                let row = add.row(self.block.rows.start + self.first + r);
                // SAFETY: the caller's contract; only columns that exist are read.
                *total = unsafe {
                    if column + PANEL <= add.cols() {
                        s.load_columns(row.at(column).cast())
                    } else {
                        load_up_to(s, row, column, add.cols())
                    }
                };
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
        let (mut acc, sums) = (zeros::<S, R, P>(s), self.sums::<R>());
        for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *acc = unsafe { s.load_columns(sums.add(i * PANEL)) };
        }
        acc
    }

    /// Adds the sums that were left: from memory, since there are no registers for both.
    ///
    /// # Safety
    /// As [`Tile::leave`].
    #[inline(always)]
    unsafe fn add_sums<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: &mut [[S::C; R]; P],
    ) {
        let sums = self.sums::<R>();
        for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *acc = unsafe { s.add_columns(*acc, s.load_columns(sums.add(i * PANEL))) };
        }
    }

    /// Leaves sums for the next share.
    ///
    /// # Safety
    /// The scratch has room for them.
    #[inline(always)]
    unsafe fn leave<S: Tiled, const R: usize, const P: usize>(&self, s: S, acc: [[S::C; R]; P]) {
        let sums = self.sums::<R>();
        for (i, acc) in acc.as_flattened().iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { s.store_columns(sums.add(i * PANEL), *acc) };
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
        let out = self.block.total.out();
        let added = add.view().map_or(out.dtype(), View::dtype);
        let whole = self.column + P * PANEL <= out.cols();
        let streams = whole && self.block.streams;
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
        self.block.work.wrapping_add(RESULTS + p * PANEL).cast()
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
            let row = add.row(self.block.rows.start + self.first);
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
        let all = self.block.total.out();
        let (end, zeros) = (all.cols(), matches!(added, Addend::Zeros));
        for (r, sums) in acc.into_iter().enumerate() {
            let row = self.block.rows.start + self.first + r;
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
