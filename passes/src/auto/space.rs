//! What is searched: the options that are open, and all their combinations.

use serde::Serialize;

use crate::compile::{CompileOptions, TrainingOptions};
use crate::pass::Recompute;
use crate::schedule::{Branches, Rule, Schedule};

/// The largest global batch that is searched where none is given: what LXMERT was pretrained with, the most of
/// its published recipes.
const MOST_GLOBAL_BATCH: usize = 256;
/// The largest micro-batch that is searched where none is given.
const MOST_MICRO_BATCH: usize = 16;

/// The options that are given; the others are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Copies of the pipeline.
    pub replicas: Option<usize>,
    /// Tiles of a pipeline.
    pub stages: Option<usize>,
    /// Samples of a micro-batch.
    pub micro_batch: Option<usize>,
    /// Micro-batches of a replica in a step.
    pub accumulation: Option<usize>,
    /// Samples of a step: replicas x micro-batch x accumulation.
    pub global_batch: Option<usize>,
    /// What the backward half computes again.
    pub recompute: Option<Recompute>,
    /// The order of programs.
    pub rule: Option<Rule>,
    /// Stages of a tile, where the rule interleaves.
    pub chunks: Option<usize>,
    /// Whether replicas share out the optimiser's states.
    pub replicated_tensor_sharding: Option<bool>,
}

/// One combination of the options that are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Copies of the pipeline.
    pub replicas: usize,
    /// Tiles of a pipeline.
    pub stages: usize,
    /// Stages of a tile.
    pub chunks: usize,
    /// Samples of a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a replica in a step.
    pub accumulation: usize,
    /// What the backward half computes again.
    #[serde(serialize_with = "by_name")]
    pub recompute: Recompute,
    /// The order of programs.
    pub schedule: Rule,
    /// Whether replicas share out the optimiser's states.
    pub replicated_tensor_sharding: bool,
}

fn by_name<S: serde::Serializer>(recompute: &Recompute, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(recompute.name())
}

impl Candidate {
    /// Samples of a step.
    pub fn global_batch(&self) -> usize {
        self.replicas * self.micro_batch * self.accumulation
    }

    /// Replicas that share out the optimiser's states; 1 if each has all of them.
    pub(super) fn shards(&self) -> usize {
        if self.replicated_tensor_sharding {
            self.replicas
        } else {
            1
        }
    }

    /// The order of programs.
    pub(super) fn order(&self, training: bool) -> Schedule {
        Schedule {
            rule: self.schedule,
            tiles: self.stages,
            chunks: self.chunks,
            training,
            branches: Branches::chain(),
        }
    }

    /// `base` with these options, one micro-batch at a time.
    pub fn options(&self, base: &CompileOptions) -> CompileOptions {
        let mut options = base.clone();
        options.model.micro_batch = self.micro_batch;
        options.replicas = self.replicas;
        options.stages = Some(self.stages);
        options.training = base.training.as_ref().map(|training| TrainingOptions {
            rule: self.schedule,
            chunks: self.chunks,
            accumulation: self.accumulation,
            group: Some(1),
            recompute: self.recompute,
            replicated_tensor_sharding: self.replicated_tensor_sharding,
            ..training.clone()
        });
        options
    }
}

impl Fixed {
    /// Every combination of what is open that a pod of so many tiles has room for and whose schedule takes the
    /// micro-batches. Pipelines are as long as some number of replicas leaves room for, and replicas as many as some
    /// length of a pipeline does; sizes are powers of two, or whatever makes up a given global batch.
    pub(super) fn candidates(&self, tiles: usize, training: bool) -> Vec<Candidate> {
        let mut found = Vec::new();
        for stages in one_or(self.stages, lengths(tiles)) {
            let most = tiles / stages.max(1);
            for replicas in one_or(self.replicas, lengths(most)) {
                if replicas <= most {
                    self.add_batches(replicas, stages, training, &mut found);
                }
            }
        }
        found
    }

    fn add_batches(&self, replicas: usize, stages: usize, training: bool, to: &mut Vec<Candidate>) {
        let most = self.global_batch.unwrap_or(MOST_GLOBAL_BATCH);
        let sizes = match self.global_batch {
            Some(batch) if batch.is_multiple_of(replicas) => divisors(batch / replicas),
            Some(_) => return,
            None => powers(most),
        };
        let micro_batches: Vec<usize> = sizes
            .iter()
            .copied()
            .filter(|&size| size <= MOST_MICRO_BATCH)
            .collect();
        for micro_batch in one_or(self.micro_batch, micro_batches) {
            for accumulation in one_or(self.accumulation, sizes.clone()) {
                let batch = replicas
                    .saturating_mul(micro_batch)
                    .saturating_mul(accumulation);
                let given = self.micro_batch.is_some() && self.accumulation.is_some();
                let is_wanted = match self.global_batch {
                    Some(wanted) => batch == wanted,
                    None => batch <= most || given,
                };
                if is_wanted {
                    let base = Candidate {
                        replicas,
                        stages,
                        chunks: 1,
                        micro_batch,
                        accumulation,
                        recompute: Recompute::None,
                        schedule: Rule::GPipe,
                        replicated_tensor_sharding: false,
                    };
                    self.add_orders(base, training, to);
                }
            }
        }
    }

