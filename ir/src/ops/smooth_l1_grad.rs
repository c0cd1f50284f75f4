//! `smooth_l1_grad`: the cotangent of what a smooth L1 loss compares.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, SmoothL1};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `dx[r, c] = dloss · weight[r] / (rows · columns) · (d if |d| < 1, else sign d)` of [`SmoothL1`], with
/// d = x − target; the target's cotangent is −dx.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmoothL1Grad {}

impl OpDef for SmoothL1Grad {
    const NAME: &'static str = "smooth_l1_grad";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("dloss"),
            Operand::Required("x"),
            Operand::Required("target"),
            Operand::Required("weights"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.loss_grad(|forward| SmoothL1 {}.infer(forward))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.loss_grad_cost(4)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let dloss = cx.inputs[0].reals()[0].to_f64();
        let (x, target, weights) = (cx.inputs[1], cx.inputs[2], cx.inputs[3].reals());
        let count = x.shape.elements() as f64;
        let mut values = Vec::with_capacity(x.shape.elements());
        for (row, weight) in weights.iter().enumerate() {
            let factor = dloss * weight.to_f64() / count;
            let each = x.row(row).iter().zip(target.row(row));
            values.extend(each.map(|(a, b)| {
                let distance = a.to_f64() - b.to_f64();
                S::from_f64(factor * distance.clamp(-1.0, 1.0))
            }));
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
