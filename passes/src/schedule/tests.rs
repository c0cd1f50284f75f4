//! The order of slots.

use std::collections::HashMap;

use super::*;

const PHASES: [Phase; 2] = [Phase::Forward, Phase::Backward];

fn training(rule: Rule, tiles: usize, chunks: usize) -> Schedule {
    Schedule {
        rule,
        tiles,
        chunks,
        training: true,
        branches: Branches::chain(),
    }
}

/// Schedules of every rule and numbers of micro-batches they take.
fn cases() -> Vec<(Schedule, usize)> {
    let mut cases = Vec::new();
    for tiles in [1, 2, 3, 4, 7, 16] {
        for micro_batches in [0, 1, 2, 3, 5, 8, 12, 16, 31, 48] {
            for rule in Rule::ALL {
                for chunks in 1..=if rule == Rule::Interleaved { 4 } else { 1 } {
                    let schedule = training(rule, tiles, chunks);
                    let inference = Schedule {
                        training: false,
                        ..schedule.clone()
                    };
                    cases.push((schedule, micro_batches));
                    cases.push((inference, micro_batches));
                }
            }
        }
    }
    cases.retain(|(schedule, micro_batches)| schedule.check(*micro_batches).is_ok());
    cases
}

#[test]
fn every_slot_comes_once_and_after_what_it_reads() {
    for (schedule, micro_batches) in cases() {
        let slots = schedule.slots(micro_batches);
        let mut through = HashMap::new();
        for slot in &slots {
            let (stage, phase, i) = (slot.stage, slot.phase, slot.micro_batch);
            assert_eq!(slot.tile, stage % schedule.tiles);
            let needs = match phase {
                Phase::Forward => vec![stage.checked_sub(1).map(|before| (before, phase))],
                Phase::Backward => vec![
                    Some((stage, Phase::Forward)),
                    (stage + 1 < schedule.stages()).then_some((stage + 1, phase)),
                ],
                Phase::Update => panic!("{slot:?}"),
            };
            for program in needs.into_iter().flatten() {
                let done = through.get(&program);
                assert!(
                    done > Some(&i),
                    "{schedule:?} {micro_batches}: {slot:?} before {program:?}"
                );
            }
            let done = through.entry((stage, phase)).or_insert(0);
            assert_eq!(*done, i, "{schedule:?} {micro_batches}: {slot:?}");
            *done += 1;
        }
        let phases = if schedule.training { 2 } else { 1 };
        let number = phases * schedule.stages() * micro_batches;
        assert_eq!(slots.len(), number, "{schedule:?} {micro_batches}");
    }
}

#[test]
fn a_tile_does_one_program_in_a_cycle_and_popart_one_of_each_phase() {
    for (schedule, micro_batches) in cases() {
        let slots = schedule.slots(micro_batches);
        assert!(slots.is_sorted_by_key(|slot| slot.cycle));
        let mut busy = HashMap::new();
        for slot in &slots {
            let popart = schedule.rule == Rule::PopArt && schedule.training;
            let phase = popart.then_some(slot.phase);
            let taken = busy.insert((slot.cycle, slot.tile, phase), slot.stage);
            assert_eq!(taken, None, "{schedule:?} {micro_batches}: {slot:?}");
        }
    }
}

#[test]
fn popart_takes_the_cycles_of_its_source() {
    for tiles in 1..8 {
        let schedule = training(Rule::PopArt, tiles, 1);
        for micro_batches in [2 * tiles - 1, 2 * tiles, 5 * tiles] {
            for slot in schedule.slots(micro_batches) {
                let cycle = match slot.phase {
                    Phase::Forward => slot.micro_batch + slot.stage,
                    _ => slot.micro_batch + 2 * (tiles - 1) - slot.stage,
                };
                assert_eq!(slot.cycle, cycle, "{slot:?}");
            }
        }
    }
}

