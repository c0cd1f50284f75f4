//! A search under way: what is known of each candidate, and what is to be learned next.

use lxpod_ir::front::LxmertConfig;
use rustc_hash::FxHashMap;

use super::bound::Needs;
use super::class::{Graphs, Task, Update};
use super::{Assessed, Candidate, Verdict};
use crate::compile::{CompileError, CompileOptions, compile};
use crate::partition::{Among, in_flight};
use crate::pass::Recompute;
use crate::plan::Programs;
use crate::schedule::Rule;

/// Splits that are searched for as if memory had no end, at most.
const MOST_CLASSES: usize = 20;
/// Of these, those for the front once the best candidate is known.
const FRONT_CLASSES: usize = 4;
/// Classes that are tested under a limit of memory, at most.
const MOST_LIMITED: usize = 6;
/// Candidates that are compiled by themselves, at most.
const MOST_ALONE: usize = 4;
/// All three.
const LIMITS: [usize; 3] = [MOST_CLASSES, MOST_LIMITED, MOST_ALONE];
/// Classes that are looked at before their results are: as many as may run at once.
pub(super) const BATCH: usize = 2;

/// What candidates have in common that have one split where memory is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Base {
    micro_batch: usize,
    recompute: Recompute,
    stages: usize,
    chunks: usize,
    /// Replicas that share out the optimiser's states.
    shards: usize,
}

/// What candidates have in common that have one split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    base: Base,
    /// Which of the [`Kept`] they keep.
    kept: usize,
}

impl Key {
    fn of(found: &Candidate, kept: usize) -> Self {
        let base = Base {
            micro_batch: found.micro_batch,
            recompute: found.recompute,
            stages: found.stages,
            chunks: found.chunks,
            shards: found.shards(),
        };
        Key { base, kept }
    }
}

/// Which of the graphs a candidate has: what recomputes automatically recomputes nothing where that fits.
fn mode(recompute: Recompute) -> Recompute {
    match recompute {
        Recompute::Auto => Recompute::None,
        told => told,
    }
}

/// The micro-batches that stages keep values of, by the number of stages behind them, under every schedule.
#[derive(Default)]
struct Kept {
    all: Vec<Vec<u64>>,
    known: FxHashMap<(Rule, usize, usize, usize), usize>,
}

impl Kept {
    /// The number of what a candidate keeps.
    fn number(&mut self, found: &Candidate, training: bool) -> usize {
        let (order, accumulation) = (found.order(training), found.accumulation);
        let key = (order.rule, order.tiles, order.chunks, accumulation);
        *self.known.entry(key).or_insert_with(|| {
            let mut kept = in_flight(&order, accumulation);
            kept.resize(order.stages(), 1);
            let known = self.all.iter().position(|other| *other == kept);
            known.unwrap_or_else(|| {
                self.all.push(kept);
                self.all.len() - 1
            })
        })
    }
}

/// What is to be done next for a candidate whose figures are bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// To find the best split as if memory had no end.
    Free,
    /// To find the best that fits, since that one does not.
    Limited,
    /// To compile it by itself, since recomputing nothing does not fit.
    Alone,
    /// Nothing: too many others were looked at.
    Nothing,
}

/// What was learned of candidates: their figures, and what is next for those that still have bounds.
type Lesson = Vec<(usize, Assessed, Next)>;

/// A search under way.
pub(super) struct State<'a> {
    config: &'a LxmertConfig,
    base: &'a CompileOptions,
    threads: usize,
    /// Every candidate, in order.
    pub(super) all: Vec<Assessed>,
    /// By candidate, the class it is in.
    keys: Vec<Key>,
    /// By candidate.
    next: Vec<Next>,
    /// By micro-batch and recomputation.
    graphs: FxHashMap<(usize, Recompute), Graphs>,
    /// By replicas that share out the states.
    updates: FxHashMap<usize, Update>,
    /// Classes that may still be looked at.
    classes_left: usize,
    /// Classes of which the best split that fits may still be searched for.
    limited_left: usize,
    /// Candidates that may still be compiled by themselves.
    alone_left: usize,
}

