//! The CPU kernels at LXMERT's shapes, one call on one thread.
//!
//! `cargo bench --bench kernels -- --quick`, or with a filter: `-- linear/f16`. Throughputs of
//! `linear` and `attention` count floating-point operations, so Gelem/s reads as GFLOP/s.

#![allow(
    missing_docs,
    reason = "criterion's macros make items without documentation"
)]

mod support;

use std::hint::black_box;
use std::iter::once;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use lxpod_backends::cpu::kernels::{
    Attention, Element, Format, Kernels, LayerNorm, Linear, Panels, Scratch, View, ViewMut,
    activate, attention_head, attention_scratch, gather, layer_norm, linear, linear_scratch,
};
use lxpod_ir::DType;
use lxpod_ir::ops::Activation;

use support::{Random, settings};

/// Bytes of weights that `linear` walks through in turn: several times any last-level cache this is
/// likely to run on, so that weights stream from memory as they do between the layers of a model.
const WEIGHTS: usize = 256 << 20;
const HIDDEN: usize = 768;
const HEADS: usize = 12;

fn table() -> &'static Kernels {
    Kernels::select().expect("LXPOD_ISA names kernels that this CPU can run")
}

/// A float that a matrix can be made of.
trait Float: Element + Clone {
    fn of(x: f32) -> Self;
}

impl Float for f32 {
    fn of(x: f32) -> Self {
        x
    }
}

impl Float for f16 {
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }
}

fn matrix<T: Float>(random: &mut Random, rows: usize, cols: usize) -> Vec<T> {
    let values = random.reals(rows * cols, 1.0);
    values.into_iter().map(T::of).collect()
}

/// As many copies of a weight as fill [`WEIGHTS`].
fn weights(random: &mut Random, n: usize, k: usize, format: Format) -> Vec<Panels> {
    let rows = random.reals(n * k, 0.05);
    let pack = || {
        let mut panels = Panels::new(n, k, format);
        panels.fill_rows(0, &rows);
        panels
    };
    let first = pack();
    let copies = WEIGHTS.div_ceil(first.bytes());
    let mut all = vec![first];
    all.extend((1..copies).map(|_| pack()));
    all
}

fn linear_of<T: Float>(c: &mut Criterion) {
    let shapes = [
        (HIDDEN, 3 * HIDDEN),
        (HIDDEN, HIDDEN),
        (HIDDEN, 4 * HIDDEN),
        (4 * HIDDEN, HIDDEN),
        (2048, HIDDEN),
    ];
    let mut random = Random::new(1);
    let mut group = c.benchmark_group(format!("linear/{}", T::DTYPE));
    let format = if T::DTYPE == DType::F16 {
        Format::Fixed
    } else {
        Format::Single
    };
    for (k, n) in shapes {
        let weights = weights(&mut random, n, k, format);
        let bias = random.reals(n, 0.1);
        for m in [1, 12, 20, 36, 56, 160, 512] {
            let x: Vec<T> = matrix(&mut random, m, k);
            let mut y = vec![T::of(0.0); m * n];
            let mut scratch = Scratch::new(linear_scratch(m, k));
            let mut next = weights.iter().cycle();
            group.throughput(Throughput::Elements((2 * m * k * n) as u64));
            group.bench_function(
                BenchmarkId::new(format!("k={k} n={n}"), format!("m={m}")),
                |b| {
                    b.iter(|| {
                        let weights = next.next().expect("there is at least one copy");
                        let layer = Linear {
                            x: View::new(&x, m, k),
                            weights,
                            bias: Some(&bias),
                            activation: None,
                        };
                        let out = ViewMut::new(&mut y, m, n);
                        linear(
                            table(),
                            &layer,
                            out,
                            &mut once(0..layer.units()),
                            &mut scratch,
                        );
                        black_box(&y);
                    });
                },
            );
        }
    }
    group.finish();
}

