//! Separators: items at which a stage falls into two halves.
//!
//! A *separator* is an item that precedes or follows every other, such that no value joins items before it with items
//! after it. A stage that contains one is the union of its upper half (the separator and what follows) and its lower
//! half, and its load and memory are sums over the halves. So a walk stops where it has taken a separator, and a
//! single walk from there goes on for all stages that got so far: the number of stages looked at falls from those
//! between any two ideals to those between ideals of one segment. Networks that are a chain of blocks have many
//! separators.

use super::model::{Kind, Model};
use crate::solve::lattice::Lattice;

/// One separator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Separator {
    /// The item.
    pub(super) item: u32,
    /// What a device pays for the values between it and what follows, if it runs none of that.
    pub(super) above: u64,
    /// What a device pays for the values between it and what precedes, if it runs none of that.
    pub(super) below: u64,
}

/// A stage that has taken a separator and may go on below it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// The ideal at which it begins, from above.
    pub(super) start: u32,
    /// Devices used above it.
    pub(super) used: u32,
    /// Hosts used above it.
    pub(super) hosts: u32,
    /// Load of its upper half, without values between the separator and what precedes.
    pub(super) load: u64,
    /// Bytes of its upper half.
    pub(super) memory: u64,
}

impl Open {
    fn dominates(&self, other: &Self) -> bool {
        self.used <= other.used
            && self.hosts <= other.hosts
            && self.load <= other.load
            && self.memory <= other.memory
    }

    /// Adds `self` to stages of one kind unless one of them is as good in all respects; drops those it is as good as.
    pub(super) fn join(self, stages: &mut Vec<Open>) {
        if !stages.iter().any(|other| other.dominates(&self)) {
            stages.retain(|other| !self.dominates(other));
            stages.push(self);
        }
    }
}

/// Separators by the ideal of what precedes them.
pub(super) fn separators(model: &Model, lattice: &Lattice) -> Vec<Option<Separator>> {
    let mut found = vec![None; lattice.len()];
    if !model.is_additive() {
        return found;
    }
    for (low, found) in found.iter_mut().enumerate() {
        if let [up] = lattice.up(low)
            && lattice.down(up.ideal as usize).len() == 1
        {
            let sides = model.sides(lattice, up.item, low, up.ideal as usize);
            *found = sides.map(|(above, below)| Separator {
                item: up.item,
                above,
                below,
            });
        }
    }
    found
}

impl Separator {
    /// What the two halves of a stage both count if each is taken for a stage: the item, and the values on the other
    /// side.
    pub(super) fn counted_twice(&self, model: &Model, kind: Kind) -> (u64, u64) {
        match kind {
            Kind::Host => (model.cycles(kind, self.item), 0),
            Kind::Device => (
                model.cycles(kind, self.item) + self.above,
                model.resident(self.item),
            ),
        }
    }
}
