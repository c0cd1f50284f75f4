//! `lxpod train`.

use std::fs;

use super::support::{Finished, lxpod};

const MODEL: &str = "tests/golden/train_hf";
const BATCHES: &str = "tests/golden/train_hf/inputs.safetensors";

fn train(options: &[&str]) -> Finished {
    let words = ["train", MODEL, "--batches", BATCHES];
    lxpod(words.iter().chain(options))
}

/// Trains into a new folder.
fn into_folder(options: &[&str]) -> Finished {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out").to_string_lossy().into_owned();
    train(&[options, &["-o", &output]].concat())
}

#[test]
fn what_is_missing_says_so() {
    train(&[]).fails(2, &["--output"]);
    into_folder(&["--eval-every", "2"]).fails(2, &["--eval-batches"]);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let cases: [(&[&str], &[&str]); 13] = [
        (&["--gradient-accumulation", "3"], &["holds 40", "of the 3"]),
        (&["--recipe", "adam"], &["hf, ipu or airsplay"]),
        (&["--learning-rate", "-1"], &["--learning-rate", "from 0"]),
        (&["--adam-epsilon", "0"], &["--adam-epsilon", "above 0"]),
        (&["--freeze", "bert"], &["--freeze", "`bert`"]),
        (&["--adam-beta2", "1"], &["--adam-beta2", "below 1"]),
        (&["--loss-scaling", "much"], &["`auto`"]),
        (
            &["--first-moment", "i32"],
            &["--first-moment", "f16 or f32"],
        ),
        (&["--recipe", "airsplay"], &["--loss", "soft_labels"]),
        (&["--micro-batch", "3"], &["--micro-batch", "have 4"]),
        (&["--seq-len", "20"], &["--seq-len", "have 8"]),
        (&["--mode", "inference"], &["--mode"]),
        (&["--stages", "99"], &["--stages", "use 1 to 16"]),
    ];
    for (options, words) in cases {
        into_folder(options).fails(2, words);
    }
    into_folder(&["--warmup-ratio", "0.1", "--warmup-steps", "2"]).fails(2, &["--warmup-steps"]);
}

#[test]
fn wrong_files_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let absent = path("absent.safetensors");
    lxpod(["train", MODEL, "--batches", &absent, "-o", &path("out")]).fails(2, &["no such file"]);
    let plain = "tests/golden/qa_tiny/inputs.safetensors";
    lxpod(["train", MODEL, "--batches", plain, "-o", &path("out")])
        .fails(2, &["input_ids", "stack micro-batches"]);
    train(&["-o", MODEL]).fails(2, &["--output", "the model to train"]);
    fs::create_dir(folder.path().join("checkpoint-3")).expect("a folder");
    let output = folder.path().to_string_lossy().into_owned();
    train(&["-o", &output]).fails(2, &["earlier run", "--resume"]);
    train(&["-o", &output, "--resume", &output]).fails(2, &["SHA256SUMS"]);
    train(&["-o", &path("out"), "--resume", MODEL]).fails(2, &["holds no checkpoint"]);
    lxpod(["train", BATCHES, "--batches", BATCHES, "-o", &path("out")]).fails(2, &["is no model"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("a folder");
    let copied = |name: &str| fs::read(format!("{MODEL}/{name}")).expect("a golden");
    fs::write(model.join("config.json"), copied("config.json")).expect("written");
    let mut weights = copied("model.safetensors");
    let last = weights.len() - size_of::<f32>();
    weights[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(model.join("model.safetensors"), weights).expect("written");
    let (model, output) = (model.to_string_lossy(), folder.path().join("out"));
    let words = [
        "train",
        &model,
        "--batches",
        BATCHES,
        "-o",
        &output.to_string_lossy(),
    ];
    lxpod(words).fails(2, &["tensor `", "holds NaN", "earlier"]);
}
