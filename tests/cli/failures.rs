//! Wrong use: exit codes, and messages that name the file, the field and the way out.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use super::support::{TINY, lxpod};
use super::tiny_plan;

const INPUTS: &str = "tests/golden/qa_tiny/inputs.safetensors";

#[test]
fn wrong_arguments_are_the_users() {
    lxpod([""; 0]).fails(2, &["Usage"]);
    lxpod(["frobnicate"]).fails(2, &["frobnicate"]);
    lxpod(["compile"]).fails(2, &["MODEL"]);
    lxpod(["compile", TINY, "--stages", "0"]).fails(2, &["--stages", "at least 1"]);
    lxpod(["compile", TINY, "--stages", "17"]).fails(2, &["--stages", "16"]);
    lxpod(["compile", TINY, "--replicas", "99"]).fails(2, &["--replicas"]);
    lxpod(["compile", TINY, "--micro-batch", "-3"]).fails(2, &[]);
    lxpod(["compile", TINY, "--threads", "0"]).fails(2, &["--threads"]);
    lxpod(["compile", TINY, "--precision", "fp8"]).fails(2, &["fp32 or mixed"]);
    lxpod(["compile", TINY, "--task", "vqa"]).fails(2, &["pretraining"]);
    lxpod(["compile", TINY, "--target", "pod17"]).fails(2, &["--target", "pod16"]);
    lxpod(["compile", TINY, "--emit", "graph.png"]).fails(2, &[".dot"]);
    lxpod(["compile", TINY, "--emit", "ir", "--json"]).fails(2, &["--emit"]);
    lxpod(["compile", TINY, "--print-after", "magic"]).fails(2, &["magic", "cse"]);
    lxpod(["compile", TINY, "--task", "base", "--loss", "bce"]).fails(2, &["--loss"]);
    lxpod(["simulate", TINY, "--gradient-accumulation", "1000000"])
        .fails(2, &["--gradient-accumulation"]);
    lxpod([
        "opt",
        "tests/filetests/cse/repeated.lx",
        "--passes",
        "magic",
    ])
    .fails(2, &["--passes", "cse"]);
    lxpod(["inspect", TINY, "--tile", "16"]).fails(2, &["--tile", "0 to 15"]);
    lxpod(["inspect", "tests/filetests/cse/repeated.lx", "--tile", "1"]).fails(2, &["--tile"]);
}

#[test]
fn what_is_not_there_yet_says_so() {
    let options: [&[&str]; 5] = [
        &["--recompute", "layer"],
        &["--recompute", "auto"],
        &["--schedule", "interleaved"],
        &["--schedule", "popart"],
        &["--chunks", "2"],
    ];
    for option in options {
        lxpod(["compile", TINY].iter().chain(option)).fails(3, &["not supported", option[0]]);
    }
    lxpod([
        "run",
        TINY,
        "--inputs",
        INPUTS,
        "--gradients",
        "g.safetensors",
    ])
    .fails(2, &["--gradients", "--mode training"]);
}

#[test]
fn sizes_beyond_the_model_or_the_target_name_the_flag() {
    lxpod(["compile", "lxmert-base", "--seq-len", "513"]).fails(2, &["--seq-len", "512"]);
    lxpod(["compile", "lxmert-base", "--micro-batch", "99999999999"]).fails(2, &["--micro-batch"]);
    lxpod(["compile", "lxmert-base", "--micro-batch", "500000"]).fails(2, &[]);
    lxpod(["compile", "lxmert-base", "--micro-batch", "20000"]).fails(2, &["bytes"]);
}

