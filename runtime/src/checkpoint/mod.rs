//! Checkpoints and other sources of parameters.
//!
//! [`Checkpoint`] reads the files of a trained model, [`Seeded`] makes parameters up; both are [`Weights`].
//! [`resolve_model`] finds the folder of a model given by name.

mod check;
mod hub;
mod names;
mod pickle;
mod seeded;
#[cfg(test)]
mod tests;
mod torch;
mod weights;
mod zip;

use crate::error::{Error, Result, quote};
use crate::tensors::{Dtype, Header, TensorInfo, no_such_tensor, open_file, widen_at};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

pub use check::Report;
pub use hub::resolve_model;
pub use names::{Role, canonical, role};
pub use seeded::Seeded;
pub use weights::Weights;

/// The files of a model folder, most wanted first.
const FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// The longest index of shards that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;

/// An open checkpoint: safetensors or PyTorch, in one file or in shards.
///
/// Tensors go by their canonical names ([`canonical`]). Only metadata is held in memory; reads through `&self` may
/// run on several threads at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    stored_name: String,
    file: usize,
    info: TensorInfo,
}

impl Checkpoint {
    /// Opens a folder that holds one of `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and
    /// `pytorch_model.bin.index.json` (the first that exists), or such a file under any name: the contents decide.
    ///
    /// Reads and validates metadata, not tensors. Every tensor is known to lie inside its file.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::InvalidFile`] for a damaged or hostile file, [`Error::Unsupported`] for a
    /// PyTorch file with anything but dense contiguous tensors, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let is_folder = fs::metadata(path)
            .map_err(|e| Error::reading(path, e))?
            .is_dir();
        let file = if is_folder {
            find_in_folder(path)?
        } else {
            path.to_owned()
        };
        let mut checkpoint = Checkpoint {
            path: file.clone(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if file.extension().is_some_and(|e| e == "json") {
            checkpoint.add_shards(&file)?;
        } else {
            checkpoint.add_file(file)?;
        }
        Ok(checkpoint)
    }

    /// The file that was opened; of a sharded checkpoint, its index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All canonical names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and shape of the tensor with canonical name `name`.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    /// The name that the file uses for the tensor with canonical name `name`.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|e| e.stored_name.as_str())
    }

    /// Reads rows `rows` of axis 0 of a float tensor, trailing axes flattened, into `out`, widened (F16, BF16) or
    /// rounded (F64) to f32. A scalar has one row. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for an unknown name or an element type that is not F32, F16, BF16 or F64;
    /// [`Error::Internal`] when the rows leave the tensor or do not fill `out`; [`Error::Io`].
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let (offset, count) = entry.info.locate(name, &rows)?;
        if count != out.len() {
            return Err(Error::internal(format!(
                "{count} elements of `{name}` read into {}",
                out.len()
            )));
        }
        let (path, file) = &self.files[entry.file];
        if widen_at(path, file, entry.info.dtype, offset, out)? {
            return Ok(());
        }
        Err(Error::invalid(
            path,
            format!("tensor {}", quote(&entry.stored_name)),
            format!("{} is not a weight type", entry.info.dtype),
            "store weights as F32, F16 or BF16",
        ))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors
            .get(name)
            .ok_or_else(|| no_such_tensor(&self.path, name))
    }

    /// Adds the tensors of one file; returns their stored names.
    fn add_file(&mut self, path: PathBuf) -> Result<BTreeSet<String>> {
        let file = open_file(&path)?;
        let tensors = read_metadata(&path, &file)?;
        let mut names = BTreeSet::new();
        for (stored_name, info) in tensors {
            let entry = Entry {
                stored_name: stored_name.clone(),
                file: self.files.len(),
                info,
            };
            if let Some(other) = self.tensors.insert(canonical(&stored_name), entry) {
                let problem = format!(
                    "is the same parameter as {}, which the checkpoint also holds",
                    quote(&other.stored_name)
                );
                return Err(Error::invalid(
                    &path,
                    format!("tensor {}", quote(&stored_name)),
                    problem,
                    "keep one of the two",
                ));
            }
            names.insert(stored_name);
        }
        self.files.push((path, file));
        Ok(names)
    }

    /// Adds the files that an index names, and compares their tensors with it.
    fn add_shards(&mut self, index: &Path) -> Result<()> {
        for (shard, listed) in read_index(index)? {
            let path = index.with_file_name(&shard);
            let found = self.add_file(path.clone())?;
            let differ = listed
                .symmetric_difference(&found)
                .next()
                .map(|name| (name, found.contains(name)));
            if let Some((name, is_found)) = differ {
                let problem = match is_found {
                    true => format!("{} holds it, which the index does not say", quote(&shard)),
                    false => format!("the index places it in {}, which lacks it", quote(&shard)),
                };
                return Err(Error::invalid(
                    index,
                    format!("tensor {}", quote(name)),
                    problem,
                    "index and shards are not of one checkpoint; fetch all again",
                ));
            }
        }
        Ok(())
    }
}

fn find_in_folder(folder: &Path) -> Result<PathBuf> {
    let candidates = FILES.iter().map(|name| folder.join(name));
    let found = candidates.into_iter().find(|path| path.exists());
    found.ok_or_else(|| {
        let problem = format!("holds no checkpoint ({})", FILES.join(", "));
        let help = "fetch the weights too: hf download NAME --local-dir FOLDER";
        Error::missing(folder, problem, help)
    })
}

/// Names and places of the tensors of a file whose kind its first bytes decide.
fn read_metadata(path: &Path, file: &File) -> Result<Vec<(String, TensorInfo)>> {
    let mut start = [0; 16];
    let len = file
        .read_at(&mut start, 0)
        .map_err(|e| Error::reading(path, e))?;
    let start = &start[..len];
    if start.starts_with(torch::ZIP_START) {
        return torch::read_zip(path, file);
    }
    if start.starts_with(torch::STREAM_START) {
        return torch::read_stream(path, file);
    }
    Ok(Header::read(path, file)?.tensors.into_iter().collect())
}

/// The stored names that each shard of an index holds.
fn read_index(path: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let invalid = |problem: String| {
        let help = "fetch the index again, or save the checkpoint in one file";
        Error::invalid(path, "weight_map", problem, help)
    };
    let mut text = Vec::new();
    let file = open_file(path)?;
    file.take(MAX_INDEX + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::reading(path, e))?;
    if text.len() as u64 > MAX_INDEX {
        return Err(invalid(format!("longer than {MAX_INDEX} bytes")));
    }
    let index: Index = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, shard) in index.weight_map {
        let mut parts = Path::new(&shard).components();
        let is_plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        if !is_plain {
            let problem = format!("{} is not a file name in the same folder", quote(&shard));
            return Err(invalid(problem));
        }
        shards.entry(shard).or_default().insert(name);
    }
    Ok(shards)
}

/// True for element types that a weight may have.
fn is_weight_type(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}
