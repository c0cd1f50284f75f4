//! The tile: the loop in which nearly all time is spent.

use std::marker::PhantomData;

use super::super::pack::PANEL;
use super::super::simd::{Body, Floats, Half, Simd, Single, Tiled, has_tile, pair_step, step};
use super::super::view::Row;
use super::fixed::{CHUNK, quantise};
use super::widen;

/// Cache lines to ask for while computing: the weights needed next. They are a few at a time end to end, and such runs a
/// step apart. Tiles work on a copy, in registers.
#[derive(Clone, Copy)]
pub(in super::super) struct Feed {
    next: *const u8,
    /// The end of the run that `next` is in.
    end: *const u8,
    /// Bytes of a run.
    run: usize,
    /// Bytes from the end of a run to the start of the next.
    gap: usize,
    /// Lines to ask for in all, in how many blocks, and the lines due by now times the blocks.
    lines: usize,
    blocks: usize,
    due: usize,
}

impl Feed {
    /// Spreads `count` runs of (bytes, bytes from one run to the next) over so many blocks: of [`BLOCK`] steps, or, where all is
    /// asked for by [`Feed::ask_at_once`], of as many as the caller likes.
    #[inline(always)]
    pub(in super::super) fn runs(
        next: *const u8,
        count: usize,
        (bytes, step): (usize, usize),
        blocks: usize,
    ) -> Self {
        let run = bytes.next_multiple_of(LINE_BYTES);
        Feed {
            next,
            end: next.wrapping_add(run),
            run,
            gap: step.wrapping_sub(run),
            lines: count * run / LINE_BYTES,
            blocks: blocks.max(1),
            due: 0,
        }
    }

    /// Nothing to ask for.
    #[inline(always)]
    pub(in super::super) fn none() -> Self {
        Self::runs(std::ptr::null(), 0, (0, 0), 1)
    }

    /// Asks for the lines of one block of a tile of P panels; or, where its steps can do that, says where they begin,
    /// as [`Feed::block`].
    #[inline(always)]
    pub(in super::super) fn ask<S: Tiled, const P: usize>(
        &mut self,
        s: S,
        idle: *const u8,
    ) -> Option<[*const u8; 2]> {
        if S::asks(P) {
            return Some(self.block(idle));
        }
        self.ask_at_once(s, 1);
        None
    }

    /// Asks for the lines of some blocks, all at once: best where they are few.
    #[inline(always)]
    pub(in super::super) fn ask_at_once<S: Simd>(&mut self, s: S, blocks: usize) {
        self.due += self.lines * blocks;
        while self.due >= self.blocks {
            while self.due >= self.blocks && self.next < self.end {
                self.due -= self.blocks;
                s.prefetch(self.next);
                self.next = self.next.wrapping_add(LINE_BYTES);
            }
            self.turn();
        }
    }

    /// The lines of one block, to be asked for one by one between its steps: where [`BLOCK`] lines begin, twice; `idle` where
    /// there are none. If runs are not so many lines each, those that begin a few past their end.
    #[inline(always)]
    fn block(&mut self, idle: *const u8) -> [*const u8; 2] {
        let mut starts = [idle; 2];
        self.due += self.lines;
        for start in &mut starts {
            if self.due >= BLOCK * self.blocks {
                self.due -= BLOCK * self.blocks;
                *start = self.next;
                self.skip(BLOCK);
            }
        }
        starts
    }

    /// Goes on by some lines.
    #[inline(always)]
    fn skip(&mut self, lines: usize) {
        self.next = self.next.wrapping_add(lines * LINE_BYTES);
        self.turn();
    }

    /// Goes on to the next run where this one is at its end.
    #[inline(always)]
    fn turn(&mut self) {
        if self.next >= self.end {
            self.next = self.end.wrapping_add(self.gap);
            self.end = self.next.wrapping_add(self.run);
        }
    }
}

/// Bytes of a cache line.
pub(in super::super) const LINE_BYTES: usize = 64;

/// Steps of the summed index between two rounds of prefetching.
pub(in super::super) const BLOCK: usize = 8;

/// Inputs of a panel's share: it comes from the second-level cache as fast as a tile passes it, and leaving sums costs
/// little. A multiple of [`CHUNK`].
const SHARE_INPUTS: usize = 768;

