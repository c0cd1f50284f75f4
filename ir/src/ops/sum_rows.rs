//! `sum_rows`: the sum of all rows.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `y[k] = Σᵣ x[r, k]`, r ascending over all rows: the cotangent of a bias. The result leaves the row
/// space. With `acc` the sum starts from it; it is rounded once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumRows {}

impl OpDef for SumRows {
    const NAME: &'static str = "sum_rows";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x"), Operand::Optional("acc")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        match &*x.shape {
            [_, row @ ..] => {
                let sums = cx.output(0, None, row.into(), x.dtype);
                cx.starts_from(1, &sums)?;
                Ok(Types::from_elem(sums, 1))
            }
            [] => Err("a scalar has no rows".to_owned()),
        }
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(1)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let x = cx.inputs[0];
        let mut sums = cx.start(1);
        for row in 0..x.shape.rows() {
            sums.iter_mut()
                .zip(x.row(row))
                .for_each(|(sum, &x)| *sum += x);
        }
        Ok(vec![Tensor::real(cx.shape(0), sums)])
    }
}
