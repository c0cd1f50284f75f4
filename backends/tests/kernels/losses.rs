//! The losses.

use lxpod_backends::cpu::kernels::{IGNORE_INDEX, bce_with_logits, cross_entropy, smooth_l1};
use lxpod_ir::DType;
use proptest::prelude::*;

use crate::support::{Matrix, Random, config, float, tables};

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-6 * want.abs().max(1.0)
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn cross_entropy_matches(seed: u64, rows in 0..9_usize, classes in 1..400_usize, dtype in float()) {
        let mut random = Random::new(seed);
        let logits = Matrix::new(dtype, rows, classes, 3, |_, _| random.next() * 9.0);
        let labels: Vec<i32> = (0..rows)
            .map(|r| if r % 3 == 2 { IGNORE_INDEX } else { (seed as usize + r * 31) as i32 & 0xffff })
            .map(|l| if l == IGNORE_INDEX { l } else { l % classes as i32 })
            .collect();
        for kernels in tables() {
            let mut each = vec![-1.0; rows];
            let total = cross_entropy(kernels, logits.view(), &labels, Some(&mut each)).expect("labels are classes");
            let mut sum = 0.0;
            for (r, &label) in labels.iter().enumerate() {
                let e: f64 = (0..classes).map(|c| f64::from(logits.get(r, c)).exp()).sum();
                let want = if label == IGNORE_INDEX { 0.0 } else { e.ln() - f64::from(logits.get(r, label as usize)) };
                prop_assert!(close(f64::from(each[r]), want), "{} row {r}: {} not {want}", kernels.name(), each[r]);
                sum += want;
            }
            prop_assert!(close(total.sum, sum));
            prop_assert_eq!(total.kept, rows - rows / 3);
            prop_assert!(total.kept == 0 || close(f64::from(total.mean()), sum / total.kept as f64));
        }
    }

    #[test]
    fn bce_matches(seed: u64, rows in 1..6_usize, cols in 1..600_usize, dtypes in [float(), float()]) {
        let mut random = Random::new(seed);
        let x = Matrix::new(dtypes[0], rows, cols, 1, |_, _| random.next() * 30.0);
        let t = Matrix::new(dtypes[1], rows, cols, 2, |_, _| random.next().abs());
        let mut want = 0.0;
        for r in 0..rows {
            for c in 0..cols {
                let (x, t) = (f64::from(x.get(r, c)), f64::from(t.get(r, c)));
                want += (1.0 + x.exp()).ln() - x * t;
            }
        }
        for kernels in tables() {
            let got = bce_with_logits(kernels, x.view(), t.view());
            prop_assert!(close(got, want), "{got} not {want}");
        }
    }

    #[test]
    fn smooth_l1_matches(seed: u64, rows in 1..6_usize, cols in 1..600_usize, dtypes in [float(), float()]) {
        let mut random = Random::new(seed);
        let x = Matrix::new(dtypes[0], rows, cols, 1, |_, _| random.next() * 3.0);
        let t = Matrix::random(&mut random, dtypes[1], rows, cols, 2);
        for kernels in tables() {
            let mut each = vec![0.0; rows];
            smooth_l1(kernels, x.view(), t.view(), &mut each);
            for (r, &got) in each.iter().enumerate() {
                let loss = |c: usize| {
                    let d = f64::from(x.get(r, c)) - f64::from(t.get(r, c));
                    if d.abs() < 1.0 { 0.5 * d * d } else { d.abs() - 0.5 }
                };
                let want = (0..cols).map(loss).sum::<f64>() / cols as f64;
                prop_assert!(close(f64::from(got), want), "row {r}: {got} not {want}");
            }
        }
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let x = Matrix::new(DType::F32, 1, 3, 0, |_, c| [1e4, -1e4, 0.0][c]);
    let t = Matrix::new(DType::F32, 1, 3, 0, |_, c| [1.0, 0.0, 0.5][c]);
    for kernels in tables() {
        assert!(close(
            bce_with_logits(kernels, x.view(), t.view()),
            2.0_f64.ln()
        ));
        let loss = cross_entropy(kernels, x.view(), &[1], None).expect("a class");
        assert!(close(loss.sum, 2e4));
    }
}

#[test]
fn nan_propagates_and_no_rows_mean_nan() {
    let x = Matrix::new(DType::F32, 2, 9, 0, |r, c| {
        if r == 0 && c == 3 { f32::NAN } else { 1.0 }
    });
    for kernels in tables() {
        let mut each = [0.0; 2];
        let total = cross_entropy(kernels, x.view(), &[1, 1], Some(&mut each)).expect("classes");
        assert!(each[0].is_nan() && each[1].is_finite() && total.sum.is_nan());
        assert!(bce_with_logits(kernels, x.view(), x.view()).is_nan());
        let none = cross_entropy(kernels, x.view(), &[IGNORE_INDEX; 2], None).expect("ignored");
        assert!(none.kept == 0 && none.mean().is_nan());
    }
}

#[test]
fn labels_outside_the_classes_are_errors() {
    let x = Matrix::new(DType::F32, 2, 9, 0, |_, _| 1.0);
    for kernels in tables() {
        for bad in [9, -1, -99, i32::MIN] {
            let error =
                cross_entropy(kernels, x.view(), &[0, bad], None).expect_err("no such class");
            assert_eq!((error.label, error.row, error.classes), (bad, 1, 9));
        }
    }
}
