//! `matmul`: y = x · W, the product with a matrix as it is stored.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, RowUse};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `y[r, k] = Σₙ x[r, n] · W[n, k]`, n ascending: the cotangent of the rows of [`super::Linear`], whose
/// weight is stored \[out, in\].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {}

impl OpDef for Matmul {
    const NAME: &'static str = "matmul";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x"), Operand::Required("weight")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (x, weight) = (cx.float(0, "x")?, cx.float(1, "weight")?);
        let (&[inner, outputs], None) = (&*weight.shape, weight.rows) else {
            let weight = cx.show(weight);
            return Err(format!(
                "weight must be a matrix without a row space, is {weight}"
            ));
        };
        if x.shape.len() != 2 || x.shape[1] != inner {
            return Err(format!(
                "inner dimensions of {} and {} differ",
                cx.show(x),
                cx.show(weight)
            ));
        }
        Ok(Types::from_elem(
            cx.output(0, x.rows, x.shape.with_axis(1, outputs), x.dtype),
            1,
        ))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        let rows = cx.inputs[0].shape.rows() as u64;
        Cost {
            flops: rows.saturating_mul(2 * cx.inputs[1].shape.elements() as u64),
            ..cx.moved()
        }
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, weight) = (cx.inputs[0], cx.inputs[1]);
        let width = weight.shape.row_elements();
        let mut values = vec![S::from_f64(0.0); cx.shape(0).elements()];
        for (row, sums) in values.chunks_mut(width.max(1)).enumerate() {
            for (n, &factor) in x.row(row).iter().enumerate() {
                for (sum, &w) in sums.iter_mut().zip(weight.row(n)) {
                    *sum += factor * w;
                }
            }
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
