//! `adam`: one step of Adam with decoupled weight decay.

use serde::{Deserialize, Serialize};

use super::update::Update;
use super::{Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// With g′ = g · factor, element by element:
///
/// - m′ = β₁ · m + (1 − β₁) · g′ and v′ = β₂ · v + (1 − β₂) · g′²;
/// - d = (m′ · c1) / (√v′ · c2 + eps) + decay · p, with c1 = 1 / correction1 and c2 = 1 / √correction2;
/// - p′ = p − lr · d.
///
/// The corrections are 1 − βᵗ in step t, counted from 1, which is AdamW; or 1, which is BertAdam.
/// The results are p′, m′, v′. Where `factor` is not finite they are p, m, v.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adam {
    /// β₁, the share of the first moment that stays.
    pub beta1: f64,
    /// β₂, likewise of the second.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The share of the parameter that is subtracted, times `lr`.
    pub decay: f64,
    /// The salt of the stochastic rounding of p′ to f16, if it is rounded so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stochastic: Option<u64>,
}

const OPERANDS: &[Operand] = &[
    Operand::Required("p"),
    Operand::Required("g"),
    Operand::Required("m"),
    Operand::Required("v"),
    Operand::Required("factor"),
    Operand::Required("lr"),
    Operand::Required("correction1"),
    Operand::Required("correction2"),
    Operand::Required("key"),
];

/// New moments, and the direction d to step in.
pub(super) struct Moments<S> {
    pub(super) m: Vec<S>,
    pub(super) v: Vec<S>,
    pub(super) direction: Vec<S>,
}

impl Adam {
    pub(super) fn update(&self) -> Update {
        Update {
            tensors: 4,
            stochastic: self.stochastic,
        }
    }

    /// The moments and the direction, of p, m, v and the gradient times the factor.
    pub(super) fn moments<S: Scalar>(
        &self,
        [p, m, v]: [&Tensor<S>; 3],
        gradient: &[S],
        corrections: [S; 2],
    ) -> Moments<S> {
        let [beta1, beta2, eps, decay] =
            [self.beta1, self.beta2, self.eps, self.decay].map(S::from_f64);
        let [rest1, rest2] = [1.0 - self.beta1, 1.0 - self.beta2].map(S::from_f64);
        let one = S::from_f64(1.0);
        let [c1, c2] = [one / corrections[0], one / corrections[1].sqrt()];
        let mut new = Moments {
            m: Vec::with_capacity(gradient.len()),
            v: Vec::with_capacity(gradient.len()),
            direction: Vec::with_capacity(gradient.len()),
        };
        for (at, &g) in gradient.iter().enumerate() {
            let m = beta1 * m.reals()[at] + rest1 * g;
            let v = beta2 * v.reals()[at] + rest2 * g * g;
            let step = (m * c1) / (v.sqrt() * c2 + eps);
            new.direction.push(step + decay * p.reals()[at]);
            new.m.push(m);
            new.v.push(v);
        }
        new
    }
}

impl OpDef for Adam {
    const NAME: &'static str = "adam";

    fn operands(&self) -> &'static [Operand] {
        self.update().operands(OPERANDS)
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        self.update().infer(cx, self.operands())
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(16)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        self.update().eval(cx, |gradient, scalars| {
            let old = [0, 2, 3].map(|operand| cx.inputs[operand]);
            let new = self.moments(old, gradient, [scalars[1], scalars[2]]);
            let p = old[0].reals().iter().zip(&new.direction);
            let p = p.map(|(&p, &direction)| p - scalars[0] * direction);
            vec![p.collect(), new.m, new.v]
        })
    }
}
