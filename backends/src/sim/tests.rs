use lxpod_passes::cost::Cycles;

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
    let pod = Pod {
        clock_hz: 1_000,
        replicas: 2,
        samples: 3,
    };
    Simulation::play(stages, schedule, pod, micro_batches)
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
fn the_slowest_working_stage_sets_each_pipeline_cycle() {
    let run = simulate(vec![stage(5, 0, 0), stage(9, 0, 0), stage(2, 0, 0)], 2);
    // Cycles: {0}, {0, 1}, {1, 2}, {2}.
    assert_eq!(run.starts, [0, 5, 14, 23, 25]);
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
        for part in run.intervals().filter(|part| part.stage == tile) {
            assert!(part.start >= end, "{part:?}");
            end = part.start + part.cycles;
            busy += part.cycles;
        }
        assert_eq!(busy, 3 * run.stage_cycles(tile).total());
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
