//! Which CPUs the process may use, and pinning a thread to one.

/// The CPUs this process may run on, in order; empty where the system does not tell.
#[cfg(target_os = "linux")]
pub(super) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a `cpu_set_t` is plain bits, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place of the size given; 0 is this thread.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0;
    if failed {
        return Vec::new();
    }
    // SAFETY: every index is below the size of the set.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// Pins the calling thread; without effect where the system refuses.
#[cfg(target_os = "linux")]
pub(super) fn pin_to(cpu: usize) {
    // SAFETY: a `cpu_set_t` is plain bits, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came from `allowed_cpus`, so it is below the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a valid set of the size given; 0 is this thread.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// The CPUs this process may run on; unknown here.
#[cfg(not(target_os = "linux"))]
pub(super) fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// Pins the calling thread; without effect here.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin_to(_: usize) {}
