//! Tests of reading and writing tensor files. Damaged files are tested with checkpoints, which share the header.

use super::{
    Dtype, HostData, HostTensor, TensorFile, TensorSpec, TensorWriter, read_tensors, write_f32,
};
use crate::error::{Error, Fault};
use half::{bf16, f16};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/storage_types");

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.into(),
    }
}

fn write_one(path: &Path, name: &str, values: &[f32]) -> Result<(), Error> {
    write_f32(
        path,
        &BTreeMap::new(),
        [(name, &[values.len()][..], values)],
    )
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    names
}

#[test]
fn golden_inputs_are_read() {
    let file = TensorFile::open(&Path::new(GOLDEN).join("inputs.safetensors")).unwrap();
    assert!(file.names().eq([
        "attention_mask",
        "input_ids",
        "labels",
        "visual_feats",
        "visual_pos"
    ]));
    assert_eq!(file.metadata()["format"], "pt");
    let ids = file.read("input_ids").unwrap();
    assert_eq!((ids.name(), ids.shape()), ("input_ids", &[2, 8][..]));
    let ids = ids.to_i32().unwrap();
    assert!(ids.iter().all(|&id| (0..60).contains(&id)));
    let second = file.read_rows("input_ids", 1..2).unwrap();
    assert_eq!(second.shape(), [1, 8]);
    assert_eq!(second.to_i32().unwrap(), ids[8..]);
    let feats = file.read("visual_feats").unwrap();
    assert_eq!(feats.to_f32().unwrap().len(), 2 * 6 * 24);
    assert_eq!(feats.to_i32().unwrap_err().fault(), Fault::Input);
    assert_eq!(file.get("token_type_ids"), None);
    assert_eq!(file.read("absent").unwrap_err().fault(), Fault::Input);
    assert_eq!(
        file.read_rows("labels", 1..3).unwrap_err().fault(),
        Fault::Internal
    );
}

