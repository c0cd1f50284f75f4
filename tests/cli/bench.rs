//! `lxpod bench`: what it measures and refuses.

use std::fs;

use lxpod_runtime::read_tensors;
use serde_json::Value;

use super::number;
use super::support::{TINY, lxpod};

const QUICK: [&str; 4] = ["--repeat", "2", "--warmup", "0"];

fn model(options: &[&str]) -> Value {
    let words = ["bench", "model", TINY, "--json"];
    lxpod(words.iter().chain(&QUICK).chain(options)).json()
}

/// Floating-point operations that the steps did.
fn flops(document: &Value) -> f64 {
    let ops = document["ops"].as_array().expect("ops");
    ops.iter().map(|op| number(op, "/flops")).sum()
}

#[test]
fn a_model_is_measured_op_by_op() {
    let document = model(&["--batch", "2"]);
    assert_eq!(document["latency_ms"].as_array().map(Vec::len), Some(2));
    for name in [
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "cold_ms",
        "predicted_ms",
        "samples_per_second",
        "load_seconds",
        "peak_rss_bytes",
        "peak_gflops",
        "dram_gb_per_second",
    ] {
        assert!(number(&document, &format!("/{name}")) > 0.0, "{name}");
    }
    let ops = document["ops"].as_array().expect("ops");
    let sum = |field: &str| -> f64 { ops.iter().map(|op| number(op, field)).sum() };
    assert_eq!(ops.last().map(|op| op["op"].clone()), Some("host".into()));
    assert!((sum("/ms") - number(&document, "/p50_ms")).abs() < 1e-9);
    assert!((sum("/share") - 1.0).abs() < 1e-9);
    assert!((sum("/predicted_ms") - number(&document, "/predicted_ms")).abs() < 1e-9);
    let steps = document["steps"].as_array().expect("steps");
    assert_eq!(sum("/nodes"), steps.len() as f64);
    assert!(
        steps
            .iter()
            .all(|step| step["scope"].is_string() && step["types"].is_string())
    );
}

#[test]
fn training_is_measured_by_train() {
    let says = ["lxpod train --json"];
    lxpod(["bench", "model", TINY, "--mode", "training"]).fails(2, &says);
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("train.plan").display().to_string();
    let steps = ["--mode", "training", "--gradient-accumulation", "2"];
    lxpod(["compile", TINY, "-q", "-o", &plan].iter().chain(&steps)).succeeds();
    lxpod(["bench", "model", &plan, "--model", TINY]).fails(3, &says);
}

#[test]
fn a_plan_of_training_steps_answers_as_its_model_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (plan, inputs) = (path("train.plan"), format!("{TINY}/inputs.safetensors"));
    let outputs = |name: &str, subject: &[&str]| {
        let file = path(name);
        let options = ["--inputs", &inputs, "--outputs", &file];
        lxpod(["run"].iter().chain(subject).chain(&options)).succeeds();
        read_tensors(file.as_ref()).expect("outputs")
    };
    let steps = [
        "--mode",
        "training",
        "--gradient-accumulation",
        "2",
        "--precision",
        "fp32",
    ];
    lxpod(["compile", TINY, "-q", "-o", &plan].iter().chain(&steps)).succeeds();
    let (of_plan, of_model) = (
        outputs("plan.safetensors", &[&plan, "--model", TINY]),
        outputs("model.safetensors", &[TINY, "--precision", "fp32"]),
    );
    assert!(of_plan.contains_key("loss") && of_plan.keys().eq(of_model.keys()));
    for (name, got) in &of_plan {
        let (got, want) = (
            got.to_f32().expect("floats"),
            of_model[name].to_f32().expect("floats"),
        );
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(
            got.len() == want.len() && got.iter().zip(&want).all(near),
            "{name}"
        );
    }
}

#[test]
fn work_is_that_of_the_rows_computed() {
    let full = flops(&model(&["--batch", "4"]));
    let short = flops(&model(&["--batch", "4", "--lengths", "5,7"]));
    let shared = flops(&model(&["--batch", "4", "--images", "1"]));
    let both = flops(&model(&[
        "--batch",
        "4",
        "--lengths",
        "5,7",
        "--images",
        "1",
    ]));
    assert!(short < full && shared < full && both < short && both < shared);
    let padded = flops(&model(&[
        "--batch",
        "4",
        "--lengths",
        "5,7",
        "--seq-len",
        "24",
    ]));
    assert_eq!(padded, short);
    assert!(flops(&model(&["--batch", "4", "--lengths", "gqa"])) < full);
    let two = flops(&model(&["--batch", "2", "--micro-batch", "1"]));
    assert_eq!(two, flops(&model(&["--batch", "2"])));
}

#[test]
fn medians_are_kept_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder
        .path()
        .join("before.json")
        .to_string_lossy()
        .into_owned();
    for words in [&["model", TINY][..], &["kernels", "layer_norm", "m20"]] {
        let run = |option: &str| {
            let flags = [option, path.as_str()];
            lxpod(["bench"].iter().chain(words).chain(&QUICK).chain(&flags)).succeeds()
        };
        run("--save");
        let compared = run("--baseline");
        assert!(
            compared.contains("as fast") || compared.contains("speed-up"),
            "{compared}"
        );
    }
}

