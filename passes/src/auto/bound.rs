//! What a candidate takes at least, known before it is compiled.

use crate::partition::Floor;
use crate::plan::ring_cycles;
use crate::schedule::Rule;
use lxpod_ir::Target;

use super::space::Candidate;

/// What every placement of a micro-batch's graph and of an update comes to at least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Of a micro-batch's graph, without what the update keeps.
    pub(super) floor: Floor,
    /// Of the update.
    pub(super) update: UpdateNeeds,
}

/// What an update comes to on all tiles of a replica together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UpdateNeeds {
    /// Cycles of its operators.
    pub(super) cycles: u64,
    /// Bytes that go around the ring of replicas.
    pub(super) ring: u64,
    /// Bytes that stay: states of the optimiser, sums of gradients.
    pub(super) resident: u64,
}

impl Needs {
    /// A lower bound of the cycles of a step. `slowest` is a lower bound of the slowest stage's cycles for one
    /// micro-batch, if one is known.
    ///
    /// Let T be the makespan, t_i the cycles of tile i for one micro-batch, m the micro-batches. Tile i works m t_i
    /// cycles; with one stage on each tile it begins once the first micro-batch went through the tiles before it, and
    /// the last one goes back through them afterwards, so T >= t_0 + … + t_(i-1) + m t_i. Of all t with that sum W,
    /// the one that takes equality everywhere has the least T: W / (1 - (1 - 1/m)^p). Under gpipe T is exactly
    /// W + (m - 1) times the slowest forward and the slowest backward program.
    pub(super) fn cycles(&self, target: &Target, found: &Candidate, slowest: u64) -> u64 {
        let Floor {
            cycles, largest, ..
        } = self.floor;
        let (tiles, micro_batches) = (found.stages as u64, found.accumulation as u64);
        let even = cycles.div_ceil(tiles);
        let slowest = even.max(largest).max(slowest);
        let filled = match found.chunks {
            1 => filled(cycles, tiles, micro_batches),
            _ => cycles,
        };
        let busy = match found.schedule {
            Rule::GPipe => cycles + (micro_batches - 1) * slowest,
            _ => micro_batches * slowest,
        };
        // A message of all tiles' bytes takes no longer than one of each; their shares of a byte are rounded down.
        let ring = self.update.ring.saturating_sub(tiles);
        let sums = ring_cycles(target, ring, found.replicas);
        filled.max(busy) + (self.update.cycles + sums) / tiles
    }

    /// The least memory that tiles must have for a split: that in which what stays and what is kept for the backward
    /// half find a place, even if both could be cut anywhere. `kept` are the micro-batches that a stage keeps values
    /// of, by the number of stages behind it; each of a tile's `chunks` stages has an equal share of its memory.
    ///
    /// What stays does least harm where most is kept; so the others keep what they have room for.
    pub(super) fn bytes(&self, target: &Target, kept: &[u64], chunks: usize) -> u64 {
        let stash = self.floor.stash;
        let resident = self.floor.resident + self.update.resident;
        let has_place = |room: u64| {
            let (mut resident, mut held) = (resident, 0);
            for &copies in kept.iter().rev() {
                let stays = resident.min(room);
                resident -= stays;
                held += (room - stays).div_ceil(copies);
            }
            resident == 0 && held >= stash
        };
        let most = kept.last().copied().unwrap_or(1);
        let (mut low, mut high) = (0, resident + stash * most);
        while low < high {
            let middle = low + (high - low) / 2;
            if has_place(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low * chunks as u64 + target.tile.code + target.tile.reserved
    }
}

/// W / (1 - (1 - 1/m)^p), rounded down.
fn filled(cycles: u64, tiles: u64, micro_batches: u64) -> u64 {
    let left = 1.0 - 1.0 / micro_batches as f64;
    let empty = (0..tiles).fold(1.0, |product, _| product * left);
    // A part in 10^12 is more than the rounding of so few operations.
    (cycles as f64 / (1.0 - empty) * (1.0 - 1e-12)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Branches, Phase, Schedule};

    /// A small generator of pseudo-random numbers (Knuth's MMIX).
    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn no_cut_of_what_stays_and_is_kept_needs_less_room_than_the_bound() {
        let mut target = Target::named("pod16").unwrap();
        (target.tile.code, target.tile.reserved) = (0, 0);
        let mut state = 3;
        for _ in 0..200 {
            let tiles = 1 + next(&mut state) as usize % 4;
            let parts: Vec<[u64; 2]> = (0..tiles)
                .map(|_| [0, 1].map(|_| next(&mut state) % 50))
                .collect();
            let kept: Vec<u64> = (1..=tiles as u64).map(|behind| behind.min(3)).collect();
            let of =
                |(tile, [stays, stash]): (usize, &[u64; 2])| stays + stash * kept[tiles - 1 - tile];
            let fullest = parts.iter().enumerate().map(of).max().unwrap();
            let floor = Floor {
                resident: parts.iter().map(|[stays, _]| stays).sum(),
                stash: parts.iter().map(|[_, kept]| kept).sum(),
                ..Floor::default()
            };
            let needs = Needs {
                floor,
                ..Needs::default()
            };
            let bound = needs.bytes(&target, &kept, 1);
            assert!(bound <= fullest, "{parts:?}: {bound} > {fullest}");
            assert!(tiles > 1 || bound == fullest);
        }
    }

    #[test]
    fn no_schedule_of_random_stages_beats_the_bound() {
        let target = Target::named("pod16").unwrap();
        let mut state = 7;
        let mut tight = 0;
        for round in 0..400 {
            let rule = Rule::ALL[round % 4];
            let chunks = if rule == Rule::Interleaved { 2 } else { 1 };
            let tiles = 1 + next(&mut state) as usize % 6;
            let accumulation = tiles * (2 + next(&mut state) as usize % 5);
            let schedule = Schedule {
                rule,
                tiles,
                chunks,
                training: true,
                branches: Branches::chain(),
            };
            let stages: Vec<[u64; 2]> = (0..schedule.stages())
                .map(|_| [0, 1].map(|_| 1 + next(&mut state) % 90))
                .collect();
            let both = || stages.iter().map(|[forward, backward]| forward + backward);
            let needs = Needs {
                floor: Floor {
                    cycles: both().sum(),
                    ..Floor::default()
                },
                ..Needs::default()
            };
            let found = Candidate {
                replicas: 1,
                stages: tiles,
                chunks,
                micro_batch: 1,
                accumulation,
                recompute: crate::Recompute::None,
                schedule: rule,
                replicated_tensor_sharding: false,
            };
            let cycles = |stage: usize, phase: Phase| stages[stage][phase as usize];
            let played = schedule.play(accumulation, cycles).makespan;
            let slowest = both().max().unwrap();
            for slowest in [0, slowest] {
                let bound = needs.cycles(&target, &found, slowest);
                assert!(bound <= played, "{found:?}: {bound} > {played}");
                tight += u64::from(10 * bound > 9 * played);
            }
        }
        assert!(tight > 100, "the bound says something: {tight}");
    }
}
