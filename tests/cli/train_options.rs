//! What `lxpod train` does beside the usual: loss scales, dtypes, replicas, event files, full disks.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::support::lxpod;
use super::train_runs::{Golden, check_close, folder, log, losses, model};

#[test]
fn graphcores_rule_moves_the_loss_scale() {
    let golden = Golden::open("ipu");
    let (_folder, output) = folder();
    golden.train(&output, &["--loss-scaling", "histogram", "--stages", "2"]);
    let log = log(&output);
    let scales = log["loss_scale"].as_array().expect("scales");
    let scales: Vec<f64> = scales
        .iter()
        .map(|scale| scale.as_f64().expect("a number"))
        .collect();
    let moves = scales.windows(2).map(|pair| pair[1] / pair[0]);
    let (up, down): (Vec<f64>, Vec<f64>) = moves.partition(|&change| change == 2.0);
    assert!(up.len() > 3 && down.len() > 3, "{scales:?}");
    assert!(down.iter().all(|&change| change == 0.5), "{scales:?}");
    // Every skipped step halves, so that most moves come from the histogram.
    let skipped = log["skipped"].as_array().expect("steps").len();
    assert!(skipped * 2 < down.len(), "{skipped} skipped: {scales:?}");
    check_close("histogram", &losses(&output), &golden.losses(), 0.01, 0.05);
}

#[test]
fn sums_of_gradients_in_f16_stay_close() {
    let golden = Golden::open("ipu");
    let (_folder, output) = folder();
    golden.train(
        &output,
        &[
            "--accumulator",
            "f16",
            "--loss-scaling",
            "1024",
            "--stages",
            "2",
        ],
    );
    check_close("f16 sums", &losses(&output), &golden.losses(), 0.01, 0.05);
    let (_folder, other) = folder();
    golden.train(&other, &["--loss-scaling", "1024", "--stages", "2"]);
    assert!(
        model(&output) != model(&other),
        "the dtype reaches the sums"
    );
}

#[test]
fn replicas_share_states_out() {
    let golden = Golden::open("ipu");
    let one = [
        "--gradient-accumulation",
        "1",
        "--replicas",
        "2",
        "--stages",
        "2",
    ];
    let train = |sharing: &[&str]| {
        let (kept, output) = folder();
        let mut words = golden.words(&output, &[]);
        let at = words
            .iter()
            .position(|word| word == "--gradient-accumulation");
        let at = at.expect("an accumulation");
        words.drain(at..at + 2);
        words.extend(one.iter().chain(sharing).map(|&word| word.to_owned()));
        lxpod(words).succeeds();
        let trained = (model(&output), losses(&output));
        drop(kept);
        trained
    };
    assert!(train(&["--replicated-tensor-sharding"]) == train(&[]));
}

#[test]
fn sharing_states_out_shrinks_the_optimiser() {
    let words = ["compile", "lxmert-base", "--mode", "training", "--json"];
    let size = [
        "--stages",
        "4",
        "--replicas",
        "4",
        "--gradient-accumulation",
        "4",
    ];
    let sharing = ["--replicated-tensor-sharding"];
    let plan = lxpod(words.iter().chain(&size).chain(&sharing)).json();
    assert_eq!(plan["replicated_tensor_sharding"], true);
    let tiles = plan["tiles"].as_array().expect("tiles");
    let sum = |what: &str| -> f64 {
        let each = tiles.iter().map(|tile| tile["memory"][what].as_f64());
        each.map(|bytes| bytes.expect("bytes")).sum()
    };
    // Two moments and the weight behind it, 4 bytes each, of which a replica has a quarter.
    let share = sum("optimizer") / (3.0 * sum("accumulators"));
    assert!((0.25..0.26).contains(&share), "{share}");
    lxpod(["compile", "lxmert-base", "--replicated-tensor-sharding"])
        .fails(3, &["--replicated-tensor-sharding", "--mode training"]);
}

#[test]
fn groups_of_micro_batches_train_the_same_model() {
    let golden = Golden::open("hf");
    let train = |options: &[&str]| {
        let (kept, output) = folder();
        golden.train(&output, &[&["--target", "cpu"], options].concat());
        let trained = (model(&output), losses(&output));
        drop(kept);
        trained
    };
    let alone = train(&["--group", "1"]);
    assert!(alone == train(&["--group", "2"]));
    assert!(alone == train(&[]));
}

