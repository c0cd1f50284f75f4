//! The tile: the loop in which nearly all time is spent.

use super::super::pack::PANEL;
use super::super::simd::{LANES, Simd, Weights};

/// Cache lines to ask for while computing: the weights needed next. They are a few at a time end to end, and such runs a
/// step apart.
pub(in super::super) struct Feed {
    next: *const u8,
    /// Lines of a run.
    run: usize,
    /// Bytes from the end of a run to the start of the next.
    gap: usize,
    /// Lines left of this run, and in all.
    left: [usize; 2],
    per_block: usize,
}

impl Feed {
    /// Spreads `bytes` bytes from `next` on over `blocks` blocks of [`BLOCK`] steps.
    #[inline(always)]
    pub(in super::super) fn new(next: *const u8, bytes: usize, blocks: usize) -> Self {
        Self::runs(next, 1, (bytes, LINE_BYTES), blocks)
    }

    /// Spreads `count` runs of (bytes, bytes from one run to the next) over `blocks` blocks of [`BLOCK`] steps.
    #[inline(always)]
    pub(in super::super) fn runs(
        next: *const u8,
        count: usize,
        (bytes, step): (usize, usize),
        blocks: usize,
    ) -> Self {
        let run = bytes.div_ceil(LINE_BYTES);
        Feed {
            next,
            run,
            gap: step.wrapping_sub(run * LINE_BYTES),
            left: [run, count * run],
            per_block: (count * run).div_ceil(blocks.max(1)),
        }
    }

    /// Nothing to ask for.
    #[inline(always)]
    pub(in super::super) fn none() -> Self {
        Self::new(std::ptr::null(), 0, 1)
    }

