//! Results on their way past the caches.

use super::super::pack::PANEL;
use super::super::simd::Tiled;

/// The most rows that are sent on at a time.
const ROWS: usize = 3;

/// The steps that the memory needs for each.
const STEPS: usize = 12;

/// Finished results of a tile that go past the caches a few rows at a time, between the steps of the tile to follow: the memory's
/// queue is a dozen cache lines, and all loads wait while a tile's results fill it.
#[derive(Clone, Copy)]
pub(super) struct Drain {
    /// The next row of results, its panels side by side.
    from: *const f32,
    /// Where it goes, and the bytes from row to row.
    to: *mut u8,
    step: usize,
    panels: usize,
    /// Rows that are left.
    rows: usize,
}

impl Drain {
    /// Nothing on its way.
    pub(super) fn new() -> Self {
        Drain {
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            step: 0,
            panels: 0,
            rows: 0,
        }
    }

    /// The results of a tile, row by row from `from` on, whose rows go to `to` and `step` bytes on. None may be on its way.
    pub(super) fn of(
        from: *const f32,
        (to, step): (*mut u8, usize),
        rows: usize,
        panels: usize,
    ) -> Self {
        Drain {
            from,
            to,
            step,
            panels,
            rows,
        }
    }

    /// Sends some rows on, before so many steps.
    ///
    /// # Safety
    /// The results lie where [`Drain::of`] was told, and so many columns of so many rows are valid for writing, whole aligned
    /// cache lines.
    #[inline(always)]
    pub(super) unsafe fn some<S: Tiled>(&mut self, s: S, steps: usize) {
        if self.rows > 0 {
            // SAFETY: the caller's contract.
            unsafe { self.send(s, self.rows.min(ROWS).min(steps.div_ceil(STEPS))) }
        }
    }

    /// Sends all on.
    ///
    /// # Safety
    /// As [`Drain::some`].
    #[inline(always)]
    pub(super) unsafe fn all<S: Tiled>(&mut self, s: S) {
        // SAFETY: the caller's contract.
        unsafe { self.send(s, self.rows) }
    }

    /// # Safety
    /// As [`Drain::some`]; so many rows are left.
    #[inline(always)]
    unsafe fn send<S: Tiled>(&mut self, s: S, rows: usize) {
        for _ in 0..rows {
            for p in 0..self.panels {
                // SAFETY: the caller's contract.
                unsafe {
                    let to = self.to.cast::<f32>().add(p * PANEL);
                    s.stream_columns(to, s.load_columns(self.from));
                    self.from = self.from.add(PANEL);
                }
            }
            self.to = self.to.wrapping_add(self.step);
        }
        self.rows -= rows;
    }
}
