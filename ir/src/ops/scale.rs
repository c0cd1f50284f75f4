//! `scale`: y = factor · x.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, RowUse, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = factor · x.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The factor.
    pub factor: f32,
}

impl Scale {
    /// Whether multiplying by `factor` only changes the exponent, so that nothing rounds short of
    /// overflow and underflow.
    pub fn is_exact(factor: f32) -> bool {
        factor.is_normal() && factor.to_bits() & 0x007f_ffff == 0
    }
}

impl OpDef for Scale {
    const NAME: &'static str = "scale";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.like_first()
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(1)
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let dy = cx.cotangent()?;
        let dx = cx.emit(self.clone(), &[dy])?;
        cx.give(0, dx);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let factor = S::from_f64(f64::from(self.factor));
        Ok(vec![Tensor::real(
            cx.shape(0),
            cx.inputs[0].reals().iter().map(|&x| factor * x).collect(),
        )])
    }
}
