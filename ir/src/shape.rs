//! Shapes of tensors.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The extent of each axis, outermost first; elements are stored row-major. A scalar has no axes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(SmallVec<[usize; 4]>);

impl Shape {
    /// The shape with these axes.
    pub fn new(axes: &[usize]) -> Self {
        Shape(SmallVec::from_slice(axes))
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The number of rows, the extent of axis 0; a scalar has one row.
    pub fn rows(&self) -> usize {
        self.0.first().copied().unwrap_or(1)
    }

    /// Elements in one row: the product of all axes but the first.
    pub fn row_elements(&self) -> usize {
        self.0.iter().skip(1).product()
    }

    /// The extent of the last axis; 1 for a scalar.
    pub fn last_axis(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// This shape with axis 0 replaced; a scalar stays a scalar.
    pub fn with_rows(&self, rows: usize) -> Self {
        self.with_axis(0, rows)
    }

    /// This shape with one axis replaced; unchanged where the axis does not exist.
    pub fn with_axis(&self, axis: usize, extent: usize) -> Self {
        let mut shape = self.clone();
        if let Some(slot) = shape.0.get_mut(axis) {
            *slot = extent;
        }
        shape
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(axes: &[usize]) -> Self {
        Shape::new(axes)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(axes: [usize; N]) -> Self {
        Shape::new(&axes)
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(axes: I) -> Self {
        Shape(axes.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, extent) in self.iter().enumerate() {
            let comma = if axis == 0 { "" } else { "," };
            write!(f, "{comma}{extent}")?;
        }
        f.write_str("]")
    }
}
