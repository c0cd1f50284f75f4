//! Large pages for large memory: fewer faults while it is filled, fewer misses of the address cache while it streams.

/// Asks the system to back memory that was not touched yet with its largest pages; without effect where it cannot.
#[cfg(target_os = "linux")]
pub(in super::super) fn huge_pages<T>(memory: &[T]) {
    const PAGE: usize = 4096;
    let start = memory.as_ptr().addr().next_multiple_of(PAGE);
    let end = (memory.as_ptr().addr() + size_of_val(memory)) / PAGE * PAGE;
    if end > start {
        let address = memory.as_ptr().cast::<libc::c_void>().cast_mut();
        let address = address.with_addr(start);
        // SAFETY: whole pages of an allocation that the slice borrows; the advice changes no content.
        unsafe { libc::madvise(address, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Asks for large pages; without effect here.
#[cfg(not(target_os = "linux"))]
pub(in super::super) fn huge_pages<T>(_: &[T]) {}
