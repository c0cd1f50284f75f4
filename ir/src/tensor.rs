//! Values of the reference semantics.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use crate::{DType, Shape, random_bits};

/// The numbers an `eval` computes with: `f32` to check kernels, `f64` to check gradients.
pub trait Scalar:
    Copy
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Send
    + Sync
    + 'static
{
    /// The nearest value.
    fn from_f64(value: f64) -> Self;
    /// The value, exactly.
    fn to_f64(self) -> f64;
    /// The value as stored in `dtype`. `f64` does not round, so that finite differences see the
    /// function and not its rounding.
    fn round_to(self, dtype: DType) -> Self;
    /// The value as an f16 that `word` chooses among its two neighbours; see
    /// [`crate::random_bits::round_stochastically`]. `f64` does not round.
    fn round_stochastically(self, word: u32) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// The larger of two values; NaN if either is.
    fn maximum(self, other: Self) -> Self {
        if self >= other || self.to_f64().is_nan() {
            self
        } else {
            other
        }
    }
}

impl Scalar for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn round_to(self, dtype: DType) -> Self {
        match dtype {
            DType::F16 => f16::from_f32(self).to_f32(),
            DType::BF16 => bf16::from_f32(self).to_f32(),
            DType::F32 | DType::I32 | DType::Bool => self,
        }
    }

    fn round_stochastically(self, word: u32) -> Self {
        random_bits::round_stochastically(self, word)
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }

    fn exp(self) -> Self {
        self.exp()
    }
}

impl Scalar for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn round_to(self, _: DType) -> Self {
        self
    }

    fn round_stochastically(self, _: u32) -> Self {
        self
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }

    fn exp(self) -> Self {
        self.exp()
    }
}

/// The elements of a [`Tensor`], row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<S> {
    /// Real numbers, already rounded to the value's dtype.
    Real(Vec<S>),
    /// Integers and booleans.
    Int(Vec<i32>),
}

/// A value at its run-time extent.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<S> {
    /// The extent of each axis; axis 0 is the run-time extent of the value's row space.
    pub shape: Shape,
    /// The elements.
    pub data: Data<S>,
}

impl<S: Scalar> Tensor<S> {
    /// A tensor of reals.
    ///
    /// # Panics
    /// If the number of elements is not the shape's.
    pub fn real(shape: impl Into<Shape>, data: Vec<S>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.elements(), data.len(), "elements of {shape}");
        Tensor {
            shape,
            data: Data::Real(data),
        }
    }

    /// A tensor of integers.
    ///
    /// # Panics
    /// If the number of elements is not the shape's.
    pub fn int(shape: impl Into<Shape>, data: Vec<i32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.elements(), data.len(), "elements of {shape}");
        Tensor {
            shape,
            data: Data::Int(data),
        }
    }

    /// The real elements; empty for integers.
    pub fn reals(&self) -> &[S] {
        match &self.data {
            Data::Real(values) => values,
            Data::Int(_) => &[],
        }
    }

    /// The integer elements; empty for reals.
    pub fn ints(&self) -> &[i32] {
        match &self.data {
            Data::Int(values) => values,
            Data::Real(_) => &[],
        }
    }

    /// One row of reals.
    pub fn row(&self, row: usize) -> &[S] {
        let width = self.shape.row_elements();
        &self.reals()[row * width..(row + 1) * width]
    }

    /// Rounds every real element to `dtype`.
    pub fn round_to(mut self, dtype: DType) -> Self {
        if let Data::Real(values) = &mut self.data {
            values
                .iter_mut()
                .for_each(|value| *value = value.round_to(dtype));
        }
        self
    }

    /// Rows `indices` of this tensor, in that order.
    ///
    /// # Errors
    /// Names the first index that is no row.
    pub fn take_rows(&self, indices: &[i32]) -> Result<Self, String> {
        let (rows, width) = (self.shape.rows(), self.shape.row_elements());
        let mut picked = Vec::with_capacity(indices.len());
        for &index in indices {
            let row = usize::try_from(index).ok().filter(|&row| row < rows);
            picked.push(row.ok_or_else(|| format!("index {index} is outside 0..{rows}"))?);
        }
        let shape = self.shape.with_rows(indices.len());
        Ok(match &self.data {
            Data::Real(values) => Tensor::real(shape, pick(values, width, &picked)),
            Data::Int(values) => Tensor::int(shape, pick(values, width, &picked)),
        })
    }
}

fn pick<T: Copy>(values: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    rows.iter()
        .flat_map(|row| &values[row * width..(row + 1) * width])
        .copied()
        .collect()
}
