//! `attention_head`.

use lxpod_backends::cpu::kernels::{
    Attention, Kernels, Scratch, attention_head, attention_scratch,
};
use lxpod_ir::DType;
use proptest::prelude::*;

use crate::support::{Matrix, Random, config, float, tables};

struct Head {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    mask: Vec<f32>,
    scale: f32,
}

impl Head {
    fn random(random: &mut Random, dtype: DType, [nq, nk, d]: [usize; 3]) -> Self {
        let [q, k, v] = [nq, nk, nk].map(|rows| Matrix::random(random, dtype, rows, d, 5));
        Head {
            q,
            k,
            v,
            mask: vec![1.0; nk],
            scale: 3.0,
        }
    }

    /// Runs the head for some query rows and the first `nk` keys: results and probabilities.
    fn run(
        &self,
        kernels: &Kernels,
        queries: std::ops::Range<usize>,
        nk: usize,
        dtype: DType,
    ) -> (Matrix, Matrix) {
        let d = self.q.cols;
        let mut y = Matrix::output(dtype, queries.len(), d, 3);
        let mut p = Matrix::output(dtype, queries.len(), nk, 2);
        let inputs = Attention {
            q: self.q.view().row_range(queries),
            k: self.k.view().row_range(0..nk),
            v: self.v.view().row_range(0..nk),
            mask: &self.mask[..nk],
            scale: self.scale,
            dropout: None,
        };
        let mut scratch = Scratch::new(attention_scratch(nk, d));
        attention_head(
            kernels,
            &inputs,
            y.view_mut(),
            Some(p.view_mut()),
            &mut scratch,
        );
        let mut alone = Matrix::output(dtype, y.rows, d, 0);
        attention_head(kernels, &inputs, alone.view_mut(), None, &mut scratch);
        for r in 0..y.rows {
            assert_eq!(alone.bits(r), y.bits(r), "with and without probabilities");
        }
        (y, p)
    }

    /// The probabilities of query `r`, in f64.
    fn reference(&self, r: usize) -> Vec<f64> {
        let score = |j: usize| -> f64 {
            let dot: f64 = (0..self.q.cols)
                .map(|c| f64::from(self.q.get(r, c)) * f64::from(self.k.get(j, c)))
                .sum();
            let masked = (1.0 - f64::from(self.mask[j])) * f64::from(f32::MIN);
            f64::from((dot * f64::from(self.scale) + masked) as f32)
        };
        let scores: Vec<f64> = (0..self.mask.len()).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = e.iter().sum();
        e.iter().map(|e| e / total).collect()
    }

