//! `solve`: both formats, certificates, limits, and what is wrong with a file.

use std::fs;

use serde_json::Value;

use super::number;
use super::support::{TINY, folder_with, lxpod};

const BERT: &str = "runtime/tests/data/partition/bert24_inference.json";
const TRAINING: &str = "runtime/tests/data/partition/bert24_training.json";
const EXPERT: &str = "runtime/tests/data/partition/bert24_inference_expert.json";
const BUFFERS: &str = "passes/tests/data/input.12.csv";

fn numbers(document: &Value, name: &str) -> Vec<u64> {
    let list = document[name].as_array().expect(name);
    list.iter().map(|n| n.as_u64().expect(name)).collect()
}

#[test]
fn a_partition_gives_the_documented_json() {
    let found = lxpod(["solve", "partition", TRAINING, "--json"]).json();
    assert!((number(&found, "/objective") - 41.745_812_5).abs() < 1e-6);
    assert_eq!(found["objective"], found["lower_bound"]);
    assert_eq!(found["optimal"], true);
    assert!(number(&found, "/seconds") >= 0.0);
    let assignment = numbers(&found, "assignment");
    assert_eq!(assignment.len(), 64);
    assert!(assignment.iter().all(|&device| device < 7));
    let loads = found["devices"].as_array().expect("devices");
    let largest = loads.iter().map(|d| number(d, "/load")).fold(0.0, f64::max);
    assert_eq!(largest, number(&found, "/objective"));
}

#[test]
fn devices_and_capacity_replace_the_files() {
    let found = lxpod(["solve", "partition", TRAINING, "--devices", "16", "--json"]).json();
    assert!((number(&found, "/objective") - 16.792_812_5).abs() < 1e-6);
    assert!(
        numbers(&found, "assignment")
            .iter()
            .all(|&device| device < 16)
    );
    let tight = ["solve", "partition", BERT, "--devices", "4", "--capacity"];
    let some = lxpod(tight.iter().chain(&["600000000", "--json"])).json();
    let loads = some["devices"].as_array().expect("devices");
    assert!(loads.iter().all(|d| number(d, "/bytes") <= 6e8));
    let words = [
        "bert24_inference.json",
        "maxSizePerFPGA",
        "every split needs",
        "--capacity",
    ];
    lxpod(tight.iter().chain(&["1000"])).fails(2, &words);
}

#[test]
fn an_experts_split_is_compared() {
    let command = ["solve", "partition", BERT, "--evaluate", EXPERT];
    let found = lxpod(command.iter().chain(&["--json"])).json();
    assert!((number(&found, "/evaluated/objective") - 20.083_953).abs() < 1e-6);
    let shown = lxpod(command).succeeds();
    assert!(
        shown.contains("1.129 times the result; it fits the memory"),
        "{shown}"
    );
}

#[test]
fn a_certificate_is_checked_and_a_tampered_one_refused() {
    let (_folder, path) = folder_with("bert.cert.json", "");
    lxpod(["solve", "partition", BERT, "--certificate", &path, "-q"]).succeeds();
    let shown = lxpod(["solve", "check", BERT, &path]).succeeds();
    assert!(
        shown.contains("accepted   largest load 17.789906, lower bound 17.789906 (optimal"),
        "{shown}"
    );
    assert_eq!(
        lxpod(["solve", "check", BERT, &path, "--json"]).json()["accepted"],
        true
    );
    let text = fs::read_to_string(&path).expect("a certificate");
    let refuses = |problem: &[&str], text: &str, word: &str| {
        fs::write(&path, text).expect("a file");
        let command = ["solve", "check"].iter().chain(problem);
        lxpod(command.chain(&[path.as_str()])).fails(2, &[word, "bert.cert.json", "help: "]);
    };
    refuses(&[TRAINING], &text, "another problem");
    refuses(&[BERT, "--devices", "3"], &text, "another problem");
    refuses(&[BERT], &text[..text.len() / 2], "is no certificate");
    refuses(&[BERT], "", "is no certificate");
    let changed = |pointer: &str, change: &dyn Fn(&mut Value)| {
        let mut document: Value = serde_json::from_str(&text).expect("JSON");
        change(document.pointer_mut(pointer).expect(pointer));
        document.to_string()
    };
    let raise = |value: &mut Value| *value = Value::from(value.as_u64().expect("a number") + 1);
    refuses(
        &[BERT],
        &changed("/lower_bound", &raise),
        "lower_bound: is above the objective",
    );
    refuses(&[BERT], &changed("/objective", &raise), "objective");
    refuses(&[BERT], &changed("/device_of/0", &raise), "device_of");
    let shorten = |value: &mut Value| drop(value.as_array_mut().expect("a list").remove(0));
    refuses(
        &[BERT],
        &changed("/ideals", &shorten),
        "whose potential is larger",
    );
}

