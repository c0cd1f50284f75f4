//! The kernels measured, at LXMERT's shapes, and the plain loops that check them.

use half::f16;
use lxpod_backends::cpu::kernels::{
    Attention, Element, Kernels, LayerNorm, Linear, Panels, Scratch, View, ViewMut, activate,
    attention_head, attention_scratch, gather, layer_norm, linear, linear_scratch,
};
use lxpod_ir::DType;
use lxpod_ir::front::LAYER_NORM_EPS;
use lxpod_ir::ops::Activation;

use crate::cli::load::Sequence;

/// Rows of products: one sample's `[CLS]` row up to a batch's boxes.
const ROWS: [usize; 7] = [1, 12, 20, 36, 56, 160, 512];
/// Outputs and inputs of LXMERT's linear layers: projections, merged queries, keys and values, keys and
/// values, feed-forward, box features, answers.
const LAYERS: [(usize, usize); 7] = [
    (768, 768),
    (2304, 768),
    (1536, 768),
    (3072, 768),
    (768, 3072),
    (768, 2048),
    (1842, 1536),
];
/// Queries and keys of a head: text to text, boxes to boxes, and across.
const SEGMENTS: [(usize, usize); 4] = [(20, 20), (36, 36), (20, 36), (36, 20)];
/// Features of a row, of a feed-forward block, of a head.
const WIDTH: usize = 768;
const WIDE: usize = 3072;
const HEAD: usize = 64;
/// Rows of the word table.
const WORDS: usize = 30522;
/// How many elements of a result are checked.
const CHECKED: usize = 64;

/// A kernel and its sizes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Case {
    Linear {
        rows: usize,
        outputs: usize,
        inputs: usize,
        dtype: DType,
    },
    Attention {
        queries: usize,
        keys: usize,
    },
    LayerNorm {
        rows: usize,
    },
    Gelu {
        rows: usize,
    },
    Embedding {
        rows: usize,
        dtype: DType,
    },
}

/// Every case.
pub(super) fn all() -> Vec<Case> {
    let dtypes = [DType::F16, DType::F32];
    let mut cases = Vec::new();
    for (outputs, inputs) in LAYERS {
        for dtype in dtypes {
            cases.extend(ROWS.map(|rows| Case::Linear {
                rows,
                outputs,
                inputs,
                dtype,
            }));
        }
    }
    cases.extend(SEGMENTS.map(|(queries, keys)| Case::Attention { queries, keys }));
    for rows in [20, 36, 512] {
        cases.extend([Case::LayerNorm { rows }, Case::Gelu { rows }]);
        cases.extend(dtypes.map(|dtype| Case::Embedding { rows, dtype }));
    }
    cases
}

impl Case {
    /// The name on the command line and in saved files.
    pub(super) fn name(&self) -> String {
        match *self {
            Case::Linear {
                rows,
                outputs,
                inputs,
                dtype,
            } => format!("linear {outputs}x{inputs} {dtype} m{rows}"),
            Case::Attention { queries, keys } => format!("attention q{queries} k{keys}"),
            Case::LayerNorm { rows } => format!("layer_norm m{rows}"),
            Case::Gelu { rows } => format!("gelu m{rows}"),
            Case::Embedding { rows, dtype } => format!("embedding {dtype} m{rows}"),
        }
    }

    /// The kernel with its operands.
    pub(super) fn prepare(&self, kernels: &'static Kernels) -> Box<dyn Kernel> {
        match *self {
            Case::Linear {
                rows,
                outputs,
                inputs,
                dtype,
            } => Box::new(Product::new(kernels, rows, outputs, inputs, dtype)),
            Case::Attention { queries, keys } => Box::new(Head::new(kernels, queries, keys)),
            Case::LayerNorm { rows } => Box::new(Norm::new(kernels, rows)),
            Case::Gelu { rows } => Box::new(Gelu::new(kernels, rows)),
            Case::Embedding {
                rows,
                dtype: DType::F16,
            } => Box::new(Embedding::<f16>::new(kernels, rows)),
            Case::Embedding { rows, .. } => Box::new(Embedding::<f32>::new(kernels, rows)),
        }
    }
}

/// A kernel with operands and a place for its result.
pub(super) trait Kernel {
    /// Runs it once.
    fn call(&mut self);

    /// Compares the result of the last call with a plain loop in f64.
    fn check(&self) -> Result<(), String>;

    /// Floating-point operations and bytes of operands and results of a call.
    fn work(&self) -> (f64, f64);
}

fn floats(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Sequence(seed);
    (0..count).map(|_| random.float()).collect()
}

/// Checks elements spread over a result.
fn compare(result: &[f32], tolerance: f64, expected: impl Fn(usize) -> f64) -> Result<(), String> {
    let step = (result.len() / CHECKED).max(1) | 1;
    for index in (0..result.len()).step_by(step) {
        let (got, want) = (f64::from(result[index]), expected(index));
        if (got - want).abs() > tolerance * (1.0 + want.abs()) {
            return Err(format!(
                "element {index} is {got}, a plain loop gives {want}"
            ));
        }
    }
    Ok(())
}

