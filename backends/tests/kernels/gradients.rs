//! The kernels of the backward half, against the `eval` of their ops in f64.

use std::slice::from_ref;

use lxpod_backends::cpu::kernels::{
    self, Attention, AttentionGrad, Chain, HeadDropout, IGNORE_INDEX, Kernels, LayerNormGrad,
    MATMUL_SCRATCH, Matmul, ScatterAdd, Scratch, Start, View, ViewMut,
};
use lxpod_ir::ops::{self, Activation, Eval, Op, Reduction};
use lxpod_ir::random_bits::{RowState, name_hash, part_salt};
use lxpod_ir::{DType, Extents, SpaceId, Spaces, Tensor, TensorType};
use proptest::prelude::*;

use crate::support::{Matrix, Random, config, float, tables};

/// An operand of an op: its values and its row space.
type Given = (Tensor<f64>, Option<SpaceId>);

fn real(matrix: &Matrix) -> Tensor<f64> {
    let elements = (0..matrix.rows).flat_map(|r| (0..matrix.cols).map(move |c| (r, c)));
    let values = elements.map(|(r, c)| f64::from(matrix.get(r, c)));
    Tensor::real([matrix.rows, matrix.cols], values.collect())
}

fn vector(values: &[f32]) -> Tensor<f64> {
    Tensor::real(
        [values.len()],
        values.iter().map(|&x| f64::from(x)).collect(),
    )
}

/// The results of an op, f32\[rows, columns\] each unless the row space says otherwise.
fn eval(
    op: impl Into<Op>,
    spaces: &Spaces,
    given: &[Given],
    shapes: &[&[usize]],
) -> Vec<Tensor<f64>> {
    let types: Vec<TensorType> = given
        .iter()
        .map(|(tensor, rows)| TensorType {
            rows: *rows,
            ..TensorType::fixed(DType::F32, tensor.shape.clone())
        })
        .collect();
    let outputs: Vec<TensorType> = shapes
        .iter()
        .map(|shape| TensorType::fixed(DType::F32, *shape))
        .collect();
    let inputs: Vec<&Tensor<f64>> = given.iter().map(|(tensor, _)| tensor).collect();
    let context = Eval {
        inputs: &inputs,
        types: &types,
        outputs: &outputs,
        extents: &Extents::full(spaces),
        spaces,
    };
    op.into().eval(&context).expect("operands that fit")
}

/// [`eval`] of operands without row spaces.
fn plain(op: impl Into<Op>, given: Vec<Tensor<f64>>, shapes: &[&[usize]]) -> Vec<Tensor<f64>> {
    let given: Vec<Given> = given.into_iter().map(|tensor| (tensor, None)).collect();
    eval(op, &Spaces::default(), &given, shapes)
}

/// Checks a matrix against a tensor of as many elements, within `allowed` of f32.
fn check(kernels: &Kernels, dtype: DType, out: &Matrix, want: &Tensor<f64>, allowed: f64) {
    let want = want.reals();
    assert_eq!(want.len(), out.rows * out.cols);
    out.check(dtype, kernels.name(), |r, c| {
        (want[r * out.cols + c], allowed)
    });
}

/// The units in one range, or in ranges of three by two workers.
fn units(count: usize, split: bool) -> Vec<Vec<std::ops::Range<usize>>> {
    if !split {
        return vec![vec![0..count]];
    }
    let ranges = |odd: usize| {
        let starts = (0..count)
            .step_by(3)
            .filter(move |start| start / 3 % 2 == odd);
        starts.map(|start| start..count.min(start + 3)).collect()
    };
    vec![ranges(1), ranges(0)]
}

fn multiply(
    kernels: &Kernels,
    product: &Matmul<'_>,
    start: Start<'_>,
    out: &mut Matrix,
    split: bool,
) {
    let mut scratch = Scratch::new(MATMUL_SCRATCH);
    for ranges in units(product.units(), split) {
        let all = 0..product.b.rows();
        let chain = Chain::new(from_ref(&all), start, out.view_mut());
        kernels::matmul(
            kernels,
            product,
            &[chain],
            &mut ranges.into_iter(),
            &mut scratch,
        );
    }
}

