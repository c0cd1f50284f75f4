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
        cx.product(0)
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.product_cost()
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