#[test]
fn kernels_are_checked_and_measured() {
    let words = ["bench", "kernels", "attention", "q20", "--json"];
    let document = lxpod(words.iter().chain(&QUICK)).json();
    let kernels = document["kernels"].as_array().expect("kernels");
    assert_eq!(kernels.len(), 4);
    for name in [
        "seconds",
        "gflops",
        "gb_per_second",
        "share_of_peak",
        "share_of_memory",
        "predicted_seconds",
    ] {
        assert!(
            kernels
                .iter()
                .all(|kernel| number(kernel, &format!("/{name}")) > 0.0),
            "{name}"
        );
    }
    for words in [
        &["linear", "768x768", "m12"][..],
        &["layer_norm", "m20"],
        &["gelu", "m20"],
        &["embedding", "f16", "m20"],
    ] {
        lxpod(["bench", "kernels"].iter().chain(&QUICK).chain(words)).succeeds();
    }
    let listed = lxpod(["bench", "kernels", "--list"]).succeeds();
    assert!(listed.lines().count() > 100);
    let shapes = [
        "bench",
        "kernels",
        "--shape",
        "3,40,24",
        "--shape",
        "7,16,1",
        "--dtype",
        "f32",
        "--dtype",
        "f16",
        "--threads",
        "1",
        "--json",
    ];
    let document = lxpod(shapes.iter().chain(&QUICK)).json();
    let names: Vec<_> = document["kernels"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| one["name"].clone())
        .collect();
    assert_eq!(
        names,
        [
            "linear 40x24 f32 m3",
            "linear 40x24 f16 m3",
            "linear 16x1 f32 m7",
            "linear 16x1 f16 m7"
        ]
    );
}

#[test]
fn any_graph_is_a_kernel() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.lx").to_string_lossy().into_owned();
    let compile = ["compile", TINY, "-q", "--emit", &path];
    lxpod(compile.iter().chain(&["--stages", "1"])).succeeds();
    let bench = ["bench", "kernels", &path];
    let document = lxpod(bench.iter().chain(&QUICK).chain(&["--json"])).json();
    assert!(
        document.pointer("/kernels/0/steps/3").is_some(),
        "{document}"
    );
    assert!(
        lxpod(bench.iter().chain(&QUICK))
            .succeeds()
            .contains("layer_norm")
    );
    lxpod(compile).succeeds();
    lxpod(bench).fails(2, &["transfer", "--stages 1"]);
    fs::write(&path, "graph @g {").expect("a file");
    lxpod(bench).fails(2, &["tiny.lx"]);
    fs::write(
        &path,
        "graph @g {\n  %0 = input {name=x} : f32[4]\n  return %0 as \"y\"\n}\n",
    )
    .expect("a file");
    lxpod(bench).fails(3, &["output `y`"]);
}

#[test]
fn the_machine_has_rates() {
    let document = lxpod([
        "bench",
        "machine",
        "--repeat",
        "2",
        "--threads",
        "2",
        "--json",
    ])
    .json();
    assert_eq!(document["threads"], 2);
    for name in [
        "peak_gflops_one_thread",
        "peak_gflops",
        "dram_gb_per_second",
    ] {
        assert!(number(&document, &format!("/{name}")) > 0.0, "{name}");
    }
}

#[test]
fn wrong_use_names_the_flag() {
    let model = |options: &[&str]| lxpod(["bench", "model", TINY].iter().chain(options));
    for lengths in ["0", "x", "3,,4", "gqa,3", ""] {
        model(&["--lengths", lengths]).fails(2, &["--lengths"]);
    }
    model(&["--lengths", "900"]).fails(2, &["--lengths", "900", "--seq-len"]);
    model(&["--images", "0"]).fails(2, &["--images", "at least 1"]);
    model(&["--images", "3", "--batch", "2"]).fails(2, &["--images", "--batch"]);
    model(&["--batch", "99999999999"]).fails(2, &["--batch"]);
    model(&["--lengths", "3", "--inputs", "x.safetensors"]).fails(2, &["--inputs"]);
    model(&["--repeat", "0"]).fails(2, &["--repeat"]);
    let kernels = |options: &[&str]| lxpod(["bench", "kernels"].iter().chain(options));
    for shape in ["0,5,x", "1,2", "1,2,3,4", "99999999,1,1", "65536,65536,2"] {
        kernels(&["--shape", shape]).fails(2, &["--shape"]);
    }
    kernels(&["--shape", "1,2,3", "--dtype", "i32"]).fails(2, &["--dtype", "f16 or f32"]);
    kernels(&["--dtype", "f16"]).fails(2, &["--shape"]);
    kernels(&["fft"]).fails(2, &["--list"]);
    kernels(&["no/such.lx"]).fails(2, &["no/such.lx"]);
    lxpod(["bench", "machine", "--repeat", "0"]).fails(2, &["--repeat"]);
}
