use lxpod_passes::cost::Cycles;

use lxpod_passes::schedule::{Branches, Rule};

use super::*;

fn stage(compute: u64, exchange: u64, host: u64) -> StageCycles {
    StageCycles {
        steps: Cycles {
            compute,
            exchange,
            sync: 0,
        },
        send: 0,
        receive: 0,
        host,
    }
}

fn simulate(stages: Vec<StageCycles>, micro_batches: usize) -> Simulation {
    let schedule = Schedule::inference(stages.len());
    let backward = StageCycles::default();
    let work = Work {
        update: vec![UpdateCycles::default(); stages.len()],
        stages: stages.into_iter().map(|stage| [stage, backward]).collect(),
    };
    Simulation::play(work, schedule, POD, [micro_batches, 1])
}

const POD: Pod = Pod {
    clock_hz: 1_000,
    replicas: 2,
    samples: 3,
};

/// A step of eight micro-batches through four stages, which are slower backward than forward.
fn training(rule: Rule, chunks: usize) -> Simulation {
    let schedule = Schedule {
        rule,
        tiles: 4 / chunks,
        chunks,
        training: true,
        branches: Branches::chain(),
    };
    let update = |tile| UpdateCycles {
        collectives: 10 * tile,
        weight_update: 30,
    };
    let work = Work {
        stages: (0..4)
            .map(|s| [stage(3, s, 0), stage(15, 0, 5 - 2 * s.min(2))])
            .collect(),
        update: (0..schedule.tiles as u64).map(update).collect(),
    };
    Simulation::play(work, schedule, POD, [8, 1])
}

#[test]
fn equal_stages_take_m_plus_p_minus_1_cycles() {
    for stages in 1..6u64 {
        for micro_batches in 1..9u64 {
            let run = simulate(
                vec![stage(50, 20, 0); stages as usize],
                micro_batches as usize,
            );
            assert_eq!(run.step_cycles(), (micro_batches + stages - 1) * 70);
            let predicted = run.predict();
            let bubble = (stages - 1) as f64 / (micro_batches + stages - 1) as f64;
            assert!((predicted.bubble_fraction - bubble).abs() < 1e-12);
            let samples = (2 * 3 * micro_batches) as f64;
            let rate = samples / predicted.step_seconds;
            assert!((predicted.samples_per_second - rate).abs() < 1e-9);
            assert!((predicted.steady_samples_per_second - 6.0 / 0.07).abs() < 1e-9);
            assert!((run.utilisation(0) - (1.0 - bubble)).abs() < 1e-12);
        }
    }
}

#[test]
fn unequal_stages_take_their_sum_and_the_slowest_for_each_further_micro_batch() {
    let run = simulate(vec![stage(5, 0, 0), stage(9, 0, 0), stage(2, 0, 0)], 2);
    let times = |tile| run.slots().filter(move |timed| timed.slot.tile == tile);
    let times = |tile| {
        times(tile)
            .map(|timed| (timed.start, timed.end))
            .collect::<Vec<_>>()
    };
    assert_eq!(times(0), [(0, 5), (5, 10)]);
    assert_eq!(times(1), [(5, 14), (14, 23)]);
    assert_eq!(times(2), [(14, 16), (23, 25)]);
    assert_eq!(run.step_cycles(), 16 + 9);
    assert_eq!(run.bottleneck(), 1);
    let predicted = run.predict();
    assert_eq!(predicted.bottleneck_tile, 1);
    assert!((predicted.breakdown.fill_flush - 0.007).abs() < 1e-12);
    assert!((predicted.latency_seconds - 0.016).abs() < 1e-12);
}

#[test]
fn the_breakdown_adds_up_to_the_step() {
    let mut slow = stage(100, 30, 7);
    slow.send = 5;
    slow.receive = 6;
    slow.steps.sync = 11;
    let run = simulate(
        vec![
            stage(10, 0, 0),
            slow,
            stage(90, 9, 0),
            StageCycles::default(),
        ],
        5,
    );
    let predicted = run.predict();
    assert!((predicted.breakdown.total() - predicted.step_seconds).abs() < 1e-12);
    assert!((predicted.breakdown.transfer - 0.055).abs() < 1e-12);
    assert!((predicted.breakdown.host - 0.035).abs() < 1e-12);
}

