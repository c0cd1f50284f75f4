//! A split that can be questioned: what its stages do, and what its next best neighbours would.

use lxpod_ir::Target;
use serde::Serialize;

use super::pinned::Operator;
use super::{in_flight, memory_limit};
use crate::schedule::Schedule;
use crate::solve::partition::certificate::{Certificate, CertificateError, Certified};
use crate::solve::partition::{Limits, Problem, Solution, evaluate};

/// The problem that a plan's stages solve, and the stages.
#[derive(Clone, Debug, Default)]
pub struct Split {
    pub(super) problem: Problem,
    pub(super) stage_of: Vec<usize>,
    pub(super) operators: Vec<Operator>,
}

/// The cut between two neighbouring stages.
#[derive(Clone, Debug, Serialize)]
pub struct Cut {
    /// The stage before it; the other follows.
    pub stage: usize,
    /// Cycles of the two stages.
    pub loads: [u64; 2],
    /// Operators that could cross it alone, to either side.
    pub movable: usize,
    /// The best cut with one operator more on the stage behind it; none if its stage would be left empty.
    pub earlier: Option<Moved>,
    /// The best cut with one operator more on the stage before it.
    pub later: Option<Moved>,
}

/// A split in which one operator lies on a neighbouring stage.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// The operator.
    pub operator: Operator,
    /// Cycles of the two stages then.
    pub loads: [u64; 2],
    /// Cycles of the slowest stage then.
    pub objective_cycles: u64,
    /// By how many bytes a tile then misses its memory, by the bound that the search uses; 0 if none does.
    pub missing_bytes: u64,
}

/// What makes a stage as slow as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Slowest {
    /// The stage.
    pub stage: usize,
    /// Its cycles.
    pub cycles: u64,
    /// The cycles of its operators; the rest is what crosses its borders, and its host buffers.
    pub operator_cycles: u64,
    /// Cycles of the next slowest stage.
    pub next_cycles: u64,
    /// Cycles of each stage if all operators could be spread evenly and nothing crossed a border.
    pub even_cycles: u64,
    /// Its operators with the most cycles, at most so many as were asked for.
    pub largest: Vec<(Operator, u64)>,
}

