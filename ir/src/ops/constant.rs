//! `constant`: a small value known at compile time.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand};
use crate::DType;
use crate::tensor::{Data, Scalar, Tensor};
use crate::types::Types;

/// A value written in the graph, row-major; its type is declared with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// The elements: of an `i32`, integers in its range; of a `bool`, 0 and 1.
    pub data: Vec<f64>,
}

impl OpDef for Constant {
    const NAME: &'static str = "constant";

    fn operands(&self) -> &'static [Operand] {
        &[]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        match cx.declared {
            [ty] if ty.rows.is_none() && ty.shape.elements() == self.data.len() => {
                let holds = |&value: &f64| match ty.dtype {
                    DType::I32 => f64::from(value as i32) == value,
                    DType::Bool => value == 0.0 || value == 1.0,
                    DType::F32 | DType::F16 | DType::BF16 => true,
                };
                match self.data.iter().find(|value| !holds(value)) {
                    Some(value) => Err(format!("{value} is no {}", ty.dtype)),
                    None => Ok(Types::from_elem(ty.clone(), 1)),
                }
            }
            [ty] => Err(format!(
                "{} elements declared as {}",
                self.data.len(),
                cx.show(ty)
            )),
            _ => Err("needs exactly one declared type".to_owned()),
        }
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let data = if cx.outputs[0].dtype.is_float() {
            Data::Real(self.data.iter().map(|&value| S::from_f64(value)).collect())
        } else {
            Data::Int(self.data.iter().map(|&value| value as i32).collect())
        };
        Ok(vec![Tensor {
            shape: cx.shape(0),
            data,
        }])
    }
}
