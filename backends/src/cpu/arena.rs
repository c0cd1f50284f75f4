//! The memory of one tile: one aligned block, offsets from the plan.

use super::kernels::Zeros;

/// Bytes of a cache line.
const LINE: u64 = 64;

/// A tile's buffers. Workers read and write disjoint parts of it at the same time; which parts is
/// the plan's business, and guard mode checks it.
pub(super) struct Arena {
    memory: Zeros,
    /// The tile address of the first byte: parameters, which lie below, are packed elsewhere.
    base: u64,
    end: u64,
}

impl Arena {
    /// The addresses `base..end` of a tile, zeroed, in large pages that come where they are first touched.
    ///
    /// # Errors
    /// The host does not have that much memory.
    pub(super) fn new(base: u64, end: u64) -> Result<Self, String> {
        let memory = usize::try_from((end - base).div_ceil(LINE)).ok();
        let memory = memory.and_then(Zeros::new).ok_or_else(|| {
            format!(
                "{} bytes of memory for the activations of one tile",
                end - base
            )
        })?;
        Ok(Arena { memory, base, end })
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.bytes() as u64
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
        // SAFETY: the offset is in bounds.
        unsafe { self.memory.start().add((start - self.base) as usize) }
    }
}
