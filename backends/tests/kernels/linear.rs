//! `linear`, its packed weights, and gathering from them.

use std::iter::once;

use half::f16;
use lxpod_backends::cpu::kernels::{
    Format, Kernels, Linear, Panels, Scratch, gather_panels, linear, linear_scratch,
};
use lxpod_ir::DType;
use lxpod_ir::ops::Activation;
use proptest::prelude::*;

use crate::rowwise::reference_activation;
use crate::support::{Matrix, Random, config, float, tables};

/// Packs `rows` (n × k), a few rows at a time.
fn pack(n: usize, k: usize, format: Format, rows: &[f32]) -> Panels {
    let mut panels = Panels::new(n, k, format);
    // Parts of a panel, then whole ones, then the rest.
    let mut first = 0;
    for count in [5, 11, 32, n] {
        let last = (first + count).min(n);
        panels.fill_rows(first, &rows[first * k..last * k]);
        first = last;
    }
    panels
}

/// What the weight is before it is packed.
fn stored(format: Format, x: f32) -> f64 {
    match format {
        Format::Single | Format::Fixed => f64::from(x),
        Format::Half => f64::from(f16::from_f32(x)),
    }
}

fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![
        Just(Format::Single),
        Just(Format::Half),
        Just(Format::Fixed)
    ]
}

/// Half of the unit in fixed point that a row of inputs or weights has at most: chunks of 128 are kept below the norm
/// 46330, values below 32767, and the unit is a power of two.
fn half_unit(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let largest = values.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let norms = values
        .chunks(128)
        .map(|chunk| chunk.iter().map(|x| x * x).sum::<f64>().sqrt());
    let norm = norms.fold(0.0, f64::max);
    (largest / 32767.0).max(norm / 46_330.0) * 1.000_01
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    shape: [usize; 3],
    dtypes: [DType; 2],
    format: Format,
    gaps: [usize; 2],
    bias: bool,
    activation: Option<Activation>,
}

fn case() -> impl Strategy<Value = Case> {
    let k = prop_oneof![6 => 1..70_usize, 1 => 760..780_usize, 1 => 1530..1600_usize];
    let activation = prop_oneof![
        Just(None),
        Just(Some(Activation::Gelu)),
        Just(Some(Activation::Relu)),
        Just(Some(Activation::Tanh)),
    ];
    // 128 outputs fill the widest tile of one row.
    let outputs = prop_oneof![4 => 1..70_usize, 1 => 120..150_usize];
    let rows = prop_oneof![1 => 1..4_usize, 4 => 0..40_usize];
    let shape = (rows, k, outputs).prop_map(|(m, k, n)| [m, k, n]);
    (
        any::<u64>(),
        shape,
        [float(), float()],
        formats(),
        [0..9_usize, 0..9],
        any::<bool>(),
        activation,
    )
        .prop_map(
            |(seed, shape, dtypes, format, gaps, bias, activation)| Case {
                seed,
                shape,
                dtypes,
                format,
                gaps,
                bias,
                activation,
            },
        )
}

fn check_case(kernels: &Kernels, case: &Case) {
    let [m, k, n] = case.shape;
    let mut random = Random::new(case.seed);
    let x = Matrix::random(&mut random, case.dtypes[0], m, k, case.gaps[0]);
    let rows = random.many(n * k);
    let bias = random.many(n);
    let weights = pack(n, k, case.format, &rows);
    let bias = case.bias.then_some(bias.as_slice());
    let mut y = Matrix::output(case.dtypes[1], m, n, case.gaps[1]);
    let layer = Linear {
        x: x.view(),
        weights: &weights,
        bias,
        activation: case.activation,
    };
    whole(kernels, &layer, &mut y);
    y.check(case.dtypes[1], kernels.name(), |r, c| {
        let inputs = || (0..k).map(|i| f64::from(x.get(r, i)));
        let weights = || (0..k).map(|i| stored(case.format, rows[c * k + i]));
        let products = inputs().zip(weights()).map(|(x, w)| x * w);
        let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
        let sum = sum + bias.map_or(0.0, |b| f64::from(b[c]));
        let want = case
            .activation
            .map_or(sum, |act| reference_activation(act, sum));
        let mut bound = (size + 1.0) * k as f64 * 0.5_f64.powi(24);
        if case.format == Format::Fixed {
            // Each input and each weight is off by at most half a unit.
            let (x, w) = (half_unit(inputs()), half_unit(weights()));
            let (xs, ws): (f64, f64) =
                (inputs().map(f64::abs).sum(), weights().map(f64::abs).sum());
            bound += x * ws + w * xs + x * w * k as f64;
        }
        (want, 1.2 * bound + 4e-7)
    });
}

