//! `activate`: an elementwise nonlinearity.

use serde::{Deserialize, Serialize};

use super::{ActivateGrad, Cost, Eval, Infer, OpDef, Operand, RowUse, Vjp};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// An elementwise nonlinearity, alone or as the epilogue of `linear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// 0.5·x·(1 + erf(x/√2)).
    Gelu,
    /// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), Transformers' `gelu_new`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x / (1 + e⁻ˣ).
    Silu,
    /// tanh x.
    Tanh,
}

impl Activation {
    /// The function's value, computed in f64.
    pub fn apply<S: Scalar>(self, x: S) -> S {
        let x = x.to_f64();
        S::from_f64(match self {
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        })
    }

    /// The function's derivative, computed in f64; 0 where `Relu` has none.
    pub fn slope<S: Scalar>(self, x: S) -> S {
        let x = x.to_f64();
        S::from_f64(match self {
            Activation::Gelu => {
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
            }
            Activation::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let tanh = (root * (x + 0.044715 * x * x * x)).tanh();
                let inner = root * (1.0 + 3.0 * 0.044715 * x * x);
                0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner
            }
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => f64::from(u8::from(x > 0.0)),
            Activation::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                sigmoid * (1.0 + x * (1.0 - sigmoid))
            }
            Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
        })
    }
}

/// The error function, to about 1e-16: its Taylor series below 2.5, Lentz's continued fraction of
/// the complementary function above (Abramowitz & Stegun 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    if x.is_nan() {
        return x;
    }
    let value = if magnitude < 2.5 {
        erf_series(magnitude)
    } else {
        1.0 - erfc_fraction(magnitude)
    };
    value.copysign(x)
}

fn erf_series(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        let next = term / f64::from(2 * n + 1);
        sum += next;
        if next.abs() < 1e-18 * sum.abs() {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn erfc_fraction(x: f64) -> f64 {
    if x > 27.0 {
        return 0.0;
    }
    let mut fraction = x;
    for n in (1..=60).rev() {
        fraction = x + f64::from(n) / 2.0 / fraction;
    }
    (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI / 2.0 / fraction
}

/// y = kind(x).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// The function.
    pub kind: Activation,
}

impl OpDef for Activate {
    const NAME: &'static str = "activate";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.like_first()
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(8)
    }

    fn row_use(&self) -> RowUse {
        RowUse::Local
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, kind) = (cx.cotangent()?, self.kind);
        let x = cx.operands()[0];
        let dx = cx.emit(ActivateGrad { kind }, &[dy, x])?;
        cx.give(0, dx);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let values = cx.inputs[0]
            .reals()
            .iter()
            .map(|&x| self.kind.apply(x))
            .collect();
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_known_values() {
        for (x, expected) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.4, 0.999_311_486_103_354_9),
            (2.6, 0.999_763_965_583_470_6),
            (4.0, 0.999_999_984_582_742_1),
            (40.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 2e-16, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
