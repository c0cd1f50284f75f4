//! `part`: the rows of one space out of a union.

use serde::{Deserialize, Serialize};

use super::{Concat, Cost, Eval, Infer, OpDef, Operand, Vjp, Zeros};
use crate::rows::Layout;
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// The rows of part `index` of a value in a union of row spaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which part of the union.
    pub index: usize,
}

impl OpDef for Part {
    const NAME: &'static str = "part";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        let layout = x.rows.map(|space| &cx.spaces.get(space).layout);
        let part = match layout {
            Some(Layout::Union(parts)) => parts.get(self.index).copied(),
            _ => None,
        };
        let space = part.ok_or_else(|| format!("{} has no part {}", cx.show(x), self.index))?;
        let shape = x.shape.with_rows(cx.spaces.get(space).capacity);
        Ok(Types::from_elem(
            TensorType {
                dtype: x.dtype,
                rows: Some(space),
                shape,
            },
            1,
        ))
    }

    fn cost(&self, _: &Infer<'_>) -> Cost {
        Cost::default()
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, x) = (cx.cotangent()?, cx.operand_type(0));
        let layout = x.rows.map(|space| &cx.spaces().get(space).layout);
        let Some(Layout::Union(spaces)) = layout else {
            return Err("the operand is in no union".to_owned());
        };
        let mut parts = Vec::with_capacity(spaces.len());
        for (index, &space) in spaces.iter().enumerate() {
            parts.push(if index == self.index {
                dy
            } else {
                let unread = TensorType {
                    dtype: x.dtype,
                    rows: Some(space),
                    shape: x.shape.with_rows(cx.spaces().get(space).capacity),
                };
                cx.emit_like(Zeros {}, &[], &unread)?
            });
        }
        let dx = cx.emit(Concat { axis: 0 }, &parts)?;
        cx.give(0, dx);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let union = cx.types[0].rows.ok_or("no row space")?;
        let rows: Vec<i32> = cx
            .extents
            .segment(union, self.index)
            .map(|row| row as i32)
            .collect();
        Ok(vec![cx.inputs[0].take_rows(&rows)?])
    }
}
