//! Types of values.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{DType, Extents, Shape, SpaceId, Spaces};

/// The types of a node's outputs.
pub type Types = SmallVec<[TensorType; 1]>;

/// What a value holds: its storage, its shape, and what its rows are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// How an element is stored.
    pub dtype: DType,
    /// The row space of axis 0; `None` where the rows are no run-time quantity (parameters,
    /// scalars). Where given, `shape[0]` is the space's capacity.
    pub rows: Option<SpaceId>,
    /// The extent of each axis.
    pub shape: Shape,
}

impl TensorType {
    /// A type whose shape is fully static.
    pub fn fixed(dtype: DType, shape: impl Into<Shape>) -> Self {
        TensorType {
            dtype,
            rows: None,
            shape: shape.into(),
        }
    }

    /// A type with one row for each row of `space`; `row` is the shape of one row.
    pub fn in_space(dtype: DType, spaces: &Spaces, space: SpaceId, row: &[usize]) -> Self {
        let mut axes = vec![spaces.get(space).capacity];
        axes.extend_from_slice(row);
        TensorType {
            dtype,
            rows: Some(space),
            shape: Shape::new(&axes),
        }
    }

    /// Bytes at full capacity.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape.row_elements() * self.dtype.size()
    }

    /// The shape in a run: axis 0 has the extent of the row space. `extents` must be of the space's
    /// graph.
    pub fn shape_at(&self, extents: &Extents) -> Shape {
        match self.rows {
            Some(space) => self.shape.with_rows(extents.rows(space)),
            None => self.shape.clone(),
        }
    }

    /// The same type with the shape it has in a run; see [`TensorType::shape_at`].
    pub fn at(&self, extents: &Extents) -> Self {
        TensorType {
            shape: self.shape_at(extents),
            ..self.clone()
        }
    }

    /// The same type stored as `dtype`.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        TensorType {
            dtype,
            ..self.clone()
        }
    }

    /// The type of the value's cotangent, the derivative of the loss with respect to it: the value's
    /// own, but f32 where the value is in no row space. There, as for a parameter, it is a sum over
    /// rows.
    pub fn cotangent(&self) -> Self {
        match self.rows {
            Some(_) => self.clone(),
            None => self.with_dtype(DType::F32),
        }
    }

    /// The text form, `f16[text:160,768]`.
    pub fn display(&self, spaces: &Spaces) -> String {
        let mut axes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        if let (Some(space), Some(first)) = (self.rows, axes.first_mut())
            && spaces.contains(space)
        {
            *first = format!("{}:{first}", spaces.get(space).name);
        }
        format!("{}[{}]", self.dtype, axes.join(","))
    }
}