    /// Asks for the lines of one block.
    #[inline(always)]
    pub(in super::super) fn advance<S: Simd>(&mut self, s: S) {
        let now = self.per_block.min(self.left[1]);
        for _ in 0..now {
            s.prefetch(self.next);
            self.next = self.next.wrapping_add(LINE_BYTES);
            self.left[0] -= 1;
            if self.left[0] == 0 {
                self.left[0] = self.run;
                self.next = self.next.wrapping_add(self.gap);
            }
        }
        self.left[1] -= now;
    }
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Steps of the summed index between two rounds of prefetching.
pub(in super::super) const BLOCK: usize = 8;

/// How far ahead a tile of several panels asks for each panel's values, in bytes.
const AHEAD: usize = 2048;

/// What [`multiply`] works on.
#[derive(Clone, Copy)]
pub(in super::super) struct Tile {
    /// The left side, row by row.
    pub(in super::super) a: *const f32,
    /// Values from one of its rows to the next.
    pub(in super::super) a_row: usize,
    /// The first panel.
    pub(in super::super) w: *const u8,
    /// Bytes from one panel to the next.
    pub(in super::super) w_panel: usize,
    /// Number of products in each sum.
    pub(in super::super) depth: usize,
    /// The result: 16 columns per panel, panel after panel.
    pub(in super::super) c: *mut f32,
    /// Values from one row of the result to the next.
    pub(in super::super) c_row: usize,
    /// Whether sums start at zero; else they go on from what is in `c`.
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
}

/// How many panels a tile of `rows` rows takes at once, so that it has enough independent sums to hide
/// the latency of `fma`, and enough streams to keep the memory busy.
#[inline(always)]
pub(in super::super) const fn group(rows: usize) -> usize {
    match rows {
        0 | 1 => 4,
        2 => 2,
        _ => 1,
    }
}

/// `c = a · w` (or `c += a · w`) for `rows` ≤ [`Simd::MAX_ROWS`] rows and `panels` panels.
///
/// # Safety
/// `t.a` is valid for reading the rows, `t.w` the panels, `t.c` for reading and writing the results.
#[inline(always)]
pub(in super::super) unsafe fn multiply<S: Simd, W: Weights>(
    s: S,
    t: Tile,
    rows: usize,
    panels: usize,
    feed: &mut Feed,
) {
    let mut p = 0;
    while p < panels {
        let at_once = if panels - p >= group(rows) {
            group(rows)
        } else {
            1
        };
        let t = t.skip(p);
        // SAFETY: the caller's contract.
        unsafe {
            match (rows, at_once) {
                (1, 4) => tile::<S, W, 1, 4>(s, t, feed),
                (2, 2) => tile::<S, W, 2, 2>(s, t, feed),
                (1, _) => tile::<S, W, 1, 1>(s, t, feed),
                (2, _) => tile::<S, W, 2, 1>(s, t, feed),
                (3, _) => tile::<S, W, 3, 1>(s, t, feed),
                (4, _) if S::MAX_ROWS >= 4 => tile::<S, W, 4, 1>(s, t, feed),
                (5, _) if S::MAX_ROWS >= 5 => tile::<S, W, 5, 1>(s, t, feed),
                (6, _) if S::MAX_ROWS >= 6 => tile::<S, W, 6, 1>(s, t, feed),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
        p += at_once;
    }
}

/// [`multiply`] for R rows and P panels, all 2·R·P sums in registers.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, W: Weights, const R: usize, const P: usize>(
    s: S,
    t: Tile,
    feed: &mut Feed,
) {
    let mut acc = [[[s.splat(0.0); 2]; R]; P];
    if !t.fresh {
        for (p, acc) in acc.iter_mut().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                let c = t.c.wrapping_add(r * t.c_row + p * PANEL);
                // SAFETY: the caller's contract for `c`.
                *acc = unsafe { [s.load_f32(c), s.load_f32(c.add(LANES))] };
            }
        }
    }
    let (mut a, mut w) = (t.a, t.w);
    let mut left = t.depth;
    while left > 0 {
        let steps = left.min(BLOCK);
        if P > 1 {
            ahead::<S, W, P>(s, w, t.w_panel);
        } else {
            feed.advance(s);
        }
        // SAFETY: the caller's contract; these are some of `depth` steps.
        unsafe {
            if P == 1 && steps == BLOCK {
                s.eight_steps::<R, W>(&mut acc[0], a, t.a_row, w);
            } else {
                for i in 0..steps {
                    let w = w.wrapping_add(i * PANEL * W::SIZE);
                    accumulate::<S, W, R, P>(s, &mut acc, (a.add(i), t.a_row), (w, t.w_panel));
                }
            }
        }
        a = a.wrapping_add(steps);
        w = w.wrapping_add(steps * PANEL * W::SIZE);
        left -= steps;
    }
    for (p, acc) in acc.iter().enumerate() {
        for (r, [low, high]) in acc.iter().enumerate() {
            let c = t.c.wrapping_add(r * t.c_row + p * PANEL);
            // SAFETY: the caller's contract for `c`.
            unsafe {
                s.store_f32(c, *low);
                s.store_f32(c.add(LANES), *high);
            }
        }
    }
}

/// Asks for the values of P panels that the block of steps [`AHEAD`] bytes after `w` needs.
#[inline(always)]
fn ahead<S: Simd, W: Weights, const P: usize>(s: S, w: *const u8, panel: usize) {
    for p in 0..P {
        for line in 0..BLOCK * PANEL * W::SIZE / LINE_BYTES {
            s.prefetch(w.wrapping_add(p * panel + AHEAD + line * LINE_BYTES));
        }
    }
}

/// One step of the summed index: `acc[p][r] += a[r] · w[p]`. Both sides are (address, distance to the next row or panel).
///
/// # Safety
/// The R left values and P panels' 16 values may be read.
#[inline(always)]
unsafe fn accumulate<S: Simd, W: Weights, const R: usize, const P: usize>(
    s: S,
    acc: &mut [[[S::V; 2]; R]; P],
    (a, row): (*const f32, usize),
    (w, panel): (*const u8, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        for (p, acc) in acc.iter_mut().enumerate() {
            let w = w.add(p * panel);
            let low = W::load(s, w);
            let high = W::load(s, w.add(LANES * W::SIZE));
            for (r, sums) in acc.iter_mut().enumerate() {
                let x = s.splat(*a.add(r * row));
                sums[0] = s.fma(x, low, sums[0]);
                sums[1] = s.fma(x, high, sums[1]);
            }
        }
    }
}
