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

/// The calling thread pinned to one CPU, until this is dropped; without effect where the system refuses.
#[cfg(target_os = "linux")]
pub(super) struct Pinned {
    before: libc::cpu_set_t,
}

#[cfg(target_os = "linux")]
impl Pinned {
    /// Pins to a CPU that came from [`allowed_cpus`].
    pub(super) fn to(cpu: usize) -> Pinned {
        // SAFETY: a `cpu_set_t` is plain bits, for which all zeros is a value.
        let (mut before, mut set): (libc::cpu_set_t, libc::cpu_set_t) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: the CPU is below the size of a set; both sets are valid places of the size given; 0 is this thread.
        unsafe {
            libc::CPU_SET(cpu, &mut set);
            libc::sched_getaffinity(0, size_of_val(&before), &mut before);
            libc::sched_setaffinity(0, size_of_val(&set), &set);
        }
        Pinned { before }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: `before` is a valid set of the size given, empty where it could not be read, which is refused.
        unsafe { libc::sched_setaffinity(0, size_of_val(&self.before), &self.before) };
    }
}

/// The CPUs this process may run on; unknown here.
#[cfg(not(target_os = "linux"))]
pub(super) fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// The calling thread; without effect here.
#[cfg(not(target_os = "linux"))]
pub(super) struct Pinned;

#[cfg(not(target_os = "linux"))]
impl Pinned {
    /// Pins nothing.
    pub(super) fn to(_: usize) -> Pinned {
        Pinned
    }
}
