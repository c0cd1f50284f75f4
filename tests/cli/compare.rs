//! `lxpod compare`: equal, within a tolerance, different, and wrong use.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lxpod_runtime::read_tensors;
use lxpod_runtime::tensors::write_f32;
use serde_json::Value;

use super::support::{Finished, TINY, lxpod};
use super::{number, tiny_plan};

const INPUTS: &str = "tests/golden/qa_tiny/inputs.safetensors";

fn compare(a: &str, b: &str, options: &[&str]) -> Finished {
    let words = ["compare", a, b, "--inputs", INPUTS];
    lxpod(words.iter().chain(options))
}

/// The small model with options.
fn tiny(options: &str) -> String {
    format!("{TINY} {options}")
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let list = document[list].as_array().expect("a list").iter();
    let name = |entry: &Value| entry["name"].as_str().or(entry.as_str()).map(str::to_owned);
    list.filter_map(name).collect()
}

/// Copies a dump, its order and counts of rows lost, with every float tensor going through `change`.
fn rewrite(from: &Path, to: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let tensors = read_tensors(from).expect("a dump");
    let floats = tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("rows@"));
    let changed: Vec<_> = floats
        .map(|(name, tensor)| {
            let mut values = tensor.to_f32().expect("floats");
            change(name, &mut values);
            (name.as_str(), tensor.shape(), values)
        })
        .collect();
    let tensors = changed
        .iter()
        .map(|(name, shape, values)| (*name, *shape, values.as_slice()));
    write_f32(to, &BTreeMap::new(), tensors).expect("written");
}

#[test]
fn stages_replicas_and_threads_change_no_bit() {
    let (_folder, plan) = tiny_plan(&["--micro-batch", "3", "--seq-len", "11", "--replicas", "2"]);
    let plan = format!("{plan} --model '{TINY}'");
    for (a, b) in [
        (tiny("--stages 1"), tiny("--stages 4")),
        (
            tiny("--stages 16 --precision fp32"),
            tiny("--precision fp32 --replicas 3"),
        ),
        (TINY.to_owned(), plan),
    ] {
        let document = compare(&a, &b, &["--json", "--threads", "2"]).json();
        assert_eq!(document["equal"], true, "{a}, {b}: {document}");
        assert!(document["first_divergence"].is_null());
        assert!(names(&document, "ops").len() > 60);
        assert!(names(&document, "outputs").contains(&"question_answering_score".to_owned()));
        let ops = document["ops"].as_array().expect("ops");
        assert!(
            ops.iter()
                .all(|op| op["differing"] == 0 && op["max_abs"] == 0.0)
        );
    }
    let document = compare(&tiny("--stages 1"), &tiny("--stages 4"), &["--json"]).json();
    assert_eq!(
        names(&document, "only_a").len() + names(&document, "only_b").len(),
        0
    );
    let shown = compare(&tiny("--stages 1"), &tiny("--stages 4"), &[]).succeeds();
    assert!(shown.contains("equal to the bit"), "{shown}");
}

#[test]
fn micro_batches_change_no_bit_of_a_sample() {
    let options = ["--tolerance", "1e-6", "--json"];
    let document = compare(TINY, &tiny("--micro-batch 2"), &options).json();
    let pairs = |list: &str| document[list].as_array().expect("a list").clone();
    let per_sample: Vec<Value> = [pairs("ops"), pairs("outputs")]
        .concat()
        .into_iter()
        .filter(|pair| pair["shape"][0] == 3)
        .collect();
    assert!(per_sample.len() > 60);
    assert!(per_sample.iter().all(|pair| pair["differing"] == 0));
    assert!(
        per_sample
            .iter()
            .any(|pair| pair["name"] == "question_answering_score")
    );
}

#[test]
fn precision_differs_from_the_first_op_on() {
    let (a, b) = (tiny("--precision fp32"), tiny("--precision mixed"));
    let document: Value =
        serde_json::from_str(&compare(&a, &b, &["--json"]).exits(1)).expect("JSON");
    let first = &document["first_divergence"];
    assert_eq!(first["op"], "gather_rows");
    assert_eq!(first["scope"], "lxmert.embeddings");
    assert!(number(first, "/max_abs") > number(first, "/rms") && number(first, "/rms") > 0.0);
    assert!(number(first, "/relative") < 2e-3);
    assert!(first["ulp"].is_null(), "one side is stored in f16");
    assert_eq!(first["worst"].as_array().map(Vec::len), Some(3));
    assert!(!document["outputs"][1]["ulp"].is_null());
    let shown = compare(&a, &b, &[]).exits(1);
    assert!(
        shown.contains("first differ in gather_rows in lxmert.embeddings"),
        "{shown}"
    );
    compare(&a, &b, &["--tolerance", "0.05"]).succeeds();
}

#[test]
fn kernels_are_near_the_definitions() {
    let (a, b) = (
        tiny("--precision fp32 --backend reference"),
        tiny("--precision fp32"),
    );
    let document = compare(&a, &b, &["--tolerance", "1e-5", "--json"]).json();
    assert_eq!(document["within_tolerance"], true);
    assert_eq!(document["equal"], false);
    assert!(names(&document, "ops").len() > 60);
    compare(&a, &b, &[]).exits(1);
    let shown = compare(&a, &b, &["--tolerance", "1e-5"]).succeeds();
    assert!(shown.contains("within 1e-5"), "{shown}");
}

