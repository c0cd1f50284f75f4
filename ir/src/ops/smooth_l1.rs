//! `smooth_l1`: the regression loss of visual features.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, Scale, SmoothL1Grad, Vjp};
use crate::DType;
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// The mean over rows of `weight[row]` · mean over columns of (d²/2 if |d| < 1, else |d| − 1/2), with
/// d = x − target, as an f32 scalar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmoothL1 {}

impl OpDef for SmoothL1 {
    const NAME: &'static str = "smooth_l1";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("x"),
            Operand::Required("target"),
            Operand::Required("weights"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (x, weights) = (cx.float(0, "x")?, cx.float(2, "weights")?);
        cx.float(1, "target")?;
        cx.same(0, 1)?;
        if x.shape.len() != 2 || *weights.shape != [x.shape.rows()] || weights.rows != x.rows {
            return Err(format!(
                "{} is not one weight per row of {}",
                cx.show(weights),
                cx.show(x)
            ));
        }
        Ok(Types::from_elem(TensorType::fixed(DType::F32, []), 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(5)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let mut read = vec![cx.cotangent()?];
        read.extend(cx.operands());
        let dx = cx.emit(SmoothL1Grad {}, &read)?;
        cx.give(0, dx);
        let dtarget = cx.emit(Scale { factor: -1.0 }, &[dx])?;
        cx.give(1, dtarget);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (x, target, weights) = (cx.inputs[0], cx.inputs[1], cx.inputs[2].reals());
        let loss = |(a, b): (&S, &S)| {
            let distance = (a.to_f64() - b.to_f64()).abs();
            if distance < 1.0 {
                0.5 * distance * distance
            } else {
                distance - 0.5
            }
        };
        let rows = x.shape.rows();
        let total: f64 = (0..rows)
            .map(|row| {
                let sum: f64 = x.row(row).iter().zip(target.row(row)).map(loss).sum();
                weights[row].to_f64() * sum / x.shape.row_elements() as f64
            })
            .sum();
        Ok(vec![Tensor::real(
            [],
            vec![S::from_f64(total / rows as f64)],
        )])
    }
}