impl<'a> State<'a> {
    pub(super) fn new(
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
            keys: Vec::with_capacity(candidates.len()),
            next: vec![Next::Free; candidates.len()],
            graphs: FxHashMap::default(),
            updates: FxHashMap::default(),
            classes_left: MOST_CLASSES,
            limited_left: MOST_LIMITED,
            alone_left: MOST_ALONE,
        };
        state.prepare(&candidates)?;
        let mut kept = Kept::default();
        for candidate in candidates {
            let needs = state.needs(&candidate);
            let number = kept.number(&candidate, base.training.is_some());
            state.keys.push(Key::of(&candidate, number));
            let tile_bytes = needs.bytes(&base.target, &kept.all[number], candidate.chunks);
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
        }
        Ok(state)
    }

    /// The graphs of every micro-batch size and mode of recomputation, and of every update.
    fn prepare(&mut self, candidates: &[Candidate]) -> Result<(), CompileError> {
        let distinct = |of: fn(&Candidate) -> usize| {
            let mut all: Vec<usize> = candidates.iter().map(of).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let (sizes, shards) = (
            distinct(|found| found.micro_batch),
            distinct(Candidate::shards),
        );
        let modes = [Recompute::None, Recompute::Layer];
        let is_used = |wanted: &Recompute| {
            candidates
                .iter()
                .any(|found| mode(found.recompute) == *wanted)
        };
        let modes: Vec<Recompute> = modes.into_iter().filter(is_used).collect();
        let (config, base) = (self.config, self.base);
        let all = in_parallel(self.threads, &sizes, |&size| {
            Graphs::of(config, base, size, &modes)
        });
        for (&size, graphs) in sizes.iter().zip(all) {
            for (&mode, graphs) in modes.iter().zip(graphs?) {
                self.graphs.insert((size, mode), graphs);
            }
        }
        let any = &self.graphs[&(sizes[0], modes[0])];
        let updates = in_parallel(self.threads, &shards, |&shards| {
            Update::of(any, base, shards)
        });
        for (&shards, update) in shards.iter().zip(updates) {
            self.updates.insert(shards, update?);
        }
        Ok(())
    }

    /// What every placement of a candidate comes to at least.
    fn needs(&self, found: &Candidate) -> Needs {
        let mut floor = self.graphs[&(found.micro_batch, mode(found.recompute))].floor;
        if found.recompute == Recompute::Auto {
            // What is kept is not settled.
            floor.stash = 0;
        }
        Needs {
            floor,
            update: self.updates[&found.shards()].needs,
        }
    }

    /// Looks at candidates until nothing that is left could be faster than the best, then for the front; or until
    /// as many were as may be. While nothing fits, as many more may be, so that this is said only where it is proven.
    pub(super) fn run(&mut self) -> Result<(), CompileError> {
        loop {
            self.look_at_the_best()?;
            let is_found = self.all.iter().any(|one| one.verdict == Verdict::Compiled);
            let looked_at = [self.classes_left, self.limited_left, self.alone_left] != LIMITS;
            if is_found || !looked_at {
                return Ok(());
            }
            [self.classes_left, self.limited_left, self.alone_left] = LIMITS;
        }
    }

    /// [`State::run`] within the limits once.
    fn look_at_the_best(&mut self) -> Result<(), CompileError> {
        let any = |_: &Assessed, _: &Assessed| true;
        // The bound of what interleaves knows nothing of how a pipeline fills: something else is there to beat first.
        let is_plain = |one: &Assessed| one.candidate.chunks == 1;
        let is_compiled = |one: &Assessed| one.verdict == Verdict::Compiled;
        while !self.all.iter().any(is_compiled) && self.advance(FRONT_CLASSES, is_plain, any)? {}
        while self.advance(FRONT_CLASSES, |_| true, any)? {}
        while self.look(Next::Limited, any)? || self.look(Next::Alone, any)? {}
        let smaller = |other: &Assessed, one: &Assessed| other.global_batch <= one.global_batch;
        while self.advance(0, |_| true, smaller)? {}
        Ok(())
    }

    /// Searches the best splits of the first candidates that are open, while so many more may be; whether there was
    /// one.
    fn advance(
        &mut self,
        spared: usize,
        is_eligible: fn(&Assessed) -> bool,
        is_compared: Compared,
    ) -> Result<bool, CompileError> {
        let fastest = self.fastest(is_compared);
        let most = BATCH.min(self.classes_left.saturating_sub(spared));
        let mut chosen: Vec<usize> = Vec::new();
        for index in self.open(&fastest, is_compared) {
            let base = |&other: &usize| self.keys[other].base == self.keys[index].base;
            let is_next = self.next[index] == Next::Free && is_eligible(&self.all[index]);
            if is_next && chosen.len() < most && !chosen.iter().any(base) {
                chosen.push(index);
            }
        }
        self.classes_left -= chosen.len();
        let lessons = in_parallel(self.threads, &chosen, |&index| {
            self.assess_free(index, &fastest, is_compared)
        });
        for lesson in lessons {
            self.learn(lesson?);
        }
        Ok(!chosen.is_empty())
    }

    /// Looks at the first open candidate of which that is next; whether there was one.
    fn look(&mut self, next: Next, is_compared: Compared) -> Result<bool, CompileError> {
        let fastest = self.fastest(is_compared);
        let open = self.open(&fastest, is_compared);
        let Some(index) = open.into_iter().find(|&index| self.next[index] == next) else {
            return Ok(false);
        };
        let left = match next {
            Next::Limited => &mut self.limited_left,
            Next::Free | Next::Alone | Next::Nothing => &mut self.alone_left,
        };
        if *left == 0 {
            return Ok(false);
        }
        *left -= 1;
        let lesson = match next {
            Next::Limited => self.assess_limited(index, &fastest, is_compared)?,
            Next::Free | Next::Alone | Next::Nothing => self.assess_alone(index)?,
        };
        self.learn(lesson);
        Ok(true)
    }

    fn learn(&mut self, lesson: Lesson) {
        for (index, one, next) in lesson {
            (self.all[index], self.next[index]) = (one, next);
        }
    }

    /// The compiled candidates of which no other beats one it is compared with.
    pub(super) fn fastest(&self, is_compared: Compared) -> Vec<Assessed> {
        let mut fastest: Vec<Assessed> = Vec::new();
        for one in &self.all {
            if one.verdict == Verdict::Compiled && !is_beaten(one, &fastest, is_compared) {
                fastest.push(*one);
            }
        }
        fastest
    }

    /// The candidates whose bounds are better than everything compiled that is to be compared with them, the best
    /// first.
    pub(super) fn open(&self, fastest: &[Assessed], is_compared: Compared) -> Vec<usize> {
        let is_open = |&index: &usize| {
            let one = &self.all[index];
            one.verdict == Verdict::Bounded && !is_beaten(one, fastest, is_compared)
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

    /// What is known of the candidates that have a graph, stages and shares in common, once their best split is, as if
    /// memory had no end; or once it is known that none makes one of them faster than the `fastest`.
    fn assess_free(
        &self,
        index: usize,
        fastest: &[Assessed],
        is_compared: Compared,
    ) -> Result<Lesson, CompileError> {
        let base = self.keys[index].base;
        let members = self.members(Next::Free, |key| key.base == base);
        let task = self.task(index);
        let cutoff = self.cutoff(&members, fastest, is_compared);
        if let Some(slowest) = task.refuted(cutoff, false)? {
            return Ok(self.slower(&members, slowest));
        }
        let placed = task.placed(Among::All)?;
        let split = placed.split.clone();
        let is_auto = base.recompute == Recompute::Auto;
        let harder = if is_auto { Next::Alone } else { Next::Limited };
        let (fit, full): (Vec<usize>, Vec<usize>) = members
            .into_iter()
            .partition(|&index| self.task(index).is_kept_by(&split));
        let full = full
            .into_iter()
            .map(|index| (index, self.all[index], harder));
        let mut lesson: Lesson = full.collect();
        if fit.is_empty() {
            return Ok(lesson);
        }
        let plan = task.plan(placed)?;
        let programs = Programs::new(&plan);
        lesson.extend(fit.into_iter().map(|index| {
            let exact = exactly(self.all[index], &programs, self.base);
            match exact.verdict {
                Verdict::OutOfMemory if is_auto => (index, self.all[index], Next::Alone),
                _ => (index, exact, Next::Nothing),
            }
        }));
        Ok(lesson)
    }

    /// What is known of the candidates that also keep equally much, once the best split that fits is, or once it is
    /// known that none makes one of them faster than the `fastest`.
    fn assess_limited(
        &self,
        index: usize,
        fastest: &[Assessed],
        is_compared: Compared,
    ) -> Result<Lesson, CompileError> {
        let key = self.keys[index];
        let members = self.members(Next::Limited, |other| *other == key);
        let task = self.task(index);
        let cutoff = self.cutoff(&members, fastest, is_compared);
        match task.refuted(cutoff, true)? {
            Some(u64::MAX) => {
                let full = |index| (index, self.without_room(index), Next::Nothing);
                return Ok(members.into_iter().map(full).collect());
            }
            Some(slowest) => return Ok(self.slower(&members, slowest)),
            None => {}
        }
        let plan = task.plan(task.placed(Among::Fitting)?)?;
        let programs = Programs::new(&plan);
        let exact = |index: usize| {
            let exact = exactly(self.all[index], &programs, self.base);
            (index, exact, Next::Nothing)
        };
        Ok(members.into_iter().map(exact).collect())
    }

    /// The candidates that have bounds and that next step, of some classes.
    fn members(&self, next: Next, is_member: impl Fn(&Key) -> bool) -> Vec<usize> {
        let is_member = |&index: &usize| {
            let is_bounded = self.all[index].verdict == Verdict::Bounded;
            is_bounded && self.next[index] == next && is_member(&self.keys[index])
        };
        (0..self.all.len()).filter(is_member).collect()
    }

    /// The most cycles of the slowest stage with which one of the members could still be faster than the `fastest`.
    fn cutoff(&self, members: &[usize], fastest: &[Assessed], is_compared: Compared) -> u64 {
        last_that(|slowest| {
            let mut bounds = members.iter().map(|&index| self.bounded(index, slowest));
            bounds.any(|one| !is_beaten(&one, fastest, is_compared))
        })
    }

    /// Candidates whose slowest stage has at least so many cycles.
    fn slower(&self, members: &[usize], slowest: u64) -> Lesson {
        let bounded = |&index: &usize| (index, self.bounded(index, slowest), self.next[index]);
        members.iter().map(bounded).collect()
    }

    /// What is to be split for a candidate.
    fn task(&self, index: usize) -> Task<'_> {
        let (found, base) = (&self.all[index].candidate, &self.keys[index].base);
        Task {
            graphs: &self.graphs[&(base.micro_batch, mode(base.recompute))],
            update: &self.updates[&base.shards],
            target: &self.base.target,
            schedule: found.order(self.base.training.is_some()),
            accumulation: found.accumulation,
            shards: base.shards,
        }
    }

    /// A candidate with the bound that a lower bound of the slowest stage's cycles gives.
    fn bounded(&self, index: usize, slowest: u64) -> Assessed {
        let one = self.all[index];
        let needs = self.needs(&one.candidate);
        let step_cycles = needs.cycles(&self.base.target, &one.candidate, slowest);
        Assessed {
            step_cycles: step_cycles.max(one.step_cycles),
            ..one
        }
    }

    /// A candidate of which no split fits.
    fn without_room(&self, index: usize) -> Assessed {
        let one = self.all[index];
        Assessed {
            verdict: Verdict::OutOfMemory,
            tile_bytes: one.tile_bytes.max(self.base.target.capacity() + 1),
            ..one
        }
    }

    /// Compiles a candidate by itself.
    fn assess_alone(&self, index: usize) -> Result<Lesson, CompileError> {
        let one = self.all[index];
        let options = one.candidate.options(self.base);
        let known = match compile(self.config, "", &options, &mut |_, _| {}) {
            Ok((plan, _)) => exactly(one, &Programs::new(&plan), self.base),
            Err(error) => Assessed {
                verdict: Verdict::OutOfMemory,
                tile_bytes: error.bytes_needed(&self.base.target).ok_or(error)?,
                ..one
            },
        };
        Ok(vec![(index, known, Next::Nothing)])
    }

    /// The error where no candidate fits: that of the one that needs the least.
    pub(super) fn nothing_fits(&self) -> CompileError {
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

/// Whether the first of two candidates is one that the second has to beat.
type Compared = fn(&Assessed, &Assessed) -> bool;

/// Whether one of those it is compared with is at least as fast.
fn is_beaten(one: &Assessed, by: &[Assessed], is_compared: Compared) -> bool {
    by.iter()
        .any(|other| is_compared(other, one) && other.is_as_fast_as(one))
}

/// The last number of which `holds` is true, if it is true up to some number.
fn last_that(holds: impl Fn(u64) -> bool) -> u64 {
    const MOST: u64 = 1 << 48;
    let (mut low, mut high) = (0, MOST);
    while low < high {
        let middle = high - (high - low) / 2;
        if holds(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
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