/// All heads of one segment, the operands lying side by side in rows of the model's width.
fn attention_of<T: Float>(c: &mut Criterion) {
    let size = HIDDEN / HEADS;
    let mut random = Random::new(2);
    let mut group = c.benchmark_group(format!("attention/{}", T::DTYPE));
    for (queries, keys) in [(20, 20), (20, 36), (36, 20), (36, 36)] {
        let q: Vec<T> = matrix(&mut random, queries, HIDDEN);
        let k: Vec<T> = matrix(&mut random, keys, HIDDEN);
        let v: Vec<T> = matrix(&mut random, keys, HIDDEN);
        let mask = vec![1.0; keys];
        let mut y = vec![T::of(0.0); queries * HIDDEN];
        let mut scratch = Scratch::new(attention_scratch(keys, size));
        group.throughput(Throughput::Elements((4 * queries * keys * HIDDEN) as u64));
        group.bench_function(format!("{queries}x{keys}"), |b| {
            b.iter(|| {
                for head in 0..HEADS {
                    let columns = head * size..(head + 1) * size;
                    let inputs = Attention {
                        q: View::new(&q, queries, HIDDEN).col_range(columns.clone()),
                        k: View::new(&k, keys, HIDDEN).col_range(columns.clone()),
                        v: View::new(&v, keys, HIDDEN).col_range(columns.clone()),
                        mask: &mask,
                        scale: 0.125,
                        dropout: None,
                    };
                    let out = ViewMut::new(&mut y, queries, HIDDEN).col_range(columns);
                    attention_head(table(), &inputs, out, None, &mut scratch);
                }
                black_box(&y);
            });
        });
    }
    group.finish();
}

fn norm_of<T: Float>(c: &mut Criterion) {
    let mut random = Random::new(3);
    let mut group = c.benchmark_group(format!("layer_norm+residual/{}", T::DTYPE));
    let gamma = random.reals(HIDDEN, 1.0);
    let beta = random.reals(HIDDEN, 1.0);
    let norm = LayerNorm {
        gamma: &gamma,
        beta: &beta,
        eps: 1e-12,
    };
    for rows in [20, 36, 56] {
        let x: Vec<T> = matrix(&mut random, rows, HIDDEN);
        let residual: Vec<T> = matrix(&mut random, rows, HIDDEN);
        let mut y = vec![T::of(0.0); rows * HIDDEN];
        group.throughput(Throughput::Elements((rows * HIDDEN) as u64));
        group.bench_function(format!("{rows}x{HIDDEN}"), |b| {
            b.iter(|| {
                let x = View::new(&x, rows, HIDDEN);
                let residual = View::new(&residual, rows, HIDDEN);
                let out = ViewMut::new(&mut y, rows, HIDDEN);
                layer_norm(table(), x, Some(residual), &norm, out, 0..rows);
                black_box(&y);
            });
        });
    }
    group.finish();
}

fn gelu_of<T: Float>(c: &mut Criterion) {
    let cols = 4 * HIDDEN;
    let mut random = Random::new(4);
    let mut group = c.benchmark_group(format!("gelu/{}", T::DTYPE));
    for rows in [20, 36, 56] {
        let x: Vec<T> = matrix(&mut random, rows, cols);
        let mut y = vec![T::of(0.0); rows * cols];
        group.throughput(Throughput::Elements((rows * cols) as u64));
        group.bench_function(format!("{rows}x{cols}"), |b| {
            b.iter(|| {
                let x = View::new(&x, rows, cols);
                let out = ViewMut::new(&mut y, rows, cols);
                activate(table(), x, Activation::Gelu, out, 0..rows);
                black_box(&y);
            });
        });
    }
    group.finish();
}

/// Rows of the word embeddings, other rows each time.
fn gather_of<T: Float>(c: &mut Criterion) {
    const WORDS: usize = 30_522;
    let mut random = Random::new(5);
    let words: Vec<T> = matrix(&mut random, WORDS, HIDDEN);
    let mut group = c.benchmark_group(format!("gather/{}", T::DTYPE));
    for rows in [20, 160] {
        let texts: Vec<Vec<i32>> = (0..64).map(|_| random.indices(rows, WORDS)).collect();
        let mut next = texts.iter().cycle();
        let mut y = vec![T::of(0.0); rows * HIDDEN];
        group.throughput(Throughput::Bytes((rows * HIDDEN * T::DTYPE.size()) as u64));
        group.bench_function(format!("{rows} of {WORDS}"), |b| {
            b.iter(|| {
                let indices = next.next().expect("there are texts");
                let table_of_words = View::new(&words, WORDS, HIDDEN);
                let out = ViewMut::new(&mut y, rows, HIDDEN);
                gather(table(), table_of_words, indices, out, 0..rows).expect("indices in range");
                black_box(&y);
            });
        });
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    attention_of::<f16>(c);
    attention_of::<f32>(c);
    norm_of::<f16>(c);
    norm_of::<f32>(c);
    gelu_of::<f16>(c);
    gelu_of::<f32>(c);
    gather_of::<f16>(c);
    gather_of::<f32>(c);
    linear_of::<f16>(c);
    linear_of::<f32>(c);
}

criterion_group! { name = benches; config = settings(); targets = kernels }
criterion_main!(benches);
