//! Large pages for large memory: fewer faults while it is filled, fewer misses of the address cache while it streams.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::zeroed_vec;

use super::scratch::{LINE, Line};

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Cache lines of a region: small against a model, large against a weight.
const REGION: usize = (32 << 20) / size_of::<Line>();

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

/// Memory that several allocations share, so that none ends in a page that is not large.
struct Region(Vec<UnsafeCell<Line>>);

// SAFETY: a region is only reached through `Lines`, whose ranges are disjoint.
unsafe impl Sync for Region {}
// SAFETY: lines are plain numbers.
unsafe impl Send for Region {}

/// The region at work, and its lines that are free.
static REGIONS: Mutex<Option<(Arc<Region>, Range<usize>)>> = Mutex::new(None);

/// Zeroed cache lines in large pages.
pub(super) struct Lines {
    region: Arc<Region>,
    range: Range<usize>,
}

impl Lines {
    /// So many lines, all zeros.
    pub(super) fn new(count: usize) -> Self {
        let mut regions = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |free: &Range<usize>| free.len() >= count;
        let (region, free) = match regions.take() {
            Some((region, free)) if fits(&free) => (region, free),
            _ => fresh(count.max(REGION)),
        };
        let range = free.start..free.start + count;
        *regions = Some((region.clone(), range.end..free.end));
        Lines { region, range }
    }

    /// The lines.
    pub(super) fn cells(&self) -> &[UnsafeCell<Line>] {
        &self.region.0[self.range.clone()]
    }

    /// The lines, to write.
    pub(super) fn get_mut(&mut self) -> &mut [Line] {
        let cells = self.cells();
        // SAFETY: a cell is stored like its content; the range is this value's alone, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast_mut().cast(), cells.len()) }
    }
}

/// A region of so many lines, from the start of a large page on, and its free lines.
fn fresh(count: usize) -> (Arc<Region>, Range<usize>) {
    let page = PAGE / size_of::<Line>();
    let memory: Vec<UnsafeCell<Line>> = zeroed_vec(count.next_multiple_of(page) + page);
    huge_pages(&memory);
    let start = memory.as_ptr().addr();
    let first = (start.next_multiple_of(PAGE) - start) / (LINE * size_of::<f32>());
    let end = memory.len();
    (Arc::new(Region(memory)), first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zeros_and_apart() {
        let mut all: Vec<Lines> = [1, 0, 7, REGION, 3, REGION + 1, 2].map(Lines::new).into();
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
