//! Named tensors in `.safetensors` files: inputs, outputs, gradients, dumps, checkpoints.
//!
//! [`TensorFile`] reads, [`TensorWriter`] and [`write_f32`] write. Nothing is memory-mapped: only the header is read
//! at open, tensors are read and written at their offsets.

mod header;
mod host;
mod read;
#[cfg(test)]
mod tests;
mod write;

use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

pub use host::{HostData, HostTensor};
pub use read::{TensorFile, read_tensors};
pub use safetensors::Dtype;
pub use write::{TensorSpec, TensorWriter, write_f32};

pub(crate) use header::Header;
pub(crate) use read::{open as open_file, widen_at};

#[cfg(target_endian = "big")]
compile_error!("tensor files are little-endian and are read and written without byte swapping");

/// Element type, shape and place of a tensor in a file.
///
/// The number of elements and of bytes is known not to overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Extent of each axis, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Byte offset of the first element in its file.
    offset: u64,
}

impl TensorInfo {
    /// A tensor at byte `offset`. `None` when its size overflows or is no whole number of bytes.
    pub(crate) fn new(dtype: Dtype, shape: Vec<usize>, offset: u64) -> Option<Self> {
        let trailing = shape.get(1..).unwrap_or_default();
        let row = trailing.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let elements = row.checked_mul(shape.first().copied().unwrap_or(1))?;
        let bits = elements.checked_mul(dtype.bitsize())?;
        let end = offset.checked_add(bits as u64 / 8)?;
        (bits.is_multiple_of(8) && end <= i64::MAX as u64).then_some(TensorInfo {
            dtype,
            shape,
            offset,
        })
    }

    /// Extent of axis 0; a scalar has one row.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row: the product of the trailing axes.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows() * self.row_len()
    }

    /// Size in bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.elements() * self.dtype.bitsize() / 8) as u64
    }

    /// Byte offset in the file just behind the last element.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes()
    }

    /// Byte offset in the file and number of elements of a range of rows. Only for element types of whole bytes.
    ///
    /// # Errors
    /// [`Error::Internal`] when the range is reversed or leaves the tensor.
    pub(crate) fn locate(&self, name: &str, rows: &Range<usize>) -> Result<(u64, usize)> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(Error::internal(format!(
                "rows {rows:?} of tensor `{name}`, which has {}",
                self.rows()
            )));
        }
        let size = (self.dtype.bitsize() / 8) as u64;
        let first = (rows.start * self.row_len()) as u64;
        Ok((self.offset + first * size, rows.len() * self.row_len()))
    }
}

/// The error for a tensor that a file does not hold.
pub(crate) fn no_such_tensor(path: &Path, name: &str) -> Error {
    Error::invalid(
        path,
        crate::error::quote(name),
        "no such tensor in this file",
        "see which tensors it holds: lxpod inspect",
    )
}
