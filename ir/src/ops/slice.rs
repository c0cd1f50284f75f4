//! `slice`: a range of one axis.

use serde::{Deserialize, Serialize};

use super::{Concat, Cost, Eval, Infer, OpDef, Operand, RowUse, Vjp, Zeros};
use crate::Wire;
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// Elements `start..end` of `axis`. Axis 0 of a value in a row space is no static range; see
/// [`super::Part`] and [`super::GatherRows`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The axis.
    pub axis: usize,
    /// The first element.
    pub start: usize,
    /// One past the last element.
    pub end: usize,
}

impl OpDef for Slice {
    const NAME: &'static str = "slice";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        let extent = x.shape.get(self.axis).copied().unwrap_or(0);
        if self.start >= self.end || self.end > extent || (self.axis == 0 && x.rows.is_some()) {
            return Err(format!(
                "{}..{} of axis {} of {}",
                self.start,
                self.end,
                self.axis,
                cx.show(x)
            ));
        }
        let shape = x.shape.with_axis(self.axis, self.end - self.start);
        Ok(Types::from_elem(
            TensorType {
                dtype: x.dtype,
                rows: x.rows,
                shape,
            },
            1,
        ))
    }

    fn cost(&self, _: &Infer<'_>) -> Cost {
        Cost::default()
    }

    fn row_use(&self) -> RowUse {
        if self.axis > 0 {
            RowUse::Local
        } else {
            RowUse::Mixing
        }
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, extent) = (cx.cotangent()?, cx.operand_type(0).shape[self.axis]);
        let mut parts = Vec::new();
        if self.start > 0 {
            parts.push(self.unread(cx, self.start)?);
        }
        parts.push(dy);
        if self.end < extent {
            parts.push(self.unread(cx, extent - self.end)?);
        }
        let dx = cx.emit(Concat { axis: self.axis }, &parts)?;
        cx.give(0, dx);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let shape = &cx.inputs[0].shape;
        let outer: usize = shape[..self.axis].iter().product();
        let inner: usize = shape[self.axis + 1..].iter().product();
        let block = shape[self.axis] * inner;
        let picked = |outer: usize| {
            &cx.inputs[0].reals()
                [outer * block + self.start * inner..outer * block + self.end * inner]
        };
        Ok(vec![Tensor::real(
            cx.shape(0),
            (0..outer).flat_map(picked).copied().collect(),
        )])
    }
}

impl Slice {
    /// The cotangent of elements outside the range.
    fn unread(&self, cx: &mut Vjp<'_>, elements: usize) -> Result<Wire, String> {
        let x = cx.operand_type(0);
        let unread = TensorType {
            shape: x.shape.with_axis(self.axis, elements),
            ..x.clone()
        };
        cx.emit_like(Zeros {}, &[], &unread)
    }
}