fn depth() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 6 => 0..70_usize, 1 => 250..270_usize, 1 => 380..400_usize, 1 => 760..780_usize]
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn products_match(
        seed: u64, m in prop_oneof![8 => 1..40_usize, 1 => 90..110_usize, 1 => 280..300_usize], d in depth(),
        n in prop_oneof![8 => 1..90_usize, 1 => 400..420_usize],
        dtypes in [float(), float(), float()], transposed: bool, added: bool, gap in 0..5_usize, workers in 1..5_usize,
    ) {
        let mut random = Random::new(seed);
        let shape = if transposed { [d, m] } else { [m, d] };
        let a = Matrix::random(&mut random, dtypes[0], shape[0], shape[1], gap);
        let b = Matrix::random(&mut random, dtypes[1], d, n, gap + 1);
        let start = Matrix::random(&mut random, dtypes[2], m, n, gap);
        let mut given = vec![real(&a), real(&b)];
        let want = if transposed {
            given.extend(added.then(|| real(&start)));
            plain(ops::WeightGrad {}, given, &[&[m, n]])
        } else {
            plain(ops::Matmul {}, given, &[&[m, n]])
        };
        let from = if added && transposed { Start::From(start.view()) } else { Start::Zero };
        let product = Matmul { a: a.view(), transposed, b: b.view(), workers };
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[2], m, n, gap);
            multiply(kernels, &product, from, &mut out, false);
            check(kernels, dtypes[2], &out, &want[0], 2e-6 * (d as f64).max(4.0));
            let mut parts = Matrix::output(dtypes[2], m, n, gap);
            multiply(kernels, &product, from, &mut parts, true);
            let mut row = Matrix::output(dtypes[2], 1, n, 0);
            let last = m - 1..m;
            let a = if transposed { a.view().col_range(last.clone()) } else { a.view().row_range(last.clone()) };
            let from = match from {
                Start::From(start) => Start::From(start.row_range(last)),
                zero => zero,
            };
            multiply(kernels, &Matmul { a, workers: 1, ..product }, from, &mut row, false);
            prop_assert_eq!(row.bits(0), out.bits(m - 1));
            for r in 0..m {
                prop_assert_eq!(parts.bits(r), out.bits(r));
            }
            let zeros = Matrix::new(dtypes[2], m, n, gap, |_, _| 0.0);
            let [fresh, reset, started] = [Start::Zero, Start::Reset, Start::From(zeros.view())].map(|from| {
                let mut out = Matrix::output(dtypes[2], m, n, gap);
                multiply(kernels, &product, from, &mut out, false);
                out
            });
            for r in 0..m {
                prop_assert_eq!(fresh.bits(r), started.bits(r));
                prop_assert_eq!(reset.bits(r), started.bits(r));
            }
        }
    }

    #[test]
    fn chains_go_on_from_those_before(
        seed: u64, m in prop_oneof![8 => 1..40_usize, 1 => 90..220_usize],
        n in prop_oneof![8 => 1..90_usize, 1 => 400..420_usize],
        cuts in prop::collection::vec(depth(), 1..6), dtypes in [float(), float(), float()], fresh: bool, apart: bool, transposed: bool,
        workers in 1..5_usize,
    ) {
        let mut random = Random::new(seed);
        let rows: usize = cuts.iter().sum();
        let [a, b] = [(dtypes[0], m), (dtypes[1], n)].map(|(dtype, cols)| Matrix::random(&mut random, dtype, rows, cols, 1));
        let start = Matrix::random(&mut random, dtypes[2], m, n, 0);
        let mut ranges = Vec::new();
        for cut in cuts {
            let from = ranges.last().map_or(0, |last: &std::ops::Range<usize>| last.end);
            ranges.push(from..from + cut);
        }
        // End to end, or every other chain is over two ranges, the later one first.
        let pairs = ranges.chunks(3).flat_map(|three| match three {
            [one, two, three] if apart => vec![vec![one.clone()], vec![three.clone(), two.clone()]],
            fewer => fewer.iter().map(|range| vec![range.clone()]).collect(),
        });
        let chains: Vec<Vec<std::ops::Range<usize>>> = pairs.collect();
        // The left side as it is, or by rows.
        let turned = |a: &Matrix| match transposed {
            true => Matrix::new(a.view().dtype(), a.rows, m, 1, |r, c| a.get(r, c)),
            false => Matrix::new(a.view().dtype(), m, a.rows, 1, |r, c| a.get(c, r)),
        };
        let left = turned(&a);
        let product = Matmul { a: left.view(), transposed, b: b.view(), workers };
        let first = if fresh { Start::Reset } else { Start::From(start.view()) };
        for kernels in tables() {
            let mut want = Matrix::output(dtypes[2], m, n, 2);
            let mut scratch = Scratch::new(MATMUL_SCRATCH);
            let all = || std::iter::once(0..product.units());
            for (index, over) in chains.iter().enumerate() {
                // The rows of a chain end to end.
                let picked: Vec<usize> = over.iter().cloned().flatten().collect();
                let [a, b] = [&a, &b].map(|x| Matrix::new(x.view().dtype(), picked.len(), x.cols, 0, |r, c| x.get(picked[r], c)));
                let before = Matrix::new(dtypes[2], m, n, 0, |r, c| if index == 0 { 0.0 } else { want.get(r, c) });
                let from = if index == 0 { first } else { Start::From(before.view()) };
                let left = turned(&a);
                let own = Matmul { a: left.view(), b: b.view(), ..product };
                multiply(kernels, &own, from, &mut want, false);
            }
            let mut out = Matrix::output(dtypes[2], m, n, 2);
            let (sum, places) = out.in_places(chains.len());
            let chain = |((index, over), out): ((usize, _), _)| {
                Chain::new(over, if index == 0 { first } else { Start::From(sum) }, out)
            };
            let several: Vec<Chain<'_>> = chains.iter().map(Vec::as_slice).enumerate().zip(places).map(chain).collect();
            kernels::matmul(kernels, &product, &several, &mut all(), &mut scratch);
            drop(several);
            let mut one = Matrix::output(dtypes[2], m, n, 2);
            let over = chains.concat();
            let chain = Chain::new(&over, first, one.view_mut());
            kernels::matmul(kernels, &product, &[chain], &mut all(), &mut scratch);
            for r in 0..m {
                prop_assert_eq!(out.bits(r), want.bits(r));
                // Nothing is rounded between them.
                prop_assert!(dtypes[2] != DType::F32 || one.bits(r) == want.bits(r));
            }
        }
    }

    #[test]
    fn whole_cache_lines_get_the_same_results(
        seed: u64, m in prop_oneof![8 => 1..60_usize, 1 => 190..220_usize], lines in 1..30_usize,
        cuts in prop::collection::vec(depth(), 1..4), split: bool, workers in 1..5_usize,
    ) {
        let (mut random, n) = (Random::new(seed), 16 * lines);
        let rows: usize = cuts.iter().sum();
        let [a, b] = [m, n].map(|cols| Matrix::random(&mut random, DType::F32, rows, cols, 0));
        let product = Matmul { a: a.view(), transposed: true, b: b.view(), workers };
        let mut end = 0;
        let ranges: Vec<_> = cuts.iter().map(|cut| end..{ end += cut; end }).collect();
        for kernels in tables() {
            let mut scratch = Scratch::new(MATMUL_SCRATCH);
            // From a cache line on, and from four bytes after one.
            let [whole, other] = [0, 1].map(|after| -> Result<Vec<f32>, TestCaseError> {
                let mut memory = vec![-33.0_f32; m * n + 17];
                let first = memory.as_ptr().align_offset(64) + after;
                let mut squares = Some(0.0);
                for range in units(product.units(), split) {
                    let mut results = memory[first..first + m * n].to_vec();
                    for (index, over) in ranges.iter().enumerate() {
                        let before = Start::From(View::new(&results, m, n));
                        let start = if index == 0 { Start::Reset } else { before };
                        let out = ViewMut::new(&mut memory[first..first + m * n], m, n);
                        let chain = Chain::new(from_ref(over), start, out);
                        let sum = kernels::matmul(kernels, &product, &[chain], &mut range.iter().cloned(), &mut scratch);
                        match index {
                            0 => squares = squares.zip(sum).map(|(all, own)| all + own),
                            _ => prop_assert_eq!(sum, None),
                        }
                        results = memory[first..first + m * n].to_vec();
                    }
                }
                let want = (after == 0 && ranges.len() == 1).then(|| memory[first..first + m * n].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>());
                match (squares, want) {
                    (Some(sum), Some(want)) => prop_assert!((sum - want).abs() <= 1e-12 * want, "{sum} and {want}"),
                    (sum, _) => prop_assert_eq!(sum.is_some(), after == 0),
                }
                prop_assert!(memory[..first].iter().chain(&memory[first + m * n..]).all(|&x| x == -33.0));
                Ok(memory[first..first + m * n].to_vec())
            });
            prop_assert_eq!(whole?, other?);
        }
    }

    #[test]
    fn sums_over_some_rows_are_those_of_the_rows_alone(
        seed: u64, rows in 3..50_usize, cols in 1..200_usize, dtypes in [float(), float()], at: [usize; 2],
    ) {
        let mut random = Random::new(seed);
        let [dy, x] = [0, 1].map(|i| Matrix::random(&mut random, dtypes[0], rows, cols, i));
        let gamma = random.many(cols);
        let [first, second] = at.map(|at| at % rows);
        let over = [first.min(second)..first.max(second), 0..first.min(second)];
        let picked: Vec<usize> = over.iter().cloned().flatten().collect();
        let alone = [&dy, &x].map(|x| Matrix::new(dtypes[0], picked.len(), cols, 0, |r, c| x.get(picked[r], c)));
        let mut scratch = Scratch::new(kernels::layer_norm_grad_scratch(rows));
        for kernels in tables() {
            let mut sums = |dy: &Matrix, x: &Matrix, over: &[std::ops::Range<usize>]| {
                let mut out = [(); 4].map(|()| Matrix::new(dtypes[1], 1, cols, 0, |_, c| gamma[c]));
                let [plain, started, gain, bias] = &mut out;
                kernels::sum_rows(kernels, x.view(), over, None, plain.view_mut(), 0..cols);
                let (start, place) = started.in_place();
                kernels::sum_rows(kernels, x.view(), over, Some(start), place, 0..cols);
                let grad = LayerNormGrad { dy: dy.view(), x: x.view(), residual: None, gamma: &gamma, eps: 1e-3 };
                let moments = kernels::layer_norm_moments(kernels, &grad, &mut scratch);
                let sums = [gain.view_mut(), bias.view_mut()];
                kernels::layer_norm_grad_sums(kernels, &grad, moments, over, sums, 0..cols);
                out.map(|sum| sum.bits(0))
            };
            let want = sums(&alone[0], &alone[1], from_ref(&(0..picked.len())));
            prop_assert_eq!(sums(&dy, &x, &over), want);
        }
    }

    #[test]
    fn sums_of_rows_match(
        seed: u64, rows in 0..50_usize, cols in 1..200_usize, dtypes in [float(), float(), float()], started: bool, at: usize,
    ) {
        let mut random = Random::new(seed);
        let x = Matrix::random(&mut random, dtypes[0], rows, cols, 3);
        let start = Matrix::random(&mut random, dtypes[2], 1, cols, 0);
        let mut given = vec![real(&x)];
        given.extend(started.then(|| vector(&(0..cols).map(|c| start.get(0, c)).collect::<Vec<_>>())));
        let want = plain(ops::SumRows {}, given, &[&[cols]]);
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[1], 1, cols, 0);
            for columns in [0..at % cols, at % cols..cols] {
                let start = started.then(|| start.view());
                kernels::sum_rows(kernels, x.view(), from_ref(&(0..rows)), start, out.view_mut(), columns);
            }
            check(kernels, dtypes[1], &out, &want[0], 1e-5);
        }
    }

    #[test]
    fn scattered_rows_match(
        seed: u64, picks in prop::collection::vec(0..1000_i32, 0..40), rows in 1..20_usize, cols in 1..70_usize,
        dtypes in [float(), float()], padded: bool, started: bool, at: usize,
    ) {
        let mut random = Random::new(seed);
        let index: Vec<i32> = picks.iter().map(|pick| pick % rows as i32).collect();
        let x = Matrix::random(&mut random, dtypes[0], index.len(), cols, 2);
        let start = Matrix::random(&mut random, dtypes[1], rows, cols, 1);
        let padding = padded.then_some(0);
        let mut given = vec![real(&x), Tensor::int([index.len()], index.clone())];
        given.extend(started.then(|| real(&start)));
        let want = plain(ops::ScatterAddRows { padding }, given, &[&[rows, cols]]);
        let scatter = ScatterAdd { x: x.view(), index: &index, padding, start: started.then(|| start.view()) };
        let mut scratch = Scratch::new(cols);
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[1], rows, cols, 1);
            for part in [0..at % rows, at % rows..rows] {
                let done = kernels::scatter_add(kernels, &scatter, out.view_mut(), part, &mut scratch);
                prop_assert!(done.is_ok());
            }
            check(kernels, dtypes[1], &out, &want[0], 1e-5);
        }
    }

    #[test]
    fn dropped_elements_match(seed: u64, rows in 1..6_usize, cols in 1..90_usize, dtypes in [float(), float()], rate in 0.0..0.99_f32) {
        let x = Matrix::random(&mut Random::new(seed), dtypes[0], rows, cols, 1);
        let (salt, key) = (seed ^ 9, [seed as u32, 3]);
        let mut spaces = Spaces::default();
        let sample = spaces.entities("sample", 1);
        let space = spaces.segments("text", sample, rows);
        let given = [(real(&x), Some(space)), keys_of(key, sample)];
        let want = eval(ops::Dropout { rate, salt }, &spaces, &given, &[&[rows, cols]]);
        let part = part_salt(salt, name_hash("text"));
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[1], rows, cols, 2);
            let state = |row: usize| RowState::new(key, part, row as u32);
            kernels::dropout(kernels, x.view(), rate, state, out.view_mut(), 0..rows);
            check(kernels, dtypes[1], &out, &want[0], 2e-5);
        }
    }

    #[test]
    fn attention_with_dropout_matches(
        seed: u64, nq in 1..20_usize, nk in 1..40_usize, d in 1..40_usize, dtypes in [float(), float()], rate in 0.0..0.9_f32,
    ) {
        let mut random = Random::new(seed);
        let [q, k, v] = [nq, nk, nk].map(|rows| Matrix::random(&mut random, dtypes[0], rows, d, 3));
        let mask = vec![1.0; nk];
        let key = [seed as u32, 3];
        let mut spaces = Spaces::default();
        let sample = spaces.entities("sample", 1);
        let queries = Some(spaces.segments("queries", sample, nq));
        let keys = Some(spaces.segments("keys", sample, nk));
        let given = [(real(&q), queries), (real(&k), keys), (real(&v), keys), (vector(&mask), keys), keys_of(key, sample)];
        let dropout = Some(ops::Dropout { rate, salt: seed });
        let op = ops::Attention { heads: 1, scale: 0.7, probabilities: true, dropout };
        let want = eval(op, &spaces, &given, &[&[nq, d], &[nq, 1, nk]]);
        let dropout = Some(HeadDropout { rate, key, salt: part_salt(seed, 0) });
        let inputs = Attention { q: q.view(), k: k.view(), v: v.view(), mask: &mask, scale: 0.7, dropout };
        let mut scratch = Scratch::new(kernels::attention_scratch(nk, d));
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[1], nq, d, 1);
            let mut probs = Matrix::output(dtypes[1], nq, nk, 2);
            kernels::attention_head(kernels, &inputs, out.view_mut(), Some(probs.view_mut()), &mut scratch);
            check(kernels, dtypes[1], &out, &want[0], 1e-4);
            check(kernels, dtypes[1], &probs, &want[1], 5e-5);
        }
    }

    #[test]
    fn slopes_match(seed: u64, rows in 1..6_usize, cols in 1..90_usize, dtypes in [float(), float(), float()]) {
        let mut random = Random::new(seed);
        let dy = Matrix::random(&mut random, dtypes[0], rows, cols, 1);
        let x = Matrix::new(dtypes[1], rows, cols, 2, |_, _| 8.0 * random.next());
        for kernels in tables() {
            for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh] {
                let want = plain(ops::ActivateGrad { kind }, vec![real(&dy), real(&x)], &[&[rows, cols]]);
                let mut out = Matrix::output(dtypes[2], rows, cols, 3);
                kernels::activate_grad(kernels, dy.view(), x.view(), kind, out.view_mut(), 0..rows);
                check(kernels, dtypes[2], &out, &want[0], 1e-6);
            }
        }
    }

    #[test]
    fn layer_norm_gradients_match(
        seed: u64, rows in 1..12_usize, cols in 2..200_usize, dtypes in [float(), float(), float()], with_residual: bool, at: usize,
    ) {
        let mut random = Random::new(seed);
        let [dy, x, z] = [0, 1, 1].map(|i| Matrix::random(&mut random, dtypes[i], rows, cols, i));
        let gamma = random.many(cols);
        let mut given = vec![real(&dy), real(&x), vector(&gamma)];
        given.extend(with_residual.then(|| real(&z)));
        let eps = 1e-3;
        let shapes: [&[usize]; 3] = [&[rows, cols], &[cols], &[cols]];
        let want = plain(ops::LayerNormGrad { eps: f64::from(eps) }, given, &shapes);
        let residual = with_residual.then(|| z.view());
        let grad = LayerNormGrad { dy: dy.view(), x: x.view(), residual, gamma: &gamma, eps };
        let mut scratch = Scratch::new(kernels::layer_norm_grad_scratch(rows));
        for kernels in tables() {
            let mut dz = Matrix::output(dtypes[2], rows, cols, 1);
            kernels::layer_norm_grad(kernels, &grad, dz.view_mut(), 0..rows);
            check(kernels, dtypes[2], &dz, &want[0], 3e-4);
            let moments = kernels::layer_norm_moments(kernels, &grad, &mut scratch);
            let [mut gain, mut bias] = [(); 2].map(|()| Matrix::output(dtypes[2], 1, cols, 0));
            for columns in [0..at % cols, at % cols..cols] {
                let sums = [gain.view_mut(), bias.view_mut()];
                kernels::layer_norm_grad_sums(kernels, &grad, moments, from_ref(&(0..rows)), sums, columns);
            }
            check(kernels, dtypes[2], &gain, &want[1], 1e-4);
            check(kernels, dtypes[2], &bias, &want[2], 1e-5);
        }
    }

    #[test]
    fn attention_gradients_match(
        seed: u64, nq in 1..20_usize, nk in 1..40_usize, d in prop_oneof![Just(64), 1..40_usize],
        dtypes in [float(), float()], holes in 0..4_u32, given: bool,
        rate in prop::option::of(0.0..0.9_f32),
    ) {
        let mut random = Random::new(seed);
        let rows = [nq, nq, nk, nk];
        let parts = rows.map(|rows| Matrix::random(&mut random, dtypes[0], rows, d, 3));
        let [dy, q, k, v] = &parts;
        let dprobs = Matrix::random(&mut random, dtypes[0], nq, nk, 2);
        let mut mask = || if random.next() * 4.0 < holes as f32 - 3.5 { 0.0 } else { 1.0 };
        let mask: Vec<f32> = (0..nk).map(|_| mask()).collect();
        let key = [seed as u32, 5];
        let dropout = rate.map(|rate| ops::Dropout { rate, salt: seed });
        let want = attention_reference([dy, q, k, v], &mask, given.then_some(&dprobs), dropout.map(|d| (d, key)));
        let dropout = rate.map(|rate| HeadDropout { rate, key, salt: part_salt(seed, 0) });
        let forward = Attention { q: q.view(), k: k.view(), v: v.view(), mask: &mask, scale: 0.7, dropout };
        let grad = AttentionGrad { forward, dy: dy.view(), dprobs: given.then(|| dprobs.view()) };
        let mut scratch = Scratch::new(kernels::attention_grad_scratch(nq, nk, d));
        for kernels in tables() {
            let mut out = [nq, nk, nk].map(|rows| Matrix::output(dtypes[1], rows, d, 1));
            let views = out.each_mut().map(Matrix::view_mut);
            kernels::attention_grad_head(kernels, &grad, views, &mut scratch);
            for (out, want) in out.iter().zip(&want) {
                check(kernels, dtypes[1], out, want, if rate.is_some() { 5e-3 } else { 2e-4 });
            }
        }
    }

    #[test]
    fn loss_gradients_match(seed: u64, rows in 1..9_usize, cols in 1..90_usize, dtypes in [float(), float()], picks in prop::collection::vec(-1..1000_i32, 9)) {
        let mut random = Random::new(seed);
        let x = Matrix::new(dtypes[0], rows, cols, 2, |_, _| 6.0 * random.next());
        let target = Matrix::random(&mut random, dtypes[0], rows, cols, 1);
        let weights = random.many(rows);
        let label = |&pick: &i32| if pick < 0 { IGNORE_INDEX } else { pick % cols as i32 };
        let labels: Vec<i32> = picks[..rows].iter().map(label).collect();
        let (dloss, shape) = (0.75, [rows, cols]);
        let scalar = Tensor::real([], vec![dloss]);
        let count = (rows * cols) as f64;
        let reduction = Reduction::Weighted;
        let given = vec![scalar.clone(), real(&x), Tensor::int([rows], labels.clone()), vector(&weights)];
        let cross_entropy = plain(ops::CrossEntropyGrad { reduction }, given, &[&shape]);
        let bce = plain(ops::BceGrad { factor: 3.0 }, vec![scalar.clone(), real(&x), real(&target)], &[&shape]);
        let given = vec![scalar, real(&x), real(&target), vector(&weights)];
        let smooth_l1 = plain(ops::SmoothL1Grad {}, given, &[&shape]);
        for kernels in tables() {
            let mut out = Matrix::output(dtypes[1], rows, cols, 3);
            let factor = |row: usize| dloss * f64::from(weights[row]) / rows as f64;
            let done = kernels::cross_entropy_grad(kernels, x.view(), &labels, factor, out.view_mut(), 0..rows);
            prop_assert!(done.is_ok());
            check(kernels, dtypes[1], &out, &cross_entropy[0], 1e-6);
            let factor = (dloss * 3.0 / count) as f32;
            kernels::bce_grad(kernels, x.view(), target.view(), factor, out.view_mut(), 0..rows);
            check(kernels, dtypes[1], &out, &bce[0], 2e-6);
            for (row, &weight) in weights.iter().enumerate() {
                let factor = (dloss * f64::from(weight) / count) as f32;
                kernels::smooth_l1_grad(kernels, x.view(), target.view(), factor, out.view_mut(), row..row + 1);
            }
            check(kernels, dtypes[1], &out, &smooth_l1[0], 1e-6);
            kernels::zeros(kernels, out.view_mut(), 0..rows);
            out.check(dtypes[1], kernels.name(), |_, _| (0.0, 0.0));
        }
    }
}