#[test]
fn every_source_type_is_read() {
    let header = r#"{"f64":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},
        "i64":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
        "f32":{"dtype":"F32","shape":[1],"data_offsets":[16,20]},
        "i32":{"dtype":"I32","shape":[1],"data_offsets":[20,24]},
        "f16":{"dtype":"F16","shape":[1],"data_offsets":[24,26]},
        "bf16":{"dtype":"BF16","shape":[1],"data_offsets":[26,28]},
        "u8":{"dtype":"U8","shape":[1],"data_offsets":[28,29]},
        "bool":{"dtype":"BOOL","shape":[2],"data_offsets":[29,31]},
        "odd":{"dtype":"BOOL","shape":[1],"data_offsets":[31,32]},
        "i8":{"dtype":"I8","shape":[1],"data_offsets":[32,33]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(0.1f64.to_le_bytes());
    bytes.extend((1i64 << 31).to_le_bytes());
    bytes.extend(0.5f32.to_le_bytes());
    bytes.extend(((1i32 << 24) + 1).to_le_bytes());
    bytes.extend(f16::from_f32(0.75).to_le_bytes());
    bytes.extend(bf16::from_f32(-3.0).to_le_bytes());
    bytes.extend([200, 0, 1, 2, 1]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inputs.safetensors");
    fs::write(&path, bytes).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let read = |name| file.read(name).unwrap();
    assert_eq!(read("f64").to_f64().unwrap(), [0.1]);
    assert_eq!(read("f64").to_f32().unwrap(), [0.1f32]);
    assert_eq!(read("f32").to_f64().unwrap(), [0.5]);
    assert_eq!(read("f16").to_f32().unwrap(), [0.75]);
    assert_eq!(read("bf16").to_f32().unwrap(), [-3.0]);
    assert_eq!(read("u8").to_i32().unwrap(), [200]);
    assert_eq!(read("u8").to_f32().unwrap(), [200.0]);
    assert_eq!(read("bool").to_i32().unwrap(), [0, 1]);
    assert_eq!(read("bool").to_f32().unwrap(), [0.0, 1.0]);
    assert_eq!(read("i32").to_i32().unwrap(), [(1 << 24) + 1]);
    assert_eq!(read("i64").shape(), [0usize; 0]);
    for error in [
        read("i64").to_i32().unwrap_err(),
        read("i32").to_f32().unwrap_err(),
        read("f64").to_i32().unwrap_err(),
        file.read("odd").unwrap_err(),
        read_tensors(&path).unwrap_err(),
    ] {
        assert!(error.to_string().contains("inputs.safetensors"), "{error}");
        assert!(matches!(error.fault(), Fault::Input | Fault::Unsupported));
    }
    assert_eq!(file.read("i8").unwrap_err().fault(), Fault::Unsupported);
}

#[test]
fn host_tensors_have_the_elements_of_their_shape() {
    let data = || HostData::F32(vec![0.0; 6]);
    assert!(HostTensor::new("x", vec![2, 3], data()).is_ok());
    for shape in [vec![], vec![7], vec![usize::MAX, 2]] {
        let error = HostTensor::new("x", shape, data()).unwrap_err();
        assert_eq!(error.fault(), Fault::Internal);
    }
}

#[test]
fn files_are_aligned_deterministic_and_marked() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        let metadata = BTreeMap::from([("lxpod".to_owned(), "0.1".to_owned())]);
        let specs = [
            spec("half", Dtype::F16, &[3]),
            spec("full", Dtype::F32, &[2, 2]),
            spec("brain", Dtype::BF16, &[1]),
            spec("long", Dtype::I64, &[1]),
            spec("int", Dtype::I32, &[]),
        ];
        let mut writer = TensorWriter::create(&path, &metadata, &specs).unwrap();
        writer.write_f32("half", &[1.0, 65519.9]).unwrap();
        writer.write_f32("full", &[1.0, 2.0]).unwrap();
        writer.write_i64("long", &[-5]).unwrap();
        writer.write_i32("int", &[7]).unwrap();
        writer.write_f32("half", &[0.1]).unwrap();
        writer.write_f32("full", &[3.0, f32::NAN]).unwrap();
        writer.write_f32("brain", &[-1.0]).unwrap();
        writer.finish().unwrap();
        path
    };
    let (a, b) = (write("a"), write("b"));
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    let file = TensorFile::open(&a).unwrap();
    assert_eq!(file.metadata()["lxpod"], "0.1");
    assert_eq!(file.metadata()["format"], "pt");
    for name in file.names() {
        let info = file.get(name).unwrap();
        assert!((info.offset * 8).is_multiple_of(info.dtype.bitsize() as u64));
    }
    let half = [1.0, 65504.0, 0.1].map(f16::from_f32).to_vec();
    assert_eq!(*file.read("half").unwrap().data(), HostData::F16(half));
    let full = file.read("full").unwrap().to_f32().unwrap();
    assert!(full[..3] == [1.0, 2.0, 3.0] && full[3].is_nan());
    assert_eq!(file.read("long").unwrap().to_i32().unwrap(), [-5]);
    assert_eq!(file.read("int").unwrap().to_i32().unwrap(), [7]);
}

#[test]
fn other_readers_accept_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let values = [1.0f32, -2.5, 1e-30];
    write_f32(
        &path,
        &BTreeMap::new(),
        [
            ("b", &[3][..], &values[..]),
            ("a", &[], &[4.0]),
            ("e", &[0, 2], &[]),
        ],
    )
    .unwrap();
    let bytes = fs::read(&path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(
        read.tensor("b").unwrap().data(),
        bytemuck::cast_slice::<f32, u8>(&values)
    );
    assert_eq!(read.tensor("a").unwrap().shape(), [0usize; 0]);
    assert_eq!(read.tensor("e").unwrap().shape(), [0, 2]);
}

#[test]
fn a_file_appears_complete_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    write_one(&path, "old", &[1.0]).unwrap();
    let before = fs::read(&path).unwrap();
    let mut writer =
        TensorWriter::create(&path, &BTreeMap::new(), &[spec("new", Dtype::F32, &[2])]).unwrap();
    writer.write_f32("new", &[1.0]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(writer.finish().unwrap_err().fault(), Fault::Internal);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(entries(folder.path()), [path]);
}

