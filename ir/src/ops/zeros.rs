//! `zeros`: a value of zeros.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = 0, of the declared float type: the part of a cotangent that nobody reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zeros {}

impl OpDef for Zeros {
    const NAME: &'static str = "zeros";

    fn operands(&self) -> &'static [Operand] {
        &[]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        Ok(Types::from_elem(cx.declared_float()?.clone(), 1))
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let shape = cx.shape(0);
        let values = vec![S::from_f64(0.0); shape.elements()];
        Ok(vec![Tensor::real(shape, values)])
    }
}
