//! `lxpod train` from its first step to its last.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lxpod_runtime::read_tensors;
use serde_json::Value;

use super::support::{TINY, lxpod};

/// A golden trajectory.
pub(super) struct Golden {
    recipe: &'static str,
    folder: String,
    meta: Value,
}

impl Golden {
    pub(super) fn open(recipe: &'static str) -> Golden {
        let folder = format!("tests/golden/train_{recipe}");
        let meta = fs::read(format!("{folder}/meta.json")).expect("meta.json");
        Golden {
            recipe,
            meta: serde_json::from_slice(&meta).expect("JSON"),
            folder,
        }
    }

    pub(super) fn folder(&self) -> &str {
        &self.folder
    }

    /// The words of the command line that trains it.
    pub(super) fn words(&self, output: &Path, options: &[&str]) -> Vec<String> {
        let batches = format!("{}/inputs.safetensors", self.folder);
        let rate = self.meta["learning_rate"].to_string();
        let accumulation = self.meta["gradient_accumulation"].to_string();
        let output = output.to_string_lossy();
        let mut words = vec!["train", &self.folder, "--batches", &batches];
        words.extend(["--recipe", self.recipe, "--learning-rate", &rate]);
        words.extend([
            "--gradient-accumulation",
            &accumulation,
            "--threads",
            "1",
            "-o",
            &output,
        ]);
        words.extend(options);
        words.into_iter().map(str::to_owned).collect()
    }

    pub(super) fn train(&self, output: &Path, options: &[&str]) {
        lxpod(self.words(output, options)).succeeds();
    }

    /// Starts a run without waiting for it.
    fn start(&self, output: &Path, options: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxpod"));
        command
            .args(self.words(output, options))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("the binary runs")
    }

    pub(super) fn losses(&self) -> Vec<f64> {
        floats(&self.meta["log"]["loss"])
    }
}

fn floats(values: &Value) -> Vec<f64> {
    let values = values.as_array().expect("numbers");
    values
        .iter()
        .map(|v| v.as_f64().expect("a number"))
        .collect()
}

pub(super) fn log(output: &Path) -> Value {
    let text = fs::read(output.join("log.json")).expect("log.json");
    serde_json::from_slice(&text).expect("JSON")
}

pub(super) fn losses(output: &Path) -> Vec<f64> {
    floats(&log(output)["loss"])
}

pub(super) fn model(output: &Path) -> Vec<u8> {
    fs::read(output.join("model.safetensors")).expect("a model")
}

/// A folder that is removed at the end, and a path in it.
pub(super) fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    (folder, output)
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not come");
}

/// The largest difference between a trained model and a golden's, and how many tensors were compared.
/// What a key's bias adds to scores is the same for every key, so that its gradient is only rounding.
fn furthest(output: &Path, golden: &Golden) -> (f32, usize) {
    let want = Path::new(&golden.folder).join("final_params.safetensors");
    let want = read_tensors(&want).expect("tensors");
    let got = read_tensors(&output.join("model.safetensors")).expect("tensors");
    let (mut furthest, mut compared) = (0f32, 0);
    for (name, want) in want.iter().filter(|(name, _)| !name.ends_with("key.bias")) {
        let (want, got) = (
            want.to_f32().expect("floats"),
            got[name].to_f32().expect("floats"),
        );
        assert_eq!(want.len(), got.len(), "{name}");
        let difference = want.iter().zip(&got).map(|(want, got)| (want - got).abs());
        furthest = difference.fold(furthest, f32::max);
        compared += 1;
    }
    (furthest, compared)
}

#[test]
fn trajectories_are_transformers_in_fp32() {
    for recipe in ["hf", "ipu", "airsplay"] {
        let golden = Golden::open(recipe);
        for stages in ["1", "4"] {
            let (_folder, output) = folder();
            golden.train(&output, &["--precision", "fp32", "--stages", stages]);
            let (got, want) = (losses(&output), golden.losses());
            assert_eq!(got.len(), want.len());
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (got - want).abs() < 2e-5,
                    "{recipe}, {stages} stages, step {step}: {got} {want}"
                );
            }
            let (difference, compared) = furthest(&output, &golden);
            assert!(difference < 5e-5, "{recipe}, {stages} stages: {difference}");
            assert!(compared > 100, "{compared}");
        }
    }
}

