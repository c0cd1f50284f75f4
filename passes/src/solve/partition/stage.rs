//! A stage whose cost is kept incrementally.

use super::model::{Flow, Kind, Model, Touch};

/// Scalar state of a [`Stage`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// Cycles with communication.
    pub(super) load: u64,
    /// The part of `load` that no further item can take away.
    pub(super) committed: u64,
    resident: u64,
    stash: u64,
    workspace: u64,
}

impl Totals {
    /// An empty stage whose upper border relayed values of that cost cross.
    pub(super) fn passing(border: u64) -> Self {
        Totals {
            load: border,
            committed: border,
            ..Totals::default()
        }
    }

    /// The totals once the stage ends at a lower border of that cost.
    pub(super) fn with_border(self, border: u64) -> Self {
        Totals {
            load: self.load + border,
            ..self
        }
    }

    /// Bytes with `copies` of the stash; never falls as a stage grows.
    pub(super) fn memory(&self, copies: u64) -> u64 {
        self.resident + self.workspace + self.stash * copies
    }
}

/// A stage that grows from a fixed upper ideal towards the sources, one maximal item at a time.
///
/// [`add`](Stage::add) and [`remove`](Stage::remove) cost O(references of the item) and nest like brackets.
#[derive(Debug)]
pub(super) struct Stage<'m> {
    model: &'m Model,
    kind: Kind,
    produced: Vec<bool>,
    users: Vec<u32>,
    holders: Vec<u32>,
    works: Vec<bool>,
    asks: Vec<u32>,
}

impl<'m> Stage<'m> {
    /// The empty stage.
    pub(super) fn new(model: &'m Model) -> Self {
        let links = model.links.len();
        Self {
            model,
            kind: Kind::Device,
            produced: vec![false; links],
            users: vec![0; links],
            holders: vec![0; model.shared.len()],
            works: vec![false; model.joint.len()],
            asks: vec![0; model.joint.len()],
        }
    }

    /// Makes the empty stage one for another kind of device.
    pub(super) fn turn(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Cycles of `item` alone.
    pub(super) fn cycles(&self, item: u32) -> u64 {
        self.model.cycles(self.kind, item)
    }

    /// Adds `item`, whose successors must all be in the stage or beyond it, and updates `totals`.
    pub(super) fn add(&mut self, item: u32, totals: &mut Totals) {
        let (node, cycles) = (&self.model.nodes[item as usize], self.cycles(item));
        totals.load += cycles;
        totals.committed += cycles;
        if self.kind == Kind::Host {
            return;
        }
        totals.resident += node.resident;
        totals.workspace = totals.workspace.max(node.workspace);
        for &touch in &node.touches {
            self.attach(touch, totals);
        }
        for &block in &node.shared {
            let holders = &mut self.holders[block as usize];
            totals.resident += if *holders == 0 {
                self.model.shared[block as usize]
            } else {
                0
            };
            *holders += 1;
        }
        let mut joint = 0;
        for &work in &node.asks {
            let work = work as usize;
            self.asks[work] += 1;
            let first = self.asks[work] == 1 && self.works[work];
            joint += if first { self.model.joint[work] } else { 0 };
        }
        for &work in &node.works {
            let work = work as usize;
            self.works[work] = true;
            joint += if self.asks[work] > 0 {
                self.model.joint[work]
            } else {
                0
            };
        }
        totals.load += joint;
        totals.committed += joint;
    }

    fn attach(&mut self, touch: Touch, totals: &mut Totals) {
        let index = touch.value as usize;
        let link = &self.model.links[index];
        let (inside, all) = (self.users[index], link.users.len() as u32);
        if inside == 0 && !self.produced[index] {
            totals.stash += link.stash;
        }
        if touch.produces {
            totals.load -= if inside > 0 { link.cost } else { 0 };
            if inside < all {
                totals.load += link.cost;
                totals.committed += if link.flow == Flow::Forward {
                    link.cost
                } else {
                    0
                };
            }
            self.produced[index] = true;
            return;
        }
        self.users[index] += 1;
        if self.produced[index] {
            totals.load -= if inside + 1 == all { link.cost } else { 0 };
        } else if inside == 0 {
            totals.load += link.cost;
            totals.committed += if link.flow == Flow::Backward {
                link.cost
            } else {
                0
            };
        }
    }

    /// Takes back the latest [`add`](Stage::add); the caller restores its totals.
    pub(super) fn remove(&mut self, item: u32) {
        if self.kind == Kind::Host {
            return;
        }
        let node = &self.model.nodes[item as usize];
        for touch in &node.touches {
            if touch.produces {
                self.produced[touch.value as usize] = false;
            } else {
                self.users[touch.value as usize] -= 1;
            }
        }
        for &block in &node.shared {
            self.holders[block as usize] -= 1;
        }
        for &work in &node.asks {
            self.asks[work as usize] -= 1;
        }
        for &work in &node.works {
            self.works[work as usize] = false;
        }
    }
}
