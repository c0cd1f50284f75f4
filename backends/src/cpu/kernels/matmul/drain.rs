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
    /// What the squares of results are added to: a sum for each column of a panel.
    squares: *mut [f64; PANEL],
}

impl Drain {
    /// Nothing on its way; `squares` are sixteen sums.
    pub(super) fn new(squares: &mut [f64; PANEL]) -> Self {
        Drain {
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            step: 0,
            panels: 0,
            rows: 0,
            squares,
        }
    }

    /// Takes the results of a tile, row by row from `from` on, whose rows go to `to` and `step` bytes on. None may be on its way.
    pub(super) fn take(
        &mut self,
        from: *const f32,
        (to, step): (*mut u8, usize),
        rows: usize,
        panels: usize,
    ) {
        *self = Drain {
            from,
            to,
            step,
            panels,
            rows,
            squares: self.squares,
        };
    }

    /// Sends some rows on, before so many steps.
    ///
    /// # Safety
    /// The results lie where [`Drain::take`] was told, so many columns of so many rows are valid for writing, whole aligned
    /// cache lines, and the sums of squares live.
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
        // SAFETY: the caller's contract; the results lie end to end.
        unsafe { s.add_exact_squares(self.from, rows * self.panels, &mut *self.squares) };
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
