//! A beam search for a split: not exact, but a fraction of a test's work, and mostly the best split or close to it.

use super::model::Kind;
use super::reach::Ground;
use super::walk::{Fence, Walker};
use crate::solve::Budget;

/// Ideals that are gone on from after each stage.
const WIDTH: usize = 16;

/// An ideal that stages from the end of the pipeline reach.
#[derive(Clone, Copy)]
struct State {
    ideal: u32,
    /// The largest load of a stage so far.
    slowest: u64,
    /// What it will be at least.
    outlook: u64,
    /// The position of the ideal before among those of the stage before.
    parent: u32,
}

/// A split with no load above `bound` within `memory`, if one is found before the budget runs out; none where there are
/// hosts.
///
/// After each stage the ideals are gone on from that have the best outlook, which is what the stages behind them take or
/// those before them need, whichever is more.
pub(super) fn dive(
    walker: &mut Walker<'_>,
    ground: &Ground,
    bound: u64,
    memory: u64,
    budget: &mut Budget<'_>,
) -> Option<Vec<usize>> {
    let (model, full) = (walker.model, walker.lattice.len() - 1);
    if model.hosts > 0 {
        return None;
    }
    let start = State {
        ideal: full as u32,
        slowest: 0,
        outlook: 0,
        parent: 0,
    };
    let mut levels = vec![vec![start]];
    for used in 0..model.devices {
        let mut reached: Vec<State> = Vec::new();
        let left = model.devices - used - 1;
        let fence = Fence {
            kind: Kind::Device,
            bound,
            memory,
            copies: model.copies(used),
        };
        for (parent, &before) in levels[used].iter().enumerate() {
            walker.walk(before.ideal, fence, budget, |ideal, totals| {
                let slowest = before.slowest.max(totals.load);
                if totals.load <= bound && ground.may_fit(ideal as usize, left, bound) {
                    reached.push(State {
                        ideal,
                        slowest,
                        outlook: slowest.max(ground.least(ideal as usize, left)),
                        parent: parent as u32,
                    });
                }
                true
            })?;
        }
        reached.sort_unstable_by_key(|state| (state.ideal, state.slowest, state.parent));
        reached.dedup_by_key(|state| state.ideal);
        reached.sort_by_key(|state| (state.outlook, state.ideal));
        reached.truncate(WIDTH);
        let done = reached.iter().position(|state| state.ideal == 0);
        levels.push(reached);
        if let Some(done) = done {
            return Some(split(walker, &levels, done));
        }
    }
    None
}

/// Reads a split off the states that led to the one at `done` among the last.
fn split(walker: &Walker<'_>, levels: &[Vec<State>], done: usize) -> Vec<usize> {
    let mut device_of = vec![0; walker.model.len()];
    let mut state = levels[levels.len() - 1][done];
    for (device, behind) in levels.iter().rev().skip(1).enumerate() {
        let before = behind[state.parent as usize];
        for item in walker
            .lattice
            .difference(state.ideal as usize, before.ideal as usize)
        {
            device_of[item as usize] = device;
        }
        state = before;
    }
    device_of
}