#[test]
fn links_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("x"), folder.path().join("link"));
    write_one(&path, "a", &[1.0]).unwrap();
    symlink(&path, &link).unwrap();
    write_one(&link, "b", &[1.0]).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(TensorFile::open(&path).unwrap().names().eq(["b"]));
}

#[test]
fn places_that_cannot_be_written_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [
        folder.path().to_owned(),
        folder.path().join("absent/x"),
        "/dev/null".into(),
        "/".into(),
        "".into(),
    ] {
        let error = write_one(&path, "a", &[1.0]).unwrap_err();
        assert_eq!(error.fault(), Fault::Input, "{error}");
    }
    assert!(entries(folder.path()).is_empty());
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    // A privileged user may write there all the same.
    if let Err(error) = write_one(&locked.join("x"), "a", &[1.0]) {
        assert_eq!(error.fault(), Fault::Io, "{error}");
    }
}

#[test]
fn a_file_that_the_disk_cannot_hold_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let specs = [spec("a", Dtype::F32, &[1 << 56])];
    // A few file systems accept a file of this length until it is filled.
    if let Err(error) = TensorWriter::create(&path, &BTreeMap::new(), &specs) {
        assert_eq!(error.fault(), Fault::Io, "{error}");
    }
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn broken_contracts_of_writing_are_our_own_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let metadata = BTreeMap::new();
    let specs = [spec("f", Dtype::F32, &[1]), spec("i", Dtype::I64, &[1])];
    let mut writer = TensorWriter::create(&path, &metadata, &specs).unwrap();
    for error in [
        writer.write_f32("f", &[1.0, 2.0]),
        writer.write_f32("i", &[1.0]),
        writer.write_i64("f", &[1]),
        writer.write_i32("i", &[1]),
        writer.write_f32("g", &[1.0]),
        TensorWriter::create(&path, &metadata, &[specs[0].clone(), specs[0].clone()]).map(drop),
        TensorWriter::create(&path, &metadata, &[spec("x", Dtype::F32, &[usize::MAX, 2])])
            .map(drop),
    ] {
        assert_eq!(error.unwrap_err().fault(), Fault::Internal);
    }
}

#[test]
fn faults_have_their_exit_codes() {
    let codes = [Fault::Input, Fault::Unsupported, Fault::Io, Fault::Internal];
    assert_eq!(codes.map(Fault::exit_code), [2, 3, 74, 70]);
}

#[test]
fn folders_and_devices_are_no_tensor_files() {
    for path in [GOLDEN, "/dev/zero", "absent", "/dev/null/x"] {
        let error = TensorFile::open(Path::new(path)).unwrap_err();
        assert_eq!(error.fault(), Fault::Input, "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(tensors in prop::collection::btree_map(
        any::<String>().prop_filter("reserved", |n| n != "__metadata__"),
        (1usize..4, prop::collection::vec(any::<u32>(), 0..20)),
        0..6,
    )) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let tensors: BTreeMap<_, _> = tensors.into_iter().map(|(name, (row, bits))| {
            let values: Vec<f32> = bits.chunks_exact(row).flatten().map(|&b| f32::from_bits(b)).collect();
            (name, ([values.len() / row, row], values))
        }).collect();
        let views = tensors.iter().map(|(n, (s, v))| (n.as_str(), &s[..], &v[..]));
        write_f32(&path, &BTreeMap::new(), views).unwrap();
        let read = read_tensors(&path).unwrap();
        prop_assert_eq!(read.len(), tensors.len());
        for (name, (shape, values)) in &tensors {
            prop_assert_eq!(read[name].shape(), shape);
            let same = read[name].to_f32().unwrap().iter().map(|x| x.to_bits()).eq(values.iter().map(|x| x.to_bits()));
            prop_assert!(same);
        }
    }
}
