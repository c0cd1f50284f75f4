//! Schedules: which tile works on which micro-batch, in which order.
//!
//! Every rule lets a tile run ahead by some forward programs, then alternate between the two
//! phases, then finish the backward programs. The rules differ in how far a tile runs ahead, which
//! is what it must stash. With p tiles, tile t and v chunks:
//!
//! | rule | forward programs before the first backward one | source |
//! |---|---|---|
//! | `gpipe` | all | Huang et al., GPipe, NeurIPS 2019 |
//! | `1f1b` | p − 1 − t | Narayanan et al., PipeDream, SOSP 2019 |
//! | `interleaved` | 2 (p − 1 − t) + (v − 1) p | Megatron-LM, `schedules.py` |
//! | `popart` | 2 (p − 1 − t) | PopART, `willow/src/transforms/pipeline.cpp` |

mod play;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use play::{Timed, Timeline};

/// What a program does with its stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Computes values from values of the stages before.
    Forward,
    /// Computes cotangents from those of the stages behind, and accumulates gradients.
    Backward,
    /// Applies the accumulated gradients, once, when all micro-batches are through.
    Update,
}

impl Phase {
    /// The name in reports and traces.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }
}

/// The rule that orders programs. Without a backward phase all of them give `gpipe`'s order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Everything forward, then everything backward.
    #[default]
    GPipe,
    /// A backward program as early as there is one.
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// As 1f1b, with several stages (*chunks*) on each tile, which fills the pipeline faster.
    Interleaved,
    /// Bulk-synchronous cycles in which every tile does a forward and a backward program.
    PopArt,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 4] = [Rule::OneFOneB, Rule::GPipe, Rule::Interleaved, Rule::PopArt];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::GPipe => "gpipe",
            Rule::OneFOneB => "1f1b",
            Rule::Interleaved => "interleaved",
            Rule::PopArt => "popart",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rules = Rule::ALL.into_iter();
        rules.find(|rule| rule.name() == text).ok_or_else(|| {
            let names = Rule::ALL.map(Rule::name).join(", ");
            format!("unknown schedule `{text}`; expected one of {names}")
        })
    }
}

/// The order of programs on the tiles of one replica. Stage s lies on tile s mod `tiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The rule.
    pub rule: Rule,
    /// Tiles of a replica.
    pub tiles: usize,
    /// Stages of a tile: 1, unless the rule interleaves.
    pub chunks: usize,
    /// Whether there is a backward phase.
    pub training: bool,
}

/// One program on one tile for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The cycle, if all programs took one. A tile does one program in a cycle, with popart one
    /// forward and one backward.
    pub cycle: usize,
    /// The tile within the replica.
    pub tile: usize,
    /// The stage.
    pub stage: usize,
    /// Forward or backward.
    pub phase: Phase,
    /// The micro-batch.
    pub micro_batch: usize,
}

impl Slot {
    /// The neighbour that sends what the slot reads; the last stage's backward program names one
    /// that is not there.
    fn source(&self) -> Option<usize> {
        match self.phase {
            Phase::Forward => self.stage.checked_sub(1),
            Phase::Backward | Phase::Update => Some(self.stage + 1),
        }
    }
}

impl Schedule {
    /// One stage on each tile and no backward phase.
    pub fn inference(tiles: usize) -> Self {
        Schedule {
            rule: Rule::GPipe,
            tiles,
            chunks: 1,
            training: false,
        }
    }

    /// Stages of the pipeline.
    pub fn stages(&self) -> usize {
        self.tiles.saturating_mul(self.chunks)
    }

    /// Whether tiles begin each cycle together and do a program of each phase in it.
    pub fn is_bulk_synchronous(&self) -> bool {
        self.training && self.rule == Rule::PopArt
    }

    /// The tile that a stage lies on.
    pub fn tile_of(&self, stage: usize) -> usize {
        stage % self.tiles
    }

    /// Checks that the rule can order that many micro-batches.
    ///
    /// # Errors
    /// Says what it needs and which flags to change.
    pub fn check(&self, micro_batches: usize) -> Result<(), String> {
        let least = 2 * self.stages() - 1;
        match self.rule {
            Rule::Interleaved if self.training && !micro_batches.is_multiple_of(self.tiles) => {
                Err(format!(
                    "--schedule interleaved needs a multiple of the {} tiles as --gradient-accumulation, not \
                     {micro_batches}; change it, --stages, or --schedule to 1f1b or gpipe",
                    self.tiles
                ))
            }
            Rule::PopArt if self.training && micro_batches < least => Err(format!(
                "--schedule popart needs a --gradient-accumulation of at least {least} with {} stages, not \
                 {micro_batches}; change it, --stages, or --schedule to 1f1b or gpipe",
                self.stages()
            )),
            _ => Ok(()),
        }
    }

