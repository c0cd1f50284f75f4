//! Reading tensors of a `.safetensors` file at their offsets.

use super::{Dtype, Header, HostData, HostTensor, TensorInfo, no_such_tensor};
use crate::error::{Error, Result, quote};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open `.safetensors` file. Reads through `&self` may run on several threads at once.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Header,
}

impl TensorFile {
    /// Opens `path` and validates its header; reads no tensor.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::InvalidFile`] for a file that is not well-formed safetensors, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path)?;
        let header = Header::read(path, &file)?;
        Ok(TensorFile {
            path: path.into(),
            file,
            header,
        })
    }

    /// The path as opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writer's free text (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor; `None` when the file has no such name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name)
    }

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when there is no such tensor or a bool is neither 0 nor 1; [`Error::Unsupported`] for
    /// an element type other than F64, F32, F16, BF16, I64, I32, U8, BOOL; [`Error::Io`].
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let info = self
            .get(name)
            .ok_or_else(|| no_such_tensor(&self.path, name))?;
        self.read_located(name, info, 0..info.rows(), info.shape.clone())
    }

    /// Reads rows `rows` of axis 0; the result's axis 0 is `rows.len()`.
    ///
    /// # Errors
    /// As [`TensorFile::read`]; [`Error::Internal`] when the range leaves the tensor or the tensor is a scalar.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<HostTensor> {
        let info = self
            .get(name)
            .ok_or_else(|| no_such_tensor(&self.path, name))?;
        let mut shape = info.shape.clone();
        match shape.first_mut() {
            Some(extent) => *extent = rows.len(),
            None => return Err(Error::internal(format!("rows of the scalar `{name}`"))),
        }
        self.read_located(name, info, rows, shape)
    }

    fn read_located(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: Range<usize>,
        shape: Vec<usize>,
    ) -> Result<HostTensor> {
        let place = info.locate(name, &rows)?;
        let data = match info.dtype {
            Dtype::F64 => HostData::F64(self.values(place)?),
            Dtype::F32 => HostData::F32(self.values(place)?),
            Dtype::F16 => HostData::F16(self.values(place)?),
            Dtype::BF16 => HostData::BF16(self.values(place)?),
            Dtype::I64 => HostData::I64(self.values(place)?),
            Dtype::I32 => HostData::I32(self.values(place)?),
            Dtype::U8 => HostData::U8(self.values(place)?),
            Dtype::BOOL => HostData::Bool(self.bools(name, place)?),
            other => {
                return Err(Error::unsupported(
                    &self.path,
                    format!("tensor {}", quote(name)),
                    format!("element type {other} is not read"),
                    "store it as F32, F16, BF16, I64, I32, U8 or BOOL",
                ));
            }
        };
        Ok(HostTensor::from_file(&self.path, name, shape, data))
    }

    fn values<T: Pod>(&self, (offset, count): (u64, usize)) -> Result<Vec<T>> {
        let mut values: Vec<T> = reserve(&self.path, count)?;
        values.resize(count, T::zeroed());
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|e| Error::reading(&self.path, e))?;
        Ok(values)
    }

    fn bools(&self, name: &str, place: (u64, usize)) -> Result<Vec<bool>> {
        let bytes: Vec<u8> = self.values(place)?;
        match bytes.iter().find(|&&b| b > 1) {
            None => Ok(bytes.into_iter().map(|b| b == 1).collect()),
            Some(b) => Err(Error::invalid(
                &self.path,
                format!("tensor {}", quote(name)),
                format!("holds the byte {b} where a BOOL is 0 or 1"),
                "write it again, or as U8",
            )),
        }
    }
}

/// Reads all tensors of `path`, by name.
///
/// # Errors
/// As [`TensorFile::open`] and [`TensorFile::read`].
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let file = TensorFile::open(path)?;
    file.names()
        .map(|name| Ok((name.to_owned(), file.read(name)?)))
        .collect()
}

/// Opens a regular file for reading. Does not wait for the other end of a pipe.
pub(crate) fn open(path: &Path) -> Result<File> {
    let reading = |e| Error::reading(path, e);
    let kind = fs::metadata(path).map_err(reading)?;
    if kind.is_dir() {
        return Err(Error::reading(path, io::ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Err(Error::missing(
            path,
            "is not a regular file",
            "tensors are read at their offsets: save them to a file first",
        ));
    }
    File::open(path).map_err(reading)
}

/// An empty vector with room for `count` elements, or [`Error::Io`] when memory is short.
fn reserve<T>(path: &Path, count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|e| Error::Io {
        path: path.into(),
        action: "hold its contents in memory",
        source: io::Error::new(io::ErrorKind::OutOfMemory, e),
    })?;
    Ok(values)
}

/// Fills `out` with the floats at byte `offset`, widened or (F64) rounded to f32.
///
/// Uses no memory beyond a small buffer on the stack. `Ok(false)`, nothing written, for an element type that is not
/// F32, F16, BF16 or F64.
pub(crate) fn widen_at(
    path: &Path,
    file: &File,
    dtype: Dtype,
    offset: u64,
    out: &mut [f32],
) -> Result<bool> {
    match dtype {
        Dtype::F32 => file
            .read_exact_at(bytemuck::cast_slice_mut(out), offset)
            .map_err(|e| Error::reading(path, e))?,
        Dtype::F16 => in_chunks::<f16, 16384>(path, file, offset, out, |from, to| {
            from.convert_to_f32_slice(to);
        })?,
        Dtype::BF16 => in_chunks::<bf16, 16384>(path, file, offset, out, |from, to| {
            from.convert_to_f32_slice(to);
        })?,
        Dtype::F64 => in_chunks::<f64, 4096>(path, file, offset, out, |from, to| {
            to.iter_mut().zip(from).for_each(|(t, &f)| *t = f as f32);
        })?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn in_chunks<T: Pod, const N: usize>(
    path: &Path,
    file: &File,
    mut offset: u64,
    out: &mut [f32],
    convert: impl Fn(&[T], &mut [f32]),
) -> Result<()> {
    let mut buffer = [T::zeroed(); N];
    for chunk in out.chunks_mut(N) {
        let part = &mut buffer[..chunk.len()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(part);
        let read = bytes.len() as u64;
        file.read_exact_at(bytes, offset)
            .map_err(|e| Error::reading(path, e))?;
        convert(part, chunk);
        offset += read;
    }
    Ok(())
}