/// How far ahead a tile of several panels asks for each panel's values, in bytes.
const AHEAD: usize = 2048;

/// What [`multiply`] works on.
#[derive(Clone, Copy)]
pub(in super::super) struct Tile {
    /// The left side, row by row: in each place an f32, or a pair of i16.
    pub(in super::super) a: *const f32,
    /// Places from one of its rows to the next.
    pub(in super::super) a_row: usize,
    /// The first panel.
    pub(in super::super) w: *const u8,
    /// Bytes from one panel to the next.
    pub(in super::super) w_panel: usize,
    /// Steps of the summed index: one for each place of a row.
    pub(in super::super) depth: usize,
    /// The result: 16 columns per panel, panel after panel.
    pub(in super::super) c: *mut f32,
    /// Values from one row of the result to the next.
    pub(in super::super) c_row: usize,
    /// Whether sums start at zero; else, and in a tile's own code always, they go on from what is in `c`.
    pub(in super::super) fresh: bool,
}

impl Tile {
    /// The tile `count` panels further on.
    #[inline(always)]
    fn skip(self, count: usize) -> Self {
        Tile {
            w: self.w.wrapping_add(count * self.w_panel),
            c: self.c.wrapping_add(count * PANEL),
            ..self
        }
    }

    /// The tile `steps` steps further on.
    #[inline(always)]
    fn later(self, steps: usize, step_bytes: usize) -> Self {
        Tile {
            a: self.a.wrapping_add(steps),
            w: self.w.wrapping_add(steps * step_bytes),
            depth: self.depth - steps,
            ..self
        }
    }

    /// The tile with its sums begun, at zero.
    ///
    /// # Safety
    /// `c` is valid for writing the results.
    #[inline(always)]
    unsafe fn clear<S: Tiled>(self, s: S, rows: usize, panels: usize) -> Self {
        let zeros = s.columns([s.splat(0.0); 2]);
        for r in 0..rows {
            for p in 0..panels {
                // SAFETY: the caller's contract.
                unsafe { s.store_columns(self.sums(p, r), zeros) };
            }
        }
        Tile {
            fresh: false,
            ..self
        }
    }

    /// The sums of row `r` in panel `p`.
    #[inline(always)]
    fn sums(self, p: usize, r: usize) -> *mut f32 {
        self.c.wrapping_add(r * self.c_row + p * PANEL)
    }
}

/// How a weight is packed: what a place of the left side holds, and how a tile multiplies.
pub(in super::super) trait Packing {
    /// Inputs in one place of the left side.
    const INPUTS: usize;
    /// Bytes of one step of a panel.
    const STEP: usize;
    /// Steps multiplied at a time where several tiles of rows pass the same panels, so that a share of the panels stays in the
    /// second-level cache.
    const SHARE: usize = SHARE_INPUTS / Self::INPUTS;
    /// Whether sums are still to be multiplied by the scales of their row and column.
    const SCALED: bool;

    /// Packs the first `n` inputs of a row; returns the scale of the row.
    ///
    /// # Safety
    /// The row has them; `to` is valid for writing them, rounded up to eight.
    unsafe fn pack<S: Tiled>(s: S, row: Row, n: usize, to: *mut f32) -> f32;

    /// [`multiply`] for R rows and P panels, all R·P sums of 16 columns in registers.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn tile<S: Tiled, const R: usize, const P: usize>(s: S, t: Tile, feed: &mut Feed);
}

/// Weights in fixed point; see `fixed`.
pub(in super::super) struct Fixed;

macro_rules! floats {
    ($($name:ident)+) => {$(
        impl Packing for $name {
            const INPUTS: usize = 1;
            const STEP: usize = PANEL * <$name as Floats>::SIZE;
            const SCALED: bool = false;

            #[inline(always)]
            unsafe fn pack<S: Tiled>(s: S, row: Row, n: usize, to: *mut f32) -> f32 {
                // SAFETY: the caller's contract.
                unsafe { widen(s, row, n, to) };
                1.0
            }

            #[inline(always)]
            unsafe fn tile<S: Tiled, const R: usize, const P: usize>(s: S, t: Tile, feed: &mut Feed) {
                // SAFETY: the caller's contract.
                unsafe { float_tile::<S, $name, R, P>(s, t, feed) }
            }
        }
    )+};
}
floats!(Half Single);