impl Split {
    /// The pairs of atoms of which the first may not be on a later stage than the second.
    pub(super) fn order(problem: &Problem) -> Vec<(usize, usize)> {
        let mut pairs: Vec<_> = problem.ordering().collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Whether the search would keep this split for that schedule on that target: by its own reckoning of memory,
    /// which is a lower bound. The schedule must have as many stages.
    pub(crate) fn keeps_memory(
        &self,
        target: &Target,
        schedule: &Schedule,
        accumulation: usize,
    ) -> bool {
        let problem = Problem {
            in_flight: in_flight(schedule, accumulation),
            ..self.problem.clone()
        };
        let limit = memory_limit(target, schedule);
        let memory = evaluate(&problem, &self.stage_of).memory;
        memory.iter().all(|&bytes| bytes <= limit)
    }

    /// The problem and a certificate that no contiguous split of it has a slowest stage below `lower_bound` cycles.
    ///
    /// # Errors
    /// The certificate exceeds `limits`, or there is such a split.
    pub fn certify(
        &self,
        lower_bound: u64,
        limits: &Limits<'_>,
    ) -> Result<Certified, CertificateError> {
        let problem = match self.problem.branches {
            // No split has a faster slowest stage, whatever stages keep by their places.
            Some(_) => Problem {
                memory_limit: None,
                branches: None,
                ..self.problem.clone()
            },
            None => self.problem.clone(),
        };
        let solution = Solution::of(&problem, self.stage_of.clone(), lower_bound, 0);
        Ok(Certified {
            certificate: Certificate::new(&problem, &solution, limits)?,
            problem,
        })
    }

    /// Cycles of each stage.
    pub fn loads(&self) -> Vec<u64> {
        evaluate(&self.problem, &self.stage_of).loads
    }

    /// The slowest stage, and its `most` largest operators.
    pub fn slowest(&self, most: usize) -> Slowest {
        let mut loads: Vec<(u64, usize)> = self.loads().into_iter().zip(0..).collect();
        loads.sort_by_key(|&(cycles, stage)| (std::cmp::Reverse(cycles), stage));
        let (cycles, stage) = loads.first().copied().unwrap_or_default();
        let on_it = (0..self.stage_of.len()).filter(|&atom| self.stage_of[atom] == stage);
        let cycles_of = |atom: usize| self.problem.items[atom].cycles;
        let mut largest: Vec<usize> = on_it.clone().collect();
        largest.sort_by_key(|&atom| (std::cmp::Reverse(cycles_of(atom)), atom));
        largest.truncate(most);
        let all: u64 = (0..self.stage_of.len()).map(cycles_of).sum();
        Slowest {
            stage,
            cycles,
            operator_cycles: on_it.map(cycles_of).sum(),
            next_cycles: loads.get(1).map_or(0, |&(cycles, _)| cycles),
            even_cycles: all.div_ceil(loads.len().max(1) as u64),
            largest: largest
                .into_iter()
                .map(|atom| (self.operators[atom].clone(), cycles_of(atom)))
                .collect(),
        }
    }

    /// The cuts, each with the best that differ from it by one operator: exact, since every operator that may cross
    /// a cut alone is tried and the whole split is evaluated anew.
    pub fn cuts(&self) -> Vec<Cut> {
        let order = Split::order(&self.problem);
        let loads = self.loads();
        let last = self.stage_of.iter().copied().max().unwrap_or(0);
        let cut = |stage: usize| {
            let earlier = self.leaving(&order, stage, stage + 1);
            let later = self.leaving(&order, stage + 1, stage);
            Cut {
                stage,
                loads: [loads[stage], loads[stage + 1]],
                movable: earlier.len() + later.len(),
                earlier: self.best(&earlier, stage, stage + 1),
                later: self.best(&later, stage, stage),
            }
        };
        (0..last).map(cut).collect()
    }

    /// The atoms of stage `from` that may go to the neighbouring stage `to` alone.
    fn leaving(&self, order: &[(usize, usize)], from: usize, to: usize) -> Vec<usize> {
        let on = |atom: usize| self.stage_of[atom] == from;
        let mut held = vec![false; self.stage_of.len()];
        for &(a, b) in order.iter().filter(|&&(a, b)| on(a) && on(b)) {
            held[if to > from { a } else { b }] = true;
        }
        let atoms = (0..self.stage_of.len()).filter(|&atom| on(atom));
        let free: Vec<usize> = atoms.clone().filter(|&atom| !held[atom]).collect();
        // A stage that gives up its only atom is a stage less, not another cut.
        if atoms.count() == 1 { Vec::new() } else { free }
    }

    /// Of the splits in which one of `atoms` lies on stage `to`, the one with the fastest slowest stage,
    /// then with the faster slower of the two stages at the cut behind `stage`.
    fn best(&self, atoms: &[usize], stage: usize, to: usize) -> Option<Moved> {
        let moved = |&atom: &usize| {
            let mut stage_of = self.stage_of.clone();
            stage_of[atom] = to;
            let found = evaluate(&self.problem, &stage_of);
            let most = found.memory.iter().copied().max().unwrap_or(0);
            Moved {
                operator: self.operators[atom].clone(),
                loads: [found.loads[stage], found.loads[stage + 1]],
                objective_cycles: found.loads.into_iter().max().unwrap_or(0),
                missing_bytes: most.saturating_sub(self.problem.memory_limit.unwrap_or(u64::MAX)),
            }
        };
        let key = |moved: &Moved| {
            let fits = moved.missing_bytes == 0;
            (!fits, moved.objective_cycles, moved.loads.into_iter().max())
        };
        atoms.iter().map(moved).min_by_key(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::solve::partition::{Item, Limits, Value, solve};

    /// A random order of items with values between them, split into three stages.
    fn split(cycles: &[u64], links: &[(usize, usize, u64)]) -> Split {
        let item = |&cycles: &u64| Item {
            cycles,
            ..Item::default()
        };
        let value = |&(a, b, cost): &(usize, usize, u64)| Value {
            producer: Some(a.min(b)),
            users: vec![a.max(b)],
            cost,
            relayed: true,
            ..Value::default()
        };
        let links = links.iter().filter(|(a, b, _)| a != b);
        let problem = Problem {
            items: cycles.iter().map(item).collect(),
            values: links.map(value).collect(),
            devices: 3,
            ..Problem::default()
        };
        let found = solve(&problem, &Limits::default()).expect("a split");
        let name = |index: usize| Operator {
            op: "linear",
            scope: index.to_string(),
        };
        Split {
            stage_of: found.device_of,
            operators: (0..cycles.len()).map(name).collect(),
            problem,
        }
    }

    /// The fastest slowest stage of all contiguous splits in which one atom of stage `from`, which is not its
    /// only one, lies on `to`.
    fn brute(split: &Split, from: usize, to: usize) -> Option<u64> {
        let order = Split::order(&split.problem);
        let on = |atom: &usize| split.stage_of[*atom] == from;
        let atoms: Vec<usize> = (0..split.stage_of.len()).filter(on).collect();
        let moved = |&atom: &usize| {
            let mut stage_of = split.stage_of.clone();
            stage_of[atom] = to;
            let contiguous = order.iter().all(|&(a, b)| stage_of[a] <= stage_of[b]);
            let loads = evaluate(&split.problem, &stage_of).loads;
            (contiguous && atoms.len() > 1).then(|| loads.into_iter().max().unwrap_or(0))
        };
        atoms.iter().filter_map(moved).min()
    }

    proptest! {
        #[test]
        fn neighbours_are_the_best_there_are(
            cycles in proptest::collection::vec(1u64..50, 3..9),
            links in proptest::collection::vec((0usize..9, 0usize..9, 0u64..20), 0..12),
        ) {
            let known = |end: &usize| *end < cycles.len();
            let links: Vec<_> = links.into_iter().filter(|(a, b, _)| known(a) && known(b)).collect();
            let split = split(&cycles, &links);
            let objective = split.loads().into_iter().max().unwrap_or(0);
            for cut in split.cuts() {
                let slowest = |moved: &Option<Moved>| moved.as_ref().map(|moved| moved.objective_cycles);
                prop_assert_eq!(slowest(&cut.earlier), brute(&split, cut.stage, cut.stage + 1));
                prop_assert_eq!(slowest(&cut.later), brute(&split, cut.stage + 1, cut.stage));
                for moved in [&cut.earlier, &cut.later].into_iter().flatten() {
                    // The split is optimal, so no neighbour is better.
                    prop_assert!(moved.objective_cycles >= objective);
                }
            }
            let slowest = split.slowest(3);
            prop_assert_eq!(slowest.cycles, objective);
            prop_assert!(slowest.operator_cycles <= objective && slowest.next_cycles <= objective);
        }
    }
}
