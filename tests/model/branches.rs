//! Stages side by side: the same bits, planned bytes that are used bytes, and a pipeline that fills sooner.

use lxpod_backends::Outputs;
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::Rule;
use lxpod_passes::{Recompute, compile};
use lxpod_runtime::{RunResult, SessionOptions};

use crate::support::Case;
use crate::train::{Golden, PLAIN, Variant};
use lxpod_runtime::train::RecipeName;

/// The plan of a case over so many stages.
fn plan(case: &Case, stages: usize, branches: bool) -> Plan {
    let mut options = case.options(stages);
    options.model.micro_batch = case.samples().batch.div_ceil(4);
    options.branches = branches;
    case.plan(&options)
}

fn bits(result: &RunResult) -> Vec<(String, Vec<u32>)> {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    let outputs = result.outputs.iter();
    outputs
        .map(|one| (one.name.clone(), bits(&one.values)))
        .collect()
}

#[test]
fn branches_change_no_bit_and_no_byte_is_touched_that_is_not_planned() {
    for name in ["qa_batch16", "qa_hole_mask", "pretrain_all", "base_model"] {
        let case = Case::open(name);
        let run = |plan: &Plan, guard: bool| {
            let options = SessionOptions {
                guard,
                ..SessionOptions::default()
            };
            let mut session = case.session(plan.clone(), options);
            bits(&session.run(&case.samples()).expect("a run"))
        };
        let expected = run(&plan(&case, 1, false), false);
        for stages in [2, 4, 8, 16] {
            let branched = plan(&case, stages, true);
            for guard in [false, true] {
                assert_eq!(run(&branched, guard), expected, "{name}: {stages} stages");
            }
        }
    }
}

#[test]
fn the_towers_of_language_and_vision_lie_side_by_side() {
    let case = Case::open("qa_batch16");
    let chain = plan(&case, 8, false);
    let branched = plan(&case, 8, true);
    assert_eq!(chain.schedule.longest_path(), 8);
    assert!(branched.schedule.longest_path() < 8);
    // Values go straight to their readers, which costs no stage more than passing them on.
    assert!(branched.partition.objective_cycles <= chain.partition.objective_cycles);
    assert!(branched.partition.optimal);
    let read = Plan::from_bytes(&branched.to_bytes().expect("a file")).expect("a plan");
    assert_eq!(read.schedule, branched.schedule);
    read.check().expect("the plan of its graph");
}

#[test]
fn a_step_with_branches_has_the_bits_of_one_without() {
    for name in [RecipeName::Hf, RecipeName::Airsplay] {
        let mut golden = Golden::open(name);
        golden.accumulation = 20;
        let mut variants = Vec::new();
        for (stages, rule) in [
            (4, Rule::GPipe),
            (4, Rule::OneFOneB),
            (8, Rule::OneFOneB),
            (6, Rule::PopArt),
        ] {
            for recompute in [Recompute::None, Recompute::Layer] {
                variants.push(Variant {
                    stages,
                    rule,
                    recompute,
                    branches: true,
                    guard: stages == 4 && recompute == Recompute::Layer,
                    ..PLAIN
                });
            }
        }
        golden.same_bits(variants);
    }
}

/// Evaluation runs the forward halves of a training plan alone, of any number of micro-batches.
#[test]
fn forward_halves_alone_have_room_on_branches() {
    let golden = Golden::open(RecipeName::Hf);
    let evaluate = |variant: Variant| {
        let (mut learner, _) = golden.learner(variant);
        let mut feeds = golden.micro_batches(variant);
        while feeds.len() < 9 {
            feeds.extend_from_within(..);
        }
        let mut outputs: Vec<Outputs> = Vec::new();
        learner.executable.run(&feeds, &mut outputs).expect("a run");
        let reals = outputs
            .iter()
            .flatten()
            .flat_map(|tensor| tensor.reals().to_vec());
        reals.map(f32::to_bits).collect::<Vec<u32>>()
    };
    let expected = evaluate(PLAIN);
    for rule in [Rule::GPipe, Rule::OneFOneB] {
        for stages in [4, 8, 16] {
            let branched = Variant {
                stages,
                rule,
                branches: true,
                ..PLAIN
            };
            let options = golden.options(branched);
            let (plan, _) =
                compile(&golden.model.config, "golden", &options, &mut |_, _| {}).expect("a plan");
            assert!(stages == 4 || plan.schedule.longest_path() < stages);
            assert_eq!(evaluate(branched), expected, "{rule}, {stages} stages");
        }
    }
}
