//! `sgd`: one step of stochastic gradient descent with momentum.

use serde::{Deserialize, Serialize};

use super::update::Update;
use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// With g′ = g · factor + decay · p, element by element:
///
/// - velocity′ = momentum · velocity + g′;
/// - p′ = p − lr · velocity′, or with `nesterov` p − lr · (g′ + momentum · velocity′).
///
/// The results are p′ and velocity′. Where `factor` is not finite they are p and velocity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sgd {
    /// The share of the velocity that stays.
    pub momentum: f64,
    /// The share of the parameter that is added to the gradient.
    pub decay: f64,
    /// Whether the step looks ahead by one momentum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nesterov: bool,
    /// The salt of the stochastic rounding of p′ to f16, if it is rounded so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stochastic: Option<u64>,
}

impl Sgd {
    fn update(&self) -> Update {
        Update {
            tensors: 3,
            stochastic: self.stochastic,
        }
    }
}

impl OpDef for Sgd {
    const NAME: &'static str = "sgd";

    fn operands(&self) -> &'static [Operand] {
        self.update().operands(&[
            Operand::Required("p"),
            Operand::Required("g"),
            Operand::Required("velocity"),
            Operand::Required("factor"),
            Operand::Required("lr"),
            Operand::Required("key"),
        ])
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        self.update().infer(cx, self.operands())
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(if self.nesterov { 9 } else { 7 })
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let [momentum, decay] = [self.momentum, self.decay].map(S::from_f64);
        self.update().eval(cx, |gradient, scalars| {
            let (mut new, mut velocities) = (Vec::new(), Vec::new());
            let old = cx.inputs[0].reals().iter().zip(cx.inputs[2].reals());
            for ((&p, &velocity), &g) in old.zip(gradient) {
                let g = g + decay * p;
                let velocity = momentum * velocity + g;
                let step = match self.nesterov {
                    true => g + momentum * velocity,
                    false => velocity,
                };
                new.push(p - scalars[0] * step);
                velocities.push(velocity);
            }
            vec![new, velocities]
        })
    }
}
