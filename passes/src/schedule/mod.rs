//! Schedules: which tile works on which micro-batch, in which order.
//!
//! Every rule lets a tile run ahead by some forward programs, then alternate between the two
//! phases, then finish the backward programs. The rules differ in how far a tile runs ahead, which
//! is what it must stash. With p tiles, b stages behind the tile's last one, and v chunks:
//!
//! | rule | forward programs before the first backward one | source |
//! |---|---|---|
//! | `gpipe` | all | Huang et al., GPipe, NeurIPS 2019 |
//! | `1f1b` | b | Narayanan et al., PipeDream, SOSP 2019 |
//! | `interleaved` | 2 b + (v − 1) p | Megatron-LM, `schedules.py` |
//! | `popart` | 2 b | PopART, `willow/src/transforms/pipeline.cpp` |
//!
//! In a chain b is p − 1 − t for tile t. Where stages lie on [`Branches`], it counts those on the longest path only
//! (the idea of GraphPipe, Jeon et al., ASPLOS 2025), and so does what filling the pipeline takes.

mod branches;
mod play;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use branches::Branches;
use branches::Links;
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Which stages exchange values.
    #[serde(default, skip_serializing_if = "Branches::is_chain")]
    pub branches: Branches,
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

impl Links {
    /// The stages that send what a slot reads. Its own stage's forward program comes earlier in the tile's order.
    fn sources(&self, slot: &Slot) -> &[usize] {
        match slot.phase {
            Phase::Forward => &self.before[slot.stage],
            Phase::Backward | Phase::Update => &self.after[slot.stage],
        }
    }

