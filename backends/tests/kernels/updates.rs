//! The kernels of the update: bit by bit the `eval` of their ops in f32, however elements are split.

use std::ops::Range;

use lxpod_backends::cpu::kernels::{
    self, AdamRule, Kernels, Rounding, Rule, SgdRule, Update, View, ViewMut,
};
use lxpod_ir::ops::{self, Eval, Op, SumSquares};
use lxpod_ir::{DType, Extents, Spaces, Tensor, TensorType};
use proptest::prelude::*;

use crate::support::{Matrix, Random, config, float, tables};

fn elements() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..60_usize, 1 => 4080..4110_usize, 1 => 8180..12_400_usize]
}

fn real(x: &Matrix) -> Tensor<f32> {
    let values = (0..x.rows).flat_map(|r| (0..x.cols).map(move |c| x.get(r, c)));
    Tensor::real([x.cols], values.collect())
}

fn scalar(value: f32) -> Tensor<f32> {
    Tensor::real([], vec![value])
}

/// The results of an op in f32, rounded to these dtypes.
fn eval(op: impl Into<Op>, given: &[Tensor<f32>], dtypes: &[DType]) -> Vec<Tensor<f32>> {
    let fixed = |dtype, tensor: &Tensor<f32>| TensorType::fixed(dtype, tensor.shape.clone());
    let types: Vec<TensorType> = given.iter().map(|x| fixed(DType::F32, x)).collect();
    let outputs: Vec<TensorType> = dtypes.iter().map(|&d| fixed(d, &given[0])).collect();
    let spaces = Spaces::default();
    let context = Eval {
        inputs: &given.iter().collect::<Vec<_>>(),
        types: &types,
        outputs: &outputs,
        extents: &Extents::full(&spaces),
        spaces: &spaces,
    };
    op.into().eval(&context).expect("operands that fit")
}

/// A parameter, its gradient and its states, and the scalars of a step.
struct Case {
    tensors: Vec<Matrix>,
    /// The dtypes of the results.
    results: Vec<DType>,
    factor: f32,
    lr: f32,
    rounding: Option<Rounding>,
}

impl Case {
    /// A case with so many states; the last is nowhere negative, as second moments are.
    fn new(seed: u64, n: usize, dtypes: [DType; 3], states: usize, skipped: bool) -> Self {
        let mut random = Random::new(seed);
        let stochastic = dtypes[0] == DType::F16 && random.next() > 0.0;
        let mut tensors = vec![Matrix::random(&mut random, dtypes[0], 1, n, 0)];
        tensors.push(Matrix::random(&mut random, dtypes[1], 1, n, 0));
        for state in 1..=states {
            let last = state == states;
            let value = |x: f32| if last { x * x * 1e-3 } else { x };
            let value = |_, _| value(random.next());
            tensors.push(Matrix::new(dtypes[2], 1, n, 0, value));
        }
        let salt = seed ^ 0x1234;
        Case {
            tensors,
            results: [&dtypes[..1], &[dtypes[2]; 2][..states]].concat(),
            factor: if skipped { f32::NAN } else { 0.37 },
            lr: 0.01,
            rounding: stochastic.then_some(Rounding {
                salt,
                key: [7, 1 << 31],
            }),
        }
    }

    fn want(&self, op: impl Into<Op>, corrections: &[f32]) -> Vec<Tensor<f32>> {
        let mut given: Vec<Tensor<f32>> = self.tensors.iter().map(real).collect();
        given.extend([self.factor, self.lr].map(scalar));
        given.extend(corrections.iter().copied().map(scalar));
        given.extend(
            self.rounding
                .map(|r| Tensor::int([2], r.key.map(u32::cast_signed).to_vec())),
        );
        eval(op, &given, &self.results)
    }

    /// The views of an update over these tensors.
    fn update<'a>(&self, rule: Rule, views: &'a [View<'a>]) -> Update<'a> {
        Update {
            rule,
            p: views[0],
            g: views[1],
            states: &views[2..],
            factor: self.factor,
            lr: self.lr,
            rounding: self.rounding,
            first: 0,
        }
    }

    /// Applies the rule to two ranges of elements, in memory of its own and in place.
    fn check(&self, kernels: &Kernels, rule: Rule, want: &[Tensor<f32>], at: usize) {
        let n = self.tensors[0].cols;
        let ranges = [at % n..n, 0..at % n];
        let outputs = self
            .results
            .iter()
            .map(|&dtype| Matrix::output(dtype, 1, n, 0));
        let mut own: Vec<Matrix> = outputs.collect();
        let views: Vec<View<'_>> = self.tensors.iter().map(Matrix::view).collect();
        let mut out: Vec<ViewMut<'_>> = own.iter_mut().map(Matrix::view_mut).collect();
        apply(kernels, &self.update(rule, &views), &mut out, &ranges);
        compare(kernels, &own, want);

        let mut copies: Vec<Matrix> = self.tensors.iter().map(copy).collect();
        let g = copies.remove(1);
        let shared = copies.iter_mut().map(Matrix::in_place);
        let (mut views, mut out): (Vec<View<'_>>, Vec<ViewMut<'_>>) = shared.unzip();
        views.insert(1, g.view());
        apply(kernels, &self.update(rule, &views), &mut out, &ranges);
        compare(kernels, &copies, want);
    }
}

fn apply(kernels: &Kernels, update: &Update<'_>, out: &mut [ViewMut<'_>], ranges: &[Range<usize>]) {
    for range in ranges {
        kernels::update(kernels, update, out, range.clone());
    }
}