impl Packing for Fixed {
    const INPUTS: usize = 2;
    const STEP: usize = PANEL * 2 * size_of::<i16>();
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn pack<S: Tiled>(s: S, row: Row, n: usize, to: *mut f32) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { quantise(s, row, n, to) }
    }

    #[inline(always)]
    unsafe fn tile<S: Tiled, const R: usize, const P: usize>(s: S, t: Tile, feed: &mut Feed) {
        let (mut t, mut ahead) = (t, *feed);
        loop {
            let steps = t.depth.min(CHUNK / Self::INPUTS);
            // SAFETY: the caller's contract; these are some of `depth` steps.
            unsafe {
                let sums = pair_sums::<S, R, P>(s, Tile { depth: steps, ..t }, &mut ahead);
                for (p, sums) in sums.into_iter().enumerate() {
                    for (r, sums) in sums.into_iter().enumerate() {
                        let c = t.sums(p, r);
                        let sums = s.add_columns(s.load_columns(c), s.to_columns(sums));
                        s.store_columns(c, sums);
                    }
                }
            }
            t = t.later(steps, Self::STEP);
            if t.depth == 0 {
                break;
            }
        }
        *feed = ahead;
    }
}

/// [`Packing::tile`] of R rows and P panels.
struct Few<'a, W, const R: usize, const P: usize>(Tile, &'a mut Feed, PhantomData<W>);

impl<'a, W, const R: usize, const P: usize> Few<'a, W, R, P> {
    #[inline(always)]
    fn new(t: Tile, feed: &'a mut Feed) -> Self {
        Few(t, feed, PhantomData)
    }
}

impl<W: Packing, const R: usize, const P: usize> Body for Few<'_, W, R, P> {
    #[inline(always)]
    unsafe fn run<S: Tiled>(self, s: S) {
        // SAFETY: the caller's contract, which is that of a tile.
        unsafe { W::tile::<S, R, P>(s, self.0, self.1) }
    }
}

/// `c = a · w` (or `c += a · w`) for `rows` ≤ [`Tiled::MAX_ROWS`] rows and `panels` panels.
///
/// # Safety
/// `t.a` is valid for reading the rows, `t.w` the panels, `t.c` for reading and writing the results.
#[inline(always)]
pub(in super::super) unsafe fn multiply<S: Tiled, W: Packing>(
    s: S,
    t: Tile,
    rows: usize,
    panels: usize,
    feed: &mut Feed,
) {
    /// The tile of so many rows and panels, where the instruction set has it.
    macro_rules! tile {
        ($t:expr, $count:expr, $($rows:literal x $panels:literal),+) => {
            match (rows, $count) {
                $(($rows, $panels) if const { has_tile::<S>($rows, $panels) } => {
                    s.apart(Few::<W, $rows, $panels>::new($t, feed))
                })+
                (rows, count) => unreachable!("a tile of {rows} rows and {count} panels"),
            }
        };
    }
    let t = if t.fresh {
        // SAFETY: the caller's contract for `c`.
        unsafe { t.clear(s, rows, panels) }
    } else {
        t
    };
    let group = S::panels(rows);
    let mut p = 0;
    while p < panels {
        let count = if panels - p >= group { group } else { 1 };
        let t = t.skip(p);
        // SAFETY: the caller's contract.
        unsafe {
            tile!(
                t, count, 1 x 8, 1 x 4, 1 x 1, 2 x 4, 2 x 2, 2 x 1, 3 x 4, 3 x 1, 4 x 2, 4 x 1, 5 x 2, 5 x 1,
                6 x 2, 6 x 1, 7 x 2, 7 x 1, 8 x 2, 8 x 1, 9 x 2, 9 x 1, 10 x 2, 10 x 1, 11 x 2, 11 x 1, 12 x 2,
                12 x 1
            );
        }
        p += count;
    }
}

