//! `weight_grad`: dW = dyᵀ · x, the cotangent of a weight.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `dW[n, k] = Σᵣ dy[r, n] · x[r, k]`, r ascending over all rows: the cotangent of the weight of
/// [`super::Linear`]. Both operands live in one row space; the result leaves it. With `acc` the sum starts
/// from it; it is rounded once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightGrad {}

impl OpDef for WeightGrad {
    const NAME: &'static str = "weight_grad";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("dy"),
            Operand::Required("x"),
            Operand::Optional("acc"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (dy, x) = (cx.float(0, "dy")?, cx.float(1, "x")?);
        match (&*dy.shape, &*x.shape) {
            (&[rows, outputs], &[other, inner]) if rows == other && dy.rows == x.rows => {
                let shape = [outputs, inner].into();
                let sums = cx.output(0, None, shape, dy.dtype);
                cx.starts_from(2, &sums)?;
                Ok(Types::from_elem(sums, 1))
            }
            _ => Err(format!(
                "{} and {} are not matrices of the same rows",
                cx.show(dy),
                cx.show(x)
            )),
        }
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        let rows = cx.inputs[0].shape.rows() as u64;
        let outputs = cx.inputs[0].shape.row_elements() as u64;
        let inner = cx.inputs[1].shape.row_elements() as u64;
        Cost {
            flops: rows.saturating_mul(outputs.saturating_mul(2 * inner)),
            ..cx.moved()
        }
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (dy, x) = (cx.inputs[0], cx.inputs[1]);
        let width = x.shape.row_elements();
        let mut values = cx.start(2);
        for row in 0..x.shape.rows() {
            for (sums, &factor) in values.chunks_mut(width.max(1)).zip(dy.row(row)) {
                for (sum, &x) in sums.iter_mut().zip(x.row(row)) {
                    *sum += factor * x;
                }
            }
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
