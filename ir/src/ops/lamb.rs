//! `lamb`: Adam whose steps are as long as the parameter.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::update::Update;
use super::{Adam, Cost, Eval, Infer, OpDef, Operand, SumSquares, adam};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// With m′, v′ and d of [`Adam`]: p′ = p − lr · ratio · d, where ratio = |p| / |d|, at most
/// `max_ratio`, and 1 where either is 0.
///
/// The norms are of each tensor of the model: of each of `parts`, where the parameter joins several.
/// They are summed in f64 as [`SumSquares`] sums. Operands and results are those of [`Adam`].
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
    /// The largest ratio, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
    /// The rows of each tensor in the parameter, in order; empty if it is one tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<usize>,
    /// As [`Adam::stochastic`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stochastic: Option<u64>,
}

impl Lamb {
    fn adam(&self) -> Adam {
        Adam {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.decay,
            stochastic: self.stochastic,
        }
    }

    fn update(&self) -> Update {
        self.adam().update()
    }

    /// The elements of each part of a parameter of so many elements, whose rows have `width`.
    fn ranges(&self, elements: usize, width: usize) -> Vec<Range<usize>> {
        if self.parts.is_empty() {
            return std::iter::once(0..elements).collect();
        }
        let parts = self.parts.iter().scan(0, |end, rows| {
            let start = *end;
            *end += rows * width;
            Some(start..*end)
        });
        parts.collect()
    }

    /// The length of a step along d in units of d, for each unit of the learning rate.
    fn ratio<S: Scalar>(&self, p: &[S], direction: &[S]) -> S {
        let [p, direction] = [p, direction].map(|values| SumSquares::of(values).sqrt());
        let ratio = match p > 0.0 && direction > 0.0 {
            true => p / direction,
            false => 1.0,
        };
        S::from_f64(self.max_ratio.map_or(ratio, |most| ratio.min(most)))
    }
}

impl OpDef for Lamb {
    const NAME: &'static str = "lamb";

    fn operands(&self) -> &'static [Operand] {
        self.update().operands(adam::OPERANDS)
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let rows = cx.inputs[0].shape.rows();
        let sum = self.parts.iter().copied().fold(0, usize::saturating_add);
        if !self.parts.is_empty() && sum != rows {
            return Err(format!("parts of {sum} rows in a parameter of {rows}"));
        }
        self.update().infer(cx, self.operands())
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(21)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        self.update().eval(cx, |gradient, scalars| {
            let old = [0, 2, 3].map(|operand| cx.inputs[operand]);
            let corrections = [scalars[1], scalars[2]];
            let new = self.adam().moments(old, gradient, corrections);
            let mut p = old[0].reals().to_vec();
            for part in self.ranges(p.len(), old[0].shape.row_elements()) {
                let (p, direction) = (&mut p[part.clone()], &new.direction[part]);
                let step = scalars[0] * self.ratio(p, direction);
                let elements = p.iter_mut().zip(direction);
                elements.for_each(|(p, &direction)| *p = *p - step * direction);
            }
            vec![p, new.m, new.v]
        })
    }
}
