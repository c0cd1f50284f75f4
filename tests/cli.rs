//! The command line: what each command prints and writes, and how it fails.

#[path = "cli/auto.rs"]
mod auto;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/compare.rs"]
mod compare;
#[path = "cli/explore.rs"]
mod explore;
#[path = "cli/failures.rs"]
mod failures;
#[path = "cli/gradients.rs"]
mod gradients;
#[path = "cli/solve.rs"]
mod solve;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/train.rs"]
mod train;
#[path = "cli/train_options.rs"]
mod train_options;
#[path = "cli/train_runs.rs"]
mod train_runs;

use std::fs;

use serde_json::Value;
use support::{TINY, lxpod, text_of};

/// Compiles the small model into a file of a fresh folder.
fn tiny_plan(options: &[&str]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder
        .path()
        .join("tiny.plan")
        .to_string_lossy()
        .into_owned();
    lxpod(["compile", TINY, "-o", &path, "-q"].iter().chain(options)).succeeds();
    (folder, path)
}

/// A graph in which `cse` and `dce` find something.
const REPEATED: &str = "graph @repeated {
  %0 = input {name=x} : f32[4]
  %1 = scale %0 {factor=2.0} : f32[4]
  %2 = scale %0 {factor=2.0} : f32[4]
  %3 = add %1, %2 : f32[4]
  return %3 as \"y\"
}
";

fn number(document: &Value, path: &str) -> f64 {
    let value = document.pointer(path).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("{path} is no number in {document}"))
}

#[test]
fn compile_gives_the_documented_json() {
    let document = lxpod(["compile", "lxmert-base", "--json"]).json();
    let names = [
        "model",
        "target",
        "mode",
        "task",
        "precision",
        "replicas",
        "stages",
        "micro_batch",
        "gradient_accumulation",
        "schedule",
        "recompute",
        "compile_seconds",
        "parameters",
        "flops",
    ];
    for name in names {
        assert!(!document[name].is_null(), "no {name}");
    }
    assert_eq!(document["target"], "pod16");
    assert_eq!(document["task"], "qa");
    assert_eq!(document["precision"], "mixed");
    assert_eq!(number(&document, "/parameters"), 211_952_178.0);
    for name in ["objective_cycles", "lower_bound_cycles", "ideals"] {
        assert!(number(&document["partition"], &format!("/{name}")) > 0.0);
    }
    assert_eq!(document["partition"]["optimal"], true);
    let tiles = document["tiles"].as_array().expect("tiles");
    assert_eq!(tiles.len(), 16);
    for (index, tile) in tiles.iter().enumerate() {
        check_tile(tile, index);
    }
    let flops: f64 = tiles.iter().map(|tile| number(tile, "/flops")).sum();
    assert_eq!(flops, number(&document, "/flops"));
}

fn check_tile(tile: &Value, index: usize) {
    assert_eq!(tile["tile"], index);
    assert_eq!(tile["stage"], index);
    assert_eq!(tile["replica"], 0);
    assert!(!tile["scopes"].as_array().expect("scopes").is_empty());
    for name in ["ops", "parameters", "flops", "cycles", "utilisation"] {
        assert!(
            number(tile, &format!("/{name}")) > 0.0,
            "{name} of tile {index}"
        );
    }
    let memory = [
        "weights",
        "optimizer",
        "accumulators",
        "activations",
        "stash",
        "transfer",
        "host_io",
        "code",
        "reserved",
        "total",
        "capacity",
        "core_max",
        "core_capacity",
        "max_live",
    ];
    for name in memory {
        number(tile, &format!("/memory/{name}"));
    }
    assert!(number(tile, "/memory/total") <= number(tile, "/memory/capacity"));
    assert!(number(tile, "/memory/activations") >= number(tile, "/memory/max_live"));
}