/// The keys of one entity.
fn keys_of(key: [u32; 2], owner: SpaceId) -> Given {
    let words = key.map(u32::cast_signed).to_vec();
    (Tensor::int([1, 2], words), Some(owner))
}

/// dq, dk, dv of one head of one segment.
fn attention_reference(
    [dy, q, k, v]: [&Matrix; 4],
    mask: &[f32],
    dprobs: Option<&Matrix>,
    dropout: Option<(ops::Dropout, [u32; 2])>,
) -> Vec<Tensor<f64>> {
    let mut spaces = Spaces::default();
    let sample = spaces.entities("sample", 1);
    let queries = Some(spaces.segments("queries", sample, q.rows));
    let keys = Some(spaces.segments("keys", sample, k.rows));
    let mut given = vec![(real(dy), queries), (real(q), queries)];
    given.extend([k, v].map(|x| (real(x), keys)));
    given.push((vector(mask), keys));
    given.extend(dropout.as_ref().map(|(_, key)| keys_of(*key, sample)));
    given.extend(dprobs.map(|p| {
        let values = real(p).reals().to_vec();
        (Tensor::real([p.rows, 1, p.cols], values), queries)
    }));
    let op = ops::AttentionGrad {
        heads: 1,
        scale: 0.7,
        dropout: dropout.map(|(dropout, _)| dropout),
    };
    let shapes = [q, k, v].map(|x| [x.rows, x.cols]);
    eval(
        op,
        &spaces,
        &given,
        &shapes.each_ref().map(|shape| &shape[..]),
    )
}

#[test]
fn scatter_refuses_what_is_outside() {
    let x = Matrix::random(&mut Random::new(1), DType::F32, 2, 6, 0);
    for kernels in tables() {
        for bad in [4, -1, i32::MAX, i32::MIN] {
            let mut out = Matrix::output(DType::F32, 4, 6, 0);
            let index = [3, bad];
            let scatter = ScatterAdd {
                x: x.view(),
                index: &index,
                padding: None,
                start: None,
            };
            let mut scratch = Scratch::new(6);
            let done = kernels::scatter_add(kernels, &scatter, out.view_mut(), 0..4, &mut scratch);
            let error = done.expect_err("no such row");
            assert_eq!((error.index, error.position, error.rows), (bad, 1, 4));
        }
    }
}
