//! The search over the whole pod: replicas, stages, micro-batch, accumulation, recomputation and schedule.
//!
//! *What is searched.* Every combination of the options that are open ([`Fixed`]), for the most samples a second
//! that fit the tiles' memory. Of the optimiser's state there is one placement: beside its parameters.
//!
//! *How.* A candidate's step is bounded from below by what its graphs come to on any split (module `bound`). The
//! candidate with the best bound is compiled next, until nothing that is left could be faster. Then the same is done
//! for the front, a few splits long, until nothing could be faster than what has no more samples in a step. Candidates that differ only in replicas, accumulation and the order of
//! programs share one split and one set of programs ([`Class`]): they are known to the cycle and to the byte once
//! one of them is. Where a split does not keep a candidate's memory, the candidate is compiled by itself.
//!
//! *What is promised.* A compiled figure is the one that [`compile`](crate::compile) gives for these options; any other
//! is a bound, and says so. No candidate is faster than the best one that was compiled, unless [`Search::proven`] is false,
//! because more candidates were left than are compiled. The order of the search depends on candidates alone, never on a
//! clock or the number of threads.

mod bound;
mod class;
mod rank;
mod space;

use lxpod_ir::front::LxmertConfig;
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::compile::{CompileError, CompileOptions, compile};
use crate::pass::Recompute;
use crate::plan::Programs;
use class::{Class, Graphs};
use rank::rank;
pub use rank::{Choice, Rival};
pub use space::{Candidate, Fixed};

/// Splits that are computed, at most.
const MOST_CLASSES: usize = 20;
/// Splits up to which the front is searched, once the best candidate is known.
const FRONT_CLASSES: usize = 8;
/// Candidates that are compiled by themselves, at most.
const MOST_ALONE: usize = 8;
/// Splits that are computed before their results are looked at: as many as may run at once.
const BATCH: usize = 2;

/// What is known of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It fits, and its figures are exact.
    Compiled,
    /// Its figures are lower bounds.
    Bounded,
    /// It does not fit: the fullest tile needs that many bytes, or at least as many.
    OutOfMemory,
}

/// A candidate and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Assessed {
    /// The options.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Samples of a step.
    pub global_batch: usize,
    /// What the figures are.
    pub verdict: Verdict,
    /// Cycles of a step.
    pub step_cycles: u64,
    /// Bytes of the fullest tile.
    pub tile_bytes: u64,
}

impl Assessed {
    /// Samples a second at that clock; of a bounded candidate the most there can be.
    pub fn samples_per_second(&self, clock_hz: u64) -> f64 {
        self.global_batch as f64 * clock_hz as f64 / self.step_cycles.max(1) as f64
    }

    /// Whether it is at least as fast as another, figure by figure.
    fn is_as_fast_as(&self, other: &Assessed) -> bool {
        let rate = |one: &Assessed, cycles: u64| one.global_batch as u128 * u128::from(cycles);
        rate(self, other.step_cycles) >= rate(other, self.step_cycles)
    }
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Search {
    /// The fastest candidate; of several the one with the fullest tile least full, then the first.
    pub best: Assessed,
    /// Of the compiled candidates those that no other beats or equals in speed, memory and global batch at once; by
    /// global batch, fastest first.
    pub front: Vec<Assessed>,
    /// For each open option and each value it could have had, the best candidate that has it, at the best one's
    /// global batch.
    pub rivals: Vec<Rival>,
    /// Whether no candidate that was not compiled can be faster than `best`.
    pub proven: bool,
    /// Candidates by verdict: compiled, bounded, out of memory.
    pub counts: [usize; 3],
}

/// Searches the combinations of what `fixed` leaves open, on `threads` threads. The result does not depend on
/// their number.
///
/// # Errors
/// No combination fits, or the options that are given do not go together; see [`CompileError`].
pub fn search(
    config: &LxmertConfig,
    base: &CompileOptions,
    fixed: &Fixed,
    threads: usize,
) -> Result<Search, CompileError> {
    let training = base.training.is_some();
    let candidates = fixed.candidates(base.target.tiles, training);
    if candidates.is_empty() {
        return Err(none_left(fixed, base));
    }
    let mut state = State::new(config, base, candidates, threads.clamp(1, BATCH))?;
    state.run()?;
    let proven = state.open(|_, _| true).is_empty();
    rank(&state.all, proven).ok_or_else(|| state.nothing_fits())
}

/// The error where no candidate is left to begin with.
fn none_left(fixed: &Fixed, base: &CompileOptions) -> CompileError {
    let tiles = base.target.tiles;
    let message = format!(
        "no combination of the options fits: {} tiles, {} replicas, {} stages, a global batch of {}; give fewer of \
         --replicas, --stages, --micro-batch, --gradient-accumulation, --schedule and --global-batch",
        tiles,
        shown(fixed.replicas),
        shown(fixed.stages),
        shown(fixed.global_batch),
    );
    CompileError::Option {
        flag: "--auto",
        message,
    }
}

fn shown(given: Option<usize>) -> String {
    given.map_or_else(|| "any".to_owned(), |given| given.to_string())
}

/// What the candidates of one split have in common. What recomputes automatically recomputes nothing where that
/// fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    micro_batch: usize,
    recompute: Recompute,
    stages: usize,
    chunks: usize,
}