#[test]
fn predictions_add_up() {
    let options = [
        "--stages",
        "4",
        "--replicas",
        "4",
        "--gradient-accumulation",
        "8",
        "--micro-batch",
        "2",
        "--json",
    ];
    let document = lxpod(["simulate", TINY].iter().chain(&options)).json();
    assert_eq!(document["tiles"].as_array().map(Vec::len), Some(16));
    assert_eq!(document["gradient_accumulation"], 8);
    let predicted = &document["predicted"];
    let step = number(predicted, "/step_seconds");
    let parts = [
        "compute",
        "exchange",
        "sync",
        "transfer",
        "fill_flush",
        "weight_update",
        "collectives",
        "host",
    ];
    let total: f64 = parts
        .iter()
        .map(|part| number(predicted, &format!("/breakdown/{part}")))
        .sum();
    assert!(
        (total - step).abs() < 1e-12 * step.max(1.0),
        "{total} {step}"
    );
    let rate = number(predicted, "/samples_per_second");
    assert!((rate * step - 64.0).abs() < 1e-6);
    let bubble = number(predicted, "/bubble_fraction");
    assert!((bubble * step - number(predicted, "/breakdown/fill_flush")).abs() < 1e-12);
    assert!(number(predicted, "/bottleneck_tile") < 4.0);
    let slowest = document["tiles"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tile| number(tile, "/cycles"));
    assert_eq!(
        slowest.fold(0.0, f64::max),
        number(&document, "/partition/objective_cycles")
    );
}

#[test]
fn plan_files_depend_on_nothing_but_their_input() {
    let read = |options: &[&str]| {
        let (_folder, path) = tiny_plan(options);
        fs::read(path).expect("a plan")
    };
    let plan = read(&[]);
    assert!(plan == read(&[]));
    assert!(plan == read(&["--threads", "1"]));
    assert!(
        plan == read(&[
            "--threads",
            "2",
            "--gradient-accumulation",
            "4",
            "--schedule",
            "1f1b"
        ])
    );
    assert!(plan != read(&["--stages", "4"]));
}

#[test]
fn a_plan_simulates_as_its_model_does() {
    let (_folder, path) = tiny_plan(&["--stages", "3"]);
    let of_plan = lxpod(["simulate", &path, "--gradient-accumulation", "5", "--json"]).json();
    let of_model = lxpod([
        "simulate",
        TINY,
        "--stages",
        "3",
        "--gradient-accumulation",
        "5",
        "--json",
    ])
    .json();
    for field in ["predicted", "tiles", "partition", "parameters", "flops"] {
        assert_eq!(of_plan[field], of_model[field], "{field}");
    }
    assert!(of_plan["compile_seconds"].is_null());
}

#[test]
fn simulate_writes_a_trace_and_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (trace, page) = (path("trace.json"), path("page.html"));
    let options = [
        "--stages",
        "2",
        "--steps",
        "3",
        "--gradient-accumulation",
        "4",
        "--explain",
    ];
    let files = ["--trace", trace.as_str(), "--report", page.as_str()];
    let shown = lxpod(["simulate", TINY].iter().chain(&options).chain(&files)).succeeds();
    assert!(
        shown.contains("not calibrated") && shown.contains("poplin"),
        "{shown}"
    );
    let trace: Value = serde_json::from_str(&text_of(&trace)).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let programs: Vec<&Value> = events
        .iter()
        .filter(|event| event["cat"] == "program")
        .collect();
    assert_eq!(programs.len(), 2 * 3 * 4);
    assert!(
        programs
            .iter()
            .all(|event| event["args"]["micro_batch"].is_u64() && event["args"]["cycles"].is_u64())
    );
    let page = text_of(&page);
    assert!(page.contains("<svg") && page.ends_with("</html>\n"));
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "the page stands alone"
    );
}

#[test]
fn emitted_graphs_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (lx, dot, json) = (path("g.lx"), path("g.dot"), path("g.json"));
    let shown = lxpod(["compile", TINY, "--emit", "ir"]).succeeds();
    for file in [&lx, &dot, &json] {
        lxpod(["compile", TINY, "--emit", file, "-q"]).succeeds();
    }
    assert_eq!(shown, text_of(&lx));
    assert_eq!(
        lxpod(["compile", TINY, "--emit", "dot"]).succeeds(),
        text_of(&dot)
    );
    assert!(text_of(&dot).starts_with("digraph"));
    let document: Value = serde_json::from_str(&text_of(&json)).expect("JSON");
    assert!(
        document["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() > 50)
    );
    assert_eq!(lxpod(["opt", &lx, "--verify"]).succeeds(), shown);
    let inspected = lxpod(["inspect", &lx, "--json"]).json();
    assert!((1.0..=16.0).contains(&number(&inspected, "/stages")));
}