    fn check(&self, kernels: &Kernels, dtype: DType) {
        let (y, p) = self.run(kernels, 0..self.q.rows, self.mask.len(), dtype);
        let reference: Vec<Vec<f64>> = (0..self.q.rows).map(|r| self.reference(r)).collect();
        p.check(dtype, kernels.name(), |r, j| {
            (reference[r][j], 3e-5 * reference[r][j] + 1e-12)
        });
        y.check(dtype, kernels.name(), |r, c| {
            let want = reference[r]
                .iter()
                .enumerate()
                .map(|(j, p)| p * f64::from(self.v.get(j, c)))
                .sum();
            (want, 3e-5)
        });
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn matches_plain_loops(
        seed: u64, nq in 0..30_usize, nk in 1..70_usize, d in prop_oneof![1..20_usize, Just(64), 60..70_usize],
        dtype in float(), out in float(), holes in 0..4_u32,
    ) {
        let mut random = Random::new(seed);
        let mut head = Head::random(&mut random, dtype, [nq, nk, d]);
        for mask in &mut head.mask {
            *mask = if random.next() * 4.0 < holes as f32 - 3.5 { 0.0 } else { 1.0 };
        }
        tables().into_iter().for_each(|kernels| head.check(kernels, out));
    }

    #[test]
    fn bits_do_not_depend_on_masked_keys_or_other_queries(
        seed: u64, nq in 1..20_usize, kept in 1..40_usize, dropped in 0..40_usize, d in prop_oneof![Just(64_usize), 1..40_usize], first: usize,
    ) {
        let mut random = Random::new(seed);
        let mut head = Head::random(&mut random, DType::F16, [nq, kept + dropped, d]);
        head.mask[kept..].fill(0.0);
        if kept > 2 {
            head.mask[kept / 2] = 0.0;
        }
        let first = first % nq;
        for kernels in tables() {
            let (y, p) = head.run(kernels, 0..nq, kept + dropped, DType::F32);
            for last in [first + 1, nq] {
                let (y2, p2) = head.run(kernels, first..last, kept, DType::F32);
                for r in first..last {
                    prop_assert_eq!(y2.bits(r - first), y.bits(r), "{} query {}", kernels.name(), r);
                    let p = p.bits(r);
                    prop_assert_eq!(p2.bits(r - first), &p[..kept]);
                    prop_assert!(p[kept..].iter().all(|&bits| bits == 0));
                }
            }
        }
    }
}

#[test]
fn long_segments_match() {
    let head = Head::random(&mut Random::new(9), DType::F16, [23, 512, 64]);
    tables()
        .into_iter()
        .for_each(|kernels| head.check(kernels, DType::F32));
}

#[test]
fn a_fully_masked_row_is_uniform() {
    for nk in [1, 3, 8, 20, 36] {
        let mut head = Head::random(&mut Random::new(3), DType::F32, [5, nk, 64]);
        head.mask.fill(0.0);
        for kernels in tables() {
            let (y, p) = head.run(kernels, 0..5, nk, DType::F32);
            p.check(DType::F32, kernels.name(), |_, _| (1.0 / nk as f64, 0.0));
            y.check(DType::F32, kernels.name(), |_, c| {
                (
                    (0..nk).map(|j| f64::from(head.v.get(j, c))).sum::<f64>() / nk as f64,
                    1e-6,
                )
            });
        }
    }
}

#[test]
fn fractional_masks_are_extrapolated() {
    let mut head = Head::random(&mut Random::new(5), DType::F32, [4, 9, 16]);
    head.mask = vec![0.5, 1.0, 0.5, 0.0, 1.0, 0.999, 0.25, 1.0, 0.75];
    tables()
        .into_iter()
        .for_each(|kernels| head.check(kernels, DType::F32));
    head.mask = vec![0.5, 0.25, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0, 0.5];
    tables()
        .into_iter()
        .for_each(|kernels| head.check(kernels, DType::F32));
}

#[test]
fn underflow_leaves_no_negative_zero() {
    let mut head = Head::random(&mut Random::new(6), DType::F32, [1, 12, 4]);
    head.v = Matrix::new(
        DType::F32,
        12,
        4,
        0,
        |r, _| if r < 3 { -1e-45 } else { 1.0 },
    );
    head.mask[3..].fill(0.0);
    head.q = Matrix::new(DType::F32, 1, 4, 0, |_, _| 0.0);
    for kernels in tables() {
        let (whole, part) = (
            head.run(kernels, 0..1, 12, DType::F32).0,
            head.run(kernels, 0..1, 3, DType::F32).0,
        );
        assert_eq!(whole.bits(0), part.bits(0));
    }
}

#[test]
fn nan_stays_in_its_query() {
    let mut head = Head::random(&mut Random::new(8), DType::F32, [9, 13, 24]);
    head.q.set(4, 7, f32::NAN);
    for kernels in tables() {
        let (y, p) = head.run(kernels, 0..9, 13, DType::F32);
        for r in 0..9 {
            assert_eq!((0..24).all(|c| y.get(r, c).is_nan()), r == 4);
            assert_eq!((0..13).any(|c| p.get(r, c).is_nan()), r == 4);
        }
    }
}

#[test]
fn no_keys_give_zeros() {
    let head = Head::random(&mut Random::new(2), DType::F32, [3, 0, 10]);
    for kernels in tables() {
        let (y, _) = head.run(kernels, 0..3, 0, DType::F32);
        y.check(DType::F32, kernels.name(), |_, _| (0.0, 0.0));
    }
}
