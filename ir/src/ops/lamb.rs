//! `lamb`: Adam whose steps are as long as the parameter.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::trust_ratio::{check_parts, part_ranges};
use super::update::Update;
use super::{Adam, Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// With m′, v′ and d of [`Adam`]: p′ = p − (lr · ratio) · d.
///
/// The ratios are those of [`TrustRatio`](super::TrustRatio), one for each tensor of the model in the parameter. The other
/// operands and the results are those of [`Adam`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lamb {
    /// As [`Adam::beta1`].
    pub beta1: f64,
    /// As [`Adam::beta2`].
    pub beta2: f64,
    /// As [`Adam::eps`].
    pub eps: f64,
    /// As [`Adam::decay`].
    pub decay: f64,
    /// The rows of each tensor in the parameter, in order; empty if it is one tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<usize>,
    /// As [`Adam::stochastic`].
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
    Operand::Required("ratio"),
    Operand::Required("key"),
];

impl Lamb {
    /// The step whose direction it takes.
    pub fn adam(&self) -> Adam {
        Adam {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.decay,
            stochastic: self.stochastic,
        }
    }

    /// The elements of each tensor in a parameter of so many elements, whose rows have `width`.
    pub fn ranges(&self, elements: usize, width: usize) -> Vec<Range<usize>> {
        part_ranges(&self.parts, elements, width)
    }

    fn update(&self) -> Update {
        self.adam().update()
    }
}

impl OpDef for Lamb {
    const NAME: &'static str = "lamb";

    fn operands(&self) -> &'static [Operand] {
        self.update().operands(OPERANDS)
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        check_parts(&self.parts, cx.inputs[0].shape.rows())?;
        let (ratios, parts) = (&cx.inputs[8].shape, self.parts.len().max(1));
        if **ratios != [parts] {
            return Err(format!(
                "ratio is {ratios}, must be one for each of {parts}"
            ));
        }
        self.update().infer(cx, self.operands())
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(16)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        self.update().eval(cx, |gradient, scalars| {
            let old = [0, 2, 3].map(|operand| cx.inputs[operand]);
            let new = self.adam().moments(old, gradient, [scalars[1], scalars[2]]);
            let mut p = old[0].reals().to_vec();
            let parts = self.ranges(p.len(), old[0].shape.row_elements());
            for (part, &ratio) in parts.into_iter().zip(&scalars[3..]) {
                let (p, direction) = (&mut p[part.clone()], &new.direction[part]);
                let step = scalars[0] * ratio;
                let elements = p.iter_mut().zip(direction);
                elements.for_each(|(p, &direction)| *p = *p - step * direction);
            }
            vec![p, new.m, new.v]
        })
    }
}