#[test]
fn missing_and_broken_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    lxpod(["compile", "no/such/model"]).fails(2, &["no/such/model"]);
    lxpod(["compile", &path("nothing")]).fails(2, &["nothing"]);
    lxpod(["compile", &path("")]).fails(2, &["config.json"]);
    lxpod(["simulate", &path("nothing.plan")]).fails(2, &["nothing.plan"]);
    lxpod(["inspect", &path("nothing.lx")]).fails(2, &["nothing.lx"]);
    lxpod(["opt", &path("nothing.lx")]).fails(2, &["nothing.lx"]);
    lxpod(["run", TINY, "--inputs", &path("in.safetensors")]).fails(2, &["in.safetensors"]);
    lxpod(["compile", TINY, "-o", &path("no/folder.plan")]).fails(2, &["folder.plan"]);
    fs::write(path("config.json"), "{\"hidden_size\": \"wide\"}").expect("a file");
    lxpod(["compile", &path("")]).fails(2, &["config.json", "hidden_size"]);
    fs::write(path("config.json"), "{\"hidden_act\": \"mish\"}").expect("a file");
    lxpod(["compile", &path("")]).fails(3, &["config.json", "hidden_act"]);
    fs::write(path("config.json"), "{").expect("a file");
    lxpod(["compile", &path("")]).fails(2, &["config.json", "line 1"]);
    fs::write(path("t.toml"), "name = 3").expect("a file");
    lxpod(["compile", TINY, "--target", &path("t.toml")]).fails(2, &["t.toml", "name"]);
    lxpod(["compile", TINY, "--target", &path("u.toml")]).fails(2, &["u.toml"]);
}

#[test]
fn a_target_may_be_a_file() {
    let target = lxpod([
        "compile",
        TINY,
        "--target",
        "ir/targets/pod4.toml",
        "--json",
    ])
    .json();
    assert_eq!(target["tiles"].as_array().map(Vec::len), Some(4));
}

#[test]
fn damaged_plans_are_refused() {
    let (folder, path) = tiny_plan(&["--stages", "2"]);
    let plan = fs::read(&path).expect("a plan");
    let damaged = folder.path().join("damaged.plan");
    let refuse = |bytes: &[u8]| {
        fs::write(&damaged, bytes).expect("a file");
        for command in ["simulate", "inspect"] {
            lxpod([command, &damaged.to_string_lossy()]).fails(2, &["damaged.plan", "compile"]);
        }
    };
    for at in [0, 12, 40, plan.len() / 2, plan.len() - 1] {
        let mut bytes = plan.clone();
        bytes[at] ^= 1;
        refuse(&bytes);
    }
    for length in [0, 5, 50, 100, plan.len() / 2, plan.len() - 1] {
        refuse(&plan[..length]);
    }
    refuse(&[plan.as_slice(), b"\n"].concat());
}

#[test]
fn plans_keep_what_they_settled() {
    let (_folder, path) = tiny_plan(&["--micro-batch", "2", "--seq-len", "4"]);
    lxpod(["simulate", &path, "--stages", "2", "--precision", "fp32"])
        .fails(2, &["--stages", "--precision"]);
    lxpod(["run", &path, "--inputs", INPUTS]).fails(2, &["--model"]);
    lxpod(["run", &path, "--model", TINY, "--inputs", INPUTS]).fails(2, &["--seq-len"]);
    lxpod(["run", &path, "--model", "lxmert-base", "--inputs", INPUTS])
        .fails(2, &["--model", "qa_tiny"]);
    lxpod(["run", TINY, "--model", TINY, "--inputs", INPUTS]).fails(2, &["--model"]);
    lxpod(["compile", &path]).fails(2, &["tiny.plan"]);
}

#[test]
fn errors_in_graphs_show_the_line() {
    lxpod(["opt", "tests/filetests/parse/unknown_op.lx"]).fails(2, &["unknown_op.lx:4", "softmax"]);
    lxpod(["inspect", "tests/filetests/verify/stages.lx"])
        .fails(2, &["stages.lx:5", "stages.lx:8"]);
}

#[test]
fn a_reader_may_stop_reading() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lxpod"))
        .args(["compile", "lxmert-base", "--emit", "ir"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut byte = [0];
    child
        .stdout
        .take()
        .expect("a pipe")
        .read_exact(&mut byte)
        .expect("some output");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{:?}", output.status);
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_the_systems_failure() {
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("a device");
    let status = Command::new(env!("CARGO_BIN_EXE_lxpod"))
        .args(["--version"])
        .stdout(full)
        .stderr(Stdio::null())
        .status()
        .expect("the binary runs");
    assert_eq!(status.code(), Some(74));
    lxpod(["compile", TINY, "-o", "/dev/full", "-q"]).fails(74, &["/dev/full"]);
}
