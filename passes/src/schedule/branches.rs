//! Which stages exchange values.

use serde::{Deserialize, Serialize};

/// The stages of a pipeline as a graph: a chain, or stages side by side on branches.
///
/// Stages are numbered so that forward values go to later ones; cotangents go back along the same edges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Branches {
    /// By stage: the earlier stages it exchanges values with, ascending. Empty for a chain, in which each stage does
    /// with the one before it.
    before: Vec<Vec<usize>>,
}

impl Branches {
    /// Each stage exchanges values with the next.
    pub const fn chain() -> Self {
        Branches { before: Vec::new() }
    }

    /// So many stages, of which these pairs exchange values.
    ///
    /// # Panics
    /// If a pair names a stage that is not there.
    pub fn of(stages: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut before = vec![Vec::new(); stages];
        for (one, other) in pairs.into_iter().filter(|(one, other)| one != other) {
            before[one.max(other)].push(one.min(other));
        }
        for list in &mut before {
            list.sort_unstable();
            list.dedup();
        }
        Branches { before }
    }

    /// Whether it is the chain.
    pub fn is_chain(&self) -> bool {
        self.before.is_empty()
    }

    /// The earlier stages that a stage exchanges values with, ascending.
    pub fn before(&self, stage: usize) -> Vec<usize> {
        match self.is_chain() {
            true => stage.checked_sub(1).into_iter().collect(),
            false => self.before.get(stage).cloned().unwrap_or_default(),
        }
    }

    /// Whether two stages exchange values, the earlier one given first.
    pub fn has(&self, earlier: usize, later: usize) -> bool {
        match self.before.get(later) {
            Some(list) => list.binary_search(&earlier).is_ok(),
            None => self.is_chain() && earlier + 1 == later,
        }
    }

    /// Checks that it is a graph of so many stages.
    pub(super) fn is_of(&self, stages: usize) -> bool {
        let ascends = |(stage, list): (usize, &Vec<usize>)| {
            list.is_sorted_by(|a, b| a < b) && list.last().is_none_or(|&last| last < stage)
        };
        self.is_chain()
            || (self.before.len() == stages && self.before.iter().enumerate().all(ascends))
    }

    /// The edges, both ways.
    pub(super) fn links(&self, stages: usize) -> Links {
        let before: Vec<Vec<usize>> = (0..stages).map(|stage| self.before(stage)).collect();
        let mut after = vec![Vec::new(); stages];
        for (stage, list) in before.iter().enumerate() {
            list.iter().for_each(|&earlier| after[earlier].push(stage));
        }
        let mut behind = vec![0; stages];
        for stage in (0..stages).rev() {
            let next = after[stage].iter().map(|&later: &usize| behind[later] + 1);
            behind[stage] = next.max().unwrap_or(0);
        }
        Links {
            before,
            after,
            behind,
        }
    }
}

impl Links {
    /// Stages on the longest path.
    pub(super) fn longest_path(&self) -> usize {
        self.behind.iter().max().map_or(0, |behind| behind + 1)
    }
}

/// The edges of [`Branches`], by stage.
pub(super) struct Links {
    /// The stages whose forward values it reads.
    pub(super) before: Vec<Vec<usize>>,
    /// The stages whose cotangents it reads.
    pub(super) after: Vec<Vec<usize>>,
    /// The stages behind it on the longest path that begins there.
    pub(super) behind: Vec<usize>,
}
