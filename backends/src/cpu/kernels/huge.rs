//! Large pages for large memory: fewer faults while it is filled, fewer misses of the address cache while it streams.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::allocation::try_zeroed_vec;

use super::scratch::Line;

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Cache lines of a large page.
const PAGE_LINES: usize = PAGE / size_of::<Line>();

/// Cache lines of a region: small against a model, large against a weight.
const REGION_LINES: usize = (32 << 20) / size_of::<Line>();

/// Asks the system to back memory that was not touched yet with its largest pages; without effect where it cannot.
#[cfg(target_os = "linux")]
pub fn huge_pages<T>(memory: &[T]) {
    const SMALL: usize = 4096;
    let start = memory.as_ptr().addr().next_multiple_of(SMALL);
    let end = (memory.as_ptr().addr() + size_of_val(memory)) / SMALL * SMALL;
    if end > start {
        let address = memory.as_ptr().cast::<libc::c_void>().cast_mut();
        let address = address.with_addr(start);
        // SAFETY: whole pages of an allocation that the slice borrows; the advice changes no content.
        unsafe { libc::madvise(address, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Asks for large pages; without effect here.
#[cfg(not(target_os = "linux"))]
pub fn huge_pages<T>(_: &[T]) {}

/// Zeroed cache lines, in large pages where they fill any. Pages come when they are first touched.
pub struct Zeros {
    /// Of words, since memory for values of more alignment is zeroed by writing it: then its pages, small ones, have come
    /// before the advice.
    words: Box<[UnsafeCell<u64>]>,
    /// The first word that is used, on the boundary of a line or, where they fill any, of a large page.
    first: usize,
    lines: usize,
}

// SAFETY: the words are reached only through `Zeros::at`, whose users write disjoint lines.
unsafe impl Sync for Zeros {}

impl Zeros {
    /// So many lines; nothing if the host does not have that much memory.
    pub fn new(lines: usize) -> Option<Self> {
        let bytes = lines.checked_mul(size_of::<Line>())?;
        let boundary = if bytes < PAGE {
            size_of::<Line>()
        } else {
            PAGE
        };
        let words = bytes.checked_add(boundary)? / size_of::<u64>();
        let words: Vec<UnsafeCell<u64>> = try_zeroed_vec(words).ok()?;
        huge_pages(&words);
        let start = words.as_ptr().addr();
        Some(Zeros {
            first: (start.next_multiple_of(boundary) - start) / size_of::<u64>(),
            words: words.into_boxed_slice(),
            lines,
        })
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.lines * size_of::<Line>()
    }

    /// The first byte. All may be read and written through it, as long as nobody writes what another accesses.
    pub fn start(&self) -> *mut u8 {
        self.words[self.first..].as_ptr().cast_mut().cast()
    }
}

/// Memory that several allocations share, so that none ends in a page that is not large: the region at work, and its lines
/// that are free.
static REGION: Mutex<Option<(Arc<Zeros>, Range<usize>)>> = Mutex::new(None);

/// Zeroed cache lines of a region.
pub(super) struct Lines {
    region: Arc<Zeros>,
    range: Range<usize>,
}

impl Lines {
    /// So many lines, all zeros.
    ///
    /// # Panics
    /// If the host does not have that much memory.
    pub(super) fn new(count: usize) -> Self {
        let mut region = REGION.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, free) = match region.take() {
            Some((memory, free)) if free.len() >= count => (memory, free),
            _ => {
                let lines = count.max(REGION_LINES).next_multiple_of(PAGE_LINES);
                let memory = Zeros::new(lines).expect("memory for packed weights");
                (Arc::new(memory), 0..lines)
            }
        };
        let range = free.start..free.start + count;
        *region = Some((memory.clone(), range.end..free.end));
        Lines {
            region: memory,
            range,
        }
    }

    /// The lines.
    pub(super) fn cells(&self) -> &[UnsafeCell<Line>] {
        let start = self.region.start().cast::<UnsafeCell<Line>>();
        // SAFETY: the range is in the region, which lives as long as this value and is on the boundary of a line.
        unsafe { std::slice::from_raw_parts(start.add(self.range.start), self.range.len()) }
    }

    /// The lines, to write.
    pub(super) fn get_mut(&mut self) -> &mut [Line] {
        let cells = self.cells();
        // SAFETY: a cell is stored like its content; the range is this value's alone, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast_mut().cast(), cells.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_come_when_they_are_touched() {
        const SMALL: usize = 4096;
        // More than an allocator keeps for another time.
        let zeros = Zeros::new(40 * PAGE_LINES).unwrap();
        assert!(zeros.start().addr().is_multiple_of(PAGE));
        let mut resident = vec![0_u8; zeros.bytes() / SMALL];
        let mut count = || {
            let to = resident.as_mut_ptr();
            // SAFETY: the pages are mapped, and there is a byte for each.
            let result = unsafe { libc::mincore(zeros.start().cast(), zeros.bytes(), to) };
            assert_eq!(result, 0);
            resident.iter().filter(|&&page| page & 1 != 0).count()
        };
        assert_eq!(count(), 0);
        // SAFETY: the byte is in the memory, which nobody else uses.
        unsafe { zeros.start().add(3 * PAGE).write(1) };
        assert!((1..=PAGE / SMALL).contains(&count()));
    }

    #[test]
    fn lines_are_zeros_and_apart() {
        let mut all: Vec<Lines> = [1, 0, 7, REGION_LINES, 3, REGION_LINES + 1, 2]
            .map(Lines::new)
            .into();
        for (i, lines) in all.iter_mut().enumerate() {
            let values: &mut [f32] = bytemuck::cast_slice_mut(lines.get_mut());
            assert!(values.iter().all(|&x| x == 0.0));
            values.fill(i as f32 + 1.0);
        }
        for (i, lines) in all.iter_mut().enumerate() {
            let values: &[f32] = bytemuck::cast_slice(lines.get_mut());
            assert!(values.iter().all(|&x| x == i as f32 + 1.0));
        }
    }
}
