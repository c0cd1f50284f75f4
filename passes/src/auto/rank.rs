//! The best candidate, the front, and why the others lost.

use serde::Serialize;

use super::{Assessed, Search, Verdict};

/// An option that is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Tiles of a pipeline.
    Stages,
    /// Copies of the pipeline.
    Replicas,
    /// Samples of a micro-batch.
    MicroBatch,
    /// What the backward half computes again.
    Recompute,
    /// The order of programs.
    Schedule,
    /// Whether replicas share out the optimiser's states.
    ReplicatedTensorSharding,
}

impl Choice {
    /// Every option.
    const ALL: [Choice; 6] = [
        Choice::Stages,
        Choice::Replicas,
        Choice::MicroBatch,
        Choice::Recompute,
        Choice::Schedule,
        Choice::ReplicatedTensorSharding,
    ];

    /// What a candidate has chosen.
    pub fn of(self, one: &Assessed) -> String {
        let found = &one.candidate;
        match self {
            Choice::Stages => found.stages.to_string(),
            Choice::Replicas => found.replicas.to_string(),
            Choice::MicroBatch => found.micro_batch.to_string(),
            Choice::Recompute => found.recompute.name().to_owned(),
            Choice::Schedule => found.schedule.name().to_owned(),
            Choice::ReplicatedTensorSharding => {
                let shared = found.replicated_tensor_sharding;
                if shared { "on" } else { "off" }.to_owned()
            }
        }
    }
}

/// The best candidate with another value of one option than the chosen one has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rival {
    /// The option.
    pub option: Choice,
    /// Its value.
    pub value: String,
    /// The candidate. It lost because its figures are worse, cannot be better, or do not fit.
    #[serde(flatten)]
    pub assessed: Assessed,
}

/// Whether `one` is to be preferred to `other`, which comes later: faster, or as fast in less memory.
fn is_better(one: &Assessed, other: &Assessed) -> bool {
    match (one.is_as_fast_as(other), other.is_as_fast_as(one)) {
        (true, true) => one.tile_bytes <= other.tile_bytes,
        (faster, _) => faster,
    }
}

/// Whether `one` is no worse than `other` in all three figures.
fn covers(one: &Assessed, other: &Assessed) -> bool {
    one.global_batch <= other.global_batch
        && one.tile_bytes <= other.tile_bytes
        && one.is_as_fast_as(other)
}

fn with(all: &[Assessed], verdict: Verdict) -> impl Iterator<Item = &Assessed> {
    all.iter().filter(move |one| one.verdict == verdict)
}

/// The first of the best.
fn first_best<'a>(all: impl Iterator<Item = &'a Assessed>) -> Option<&'a Assessed> {
    all.reduce(|best, one| if is_better(best, one) { best } else { one })
}

/// Ranks all candidates; none if none fits.
pub(super) fn rank(all: &[Assessed], proven: bool) -> Option<Search> {
    let best = *first_best(with(all, Verdict::Compiled))?;
    let verdicts = [Verdict::Compiled, Verdict::Bounded, Verdict::OutOfMemory];
    Some(Search {
        best,
        front: front(all),
        rivals: rivals(all, &best),
        proven,
        counts: verdicts.map(|verdict| with(all, verdict).count()),
    })
}

/// What nothing compiled covers; of equals the first.
fn front(all: &[Assessed]) -> Vec<Assessed> {
    let mut front: Vec<Assessed> = Vec::new();
    for one in with(all, Verdict::Compiled) {
        if !front.iter().any(|other| covers(other, one)) {
            front.retain(|other| !covers(one, other));
            front.push(*one);
        }
    }
    front.sort_by(|a, b| {
        let batch = a.global_batch.cmp(&b.global_batch);
        batch.then(a.step_cycles.cmp(&b.step_cycles))
    });
    front
}