    /// Every slot of `micro_batches` micro-batches, in an order in which they can be played one by
    /// one: a slot comes after those it reads from, the slots of a tile are in the tile's order, and
    /// the micro-batches of each program ascend. Within a cycle, readers come before the writers of
    /// what they read next, so that values sent to a neighbour take as few places as possible. Where
    /// [`Schedule::check`] refuses the number, tiles may wait for one another, and slots be missing.
    pub fn slots(&self, micro_batches: usize) -> Vec<Slot> {
        let mut slots = Vec::new();
        let mut next = vec![0; self.tiles];
        // Micro-batches that are through, by stage and phase, when the cycle begins.
        let mut done = vec![[0, 0]; self.stages()];
        for cycle in 0.. {
            let begin = slots.len();
            for (tile, next) in next.iter_mut().enumerate() {
                while let Some(slot) = self.nth(tile, *next, micro_batches, cycle)
                    && self.is_ready(&slot, &done)
                    && self.fits(&slots[begin..], &slot)
                {
                    slots.push(slot);
                    *next += 1;
                }
            }
            let cycle = &mut slots[begin..];
            if cycle.is_empty() {
                break;
            }
            cycle.sort_by_key(|slot| match slot.phase {
                Phase::Forward => (slot.phase, self.stages() - slot.stage),
                Phase::Backward | Phase::Update => (slot.phase, slot.stage),
            });
            for slot in cycle {
                done[slot.stage][slot.phase as usize] += 1;
            }
        }
        slots
    }

    /// The n-th slot of a tile.
    fn nth(&self, tile: usize, n: usize, micro_batches: usize, cycle: usize) -> Option<Slot> {
        let all = micro_batches * self.chunks;
        let ahead = self.ahead(tile).min(all);
        let (phase, unit) = match n {
            _ if n < ahead => (Phase::Forward, n),
            _ if !self.training => return None,
            _ if n >= 2 * all => return None,
            _ if n >= 2 * all - ahead => (Phase::Backward, n - all),
            _ if (n - ahead).is_multiple_of(2) => (Phase::Forward, (n + ahead) / 2),
            _ => (Phase::Backward, (n - ahead) / 2),
        };
        // The chunks of a tile take turns, each with as many micro-batches as there are tiles.
        let (group, within) = (unit / self.stages(), unit % self.stages());
        let first = group * self.tiles;
        let members = self.tiles.min(micro_batches - first);
        let (turn, member) = (within / members, within % members);
        let chunk = match phase {
            Phase::Backward => self.chunks - 1 - turn,
            Phase::Forward | Phase::Update => turn,
        };
        Some(Slot {
            cycle,
            tile,
            stage: chunk * self.tiles + tile,
            phase,
            micro_batch: first + member,
        })
    }

    /// Forward programs of a tile before its first backward one.
    fn ahead(&self, tile: usize) -> usize {
        let behind = self.tiles - 1 - tile;
        match self.rule {
            _ if !self.training => usize::MAX,
            Rule::GPipe => usize::MAX,
            Rule::OneFOneB => behind,
            Rule::Interleaved => 2 * behind + (self.chunks - 1) * self.tiles,
            Rule::PopArt => 2 * behind,
        }
    }

    /// Whether the neighbour a slot reads from is through with its micro-batch. Its own stage's
    /// forward program is: it comes earlier in the tile's order.
    fn is_ready(&self, slot: &Slot, done: &[[usize; 2]]) -> bool {
        let source = slot.source().and_then(|stage| done.get(stage));
        source.is_none_or(|done| done[slot.phase as usize] > slot.micro_batch)
    }

    /// Whether the slot's tile has room for it in a cycle that has these slots.
    fn fits(&self, cycle: &[Slot], slot: &Slot) -> bool {
        match cycle.last().filter(|last| last.tile == slot.tile) {
            None => true,
            Some(last) => self.is_bulk_synchronous() && last.phase < slot.phase,
        }
    }

    /// [`depth`] in this schedule's order of so many micro-batches.
    pub fn depth(&self, from: (usize, Phase), to: (usize, Phase), micro_batches: usize) -> usize {
        depth(&self.slots(micro_batches), from, to)
    }
}

/// The most micro-batches of a value that are alive at once when slots are played in order: from the slot of
/// program `from`, which writes it (on the reader's tile, if that is another), to the end of the slot of program
/// `to`, the last that reads it. A value read by the update is alive to the end. Places of that number suffice:
/// micro-batch i uses place i mod depth, since programs take micro-batches in ascending order.
pub fn depth(slots: &[Slot], from: (usize, Phase), to: (usize, Phase)) -> usize {
    let (mut alive, mut most) = (0, 1);
    for slot in slots {
        let program = (slot.stage, slot.phase);
        if program == from {
            alive += 1;
            most = alive.max(most);
        }
        if program == to {
            alive -= 1;
        }
    }
    most
}

#[cfg(test)]
mod tests;
