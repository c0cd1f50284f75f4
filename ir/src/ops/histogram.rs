//! `histogram`: how many elements are small, and how many large.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;
use crate::{DType, TensorType};

/// `y = [lower, upper]`, f32: how many elements of a tensor without a row space have |x · factor| < `edge`,
/// and how many have not, those that are no number included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Where the bins meet.
    pub edge: f64,
}

impl Histogram {
    /// How many of these are not below the edge.
    fn upper<S: Scalar>(&self, values: &[S], factor: S) -> usize {
        let is_lower = |&&x: &&S| (x * factor).to_f64().abs() < self.edge;
        values.len() - values.iter().filter(is_lower).count()
    }
}

impl OpDef for Histogram {
    const NAME: &'static str = "histogram";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x"), Operand::Required("factor")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (x, factor) = (cx.float(0, "x")?, cx.float(1, "factor")?);
        if x.rows.is_some() || !factor.shape.is_empty() {
            let (x, factor) = (cx.show(x), cx.show(factor));
            return Err(format!("{x} is in a row space, or {factor} is no scalar"));
        }
        Ok(Types::from_elem(TensorType::fixed(DType::F32, [2]), 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(3)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let x = cx.inputs[0].reals();
        let upper = self.upper(x, cx.inputs[1].reals()[0]);
        let counts = [x.len() - upper, upper].map(|count| S::from_f64(count as f64));
        Ok(vec![Tensor::real([2], counts.to_vec())])
    }
}
