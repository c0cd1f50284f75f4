//! `trust_ratio`: how long a step of LAMB is.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::update::Update;
use super::{Adam, Cost, Eval, Infer, OpDef, Operand, SumSquares};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;
use crate::{DType, TensorType};

/// With d of [`Adam`]: y = |p| / |d|, at most `max_ratio`, and 1 where either norm is 0 or no number;
/// one for each tensor of the model in the parameter, f32.
///
/// Norms are summed in f64 as [`SumSquares`] sums, tensor by tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRatio {
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
}

/// Checks that these many rows of parts are those of a parameter.
pub(super) fn check_parts(parts: &[usize], rows: usize) -> Result<(), String> {
    let sum = parts.iter().copied().fold(0, usize::saturating_add);
    if !parts.is_empty() && sum != rows {
        return Err(format!("parts of {sum} rows in a parameter of {rows}"));
    }
    Ok(())
}

/// The elements of each part of a parameter of so many elements, whose rows have `width`.
pub(super) fn part_ranges(parts: &[usize], elements: usize, width: usize) -> Vec<Range<usize>> {
    if parts.is_empty() {
        return std::iter::once(0..elements).collect();
    }
    let parts = parts.iter().scan(0, |end, rows| {
        let start = *end;
        *end += rows * width;
        Some(start..*end)
    });
    parts.collect()
}

impl TrustRatio {
    /// The step whose length is asked for.
    pub fn adam(&self) -> Adam {
        Adam {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.decay,
            stochastic: None,
        }
    }

    /// The elements of each tensor in a parameter of so many elements, whose rows have `width`.
    pub fn ranges(&self, elements: usize, width: usize) -> Vec<Range<usize>> {
        part_ranges(&self.parts, elements, width)
    }

    /// The ratio, of Σ p² and Σ d².
    pub fn of_squares(&self, squares: [f64; 2]) -> f64 {
        let [p, direction] = squares.map(f64::sqrt);
        let ratio = match p > 0.0 && direction > 0.0 {
            true => p / direction,
            false => 1.0,
        };
        self.max_ratio.map_or(ratio, |most| ratio.min(most))
    }
}

impl OpDef for TrustRatio {
    const NAME: &'static str = "trust_ratio";

    fn operands(&self) -> &'static [Operand] {
        const OPERANDS: &[Operand] = &[
            Operand::Required("p"),
            Operand::Required("g"),
            Operand::Required("m"),
            Operand::Required("v"),
            Operand::Required("factor"),
            Operand::Required("correction1"),
            Operand::Required("correction2"),
        ];
        OPERANDS
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        check_parts(&self.parts, cx.inputs[0].shape.rows())?;
        let update = Update {
            tensors: 4,
            stochastic: None,
        };
        update.check(cx, self.operands())?;
        let ratios = TensorType::fixed(DType::F32, [self.parts.len().max(1)]);
        Ok(Types::from_elem(ratios, 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(18)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let old = [0, 2, 3].map(|operand| cx.inputs[operand]);
        let scalar = |operand: usize| cx.inputs[operand].reals()[0];
        let factor = scalar(4);
        let gradient = cx.inputs[1].reals().iter().map(|&g| g * factor);
        let gradient: Vec<S> = gradient.collect();
        let corrections = [scalar(5), scalar(6)];
        let direction = self.adam().moments(old, &gradient, corrections).direction;
        let p = old[0].reals();
        let ranges = self.ranges(p.len(), old[0].shape.row_elements());
        let ratio = |part: Range<usize>| {
            let squares = [&p[part.clone()], &direction[part]].map(SumSquares::of);
            S::from_f64(self.of_squares(squares))
        };
        let ratios: Vec<S> = ranges.into_iter().map(ratio).collect();
        Ok(vec![Tensor::real([ratios.len()], ratios)])
    }
}
