//! The search over the whole pod: replicas, stages, micro-batch, accumulation, recomputation, schedule, and whether
//! replicas share out the optimiser's states.
//!
//! *What is searched.* Every combination of the options that are open ([`Fixed`]), for the most samples a second
//! that fit the tiles' memory.
//!
//! *How.* A candidate's step is bounded from below by what its graphs come to on any split (module `bound`). The
//! candidate with the best bound is looked at next, until nothing that is left could be faster. Then the same is done
//! for the front, a few splits long, until nothing could be faster than what has no more samples in a step.
//!
//! *What candidates share.* Those that differ only in accumulation, the order of programs, and replicas that share
//! nothing out, have one split and one set of programs (module `class`) where it fits their memory: they are known to
//! the cycle and to the byte once one of them is. Where it does not, those that keep values of as many micro-batches on
//! each stage share the best split that fits. Before a split is searched for, one test shows whether there is any that
//! makes one of them faster than what is known; mostly there is none.
//!
//! *What is promised.* A compiled figure is the one that [`compile`](crate::compile) gives for these options; any other
//! is a bound, and says so. No candidate is faster than the best one that was compiled, unless [`Search::proven`] is
//! false, because more candidates were left than are looked at. The order of the search depends on candidates alone,
//! never on a clock or the number of threads.

mod bound;
mod class;
mod rank;
mod space;
mod state;

use lxpod_ir::front::LxmertConfig;
use serde::Serialize;

use crate::compile::{CompileError, CompileOptions};
use rank::rank;
pub use rank::{Choice, Rival};
pub use space::{Candidate, Fixed};
use state::{BATCH, State};

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
    let any = |_: &Assessed, _: &Assessed| true;
    let proven = state.open(&state.fastest(any), any).is_empty();
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
