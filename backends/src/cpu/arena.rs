//! The memory of one tile: one aligned block, offsets from the plan.

use std::cell::UnsafeCell;

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;

use super::kernels::huge_pages;

/// One cache line, aligned like one.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A tile's buffers. Workers read and write disjoint parts of it at the same time; which parts is
/// the plan's business, and guard mode checks it.
pub(super) struct Arena {
    lines: Box<[UnsafeCell<Line>]>,
    /// The tile address of the first byte: parameters, which lie below, are packed elsewhere.
    base: u64,
    end: u64,
}

// SAFETY: the bytes are reached only through `Arena::at`, whose callers promise disjoint access.
unsafe impl Sync for Arena {}

impl Arena {
    /// The addresses `base..end` of a tile, zeroed, in large pages that come where they are first touched.
    ///
    /// # Errors
    /// The host does not have that much memory.
    pub(super) fn new(base: u64, end: u64) -> Result<Self, String> {
        let lines = (end - base).div_ceil(64) as usize;
        let refused = |()| {
            format!(
                "{} bytes of memory for the activations of one tile",
                end - base
            )
        };
        let cells: Vec<UnsafeCell<Line>> = try_zeroed_vec(lines).map_err(refused)?;
        huge_pages(&cells);
        Ok(Arena {
            lines: cells.into_boxed_slice(),
            base,
            end,
        })
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        (self.end - self.base).next_multiple_of(64)
    }

    /// The tile addresses the arena holds.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.base..self.end
    }

    /// Where the bytes `start..end` of the tile lie.
    ///
    /// # Panics
    /// If they are not all in the arena.
    ///
    /// # Safety
    /// While the pointer is used to write, nobody else may access the same bytes.
    pub(super) unsafe fn at(&self, start: u64, end: u64) -> *mut u8 {
        assert!(
            self.base <= start && start <= end && end <= self.end,
            "bytes {start}..{end} are outside the arena {}..{}",
            self.base,
            self.end
        );
        let first = self.lines.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: the offset is in bounds; the cells allow writing through a shared reference.
        unsafe { first.add((start - self.base) as usize) }
    }
}