/// A linear layer with a bias.
struct Product {
    kernels: &'static Kernels,
    rows: usize,
    x: Vec<f32>,
    /// As stored: rounded to the panels' dtype.
    weights: Vec<f32>,
    bias: Vec<f32>,
    panels: Panels,
    out: Vec<f32>,
    scratch: Scratch,
}

impl Product {
    fn new(
        kernels: &'static Kernels,
        rows: usize,
        outputs: usize,
        inputs: usize,
        dtype: DType,
    ) -> Self {
        let mut weights = floats(outputs * inputs, 3);
        if dtype == DType::F16 {
            weights
                .iter_mut()
                .for_each(|weight| *weight = f16::from_f32(*weight).to_f32());
        }
        let mut panels = Panels::new(outputs, inputs, dtype);
        panels.fill_rows(0, &weights);
        Product {
            kernels,
            rows,
            x: floats(rows * inputs, 1),
            weights,
            bias: floats(outputs, 2),
            panels,
            out: vec![0.0; rows * outputs],
            scratch: Scratch::new(linear_scratch(rows, inputs)),
        }
    }
}

impl Kernel for Product {
    fn call(&mut self) {
        let (n, k) = (self.panels.n(), self.panels.k());
        let layer = Linear {
            x: View::new(&self.x, self.rows, k),
            weights: &self.panels,
            bias: Some(&self.bias),
            activation: None,
        };
        let out = ViewMut::new(&mut self.out, self.rows, n);
        linear(
            self.kernels,
            &layer,
            out,
            &mut std::iter::once(0..layer.units()),
            &mut self.scratch,
        );
    }

    fn check(&self) -> Result<(), String> {
        let (n, k) = (self.panels.n(), self.panels.k());
        compare(&self.out, 1e-3, |index| {
            let (x, w) = (
                &self.x[index / n * k..][..k],
                &self.weights[index % n * k..][..k],
            );
            let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
            products.sum::<f64>() + f64::from(self.bias[index % n])
        })
    }

    fn work(&self) -> (f64, f64) {
        let (n, k) = (self.panels.n(), self.panels.k());
        let flops = 2 * self.rows * n * k;
        (
            flops as f64,
            (4 * self.rows * (n + k) + self.panels.bytes()) as f64,
        )
    }
}

/// One head of attention.
struct Head {
    kernels: &'static Kernels,
    queries: usize,
    keys: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mask: Vec<f32>,
    out: Vec<f32>,
    scratch: Scratch,
}

impl Head {
    fn new(kernels: &'static Kernels, queries: usize, keys: usize) -> Self {
        Head {
            kernels,
            queries,
            keys,
            q: floats(queries * HEAD, 1),
            k: floats(keys * HEAD, 2),
            v: floats(keys * HEAD, 3),
            mask: vec![1.0; keys],
            out: vec![0.0; queries * HEAD],
            scratch: Scratch::new(attention_scratch(keys, HEAD)),
        }
    }
}

impl Kernel for Head {
    fn call(&mut self) {
        let inputs = Attention {
            q: View::new(&self.q, self.queries, HEAD),
            k: View::new(&self.k, self.keys, HEAD),
            v: View::new(&self.v, self.keys, HEAD),
            mask: &self.mask,
            scale: 0.125,
        };
        let out = ViewMut::new(&mut self.out, self.queries, HEAD);
        attention_head(self.kernels, &inputs, out, None, &mut self.scratch);
    }

    fn check(&self) -> Result<(), String> {
        compare(&self.out, 1e-4, |index| {
            let q = &self.q[index / HEAD * HEAD..][..HEAD];
            let weight = |key: &[f32]| {
                let dot: f64 = q
                    .iter()
                    .zip(key)
                    .map(|(&q, &k)| f64::from(q) * f64::from(k))
                    .sum();
                (dot * 0.125).exp()
            };
            let weights: Vec<f64> = self.k.chunks(HEAD).map(weight).collect();
            let values = self.v.iter().skip(index % HEAD).step_by(HEAD);
            let sum: f64 = weights
                .iter()
                .zip(values)
                .map(|(p, &v)| p * f64::from(v))
                .sum();
            sum / weights.iter().sum::<f64>()
        })
    }

    fn work(&self) -> (f64, f64) {
        let flops = 4 * self.queries * self.keys * HEAD;
        (flops as f64, (8 * (self.queries + self.keys) * HEAD) as f64)
    }
}

/// A layer norm with its residual.
struct Norm {
    kernels: &'static Kernels,
    rows: usize,
    x: Vec<f32>,
    residual: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    out: Vec<f32>,
}

