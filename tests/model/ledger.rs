//! Planned bytes are used bytes, and guard mode sees what is not.

use crate::support::{Case, cases, check};
use lxpod_passes::plan::{Category, Memory, Plan};
use lxpod_runtime::tensors::{HostData, HostTensor};
use lxpod_runtime::{Error, RunResult, SessionOptions};

const GUARD: SessionOptions = SessionOptions {
    backend: lxpod_runtime::BackendKind::Cpu,
    threads: 1,
    guard: true,
    dropout: None,
};

/// The case with every mask all ones and no label ignored, so that every row is computed.
fn full(name: &str) -> Case {
    let mut case = Case::open(name);
    for name in ["attention_mask", "visual_attention_mask"] {
        if let Some(tensor) = case.inputs.get(name) {
            let ones = HostData::F32(vec![1.0; tensor.shape().iter().product()]);
            let tensor = HostTensor::new(name, tensor.shape().to_vec(), ones).expect("a tensor");
            case.inputs.insert(name.to_owned(), tensor);
        }
    }
    case
}

fn executed(memory: &Memory) -> Vec<(&'static str, u64)> {
    let mut all = memory.executed().to_vec();
    all.push(("max_live", memory.max_live));
    all
}

#[test]
fn at_full_extent_measured_equals_planned_on_every_tile() {
    for name in [
        "qa_tiny",
        "qa_odd_shapes",
        "base_model",
        "qa_no_r_layers",
        "pretrain_no_attr",
    ] {
        for (stages, replicas) in [(1, 1), (4, 1), (16, 1), (5, 2)] {
            let case = full(name);
            let mut options = case.options(stages);
            options.replicas = replicas;
            options.model.micro_batch = if replicas > 1 {
                1
            } else {
                case.samples().batch
            };
            let plan = case.plan(&options);
            let mut session = case.session(plan.clone(), SessionOptions::default());
            session.run(&case.samples()).expect("a run");
            for tile in session.ledger() {
                let planned = &plan.tiles[tile.tile % stages].memory;
                assert_eq!(
                    executed(&tile.memory),
                    executed(planned),
                    "{name}, tile {} of {stages}",
                    tile.tile
                );
            }
        }
    }
}

#[test]
fn below_full_extent_measured_never_exceeds_planned() {
    for name in cases() {
        let case = Case::open(&name);
        let plan = case.plan(&case.options(4));
        let mut session = case.session(plan.clone(), SessionOptions::default());
        session.run(&case.samples()).expect("a run");
        for tile in session.ledger() {
            let planned = executed(&plan.tiles[tile.tile].memory);
            for ((category, used), (_, planned)) in executed(&tile.memory).into_iter().zip(planned)
            {
                assert!(
                    used <= planned,
                    "{name}, tile {}: {category} {used} > {planned}",
                    tile.tile
                );
            }
        }
    }
}

#[test]
fn every_case_passes_guard_mode() {
    for name in cases() {
        let case = Case::open(&name);
        let mut session = case.session(case.plan(&case.options(3)), GUARD);
        let result = session
            .run(&case.samples())
            .expect("no access outside a live buffer");
        check(&name, &result, &case.expected, 4e-4);
    }
}

/// Runs a plan with a planted mistake under guard mode.
fn planted(mutate: impl FnOnce(&mut Plan)) -> Result<RunResult, Error> {
    let case = full("qa_tiny");
    let mut plan = case.plan(&case.options(2));
    mutate(&mut plan);
    case.session(plan, GUARD).run(&case.samples())
}

fn caught(result: Result<RunResult, Error>, how: &str) {
    let error = result.expect_err("guard mode must notice").to_string();
    assert!(error.contains("guard") && error.contains(how), "{error}");
}

/// An activation that lives for more than one step.
fn long_lived(plan: &Plan) -> usize {
    let buffers = &plan.tiles[0].buffers;
    let long = |index: &usize| {
        buffers[*index].category == Category::Activations
            && buffers[*index].death > buffers[*index].birth + 2
    };
    (0..buffers.len()).find(long).expect("a residual")
}

#[test]
fn guard_mode_catches_a_wrong_offset() {
    let result = planted(|plan| {
        let buffer = long_lived(plan);
        let buffers = &mut plan.tiles[0].buffers;
        let (birth, death) = (buffers[buffer].birth, buffers[buffer].death);
        let other = (0..buffers.len()).find(|&other| {
            other != buffer
                && buffers[other].category == Category::Activations
                && buffers[other].birth < death
                && birth < buffers[other].death
        });
        buffers[buffer].offset = buffers[other.expect("a neighbour")].offset;
    });
    caught(result, "overlap");
}

#[test]
fn guard_mode_catches_an_early_free() {
    let result = planted(|plan| {
        let buffer = long_lived(plan);
        plan.tiles[0].buffers[buffer].death -= 1;
    });
    caught(result, "not alive");
}

#[test]
fn guard_mode_catches_an_overlong_write() {
    let result = planted(|plan| {
        let buffer = long_lived(plan);
        plan.tiles[0].buffers[buffer].bytes -= 64;
    });
    caught(result, "leaves buffer");
}
