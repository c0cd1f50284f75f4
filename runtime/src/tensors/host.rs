//! A named tensor in host memory.

use crate::error::{Error, Result, quote};
use half::{bf16, f16};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The elements of a [`HostTensor`], row-major.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HostData {
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half floats.
    F16(Vec<f16>),
    /// Brain floats.
    BF16(Vec<bf16>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// Bytes.
    U8(Vec<u8>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl HostData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostData::F64(v) => v.len(),
            HostData::F32(v) => v.len(),
            HostData::F16(v) => v.len(),
            HostData::BF16(v) => v.len(),
            HostData::I64(v) => v.len(),
            HostData::I32(v) => v.len(),
            HostData::U8(v) => v.len(),
            HostData::Bool(v) => v.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type as safetensors spells it.
    pub fn dtype(&self) -> super::Dtype {
        use super::Dtype;
        match self {
            HostData::F64(_) => Dtype::F64,
            HostData::F32(_) => Dtype::F32,
            HostData::F16(_) => Dtype::F16,
            HostData::BF16(_) => Dtype::BF16,
            HostData::I64(_) => Dtype::I64,
            HostData::I32(_) => Dtype::I32,
            HostData::U8(_) => Dtype::U8,
            HostData::Bool(_) => Dtype::BOOL,
        }
    }
}

/// A named tensor in host memory. It remembers where it came from, so that errors can say so.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    path: PathBuf,
    name: String,
    shape: Vec<usize>,
    data: HostData,
}

impl HostTensor {
    /// A tensor that did not come from a file.
    ///
    /// # Errors
    /// [`Error::Internal`] when `data` does not have the shape's number of elements.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, data: HostData) -> Result<Self> {
        let name = name.into();
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(data.len()) {
            return Err(Error::internal(format!(
                "tensor `{name}`: {} elements do not fill shape {shape:?}",
                data.len()
            )));
        }
        Ok(HostTensor {
            path: PathBuf::from("(memory)"),
            name,
            shape,
            data,
        })
    }

    /// A tensor read from `path`; the caller guarantees that shape and data agree.
    pub(super) fn from_file(path: &Path, name: &str, shape: Vec<usize>, data: HostData) -> Self {
        HostTensor {
            path: path.into(),
            name: name.into(),
            shape,
            data,
        }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file it came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Extent of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The only entry of axis 0, as a tensor without that axis.
    ///
    /// # Errors
    /// [`Error::Internal`] when axis 0 has another extent than 1.
    pub(crate) fn into_entry(mut self) -> Result<Self> {
        if self.shape.first() != Some(&1) {
            let Self { name, shape, .. } = &self;
            return Err(Error::internal(format!("one entry of `{name}` {shape:?}")));
        }
        self.shape.remove(0);
        Ok(self)
    }

    /// The elements, row-major.
    pub fn data(&self) -> &HostData {
        &self.data
    }

    /// The elements as 32-bit integers.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a float tensor, or a value outside i32.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match &self.data {
            HostData::I32(v) => Ok(v.clone()),
            HostData::U8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            HostData::Bool(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            HostData::I64(v) => self.each(v, |x| i32::try_from(x).ok(), "a 32-bit integer"),
            HostData::F64(_) | HostData::F32(_) | HostData::F16(_) | HostData::BF16(_) => Err(self
                .error(
                    format!("is {}, where integers are needed", self.data.dtype()),
                    "store it as I64 or I32",
                )),
        }
    }

    /// The elements as 32-bit floats: narrower floats widened, F64 rounded, integers and bools exactly.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for an integer that f32 cannot hold exactly.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let exact = |x: i64| (x.unsigned_abs() <= 1 << 24).then_some(x as f32);
        match &self.data {
            HostData::F64(v) => Ok(v.iter().map(|&x| x as f32).collect()),
            HostData::F32(v) => Ok(v.clone()),
            HostData::F16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            HostData::BF16(v) => Ok(v.iter().map(|x| x.to_f32()).collect()),
            HostData::I64(v) => self.each(v, exact, "a float"),
            HostData::I32(v) => self.each(v, |x| exact(x.into()), "a float"),
            HostData::U8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            HostData::Bool(v) => Ok(v.iter().map(|&x| x.into()).collect()),
        }
    }

    /// The elements of a float tensor as 64-bit floats.
    ///
    /// # Errors
    /// As [`HostTensor::to_f32`].
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match &self.data {
            HostData::F64(v) => Ok(v.clone()),
            _ => Ok(self.to_f32()?.into_iter().map(f64::from).collect()),
        }
    }

    fn each<T: Copy + Display, U>(
        &self,
        values: &[T],
        convert: impl Fn(T) -> Option<U>,
        wanted: &str,
    ) -> Result<Vec<U>> {
        let one = |(i, &x): (usize, &T)| {
            convert(x).ok_or_else(|| {
                self.error(
                    format!("element {i} is {x}, which does not fit {wanted}"),
                    "correct the value",
                )
            })
        };
        values.iter().enumerate().map(one).collect()
    }

    fn error(&self, problem: String, help: &str) -> Error {
        let field = format!("tensor {}", quote(&self.name));
        Error::invalid(&self.path, field, problem, help)
    }
}