    fn add_orders(&self, base: Candidate, training: bool, to: &mut Vec<Candidate>) {
        if !training {
            to.push(base);
            return;
        }
        let all = vec![Recompute::None, Recompute::Layer];
        let whole_or_shared = match base.replicas {
            1 => vec![false],
            _ => vec![false, true],
        };
        let sharding = one_or(self.replicated_tensor_sharding, whole_or_shared);
        let interleaved = TrainingOptions::default().chunks;
        for schedule in one_or(self.rule, Rule::ALL.to_vec()) {
            let chunks = match schedule {
                Rule::Interleaved => self.chunks.unwrap_or(interleaved),
                Rule::OneFOneB | Rule::GPipe | Rule::PopArt => 1,
            };
            let placed = Candidate {
                schedule,
                chunks,
                ..base
            };
            if placed.order(true).check(base.accumulation).is_err() {
                continue;
            }
            for recompute in one_or(self.recompute, all.clone()) {
                to.extend(sharding.iter().map(|&shared| Candidate {
                    recompute,
                    replicated_tensor_sharding: shared,
                    ..placed
                }));
            }
        }
    }
}

/// The given value alone, or all of `open`.
fn one_or<T>(given: Option<T>, open: Vec<T>) -> Vec<T> {
    given.map_or(open, |given| vec![given])
}

/// The most tiles that each of 1, 2, … pipelines can have, most first: 16, 8, 5, 4, 3, 2, 1 of 16.
fn lengths(tiles: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = (1..=tiles).map(|replicas| tiles / replicas).collect();
    lengths.dedup();
    lengths
}

/// The powers of two up to `most`.
fn powers(most: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).map(|exponent| 1 << exponent);
    powers.take_while(|&power| power <= most).collect()
}

/// What divides a number, ascending.
fn divisors(number: usize) -> Vec<usize> {
    let pairs = (1..).take_while(|&small| small <= number / small);
    let pairs = pairs.filter(|small| number.is_multiple_of(*small));
    let mut all: Vec<usize> = pairs.flat_map(|small| [small, number / small]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stays_and_the_rest_is_combined() {
        let open = Fixed::default();
        let all = open.candidates(16, true);
        let stages = |all: &[Candidate]| {
            let mut stages: Vec<usize> = all.iter().map(|found| found.stages).collect();
            stages.dedup();
            stages
        };
        assert_eq!(stages(&all), [16, 8, 5, 4, 3, 2, 1]);
        for found in &all {
            assert!(found.replicas * found.stages <= 16 && found.global_batch() <= 256);
            assert!(found.order(true).check(found.accumulation).is_ok());
        }
        for rule in Rule::ALL {
            assert!(all.iter().any(|found| found.schedule == rule));
        }
        let fixed = Fixed {
            stages: Some(6),
            micro_batch: Some(24),
            recompute: Some(Recompute::Layer),
            rule: Some(Rule::OneFOneB),
            ..open
        };
        let some = fixed.candidates(16, true);
        assert_eq!(stages(&some), [6]);
        let kept = |found: &&Candidate| {
            (found.micro_batch, found.recompute, found.schedule)
                == (24, Recompute::Layer, Rule::OneFOneB)
        };
        assert!(!some.is_empty() && some.iter().all(|found| kept(&found)));
    }

    #[test]
    fn a_global_batch_is_kept_whatever_divides_it() {
        for (batch, training) in [(24, true), (7, true), (96, false)] {
            let fixed = Fixed {
                global_batch: Some(batch),
                ..Fixed::default()
            };
            let all = fixed.candidates(16, training);
            assert!(all.iter().all(|found| found.global_batch() == batch));
            let has = |replicas, micro_batch| {
                let mut all = all.iter();
                all.any(|found| (found.replicas, found.micro_batch) == (replicas, micro_batch))
            };
            assert!(has(1, 1));
            assert_eq!(has(2, 3), batch.is_multiple_of(6));
            assert_eq!(has(5, 1), batch.is_multiple_of(5));
        }
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(16), [1, 2, 4, 8, 16]);
    }

    #[test]
    fn a_candidate_writes_its_options_over_the_base() {
        let target = lxpod_ir::Target::named("pod16").unwrap();
        let mut base = CompileOptions::new(lxpod_ir::front::ModelOptions::default(), target);
        base.training = Some(TrainingOptions::default());
        for found in Fixed::default().candidates(16, true).iter().step_by(97) {
            let options = found.options(&base);
            assert_eq!(options.resolved_stages().unwrap(), found.stages);
            let (schedule, accumulation) = options.schedule().unwrap();
            assert_eq!(schedule, found.order(true));
            assert_eq!(accumulation, found.accumulation);
            assert_eq!(options.replicas, found.replicas);
            assert_eq!(options.model.micro_batch, found.micro_batch);
        }
    }
}
