//! `layer_norm`: normalisation of each row, with the residual it usually follows.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, LayerNormGrad, OpDef, Operand, RowUse, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// z = x + residual; y = (z − mean z) / √(var z + eps) · gain + bias, over the last axis, with the
/// biased variance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

impl OpDef for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("x"),
            Operand::Required("gain"),
            Operand::Required("bias"),
            Operand::Optional("residual"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        if x.rows.is_some() && x.shape.len() < 2 {
            return Err(format!("{} has no columns", cx.show(x)));
        }
        cx.vector(1, "gain", x.shape.last_axis())?;
        cx.vector(2, "bias", x.shape.last_axis())?;
        if cx.inputs.len() > 3 {
            cx.float(3, "residual")?;
            cx.same(0, 3)?;
        }
        cx.like_first()
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(8)
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, operands) = (cx.cotangent()?, cx.operands());
        let mut read = vec![dy, operands[0], operands[1]];
        read.extend(operands.get(3));
        let dz = cx.emit(LayerNormGrad { eps: self.eps }, &read)?;
        cx.give(0, dz);
        cx.give(1, dz.output(1));
        cx.give(2, dz.output(2));
        if operands.len() > 3 {
            cx.give(3, dz);
        }
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, gain, bias) = (cx.inputs[0], cx.inputs[1].reals(), cx.inputs[2].reals());
        let width = gain.len();
        let mut values = Vec::with_capacity(x.shape.elements());
        for (row, x) in x.reals().chunks(width.max(1)).enumerate() {
            let mut z = x.to_vec();
            if let Some(residual) = cx.inputs.get(3) {
                let residual = &residual.reals()[row * width..];
                z.iter_mut().zip(residual).for_each(|(z, &r)| *z += r);
            }
            self.normalise(&mut z);
            values.extend((0..z.len()).map(|i| z[i] * gain[i] + bias[i]));
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}

impl LayerNorm {
    /// Makes z (z − mean z) / √(var z + eps), and returns the root.
    pub(super) fn normalise<S: Scalar>(&self, z: &mut [S]) -> S {
        let centre = mean(z.iter().copied());
        let variance = mean(z.iter().map(|&z| (z - centre) * (z - centre)));
        let deviation = (variance + S::from_f64(self.eps)).sqrt();
        z.iter_mut().for_each(|z| *z = (*z - centre) / deviation);
        deviation
    }
}

/// The mean, summed in order.
pub(super) fn mean<S: Scalar>(values: impl ExactSizeIterator<Item = S>) -> S {
    let count = S::from_f64(values.len() as f64);
    let mut sum = S::from_f64(0.0);
    values.for_each(|value| sum += value);
    sum / count
}
