//! Writing `.safetensors` files: all or nothing, the same bytes for the same tensors.

use super::{Dtype, TensorInfo};
use crate::error::{Error, Result, quote};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Values converted at once when a tensor is stored narrower than f32.
const CHUNK: usize = 16384;

/// Place in the file and elements written so far, by name.
type Places = BTreeMap<String, (TensorInfo, usize)>;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type in the file: F32, F16 or BF16 for floats (f32 values are rounded to nearest even), I64 or I32.
    pub dtype: Dtype,
    /// Extent of each axis.
    pub shape: Vec<usize>,
}

/// Writes a `.safetensors` file piece by piece.
///
/// Values go to a temporary file beside the target, which replaces the target in [`TensorWriter::finish`]; dropping
/// the writer before that leaves the target as it was. The bytes depend only on specs, metadata and values.
#[derive(Debug)]
pub struct TensorWriter {
    target: PathBuf,
    temporary: Temporary,
    file: File,
    tensors: Places,
}

impl TensorWriter {
    /// Starts a file at `path` with tensors `specs`, laid out by falling element size, then in the order given, so
    /// that every tensor is aligned. `metadata` is free text; `format: pt`, which Transformers asks for, is added.
    ///
    /// # Errors
    /// [`Error::MissingFile`] when the folder does not exist or `path` is not a regular file; [`Error::Io`] when the
    /// file cannot be made or the disk is full; [`Error::Internal`] for a repeated name or a type that is not written.
    pub fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        specs: &[TensorSpec],
    ) -> Result<Self> {
        let target = writable_target(path)?;
        let (header, tensors) = layout(metadata, specs)?;
        let (temporary, file) = Temporary::create(path, &target)?;
        let end = tensors
            .values()
            .map(|(t, _)| t.end())
            .max()
            .unwrap_or(header.len() as u64);
        let writing = |e| writing(path, e);
        file.set_len(end).map_err(writing)?;
        file.write_all_at(&header, 0).map_err(writing)?;
        Ok(TensorWriter {
            target,
            temporary,
            file,
            tensors,
        })
    }

    /// Appends f32 values to the float tensor `name`, in row-major order, converted to its element type.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Internal`] for an unknown name, an integer tensor or more values than the shape holds.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        match self.dtype(name)? {
            Dtype::F32 => self.append(name, values),
            Dtype::F16 => self.append_narrow(name, values, |from, to: &mut [f16]| {
                to.convert_from_f32_slice(from);
            }),
            Dtype::BF16 => self.append_narrow(name, values, |from, to: &mut [bf16]| {
                to.convert_from_f32_slice(from);
            }),
            other => Err(wrong_type(name, other)),
        }
    }

    /// Appends values to the I64 tensor `name`; errors as [`TensorWriter::write_f32`].
    pub fn write_i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        match self.dtype(name)? {
            Dtype::I64 => self.append(name, values),
            other => Err(wrong_type(name, other)),
        }
    }

    /// Appends values to the I32 tensor `name`; errors as [`TensorWriter::write_f32`].
    pub fn write_i32(&mut self, name: &str, values: &[i32]) -> Result<()> {
        match self.dtype(name)? {
            Dtype::I32 => self.append(name, values),
            other => Err(wrong_type(name, other)),
        }
    }

    /// Flushes to the disk and puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Internal`] when a tensor is not complete. The target is then as it was.
    pub fn finish(self) -> Result<()> {
        let unfinished = |(t, done): &(TensorInfo, usize)| *done != t.elements();
        if let Some((name, _)) = self.tensors.iter().find(|(_, t)| unfinished(t)) {
            return Err(Error::internal(format!(
                "tensor `{name}` was not written completely"
            )));
        }
        let writing = |e| writing(&self.target, e);
        self.file.sync_all().map_err(writing)?;
        fs::rename(&self.temporary.path, &self.target).map_err(writing)
    }

    fn dtype(&self, name: &str) -> Result<Dtype> {
        match self.tensors.get(name) {
            Some((info, _)) => Ok(info.dtype),
            None => Err(Error::internal(format!(
                "tensor `{name}` was not announced"
            ))),
        }
    }

    fn append<T: Pod>(&mut self, name: &str, values: &[T]) -> Result<()> {
        let entry = self.tensors.get_mut(name).filter(|(info, done)| {
            done.checked_add(values.len())
                .is_some_and(|n| n <= info.elements())
        });
        let Some((info, done)) = entry else {
            return Err(Error::internal(format!(
                "too many values for tensor `{name}`"
            )));
        };
        let at = info.offset + (*done * size_of::<T>()) as u64;
        self.file
            .write_all_at(bytemuck::cast_slice(values), at)
            .map_err(|e| writing(&self.target, e))?;
        *done += values.len();
        Ok(())
    }

    fn append_narrow<T: Pod>(
        &mut self,
        name: &str,
        values: &[f32],
        convert: impl Fn(&[f32], &mut [T]),
    ) -> Result<()> {
        let mut buffer = [T::zeroed(); CHUNK];
        for chunk in values.chunks(CHUNK) {
            let part = &mut buffer[..chunk.len()];
            convert(chunk, part);
            self.append(name, part)?;
        }
        Ok(())
    }
}