/// The best candidate for each other value of each option, at the chosen global batch.
fn rivals(all: &[Assessed], best: &Assessed) -> Vec<Rival> {
    let mut rivals: Vec<Rival> = Vec::new();
    let same = |one: &&Assessed| one.global_batch == best.global_batch;
    for option in Choice::ALL {
        let mut values: Vec<String> = all.iter().filter(same).map(|one| option.of(one)).collect();
        values.sort_by_key(|value| (value.len(), value.clone()));
        values.dedup();
        values.retain(|value| *value != option.of(best));
        for value in values {
            let has = |one: &&Assessed| option.of(one) == value;
            let fits = |one: &&Assessed| one.verdict != Verdict::OutOfMemory;
            let found = first_best(all.iter().filter(same).filter(has).filter(fits));
            let least = all.iter().filter(same).filter(has);
            let found = found.or_else(|| least.min_by_key(|one| one.tile_bytes));
            let Some(&assessed) = found else { continue };
            if rivals.iter().all(|rival| rival.assessed != assessed) {
                rivals.push(Rival {
                    option,
                    value,
                    assessed,
                });
            }
        }
    }
    rivals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auto::Candidate;
    use crate::{Recompute, schedule::Rule};

    fn assessed(
        micro_batch: usize,
        verdict: Verdict,
        step_cycles: u64,
        tile_bytes: u64,
    ) -> Assessed {
        let candidate = Candidate {
            replicas: 1,
            stages: 2,
            chunks: 1,
            micro_batch,
            accumulation: 1,
            recompute: Recompute::None,
            schedule: Rule::GPipe,
            replicated_tensor_sharding: false,
        };
        Assessed {
            candidate,
            global_batch: candidate.global_batch(),
            verdict,
            step_cycles,
            tile_bytes,
        }
    }

    #[test]
    fn the_front_is_what_nothing_else_covers() {
        use Verdict::{Bounded, Compiled, OutOfMemory};
        let all = [
            assessed(1, Compiled, 10, 50),
            assessed(1, Compiled, 12, 40),
            assessed(1, Compiled, 12, 45),
            assessed(1, Compiled, 10, 50),
            assessed(2, Compiled, 20, 60),
            assessed(2, Compiled, 15, 60),
            assessed(2, Bounded, 1, 1),
            assessed(4, OutOfMemory, 2, 2),
        ];
        let search = rank(&all, true).unwrap();
        assert_eq!(search.front, [all[0], all[1], all[5]]);
        assert_eq!(search.best, all[5]);
        assert_eq!(search.counts, [6, 1, 1]);
        assert!(search.proven);
        assert!(rank(&all[6..], true).is_none());
    }

    #[test]
    fn of_equals_the_one_with_less_memory_is_best_then_the_first() {
        use Verdict::Compiled;
        let all = [
            assessed(2, Compiled, 20, 60),
            assessed(1, Compiled, 10, 50),
            assessed(1, Compiled, 10, 50),
        ];
        assert_eq!(rank(&all, false).unwrap().best, all[1]);
    }

    #[test]
    fn a_rival_has_another_value_at_the_same_global_batch() {
        use Verdict::{Bounded, Compiled, OutOfMemory};
        let with = |schedule, verdict, step_cycles, tile_bytes| {
            let mut one = assessed(4, verdict, step_cycles, tile_bytes);
            one.candidate.schedule = schedule;
            one
        };
        let all = [
            with(Rule::OneFOneB, Compiled, 10, 50),
            with(Rule::GPipe, Compiled, 12, 70),
            with(Rule::GPipe, Bounded, 11, 40),
            with(Rule::PopArt, OutOfMemory, 11, 99),
            with(Rule::PopArt, OutOfMemory, 13, 98),
            assessed(2, Compiled, 100, 50),
        ];
        let found: Vec<_> = rank(&all, true)
            .unwrap()
            .rivals
            .into_iter()
            .map(|rival| (rival.option, rival.assessed))
            .collect();
        let expected = [all[2], all[4]].map(|one| (Choice::Schedule, one));
        assert_eq!(found, expected);
    }
}
