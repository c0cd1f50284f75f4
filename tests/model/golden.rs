//! Transformers' outputs, reproduced by the CPU backend.

use std::collections::BTreeMap;

use lxpod_runtime::tensors::{HostData, HostTensor};
use lxpod_runtime::{Model, SessionOptions};

use crate::support::{Case, cases, check, folder};

fn tolerance(case: &str) -> f32 {
    if case == "qa_big_logits" { 4e-4 } else { 2e-5 }
}

#[test]
fn every_case_matches_on_one_and_on_sixteen_tiles() {
    for name in cases() {
        let case = Case::open(&name);
        for stages in [1, 16] {
            let mut session =
                case.session(case.plan(&case.options(stages)), SessionOptions::default());
            let result = session.run(&case.samples()).expect("a run");
            check(&name, &result, &case.expected, tolerance(&name));
        }
    }
}

/// The storage types hold the same model; each is opened from a folder of its own, as users have it.
#[test]
fn every_storage_type_gives_the_same_answers() {
    let source = folder("storage_types");
    let template = Case::from_folder(&source, source.join("inputs.safetensors"));
    for (stored, opened, kind) in [
        ("model.f16.safetensors", "model.safetensors", "f16:"),
        ("model.bf16.safetensors", "model.safetensors", "bf16:"),
        ("pytorch_model.bin", "pytorch_model.bin", "f16:"),
        ("pytorch_model_legacy.bin", "pytorch_model.bin", "f16:"),
    ] {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::copy(source.join("config.json"), place.path().join("config.json"))
            .expect("a copy");
        std::fs::copy(source.join(stored), place.path().join(opened)).expect("a copy");
        let mut case = template.clone();
        case.model = Model::open(&place.path().to_string_lossy(), 0).expect("a model");
        let mut session = case.session(case.plan(&case.options(2)), SessionOptions::default());
        let result = session.run(&case.samples()).expect("a run");
        let of_kind = template.expected.iter().filter_map(|(name, tensor)| {
            name.strip_prefix(kind)
                .map(|name| (name.to_owned(), tensor.clone()))
        });
        let expected: BTreeMap<_, _> = of_kind.collect();
        assert_eq!(expected.len(), 3);
        check(stored, &result, &expected, 2e-5);
    }
}

/// A plan with every loss, given some of the labels, sums the losses that these determine.
#[test]
fn losses_without_labels_are_left_out_of_the_sum() {
    let case = Case::open("pretrain_all");
    let plan = case.plan(&case.options(2));
    let mut some = case.clone();
    some.inputs
        .retain(|name, _| name != "ans" && name != "lm_labels");
    let mut session = case.session(plan, SessionOptions::default());
    let partial = session.run(&some.samples()).expect("a run");
    assert!(partial.get("loss_qa").is_none() && partial.get("loss_mlm").is_none());
    let mut session = some.session(some.plan(&some.options(2)), SessionOptions::default());
    let direct = session.run(&some.samples()).expect("a run");
    for name in [
        "loss",
        "loss_matched",
        "loss_visual_obj",
        "prediction_logits",
    ] {
        assert_eq!(partial.get(name), direct.get(name), "{name}");
    }
}

/// Labels that do not count weigh nothing, however the samples are dealt to micro-batches.
#[test]
fn losses_do_not_depend_on_the_micro_batch() {
    let mut case = Case::open("qa_batch16");
    let mut labels = case.inputs["labels"].to_i32().expect("labels");
    [0, 5, 6, 7]
        .into_iter()
        .for_each(|at: usize| labels[at] = -100);
    let labels =
        HostTensor::new("labels", vec![labels.len()], HostData::I32(labels)).expect("a tensor");
    case.inputs.insert("labels".to_owned(), labels);
    let loss = |micro_batch: usize| {
        let mut options = case.options(2);
        options.model.micro_batch = micro_batch;
        let mut session = case.session(case.plan(&options), SessionOptions::default());
        session
            .run(&case.samples())
            .expect("a run")
            .get("loss")
            .expect("a loss")
            .values[0]
    };
    let whole = loss(16);
    for micro_batch in [1, 2, 3, 8] {
        assert!(
            (loss(micro_batch) - whole).abs() < 1e-6,
            "micro-batch {micro_batch}"
        );
    }
}