#[test]
fn a_plans_certificate_is_checked_alone_and_a_tampered_one_refused() {
    let (_folder, path) = folder_with("plan.cert.json", "");
    let check = ["solve", "check", path.as_str()];
    for options in [
        &["--stages", "4"][..],
        &[
            "--mode",
            "training",
            "--stages",
            "4",
            "--recompute",
            "layer",
        ],
        &[
            "--mode",
            "training",
            "--stages",
            "2",
            "--gradient-accumulation",
            "4",
        ],
    ] {
        let compile = ["compile", TINY, "--certificate", &path, "--json"];
        let compiled = lxpod(compile.iter().chain(options)).json();
        let checked = lxpod(check.iter().chain(&["--json"])).json();
        assert_eq!(checked["optimal"], true, "{options:?}");
        let slowest = number(&compiled, "/partition/objective_cycles");
        assert_eq!(number(&checked, "/objective"), slowest, "{options:?}");
        assert_eq!(number(&checked, "/lower_bound"), slowest, "{options:?}");
    }
    let shown = lxpod(check).succeeds();
    assert!(shown.contains("accepted   slowest stage "), "{shown}");
    let text = fs::read_to_string(&path).expect("a certificate");
    let refuses = |text: &str, options: &[&str], word: &str| {
        fs::write(&path, text).expect("a file");
        lxpod(check.iter().chain(options)).fails(2, &[word]);
    };
    refuses(
        &text,
        &["--devices", "3"],
        "--devices and --capacity belong to a problem",
    );
    refuses(&text[..text.len() / 2], &[], "is no certificate");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let more = |pointer: &str| {
        let mut changed = document.clone();
        let place = changed.pointer_mut(pointer).expect(pointer);
        *place = Value::from(place.as_u64().expect("a number") + 1);
        changed.to_string()
    };
    refuses(&more("/problem/items/0/cycles"), &[], "another problem");
    refuses(&more("/certificate/objective"), &[], "objective");
    refuses(
        &more("/certificate/lower_bound"),
        &[],
        "lower_bound: is above the objective",
    );
    refuses(&more("/certificate/device_of/0"), &[], "plan.cert.json");
    let mut shorter = document.clone();
    let ideals = shorter.pointer_mut("/certificate/ideals").expect("ideals");
    drop(ideals.as_array_mut().expect("a list").remove(0));
    refuses(&shorter.to_string(), &[], "ideals");
    lxpod(["solve", "check", BERT])
        .fails(2, &["bert24_inference.json", "is no certificate", "help: "]);
}

#[test]
fn memory_gives_the_documented_json() {
    let found = lxpod(["solve", "memory", BUFFERS, "--json"]).json();
    assert_eq!(found["objective"], 12);
    assert_eq!(found["lower_bound"], 12);
    assert_eq!(found["optimal"], true);
    assert!(number(&found, "/seconds") >= 0.0);
    let offsets = numbers(&found, "offsets");
    let text =
        fs::read_to_string(format!("{}/{BUFFERS}", env!("CARGO_MANIFEST_DIR"))).expect("a file");
    let row = |line: &str| -> Vec<u64> {
        // The first column is a name.
        let cells = line.split(',').enumerate();
        let number = |(at, cell): (usize, &str)| if at == 0 { Ok(0) } else { cell.parse() };
        cells.map(|cell| number(cell).expect("a number")).collect()
    };
    let rows: Vec<Vec<u64>> = text.lines().skip(1).map(row).collect();
    assert_eq!(offsets.len(), rows.len());
    for (i, a) in rows.iter().enumerate() {
        assert!(offsets[i] + a[3] <= 12);
        for (j, b) in rows.iter().enumerate().skip(i + 1) {
            let meet = a[1].max(b[1]) < a[2].min(b[2]);
            let apart = offsets[i] + a[3] <= offsets[j] || offsets[j] + b[3] <= offsets[i];
            assert!(!meet || apart, "{i} and {j} overlap");
        }
    }
}

#[test]
fn memory_is_drawn_and_a_capacity_kept() {
    let (_folder, path) = folder_with("picture.svg", "");
    let command = ["solve", "memory", BUFFERS, "--capacity"];
    let shown = lxpod(command.iter().chain(&["12", "--svg", path.as_str()])).succeeds();
    assert!(
        shown.contains("peak 12 bytes, lower bound 12 (optimal)"),
        "{shown}"
    );
    assert!(shown.contains("12 |"), "{shown}");
    let drawn = fs::read_to_string(&path).expect("a drawing");
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
    let words = ["--capacity: no assignment fits 11 bytes; give at least 12"];
    lxpod(command.iter().chain(&["11"])).fails(2, &words);
}

#[test]
fn a_time_limit_of_nothing_still_gives_an_answer() {
    let found = lxpod(["solve", "partition", BERT, "--time-limit", "0", "--json"]).json();
    assert!(number(&found, "/lower_bound") <= number(&found, "/objective"));
    assert_eq!(numbers(&found, "assignment").len(), 32);
    let hard = "passes/tests/data/E.1048576.csv";
    let found = lxpod(["solve", "memory", hard, "--time-limit", "0", "--json"]).json();
    assert_eq!(found["optimal"], false);
    assert!(number(&found, "/lower_bound") < number(&found, "/objective"));
}

#[test]
fn wrong_input_names_file_field_and_way_out() {
    let cases = [
        (
            "partition",
            "x.json",
            "{\"nodes\": [",
            "contents: is not JSON",
        ),
        (
            "partition",
            "x.json",
            "{\"nodes\": []}",
            "has no `maxFPGAs`",
        ),
        (
            "memory",
            "x.csv",
            "id,lower,upper,size\n0,0,3,-1\n",
            "line 2, size: is -1",
        ),
        (
            "memory",
            "x.csv",
            "id,lower,upper,size\n0,0,3",
            "has 3 of 4 columns",
        ),
        (
            "memory",
            "x.csv",
            "id,lower,upper,size\n0,0,3,9223372036854775807\n",
            "exceeds 2^62",
        ),
    ];
    for (what, name, text, want) in cases {
        let (_folder, path) = folder_with(name, text);
        lxpod(["solve", what, &path]).fails(2, &[want, name, "help: "]);
    }
    lxpod(["solve", "memory", "nowhere.csv"]).fails(2, &["no such file"]);
    lxpod(["solve", "partition", BERT, "--devices", "0"]).fails(2, &["--devices"]);
    lxpod(["solve", "memory", BUFFERS, "--time-limit", "nan"]).fails(2, &["--time-limit"]);
}