#[test]
fn a_plan_says_how_many_micro_batches_it_groups() {
    let training = ["compile", "lxmert-base", "--mode", "training"];
    let size = ["--gradient-accumulation", "6", "--seq-len", "8", "--json"];
    let plan = |more: &[&str]| lxpod(training.iter().chain(&size).chain(more)).json();
    let pod = plan(&["--stages", "8"]);
    assert_eq!(pod["group"], 1);
    let given = plan(&["--stages", "8", "--group", "4"]);
    assert_eq!(given["group"], 4);
    let [alone, open] =
        [&["--group", "1"][..], &[]].map(|more| plan(&[&["--target", "cpu"], more].concat()));
    assert_eq!(open["group"], 6);
    let seconds = |plan: &Value| plan["predicted"]["step_seconds"].as_f64().expect("seconds");
    assert!(seconds(&open) < seconds(&alone));
    let refused = |options: &[&str], status, words: &[&str]| {
        lxpod(training.iter().chain(&size).chain(options)).fails(status, words);
    };
    refused(&["--group", "7"], 2, &["--group", "use 1 to 6"]);
    refused(&["--group", "0"], 2, &["--group"]);
    refused(&["--group", "2", "--auto"], 2, &["--group", "--auto"]);
    lxpod(["compile", "lxmert-base", "--group", "2"]).fails(3, &["--group", "--mode training"]);
}

#[test]
fn event_files_hold_every_step() {
    let golden = Golden::open("hf");
    let (kept, output) = folder();
    let events = kept.path().join("events");
    let batches = format!("{}/inputs.safetensors", golden.folder());
    let evaluating = ["--eval-batches", &batches, "--eval-every", "10"];
    let shown = events.to_string_lossy();
    let options = [&evaluating[..], &["--tensorboard", &shown, "--stages", "1"]].concat();
    golden.train(&output, &options);
    let files: Vec<_> = fs::read_dir(&events).expect("a folder").collect();
    assert_eq!(files.len(), 1);
    let file = files[0].as_ref().expect("an entry").path();
    let name = file
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(name.starts_with("events.out.tfevents."), "{name}");
    let bytes = fs::read(file).expect("events");
    let count = |tag: &str| {
        bytes
            .windows(tag.len())
            .filter(|at| *at == tag.as_bytes())
            .count()
    };
    for tag in ["train/loss", "train/learning_rate", "train/grad_norm"] {
        let longer = if tag == "train/loss" {
            count("train/loss_scale")
        } else {
            0
        };
        assert_eq!(count(tag) - longer, golden.losses().len(), "{tag}");
    }
    assert_eq!(count("eval/loss"), 2);
}

/// Copies a folder of files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn a_file_that_cannot_grow_leaves_the_last_checkpoint() {
    let golden = Golden::open("hf");
    let (kept, whole) = folder();
    golden.train(&whole, &["--stages", "2", "--save-every", "8"]);
    let output = kept.path().join("short");
    copy(&whole.join("checkpoint-8"), &output.join("checkpoint-8"));
    let shown = output.to_string_lossy().into_owned();
    let resuming = ["--stages", "2", "--save-every", "8", "--resume", &shown];
    let quoted = golden.words(&output, &resuming);
    let quoted: Vec<String> = quoted.iter().map(|word| format!("'{word}'")).collect();
    // Nothing may be longer than 32 KiB, of which no model of this configuration is.
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec '{}' {}",
        env!("CARGO_BIN_EXE_lxpod"),
        quoted.join(" ")
    );
    let ended = Command::new("sh")
        .args(["-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("sh runs");
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(74), "{message}");
    assert!(message.contains("checkpoint-16"), "{message}");
    let left = fs::read_dir(&output).expect("a folder");
    let left = left.map(|entry| entry.expect("an entry").file_name());
    let left: Vec<String> = left
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    assert!(left.contains(&"checkpoint-8".to_owned()), "{left:?}");
    assert!(!left.contains(&"checkpoint-16".to_owned()), "{left:?}");
    golden.train(&output, &resuming);
    assert!(model(&output) == model(&whole));
}
