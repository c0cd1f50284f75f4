//! When the slots of a schedule run, given what each takes.

use rustc_hash::FxHashMap;

use super::{Links, Phase, Schedule, Slot};

/// A slot and when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// What runs.
    pub slot: Slot,
    /// Its first cycle.
    pub start: u64,
    /// One past its last cycle.
    pub end: u64,
}

/// A schedule played from an empty pipeline to an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The slots, in the schedule's order.
    pub slots: Vec<Timed>,
    /// When the last slot ends.
    pub makespan: u64,
    /// By tile: the cycles in which it works.
    pub busy: Vec<u64>,
    /// By stage: the most micro-batches that are forward but not backward at once; 0 where there is
    /// no backward phase.
    pub stash: Vec<usize>,
}

impl Schedule {
    /// Plays `micro_batches` micro-batches through programs that take `cycles(stage, phase)`, what
    /// they send and receive included. A slot starts when its tile is free and what it reads is
    /// there. With popart all slots of a cycle start together, and the cycle lasts as long as its
    /// slowest tile.
    ///
    /// No slot waits for a place to send to. With the places that [`Schedule::places`] counts, senders that hold their
    /// tile until one is free take as long (a test plays both), except that interleaved stages of unequal length may
    /// take longer. In a bulk-synchronous cycle values are sent at its end, when their places are free. Without a
    /// backward phase nothing else keeps a short branch from running ahead: there senders hold their tile.
    pub fn play(&self, micro_batches: usize, cycles: impl Fn(usize, Phase) -> u64) -> Timeline {
        let mut free = vec![0; self.tiles];
        let mut busy = vec![0; self.tiles];
        let mut ends = Ends::new(self.stages(), micro_batches);
        let links = self.branches.links(self.stages());
        let slots = self.slots(micro_batches);
        let waits = !self.branches.is_chain() && !self.training;
        let mut places = waits.then(|| Places::new(self, &slots));
        let mut cycle = 0;
        let run = |slot: Slot| {
            if self.is_bulk_synchronous() && slot.cycle != cycle {
                cycle = slot.cycle;
                let end = free.iter().copied().max().unwrap_or(0);
                free.fill(end);
            }
            let length = cycles(slot.stage, slot.phase);
            let start = ends.arrival(&links, &slot).max(free[slot.tile]);
            let room = places
                .as_mut()
                .map(|places| places.free(&links, &mut ends, &slot));
            let end = (start + length).max(room.unwrap_or(0));
            free[slot.tile] = end;
            busy[slot.tile] += length;
            *ends.at(slot.stage, &slot) = end;
            Timed { slot, start, end }
        };
        let slots: Vec<Timed> = slots.iter().copied().map(run).collect();
        Timeline {
            makespan: free.into_iter().max().unwrap_or(0),
            stash: self.stash(&slots),
            slots,
            busy,
        }
    }

    fn stash(&self, slots: &[Timed]) -> Vec<usize> {
        let mut alive = vec![0; self.stages()];
        let mut most = vec![0; self.stages()];
        for Timed { slot, .. } in slots.iter().filter(|_| self.training) {
            match slot.phase {
                Phase::Forward => alive[slot.stage] += 1,
                Phase::Backward | Phase::Update => alive[slot.stage] -= 1,
            }
            most[slot.stage] = alive[slot.stage].max(most[slot.stage]);
        }
        most
    }
}

/// When programs end, by stage, phase and micro-batch.
struct Ends {
    ends: Vec<u64>,
    micro_batches: usize,
}

impl Ends {
    fn new(stages: usize, micro_batches: usize) -> Self {
        Ends {
            ends: vec![0; 2 * stages * micro_batches],
            micro_batches,
        }
    }

    /// The end of a slot's phase and micro-batch on a stage.
    fn at(&mut self, stage: usize, slot: &Slot) -> &mut u64 {
        let program = 2 * stage + slot.phase as usize;
        &mut self.ends[program * self.micro_batches + slot.micro_batch]
    }

    /// When what a slot reads of other stages is there; what its own tile wrote is, once the tile is free.
    fn arrival(&mut self, links: &Links, slot: &Slot) -> u64 {
        let sources = links.sources(slot).iter();
        let ends = sources.map(|&stage| *self.at(stage, slot));
        ends.max().unwrap_or(0)
    }
}

/// The places that senders write to.
struct Places<'a> {
    schedule: &'a Schedule,
    slots: &'a [Slot],
    /// By stage and phase of the sender, and the stage of the reader.
    depths: FxHashMap<(usize, Phase, usize), usize>,
}

