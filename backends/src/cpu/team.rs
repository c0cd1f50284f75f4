//! The team: workers that walk the same steps and meet at a barrier.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Rounds of spinning on a core of one's own.
const SPINS: u32 = 10_000;

/// A private pool whose workers run one function together.
pub(super) struct Team {
    pool: ThreadPool,
    workers: usize,
    /// Rounds of spinning before a waiting worker offers its core to others: none where workers
    /// share cores.
    spins: u32,
}

/// One worker's view of a running team.
pub(super) struct Worker<'a> {
    /// 0..workers.
    pub index: usize,
    /// The size of the team.
    pub workers: usize,
    barrier: &'a Barrier,
}

/// Another worker panicked, so that waiting for it would never end.
pub(super) struct Poisoned;

impl Team {
    /// A team of that many workers. Worker i of several is pinned to the i-th CPU the process may
    /// use, unless `LXPOD_PIN=0` is set or there are fewer CPUs than workers.
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub(super) fn new(workers: usize) -> Result<Self, String> {
        let cpus = super::affinity::allowed_cpus();
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let unpinned = std::env::var_os("LXPOD_PIN").is_some_and(|value| value == "0");
        let pinned = !unpinned && (2..=cpus.len()).contains(&workers);
        let pool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|index| format!("lxpod-{index}"))
            .start_handler(move |index| {
                if pinned {
                    super::affinity::pin_to(cpus[index]);
                }
            })
            .build()
            .map_err(|error| format!("cannot start {workers} threads: {error}"))?;
        let spins = if workers <= available { SPINS } else { 0 };
        Ok(Team {
            workers: pool.current_num_threads(),
            pool,
            spins,
        })
    }

    /// The number of workers.
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Runs `body` on every worker at once and returns when all are done.
    ///
    /// # Panics
    /// If a worker panics, with its payload.
    pub(super) fn run(&self, body: impl Fn(&Worker<'_>) -> Result<(), Poisoned> + Sync) {
        let barrier = Barrier {
            workers: self.workers,
            spins: self.spins,
            waiting: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        };
        let results = self.pool.broadcast(|context| {
            let worker = Worker {
                index: context.index(),
                workers: self.workers,
                barrier: &barrier,
            };
            let result = catch_unwind(AssertUnwindSafe(|| body(&worker)));
            if result.is_err() {
                barrier.poisoned.store(true, Ordering::Release);
            }
            result
        });
        if let Some(payload) = results.into_iter().find_map(Result::err) {
            std::panic::resume_unwind(payload);
        }
    }

    /// Runs ordinary parallel work on the team's threads.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }
}

impl Worker<'_> {
    /// This worker's share of `units` pieces of work: a contiguous range.
    pub(super) fn share(&self, units: usize) -> std::ops::Range<usize> {
        units * self.index / self.workers..units * (self.index + 1) / self.workers
    }

    /// Waits until every worker is here.
    ///
    /// # Errors
    /// A worker panicked.
    pub(super) fn meet(&self) -> Result<(), Poisoned> {
        self.barrier.wait()
    }
}

/// A barrier that counts arrivals and then moves to its next phase.
struct Barrier {
    workers: usize,
    spins: u32,
    waiting: AtomicUsize,
    phase: AtomicUsize,
    poisoned: AtomicBool,
}

impl Barrier {
    fn wait(&self) -> Result<(), Poisoned> {
        let phase = self.phase.load(Ordering::Acquire);
        if self.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.waiting.store(0, Ordering::Release);
            self.phase.store(phase.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        let mut spins = 0;
        while self.phase.load(Ordering::Acquire) == phase {
            if self.poisoned.load(Ordering::Acquire) {
                return Err(Poisoned);
            }
            if spins < self.spins {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_the_barrier_early() {
        let team = Team::new(3).unwrap();
        let arrived = AtomicUsize::new(0);
        team.run(|worker| {
            for round in 1..=200 {
                arrived.fetch_add(1, Ordering::Relaxed);
                worker.meet()?;
                assert_eq!(arrived.load(Ordering::Relaxed), 3 * round);
                worker.meet()?;
            }
            Ok(())
        });
    }

    #[test]
    fn shares_cover_the_work_once() {
        let team = Team::new(3).unwrap();
        let seen = AtomicUsize::new(0);
        team.run(|worker| {
            seen.fetch_add(
                worker.share(10).map(|unit| 1 << unit).sum::<usize>(),
                Ordering::Relaxed,
            );
            Ok(())
        });
        assert_eq!(seen.into_inner(), (1 << 10) - 1);
    }

    #[test]
    #[should_panic(expected = "worker 1 failed")]
    fn a_panic_reaches_the_caller_and_frees_the_others() {
        Team::new(2).unwrap().run(|worker| {
            assert!(worker.index == 0, "worker 1 failed");
            worker.meet()
        });
    }
}