#[test]
fn print_after_shows_the_graph_on_standard_error() {
    let (shown, diagnosed) =
        lxpod(["compile", TINY, "--print-after", "fuse-norm", "--json"]).both();
    serde_json::from_str::<Value>(&shown).expect("JSON");
    assert!(
        diagnosed.contains("; after fuse-norm\ngraph @"),
        "{diagnosed}"
    );
}

#[test]
fn opt_runs_the_passes_that_are_named() {
    let file = tempfile::Builder::new()
        .suffix(".lx")
        .tempfile()
        .expect("a file");
    fs::write(file.path(), REPEATED).expect("a file");
    let file = &file.path().to_string_lossy().into_owned();
    let before = lxpod(["opt", file, "--passes", ""]).succeeds();
    assert_eq!(before, REPEATED);
    let after = lxpod(["opt", file, "--passes", "cse, dce"]).succeeds();
    assert!(after.lines().count() < before.lines().count());
    let document = lxpod(["opt", file, "--passes", "cse", "--json"]).json();
    assert_eq!(document["passes"][0]["name"], "cse");
    assert_eq!(
        lxpod(["opt", file]).succeeds().lines().next(),
        before.lines().next()
    );
}

#[test]
fn inspect_shows_models_plans_and_tiles() {
    let model = lxpod(["inspect", "lxmert-base", "--json"]).json();
    assert_eq!(number(&model, "/parameters"), 211_952_178.0);
    assert_eq!(model["config"]["num_qa_labels"], 1842);
    let (_folder, path) = tiny_plan(&["--stages", "3", "--replicas", "2"]);
    let plan = lxpod(["inspect", &path, "--json"]).json();
    assert_eq!(plan["tiles"].as_array().map(Vec::len), Some(6));
    assert_eq!(plan["provenance"]["model"], "qa_tiny");
    let tile = lxpod(["inspect", &path, "--tile", "4", "--json"]).json();
    assert_eq!((&tile["replica"], &tile["stage"]), (&1.into(), &1.into()));
    assert!(
        tile["steps"]
            .as_array()
            .is_some_and(|steps| !steps.is_empty())
    );
    let shown = lxpod(["inspect", &path, "--tile", "4"]).succeeds();
    assert!(shown.contains("memory of activations over steps"));
    let tensors = lxpod(["inspect", &format!("{TINY}/model.safetensors"), "--json"]).json();
    assert!(
        tensors["tensors"]
            .as_array()
            .is_some_and(|tensors| tensors.len() > 100)
    );
    for subject in ["lxmert-base", &path, "tests/filetests/verify/valid.lx"] {
        assert!(!lxpod(["inspect", subject]).succeeds().is_empty());
    }
}

#[test]
fn run_writes_what_transformers_expects() {
    let folder = tempfile::tempdir().expect("a folder");
    let inputs = format!("{TINY}/inputs.safetensors");
    let (_plans, plan) = tiny_plan(&["--precision", "fp32", "--micro-batch", "2"]);
    let subjects: [&[&str]; 3] = [
        &[TINY, "--precision", "fp32"],
        &[TINY, "--precision", "fp32", "--backend", "reference"],
        &[&plan, "--model", TINY],
    ];
    for (index, subject) in subjects.into_iter().enumerate() {
        let path = folder.path().join(format!("{index}.safetensors"));
        let files = [
            "--inputs",
            &inputs,
            "--outputs",
            &path.to_string_lossy(),
            "--json",
        ];
        let document = lxpod(["run"].iter().chain(subject).chain(&files)).json();
        assert!(number(&document, "/measured/seconds") > 0.0);
        assert!(number(&document, "/measured/samples_per_second") > 0.0);
        let ledger = document["measured"]["ledger"].as_array().expect("a ledger");
        assert_eq!(ledger.len(), if index == 1 { 0 } else { 16 });
        support::check_scores(&path, &format!("{TINY}/expected.safetensors"));
    }
}

#[test]
fn the_version_names_the_kernels_if_asked() {
    let version = concat!("lxpod ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(lxpod(["--version"]).succeeds(), version);
    assert!(lxpod(["-v", "--version"]).succeeds().contains("kernels"));
}

#[test]
fn every_command_has_examples() {
    for command in [
        "compile", "run", "compare", "simulate", "bench", "opt", "inspect",
    ] {
        assert!(
            lxpod([command, "--help"]).succeeds().contains("Examples:"),
            "{command}"
        );
    }
}