/// Checks losses against a golden's: their mean, and each one, within a share of it.
pub(super) fn check_close(what: &str, got: &[f64], want: &[f64], mean: f64, each: f64) {
    let share = got.iter().sum::<f64>() / want.iter().sum::<f64>() - 1.0;
    let worst = got
        .iter()
        .zip(want)
        .map(|(got, want)| (got / want - 1.0).abs());
    let worst = worst.fold(0.0, f64::max);
    assert!(share.abs() < mean, "{what}: the mean is off by {share}");
    assert!(worst < each, "{what}: a step is off by {worst}");
}

#[test]
fn trajectories_in_mixed_precision_stay_close() {
    for (recipe, mean) in [("hf", 0.005), ("ipu", 0.01), ("airsplay", 0.005)] {
        let golden = Golden::open(recipe);
        for stages in ["1", "4"] {
            let (_folder, output) = folder();
            golden.train(&output, &["--precision", "mixed", "--stages", stages]);
            let what = format!("{recipe}, {stages} stages");
            check_close(&what, &losses(&output), &golden.losses(), mean, 0.05);
        }
    }
    let golden = Golden::open("ipu");
    let (_folder, output) = folder();
    golden.train(&output, &["--master-weights", "true", "--stages", "4"]);
    check_close(
        "ipu with masters",
        &losses(&output),
        &golden.losses(),
        0.005,
        0.05,
    );
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let golden = Golden::open("ipu");
    let (whole_folder, whole) = folder();
    let seeded = ["--stages", "2", "--seed", "3"];
    golden.train(&whole, &seeded);
    let output = whole_folder.path().join("interrupted");
    let mut child = golden.start(&output, &[&seeded[..], &["--save-every", "1"]].concat());
    wait_for("a checkpoint", || output.join("checkpoint-1").exists());
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    assert!(!output.join("model.safetensors").exists());
    let shown = output.to_string_lossy().into_owned();
    golden.train(&output, &[&seeded[..], &["--resume", &shown]].concat());
    assert_eq!(model(&output), model(&whole));
    assert_eq!(losses(&output), losses(&whole));
}

#[test]
fn an_overflow_skips_the_step_and_is_named() {
    let golden = Golden::open("hf");
    let (_folder, output) = folder();
    let options = [
        "--loss-scaling",
        "1e30",
        "--master-weights",
        "true",
        "--stages",
        "2",
    ];
    let (_, notes) = lxpod(golden.words(&output, &options)).both();
    let log = log(&output);
    let skipped = log["skipped"].as_array().expect("steps").len();
    assert_eq!(skipped, golden.losses().len());
    let overflow = log["overflow"].as_array().expect("a culprit per step");
    assert_eq!(overflow.len(), skipped);
    for field in ["op", "scope", "value"] {
        let text = overflow[0][field].as_str().expect("text");
        assert!(!text.is_empty() && notes.contains(text), "{text}: {notes}");
    }
    let read = |folder: &Path| read_tensors(&folder.join("model.safetensors")).expect("tensors");
    let (before, after) = (read(Path::new(&golden.folder)), read(&output));
    for (name, before) in before {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let after = bits(after[&name].to_f32().expect("floats"));
        assert!(bits(before.to_f32().expect("floats")) == after, "{name}");
    }
}

#[test]
fn rounding_follows_the_seed() {
    let golden = Golden::open("ipu");
    let run = |seed: &str| {
        let (_folder, output) = folder();
        golden.train(&output, &["--no-dropout", "--seed", seed, "--stages", "2"]);
        model(&output)
    };
    let first = run("1");
    assert!(first == run("1"));
    assert!(first != run("2"));
}

/// Kills a run at any moment, and again, until it gets through: checkpoints stay readable, and the
/// result is the uninterrupted one's. `LXPOD_KILLS` is how often.
#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let kills = std::env::var("LXPOD_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    let golden = Golden::open("hf");
    let (kept, whole) = folder();
    golden.train(&whole, &["--stages", "2"]);
    for round in 0..kills.unwrap_or(3u64) {
        let output = kept.path().join(format!("killed-{round}"));
        let shown = output.to_string_lossy().into_owned();
        let saving = ["--stages", "2", "--save-every", "1"];
        let mut child = golden.start(&output, &saving);
        wait_for("a checkpoint", || output.join("checkpoint-1").exists());
        // Up to 0.4 s, spread over the rounds.
        std::thread::sleep(
            Duration::from_millis(round.wrapping_mul(0x9e37_79b9) >> 8 & 0xff) * 3 / 2,
        );
        child.kill().expect("alive, or ended and not waited for");
        child.wait().expect("an end");
        golden.train(
            &output,
            &["--stages", "2", "--save-every", "1", "--resume", &shown],
        );
        assert_eq!(model(&output), model(&whole), "round {round}");
        assert_eq!(losses(&output), losses(&whole), "round {round}");
    }
}