/// All rows and columns of a layer.
fn whole(kernels: &Kernels, layer: &Linear<'_>, y: &mut Matrix) {
    let mut scratch = Scratch::new(linear_scratch(layer.x.rows(), layer.weights.k()));
    let mut units = once(0..layer.units());
    linear(kernels, layer, y.view_mut(), &mut units, &mut scratch);
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn matches_plain_loops(case in case()) {
        tables().into_iter().for_each(|kernels| check_case(kernels, &case));
    }

    #[test]
    fn bits_do_not_depend_on_rows_or_panels(
        seed: u64, m in 1..130_usize, k in prop_oneof![1..50_usize, 700..1700_usize], n in 1..150_usize, first: usize, cut: usize,
        dtype in float(), format in formats(),
    ) {
        let mut random = Random::new(seed);
        let x = Matrix::random(&mut random, dtype, m, k, 3);
        let weights = pack(n, k, format, &random.many(n * k));
        let bias = random.many(n);
        let (first, cut) = (first % m, cut % (weights.panels() + 1));
        let mut scratch = Scratch::new(linear_scratch(m, k));
        for kernels in tables() {
            let layer = Linear { x: x.view(), weights: &weights, bias: Some(&bias), activation: Some(Activation::Gelu) };
            let mut all = Matrix::output(DType::F32, m, n, 0);
            whole(kernels, &layer, &mut all);
            for last in [first + 1, (first + 2).min(m), (first + 3).min(m), (first + 7).min(m), m] {
                let layer = Linear { x: x.view().row_range(first..last), ..layer };
                let mut part = Matrix::output(DType::F32, last - first, n, 5);
                let units = layer.units();
                let cut = units * cut / weights.panels().max(1);
                linear(kernels, &layer, part.view_mut(), &mut once(cut..units), &mut scratch);
                linear(kernels, &layer, part.view_mut(), &mut [0..cut / 2, cut / 2..cut].into_iter(), &mut scratch);
                for r in first..last {
                    prop_assert_eq!(part.bits(r - first), all.bits(r), "{} row {}", kernels.name(), r);
                }
            }
        }
    }

    #[test]
    fn weights_packed_anew_are_as_packed_first(seed: u64, n in 1..70_usize, k in 1..90_usize, half: bool) {
        let (format, dtype) = if half { (Format::Half, DType::F16) } else { (Format::Single, DType::F32) };
        let weight = Matrix::random(&mut Random::new(seed), dtype, n, k, 0);
        let rows: Vec<f32> = (0..n * k).map(|i| weight.get(i / k, i % k)).collect();
        let first = pack(n, k, format, &rows);
        for kernels in tables() {
            let again = Panels::new(n, k, format);
            let mut next = 0;
            for panel in 0..again.panels() {
                let elements = again.elements(panel);
                prop_assert_eq!((elements.start, elements.len()), (next, k * 16.min(n - 16 * panel)));
                next = elements.end;
                // SAFETY: nobody else uses the panels.
                unsafe { again.refill(kernels, weight.view(), panel..panel + 1) };
            }
            prop_assert_eq!(next, n * k);
            for row in 0..n {
                let [mut a, mut b] = [vec![0.0; k], vec![1.0; k]];
                first.read_row(row, 0, &mut a);
                again.read_row(row, 0, &mut b);
                prop_assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn panels_read_back(seed: u64, n in 1..40_usize, k in 1..600_usize, half: bool) {
        let format = if half { Format::Half } else { Format::Single };
        let rows = Random::new(seed).many(n * k);
        let panels = pack(n, k, format, &rows);
        prop_assert_eq!(panels.bytes(), panels.panels() * (16 * k * format.size()).next_multiple_of(64));
        let indices: Vec<i32> = (0..n as i32).rev().collect();
        let columns: Vec<f32> = (0..n * k).map(|i| rows[i % n * k + i / n]).collect();
        let mut transposed = Panels::new(n, k, format);
        transposed.fill_columns(0, &columns[..n]);
        transposed.fill_columns(1, &columns[n..]);
        let (mut a, mut b) = (vec![0.0; k], vec![1.0; k]);
        panels.read_row(n - 1, 0, &mut a);
        transposed.read_row(n - 1, 0, &mut b);
        prop_assert_eq!(a, b);
        for kernels in tables() {
            let mut out = Matrix::output(DType::F32, n, k, 1);
            prop_assert!(gather_panels(kernels, &panels, &indices, out.view_mut(), 0..n).is_ok());
            out.check(DType::F32, "gather", |r, c| (stored(format, rows[(n - 1 - r) * k + c]), 0.0));
        }
    }
}

#[test]
fn row_blocks_agree() {
    let (m, k, n) = (2 * 96 + 5, 20, 33);
    let case = Case {
        seed: 1,
        shape: [m, k, n],
        dtypes: [DType::F16, DType::F16],
        format: Format::Half,
        gaps: [0, 0],
        bias: true,
        activation: None,
    };
    for format in [Format::Half, Format::Fixed] {
        let case = Case {
            format,
            ..case.clone()
        };
        tables()
            .into_iter()
            .for_each(|kernels| check_case(kernels, &case));
    }
}

#[test]
fn odd_numbers_stay_in_their_rows_and_columns() {
    let (m, k, n) = (7, 11, 19);
    let mut random = Random::new(4);
    let mut x = Matrix::random(&mut random, DType::F16, m, k, 0);
    x.set(2, 5, f32::NAN);
    x.set(4, 0, f32::INFINITY);
    let mut rows = random.many(n * k);
    rows[17 * k + 3] = f32::NAN;
    let formats = [Format::Half, Format::Fixed].map(|format| (format, pack(n, k, format, &rows)));
    let cases = tables()
        .into_iter()
        .flat_map(|kernels| formats.iter().map(move |case| (kernels, case)));
    for (kernels, (format, weights)) in cases {
        let mut y = Matrix::output(DType::F32, m, n, 0);
        let layer = Linear {
            x: x.view(),
            weights,
            bias: None,
            activation: None,
        };
        whole(kernels, &layer, &mut y);
        for r in 0..m {
            for c in 0..n {
                let got = y.get(r, c);
                // Fixed point has no infinities.
                if r == 2 || c == 17 || (r == 4 && *format == Format::Fixed) {
                    assert!(got.is_nan(), "({r}, {c}) is {got}");
                } else if r == 4 {
                    assert!(got.is_infinite(), "({r}, {c}) is {got}");
                } else {
                    assert!(got.is_finite(), "({r}, {c}) is {got}");
                }
            }
        }
    }
}

#[test]
fn weights_round_to_nearest_even() {
    let mut panels = Panels::new(1, 4, Format::Half);
    // Between 2048 and 2050 f16 has nothing; 65520 is the first that rounds to infinity.
    panels.fill_rows(0, &[2049.0, 2051.0, 65519.9, 65520.0]);
    let mut back = [0.0; 4];
    panels.read_row(0, 0, &mut back);
    assert_eq!(back, [2048.0, 2052.0, 65504.0, f32::INFINITY]);
}

#[test]
fn fixed_point_keeps_what_is_near_the_largest() {
    // One large weight, as many small ones as a chunk has: those below half a unit vanish, those above stay.
    let k = 200;
    let unit = 2.0_f32.powi(-14);
    let mut row = vec![unit; k];
    row[0] = 1.0;
    row[1] = unit / 4.0;
    row[2] = -1.5;
    let mut panels = Panels::new(3, k, Format::Fixed);
    panels.fill_rows(1, &row);
    let mut back = vec![0.0; k];
    panels.read_row(1, 0, &mut back);
    row[1] = 0.0;
    assert_eq!(back, row);
    panels.read_row(1, 199, &mut back[..1]);
    assert_eq!(back[0], unit);
    panels.read_row(2, 0, &mut back);
    assert_eq!(back, vec![0.0; k]);
}

#[test]
fn fixed_point_takes_rows_of_any_size() {
    // Rows whose squares leave the range of f32, full and nearly empty ones, in one product.
    let (k, n) = (300, 17);
    let mut random = Random::new(9);
    let rows = random.many(n * k);
    let weights = pack(n, k, Format::Fixed, &rows);
    let sizes = [1e-30_f32, 1e-18, 1e-8, 1.0, 1e8, 1e18, 1e30];
    let mut x = Matrix::random(&mut random, DType::F32, 2 * sizes.len(), k, 0);
    for (r, size) in sizes.into_iter().enumerate() {
        for c in 0..k {
            let value = random.many(1)[0];
            x.set(2 * r, c, size * if value < 0.0 { -1.0 } else { 1.0 });
            x.set(2 * r + 1, c, if c == 130 { size } else { 0.0 });
        }
    }
    for kernels in tables() {
        let mut y = Matrix::output(DType::F32, x.rows, n, 0);
        let layer = Linear {
            x: x.view(),
            weights: &weights,
            bias: None,
            activation: None,
        };
        whole(kernels, &layer, &mut y);
        for r in 0..x.rows {
            for c in 0..n {
                let want: f64 = (0..k)
                    .map(|i| f64::from(x.get(r, i)) * stored(Format::Fixed, rows[c * k + i]))
                    .sum();
                let size = f64::from(sizes[r / 2]);
                let error = (f64::from(y.get(r, c)) - want).abs() / size;
                assert!(
                    error < if r % 2 == 0 { 2e-2 } else { 5e-4 },
                    "row {r}: {} for {want}",
                    y.get(r, c)
                );
            }
        }
    }
}

#[test]
fn no_inputs_leave_the_bias() {
    let bias: Vec<f32> = (0..20_u8).map(f32::from).collect();
    let x = Matrix::output(DType::F16, 3, 0, 2);
    let formats = [Format::Half, Format::Fixed];
    let cases = tables()
        .into_iter()
        .flat_map(|kernels| formats.map(|format| (kernels, format)));
    for (kernels, format) in cases {
        let weights = Panels::new(20, 0, format);
        let mut y = Matrix::output(DType::F32, 3, 20, 1);
        let layer = Linear {
            x: x.view(),
            weights: &weights,
            bias: Some(&bias),
            activation: None,
        };
        whole(kernels, &layer, &mut y);
        y.check(DType::F32, kernels.name(), |_, c| (f64::from(bias[c]), 0.0));
    }
}
