//! The walk over the stages that end at one ideal.

use super::model::{Kind, Model};
use super::stage::{Stage, Totals};
use crate::solve::Budget;
use crate::solve::lattice::Lattice;

const NONE: u32 = u32::MAX;

/// What a walk may not exceed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    /// What runs the stages.
    pub(super) kind: Kind,
    /// Their largest load.
    pub(super) bound: u64,
    /// Their largest memory.
    pub(super) memory: u64,
    /// Copies of what they stash.
    pub(super) copies: u64,
}

struct Frame {
    ideal: u32,
    cursor: u32,
    item: u32,
    before: Totals,
}

/// Scratch of walks over one lattice.
pub(super) struct Walker<'m> {
    pub(super) model: &'m Model,
    pub(super) lattice: &'m Lattice,
    /// The cost of the relayed values that cross the border of each ideal.
    pub(super) borders: Vec<u64>,
    stage: Stage<'m>,
    stamp: Vec<u32>,
    clock: u32,
    stack: Vec<Frame>,
}

impl<'m> Walker<'m> {
    /// O(ideals x relayed values).
    pub(super) fn new(model: &'m Model, lattice: &'m Lattice) -> Self {
        Self {
            model,
            lattice,
            borders: model.borders(lattice),
            stage: Stage::new(model),
            stamp: vec![0; lattice.len()],
            clock: 0,
            stack: Vec::new(),
        }
    }

    /// Load of one device without relayed values.
    pub(super) fn load(&mut self, kind: Kind, items: &[u32]) -> u64 {
        self.stage.turn(kind);
        let mut totals = Totals::default();
        items.iter().for_each(|&i| self.stage.add(i, &mut totals));
        items.iter().for_each(|&i| self.stage.remove(i));
        totals.load
    }

    /// As [`Walker::walk_open`], from an empty stage.
    pub(super) fn walk(
        &mut self,
        from: u32,
        fence: Fence,
        budget: &mut Budget<'_>,
        visit: impl FnMut(u32, &Totals) -> bool,
    ) -> Option<u64> {
        self.walk_open(None, from, fence, budget, visit)
    }

    /// Visits every ideal below `from` whose difference to it keeps within `fence`, with the totals of that
    /// difference. Loads above the bound are visited as long as their committed part is within it; nothing below an
    /// ideal for which `visit` is false. An item `taken`, which succeeds all of `from`, is part of every stage.
    ///
    /// Returns the smallest committed load that was cut off, or `None` if the budget ran out.
    pub(super) fn walk_open(
        &mut self,
        taken: Option<u32>,
        from: u32,
        fence: Fence,
        budget: &mut Budget<'_>,
        mut visit: impl FnMut(u32, &Totals) -> bool,
    ) -> Option<u64> {
        let Self {
            lattice,
            stage,
            stamp,
            clock,
            stack,
            borders,
            ..
        } = self;
        stage.turn(fence.kind);
        *clock += 1;
        if *clock == u32::MAX {
            stamp.fill(0);
            *clock = 1;
        }
        let mut cut = u64::MAX;
        let mut totals = Totals::passing(borders[from as usize]);
        stack.push(Frame {
            ideal: from,
            cursor: 0,
            item: taken.unwrap_or(NONE),
            before: totals,
        });
        if let Some(item) = taken {
            stage.add(item, &mut totals);
        }
        while let Some(frame) = stack.last_mut() {
            let Some(&step) = lattice
                .down(frame.ideal as usize)
                .get(frame.cursor as usize)
            else {
                if frame.item != NONE {
                    stage.remove(frame.item);
                    totals = frame.before;
                }
                stack.pop();
                continue;
            };
            frame.cursor += 1;
            if std::mem::replace(&mut stamp[step.ideal as usize], *clock) == *clock {
                continue;
            }
            let least = totals.committed + stage.cycles(step.item);
            if least > fence.bound {
                cut = cut.min(least);
                continue;
            }
            if !budget.spend() {
                stack
                    .iter()
                    .rev()
                    .filter(|f| f.item != NONE)
                    .for_each(|f| stage.remove(f.item));
                stack.clear();
                return None;
            }
            let before = totals;
            stage.add(step.item, &mut totals);
            if totals.committed > fence.bound || totals.memory(fence.copies) > fence.memory {
                if totals.committed > fence.bound {
                    cut = cut.min(totals.committed);
                }
                stage.remove(step.item);
                totals = before;
                continue;
            }
            let border = borders[step.ideal as usize];
            if !visit(step.ideal, &totals.with_border(border)) {
                stage.remove(step.item);
                totals = before;
                continue;
            }
            stack.push(Frame {
                ideal: step.ideal,
                cursor: 0,
                item: step.item,
                before,
            });
        }
        Some(cut)
    }
}
