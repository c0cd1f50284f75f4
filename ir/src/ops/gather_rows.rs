//! `gather_rows`: rows picked by index.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, ScatterAddRows, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// `y[i] = data[index[i]]`: an embedding lookup, the first row of each segment, or rows repeated for
/// the samples that share them. The result lives in the index's row space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatherRows {
    /// The row whose uses give no gradient, as `padding_idx` of `torch.nn.Embedding`. It changes no
    /// value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<i32>,
}

impl OpDef for GatherRows {
    const NAME: &'static str = "gather_rows";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("data"), Operand::Required("index")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let data = &cx.inputs[0];
        let index = cx.integer(1, "index")?;
        if index.shape.len() != 1 || data.shape.is_empty() {
            return Err(format!(
                "picks rows of {} by {}",
                cx.show(data),
                cx.show(index)
            ));
        }
        let shape = data.shape.with_rows(index.shape.rows());
        Ok(Types::from_elem(
            TensorType {
                dtype: data.dtype,
                rows: index.rows,
                shape,
            },
            1,
        ))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        let rows = cx.inputs[1].shape.rows() as u64;
        let moved = rows * cx.inputs[0].row_bytes() as u64;
        Cost {
            flops: 0,
            read: moved + cx.inputs[1].bytes() as u64,
            written: moved,
        }
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, index) = (cx.cotangent()?, cx.operands()[1]);
        let op = ScatterAddRows {
            padding: self.padding,
        };
        let data = cx.operand_type(0);
        let ddata = cx.emit_like(op, &[dy, index], data)?;
        cx.give(0, ddata);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Ok(vec![cx.inputs[0].take_rows(cx.inputs[1].ints())?])
    }
}