impl<'a> Places<'a> {
    fn new(schedule: &'a Schedule, slots: &'a [Slot]) -> Self {
        Places {
            schedule,
            slots,
            depths: FxHashMap::default(),
        }
    }

    /// When all places that a slot writes to on other tiles are free.
    fn free(&mut self, links: &Links, ends: &mut Ends, slot: &Slot) -> u64 {
        let mut free = 0;
        for &reader in links.readers(slot) {
            let key = (slot.stage, slot.phase, reader);
            let places = *self.depths.entry(key).or_insert_with(|| {
                let ends = [slot.stage, reader].map(|stage| (stage, slot.phase));
                self.schedule.places(self.slots, ends[0], ends[1])
            });
            if let Some(micro_batch) = slot.micro_batch.checked_sub(places) {
                free = free.max(*ends.at(
                    reader,
                    &Slot {
                        micro_batch,
                        ..*slot
                    },
                ));
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Branches, Rule};
    use super::*;

    /// Schedules with micro-batches they take, and cycles of their stages forward and backward.
    fn unequal() -> impl Strategy<Value = (Schedule, usize, Vec<[u64; 2]>)> {
        let shape = (1_usize..12, 1_usize..4, 0_usize..4, 1_usize..24);
        let schedule = shape.prop_map(|(tiles, chunks, rule, micro_batches)| {
            let rule = Rule::ALL[rule];
            let interleaved = rule == Rule::Interleaved;
            let micro_batches = match rule {
                Rule::Interleaved => micro_batches.div_ceil(tiles) * tiles,
                Rule::PopArt => micro_batches + 2 * (tiles - 1),
                Rule::GPipe | Rule::OneFOneB => micro_batches,
            };
            let schedule = Schedule {
                rule,
                tiles,
                chunks: if interleaved { chunks } else { 1 },
                training: true,
                branches: Branches::chain(),
            };
            (schedule, micro_batches)
        });
        schedule.prop_flat_map(|(schedule, micro_batches)| {
            let cycles = prop::collection::vec([0_u64..50, 0_u64..90], schedule.stages());
            (Just(schedule), Just(micro_batches), cycles)
        })
    }

    /// Schedules whose stages lie on branches, as [`unequal`].
    fn branched() -> impl Strategy<Value = (Schedule, usize, Vec<[u64; 2]>)> {
        let shape = (2_usize..9, 0_usize..3, 1_usize..20);
        let edges = prop::collection::vec((0_usize..9, 0_usize..9), 0..14);
        (shape, edges).prop_flat_map(|((tiles, rule, micro_batches), edges)| {
            let rule = [Rule::OneFOneB, Rule::GPipe, Rule::PopArt][rule];
            let edges = edges.into_iter().filter(move |(a, b)| *a.max(b) < tiles);
            let schedule = Schedule {
                rule,
                tiles,
                chunks: 1,
                training: true,
                branches: Branches::of(tiles, edges),
            };
            let micro_batches = match rule {
                Rule::PopArt => micro_batches + 2 * (schedule.longest_path() - 1),
                _ => micro_batches,
            };
            let cycles = prop::collection::vec([0_u64..50, 0_u64..90], tiles);
            (Just(schedule), Just(micro_batches), cycles)
        })
    }

    fn makespan(schedule: &Schedule, micro_batches: usize, cycles: &[[u64; 2]]) -> u64 {
        let cycles = |stage: usize, phase: Phase| cycles[stage][phase as usize];
        schedule.play(micro_batches, cycles).makespan
    }

    fn max(values: impl Iterator<Item = u64>) -> u64 {
        values.max().unwrap_or(0)
    }

    /// The step when a sender holds its tile until the place it sends to is free.
    fn with_back_pressure(schedule: &Schedule, micro_batches: usize, cycles: &[[u64; 2]]) -> u64 {
        let stages = schedule.stages();
        let links = schedule.branches.links(stages);
        let mut places = std::collections::HashMap::new();
        let mut ends = Ends::new(stages, micro_batches);
        let mut free = vec![0; schedule.tiles];
        for slot in schedule.slots(micro_batches) {
            let start = ends.arrival(&links, &slot).max(free[slot.tile]);
            let mut end = start + cycles[slot.stage][slot.phase as usize];
            for &reader in links.readers(&slot) {
                let (from, to) = ((slot.stage, slot.phase), (reader, slot.phase));
                let places = places.entry((from, to));
                let depth = *places.or_insert_with(|| schedule.depth(from, to, micro_batches));
                if let Some(before) = slot.micro_batch.checked_sub(depth) {
                    let micro_batch = before;
                    end = end.max(*ends.at(
                        reader,
                        &Slot {
                            micro_batch,
                            ..slot
                        },
                    ));
                }
            }
            free[slot.tile] = end;
            *ends.at(slot.stage, &slot) = end;
        }
        max(free.into_iter())
    }

    proptest! {
        #[test]
        fn slots_wait_for_their_tile_and_their_inputs((schedule, m, cycles) in prop_oneof![unequal(), branched()]) {
            let links = schedule.branches.links(schedule.stages());
            let played = schedule.play(m, |stage, phase| cycles[stage][phase as usize]);
            let mut free = vec![0; schedule.tiles];
            let mut ends = std::collections::HashMap::new();
            for Timed { slot, start, end } in &played.slots {
                prop_assert_eq!(end - start, cycles[slot.stage][slot.phase as usize]);
                prop_assert!(*start >= free[slot.tile]);
                free[slot.tile] = *end;
                ends.insert((slot.stage, slot.phase, slot.micro_batch), *end);
                let others = links.sources(slot).iter().map(|&stage| (stage, slot.phase));
                let own = (slot.phase == Phase::Backward).then_some((slot.stage, Phase::Forward));
                for (stage, phase) in others.chain(own) {
                    prop_assert!(ends.get(&(stage, phase, slot.micro_batch)) <= Some(start));
                }
            }
            let work = |tile: usize| cycles.iter().skip(tile).step_by(schedule.tiles).flatten().sum::<u64>();
            for tile in 0..schedule.tiles {
                prop_assert_eq!(played.busy[tile], m as u64 * work(tile));
            }
            prop_assert_eq!(played.makespan, max(free.into_iter()));
            for stage in 0..schedule.stages() {
                let depth = schedule.depth((stage, Phase::Forward), (stage, Phase::Backward), m);
                prop_assert_eq!(played.stash[stage], depth);
            }
        }

        #[test]
        fn gpipe_takes_its_closed_form((schedule, m, cycles) in unequal()) {
            let schedule = Schedule { rule: Rule::GPipe, tiles: schedule.stages(), chunks: 1, ..schedule };
            let passes: u64 = cycles.iter().flatten().sum();
            let slowest = [0, 1].map(|phase| max(cycles.iter().map(|cycles| cycles[phase])));
            let expected = passes + (m as u64 - 1) * (slowest[0] + slowest[1]);
            prop_assert_eq!(makespan(&schedule, m, &cycles), expected);
        }

        #[test]
        fn inference_takes_its_closed_form_under_every_rule((schedule, m, cycles) in unequal()) {
            let schedule = Schedule { tiles: schedule.stages(), chunks: 1, training: false, ..schedule };
            let forward = || cycles.iter().map(|cycles| cycles[0]);
            let expected = forward().sum::<u64>() + (m as u64 - 1) * max(forward());
            let played = schedule.play(m, |stage, _| cycles[stage][0]);
            prop_assert_eq!(played.makespan, expected);
            prop_assert_eq!(played.stash, vec![0; schedule.stages()]);
        }

        #[test]
        fn one_f_one_b_takes_no_less_than_its_bound((schedule, m, cycles) in unequal()) {
            let schedule = Schedule { rule: Rule::OneFOneB, tiles: schedule.stages(), chunks: 1, ..schedule };
            let both = |stage: usize| cycles[stage].iter().sum::<u64>();
            let bound = |stage| (0..stage).map(both).sum::<u64>() + m as u64 * both(stage);
            prop_assert!(makespan(&schedule, m, &cycles) >= max((0..cycles.len()).map(bound)));
        }

        #[test]
        fn popart_takes_the_slowest_tile_of_each_cycle((schedule, m, cycles) in unequal()) {
            let p = schedule.stages();
            let schedule = Schedule { rule: Rule::PopArt, tiles: p, chunks: 1, ..schedule };
            let m = m + 2 * (p - 1);
            let tile = |cycle: usize, tile: usize| {
                let runs = |delay: usize| (delay..delay + m).contains(&cycle);
                let forward = u64::from(runs(tile)) * cycles[tile][0];
                forward + u64::from(runs(2 * (p - 1) - tile)) * cycles[tile][1]
            };
            let cycle = |cycle| max((0..p).map(|stage| tile(cycle, stage)));
            prop_assert_eq!(makespan(&schedule, m, &cycles), (0..m + 2 * p - 2).map(cycle).sum::<u64>());
            let slots = schedule.slots(m);
            prop_assert_eq!(slots.last().map(|slot| slot.cycle + 1), Some(m + 2 * p - 2));
        }

        #[test]
        fn equal_stages_take_p_minus_1_rounds_more_than_their_work((schedule, m, cycles) in unequal()) {
            let round = cycles[0][0] + cycles[0][1];
            let rounds = (m * schedule.chunks + schedule.tiles - 1) as u64;
            let cycles = vec![cycles[0]; schedule.stages()];
            prop_assert_eq!(makespan(&schedule, m, &cycles), rounds * round);
        }

        #[test]
        fn equal_stages_on_branches_take_as_long_as_their_longest_path((schedule, m, cycles) in branched()) {
            let (path, behind) = (schedule.longest_path(), schedule.behind());
            let round = cycles[0][0] + cycles[0][1];
            let rounds = match schedule.rule {
                Rule::PopArt => m + 2 * path - 2,
                _ => m + path - 1,
            };
            let equal = vec![cycles[0]; schedule.stages()];
            let forward = Schedule { training: false, ..schedule.clone() };
            prop_assert_eq!(makespan(&forward, m, &equal), (m + path - 1) as u64 * cycles[0][0]);
            let most = rounds as u64 * round;
            let taken = makespan(&schedule, m, &equal);
            match schedule.rule {
                Rule::PopArt => prop_assert!(taken <= most),
                _ => prop_assert_eq!(taken, most),
            }
            for (stage, behind) in behind.into_iter().enumerate() {
                let kept = schedule.depth((stage, Phase::Forward), (stage, Phase::Backward), m);
                let expected = match schedule.rule {
                    Rule::GPipe => m,
                    Rule::OneFOneB => m.min(behind + 1),
                    Rule::Interleaved | Rule::PopArt => m.min(2 * behind + 1),
                };
                prop_assert_eq!(kept, expected, "stage {}", stage);
            }
        }

        #[test]
        fn forward_programs_alone_have_the_places_they_need((schedule, m, _) in branched(), more in 1_usize..40) {
            let forward = Schedule { training: false, ..schedule.clone() };
            let links = schedule.branches.links(schedule.stages());
            for (stage, readers) in links.after.iter().enumerate() {
                for &reader in readers {
                    let ends = [stage, reader].map(|stage| (stage, Phase::Forward));
                    let needed = forward.depth(ends[0], ends[1], more);
                    prop_assert!(needed <= schedule.depth(ends[0], ends[1], m));
                    prop_assert!(needed <= (links.behind[stage] - links.behind[reader]).max(1));
                }
            }
        }

        #[test]
        fn a_chain_of_branches_is_the_chain((schedule, m, cycles) in unequal()) {
            let stages = schedule.stages();
            let edges = (1..stages).map(|stage| (stage - 1, stage));
            let branches = Branches::of(stages, edges);
            prop_assert!((0..stages).all(|a| (0..stages).all(|b| branches.has(a, b) == Branches::chain().has(a, b))));
            let linked = Schedule { branches, ..schedule };
            prop_assert_eq!(linked.slots(m), schedule.slots(m));
            prop_assert_eq!(makespan(&linked, m, &cycles), makespan(&schedule, m, &cycles));
        }

        #[test]
        fn nobody_waits_for_a_place_to_send_to((schedule, m, mut cycles) in prop_oneof![unequal(), branched()]) {
            if schedule.rule == Rule::Interleaved {
                cycles = vec![cycles[0]; schedule.stages()];
            }
            for training in [false, true] {
                let schedule = Schedule { training, ..schedule.clone() };
                if !schedule.is_bulk_synchronous() {
                    let waiting = with_back_pressure(&schedule, m, &cycles);
                    prop_assert_eq!(waiting, makespan(&schedule, m, &cycles));
                }
            }
        }
    }

    #[test]
    fn interleaving_keeps_as_many_chunks_in_flight_as_megatron() {
        for (tiles, chunks) in [(2, 2), (4, 2), (4, 3), (8, 4), (16, 2)] {
            let schedule = Schedule {
                rule: Rule::Interleaved,
                tiles,
                chunks,
                training: true,
                branches: Branches::chain(),
            };
            let slots = schedule.slots(3 * tiles);
            for tile in 0..tiles {
                let (mut alive, mut most) = (0, 0);
                for slot in slots.iter().filter(|slot| slot.tile == tile) {
                    match slot.phase {
                        Phase::Forward => alive += 1,
                        Phase::Backward | Phase::Update => alive -= 1,
                    }
                    most = alive.max(most);
                }
                assert_eq!(most, 2 * (tiles - 1 - tile) + (chunks - 1) * tiles + 1);
            }
        }
    }
}