/// Writes named f32 tensors (name, shape, values) to `path`, in the order given.
///
/// # Errors
/// As [`TensorWriter::create`], [`TensorWriter::write_f32`] and [`TensorWriter::finish`].
pub fn write_f32<'a>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let specs: Vec<_> = tensors
        .iter()
        .map(|&(name, shape, _)| TensorSpec {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.into(),
        })
        .collect();
    let mut writer = TensorWriter::create(path, metadata, &specs)?;
    for (name, _, values) in tensors {
        writer.write_f32(name, values)?;
    }
    writer.finish()
}

/// The header's bytes, padded to a multiple of 8, and the place of each tensor.
fn layout(metadata: &BTreeMap<String, String>, specs: &[TensorSpec]) -> Result<(Vec<u8>, Places)> {
    let mut order: Vec<_> = specs.iter().collect();
    order.sort_by_key(|s| std::cmp::Reverse(s.dtype.bitsize()));
    let mut free_text = Map::from_iter([("format".into(), json!("pt"))]);
    free_text.extend(metadata.iter().map(|(k, v)| (k.clone(), json!(v))));
    let mut header = Map::from_iter([("__metadata__".into(), Value::Object(free_text))]);
    let mut places = Vec::with_capacity(specs.len());
    let mut end = 0;
    for spec in order {
        let info = TensorInfo::new(spec.dtype, spec.shape.clone(), end)
            .ok_or_else(|| Error::internal(format!("tensor `{}` overflows", spec.name)))?;
        let begin = end;
        end += info.bytes();
        let entry = json!({"dtype": spec.dtype.to_string(), "shape": spec.shape, "data_offsets": [begin, end]});
        if header.insert(spec.name.clone(), entry).is_some() {
            return Err(Error::internal(format!(
                "tensor `{}` is written twice",
                spec.name
            )));
        }
        places.push((spec.name.clone(), info));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    let start = bytes.len() as u64;
    let moved = places.into_iter().map(|(name, mut info)| {
        info.offset += start;
        (name, (info, 0))
    });
    Ok((bytes, moved.collect()))
}

/// Where to write for `path`: what a link points at, or the path itself.
fn writable_target(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(kind) if kind.is_file() => fs::canonicalize(path).map_err(|e| writing(path, e)),
        Ok(_) => Err(Error::missing(
            path,
            "is a folder or a device, not a file",
            "name a file to write",
        )),
        Err(_) => Ok(path.into()),
    }
}

/// A file that is removed when this goes out of scope, unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Makes a new file in the folder of `target`; `path` is for messages.
    fn create(path: &Path, target: &Path) -> Result<(Self, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::missing(
                path,
                "has no file name",
                "name a file to write",
            ));
        };
        loop {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(
                ".{}-{}.tmp",
                process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
            let temporary = target.with_file_name(hidden);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&temporary)
            {
                Ok(file) => return Ok((Temporary { path: temporary }, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(writing(path, e)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove; a failure to clean up is not worth hiding the real error.
        let _ = fs::remove_file(&self.path);
    }
}

fn writing(path: &Path, source: io::Error) -> Error {
    if matches!(
        source.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) {
        return Error::missing(path, "its folder does not exist", "create the folder first");
    }
    Error::Io {
        path: path.into(),
        action: "write",
        source,
    }
}

fn wrong_type(name: &str, dtype: Dtype) -> Error {
    Error::internal(format!(
        "tensor {} of type {dtype} given values of another type",
        quote(name)
    ))
}
