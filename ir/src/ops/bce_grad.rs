//! `bce_grad`: the cotangent of the logits of a binary cross-entropy.

use serde::{Deserialize, Serialize};

use super::{Bce, Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// dlogits = dloss · factor / elements · (1 / (1 + e⁻ˣ) − target) of [`Bce`], x being the logit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BceGrad {
    /// As [`Bce::factor`].
    pub factor: f32,
}

impl OpDef for BceGrad {
    const NAME: &'static str = "bce_grad";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("dloss"),
            Operand::Required("logits"),
            Operand::Required("targets"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let factor = self.factor;
        cx.loss_grad(|forward| Bce { factor }.infer(forward))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.loss_grad_cost(8)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let dloss = cx.inputs[0].reals()[0].to_f64();
        let (logits, targets) = (cx.inputs[1].reals(), cx.inputs[2].reals());
        let factor = dloss * f64::from(self.factor) / logits.len() as f64;
        let each = |(x, target): (&S, &S)| {
            let sigmoid = 1.0 / (1.0 + (-x.to_f64()).exp());
            S::from_f64(factor * (sigmoid - target.to_f64()))
        };
        let values = logits.iter().zip(targets).map(each).collect();
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
