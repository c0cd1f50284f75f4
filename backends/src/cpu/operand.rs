//! Where the values of steps lie in a tile's memory.

use std::ops::Range;

use lxpod_ir::{DType, Extents, SpaceId};

use super::arena::Arena;
use super::kernels::{View, ViewMut};

/// What an operand is to the tile: the category of its bytes, by its role in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// An input or an output of the graph.
    HostIo,
    /// Received from another stage.
    Received,
    /// Computed by a forward program for a backward one.
    Stash,
    /// A parameter.
    Weight,
    /// A state of the optimiser.
    Optimizer,
    /// A sum of gradients.
    Accumulator,
    /// Computed and used by steps of one program.
    Activation,
}

/// What a run-time address depends on.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    /// The micro-batch's extents.
    pub extents: &'a Extents,
    /// The micro-batch, counted per replica.
    pub micro_batch: usize,
}

/// A value in a tile's arena.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    /// The tile whose arena it lies in.
    pub tile: usize,
    /// Tile address of its buffer.
    pub offset: u64,
    /// Tile address one past its buffer.
    pub end: u64,
    /// Slots of the buffer, and bytes from one to the next.
    pub slots: (usize, u64),
    /// Index of its buffer in the tile.
    pub buffer: usize,
    /// What it is to the tile.
    pub role: Role,
    /// How its elements are stored.
    pub dtype: DType,
    /// The row space of its rows; none for a fixed number.
    pub rows: Option<SpaceId>,
    /// Rows at full capacity.
    pub capacity: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Elements of the buffer's rows before its own.
    pub column: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Row spaces whose rows lie before its own.
    pub after: Vec<SpaceId>,
}

impl Operand {
    /// Whether its rows lie end to end.
    pub(super) fn is_dense(&self) -> bool {
        self.stride == self.columns
    }

    /// Rows in this run.
    pub(super) fn extent(&self, moment: Moment<'_>) -> usize {
        let extents = moment.extents;
        self.rows.map_or(self.capacity, |space| extents.rows(space))
    }

    /// Tile addresses from its first to one past its last element in this run.
    pub(super) fn span(&self, moment: Moment<'_>) -> Range<u64> {
        let before = self.after.iter().map(|&space| moment.extents.rows(space));
        let before: usize = before.sum();
        let (slots, stride) = self.slots;
        let slot = self.offset + (moment.micro_batch % slots) as u64 * stride;
        let size = self.dtype.size() as u64;
        let start = slot + (before * self.stride + self.column) as u64 * size;
        let rows = self.extent(moment);
        let elements = if rows == 0 {
            0
        } else {
            (rows - 1) * self.stride + self.columns
        };
        start..start + elements as u64 * size
    }

    /// Reads it.
    ///
    /// # Safety
    /// Nobody writes its bytes while the view is read.
    pub(super) unsafe fn view<'a>(&self, arenas: &'a [Arena], moment: Moment<'_>) -> View<'a> {
        let span = self.span(moment);
        let extent = [self.extent(moment), self.columns];
        // SAFETY: the arena checks the range; the caller promises that nobody writes it.
        unsafe {
            View::from_raw_parts(
                arenas[self.tile].at(span.start, span.end),
                self.dtype,
                extent,
                self.stride,
            )
        }
    }

    /// Writes it.
    ///
    /// # Safety
    /// Workers write disjoint elements, and nobody else accesses its bytes meanwhile.
    pub(super) unsafe fn view_mut<'a>(
        &self,
        arenas: &'a [Arena],
        moment: Moment<'_>,
    ) -> ViewMut<'a> {
        let span = self.span(moment);
        let extent = [self.extent(moment), self.columns];
        // SAFETY: the arena checks the range; the caller promises exclusive elements.
        unsafe {
            ViewMut::from_raw_parts(
                arenas[self.tile].at(span.start, span.end),
                self.dtype,
                extent,
                self.stride,
            )
        }
    }

    /// Its integers.
    ///
    /// # Safety
    /// As [`Operand::view`].
    pub(super) unsafe fn ints<'a>(&self, arenas: &'a [Arena], moment: Moment<'_>) -> &'a [i32] {
        let span = self.span(moment);
        let length = (span.end - span.start) as usize / size_of::<i32>();
        // SAFETY: buffers are aligned to cache lines, the arena checks the range, and any bits are integers.
        unsafe {
            std::slice::from_raw_parts(arenas[self.tile].at(span.start, span.end).cast(), length)
        }
    }

    /// Its integers, to write.
    ///
    /// # Safety
    /// Only one worker calls this at a time, and nobody else accesses the bytes meanwhile.
    #[expect(
        clippy::mut_from_ref,
        reason = "the arena is shared memory; exclusive access is the caller's promise"
    )]
    pub(super) unsafe fn ints_mut<'a>(
        &self,
        arenas: &'a [Arena],
        moment: Moment<'_>,
    ) -> &'a mut [i32] {
        let span = self.span(moment);
        let length = (span.end - span.start) as usize / size_of::<i32>();
        // SAFETY: as `ints`; the caller promises exclusive access.
        unsafe {
            std::slice::from_raw_parts_mut(
                arenas[self.tile].at(span.start, span.end).cast(),
                length,
            )
        }
    }

    /// Its f32 values, one per row.
    ///
    /// # Safety
    /// As [`Operand::view`].
    pub(super) unsafe fn floats<'a>(&self, arenas: &'a [Arena], moment: Moment<'_>) -> &'a [f32] {
        // SAFETY: any bits are an i32 and a f32, which have the same size and alignment.
        bytemuck::cast_slice(unsafe { self.ints(arenas, moment) })
    }
}
