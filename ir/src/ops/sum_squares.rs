//! `sum_squares`: Σ x².

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;
use crate::{DType, TensorType};

/// `y[0] = Σ x²` over all elements of a tensor without a row space, f32\[1\], so that those of many
/// tensors can be put end to end.
///
/// The sum is in f64: each block of [`SumSquares::BLOCK`] elements from its first to its last, then
/// the blocks' sums in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumSquares {}

impl SumSquares {
    /// The elements that are summed on their own.
    pub const BLOCK: usize = 4096;

    /// The sum over these elements.
    pub fn of<S: Scalar>(values: &[S]) -> f64 {
        let square = |value: &S| value.to_f64() * value.to_f64();
        let blocks = values.chunks(Self::BLOCK);
        blocks
            .map(|block| {
                block
                    .iter()
                    .map(square)
                    .fold(0.0, |sum, square| sum + square)
            })
            .fold(0.0, |sum, block: f64| sum + block)
    }
}

impl OpDef for SumSquares {
    const NAME: &'static str = "sum_squares";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        match x.rows {
            None => Ok(Types::from_elem(TensorType::fixed(DType::F32, [1]), 1)),
            Some(_) => Err(format!("{} is in a row space", cx.show(x))),
        }
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(2)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let sum = S::from_f64(Self::of(cx.inputs[0].reals()));
        Ok(vec![Tensor::real([1], vec![sum])])
    }
}
