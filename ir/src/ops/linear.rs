//! `linear`: y = act(x · Wᵀ + b).

use serde::{Deserialize, Serialize};

use super::{
    ActivateGrad, Activation, Cost, Eval, Infer, Matmul, OpDef, Operand, RowUse, SumRows, Vjp,
    WeightGrad,
};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `y[r, n] = act(Σₖ x[r, k] · W[n, k] + b[n])`; W is stored \[out, in\] as in `torch.nn.Linear`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Applied to the sum before the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

impl OpDef for Linear {
    const NAME: &'static str = "linear";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("x"),
            Operand::Required("weight"),
            Operand::Optional("bias"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let types = cx.product(1)?;
        if cx.inputs.len() > 2 {
            cx.vector(2, "bias", types[0].shape[1])?;
        }
        Ok(types)
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.product_cost()
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, operands) = (cx.cotangent()?, cx.operands());
        let dsum = match self.activation {
            None => dy,
            Some(kind) => {
                // The sum was never stored: it is computed again.
                let sum = cx.emit(Linear { activation: None }, &operands)?;
                cx.emit(ActivateGrad { kind }, &[dy, sum])?
            }
        };
        let dx = cx.emit(Matmul {}, &[dsum, operands[1]])?;
        cx.give(0, dx);
        let dweight = cx.emit(WeightGrad {}, &[dsum, operands[0]])?;
        cx.give(1, dweight);
        if operands.len() > 2 {
            let dbias = cx.emit(SumRows {}, &[dsum])?;
            cx.give(2, dbias);
        }
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, weight) = (cx.inputs[0], cx.inputs[1]);
        let mut values = Vec::with_capacity(cx.shape(0).elements());
        for row in 0..x.shape.rows() {
            for output in 0..weight.shape.rows() {
                let mut sum = S::from_f64(0.0);
                for (&a, &b) in x.row(row).iter().zip(weight.row(output)) {
                    sum += a * b;
                }
                if let Some(bias) = cx.inputs.get(2) {
                    sum += bias.reals()[output];
                }
                values.push(
                    self.activation
                        .map_or(sum, |activation| activation.apply(sum)),
                );
            }
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
