//! `transfer`: a value moves to another stage.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand, RowUse};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = x, in the memory of stage `to`. The only op whose users stand on another stage than itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The receiving stage.
    pub to: u32,
}

impl OpDef for Transfer {
    const NAME: &'static str = "transfer";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        Ok(Types::from_elem(cx.inputs[0].clone(), 1))
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Ok(vec![cx.inputs[0].clone()])
    }
}