#[test]
fn the_update_follows_the_last_micro_batch_on_all_tiles() {
    for (rule, chunks) in [
        (Rule::GPipe, 1),
        (Rule::OneFOneB, 1),
        (Rule::Interleaved, 2),
        (Rule::PopArt, 1),
    ] {
        let run = training(rule, chunks);
        let tiles = 4 / chunks;
        let last = run.slots().map(|timed| timed.end).max();
        let updates: Vec<Interval> = run.intervals().filter(|part| part.slot.is_none()).collect();
        assert_eq!(updates.len(), 2 * tiles - 1, "tile 0 has nothing to sum");
        for part in &updates {
            assert_eq!(part.phase(), Phase::Update);
            let before = match part.activity {
                Activity::Collectives => 0,
                _ => 10 * part.tile as u64,
            };
            assert_eq!(Some(part.start - before), last, "{rule}: {part:?}");
        }
        let slowest = 10 * (tiles as u64 - 1);
        assert_eq!(Some(run.step_cycles() - slowest - 30), last);
        let predicted = run.predict();
        let breakdown = predicted.breakdown;
        assert!((breakdown.total() - predicted.step_seconds).abs() < 1e-12);
        assert!((breakdown.weight_update - 0.03).abs() < 1e-12);
        assert!((breakdown.collectives - slowest as f64 / 1e3).abs() < 1e-12);
        assert!(
            (predicted.bubble_fraction * predicted.step_seconds - breakdown.fill_flush).abs()
                < 1e-12
        );
        assert!(
            (predicted.latency_seconds - 0.018).abs() < 1e-12,
            "forward only"
        );
        let busy: u64 = run
            .intervals()
            .filter(|part| part.tile == 0)
            .map(|part| part.cycles)
            .sum();
        let utilisation = busy as f64 / run.step_cycles() as f64;
        assert!((run.utilisation(0) - utilisation).abs() < 1e-12);
    }
}

#[test]
fn a_trace_of_training_names_its_phases() {
    let mut bytes = Vec::new();
    let run = training(Rule::Interleaved, 2);
    let labels = ["a", "b", "c", "d"].map(str::to_owned);
    write_trace(&run, &labels, 1, &mut bytes).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name| {
        events
            .iter()
            .filter(move |event| event["name"] == name)
            .count()
    };
    assert_eq!((named("c"), named("c backward")), (2 * 8, 2 * 8));
    assert_eq!((named("weight_update"), named("collectives")), (2 * 2, 2));
    let tiles = events.iter().filter(|event| event["name"] == "thread_name");
    let tiles: Vec<_> = tiles
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        tiles,
        [
            "tile 0: a | c",
            "tile 1: b | d",
            "tile 2: a | c",
            "tile 3: b | d"
        ]
    );
    let in_phase = |phase| {
        events
            .iter()
            .filter(move |event| event["args"]["phase"] == phase)
    };
    assert!(in_phase("backward").all(|event| event["args"]["micro_batch"].is_u64()));
    assert_eq!(in_phase("update").count(), 2 * 2 + 2);
}

#[test]
fn empty_stages_pass_values_on_in_no_time() {
    let full = simulate(vec![stage(8, 0, 0)], 4);
    let padded = simulate(vec![stage(8, 0, 0), StageCycles::default()], 4);
    assert_eq!(full.step_cycles(), padded.step_cycles());
    assert!((padded.utilisation(1)).abs() < 1e-12);
    assert_eq!(
        simulate(vec![StageCycles::default()], 1)
            .predict()
            .samples_per_second,
        0.0
    );
    assert_eq!(simulate(vec![stage(1, 0, 0)], 0).step_cycles(), 0);
}

#[test]
fn intervals_fill_each_slot_and_never_overlap_on_a_tile() {
    let run = simulate(vec![stage(5, 2, 1), stage(9, 0, 0), stage(2, 2, 0)], 3);
    for tile in 0..3 {
        let mut end = 0;
        let mut busy = 0;
        for part in run.intervals().filter(|part| part.tile == tile) {
            assert!(part.start >= end, "{part:?}");
            end = part.start + part.cycles;
            busy += part.cycles;
        }
        assert_eq!(busy, 3 * run.tile_cycles(tile));
        assert!(end <= run.step_cycles());
    }
}

#[test]
fn a_trace_has_a_slice_for_each_program_and_activity() {
    let run = simulate(vec![stage(5, 2, 0), stage(9, 0, 0)], 3);
    let mut bytes = Vec::new();
    write_trace(&run, &["first \"one\"".to_owned()], 2, &mut bytes).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let slices = |category| events.iter().filter(move |event| event["cat"] == category);
    assert_eq!(slices("program").count(), 2 * 2 * 2 * 3);
    assert_eq!(slices("activity").count(), 2 * 2 * 3 * 3);
    let last = slices("program").next_back().unwrap();
    assert_eq!(
        (&last["tid"], &last["args"]["micro_batch"]),
        (&3.into(), &2.into())
    );
    assert_eq!(last["dur"], 9000.0);
}
