//! Exponential, error function, hyperbolic tangent, and the activations made of them, eight lanes at a time.
//!
//! Error bounds are tested below over the whole range, for every table. NaN gives NaN.
//! Coefficients are the decimal expansions of the exact values, or of a fit described where they stand.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

use lxpod_ir::ops::Activation;

use super::simd::Simd;

/// Adding and subtracting 1.5·2^23 rounds a number of magnitude below 2^22 to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// Horner's rule: `c[0] + c[1]·x + c[2]·x² + …`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut sum = s.splat(c[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = s.fma(sum, x, s.splat(c[i]));
    }
    sum
}

/// x rounded to the nearest integer, for |x| < 2^22.
#[inline(always)]
fn round<S: Simd>(s: S, x: S::V) -> S::V {
    s.sub(s.add(x, s.splat(ROUND)), s.splat(ROUND))
}

/// eˣ: relative error at most 2e-7 where the result is normal, at most one step of 2^-149 where it is subnormal;
/// +0 from -104 down to -∞, +∞ from 89 up.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor series to the 7th degree (truncation 6e-9); 2^n in
/// two factors, so that the ends of the range do not overflow. ln 2 is split in two so that n times its first part is exact.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    const INVERSE_FACTORIALS: [f32; 8] = [
        1.0,
        1.0,
        0.5,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5040.0,
    ];
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = round(s, s.mul(x, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let p = polynomial(s, r, INVERSE_FACTORIALS);
    let half = round(s, s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// erf x: relative (and absolute) error at most 4e-7; exactly ±1 for |x| ≥ 3.92, where that is the nearest f32.
///
/// x·P(x²)/Q(x²), a fit of erf(x)/x on |x| ≤ 3.925 at 400 Chebyshev points with the degrees 6 and 5, its largest relative error made as
/// small as possible by reweighted linear least squares in 50-digit arithmetic (it is 1.9e-9).
#[inline(always)]
pub(super) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    const P: [f32; 7] = [
        FRAC_2_SQRT_PI,
        0.185_142_79,
        0.054_249_473,
        3.839_504e-3,
        3.769_617_6e-4,
        4.614_574e-6,
        -1.282_861_4e-8,
    ];
    const Q: [f32; 6] = [
        1.0,
        0.497_411_93,
        0.113_880_84,
        0.015_432_53,
        1.301_974_8e-3,
        6.244_935e-5,
    ];
    const SATURATED: f32 = 3.92;
    let u = s.mul(x, x);
    let y = s.div(s.mul(x, polynomial(s, u, P)), polynomial(s, u, Q));
    s.select_lt(
        s.splat(SATURATED),
        s.abs(x),
        s.with_sign(s.splat(1.0), x),
        y,
    )
}

/// tanh x: relative error at most 4e-7.
///
/// Below 0.625 the fourth convergent of Lambert's continued fraction x/(1 + x²/(3 + x²/(5 + …))), above it 1 − 2/(e^(2|x|) + 1).
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const P: [f32; 4] = [135_135.0, 17_325.0, 378.0, 1.0];
    const Q: [f32; 4] = [135_135.0, 62_370.0, 3_150.0, 28.0];
    let u = s.mul(x, x);
    let near = s.div(s.mul(x, polynomial(s, u, P)), polynomial(s, u, Q));
    let magnitude = s.abs(x);
    let e = exp(s, s.add(magnitude, magnitude));
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.select_lt(magnitude, s.splat(0.625), near, s.with_sign(s.abs(far), x))
}

/// 0.5·x·(1 + erf(x/√2)): absolute error at most 3e-7·max(1, |x|).
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = erf(s, s.mul(x, s.splat(FRAC_1_SQRT_2)));
    let half = s.mul(x, s.splat(0.5));
    s.fma(half, e, half)
}

/// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))): absolute error at most 3e-7·max(1, |x|).
#[inline(always)]
fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    /// √(2/π).
    const FACTOR: f32 = 0.797_884_6;
    let u = s.mul(x, x);
    let inner = s.mul(x, s.fma(u, s.splat(FACTOR * 0.044_715), s.splat(FACTOR)));
    let half = s.mul(x, s.splat(0.5));
    s.fma(half, tanh(s, inner), half)
}

/// x / (1 + e⁻ˣ): relative error at most 4e-7 where the result is normal.
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// One activation of eight lanes.
#[inline(always)]
pub(super) fn activation<S: Simd>(s: S, act: Activation, x: S::V) -> S::V {
    match act {
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => gelu_tanh(s, x),
        Activation::Relu => s.max(s.splat(0.0), x),
        Activation::Silu => silu(s, x),
        Activation::Tanh => tanh(s, x),
    }
}

