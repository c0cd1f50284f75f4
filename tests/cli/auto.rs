//! `--auto`: what is searched and kept, what is printed, where it is refused.

use serde_json::Value;

use crate::support::{TINY, lxpod};

/// Searches for a training step of the small model.
fn searched(options: &[&str]) -> Value {
    let command = ["compile", TINY, "--mode", "training", "--auto", "--json"];
    lxpod(command.iter().chain(options)).json()
}

#[test]
fn the_plan_is_the_best_of_the_front() {
    let found = searched(&["--global-batch", "32", "--target", "pod4"]);
    let (auto, best) = (&found["auto"], &found["auto"]["best"]);
    for option in ["replicas", "micro_batch", "schedule"] {
        assert_eq!(found[option], best[option], "{option}");
    }
    assert_eq!(found["gradient_accumulation"], best["accumulation"]);
    let rate = |of: &Value| of["samples_per_second"].as_f64().expect("a rate");
    assert!((rate(&found["predicted"]) / rate(best) - 1.0).abs() < 1e-9);
    let tiles = found["tiles"].as_array().expect("tiles");
    let fullest = tiles.iter().map(|tile| tile["memory"]["total"].as_u64());
    assert_eq!(fullest.max().flatten(), best["tile_bytes"].as_u64());
    let front = auto["front"].as_array().expect("a front");
    assert!(front.contains(best));
    assert!(
        front
            .iter()
            .all(|one| one["global_batch"] == 32 && rate(one) <= rate(best))
    );
    assert_eq!(auto["proven"], true);
    let rivals = auto["rivals"].as_array().expect("rivals");
    assert!(!rivals.is_empty() && rivals.iter().all(|rival| rival["lost"].is_string()));
}

#[test]
fn what_is_given_is_kept_and_the_result_depends_on_no_thread() {
    let options = ["--stages", "2", "--micro-batch", "4", "--target", "pod4"];
    let options = |threads| [&options[..], &["--threads", threads]].concat();
    let (one, two) = (searched(&options("1")), searched(&options("2")));
    for field in ["best", "front", "rivals", "compiled"] {
        assert_eq!(one["auto"][field], two["auto"][field]);
    }
    assert_eq!(
        (&one["stages"], &one["micro_batch"]),
        (&2.into(), &4.into())
    );
}

#[test]
fn sharing_out_states_is_searched_unless_it_is_given() {
    let options = [
        "--global-batch",
        "16",
        "--target",
        "pod4",
        "--replicas",
        "2",
    ];
    let found = searched(&options);
    let rivals = found["auto"]["rivals"].as_array().expect("rivals");
    let option = |rival: &&Value| rival["option"] == "replicated_tensor_sharding";
    let best = &found["auto"]["best"]["replicated_tensor_sharding"];
    assert!(best.is_boolean() && rivals.iter().any(|rival| option(&rival)));
    let given = searched(&[&options[..], &["--replicated-tensor-sharding"]].concat());
    assert_eq!(given["replicated_tensor_sharding"], true);
    let front = given["auto"]["front"].as_array().expect("a front");
    let shared = |one: &Value| one["replicated_tensor_sharding"] == true;
    assert!(front.iter().all(shared));
}

#[test]
fn people_see_the_front_and_why_the_others_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("found.plan");
    let path = path.to_string_lossy();
    let command = ["compile", TINY, "--auto", "--target", "pod4", "-o", &path];
    let shown = lxpod(command).succeeds();
    for words in [
        "search",
        "chosen",
        "no other is faster",
        "global batch",
        "lost because",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    lxpod(["inspect", &path]).succeeds();
    let simulated = lxpod(["simulate", TINY, "--auto", "--target", "pod4", "--json"]).json();
    assert!(simulated["auto"]["best"].is_object());
}

#[test]
fn interleaved_stages_are_reported_one_by_one() {
    let options = ["--schedule", "interleaved", "--gradient-accumulation", "2"];
    let command = [
        "compile", TINY, "--mode", "training", "--target", "pod4", "--stages", "2",
    ];
    let command = [&command[..], &options[..]].concat();
    let found = lxpod([&command[..], &["--json"]].concat()).json();
    let tiles = found["tiles"].as_array().expect("tiles");
    let stage = |tile: &Value| (tile["stage"].as_u64(), tile["tile"].as_u64());
    let expected = [(0, 0), (1, 1), (2, 0), (3, 1)].map(|(s, t)| (Some(s), Some(t)));
    assert_eq!(tiles.iter().map(stage).collect::<Vec<_>>(), expected);
    assert!(lxpod(command).succeeds().contains("interleaved"));
}

#[test]
fn what_does_not_go_together_is_refused() {
    lxpod(["compile", TINY, "--global-batch", "8"]).fails(2, &["--auto"]);
    let seven = [
        "compile",
        TINY,
        "--auto",
        "--global-batch",
        "7",
        "--micro-batch",
        "2",
    ];
    lxpod(seven).fails(2, &["--auto", "a global batch of 7"]);
    lxpod(["compile", TINY, "--auto", "--stages", "17"]).fails(2, &["--stages"]);
    lxpod(["compile", TINY, "--auto", "--place", "graphcore"]).fails(2, &["--auto", "--place"]);
    let sweep = ["simulate", TINY, "--auto", "--sweep", "stages=1,2"];
    lxpod(sweep).fails(2, &["--sweep", "--auto"]);
    let run = [
        "run",
        TINY,
        "--auto",
        "--inputs",
        "tests/golden/qa_tiny/inputs.safetensors",
    ];
    lxpod(run).fails(3, &["--auto", "FILE.plan"]);
}