impl Key {
    fn of(found: &Candidate) -> Self {
        Key {
            micro_batch: found.micro_batch,
            recompute: match found.recompute {
                Recompute::Auto => Recompute::None,
                told => told,
            },
            stages: found.stages,
            chunks: found.chunks,
        }
    }
}

/// A search under way.
struct State<'a> {
    config: &'a LxmertConfig,
    base: &'a CompileOptions,
    threads: usize,
    all: Vec<Assessed>,
    /// Of each candidate, whether it is to be compiled by itself.
    alone: Vec<bool>,
    /// By micro-batch and recomputation.
    graphs: FxHashMap<(usize, Recompute), Graphs>,
    /// Splits that may still be computed.
    classes_left: usize,
    /// Candidates that may still be compiled by themselves.
    alone_left: usize,
}

impl<'a> State<'a> {
    fn new(
        config: &'a LxmertConfig,
        base: &'a CompileOptions,
        candidates: Vec<Candidate>,
        threads: usize,
    ) -> Result<Self, CompileError> {
        let mut state = State {
            config,
            base,
            threads,
            all: Vec::with_capacity(candidates.len()),
            alone: Vec::with_capacity(candidates.len()),
            graphs: FxHashMap::default(),
            classes_left: MOST_CLASSES,
            alone_left: MOST_ALONE,
        };
        state.prepare(&candidates)?;
        for candidate in candidates {
            let key = Key::of(&candidate);
            let needs = &state.graphs[&(key.micro_batch, key.recompute)].needs;
            let tile_bytes = needs.bytes(&base.target, &candidate);
            let fits = tile_bytes <= base.target.capacity();
            state.all.push(Assessed {
                candidate,
                global_batch: candidate.global_batch(),
                verdict: if fits {
                    Verdict::Bounded
                } else {
                    Verdict::OutOfMemory
                },
                step_cycles: needs.cycles(&base.target, &candidate, 0),
                tile_bytes,
            });
            state.alone.push(false);
        }
        Ok(state)
    }

    /// The graphs of every micro-batch size and mode of recomputation.
    fn prepare(&mut self, candidates: &[Candidate]) -> Result<(), CompileError> {
        let mut sizes: Vec<usize> = candidates.iter().map(|found| found.micro_batch).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut modes = vec![Recompute::None];
        if candidates
            .iter()
            .any(|found| found.recompute == Recompute::Layer)
        {
            modes.push(Recompute::Layer);
        }
        let (config, base) = (self.config, self.base);
        let all = in_parallel(self.threads, &sizes, |&size| {
            Graphs::of(config, base, size, &modes)
        });
        for (&size, graphs) in sizes.iter().zip(all) {
            for (&mode, graphs) in modes.iter().zip(graphs?) {
                self.graphs.insert((size, mode), graphs);
            }
        }
        Ok(())
    }

    /// Compiles until nothing that is left could be faster than the best, then for the front; or until as much was
    /// compiled as may be.
    fn run(&mut self) -> Result<(), CompileError> {
        while self.advance(&self.open(|_, _| true), self.classes_left)? {}
        let smaller = |other: &Assessed, one: &Assessed| other.global_batch <= one.global_batch;
        loop {
            let spent = MOST_CLASSES - self.classes_left;
            let open = self.open(smaller);
            let open: Vec<usize> = open
                .into_iter()
                .filter(|&index| !self.alone[index])
                .collect();
            if !self.advance(&open, FRONT_CLASSES.saturating_sub(spent))? {
                return Ok(());
            }
        }
    }

    /// Compiles the first of these candidates, of splits at most so many; whether there was one to compile.
    fn advance(&mut self, open: &[usize], classes: usize) -> Result<bool, CompileError> {
        let mut keys: Vec<Key> = Vec::new();
        for &index in open {
            let key = Key::of(&self.all[index].candidate);
            if self.alone[index] {
                if keys.is_empty() && self.alone_left > 0 {
                    self.assess_alone(index)?;
                    return Ok(true);
                }
            } else if !keys.contains(&key) && keys.len() < BATCH.min(classes) {
                keys.push(key);
            }
        }
        if !keys.is_empty() {
            self.assess_classes(&keys)?;
        }
        Ok(!keys.is_empty())
    }

