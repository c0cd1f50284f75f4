//! Where the values of steps lie in a tile's memory.

use std::ops::Range;

use lxpod_ir::{DType, SpaceId};
use smallvec::smallvec;

use super::arena::Arena;
use super::kernels::{View, ViewMut};
use super::members::{Moment, Pieces};

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
    /// Bytes from what one micro-batch of a visit has to what the next has; 0 where they lie by rows, or share it.
    pub copy: u64,
}

impl Operand {
    /// Whether its rows lie end to end.
    pub(super) fn is_dense(&self) -> bool {
        self.stride == self.columns
    }

    /// Its rows at that moment, as numbers of the rows that all micro-batches of the visit have.
    fn rows(&self, moment: Moment<'_>) -> Range<usize> {
        self.rows
            .map_or(0..self.capacity, |space| moment.rows(space))
    }

    /// How many rows it has at that moment.
    pub(super) fn extent(&self, moment: Moment<'_>) -> usize {
        self.rows(moment).len()
    }

    /// Tile addresses from its first to one past its last element at that moment.
    pub(super) fn span(&self, moment: Moment<'_>) -> Range<u64> {
        let own = self.one(moment);
        let more = moment.count().saturating_sub(1) as u64 * self.copy;
        own.start..own.end + more
    }

    /// [`Operand::span`] of the first micro-batch alone, where each has a copy.
    fn one(&self, moment: Moment<'_>) -> Range<u64> {
        let before: usize = self.after.iter().map(|&space| moment.before(space)).sum();
        let (slots, stride) = self.slots;
        let slot = self.offset + (moment.visit() % slots) as u64 * stride;
        let copy = slot + moment.first() as u64 * self.copy;
        let size = self.dtype.size() as u64;
        let rows = self.rows(moment);
        let first = (before + rows.start) * self.stride + self.column;
        let elements = if rows.is_empty() {
            0
        } else {
            (rows.len() - 1) * self.stride + self.columns
        };
        let start = copy + first as u64 * size;
        start..start + elements as u64 * size
    }

    /// A moment in which all its rows at that moment can be reached, and which of the rows there they are.
    pub(super) fn parts<'a>(&self, moment: Moment<'a>) -> (Moment<'a>, Pieces) {
        match self.rows {
            Some(space) => (moment.of_all(), moment.pieces(space)),
            None => (moment, smallvec![0..self.capacity]),
        }
    }

    /// Reads it.
    ///
    /// # Safety
    /// Nobody writes its bytes while the view is read.
    pub(super) unsafe fn view<'a>(&self, arenas: &'a [Arena], moment: Moment<'_>) -> View<'a> {
        let span = self.one(moment);
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
        let span = self.one(moment);
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
        let span = self.one(moment);
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
        let span = self.one(moment);
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
