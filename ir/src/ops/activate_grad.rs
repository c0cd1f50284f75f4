//! `activate_grad`: the cotangent of an elementwise nonlinearity.

use serde::{Deserialize, Serialize};

use super::{Activation, Cost, Eval, Infer, OpDef, Operand, RowUse};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// dx = dy · kind′(x), where y = kind(x).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivateGrad {
    /// The function.
    pub kind: Activation,
}

impl OpDef for ActivateGrad {
    const NAME: &'static str = "activate_grad";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("dy"), Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.float(1, "x")?;
        cx.same(0, 1)?;
        cx.like_first()
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(12)
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (dy, x) = (cx.inputs[0].reals(), cx.inputs[1].reals());
        let values = dy.iter().zip(x);
        let values = values.map(|(&dy, &x)| dy * self.kind.slope(x)).collect();
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
