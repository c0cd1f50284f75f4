//! What a candidate takes at least, known before it is compiled.

use crate::partition::Floor;
use crate::plan::ring_cycles;
use crate::schedule::Rule;
use lxpod_ir::Target;

use super::space::Candidate;

/// What every placement of the graphs of one micro-batch size and one mode of recomputation comes to at least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Of a micro-batch's graph.
    pub(super) floor: Floor,
    /// Cycles of the update, of all tiles together.
    pub(super) update: u64,
    /// Bytes of the sums of gradients.
    pub(super) accumulators: u64,
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
        let sums = self.accumulators / tiles;
        let sums = ring_cycles(target, 2 * sums, found.replicas);
        filled.max(busy) + self.update / tiles + sums
    }

    /// A lower bound of the bytes of the fullest tile: the least room in which what stays and what is kept for the
    /// backward half find a place, even if both could be cut anywhere.
    ///
    /// A tile with b tiles behind it holds c_b micro-batches' worth of what it keeps; so what stays does least harm
    /// where c_b is largest, and the others keep what they have room for over c_b.
    pub(super) fn bytes(&self, target: &Target, found: &Candidate) -> u64 {
        let Floor {
            resident, stash, ..
        } = self.floor;
        let copies = (0..found.stages).rev().map(|behind| copies(found, behind));
        let copies: Vec<u64> = copies.collect();
        let has_place = |room: u64| {
            let (mut resident, mut kept) = (resident, 0);
            for &copies in &copies {
                let stays = resident.min(room);
                resident -= stays;
                kept += (room - stays).div_ceil(copies);
            }
            resident == 0 && kept >= stash
        };
        let (mut low, mut high) = (0, resident + stash * copies[0]);
        while low < high {
            let middle = low + (high - low) / 2;
            if has_place(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low + target.tile.code + target.tile.reserved
    }
}

/// Micro-batches whose values a tile with so many tiles behind it keeps, at least: the closed forms of the rules.
fn copies(found: &Candidate, behind: usize) -> u64 {
    let most = found.accumulation;
    let kept = match found.schedule {
        Rule::GPipe => most,
        Rule::OneFOneB => most.min(behind + 1),
        Rule::PopArt => most.min(2 * behind + 1),
        Rule::Interleaved => 1,
    };
    kept as u64
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
    use crate::schedule::{Phase, Schedule};

    /// A small generator of pseudo-random numbers (Knuth's MMIX).
    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn a_tile_keeps_no_fewer_micro_batches_than_the_bound_reckons_with() {
        for schedule in Rule::ALL {
            let found = Candidate {
                replicas: 1,
                stages: 4,
                chunks: 1,
                micro_batch: 1,
                accumulation: 12,
                recompute: crate::Recompute::None,
                schedule,
            };
            let order = found.order(true);
            for stage in 0..4 {
                let (from, to) = ((stage, Phase::Forward), (stage, Phase::Backward));
                let kept = order.depth(from, to, 12) as u64;
                let bound = copies(&found, 3 - stage);
                assert!(bound <= kept, "{schedule}, {stage}");
                assert!(schedule == Rule::Interleaved || bound == kept);
            }
        }
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
            let found = Candidate {
                replicas: 1,
                stages: tiles,
                chunks: 1,
                micro_batch: 1,
                accumulation: 3,
                recompute: crate::Recompute::None,
                schedule: Rule::OneFOneB,
            };
            let of = |(tile, [stays, kept]): (usize, &[u64; 2])| {
                stays + kept * copies(&found, tiles - 1 - tile)
            };
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
            let bound = needs.bytes(&target, &found);
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
