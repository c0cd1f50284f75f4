//! `concat`: values side by side.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand, Part, RowUse, Slice, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// The operands end to end along `axis`. Along axis 0, operands in row spaces give a value in the
/// union of those spaces, which the graph must declare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Concat {
    fn rows(&self, cx: &Infer<'_>) -> Result<Option<crate::SpaceId>, String> {
        if self.axis > 0 {
            return Ok(cx.inputs[0].rows);
        }
        let spaces: Option<Vec<_>> = cx.inputs.iter().map(|ty| ty.rows).collect();
        match spaces {
            Some(parts) => cx
                .spaces
                .find_union(&parts)
                .map(Some)
                .ok_or_else(|| "the union of its row spaces is not declared".into()),
            None if cx.inputs.iter().all(|ty| ty.rows.is_none()) => Ok(None),
            None => Err("some operands have a row space and some have none".to_owned()),
        }
    }
}

impl OpDef for Concat {
    const NAME: &'static str = "concat";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Variadic("parts")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let first = cx.float(0, "parts")?;
        let extent = |ty: &TensorType| ty.shape.get(self.axis).copied();
        let mut total = 0;
        for (index, ty) in cx.inputs.iter().enumerate() {
            cx.float(index, "parts")?;
            total +=
                extent(ty).ok_or_else(|| format!("{} has no axis {}", cx.show(ty), self.axis))?;
            let same = ty.shape.with_axis(self.axis, 0) == first.shape.with_axis(self.axis, 0);
            if !same || ty.dtype != first.dtype || (self.axis > 0 && ty.rows != first.rows) {
                return Err(format!(
                    "{} and {} do not join along axis {}",
                    cx.show(first),
                    cx.show(ty),
                    self.axis
                ));
            }
        }
        let shape = first.shape.with_axis(self.axis, total);
        Ok(Types::from_elem(
            TensorType {
                dtype: first.dtype,
                rows: self.rows(cx)?,
                shape,
            },
            1,
        ))
    }

    fn row_use(&self) -> RowUse {
        if self.axis > 0 {
            RowUse::Local
        } else {
            RowUse::Mixing
        }
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let dy = cx.cotangent()?;
        let mut start = 0;
        for operand in 0..cx.operands().len() {
            let ty = cx.operand_type(operand);
            let end = start + ty.shape[self.axis];
            let dx = match (self.axis, ty.rows) {
                (0, Some(_)) => cx.emit(Part { index: operand }, &[dy])?,
                (axis, _) => cx.emit(Slice { axis, start, end }, &[dy])?,
            };
            cx.give(operand, dx);
            start = end;
        }
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let outer: usize = cx.inputs[0].shape[..self.axis].iter().product();
        let mut values = Vec::new();
        for block in 0..outer {
            for part in cx.inputs {
                let length: usize = part.shape[self.axis..].iter().product();
                values.extend_from_slice(&part.reals()[block * length..(block + 1) * length]);
            }
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