#[test]
fn what_is_frozen_stays_to_the_bit() {
    let golden = Golden::open("hf");
    let (_folder, output) = folder();
    golden.train(
        &output,
        &[
            "--freeze",
            "lxmert.",
            "--precision",
            "fp32",
            "--stages",
            "2",
        ],
    );
    let read = |folder: &Path| read_tensors(&folder.join("model.safetensors")).expect("tensors");
    let (before, after) = (read(Path::new(&golden.folder)), read(&output));
    let (mut same, mut changed) = (0, 0);
    for (name, before) in &before {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let unchanged =
            bits(before.to_f32().expect("floats")) == bits(after[name].to_f32().expect("floats"));
        assert_eq!(unchanged, name.starts_with("lxmert."), "{name}");
        *(if unchanged { &mut same } else { &mut changed }) += 1;
    }
    assert!(same > 100 && changed >= 6, "{same} {changed}");
}

#[test]
fn evaluation_is_logged() {
    let golden = Golden::open("airsplay");
    let (_folder, output) = folder();
    let batches = format!("{}/inputs.safetensors", golden.folder);
    golden.train(
        &output,
        &[
            "--eval-batches",
            &batches,
            "--eval-every",
            "8",
            "--stages",
            "2",
        ],
    );
    let log = log(&output);
    let evaluated = log["eval"].as_array().expect("evaluations");
    let steps: Vec<_> = evaluated.iter().map(|one| one["step"].as_u64()).collect();
    assert_eq!(steps, [Some(8), Some(16), Some(20)]);
    let first = evaluated[0]["loss"].as_f64().expect("a loss");
    let last = evaluated[2]["loss"].as_f64().expect("a loss");
    assert!(last < first, "{first} {last}");
}

/// Copies a model with dropout switched on.
fn dropping(source: &str, to: &Path) -> String {
    fs::create_dir(to).expect("a folder");
    let source = Path::new(source);
    let name = "model.safetensors";
    fs::copy(source.join(name), to.join(name)).expect("a copy");
    let config = fs::read(source.join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    for field in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
        config[field] = 0.25.into();
    }
    fs::write(to.join("config.json"), config.to_string()).expect("written");
    to.to_string_lossy().into_owned()
}

#[test]
fn dropout_follows_the_configuration_and_the_seed() {
    let golden = Golden::open("ipu");
    let (kept, _) = folder();
    let model = dropping(&golden.folder, &kept.path().join("model"));
    let run = |name: &str, options: &[&str]| {
        let output = kept.path().join(name);
        let mut words = golden.words(&output, options);
        words[1].clone_from(&model);
        words.extend(["--precision", "fp32", "--stages", "2"].map(str::to_owned));
        lxpod(words).succeeds();
        losses(&output)
    };
    let (first, again) = (run("first", &[]), run("again", &[]));
    assert_eq!(first, again);
    assert_ne!(first, run("seeded", &["--seed", "1"]));
    let kept_all = run("kept", &["--no-dropout"]);
    for (got, want) in kept_all.iter().zip(golden.losses()) {
        assert!((got - want).abs() < 2e-5, "{got} {want}");
    }
    assert_ne!(first, kept_all);
}

