//! `clip`: the factor that bounds the gradient's norm.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;
use crate::{DType, TensorType};

/// norm = |scale| · √Σ squares and factor = scale · min(1, `max_norm` / (norm + 1e-6)), both f32\[\],
/// computed in f64, the squares summed in order. The factor comes first; it is `scale` without
/// `max_norm`, and NaN where the norm is not finite, so that the step is skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// The largest norm that is left as it is, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_norm: Option<f64>,
}

/// What `torch.nn.utils.clip_grad_norm_` adds to the norm that it divides by.
const NORM_EPS: f64 = 1e-6;

impl Clip {
    /// The results, of squares in their order.
    pub fn factor_and_norm(&self, squares: impl Iterator<Item = f64>, scale: f64) -> (f64, f64) {
        let norm = scale.abs() * squares.fold(0.0, |sum, square| sum + square).sqrt();
        let factor = match self.max_norm {
            _ if !norm.is_finite() => f64::NAN,
            Some(most) => scale * (most / (norm + NORM_EPS)).min(1.0),
            None => scale,
        };
        (factor, norm)
    }
}

impl OpDef for Clip {
    const NAME: &'static str = "clip";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("squares"), Operand::Required("scale")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (squares, scale) = (cx.float(0, "squares")?, cx.float(1, "scale")?);
        if squares.rows.is_some() || squares.shape.len() != 1 || !scale.shape.is_empty() {
            return Err(format!(
                "squares {} and scale {} are not a list and a scalar",
                cx.show(squares),
                cx.show(scale)
            ));
        }
        Ok(Types::from_elem(TensorType::fixed(DType::F32, []), 2))
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let squares = cx.inputs[0].reals().iter().map(|square| square.to_f64());
        let scale = cx.inputs[1].reals()[0].to_f64();
        let (factor, norm) = self.factor_and_norm(squares, scale);
        let scalar = |value| Tensor::real([], vec![S::from_f64(value)]);
        Ok(vec![scalar(factor), scalar(norm)])
    }
}
