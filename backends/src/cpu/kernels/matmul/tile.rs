//! A few rows of some panels, and what becomes of their sums.

use lxpod_ir::DType;

use super::super::View;
use super::super::pack::PANEL;
use super::super::simd::{Body, LANES, Left, Right, Tiled, wide_steps};
use super::sides::load_up_to;
use super::{Block, Drain, PANELS, RESULTS, SUMS, Share, Start, Traffic};

/// The most steps between which nothing else is done.
const STEPS: usize = 32;

/// A few rows of some panels, whose values of B are packed.
pub(super) struct Tile<'a> {
    pub(super) block: &'a Block<'a>,
    pub(super) share: Share,
    /// The first panel's first column.
    pub(super) column: usize,
    /// The first row, in the block.
    pub(super) first: usize,
    /// Its rows of A.
    pub(super) left: Left,
    /// Its columns of B.
    pub(super) right: Right,
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
    /// The rows and columns exist; B's share is packed.
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
        let Share { first, last, .. } = self.share;
        if first && self.start().is_some() || last && !self.block.streams {
            self.ask::<S, R, P>(s);
        }
        // A copy, in registers.
        let mut copy = *traffic;
        // SAFETY: the caller's contract.
        unsafe {
            let mut acc = if first {
                self.begin::<S, R, P>(s)
            } else {
                self.load::<S, R, P>(s)
            };
            self.add_products(s, &mut acc, &mut copy);
            if last {
                self.finish(s, acc, &mut copy.drain);
            } else {
                self.leave(s, acc);
            }
        }
        *traffic = copy;
    }

    /// What sums begin with, if not with zero.
    #[inline(always)]
    fn start(&self) -> Option<View<'_>> {
        match self.block.chain.start {
            Start::From(start) => Some(start),
            Start::Zero | Start::Reset => None,
        }
    }

    /// Adds the products of the share.
    ///
    /// # Safety
    /// As [`Tile::add_share`].
    #[inline(always)]
    unsafe fn add_products<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: &mut [[S::C; R]; P],
        traffic: &mut Traffic,
    ) {
        let depth = self.share.depth;
        for start in (0..depth).step_by(STEPS) {
            let count = STEPS.min(depth - start);
            // SAFETY: the caller's contract.
            unsafe {
                traffic.drain.some(s, count);
                traffic.feed.ask_at_once(s, count);
                let (a, b) = (self.left.later(start), self.right.later(start, P));
                wide_steps::<S, R, P>(s, acc, a, b, count);
            }
        }
    }

    /// Asks for the places of the results of the tile to follow.
    #[inline(always)]
    fn ask<S: Tiled, const R: usize, const P: usize>(&self, s: S) {
        let column = self.column + P * PANEL;
        let (first, column) = if column < self.block.columns.end {
            (self.first, column)
        } else {
            (self.first + R, self.block.columns.start)
        };
        let next = Tile {
            first,
            column,
            ..*self
        };
        for p in 0..P {
            let (start, step) = next.place(p, 0);
            for r in 0..R {
                s.prefetch(start.wrapping_add(r * step));
            }
        }
    }

    /// Where row `r` of the result begins in panel `p`, and the bytes from row to row.
    #[inline(always)]
    fn place(&self, p: usize, r: usize) -> (*mut u8, usize) {
        let (out, column) = (&self.block.chain.out, self.column + p * PANEL);
        let (start, step) = (
            out.as_view().row(self.block.rows.start).at(column),
            out.stride() * out.dtype().size(),
        );
        (start.cast_mut().wrapping_add((self.first + r) * step), step)
    }

    /// Where the sums of the tile's R rows wait for the next share, panel after panel.
    #[inline(always)]
    fn sums<const R: usize>(&self) -> *mut f32 {
        let column = self.column - self.block.columns.start;
        let tile = self.first * PANELS * PANEL + column * R;
        self.block.work.wrapping_add(SUMS + tile)
    }

    /// What sums begin with.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn begin<S: Tiled, const R: usize, const P: usize>(&self, s: S) -> [[S::C; R]; P] {
        let mut acc = zeros::<S, R, P>(s);
        let Some(start) = self.start() else {
            return acc;
        };
        for (p, acc) in acc.iter_mut().enumerate() {
            let column = self.column + p * PANEL;
            let whole = column + PANEL <= start.cols();
            for (r, sum) in acc.iter_mut().enumerate() {
                let row = start.row(self.block.rows.start + self.first + r);
                // SAFETY: the caller's contract; only columns that exist are read.
                *sum = unsafe {
                    match start.dtype() {
                        DType::F32 if whole => s.load_columns(row.at(column).cast()),
                        DType::F16 if whole => s.load_half_columns(row.at(column).cast()),
                        _ => load_up_to(s, row, column, start.cols()),
                    }
                };
            }
        }
        acc
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

    /// Stores finished sums.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish<S: Tiled, const R: usize, const P: usize>(
        &self,
        s: S,
        acc: [[S::C; R]; P],
        drain: &mut Drain,
    ) {
        let out = &self.block.chain.out;
        let whole = self.column + P * PANEL <= out.cols();
        let streams = whole && self.block.streams;
        // SAFETY: the caller's contract; the scratch has room for the results of a tile.
        unsafe {
            if streams {
                drain.all(s);
            }
            for (p, acc) in acc.into_iter().enumerate() {
                let column = self.column + p * PANEL;
                match out.dtype() {
                    DType::F32 if whole => {
                        let (to, step) = if streams {
                            (self.result(p), P * PANEL * size_of::<f32>())
                        } else {
                            self.place(p, 0)
                        };
                        for (r, y) in acc.into_iter().enumerate() {
                            s.store_columns(to.wrapping_add(r * step).cast(), y);
                        }
                    }
                    DType::F16 if whole => self.finish_panel(s, (column, acc), Some(DType::F16)),
                    _ => self.finish_panel(s, (column, acc), None),
                }
            }
            if streams {
                drain.take(self.result(0).cast(), self.place(0, 0), R, P);
            }
        }
    }

    /// Where the first row of results of panel `p` waits for the drain.
    #[inline(always)]
    fn result(&self, p: usize) -> *mut u8 {
        self.block.work.wrapping_add(RESULTS + p * PANEL).cast()
    }

    /// [`Tile::finish`] of the panel from `column` on; `known` is the dtype of results, where all 16 columns exist.
    ///
    /// # Safety
    /// The rows and columns exist.
    #[inline(always)]
    unsafe fn finish_panel<S: Tiled, const R: usize>(
        &self,
        s: S,
        (column, acc): (usize, [S::C; R]),
        known: Option<DType>,
    ) {
        let (out, first) = (&self.block.chain.out, self.block.rows.start + self.first);
        let end = out.cols();
        for (r, sums) in acc.into_iter().enumerate() {
            let row = out.row(first + r).known(known);
            for (column, y) in (column..).step_by(LANES).zip(s.halves(sums)) {
                let left = match known {
                    Some(_) => LANES,
                    None => end.saturating_sub(column),
                };
                if left > 0 {
                    // SAFETY: the caller's contract; so many columns exist.
                    unsafe { row.store(s, column, left, y) };
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