#[test]
fn evaluation_drops_nothing() {
    let golden = Golden::open("ipu");
    let (kept, _) = folder();
    let model = dropping(&golden.folder, &kept.path().join("model"));
    let batches = format!("{}/inputs.safetensors", golden.folder);
    let evaluated = |name: &str, options: &[&str]| {
        let output = kept.path().join(name);
        let mut words = golden.words(&output, options);
        words[1].clone_from(&model);
        let rate = words.iter().position(|word| word == "--learning-rate");
        words[rate.expect("a rate") + 1] = "0".to_owned();
        let more = ["--eval-every", "20", "--eval-batches", &batches];
        words.extend(more.map(str::to_owned));
        words.extend(["--precision", "fp32", "--stages", "2"].map(str::to_owned));
        lxpod(words).succeeds();
        log(&output)["eval"][0]["loss"].as_f64().expect("a loss")
    };
    let (dropping, kept_all) = (
        evaluated("dropping", &[]),
        evaluated("kept", &["--no-dropout"]),
    );
    assert!((dropping - kept_all).abs() < 1e-6, "{dropping} {kept_all}");
}

#[test]
fn run_drops_out_when_asked() {
    let (kept, _) = folder();
    let model = dropping(TINY, &kept.path().join("model"));
    let inputs = format!("{TINY}/inputs.safetensors");
    let inputs = ["--inputs", &inputs];
    let path = |name: &str| kept.path().join(name).to_string_lossy().into_owned();
    let run = |subject: &str, options: &[&str]| {
        let out = path("out.safetensors");
        let words = ["run", subject, "--model", &model, "--outputs", &out];
        let without_model = [&words[..2], &words[4..]].concat();
        let plan = subject.ends_with(".plan");
        let words = if plan { words.to_vec() } else { without_model };
        lxpod(words.iter().chain(&inputs).chain(options)).succeeds();
        let tensors = read_tensors(out.as_ref()).expect("tensors");
        tensors["question_answering_score"]
            .to_f32()
            .expect("floats")
    };
    let kept_all = run(&model, &[]);
    let dropped = run(&model, &["--dropout"]);
    assert_ne!(dropped, kept_all);
    assert_eq!(dropped, run(&model, &["--dropout", "--stages", "1"]));
    assert_ne!(dropped, run(&model, &["--dropout", "--seed", "1"]));
    let plan = path("kept.plan");
    lxpod(["compile", &model, "-o", &plan]).succeeds();
    assert_eq!(run(&plan, &[]), kept_all);
    let refused = ["run", &plan, "--model", &model, "--dropout"];
    lxpod(refused.iter().chain(&inputs)).fails(2, &["--dropout", "name the model"]);
}

/// Stacks the same samples anew, two instead of four to a micro-batch.
fn halved(batches: &Path, to: &Path) {
    let bytes = fs::read(batches).expect("a file");
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    let (header, data) = rest.split_at(length);
    let mut header: Value = serde_json::from_slice(header).expect("JSON");
    let entries = header.as_object_mut().expect("tensors").iter_mut();
    for (_, tensor) in entries.filter(|(name, _)| *name != "__metadata__") {
        if let Some(shape) = tensor["shape"].as_array_mut() {
            let axis = |value: &Value| value.as_u64().expect("a size");
            let [stacked, samples] = [axis(&shape[0]), axis(&shape[1])];
            (shape[0], shape[1]) = ((stacked * 2).into(), (samples / 2).into());
        }
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    fs::write(to, [&length, &*header, data].concat()).expect("written");
}

#[test]
fn masks_do_not_depend_on_the_grouping_into_micro_batches() {
    let golden = Golden::open("ipu");
    let (kept, output) = folder();
    let model = dropping(&golden.folder, &kept.path().join("model"));
    let whole = PathBuf::from(format!("{}/inputs.safetensors", golden.folder));
    let half = kept.path().join("halved.safetensors");
    halved(&whole, &half);
    let run = |batches: &Path, accumulation: &str| {
        let batches = batches.to_string_lossy();
        let output = output.join(accumulation);
        let words = [
            "train",
            &model,
            "--batches",
            &batches,
            "--precision",
            "fp32",
            "--stages",
            "2",
        ];
        let more = [
            "--learning-rate",
            "0",
            "--gradient-accumulation",
            accumulation,
            "-o",
        ];
        let shown = output.to_string_lossy();
        lxpod(words.iter().chain(&more).chain(&[&*shown])).succeeds();
        losses(&output)
    };
    let (fours, twos) = (run(&whole, "2"), run(&half, "4"));
    assert_eq!(fours.len(), twos.len());
    for (step, (fours, twos)) in fours.iter().zip(&twos).enumerate() {
        assert!((fours - twos).abs() < 1e-6, "step {step}: {fours} {twos}");
    }
}
