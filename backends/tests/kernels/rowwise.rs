//! Normalisation, elementwise operations and gathers.

use half::{bf16, f16};
use lxpod_backends::cpu::kernels::{
    Kernels, LayerNorm, View, ViewMut, activate, add, copy, gather, layer_norm, scale,
};
use lxpod_ir::DType;
use lxpod_ir::ops::Activation;
use proptest::prelude::*;

use crate::support::{Matrix, Random, config, float, tables};

const ACTIVATIONS: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

/// erf x in f64: the Maclaurin series, or 1 beyond 6, where the difference is below 1e-16.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    // erf x = 2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)): all terms have one sign.
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// An activation in f64.
pub(crate) fn reference_activation(act: Activation, x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    match act {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + inner.tanh()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    rows: usize,
    cols: usize,
    dtypes: [DType; 3],
    gap: usize,
    from: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (
        any::<u64>(),
        1..9_usize,
        1..300_usize,
        [float(), float(), float()],
        0..9_usize,
        any::<usize>(),
    )
        .prop_map(|(seed, rows, cols, dtypes, gap, from)| Case {
            seed,
            rows,
            cols,
            dtypes,
            gap,
            from: from % rows,
        })
}

impl Case {
    fn inputs(&self) -> (Matrix, Matrix, Matrix, Random) {
        let mut random = Random::new(self.seed);
        let a = Matrix::random(&mut random, self.dtypes[0], self.rows, self.cols, self.gap);
        let b = Matrix::random(
            &mut random,
            self.dtypes[1],
            self.rows,
            self.cols,
            self.gap + 1,
        );
        (
            a,
            b,
            Matrix::output(self.dtypes[2], self.rows, self.cols, self.gap),
            random,
        )
    }

    /// Checks the rows that were asked for, and that the others were left alone.
    fn check(
        &self,
        kernels: &Kernels,
        out: &Matrix,
        mut want: impl FnMut(usize, usize) -> (f64, f64),
    ) {
        out.check(self.dtypes[2], kernels.name(), |r, c| {
            if r < self.from {
                (-33.0, 0.0)
            } else {
                want(r, c)
            }
        });
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn layer_norm_matches(case in case(), offset in -3..3_i32, with_residual: bool) {
        let (mut x, residual, mut out, mut random) = case.inputs();
        for r in 0..case.rows {
            for c in 0..case.cols {
                x.set(r, c, x.get(r, c) + offset as f32);
            }
        }
        let (gamma, beta) = (random.many(case.cols), random.many(case.cols));
        let eps = 1e-3;
        let sum = |r: usize, c: usize| {
            let residual = if with_residual { residual.get(r, c) } else { 0.0 };
            f64::from(x.get(r, c) + residual)
        };
        for kernels in tables() {
            let norm = LayerNorm { gamma: &gamma, beta: &beta, eps };
            let residual = with_residual.then(|| residual.view());
            layer_norm(kernels, x.view(), residual, &norm, out.view_mut(), case.from..case.rows);
            case.check(kernels, &out, |r, c| {
                let n = case.cols as f64;
                let mean = (0..case.cols).map(|c| sum(r, c)).sum::<f64>() / n;
                let variance = (0..case.cols).map(|c| (sum(r, c) - mean).powi(2)).sum::<f64>() / n;
                let z = (sum(r, c) - mean) / (variance + f64::from(eps)).sqrt();
                (z * f64::from(gamma[c]) + f64::from(beta[c]), 1e-6 + 1e-6 / (variance + f64::from(eps)).sqrt() * 5.0)
            });
            let mut alone = Matrix::output(case.dtypes[2], 1, case.cols, 0);
            let last = case.rows - 1;
            layer_norm(kernels, x.view().row_range(last..case.rows), residual.map(|v| v.row_range(last..case.rows)), &norm, alone.view_mut(), 0..1);
            prop_assert_eq!(alone.bits(0), out.bits(last));
        }
    }

    #[test]
    fn elementwise_matches(case in case(), factor in -4.0..4.0_f32) {
        let (a, b, mut out, _) = case.inputs();
        let rows = case.from..case.rows;
        let ulp = 0.5_f64.powi(23);
        for kernels in tables() {
            add(kernels, a.view(), b.view(), out.view_mut(), rows.clone());
            case.check(kernels, &out, |r, c| (f64::from(a.get(r, c)) + f64::from(b.get(r, c)), ulp));
            scale(kernels, a.view(), factor, out.view_mut(), rows.clone());
            case.check(kernels, &out, |r, c| (f64::from(a.get(r, c)) * f64::from(factor), 4.0 * ulp));
            copy(kernels, b.view(), out.view_mut(), rows.clone());
            case.check(kernels, &out, |r, c| (f64::from(b.get(r, c)), 0.0));
            for act in ACTIVATIONS {
                activate(kernels, a.view(), act, out.view_mut(), rows.clone());
                case.check(kernels, &out, |r, c| (reference_activation(act, f64::from(a.get(r, c))), 5e-7));
            }
        }
    }

    #[test]
    fn gather_matches(case in case(), picks in prop::collection::vec(0..1000_i32, 1..20)) {
        let (table, ..) = case.inputs();
        let picks: Vec<i32> = picks.iter().map(|p| p % case.rows as i32).collect();
        for kernels in tables() {
            let mut out = Matrix::output(case.dtypes[2], picks.len(), case.cols, 2);
            prop_assert!(gather(kernels, table.view(), &picks, out.view_mut(), 0..picks.len()).is_ok());
            out.check(case.dtypes[2], kernels.name(), |r, c| (f64::from(table.get(picks[r] as usize, c)), 0.0));
        }
    }
}

#[test]
fn gather_refuses_what_is_outside() {
    let table = Matrix::random(&mut Random::new(1), DType::F32, 4, 6, 0);
    for kernels in tables() {
        for bad in [4, -1, i32::MAX, i32::MIN] {
            let mut out = Matrix::output(DType::F32, 2, 6, 0);
            let error = gather(kernels, table.view(), &[3, bad], out.view_mut(), 0..2)
                .expect_err("no such row");
            assert_eq!((error.index, error.position, error.rows), (bad, 1, 4));
        }
    }
}

#[test]
fn activations_hold_their_bounds_everywhere() {
    let xs: Vec<f32> = (0..400_000)
        .map(|i| (i - 200_000) as f32 * 1e-4)
        .chain([-1e30, -200.0, 150.0, 1e30])
        .collect();
    let mut ys = vec![0.0; xs.len()];
    for kernels in tables() {
        for act in ACTIVATIONS {
            let (x, y) = (
                View::new(&xs, 1, xs.len()),
                ViewMut::new(&mut ys, 1, xs.len()),
            );
            activate(kernels, x, act, y, 0..1);
            for (&x, &y) in xs.iter().zip(&ys) {
                let want = reference_activation(act, f64::from(x));
                let bound = 3e-7 * f64::from(x).abs().clamp(1.0, 1e30);
                assert!(
                    (f64::from(y) - want).abs() <= bound,
                    "{} {act:?}({x}) = {y}, not {want}",
                    kernels.name()
                );
            }
        }
    }
}

#[test]
fn activations_of_odd_numbers() {
    let xs = [f32::NAN, f32::INFINITY, 0.0, -0.0, 1.0];
    for kernels in tables() {
        for act in ACTIVATIONS {
            let mut ys = [0.0; 5];
            activate(
                kernels,
                View::new(&xs, 1, 5),
                act,
                ViewMut::new(&mut ys, 1, 5),
                0..1,
            );
            let limit = if act == Activation::Tanh {
                1.0
            } else {
                f32::INFINITY
            };
            assert!(
                ys[0].is_nan() && ys[1] == limit && ys[2] == 0.0 && ys[3] == 0.0,
                "{act:?}: {ys:?}"
            );
        }
    }
}

#[test]
fn conversions_are_those_of_half() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let n = halves.len();
    // Every f16, the middles between neighbours, and their neighbours in f32.
    let mut floats: Vec<f32> = halves
        .windows(2)
        .map(|w| (w[0].to_f32() + w[1].to_f32()) / 2.0)
        .collect();
    floats.extend(
        brains
            .windows(2)
            .map(|w| w[0].to_f32() / 2.0 + w[1].to_f32() / 2.0),
    );
    let near = |d: i32| {
        floats
            .iter()
            .map(move |x| f32::from_bits(x.to_bits().wrapping_add_signed(d)))
    };
    let floats: Vec<f32> = near(-1).chain(near(0)).chain(near(1)).collect();
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for kernels in tables() {
        let mut wide = vec![0.0; n];
        copy(
            kernels,
            View::new(&halves, 1, n),
            ViewMut::new(&mut wide, 1, n),
            0..1,
        );
        assert!(wide.iter().zip(&halves).all(|(&a, b)| same(a, b.to_f32())));
        copy(
            kernels,
            View::new(&brains, 1, n),
            ViewMut::new(&mut wide, 1, n),
            0..1,
        );
        assert!(wide.iter().zip(&brains).all(|(&a, b)| same(a, b.to_f32())));
        let m = floats.len();
        let mut narrow = vec![f16::ZERO; m];
        copy(
            kernels,
            View::new(&floats, 1, m),
            ViewMut::new(&mut narrow, 1, m),
            0..1,
        );
        assert!(
            narrow
                .iter()
                .zip(&floats)
                .all(|(a, &b)| same(a.to_f32(), f16::from_f32(b).to_f32()))
        );
        let mut narrow = vec![bf16::ZERO; m];
        copy(
            kernels,
            View::new(&floats, 1, m),
            ViewMut::new(&mut narrow, 1, m),
            0..1,
        );
        assert!(
            narrow
                .iter()
                .zip(&floats)
                .all(|(a, &b)| same(a.to_f32(), bf16::from_f32(b).to_f32()))
        );
    }
}

#[test]
fn layer_norm_of_constant_and_odd_rows() {
    let mut x = Matrix::new(DType::F32, 4, 100, 0, |r, c| {
        if r == 0 { 1000.25 } else { c as f32 }
    });
    x.set(1, 50, f32::NAN);
    x.set(2, 99, f32::INFINITY);
    let (gamma, beta) = (vec![2.0; 100], vec![0.5; 100]);
    for kernels in tables() {
        let mut out = Matrix::output(DType::F32, 4, 100, 0);
        let norm = LayerNorm {
            gamma: &gamma,
            beta: &beta,
            eps: 1e-12,
        };
        layer_norm(kernels, x.view(), None, &norm, out.view_mut(), 0..4);
        for c in 0..100 {
            assert_eq!(out.get(0, c), 0.5);
            assert!(out.get(1, c).is_nan() && out.get(2, c).is_nan() && out.get(3, c).is_finite());
        }
    }
}

#[test]
fn rows_load_and_store() {
    let mut m = Matrix::random(&mut Random::new(2), DType::F16, 3, 21, 4);
    for kernels in tables() {
        let mut row = [0.0; 13];
        m.view().load_row(kernels, 1, 5..18, &mut row);
        (0..13).for_each(|i| assert_eq!(row[i], m.get(1, 5 + i)));
        m.view_mut().store_row(kernels, 2, 8, &row);
        (0..13).for_each(|i| assert_eq!(row[i], m.get(2, 8 + i)));
        m.check_gaps();
    }
}