/// 1 / (1 + e⁻ˣ): relative error at most 4e-7 where the result is normal.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// Φ(x) + x·φ(x), the normal distribution's function and density: the derivative of [`gelu`].
#[inline(always)]
fn gelu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    /// 1/√(2π).
    const FACTOR: f32 = 0.398_942_3;
    let half = s.splat(0.5);
    let e = erf(s, s.mul(x, s.splat(FRAC_1_SQRT_2)));
    let density = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    s.fma(s.mul(x, s.splat(FACTOR)), density, s.fma(e, half, half))
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
fn gelu_tanh_slope<S: Simd>(s: S, x: S::V) -> S::V {
    /// √(2/π).
    const FACTOR: f32 = 0.797_884_6;
    let (half, one) = (s.splat(0.5), s.splat(1.0));
    let u = s.mul(x, x);
    let inner = s.mul(x, s.fma(u, s.splat(FACTOR * 0.044_715), s.splat(FACTOR)));
    let slope = s.fma(u, s.splat(3.0 * FACTOR * 0.044_715), s.splat(FACTOR));
    let t = tanh(s, inner);
    let rest = s.sub(one, s.mul(t, t));
    s.fma(s.mul(s.mul(x, half), rest), slope, s.fma(t, half, half))
}

/// 1 for positive x, else 0; NaN for NaN.
#[inline(always)]
fn relu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let other = s.max(zero, s.min(zero, x));
    s.select_lt(zero, x, s.splat(1.0), other)
}

/// The derivative of one activation of eight lanes: absolute error at most 1e-6.
#[inline(always)]
pub(super) fn slope<S: Simd>(s: S, act: Activation, x: S::V) -> S::V {
    let one = s.splat(1.0);
    match act {
        Activation::Gelu => gelu_slope(s, x),
        Activation::GeluTanh => gelu_tanh_slope(s, x),
        Activation::Relu => relu_slope(s, x),
        Activation::Silu => {
            let y = sigmoid(s, x);
            s.mul(y, s.fma(x, s.sub(one, y), one))
        }
        Activation::Tanh => {
            let t = tanh(s, x);
            s.sub(one, s.mul(t, t))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::simd::{LANES, Portable};

    /// Applies `f` to every `step`-th f32 of either sign up to `most`, and the exact function to it in f64; the largest of the error
    /// function `error(x, y, exact)`.
    fn worst(
        most: f32,
        f: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        error: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        let mut worst = 0.0_f64;
        for bits in (0..most.to_bits()).step_by(4_999) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let e = error(f64::from(f(x)), exact(f64::from(x)));
                assert!(!e.is_nan(), "at {x}");
                worst = worst.max(e);
            }
        }
        worst
    }

    fn relative(y: f64, exact: f64) -> f64 {
        (y - exact).abs() / exact.abs().max(f64::from(f32::MIN_POSITIVE))
    }

    /// erf by its Maclaurin series, scaled so that all terms have one sign.
    fn erf_exact(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    fn bounds<S: Simd>(s: S) {
        let one = |f: fn(S, S::V) -> S::V| move |x: f32| s.unpack(f(s, s.splat(x)))[3];
        let exp_error = worst(87.0, one(exp), f64::exp, relative);
        assert!(exp_error <= 2e-7, "exp: {exp_error:e}");
        let erf_error = worst(50.0, one(erf), erf_exact, relative);
        assert!(erf_error <= 4e-7, "erf: {erf_error:e}");
        let tanh_error = worst(50.0, one(tanh), f64::tanh, relative);
        assert!(tanh_error <= 4e-7, "tanh: {tanh_error:e}");
        let silu_error = worst(80.0, one(silu), |x| x / (1.0 + (-x).exp()), relative);
        assert!(silu_error <= 4e-7, "silu: {silu_error:e}");
    }

    fn ends<S: Simd>(s: S) {
        let one = |f: fn(S, S::V) -> S::V, x: f32| s.unpack(f(s, s.splat(x)))[LANES - 1];
        for x in [-104.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(one(exp, x).to_bits(), 0, "exp({x})");
        }
        for x in [89.0, f32::MAX, f32::INFINITY] {
            assert_eq!(one(exp, x), f32::INFINITY);
        }
        assert_eq!(one(exp, 0.0), 1.0);
        for i in 0..1700 {
            let x = -87.0 - i as f32 * 0.01;
            let error = (f64::from(one(exp, x)) - f64::from(x).exp()).abs();
            assert!(
                error <= 1.01 * 0.5_f64.powi(149) || error <= 2e-7 * f64::from(x).exp(),
                "exp({x}): {error:e}"
            );
        }
        assert!(one(exp, 88.722_8).is_finite());
        for f in [exp, erf, tanh, silu, gelu, gelu_tanh] {
            assert!(one(f, f32::NAN).is_nan());
        }
        for f in [erf, tanh] {
            assert_eq!(
                [one(f, f32::INFINITY), one(f, f32::NEG_INFINITY)],
                [1.0, -1.0]
            );
            assert_eq!(one(f, -0.0).to_bits(), (-0.0_f32).to_bits());
        }
        assert_eq!([one(erf, 3.93), one(erf, -1e9)], [1.0, -1.0]);
    }

    #[test]
    fn portable_functions_hold_their_bounds() {
        bounds(Portable);
        ends(Portable);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx2_functions_hold_their_bounds() {
        use crate::cpu::kernels::simd::{Avx, Ymm};
        if Avx::<Ymm>::detected() {
            // SAFETY: just checked.
            let s = unsafe { Avx::<Ymm>::assume() };
            bounds(s);
            ends(s);
        }
    }
}
