//! All storage forms of one model, and folders and shards made of them.

use super::{GOLDEN, golden, one_screen, read_all, safetensors, zeros};
use crate::checkpoint::{Checkpoint, Weights};
use crate::error::Fault;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&golden(name)).unwrap()
}

fn values(checkpoint: &Checkpoint) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let tensor = |name: &str| {
        let shape = checkpoint.get(name).unwrap().shape.clone();
        (name.to_owned(), (shape, read_all(checkpoint, name)))
    };
    checkpoint.names().map(tensor).collect()
}

#[test]
fn every_form_of_f16_holds_the_same_values() {
    let safetensors = values(&open("model.f16.safetensors"));
    assert_eq!(safetensors.len(), 95);
    assert_eq!(values(&open("pytorch_model.bin")), safetensors);
    assert_eq!(values(&open("pytorch_model_legacy.bin")), safetensors);
}

#[test]
fn bf16_is_near_f16() {
    let halves = values(&open("model.f16.safetensors"));
    let brains = values(&open("model.bf16.safetensors"));
    assert!(halves.keys().eq(brains.keys()));
    let mut differences = 0;
    for (name, (shape, half)) in &halves {
        let (brain_shape, brain) = &brains[name];
        assert_eq!(shape, brain_shape);
        for (h, b) in half.iter().zip(brain) {
            assert!((h - b).abs() <= h.abs() / 128.0 + 1e-6, "{name}: {h} {b}");
            differences += usize::from(h != b);
        }
    }
    assert!(differences > 1000);
}

#[test]
fn widening_is_exact() {
    let checkpoint = open("model.f16.safetensors");
    let name = "answer_head.logit_fc.0.weight";
    let bytes = fs::read(golden("model.f16.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let stored = &bytes[8 + header + 96..8 + header + 2400];
    let by_hand: Vec<f32> = stored
        .chunks_exact(2)
        .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
        .collect();
    assert_eq!(read_all(&checkpoint, name), by_hand);
}

#[test]
fn row_ranges_are_parts_of_the_whole() {
    for file in ["model.bf16.safetensors", "pytorch_model.bin"] {
        let checkpoint = open(file);
        let name = "lxmert.embeddings.word_embeddings.weight";
        let whole = read_all(&checkpoint, name);
        assert_eq!(checkpoint.shape(name).unwrap(), [60, 24]);
        for rows in [0..1, 7..31, 59..60, 60..60, 0..60] {
            let mut out = vec![f32::NAN; rows.len() * 24];
            checkpoint.read_rows(name, rows.clone(), &mut out).unwrap();
            assert_eq!(out, whole[rows.start * 24..rows.end * 24]);
        }
    }
}

#[test]
fn wrong_requests_are_our_own_fault() {
    let checkpoint = open("model.f16.safetensors");
    let name = "lxmert.embeddings.word_embeddings.weight";
    let mut out = vec![0.0; 48];
    let reversed = std::ops::Range { start: 3, end: 1 };
    for rows in [59..61, 0..1, 0..3, reversed] {
        let error = checkpoint.read_rows_f32(name, rows, &mut out).unwrap_err();
        assert_eq!(error.fault(), Fault::Internal);
    }
    let error = checkpoint.shape("absent").unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(one_screen(&error).contains("absent"));
}

#[test]
fn a_folder_prefers_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(one_screen(&error).contains("model.safetensors"));
    let copy = |from: &str, to: &str| fs::copy(golden(from), folder.path().join(to)).unwrap();
    copy("pytorch_model.bin", "pytorch_model.bin");
    assert_eq!(
        Checkpoint::open(folder.path()).unwrap().path(),
        folder.path().join("pytorch_model.bin")
    );
    copy("model.bf16.safetensors", "model.safetensors");
    assert_eq!(
        Checkpoint::open(folder.path()).unwrap().path(),
        folder.path().join("model.safetensors")
    );
}

#[test]
fn a_missing_path_is_the_users_fault() {
    let error = Checkpoint::open(&Path::new(GOLDEN).join("absent")).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(one_screen(&error).contains("absent"));
}

#[test]
fn wide_and_narrow_floats_are_read_and_integers_are_not() {
    let mut data = Vec::new();
    data.extend([0.1f64, -2.0].map(f64::to_le_bytes).concat());
    data.extend(0.25f32.to_le_bytes());
    data.extend([1, 2, 3, 4]);
    let header = r#"{"d":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},
        "f":{"dtype":"F32","shape":[],"data_offsets":[16,20]},
        "i":{"dtype":"I32","shape":[1],"data_offsets":[20,24]},
        "empty":{"dtype":"F16","shape":[0,3],"data_offsets":[24,24]}}"#;
    let folder = super::folder_with("model.safetensors", &safetensors(header, &data));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(read_all(&checkpoint, "d"), [0.1f32, -2.0]);
    assert_eq!(read_all(&checkpoint, "f"), [0.25]);
    assert!(read_all(&checkpoint, "empty").is_empty());
    let error = checkpoint.read_rows_f32("i", 0..1, &mut [0.0]).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(one_screen(&error).contains("I32 is not a weight type"));
}

#[test]
fn long_tensors_are_read_in_several_chunks() {
    let count = 100_003;
    let data: Vec<u8> = (0..count)
        .flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes())
        .collect();
    let header = format!(
        r#"{{"a":{{"dtype":"BF16","shape":[{count}],"data_offsets":[0,{}]}}}}"#,
        data.len()
    );
    let folder = super::folder_with("model.safetensors", &safetensors(&header, &data));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expected: Vec<f32> = (0..count)
        .map(|i| half::bf16::from_f32(i as f32).to_f32())
        .collect();
    assert_eq!(read_all(&checkpoint, "a"), expected);
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("a.safetensors", &zeros(&[("x", "F16", &[2, 3])]));
    write(
        "b.safetensors",
        &zeros(&[("y", "F16", &[4]), ("z", "BF16", &[1])]),
    );
    let index = |map: &str| write("model.safetensors.index.json", map.as_bytes());
    index(
        r#"{"metadata":{"total_size":22},
        "weight_map":{"x":"a.safetensors","y":"b.safetensors","z":"b.safetensors"}}"#,
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.names().eq(["x", "y", "z"]));
    assert_eq!(read_all(&checkpoint, "y"), [0.0; 4]);

    for (map, words) in [
        (
            r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#,
            "`z`",
        ),
        (
            r#"{"weight_map":{"x":"a.safetensors","w":"a.safetensors"}}"#,
            "`w`",
        ),
        (
            r#"{"weight_map":{"x":"../a.safetensors"}}"#,
            "is not a file name",
        ),
        (
            r#"{"weight_map":{"x":"/a.safetensors"}}"#,
            "is not a file name",
        ),
        (r#"{"weight_map":{"x":""}}"#, "is not a file name"),
        (
            r#"{"weight_map":{"x":"absent.safetensors"}}"#,
            "absent.safetensors",
        ),
        (r#"{"weight_map":[]}"#, "weight_map"),
        ("{", "weight_map"),
    ] {
        index(map);
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        let text = one_screen(&error);
        assert!(text.contains(words), "{text}");
    }
}
