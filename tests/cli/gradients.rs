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

#[test]
fn gradients_are_those_of_transformers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let file = path("gradients.safetensors").to_string_lossy().into_owned();
    let outputs = path("outputs.safetensors").to_string_lossy().into_owned();
    let options = ["--backend", "reference", "--precision", "fp32", "--json"];
    let files = ["--gradients", &file, "--outputs", &outputs];
    let options: Vec<&str> = options.into_iter().chain(files).collect();
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
            name.ends_with("key.bias") || error < 5e-5 * largest + 1e-6,
            "{name}: {error}"
        );
    }
    let outputs = read_tensors(outputs.as_ref()).expect("outputs");
    assert!(outputs.contains_key("loss"));
    assert!(!outputs.keys().any(|name| name.starts_with("grad:")));
}

#[test]
fn what_training_lacks_says_so() {
    let reference = ["--backend", "reference"];
    training(TINY, &["--gradients", "g.safetensors"])
        .fails(3, &["--mode training", "--backend reference"]);
    training(TINY, &reference).fails(2, &["--gradients"]);
    let small = ["--gradients", "g.safetensors", "--micro-batch", "2"];
    training(TINY, &[&reference[..], &small].concat()).fails(3, &["--micro-batch"]);
    let unlabelled = [
        "run",
        TINY,
        "--inputs",
        "tests/golden/base_model/inputs.safetensors",
    ];
    let options = ["--mode", "training", "--gradients", "g.safetensors"];
    let base = ["--task", "base"];
    lxpod(
        unlabelled
            .iter()
            .chain(&reference)
            .chain(&options)
            .chain(&base),
    )
    .fails(2, &["loss"]);
}