#[test]
fn a_stash_has_as_many_places_as_the_rule_says() {
    for (schedule, m) in cases()
        .into_iter()
        .filter(|(schedule, _)| schedule.training)
    {
        let p = schedule.tiles;
        for stage in (0..schedule.stages()).filter(|_| m > 0 && schedule.chunks == 1) {
            let found = schedule.depth((stage, Phase::Forward), (stage, Phase::Backward), m);
            let expected = match schedule.rule {
                Rule::GPipe => m,
                Rule::OneFOneB => m.min(p - stage),
                Rule::Interleaved | Rule::PopArt => m.min(2 * (p - 1 - stage) + 1),
            };
            assert_eq!(found, expected, "{schedule:?} {m} stage {stage}");
        }
    }
}

#[test]
fn places_of_a_value_are_free_when_they_are_written_again() {
    let reads = |schedule: &Schedule| {
        let stages = schedule.stages();
        let programs = move |stage| PHASES.map(|phase| (stage, phase));
        let all = (0..stages).flat_map(programs).collect::<Vec<_>>();
        let pairs = all
            .clone()
            .into_iter()
            .flat_map(move |from| all.clone().into_iter().map(move |to| (from, to)));
        pairs
            .filter(|(from, to)| match (from.1, to.1) {
                (Phase::Forward, Phase::Forward) => from.0 <= to.0,
                (Phase::Backward, Phase::Backward) => from.0 >= to.0,
                (from, to) => from < to,
            })
            .collect::<Vec<_>>()
    };
    for (schedule, m) in cases()
        .into_iter()
        .filter(|(schedule, m)| schedule.tiles < 5 && *m < 13)
    {
        for (from, to) in reads(&schedule)
            .into_iter()
            .filter(|(_, to)| schedule.training || to.1 == Phase::Forward)
        {
            let depth = schedule.depth(from, to, m);
            let mut places: Vec<Option<usize>> = vec![None; depth];
            let mut most = 0;
            for slot in schedule.slots(m) {
                let place = slot.micro_batch % depth;
                if (slot.stage, slot.phase) == from {
                    assert_eq!(places[place], None, "{schedule:?} {m} {from:?} {to:?}");
                    places[place] = Some(slot.micro_batch);
                }
                most = most.max(places.iter().flatten().count());
                if (slot.stage, slot.phase) == to {
                    assert_eq!(places[place], Some(slot.micro_batch));
                    places[place] = None;
                }
            }
            assert!(most == depth || m == 0, "{schedule:?} {m} {from:?} {to:?}");
        }
    }
}

#[test]
fn values_sent_forward_in_inference_take_one_place() {
    let schedule = Schedule::inference(5);
    for stage in 0..4 {
        let (from, to) = ((stage, Phase::Forward), (stage + 1, Phase::Forward));
        assert_eq!(schedule.depth(from, to, 9), 1);
    }
    let update = (0, Phase::Update);
    assert_eq!(
        training(Rule::OneFOneB, 4, 1).depth((2, Phase::Backward), update, 9),
        9
    );
}

#[test]
fn rules_refuse_what_they_cannot_order() {
    let interleaved = training(Rule::Interleaved, 4, 2);
    assert!(interleaved.check(12).is_ok());
    let error = interleaved.check(10).expect_err("no multiple");
    assert!(error.contains("multiple of the 4 tiles") && error.contains("--gradient-accumulation"));
    let popart = training(Rule::PopArt, 4, 1);
    assert!(popart.check(7).is_ok());
    assert!(popart.check(6).expect_err("too few").contains("at least 7"));
    for rule in Rule::ALL {
        let inference = Schedule {
            rule,
            ..Schedule::inference(4)
        };
        assert!(inference.check(1).is_ok());
        assert_eq!(inference.slots(3), Schedule::inference(4).slots(3));
    }
}

#[test]
fn rules_have_the_names_of_the_command_line() {
    for rule in Rule::ALL {
        assert_eq!(rule.to_string().parse(), Ok(rule));
        let json = serde_json::to_string(&rule).expect("JSON");
        assert_eq!(json, format!("\"{rule}\""));
    }
    assert!(
        "chimera"
            .parse::<Rule>()
            .expect_err("no rule")
            .contains("1f1b, gpipe, interleaved, popart")
    );
}
