//! `scatter_add_rows`: rows summed where an index says.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `y[i] = Σ x[r]` over the rows r with `index[r] = i`, r ascending: the cotangent of the data of
/// [`super::GatherRows`]. Rows and row space of the result are declared; rows that no index names are
/// zero. With `acc`, of the result's shape, each sum starts from its element.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterAddRows {
    /// The row that nothing is added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<i32>,
}

impl OpDef for ScatterAddRows {
    const NAME: &'static str = "scatter_add_rows";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("x"),
            Operand::Required("index"),
            Operand::Optional("acc"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (x, index) = (cx.float(0, "x")?, cx.integer(1, "index")?);
        if x.shape.is_empty() || *index.shape != [x.shape.rows()] || index.rows != x.rows {
            return Err(format!(
                "{} is not one row number per row of {}",
                cx.show(index),
                cx.show(x)
            ));
        }
        let sums = cx.declared_float()?;
        if sums.shape.is_empty() || sums.shape[1..] != x.shape[1..] {
            return Err(format!(
                "rows of {} do not add up to {}",
                cx.show(x),
                cx.show(sums)
            ));
        }
        cx.starts_from(2, sums)?;
        Ok(Types::from_elem(sums.clone(), 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(1)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, shape) = (cx.inputs[0], cx.shape(0));
        let (rows, width) = (shape.rows(), shape.row_elements());
        let mut sums = cx.start(2);
        for (row, &index) in cx.inputs[1].ints().iter().enumerate() {
            let target = usize::try_from(index).ok().filter(|&target| target < rows);
            let target = target.ok_or_else(|| format!("index {index} is outside 0..{rows}"))?;
            if self.padding != Some(index) {
                let sums = &mut sums[target * width..(target + 1) * width];
                sums.iter_mut()
                    .zip(x.row(row))
                    .for_each(|(sum, &x)| *sum += x);
            }
        }
        Ok(vec![Tensor::real(shape, sums)])
    }
}
