//! The team: workers that walk the same steps, share out each step's work, and meet at a barrier.
//!
//! The calling thread is the first worker; the others live as long as the team and sleep between runs. A run
//! allocates nothing.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::affinity::{Pinned, allowed_cpus};

/// Rounds of spinning on a core of one's own: longer than the host takes between two runs, far shorter than a
/// run. Waking a thread that sleeps takes much longer, above all on a virtual machine.
const SPINS: u32 = 10_000;

/// Threads that run one function together.
pub(super) struct Team {
    shared: Arc<Shared>,
    /// All workers but the first.
    threads: Vec<JoinHandle<()>>,
    /// Where the first worker runs, if workers are pinned.
    first_cpu: Option<usize>,
}

/// One worker's view of a running team.
pub(super) struct Worker<'a> {
    /// 0..workers.
    pub index: usize,
    /// The size of the team.
    pub workers: usize,
    barrier: &'a Barrier,
    /// How often it has asked for units since the last meeting.
    asked: Cell<usize>,
}

/// Another worker panicked, so that waiting for it would never end.
pub(super) struct Poisoned;

/// What a team runs.
type Body<'a> = dyn Fn(&Worker<'_>) -> Result<(), Poisoned> + Sync + 'a;

/// A body whose lifetime the type does not know.
#[derive(Clone, Copy)]
struct Job(*const Body<'static>);

// SAFETY: the body may be called from any thread, and lives until every worker has returned from it.
unsafe impl Send for Job {}

/// What the owner and the threads of a team share.
struct Shared {
    state: Mutex<State>,
    /// Counts jobs; written under the lock.
    round: AtomicU64,
    /// Threads that have not returned from the job; written under the lock.
    running: AtomicUsize,
    /// A job was given, or the team ends.
    given: Condvar,
    /// The last thread returned.
    done: Condvar,
    barrier: Barrier,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    panic: Option<Box<dyn Any + Send>>,
    ended: bool,
}

impl Team {
    /// A team of that many workers, at least one. Worker i of several is pinned to the i-th CPU the process may
    /// use, the calling thread only while it runs, unless `LXPOD_PIN=0` is set or there are fewer CPUs than
    /// workers.
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub(super) fn new(workers: usize) -> Result<Self, String> {
        let workers = workers.max(1);
        let cpus = allowed_cpus();
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let unpinned = std::env::var_os("LXPOD_PIN").is_some_and(|value| value == "0");
        let pinned = !unpinned && (2..=cpus.len()).contains(&workers);
        let cpu_of = |index: usize| cpus.get(index).copied().filter(|_| pinned);
        let mut team = Team {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                round: AtomicU64::new(0),
                running: AtomicUsize::new(0),
                given: Condvar::new(),
                done: Condvar::new(),
                barrier: Barrier::new(workers, if workers <= available { SPINS } else { 0 }),
            }),
            threads: Vec::with_capacity(workers - 1),
            first_cpu: cpu_of(0),
        };
        for index in 1..workers {
            let shared = Arc::clone(&team.shared);
            let cpu = cpu_of(index);
            let body = move || {
                let _pinned = cpu.map(Pinned::to);
                serve(&shared, index);
            };
            let thread = std::thread::Builder::new().name(format!("lxpod-{index}"));
            let thread = thread
                .spawn(body)
                .map_err(|error| format!("cannot start {workers} threads: {error}"))?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// The number of workers.
    pub(super) fn workers(&self) -> usize {
        self.shared.barrier.workers
    }

    /// Runs `body` on every worker at once and returns when all are done.
    ///
    /// # Panics
    /// If a worker panics, with its payload.
    pub(super) fn run(&self, body: &Body<'_>) {
        let shared = &*self.shared;
        shared.barrier.reset();
        let job: *const Body<'_> = body;
        // SAFETY: only the lifetime changes. Threads call the body before they count as returned, and this
        // function does not return before all have.
        let job = Job(unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(job) });
        if !self.threads.is_empty() {
            let mut state = lock(&shared.state);
            state.job = Some(job);
            shared.running.store(self.threads.len(), Ordering::Relaxed);
            shared.round.fetch_add(1, Ordering::Release);
            drop(state);
            shared.given.notify_all();
        }
        let own = {
            let _pinned = self.first_cpu.map(Pinned::to);
            // SAFETY: the body is borrowed for this call.
            unsafe { shared.work(job, 0) }
        };
        shared.spin_while(|| shared.running.load(Ordering::Acquire) > 0);
        let mut state = lock(&shared.state);
        while shared.running.load(Ordering::Relaxed) > 0 {
            state = wait(&shared.done, state);
        }
        state.job = None;
        let theirs = state.panic.take();
        drop(state);
        if let Some(payload) = own.err().or(theirs) {
            std::panic::resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.ended = true;
        self.shared.round.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.given.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its jobs.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Calls the body as worker `index`; a panic is caught, and frees the others.
    ///
    /// # Safety
    /// The body lives until this returns.
    unsafe fn work(&self, Job(body): Job, index: usize) -> Result<(), Box<dyn Any + Send>> {
        let worker = Worker {
            index,
            workers: self.barrier.workers,
            barrier: &self.barrier,
            asked: Cell::new(0),
        };
        // SAFETY: the caller's contract. A worker that met a poisoned barrier has nothing to add to the panic behind it.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*body)(&worker) }));
        if result.is_err() {
            self.barrier.poisoned.store(true, Ordering::Release);
        }
        result.map(|_| ())
    }

    /// Spins while the condition holds, but not for long.
    fn spin_while(&self, condition: impl Fn() -> bool) {
        for _ in 0..self.barrier.spins {
            if !condition() {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

/// The life of a thread: one job after another.
fn serve(shared: &Shared, index: usize) {
    let mut served = 0;
    loop {
        shared.spin_while(|| shared.round.load(Ordering::Acquire) == served);
        let mut state = lock(&shared.state);
        while shared.round.load(Ordering::Relaxed) == served {
            state = wait(&shared.given, state);
        }
        served = shared.round.load(Ordering::Relaxed);
        let Some(job) = state.job.filter(|_| !state.ended) else {
            return;
        };
        drop(state);
        // SAFETY: the body lives until `running` is zero, to which this thread contributes below.
        let result = unsafe { shared.work(job, index) };
        let mut state = lock(&shared.state);
        if let Err(payload) = result {
            state.panic.get_or_insert(payload);
        }
        if shared.running.fetch_sub(1, Ordering::Release) == 1 {
            shared.done.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

impl Worker<'_> {
    /// This worker's share of `units` pieces of work: a contiguous range. For work so small that
    /// sharing it out costs more than waiting.
    pub(super) fn share(&self, units: usize) -> Range<usize> {
        units * self.index / self.workers..units * (self.index + 1) / self.workers
    }

    /// Pieces of work for this worker, until all `units` are given out: first those of its own part, which is the same in every step
    /// of as many units, so that it finds in its caches what it wrote; then of the parts of others, so that the faster a worker is, the
    /// more it gets. Ranges begin at multiples of `grain`; within a part they are longer at first, and ascend. All workers must ask for
    /// the same, at most [`MOST_ASKED`] times between two meetings.
    ///
    /// # Panics
    /// If it is asked too often.
    pub(super) fn claims(&self, units: usize, grain: usize) -> Claims<'_> {
        let round = self.asked.replace(self.asked.get() + 1);
        assert!(round < MOST_ASKED, "units without a meeting");
        Claims {
            barrier: self.barrier,
            round,
            units,
            grain: grain.max(1),
            own: self.index,
            passed: 0,
        }
    }

    /// Waits until every worker is here.
    ///
    /// # Errors
    /// A worker panicked.
    pub(super) fn meet(&self) -> Result<(), Poisoned> {
        self.asked.set(0);
        self.barrier.wait()
    }
}

/// See [`Worker::claims`].
pub(super) struct Claims<'a> {
    barrier: &'a Barrier,
    /// How often workers asked for units before, since they met.
    round: usize,
    units: usize,
    grain: usize,
    /// The worker whose part comes first, and how many parts are given out as far as it knows.
    own: usize,
    passed: usize,
}

/// A worker takes this share of what is left of a part, so that a slow one holds up the others little.
const SHARE: usize = 3;

impl Claims<'_> {
    /// The units of a worker's part.
    fn part(&self, worker: usize) -> Range<usize> {
        let grains = self.units.div_ceil(self.grain);
        let start = |worker: usize| grains * worker / self.barrier.workers * self.grain;
        start(worker)..start(worker + 1).min(self.units)
    }

    /// Takes some units of a worker's part, if any are left.
    fn claim(&self, worker: usize) -> Option<Range<usize>> {
        let part = self.part(worker);
        let length = |given: usize| {
            let left = part.len().checked_sub(given).filter(|&left| left > 0)?;
            let grains = (left / SHARE / self.grain).max(1);
            Some((grains * self.grain).min(left))
        };
        let given = &self.barrier.given[worker].0[self.round];
        let next = |given: usize| Some(given + length(given)?);
        let taken = given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let start = taken.ok()?;
        Some(part.start + start..part.start + start + length(start)?)
    }
}

impl Iterator for Claims<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let workers = self.barrier.workers;
        while self.passed < workers {
            let taken = self.claim((self.own + self.passed) % workers);
            if taken.is_some() {
                return taken;
            }
            self.passed += 1;
        }
        None
    }
}

/// How often units are given out between two meetings at most: as many counters are a cache line.
pub(super) const MOST_ASKED: usize = 8;

/// Units given out of a worker's parts, in a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Given([AtomicUsize; MOST_ASKED]);

/// A barrier that counts arrivals and then moves to its next phase.
struct Barrier {
    workers: usize,
    /// Rounds of spinning before a waiting worker offers its core to others: none where workers
    /// share cores.
    spins: u32,
    waiting: AtomicUsize,
    phase: AtomicUsize,
    poisoned: AtomicBool,
    /// Units given out of each worker's parts since the last meeting.
    given: Box<[Given]>,
}

impl Barrier {
    fn new(workers: usize, spins: u32) -> Self {
        Barrier {
            workers,
            spins,
            waiting: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            given: (0..workers).map(|_| Given::default()).collect(),
        }
    }

    /// Takes back all units.
    fn take_back(&self) {
        let parts = self.given.iter().flat_map(|given| &given.0);
        parts.for_each(|part| part.store(0, Ordering::Relaxed));
    }

    /// Makes it as new, while nobody waits.
    fn reset(&self) {
        self.waiting.store(0, Ordering::Relaxed);
        self.take_back();
        self.poisoned.store(false, Ordering::Release);
    }

    fn wait(&self) -> Result<(), Poisoned> {
        let phase = self.phase.load(Ordering::Acquire);
        if self.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.waiting.store(0, Ordering::Relaxed);
            self.take_back();
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
        team.run(&|worker| {
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
        team.run(&|worker| {
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
        Team::new(2).unwrap().run(&|worker| {
            assert!(worker.index == 0, "worker 1 failed");
            worker.meet()
        });
    }

    #[test]
    fn claims_give_out_every_unit_once_in_multiples_of_the_grain() {
        let team = Team::new(3).unwrap();
        for (units, grain) in [(0, 1), (1, 4), (10, 1), (50, 4), (48, 2)] {
            let seen = AtomicUsize::new(0);
            team.run(&|worker| {
                for range in worker.claims(units, grain) {
                    assert!(range.start % grain == 0 && range.end <= units);
                    let bits: usize = range.map(|unit| 1 << unit).sum();
                    assert_eq!(seen.fetch_add(bits, Ordering::Relaxed) & bits, 0);
                }
                worker.meet()
            });
            assert_eq!(seen.into_inner(), (1 << units) - 1);
        }
    }

    #[test]
    fn units_of_several_rounds_are_given_out_without_a_meeting() {
        let team = Team::new(3).unwrap();
        let seen = [const { AtomicUsize::new(0) }; MOST_ASKED];
        team.run(&|worker| {
            for (round, seen) in seen.iter().enumerate() {
                for unit in worker.claims(10 + round, 1 + round % 3).flatten() {
                    assert_eq!(seen.fetch_or(1 << unit, Ordering::Relaxed) >> unit & 1, 0);
                }
            }
            worker.meet()
        });
        for (round, seen) in seen.into_iter().enumerate() {
            assert_eq!(seen.into_inner(), (1 << (10 + round)) - 1);
        }
    }

    #[test]
    fn a_worker_claims_its_own_part_first() {
        let team = Team::new(3).unwrap();
        for (units, grain) in [(0, 1), (1, 4), (10, 1), (50, 4), (48, 2)] {
            team.run(&|worker| {
                let claims = worker.claims(units, grain);
                let parts = [1, 2, 0].map(|worker| claims.part(worker));
                if worker.index == 1 {
                    let given: Vec<usize> = claims.flatten().collect();
                    assert_eq!(given, parts.into_iter().flatten().collect::<Vec<_>>());
                }
                worker.meet()
            });
        }
    }

    #[test]
    fn a_team_works_again_after_a_panic() {
        let team = Team::new(2).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            team.run(&|worker| {
                assert!(worker.index == 0, "worker 1 failed");
                worker.meet()
            });
        }));
        assert!(panicked.is_err());
        let arrived = AtomicUsize::new(0);
        team.run(&|worker| {
            arrived.fetch_add(1, Ordering::Relaxed);
            worker.meet()
        });
        assert_eq!(arrived.into_inner(), 2);
    }
}