fn compare(kernels: &Kernels, got: &[Matrix], want: &[Tensor<f32>]) {
    for (result, (got, want)) in got.iter().zip(want).enumerate() {
        let want: Vec<u32> = want.reals().iter().map(|x| x.to_bits()).collect();
        assert_eq!(got.bits(0), want, "{}: result {result}", kernels.name());
    }
}

fn copy(x: &Matrix) -> Matrix {
    Matrix::new(x.view().dtype(), 1, x.cols, 0, |r, c| x.get(r, c))
}

fn adam(case: &Case) -> ops::Adam {
    ops::Adam {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        decay: 0.01,
        stochastic: case.rounding.map(|rounding| rounding.salt),
    }
}

fn adam_rule(corrections: [f32; 2]) -> Rule {
    Rule::Adam(AdamRule {
        betas: [0.9, 0.999],
        rests: [1.0 - 0.9, 1.0 - 0.999_f64].map(|rest: f64| rest as f32),
        eps: 1e-8,
        decay: 0.01,
        corrections,
    })
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn adam_matches(seed: u64, n in elements(), dtypes in [float(), float(), float()], skipped in prop::bool::weighted(0.1), at: usize) {
        let case = Case::new(seed, n, dtypes, 2, skipped);
        let corrections = [0.4, 0.003];
        let want = case.want(adam(&case), &corrections);
        for kernels in tables() {
            case.check(kernels, adam_rule(corrections), &want, at);
        }
    }

    #[test]
    fn sgd_matches(seed: u64, n in elements(), dtypes in [float(), float(), float()], nesterov: bool, skipped in prop::bool::weighted(0.1), at: usize) {
        let case = Case::new(seed, n, dtypes, 1, skipped);
        let (momentum, decay) = (0.9, 0.01);
        let stochastic = case.rounding.map(|rounding| rounding.salt);
        let want = case.want(ops::Sgd { momentum, decay, nesterov, stochastic }, &[]);
        let (momentum, decay) = (momentum as f32, decay as f32);
        let rule = Rule::Sgd(SgdRule { momentum, decay, nesterov });
        for kernels in tables() {
            case.check(kernels, rule, &want, at);
        }
    }

    #[test]
    fn sums_of_squares_match(seed: u64, n in elements(), dtype in float(), at: usize) {
        let x = Matrix::random(&mut Random::new(seed), dtype, 1, n, 0);
        let start = at % n;
        let want = SumSquares::of(&real(&x).reals()[start..]);
        let sums: Vec<f64> = tables().into_iter().map(|kernels| kernels::sum_squares(kernels, x.view(), start..n)).collect();
        for sum in &sums {
            prop_assert!((sum - want).abs() <= want * 1e-13, "{sum}, not {want}");
            prop_assert_eq!(sum.to_bits(), sums[0].to_bits());
        }
    }
}

/// Values at and beyond the ends of f16, where rounding has cases.
#[test]
fn stochastic_rounding_matches_at_the_ends() {
    let values = [
        0.0,
        -0.0,
        1e-9,
        -3e-8,
        6e-8,
        6.1e-5,
        -6.0e-5,
        1.0,
        2047.7,
        65_503.0,
        65_520.0,
        -1e9,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1.0 + 1e-4,
    ];
    for step in 0..40 {
        let p = Matrix::new(DType::F32, 1, values.len(), 0, |_, c| values[c]);
        let zeros = || Matrix::new(DType::F32, 1, values.len(), 0, |_, _| 0.0);
        let case = Case {
            tensors: vec![p, zeros(), zeros()],
            results: vec![DType::F16, DType::F32],
            factor: 1.0,
            lr: 0.0,
            rounding: Some(Rounding {
                salt: 3,
                key: [step, 0],
            }),
        };
        let (momentum, decay, nesterov) = (0.0, 0.0, false);
        let stochastic = Some(3);
        let want = case.want(
            ops::Sgd {
                momentum,
                decay,
                nesterov,
                stochastic,
            },
            &[],
        );
        let (momentum, decay) = (0.0, 0.0);
        let rule = Rule::Sgd(SgdRule {
            momentum,
            decay,
            nesterov,
        });
        for kernels in tables() {
            let mut own = [Matrix::output(DType::F16, 1, values.len(), 0), zeros()];
            let views: Vec<View<'_>> = case.tensors.iter().map(Matrix::view).collect();
            let mut out: Vec<ViewMut<'_>> = own.iter_mut().map(Matrix::view_mut).collect();
            kernels::update(
                kernels,
                &case.update(rule, &views),
                &mut out,
                0..values.len(),
            );
            // Infinities become NaN, whose bits are free.
            let want = want[0].reals().iter().enumerate();
            for (c, want) in want.filter(|(_, want)| !want.is_nan()) {
                let got = own[0].get(0, c);
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{}: {got}, not {want}",
                    kernels.name()
                );
            }
        }
    }
}
