//! Exploring how a model shards: other people's configurations, placements by hand, what-ifs, sweeps, differences.

use std::fs;

use serde_json::{Value, json};

use super::support::{TINY, folder_with, lxpod};
use super::{number, tiny_plan};

/// The options of a step of optimum-graphcore's run, on tiles large enough for the state of the optimiser.
const SEED: [&str; 12] = [
    "--mode",
    "training",
    "--seq-len",
    "512",
    "--replicas",
    "4",
    "--gradient-accumulation",
    "8",
    "--recompute",
    "layer",
    "--set",
    "tile.memory=4Gi",
];

#[test]
fn an_ipu_config_fills_in_what_is_not_given() {
    let text = json!({
        "replication_factor": 2, "inference_replication_factor": 4, "ipus_per_replica": 3,
        "gradient_accumulation_steps": 6, "inference_device_iterations": 5, "layers_per_ipu": [1],
        "recompute_checkpoint_every_layer": true, "enable_half_first_order_momentum": true,
        "matmul_proportion": 0.2, "seed": 42,
    });
    let (folder, path) = folder_with("ipu_config.json", &text.to_string());
    let document =
        |options: &[&str]| lxpod(["simulate", TINY, "--json"].iter().chain(options)).json();
    let inference = document(&["--ipu-config", &path]);
    assert_eq!(
        (&inference["replicas"], &inference["stages"]),
        (&4.into(), &3.into())
    );
    assert_eq!(inference["gradient_accumulation"], 5);
    let folder = folder.path().to_string_lossy().into_owned();
    let training = ["--mode", "training", "--ipu-config", &folder];
    let found = document(&training);
    assert_eq!(
        (&found["replicas"], &found["stages"]),
        (&2.into(), &3.into())
    );
    assert_eq!(
        (&found["gradient_accumulation"], &found["recompute"]),
        (&6.into(), &"layer".into())
    );
    let given = [
        "--stages",
        "2",
        "--recompute",
        "none",
        "--gradient-accumulation",
        "4",
    ];
    let given = document(&[&training[..], &given].concat());
    assert_eq!(
        (&given["replicas"], &given["stages"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        (&given["gradient_accumulation"], &given["recompute"]),
        (&4.into(), &"none".into())
    );
    let moments = |document: &Value| number(document, "/tiles/0/memory/optimizer");
    let full = document(&[
        "--mode",
        "training",
        "--replicas",
        "2",
        "--stages",
        "3",
        "--gradient-accumulation",
        "6",
        "--recompute",
        "layer",
    ]);
    assert!(moments(&found) < moments(&full), "the first moment is f16");
    let (_, notes) = lxpod(["compile", TINY, "--ipu-config", &path]).both();
    for word in ["without effect", "matmul_proportion", "layers_per_ipu"] {
        assert!(notes.contains(word), "{notes}");
    }
}

#[test]
fn wrong_ipu_configs_name_file_and_key() {
    let cases = [
        (
            r#"{"layer_per_ipu": [4]}"#,
            vec!["layer_per_ipu", "`layers_per_ipu`"],
        ),
        (
            r#"{"layers_per_ipu": [1, 2], "ipus_per_replica": 2}"#,
            vec!["layers_per_ipu", "places 3 layers"],
        ),
        (
            r#"{"layers_per_ipu": [1, 2]}"#,
            vec!["layers_per_ipu", "places 3 layers"],
        ),
        (r#"{"ipus_per_replica": 17}"#, vec!["17"]),
        ("nothing", vec!["contents"]),
    ];
    for (text, words) in cases {
        let (_folder, path) = folder_with("own.json", text);
        let words: Vec<&str> = words.into_iter().collect();
        lxpod(["compile", "lxmert-base", "--ipu-config", &path]).fails(2, &words);
    }
    lxpod(["compile", TINY, "--ipu-config", "no/such/file"]).fails(2, &["no/such/file"]);
    let (_folder, plan) = tiny_plan(&[]);
    let (_folder, path) = folder_with("own.json", r#"{"ipus_per_replica": 2}"#);
    lxpod(["simulate", &plan, "--ipu-config", &path]).fails(2, &["settled", "--ipu-config"]);
}

#[test]
fn layers_of_each_ipu_pin_the_placement() {
    let (_folder, path) = folder_with(
        "own.json",
        r#"{"layers_per_ipu": [9, -1, 5], "ipus_per_replica": 3}"#,
    );
    let document = lxpod(["compile", "lxmert-base", "--ipu-config", &path, "--json"]).json();
    let scopes = |stage: usize| document["tiles"][stage]["scopes"].to_string();
    assert!(
        scopes(0).contains("embeddings") && scopes(0).contains("encoder.layer.8"),
        "{}",
        scopes(0)
    );
    assert!(
        scopes(1).contains("r_layers.0") && !scopes(1).contains("encoder.layer"),
        "{}",
        scopes(1)
    );
    assert!(
        scopes(2).contains("x_layers.0") && scopes(2).contains("answer_head"),
        "{}",
        scopes(2)
    );
    assert!(number(&document, "/placement/objective_ratio") > 1.0);
    let other = lxpod([
        "compile",
        "lxmert-base",
        "--ipu-config",
        &path,
        "--stages",
        "4",
    ]);
    assert!(other.both().1.contains("gives way to --stages"));
}

/// The promise of the planner: what people placed by hand it places better.
#[test]
fn the_automatic_plan_beats_the_placement_by_hand() {
    let options = ["--place", "graphcore", "--json"];
    let document = lxpod(
        ["simulate", "lxmert-base"]
            .iter()
            .chain(&SEED)
            .chain(&options),
    )
    .json();
    assert_eq!(document["stages"], 4);
    assert_eq!(document["partition"]["optimal"], false);
    let ratio = number(&document, "/placement/step_ratio");
    assert!(ratio > 1.3, "{ratio}");
    let by_hand = number(&document, "/placement/by_hand/step_seconds");
    assert_eq!(by_hand, number(&document, "/predicted/step_seconds"));
    let own = lxpod(
        ["simulate", "lxmert-base", "--stages", "4", "--json"]
            .iter()
            .chain(&SEED),
    )
    .json();
    let automatic = number(&document, "/placement/automatic/step_seconds");
    assert_eq!(automatic, number(&own, "/predicted/step_seconds"));
}

#[test]
fn placements_that_are_none_say_why() {
    let place = |text: &str, words: &[&str]| {
        let (_folder, path) = folder_with("own.toml", text);
        lxpod(["compile", TINY, "--place", &path]).fails(2, words);
    };
    place(
        "stages = [[\"lxmert.encoder.x_layers\"], [\"lxmert.encoder.layer\"]]",
        &["not contiguous", "x_layers"],
    );
    place(
        "stages = [[\"lxmert.encoder.y_layers\"]]",
        &["y_layers", "lxmert.encoder.r_layers"],
    );
    place("stages = [[\"lxmert\"], [\"lxmert\"]]", &["`lxmert` twice"]);
    place("stages = 3", &["own.toml", "stages"]);
    place("tiles = []", &["own.toml"]);
    lxpod(["compile", TINY, "--place", "seed"]).fails(2, &["--place", "graphcore"]);
    lxpod(["compile", TINY, "--place", "graphcore", "--stages", "3"]).fails(2, &["4 stages", "3"]);
    let (_folder, plan) = tiny_plan(&[]);
    lxpod(["simulate", &plan, "--place", "graphcore"]).fails(2, &["--place"]);
}

#[test]
fn a_placed_plan_runs_to_the_same_bits() {
    let inputs = format!("{TINY}/inputs.safetensors");
    let sides = [
        format!("{TINY} --place graphcore"),
        format!("{TINY} --stages 3"),
    ];
    let line = ["compare", &sides[0], &sides[1], "--inputs", &inputs];
    let document = lxpod(line.into_iter().chain(["--json"])).json();
    assert_eq!(document["equal"], true);
}

#[test]
fn what_ifs_change_the_target_and_its_name() {
    let cycles = |options: &[&str]| {
        let document = lxpod(["compile", "lxmert-base", "--json"].iter().chain(options)).json();
        (
            number(&document, "/partition/objective_cycles"),
            document["target"].clone(),
        )
    };
    let (plain, _) = cycles(&[]);
    let (faster, name) = cycles(&["--set", "link.gbps=640", "--set", "link.latency_seconds=0"]);
    assert!(faster < plain, "{faster} {plain}");
    assert_eq!(name, "pod16 link.gbps=640 link.latency_seconds=0");
    lxpod(["compile", TINY, "--set", "link.speed=3"])
        .fails(2, &["--set", "link.speed", "tile.core_memory"]);
    lxpod(["compile", TINY, "--set", "tiles=0"]).fails(2, &["--set", "tiles"]);
    lxpod(["compile", TINY, "--set", "tiles"]).fails(2, &["--set", "FIELD=VALUE"]);
}

#[test]
fn sweeps_have_a_row_for_each_combination() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder
        .path()
        .join("sweep.csv")
        .to_string_lossy()
        .into_owned();
    let sweep = [
        "--sweep",
        "stages=1,4,17",
        "--sweep",
        "set.link.gbps=16,32",
        "--json",
        "--csv",
        &path,
    ];
    let document = lxpod(["simulate", TINY].iter().chain(&sweep)).json();
    let rows = document["rows"].as_array().expect("rows");
    let order: Vec<_> = rows
        .iter()
        .map(|row| (row["stages"].clone(), row["set.link.gbps"].clone()))
        .collect();
    assert_eq!(order.len(), 6);
    assert_eq!(order[1], (json!("1"), json!("32")));
    for row in &rows[..4] {
        assert_eq!(row["fits"], true);
        let alone = [
            "--stages",
            row["stages"].as_str().expect("text"),
            "--json",
            "--set",
        ];
        let set = format!("link.gbps={}", row["set.link.gbps"].as_str().expect("text"));
        let alone = lxpod(
            ["simulate", TINY]
                .into_iter()
                .chain(alone)
                .chain([set.as_str()]),
        )
        .json();
        assert_eq!(row["step_seconds"], alone["predicted"]["step_seconds"]);
    }
    assert_eq!(rows[4]["fits"], false);
    assert!(
        rows[4]["why"]
            .as_str()
            .is_some_and(|why| why.contains("--stages"))
    );
    let text = fs::read_to_string(&path).expect("a file");
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(lines.len(), 1 + 6 + 1);
    assert!(lines[0].starts_with("stages,set.link.gbps,fits,samples_per_second,"));
    assert!(lines[6].starts_with("17,32,false,,"));
    let again = lxpod(["simulate", TINY, "--threads", "1"].iter().chain(&sweep)).json();
    assert_eq!(document, again);
    for wrong in [
        ["--sweep", "speed=1"],
        ["--sweep", "stages="],
        ["--csv", "x.csv"],
    ] {
        lxpod(["simulate", TINY].iter().chain(&wrong)).fails(2, &[wrong[0]]);
    }
    let (_folder, plan) = tiny_plan(&[]);
    lxpod(["simulate", &plan, "--sweep", "stages=1"]).fails(2, &["--sweep", "model"]);
}

#[test]
fn diff_says_what_moved_and_what_it_costs() {
    let (_folder, plan) = tiny_plan(&["--stages", "2"]);
    let same = lxpod(["diff", &plan, &format!("{TINY} --stages 2"), "--json"]).json();
    assert_eq!(same["options"], json!([]));
    assert_eq!(
        (&same["moved"], &same["predicted"]["step_ratio"]),
        (&json!([]), &json!(1.0))
    );
    let other = format!("{TINY} --stages 3 --set link.gbps=8");
    let document = lxpod(["diff", &plan, &other, "--json"]).json();
    let options = document["options"].as_array().expect("options");
    let option = |name: &str| {
        options
            .iter()
            .find(|option| option["option"] == name)
            .cloned()
    };
    assert_eq!(
        option("stages"),
        Some(json!({"option": "stages", "a": 2, "b": 3}))
    );
    assert!(option("target.link.bytes_per_second").is_some());
    let moved = document["moved"].as_array().expect("moves");
    assert!(moved.iter().any(|moved| moved["to"] == 2));
    let operators: u64 = moved
        .iter()
        .filter_map(|moved| moved["operators"].as_u64())
        .sum();
    assert!(operators > 0 && document["stayed"].as_u64() > Some(0));
    assert_eq!(document["tiles"][2]["a"], Value::Null);
    let alone = lxpod(["simulate", &plan, "--json"]).json();
    assert_eq!(
        document["predicted"]["a"]["step_seconds"],
        alone["predicted"]["step_seconds"]
    );
    for tile in 0..2 {
        assert_eq!(
            document["tiles"][tile]["a"]["cycles"],
            alone["tiles"][tile]["cycles"]
        );
    }
    let shown = lxpod(["diff", &plan, &other]).succeeds();
    for word in ["from tile", "B takes", "stages"] {
        assert!(shown.contains(word), "{shown}");
    }
    lxpod(["diff", &plan, "no/model"]).fails(2, &["no/model"]);
    lxpod(["diff", &plan, &format!("{TINY} --stages two")]).fails(2, &["B:", "--stages"]);
    lxpod(["diff", &format!("{plan} --stages 3"), &plan]).fails(2, &["--stages"]);
}

#[test]
fn inspect_says_why_the_cuts_are_where_they_are() {
    let document = lxpod(["inspect", "lxmert-base", "--why", "--stages", "4", "--json"]).json();
    let objective = number(&document, "/partition/objective_cycles");
    assert_eq!(number(&document, "/slowest/cycles"), objective);
    let cuts = document["cuts"].as_array().expect("cuts");
    assert_eq!(cuts.len(), 3);
    for cut in cuts {
        let found = [&cut["earlier"], &cut["later"]];
        assert!(found.iter().any(|moved| !moved.is_null()));
        for moved in found.into_iter().filter(|moved| !moved.is_null()) {
            assert!(number(moved, "/objective_cycles") >= objective);
        }
    }
    let shown = lxpod(["inspect", "lxmert-base", "--why", "--stages", "4"]).succeeds();
    for word in ["slowest", "bound", "0 | 1", "largest operators"] {
        assert!(shown.contains(word), "{shown}");
    }
    let (_folder, plan) = tiny_plan(&[]);
    lxpod(["inspect", &plan, "--why"]).fails(2, &["--why", "model"]);
    lxpod(["inspect", TINY, "--stages", "2"]).fails(2, &["--stages", "--why"]);
    lxpod(["inspect", &plan, "--tile", "0", "--stages", "2"]).fails(2, &["--stages"]);
    let tile = lxpod(["inspect", TINY, "--tile", "1", "--stages", "2", "--json"]).json();
    assert_eq!(tile["stage"], 1);
}

#[test]
fn a_plan_that_does_not_fit_says_what_would() {
    let options = [
        "--mode",
        "training",
        "--stages",
        "2",
        "--gradient-accumulation",
        "16",
        "--micro-batch",
        "64",
        "--set",
        "tile.code=0",
        "--set",
        "tile.reserved=0",
        "--set",
        "tile.memory=24Mi",
    ];
    let line = || ["compile", TINY].into_iter().chain(options);
    lxpod(line()).fails(
        2,
        &[
            "out of memory: tile",
            "too little",
            "stash",
            "--schedule 1f1b",
            "predicted",
        ],
    );
    let document = lxpod(line().chain(["--json"])).fails_with_json(2);
    let error = &document["error"];
    assert_eq!(error["kind"], "out_of_memory");
    assert_eq!(
        number(error, "/needed") - number(error, "/capacity"),
        number(error, "/missing")
    );
    assert!(error["largest"][0]["scope"].is_string());
    let changes = error["changes"].as_array().expect("changes");
    let mut times = changes
        .iter()
        .map(|change| number(change, "/time_per_sample"));
    assert!(times.clone().is_sorted() && times.all(|time| time > 0.0));
    for change in changes {
        let words: Vec<&str> = change["options"]
            .as_str()
            .expect("text")
            .split(' ')
            .collect();
        // What a change says takes the place of what was given.
        let given = options
            .chunks(2)
            .filter(|given| given[0] == "--set" || !words.contains(&given[0]));
        let line = ["compile", TINY]
            .into_iter()
            .chain(given.flatten().copied());
        lxpod(line.chain(words.iter().copied())).succeeds();
    }
}

#[test]
fn stages_on_branches_are_judged_beside_a_chain() {
    let base = ["compile", "lxmert-base", "--stages", "8", "--json"];
    let document = lxpod(base.iter().chain(&["--branches"])).json();
    assert!(number(&document, "/longest_path") < 8.0);
    assert_eq!(document["partition"]["optimal"], true);
    let ratio = number(&document, "/branches/step_ratio");
    assert!(ratio > 1.1, "{ratio}");
    let own = number(&document, "/branches/branches/step_seconds");
    assert_eq!(own, number(&document, "/predicted/step_seconds"));
    let chain = lxpod(base).json();
    assert_eq!(number(&chain, "/longest_path"), 8.0);
    let judged = number(&document, "/branches/chain/step_seconds");
    assert_eq!(judged, number(&chain, "/predicted/step_seconds"));
    let first = |document: &Value| {
        let tiles = document["tiles"].as_array().expect("tiles");
        tiles
            .iter()
            .filter(|tile| tile["after"] == json!([]))
            .count()
    };
    assert!(
        first(&document) > first(&chain),
        "two towers begin by themselves"
    );
}

#[test]
fn branches_are_refused_where_they_mean_nothing() {
    lxpod(["compile", TINY, "--branches", "--auto"]).fails(2, &["--branches", "--auto"]);
    let interleaved = [
        "--mode",
        "training",
        "--schedule",
        "interleaved",
        "--branches",
    ];
    lxpod(["compile", TINY].iter().chain(&interleaved)).fails(2, &["--branches", "1f1b"]);
    let (_folder, plan) = tiny_plan(&["--stages", "2"]);
    lxpod(["simulate", &plan, "--branches"]).fails(2, &["settled", "--branches"]);
    let (folder, plan) = tiny_plan(&["--stages", "4", "--branches"]);
    let shown = lxpod(["inspect", &plan]).both().0;
    assert!(shown.contains("longest path"), "{shown}");
    let certificate = folder.path().join("split.json");
    let certificate = certificate.to_string_lossy();
    lxpod([
        "compile",
        TINY,
        "--stages",
        "4",
        "--branches",
        "--certificate",
        &certificate,
    ])
    .succeeds();
    lxpod(["solve", "check", &certificate]).succeeds();
}
