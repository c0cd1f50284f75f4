//! `cast`: the same numbers, stored otherwise.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand, RowUse, Vjp};
use crate::DType;
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = x rounded to `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// The dtype of the result, a float.
    pub to: DType,
}

impl OpDef for Cast {
    const NAME: &'static str = "cast";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        if self.to.is_float() {
            Ok(Types::from_elem(x.with_dtype(self.to), 1))
        } else {
            Err(format!("casts to a float, not to {}", self.to))
        }
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let dy = cx.cotangent()?;
        cx.give(0, dy);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Ok(vec![cx.inputs[0].clone()])
    }
}
