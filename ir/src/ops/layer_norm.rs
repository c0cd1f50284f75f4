//! `layer_norm`: normalisation of each row, with the residual it usually follows.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, RowUse};
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

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, gain, bias) = (cx.inputs[0], cx.inputs[1].reals(), cx.inputs[2].reals());
        let width = gain.len();
        let count = S::from_f64(width as f64);
        let mean = |values: &mut dyn Iterator<Item = S>| {
            let mut sum = S::from_f64(0.0);
            values.for_each(|value| sum += value);
            sum / count
        };
        let mut values = Vec::with_capacity(x.shape.elements());
        for (row, x) in x.reals().chunks(width.max(1)).enumerate() {
            let mut z = x.to_vec();
            if let Some(residual) = cx.inputs.get(3) {
                let residual = &residual.reals()[row * width..];
                z.iter_mut().zip(residual).for_each(|(z, &r)| *z += r);
            }
            let centre = mean(&mut z.iter().copied());
            let variance = mean(&mut z.iter().map(|&z| (z - centre) * (z - centre)));
            let deviation = (variance + S::from_f64(self.eps)).sqrt();
            values.extend((0..z.len()).map(|i| (z[i] - centre) / deviation * gain[i] + bias[i]));
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