    /// The stages that read what a slot sends.
    fn readers(&self, slot: &Slot) -> &[usize] {
        match slot.phase {
            Phase::Forward => &self.after[slot.stage],
            Phase::Backward | Phase::Update => &self.before[slot.stage],
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
            branches: Branches::chain(),
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

    /// Stages on the longest path: what a micro-batch passes one after the other.
    pub fn longest_path(&self) -> usize {
        self.branches.links(self.stages()).longest_path()
    }

    /// By stage: the stages behind it on the longest path that begins there.
    pub fn behind(&self) -> Vec<usize> {
        self.branches.links(self.stages()).behind
    }

    /// Checks that the rule can order that many micro-batches.
    ///
    /// # Errors
    /// Says what it needs and which flags to change.
    pub fn check(&self, micro_batches: usize) -> Result<(), String> {
        if !self.branches.is_of(self.stages()) {
            return Err("branches that are none of its stages".to_owned());
        }
        let path = self.longest_path();
        let least = 2 * path - 1;
        match self.rule {
            Rule::Interleaved if self.training && !self.branches.is_chain() => {
                Err("interleaved takes no --branches; leave them out, or use 1f1b".to_owned())
            }
            Rule::Interleaved if self.training && !micro_batches.is_multiple_of(self.tiles) => {
                Err(format!(
                    "interleaved needs a multiple of the {} tiles as --gradient-accumulation, not \
                     {micro_batches}; change it, --stages, or --schedule to 1f1b or gpipe",
                    self.tiles
                ))
            }
            Rule::PopArt if self.training && micro_batches < least => Err(format!(
                "popart needs a --gradient-accumulation of at least {least} with {path} stages, not \
                 {micro_batches}; change it, --stages, or --schedule to 1f1b or gpipe",
            )),
            _ => Ok(()),
        }
    }

    /// Every slot of `micro_batches` micro-batches, in an order in which they can be played one by
    /// one: a slot comes after those it reads from, the slots of a tile are in the tile's order, and
    /// the micro-batches of each program ascend. Within a cycle, readers come before the writers of
    /// what they read next, so that values sent to a neighbour take as few places as possible. Where
    /// [`Schedule::check`] refuses the number, tiles may wait for one another, and slots be missing. Without a backward
    /// phase nothing holds back a short branch but that its stages begin no sooner than the longest path needs them.
    pub fn slots(&self, micro_batches: usize) -> Vec<Slot> {
        let links = self.branches.links(self.stages());
        let ahead: Vec<usize> = (0..self.tiles)
            .map(|tile| self.ahead(tile, &links))
            .collect();
        let path = links.longest_path();
        let early = |slot: &Slot, cycle| {
            let begin = path - 1 - links.behind[slot.stage];
            !self.training && self.chunks == 1 && cycle < slot.micro_batch + begin
        };
        let mut slots = Vec::new();
        let mut next = vec![0; self.tiles];
        // Micro-batches that are through, by stage and phase, when the cycle begins.
        let mut done = vec![[0, 0]; self.stages()];
        for cycle in 0.. {
            let begin = slots.len();
            for (tile, next) in next.iter_mut().enumerate() {
                while let Some(slot) = self.nth(tile, *next, ahead[tile], micro_batches)
                    && is_ready(&links, &slot, &done)
                    && !early(&slot, cycle)
                    && self.fits(&slots[begin..], &slot)
                {
                    slots.push(Slot { cycle, ..slot });
                    *next += 1;
                }
            }
            let ended = slots.len() == begin && cycle >= path;
            let cycle = &mut slots[begin..];
            if ended {
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

    /// The n-th slot of a tile that does so many forward programs first; its cycle is not known yet.
    fn nth(&self, tile: usize, n: usize, ahead: usize, micro_batches: usize) -> Option<Slot> {
        let all = micro_batches * self.chunks;
        let ahead = ahead.min(all);
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
            cycle: 0,
            tile,
            stage: chunk * self.tiles + tile,
            phase,
            micro_batch: first + member,
        })
    }

    /// Forward programs of a tile before its first backward one.
    fn ahead(&self, tile: usize, links: &Links) -> usize {
        let behind = links.behind[(self.chunks - 1) * self.tiles + tile];
        match self.rule {
            _ if !self.training => usize::MAX,
            Rule::GPipe => usize::MAX,
            Rule::OneFOneB => behind,
            Rule::Interleaved => 2 * behind + (self.chunks - 1) * self.tiles,
            Rule::PopArt => 2 * behind,
        }
    }

    /// Whether the slot's tile has room for it in a cycle that has these slots.
    fn fits(&self, cycle: &[Slot], slot: &Slot) -> bool {
        match cycle.last().filter(|last| last.tile == slot.tile) {
            None => true,
            Some(last) => self.is_bulk_synchronous() && last.phase < slot.phase,
        }
    }

    /// Places of a value when `slots`, this schedule's, are played: that program `from` writes (on the reader's tile,
    /// if that is another), and that program `to` is the last to read. Micro-batch i uses place i mod that number.
    ///
    /// That is the most micro-batches of the value that are alive at once. Where stages on branches are trained, it is no
    /// less than the earlier of the two stages has micro-batches in flight, more than which are never under way between
    /// the two, so that none waits for a place whatever programs take; and no less than forward programs alone need,
    /// which evaluate.
    pub fn places(&self, slots: &[Slot], from: (usize, Phase), to: (usize, Phase)) -> usize {
        let least = match self.training && !self.branches.is_chain() && from.0 != to.0 {
            true => {
                let earlier = from.0.min(to.0);
                let in_flight = depth(slots, (earlier, Phase::Forward), (earlier, Phase::Backward));
                let forward = Schedule {
                    training: false,
                    ..self.clone()
                };
                // Beyond a full pipeline nothing changes.
                let alone = match from.1.max(to.1) {
                    Phase::Forward => forward.depth(from, to, 2 * self.stages()),
                    Phase::Backward | Phase::Update => 1,
                };
                in_flight.max(alone)
            }
            false => 1,
        };
        depth(slots, from, to).max(least)
    }

    /// [`Schedule::places`] in an order of so many micro-batches.
    pub fn depth(&self, from: (usize, Phase), to: (usize, Phase), micro_batches: usize) -> usize {
        self.places(&self.slots(micro_batches), from, to)
    }
}

/// Whether those that a slot reads from are through with its micro-batch.
fn is_ready(links: &Links, slot: &Slot, done: &[[usize; 2]]) -> bool {
    let through = |&stage: &usize| done[stage][slot.phase as usize] > slot.micro_batch;
    links.sources(slot).iter().all(through)
}

/// The most micro-batches of a value that are alive at once when slots are played in order: from the slot of
/// program `from` to the end of the slot of program `to`. A value read by the update is alive to the end. Places of that
/// number suffice, since programs take micro-batches in ascending order.
fn depth(slots: &[Slot], from: (usize, Phase), to: (usize, Phase)) -> usize {
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