    /// The candidates whose bounds are better than everything compiled that is to be compared with them, the best
    /// first.
    fn open(&self, is_compared: impl Fn(&Assessed, &Assessed) -> bool) -> Vec<usize> {
        let beats =
            |other: &Assessed, one: &Assessed| is_compared(other, one) && other.is_as_fast_as(one);
        let mut fastest: Vec<&Assessed> = Vec::new();
        for one in &self.all {
            let compiled = one.verdict == Verdict::Compiled;
            if compiled && !fastest.iter().any(|other| beats(other, one)) {
                fastest.push(one);
            }
        }
        let is_open = |&index: &usize| {
            let one = &self.all[index];
            one.verdict == Verdict::Bounded && !fastest.iter().any(|other| beats(other, one))
        };
        let mut open: Vec<usize> = (0..self.all.len()).filter(is_open).collect();
        open.sort_by(|&a, &b| {
            let (a, b) = (&self.all[a], &self.all[b]);
            let rate = |one: &Assessed, other: &Assessed| {
                one.global_batch as u128 * u128::from(other.step_cycles)
            };
            rate(b, a).cmp(&rate(a, b))
        });
        open
    }

    /// Computes splits, and with each all candidates that have it.
    fn assess_classes(&mut self, keys: &[Key]) -> Result<(), CompileError> {
        self.classes_left -= keys.len();
        let all = in_parallel(self.threads, keys, |key| self.assess_class(*key));
        for assessed in all {
            for (index, one) in assessed? {
                self.all[index] = one;
                self.alone[index] = one.verdict == Verdict::Bounded;
            }
        }
        Ok(())
    }

    /// What is known of the candidates of one split; those that are left with bounds have to be compiled by
    /// themselves.
    fn assess_class(&self, key: Key) -> Result<Vec<(usize, Assessed)>, CompileError> {
        let target = &self.base.target;
        let members = (0..self.all.len()).filter(|&index| {
            let one = &self.all[index];
            Key::of(&one.candidate) == key && one.verdict == Verdict::Bounded
        });
        let members: Vec<usize> = members.collect();
        let graphs = &self.graphs[&(key.micro_batch, key.recompute)];
        let class = Class::new(graphs, target, (key.stages, key.chunks))?;
        let programs = class.programs();
        let assess = |index: usize| {
            let one = self.all[index];
            let found = &one.candidate;
            let exact = class.is_split_of(target, found);
            let exact = exact.then(|| exactly(one, &programs, self.base));
            let may_save = |exact: &Assessed| {
                exact.verdict == Verdict::OutOfMemory && found.recompute == Recompute::Auto
            };
            match exact.filter(|exact| !may_save(exact)) {
                Some(exact) => (index, exact),
                None => {
                    let step_cycles = graphs.needs.cycles(target, found, class.slowest());
                    (index, Assessed { step_cycles, ..one })
                }
            }
        };
        Ok(members.into_iter().map(assess).collect())
    }

    /// Compiles a candidate by itself.
    fn assess_alone(&mut self, index: usize) -> Result<(), CompileError> {
        self.alone_left -= 1;
        let one = self.all[index];
        let options = one.candidate.options(self.base);
        self.all[index] = match compile(self.config, "", &options, &mut |_, _| {}) {
            Ok((plan, _)) => exactly(one, &Programs::new(&plan), self.base),
            Err(error) => Assessed {
                verdict: Verdict::OutOfMemory,
                tile_bytes: error.bytes_needed(&self.base.target).ok_or(error)?,
                ..one
            },
        };
        Ok(())
    }

    /// The error where no candidate fits: that of the one that needs the least.
    fn nothing_fits(&self) -> CompileError {
        let least = self.all.iter().min_by_key(|one| one.tile_bytes);
        let capacity = self.base.target.capacity();
        let needed = least.map_or(0, |one| one.tile_bytes);
        let found = least.map(|one| one.candidate);
        let [stages, micro_batch] = found.map_or([0, 0], |found| [found.stages, found.micro_batch]);
        CompileError::Option {
            flag: "--auto",
            message: format!(
                "nothing fits: the combination that needs least, {stages} stages with a micro-batch of {micro_batch}, \
                 needs {needed} bytes on the fullest tile, which has {capacity}; give a larger --target, a smaller \
                 --seq-len, or fewer options"
            ),
        }
    }
}

/// A candidate with the figures of its programs.
fn exactly(one: Assessed, programs: &Programs<'_>, base: &CompileOptions) -> Assessed {
    let found = one.candidate;
    let order = found.order(base.training.is_some());
    let bytes = programs.tile_bytes(&order, found.accumulation);
    let tile_bytes = bytes.into_iter().max().unwrap_or(0);
    Assessed {
        step_cycles: programs.step_cycles(&order, found.accumulation, found.replicas),
        tile_bytes,
        verdict: if tile_bytes <= base.target.capacity() {
            Verdict::Compiled
        } else {
            Verdict::OutOfMemory
        },
        ..one
    }
}

/// `work` of each item, in order, on so many threads.
fn in_parallel<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let mut results = Vec::with_capacity(items.len());
    for group in items.chunks(threads) {
        results.extend(std::thread::scope(|scope| {
            let started: Vec<_> = group
                .iter()
                .map(|item| scope.spawn(|| work(item)))
                .collect();
            let join = |handle: std::thread::ScopedJoinHandle<'_, R>| match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            started.into_iter().map(join).collect::<Vec<R>>()
        }));
    }
    results
}
