//! Tests of reading checkpoints.

mod check;
mod golden;
mod hostile;
mod hub;
mod seeded;
mod torch;

use super::Checkpoint;
use crate::error::{Error, Fault};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/storage_types");

fn golden(name: &str) -> PathBuf {
    Path::new(GOLDEN).join(name)
}

/// A safetensors file with this header and data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A safetensors file with zero tensors of these names, types (of two bytes) and shapes.
fn zeros(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let begin = end;
            end += 2 * shape.iter().product::<usize>();
            format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            )
        })
        .collect();
    safetensors(&format!("{{{}}}", entries.join(",")), &vec![0; end])
}

/// A folder with one file.
fn folder_with(name: &str, bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), bytes).unwrap();
    folder
}

/// Opens a checkpoint made of these bytes.
fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = folder_with("weights", bytes);
    Checkpoint::open(&folder.path().join("weights"))
}

/// The message of opening these bytes, which must be an error of this fault.
fn refused(bytes: &[u8], fault: Fault) -> String {
    let error = open_bytes(bytes).expect_err("an error");
    assert_eq!(error.fault(), fault, "{error}");
    one_screen(&error)
}

/// The message, which must fit on one screen and name a way out.
fn one_screen(error: &Error) -> String {
    let text = error.to_string();
    assert!(text.lines().count() <= 16, "{text}");
    assert!(text.lines().all(|l| l.chars().count() < 400), "{text}");
    assert!(text.contains("help: "), "{text}");
    text
}

fn read_all(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let info = checkpoint.get(name).unwrap();
    let mut out = vec![f32::NAN; info.elements()];
    checkpoint
        .read_rows_f32(name, 0..info.rows(), &mut out)
        .unwrap();
    out
}
