//! Files as they were published, and wrong ones.

use super::*;

/// The configuration saved with Graphcore/lxmert-vqa-uncased.
const PUBLISHED: &str = r#"{
  "device_iterations": 2, "embedding_serialization_factor": 0, "enable_half_first_order_momentum": true,
  "enable_half_partials": true, "executable_cache_dir": "./exe_cache", "gradient_accumulation_steps": 8,
  "inference_device_iterations": 4, "inference_replication_factor": 4, "ipus_per_replica": 4,
  "layers_per_ipu": [1], "matmul_proportion": [0.25], "optimizer_state_offchip": true,
  "optimum_version": "1.0.0", "output_mode": "final", "profile_dir": "",
  "recompute_checkpoint_every_layer": true, "replicated_tensor_sharding": true, "replication_factor": 4,
  "seed": 42, "use_popdist": false
}"#;

fn config(text: &str) -> Result<IpuConfig> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(FILE_NAME), text).expect("a file");
    IpuConfig::open(folder.path())
}

fn options(text: &str, training: bool) -> IpuOptions {
    let found = config(text).expect("a file").options(training, 16);
    found.expect("options")
}

fn refused(text: &str, words: &[&str]) {
    let message = match config(text).and_then(|config| config.options(true, 16)) {
        Ok(options) => panic!("{text}: {options:?}"),
        Err(error) => error.to_string(),
    };
    for word in words.iter().chain(&[FILE_NAME]) {
        assert!(message.contains(word), "{text}: no `{word}` in {message}");
    }
    assert!(message.len() < 700, "{message}");
}

#[test]
fn the_published_file_is_honoured_in_both_modes() {
    let training = options(PUBLISHED, true);
    assert_eq!((training.replicas, training.stages), (Some(4), Some(4)));
    assert_eq!(training.micro_batches, Some(8));
    assert_eq!((training.recompute, training.seed), (Some(true), Some(42)));
    assert_eq!(
        (training.first_moment, training.layers),
        (Some(DType::F16), None)
    );
    let names: Vec<&str> = training
        .without_effect
        .iter()
        .map(|(name, _)| *name)
        .collect();
    for name in [
        "device_iterations",
        "optimizer_state_offchip",
        "layers_per_ipu",
        "inference_device_iterations",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"replication_factor"));
    let inference = options(PUBLISHED, false);
    assert_eq!((inference.replicas, inference.stages), (Some(4), Some(4)));
    assert_eq!(
        (inference.micro_batches, inference.recompute),
        (Some(4), None)
    );
}

#[test]
fn every_key_is_known_by_one_name_and_one_kind() {
    for key in KEYS {
        let same = KEYS.iter().filter(|other| other.name == key.name);
        assert_eq!(same.count(), 1, "{}", key.name);
        assert!(config(&format!("{{\"{}\": null}}", key.name)).is_ok());
        if let Some(base) = key.name.strip_prefix("inference_") {
            assert_eq!(
                keys::find(base).map(|base| base.kind),
                Some(key.kind),
                "{base}"
            );
        }
    }
}

#[test]
fn unknown_keys_and_values_are_refused_by_name() {
    refused(
        r#"{"layer_per_ipus": [1]}"#,
        &["layer_per_ipus", "layers_per_ipu"],
    );
    refused(
        r#"{"gradient_accumulation": 4}"#,
        &["gradient_accumulation_steps"],
    );
    refused(
        r#"{"replication_factor": 0}"#,
        &["replication_factor", "at least 1"],
    );
    refused(
        r#"{"replication_factor": "4"}"#,
        &["replication_factor", "whole number"],
    );
    refused(r#"{"layers_per_ipu": [-2]}"#, &["layers_per_ipu", "-1"]);
    refused(r#"{"layers_per_ipu": []}"#, &["layers_per_ipu"]);
    refused(
        r#"{"matmul_proportion": [0.2, 1.5]}"#,
        &["matmul_proportion"],
    );
    refused(r#"{"seed": {"pod17": 1}}"#, &["pod17", "pod16"]);
    refused(
        r#"{"ipus_per_replica": {"pod4": 1, "pod8": 2}}"#,
        &["ipus_per_replica", "pod16"],
    );
    refused(
        r#"{"ipus_per_replica": {"pod16": 1.5}}"#,
        &["ipus_per_replica", "1.5"],
    );
    refused("[]", &["object"]);
    refused("{", &["contents"]);
}

#[test]
fn a_value_may_depend_on_the_pod() {
    let text =
        r#"{"replication_factor": {"pod4": 1, "pod16": 4, "default": 2}, "ipus_per_replica": 4}"#;
    let config = config(text).expect("a file");
    for (ipus, replicas) in [(4, 1), (16, 4), (64, 2)] {
        let options = config.options(true, ipus).expect("options");
        assert_eq!(options.replicas, Some(replicas), "{ipus}");
    }
}

#[test]
fn keys_for_inference_come_before_those_for_both() {
    let text = r#"{"layers_per_ipu": [9, 5, 5], "ipus_per_replica": 3, "inference_layers_per_ipu": [14, 5]}"#;
    let layers = |training| {
        let options = options(text, training);
        (options.stages, options.layers.expect("layers").counts)
    };
    assert_eq!(layers(true), (Some(3), vec![9, 5, 5]));
    assert_eq!(layers(false), (Some(2), vec![14, 5]));
    let text = r#"{"layers_per_ipu": [9, 5, 5]}"#;
    assert_eq!(options(text, false).stages, Some(3));
}

#[test]
fn wildcards_share_what_is_left() {
    let layers = |counts: &[i64]| Layers {
        source: (FILE_NAME.into(), "layers_per_ipu"),
        counts: counts.to_vec(),
    };
    for (counts, stages, expected) in [
        (&[-1][..], 4, Ok(vec![4, 4, 4, 7])),
        (&[-1, -1], 2, Ok(vec![9, 10])),
        (&[1, 2, -1, -1], 4, Ok(vec![1, 2, 8, 8])),
        (&[9, 5, 5], 3, Ok(vec![9, 5, 5])),
        (&[9, -1, 10], 3, Ok(vec![9, 0, 10])),
        (&[9, 5, 5], 4, Err("is for 3 IPUs; a replica has 4")),
        (&[20, -1], 2, Err("places 20 layers; the model has 19")),
    ] {
        let found = layers(counts).expanded(stages, 19);
        assert_eq!(found, expected.map_err(str::to_owned), "{counts:?}");
    }
    let pinned = layers(&[9, -1, 5])
        .pinned(&LxmertConfig::base(), 3)
        .expect("stages");
    assert_eq!(pinned.stages[1][0], "lxmert.encoder.r_layers.0");
    assert_eq!(pinned.stages[2][4], "lxmert.encoder.x_layers.4");
    let error = layers(&[9, 5, 4])
        .pinned(&LxmertConfig::base(), 3)
        .unwrap_err();
    assert!(
        error.to_string().contains("18 layers; the model has 19"),
        "{error}"
    );
}