impl Norm {
    fn new(kernels: &'static Kernels, rows: usize) -> Self {
        let values = |seed| floats(rows * WIDTH, seed);
        Norm {
            kernels,
            rows,
            x: values(1),
            residual: values(2),
            gamma: floats(WIDTH, 3),
            beta: floats(WIDTH, 4),
            out: vec![0.0; rows * WIDTH],
        }
    }
}

impl Kernel for Norm {
    fn call(&mut self) {
        let norm = LayerNorm {
            gamma: &self.gamma,
            beta: &self.beta,
            eps: LAYER_NORM_EPS as f32,
        };
        let (x, residual) = (
            View::new(&self.x, self.rows, WIDTH),
            View::new(&self.residual, self.rows, WIDTH),
        );
        let out = ViewMut::new(&mut self.out, self.rows, WIDTH);
        layer_norm(self.kernels, x, Some(residual), &norm, out, 0..self.rows);
    }

    fn check(&self) -> Result<(), String> {
        compare(&self.out, 1e-4, |index| {
            let first = index / WIDTH * WIDTH;
            let row = self.x[first..][..WIDTH]
                .iter()
                .zip(&self.residual[first..][..WIDTH]);
            let row: Vec<f64> = row.map(|(&x, &r)| f64::from(x) + f64::from(r)).collect();
            let mean = row.iter().sum::<f64>() / WIDTH as f64;
            let variance = row.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let column = index - first;
            let normed = (row[column] - mean) / (variance + LAYER_NORM_EPS).sqrt();
            normed * f64::from(self.gamma[column]) + f64::from(self.beta[column])
        })
    }

    fn work(&self) -> (f64, f64) {
        (
            (9 * self.rows * WIDTH) as f64,
            (12 * self.rows * WIDTH) as f64,
        )
    }
}

/// The nonlinearity of a feed-forward block.
struct Gelu {
    kernels: &'static Kernels,
    rows: usize,
    x: Vec<f32>,
    out: Vec<f32>,
}

impl Gelu {
    fn new(kernels: &'static Kernels, rows: usize) -> Self {
        Gelu {
            kernels,
            rows,
            x: floats(rows * WIDE, 1),
            out: vec![0.0; rows * WIDE],
        }
    }
}

impl Kernel for Gelu {
    fn call(&mut self) {
        let out = ViewMut::new(&mut self.out, self.rows, WIDE);
        activate(
            self.kernels,
            View::new(&self.x, self.rows, WIDE),
            Activation::Gelu,
            out,
            0..self.rows,
        );
    }

    fn check(&self) -> Result<(), String> {
        compare(&self.out, 1e-5, |index| {
            let x = f64::from(self.x[index]);
            x * normal_cdf(x)
        })
    }

    /// A nonlinearity counts one operation an element.
    fn work(&self) -> (f64, f64) {
        ((self.rows * WIDE) as f64, (8 * self.rows * WIDE) as f64)
    }
}

/// The normal distribution function by its power series, which converges for every x:
/// 1/2 + φ(x)·(x + x³/3 + x⁵/15 + …) (Abramowitz and Stegun 26.2.11).
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..64 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// Rows of the word table.
struct Embedding<T> {
    kernels: &'static Kernels,
    table: Vec<T>,
    indices: Vec<i32>,
    out: Vec<f32>,
}

impl<T: Element + Stored> Embedding<T> {
    fn new(kernels: &'static Kernels, rows: usize) -> Self {
        let mut random = Sequence(5);
        let mut index = || (random.next() % WORDS as u64) as i32;
        Embedding {
            kernels,
            table: floats(WORDS * WIDTH, 1).into_iter().map(T::store).collect(),
            indices: (0..rows).map(|_| index()).collect(),
            out: vec![0.0; rows * WIDTH],
        }
    }
}

/// An element that floats can be stored as.
trait Stored: Copy {
    fn store(value: f32) -> Self;
    fn load(self) -> f32;
}

impl Stored for f32 {
    fn store(value: f32) -> Self {
        value
    }
    fn load(self) -> f32 {
        self
    }
}

impl Stored for f16 {
    fn store(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}

impl<T: Element + Stored> Kernel for Embedding<T> {
    fn call(&mut self) {
        let rows = self.indices.len();
        let (table, out) = (
            View::new(&self.table, WORDS, WIDTH),
            ViewMut::new(&mut self.out, rows, WIDTH),
        );
        // Every index is a row of the table.
        let _ = gather(self.kernels, table, &self.indices, out, 0..rows);
    }

    fn check(&self) -> Result<(), String> {
        compare(&self.out, 0.0, |index| {
            let row = usize::try_from(self.indices[index / WIDTH]).unwrap_or(0);
            f64::from(self.table[row * WIDTH + index % WIDTH].load())
        })
    }

    fn work(&self) -> (f64, f64) {
        (0.0, (self.out.len() * (4 + size_of::<T>())) as f64)
    }
}