/// [`Packing::tile`] of floats: whole blocks of steps, then those that are left, each from memory to memory, so that no sum
/// changes its register.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn float_tile<S: Tiled, W: Floats, const R: usize, const P: usize>(
    s: S,
    t: Tile,
    feed: &mut Feed,
) {
    let (size, whole) = (PANEL * W::SIZE, t.depth / BLOCK * BLOCK);
    // SAFETY: the caller's contract; these are `depth` steps.
    unsafe {
        if whole > 0 {
            let mut acc = load::<S, R, P>(s, t);
            let (mut a, mut w, end) = (t.a, t.w, t.a.wrapping_add(whole));
            let mut ahead = *feed;
            while a != end {
                let next = ask::<S, R, P>(s, (w, t.w_panel), size, &mut ahead);
                s.eight_steps::<R, P, W>(&mut acc, (a, t.a_row), (w, t.w_panel), next);
                (a, w) = (a.wrapping_add(BLOCK), w.wrapping_add(BLOCK * size));
            }
            *feed = ahead;
            store(s, t, acc);
        }
        if whole < t.depth {
            let rest = t.later(whole, size);
            let mut acc = load::<S, R, P>(s, rest);
            let (mut a, mut w) = (rest.a, rest.w);
            for _ in 0..rest.depth {
                step::<S, W, R, P>(s, &mut acc, (a, t.a_row), (w, t.w_panel));
                (a, w) = (a.wrapping_add(1), w.wrapping_add(size));
            }
            store(s, rest, acc);
        }
    }
}

/// The sums of R rows and P panels so far.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn load<S: Tiled, const R: usize, const P: usize>(s: S, t: Tile) -> [[S::C; R]; P] {
    let mut acc = [[s.columns([s.splat(0.0); 2]); R]; P];
    for (p, acc) in acc.iter_mut().enumerate() {
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's contract for `c`.
            *acc = unsafe { s.load_columns(t.sums(p, r)) };
        }
    }
    acc
}

/// Leaves the sums of R rows and P panels.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn store<S: Tiled, const R: usize, const P: usize>(s: S, t: Tile, acc: [[S::C; R]; P]) {
    for (p, acc) in acc.into_iter().enumerate() {
        for (r, acc) in acc.into_iter().enumerate() {
            // SAFETY: the caller's contract for `c`.
            unsafe { s.store_columns(t.sums(p, r), acc) };
        }
    }
}

/// The sums of at most [`CHUNK`] inputs in fixed point.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn pair_sums<S: Tiled, const R: usize, const P: usize>(
    s: S,
    t: Tile,
    feed: &mut Feed,
) -> [[S::N; R]; P] {
    let mut acc = [[s.zero_sums(); R]; P];
    let (mut a, mut w) = (t.a, t.w);
    for _ in 0..t.depth / BLOCK {
        let next = ask::<S, R, P>(s, (w, t.w_panel), Fixed::STEP, feed);
        // SAFETY: the caller's contract; these are some of `depth` steps.
        unsafe { s.eight_pairs::<R, P>(&mut acc, (a, t.a_row), (w, t.w_panel), next) };
        (a, w) = (a.wrapping_add(BLOCK), w.wrapping_add(BLOCK * Fixed::STEP));
    }
    for _ in 0..t.depth % BLOCK {
        // SAFETY: the caller's contract; this is one of `depth` steps.
        unsafe { pair_step::<S, R, P>(s, &mut acc, (a, t.a_row), (w, t.w_panel)) };
        (a, w) = (a.wrapping_add(1), w.wrapping_add(Fixed::STEP));
    }
    acc
}

/// Asks for what comes next: where rows are few, the steps [`AHEAD`] bytes after those at `w` in each of P panels, for one
/// tile passes them and the memory's rate decides; else what `feed` has, as [`Feed::ask`].
#[inline(always)]
fn ask<S: Tiled, const R: usize, const P: usize>(
    s: S,
    (w, panel): (*const u8, usize),
    step: usize,
    feed: &mut Feed,
) -> Option<[*const u8; 2]> {
    if S::asks(P) || P == 1 || R > 3 {
        return feed.ask::<S, P>(s, w);
    }
    for p in 0..P {
        for line in 0..BLOCK * step / LINE_BYTES {
            s.prefetch(w.wrapping_add(p * panel + AHEAD + line * LINE_BYTES));
        }
    }
    None
}