#[test]
fn a_changed_tensor_of_a_dump_is_found() {
    const CHANGED: &str = "lxmert.encoder.layer.1.intermediate.dense/linear.0@text";
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (dump, changed) = (path("dump.safetensors"), path("changed.safetensors"));
    let (file, other) = (dump.to_string_lossy(), changed.to_string_lossy());
    compare(TINY, TINY, &["--dump", &file]).succeeds();
    assert!(
        compare(&file, &tiny("--stages 2"), &[])
            .succeeds()
            .contains("equal to the bit")
    );
    lxpod(["compare", &file, &file]).succeeds();
    rewrite(&dump, &changed, |name, values| {
        if name == CHANGED {
            values[1] += 0.5;
        } else if name == "question_answering_score" {
            values[21] = f32::NAN;
        }
    });
    for (a, b) in [(&file, &other), (&other, &file)] {
        let words = ["compare", a, b, "--json"];
        let document: Value = serde_json::from_str(&lxpod(words).exits(1)).expect("JSON");
        assert_eq!(document["first_divergence"]["name"], CHANGED);
        assert_eq!(document["first_divergence"]["op"], "linear");
        assert_eq!(
            document["first_divergence"]["worst"],
            serde_json::json!([0, 0, 1])
        );
        let score = &document["outputs"][1];
        assert_eq!(score["differing"], 1);
        assert!(score["max_abs"].is_null(), "NaN is beyond every number");
        let side = if *b == other { "b" } else { "a" };
        let found = &document["non_finite"][side];
        assert_eq!(found["name"], "question_answering_score");
        assert_eq!(
            (&found["at"], &found["value"]),
            (&serde_json::json!([1, 1]), &"NaN".into())
        );
    }
    let shown = lxpod(["compare", &*file, &*other]).exits(1);
    assert!(
        shown.contains("first NaN in the output question_answering_score at [1, 1]"),
        "{shown}"
    );
}

#[test]
fn an_infinite_weight_names_the_op_that_meets_it_first() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(format!("{TINY}/{file}"), folder.path().join(file)).expect("a copy");
    }
    let weights = folder.path().join("model.safetensors");
    rewrite(&weights.clone(), &weights, |name, values| {
        if name == "lxmert.encoder.layer.1.intermediate.dense.bias" {
            values[5] = f32::INFINITY;
        }
    });
    let broken = folder.path().to_string_lossy();
    let document: Value =
        serde_json::from_str(&compare(TINY, &broken, &["--json"]).exits(1)).expect("JSON");
    let found = &document["non_finite"]["b"];
    assert_eq!(found["scope"], "lxmert.encoder.layer.1.intermediate.dense");
    assert_eq!(
        (&found["op"], &found["value"]),
        (&"linear".into(), &"inf".into())
    );
    assert_eq!(found["at"], serde_json::json!([0, 0, 5]));
    assert!(document["non_finite"]["a"].is_null());
    assert_eq!(document["first_divergence"]["scope"], found["scope"]);
}

#[test]
fn outputs_of_another_framework_are_compared_by_name() {
    let expected = format!("{TINY}/expected.safetensors");
    let a = tiny("--precision fp32 --output-hidden-states");
    let document = compare(&a, &expected, &["--tolerance", "1e-5", "--json"]).json();
    let outputs = names(&document, "outputs");
    let place = |name: &str| outputs.iter().position(|other| other == name);
    let order = [
        "language_hidden_states.0",
        "language_hidden_states.1",
        "pooled_output",
        "question_answering_score",
        "loss",
    ];
    let places: Vec<_> = order.iter().map(|name| place(name)).collect();
    assert!(places.is_sorted() && places[0].is_some(), "{outputs:?}");
    assert!(names(&document, "ops").is_empty());
}

#[test]
fn wrong_use_names_the_side_and_the_way_out() {
    compare(&tiny("--stages"), TINY, &[]).fails(2, &["A:", "--stages"]);
    compare(TINY, &tiny("--bogus 3"), &[]).fails(2, &["B:", "--bogus"]);
    compare(TINY, "'x", &[]).fails(2, &["B:", "quote"]);
    compare("", TINY, &[]).fails(2, &["A:", "MODEL"]);
    compare(TINY, &tiny("extra"), &[]).fails(2, &["B:", "extra"]);
    compare(TINY, "no/such.plan", &[]).fails(2, &["no/such.plan"]);
    compare(TINY, "no/such.safetensors", &[]).fails(2, &["no/such.safetensors"]);
    compare(TINY, &tiny("--mode training"), &[]).fails(3, &["--mode training"]);
    compare(TINY, &tiny("--stages 17"), &[]).fails(2, &["--stages", "16"]);
    compare(TINY, INPUTS, &[]).fails(2, &["no tensor of the same name"]);
    compare(TINY, TINY, &["--tolerance", "-1"]).fails(2, &["--tolerance"]);
    compare(TINY, TINY, &["--tolerance", "nan"]).fails(2, &["--tolerance"]);
    compare(TINY, TINY, &["--dump", "no/such/folder.safetensors"])
        .fails(2, &["folder.safetensors"]);
    lxpod(["compare", TINY, TINY]).fails(2, &["--inputs"]);
    lxpod(["compare", TINY]).fails(2, &["B"]);
}
