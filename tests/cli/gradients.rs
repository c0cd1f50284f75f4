//! `lxpod run --mode training`.

use std::collections::BTreeSet;

use lxpod_runtime::read_tensors;

use super::support::{TINY, lxpod};

const CASE: &str = "tests/golden/pretrain_all";

fn training(subject: &str, options: &[&str]) -> super::support::Finished {
    let inputs = format!("{subject}/inputs.safetensors");
    let run = ["run", subject, "--inputs", &inputs, "--mode", "training"];
    lxpod(run.iter().chain(options))
}

/// The gradients of the case, written with these options; the largest error of a tensor has that
/// share of its largest entry, beside 1e-6.
fn check(options: &[&str], share: f32) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let file = path("gradients.safetensors").to_string_lossy().into_owned();
    let outputs = path("outputs.safetensors").to_string_lossy().into_owned();
    let files = ["--json", "--gradients", &file, "--outputs", &outputs];
    let options = [options, &files].concat();
    let document = training(CASE, &options).json();
    assert_eq!(document["mode"], "training");
    let got = read_tensors(file.as_ref()).expect("gradients");
    let want = format!("{CASE}/gradients.safetensors");
    let mut want = read_tensors(want.as_ref()).expect("gradients");
    want.retain(|name, _| !name.starts_with("input:"));
    assert!(got.keys().eq(want.keys()));
    let listed = document["gradients"].as_array().expect("gradients");
    let listed: BTreeSet<_> = listed.iter().map(|entry| entry["name"].as_str()).collect();
    assert_eq!(listed.len(), got.len());
    for (name, want) in &want {
        let (got, want) = (&got[name], want.to_f32().expect("floats"));
        let got = got.to_f32().expect("floats");
        let largest = want.iter().fold(0f32, |largest, e| largest.max(e.abs()));
        let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
        let error = error.fold(0f32, f32::max);
        assert!(
            name.ends_with("key.bias") || error < share * largest + 1e-6,
            "{options:?}: {name}: {error} of {largest}"
        );
    }
    let outputs = read_tensors(outputs.as_ref()).expect("outputs");
    assert!(outputs.contains_key("loss"));
    assert!(!outputs.keys().any(|name| name.starts_with("grad:")));
}

#[test]
fn gradients_are_those_of_transformers() {
    for backend in ["cpu", "reference"] {
        check(&["--backend", backend, "--precision", "fp32"], 5e-5);
    }
}

/// f16 has eleven bits; a cotangent goes through some ten operators.
#[test]
fn gradients_of_mixed_precision_are_close() {
    for backend in ["cpu", "reference"] {
        check(&["--backend", backend, "--precision", "mixed"], 2e-2);
    }
}

#[test]
fn what_training_lacks_says_so() {
    training(TINY, &[]).fails(2, &["--gradients"]);
    let small = ["--gradients", "g.safetensors", "--micro-batch", "2"];
    training(TINY, &small).fails(3, &["--micro-batch"]);
    let several = [
        "--gradients",
        "g.safetensors",
        "--gradient-accumulation",
        "2",
    ];
    training(TINY, &several).fails(2, &["--gradient-accumulation"]);
    let plan = ["run", "x.plan", "--inputs", "x", "--mode", "training"];
    lxpod(plan.iter().chain(&["--gradients", "g.safetensors"])).fails(3, &["name the model"]);
    let unlabelled = [
        "run",
        TINY,
        "--inputs",
        "tests/golden/base_model/inputs.safetensors",
    ];
    let options = ["--mode", "training", "--gradients", "g.safetensors"];
    let base = ["--task", "base"];
    lxpod(unlabelled.iter().chain(&options).chain(&base)).fails(2, &["loss"]);
}
