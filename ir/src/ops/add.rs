//! `add`: y = a + b.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, RowUse, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = a + b, of equal shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {}

impl OpDef for Add {
    const NAME: &'static str = "add";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("a"), Operand::Required("b")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.float(1, "b")?;
        cx.same(0, 1)?;
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
        cx.give(0, dy);
        cx.give(1, dy);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (a, b) = (cx.inputs[0].reals(), cx.inputs[1].reals());
        Ok(vec![Tensor::real(
            cx.shape(0),
            a.iter().zip(b).map(|(&a, &b)| a + b).collect(),
        )])
    }
}
