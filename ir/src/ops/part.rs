//! `part`: the rows of one space out of a union.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
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
