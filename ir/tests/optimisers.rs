//! Optimisers against their formulas, written once more as plain loops.

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::ops::SumSquares;
use lxpod_ir::random_bits::{round_stochastically, rounding_word};
use lxpod_ir::text::{parse, print};
use lxpod_ir::{Extents, Scalar, Tensor, TensorType, interpret, verify};

use proptest::prelude::*;

type Feeds<S> = BTreeMap<&'static str, Vec<S>>;

/// The outputs of an update graph whose leaves are fed by name.
fn run<S: Scalar>(source: &str, feeds: &Feeds<S>) -> Vec<Vec<S>> {
    let graph = parse(source).unwrap();
    verify(&graph).unwrap();
    assert_eq!(print(&parse(&print(&graph)).unwrap()), print(&graph));
    let extents = Extents::full(&graph.spaces);
    let feed = |op: &Op, ty: &TensorType| {
        let name = match op {
            Op::Input(input) => input.name.clone(),
            Op::State(state) => state.name.clone(),
            Op::Param(param) => param.value.to_string(),
            op => return Err(format!("{op:?}")),
        };
        let values = feeds[name.as_str()].clone();
        Ok(if ty.dtype.is_float() {
            Tensor::real(ty.shape.clone(), values)
        } else {
            let words = values.iter().map(|value| value.to_f64() as i32);
            Tensor::int(ty.shape.clone(), words.collect())
        })
    };
    let outputs = interpret(&graph, &extents, feed).unwrap();
    outputs
        .iter()
        .map(|output| output.reals().to_vec())
        .collect()
}

fn adam_like(op: &str, attributes: &str, p: &str) -> String {
    optimiser(
        "",
        &format!("{op} %p, %g, %m, %v, %f, %l, %1, %2"),
        attributes,
        p,
    )
}

/// `lamb` with the ratio of its own step, at most `most`, of a parameter that joins so many tensors.
fn lamb_like(attributes: &str, parts: usize, most: &str, p: &str) -> String {
    let ratio = format!(
        "%r = trust_ratio %p, %g, %m, %v, %f, %1, %2 {{{attributes}{most}}} : f32[{parts}]"
    );
    let lamb = "lamb %p, %g, %m, %v, %f, %l, %1, %2, %r";
    optimiser(&ratio, lamb, attributes, p)
}

/// An optimiser's step, behind what it reads beside the leaves.
fn optimiser(before: &str, step: &str, attributes: &str, p: &str) -> String {
    format!(
        "graph @update {{
  %p = param {{value=p}} : {p}[2,2]
  %g = input {{name=g}} : f32[2,2]
  %m = state {{name=m}} : f16[2,2]
  %v = state {{name=v}} : f32[2,2]
  %f = input {{name=factor}} : f32[]
  %l = input {{name=lr}} : f32[]
  %1 = input {{name=c1}} : f32[]
  %2 = input {{name=c2}} : f32[]
  %s = input {{name=key}} : i32[2]
  {before}
  %a, %b, %c = {step} {{{attributes}}} : {p}[2,2], f16[2,2], f32[2,2]
  return %a as \"param:p\"
  return %b as \"state:m\"
  return %c as \"state:v\"
}}"
    )
}

fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= 1e-14 * expected.abs().max(1.0),
            "{got} {expected}"
        );
    }
}

const START: [f64; 4] = [0.5, -1.25, 2.0, 0.0];
/// The gradients of three steps, before the factor 1/4.
const GRADIENTS: [[f64; 4]; 3] = [
    [1.0, -2.0, 0.0, 8.0],
    [3.0, 0.5, -1.0, -8.0],
    [0.25, 4.0, 2.0, 1e-6],
];

/// Three steps of an op with the operands of `adam`, from zero moments.
fn three_steps(source: &str, corrected: bool) -> Vec<[Vec<f64>; 3]> {
    let mut state = [START.to_vec(), vec![0.0; 4], vec![0.0; 4]];
    let mut trace = Vec::new();
    for (step, gradient) in (1..).zip(GRADIENTS) {
        let correction = |beta: f64| {
            if corrected {
                1.0 - beta.powi(step)
            } else {
                1.0
            }
        };
        let feeds = BTreeMap::from([
            ("p", state[0].clone()),
            ("m", state[1].clone()),
            ("v", state[2].clone()),
            ("g", gradient.to_vec()),
            ("factor", vec![0.25]),
            ("lr", vec![0.01 * f64::from(step)]),
            ("c1", vec![correction(0.9)]),
            ("c2", vec![correction(0.999)]),
            ("key", vec![0.0; 2]),
        ]);
        state = run(source, &feeds).try_into().unwrap();
        trace.push(state.clone());
    }
    trace
}

/// AdamW as its paper has it (Loshchilov and Hutter 2019, algorithm 2), one element on its own.
fn adamw(start: f64, gradients: [f64; 3], corrected: bool) -> Vec<[f64; 3]> {
    let (mut p, mut m, mut v) = (start, 0.0, 0.0);
    let mut trace = Vec::new();
    for (t, gradient) in gradients.into_iter().enumerate() {
        let (g, t) = (gradient / 4.0, t as i32 + 1);
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        let (mut mean, mut square) = (m, v);
        if corrected {
            mean /= 1.0 - 0.9f64.powi(t);
            square /= 1.0 - 0.999f64.powi(t);
        }
        let lr = 0.01 * f64::from(t);
        p = p * (1.0 - lr * 0.1) - lr * mean / (square.sqrt() + 1e-8);
        trace.push([p, m, v]);
    }
    trace
}

#[test]
fn adam_is_adamw_and_bert_adam() {
    let source = adam_like("adam", "beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1", "f32");
    for corrected in [true, false] {
        let trace = three_steps(&source, corrected);
        for element in 0..4 {
            let expected = adamw(START[element], GRADIENTS.map(|g| g[element]), corrected);
            for (got, expected) in trace.iter().zip(&expected) {
                close(&[0, 1, 2].map(|of: usize| got[of][element]), expected);
            }
        }
    }
}

/// One step of LAMB (You et al. 2020, algorithm 2) on the tensors of a parameter, which lie between
/// these elements.
fn lamb(bounds: &[usize], most: f64) -> Vec<f64> {
    let direction = |at: usize| {
        let g = GRADIENTS[0][at] / 4.0;
        let (m, v) = (0.1 * g / (1.0 - 0.9), 0.001 * g * g / (1.0 - 0.999));
        m / (v.sqrt() + 1e-8) + 0.1 * START[at]
    };
    let mut p = START.to_vec();
    for part in bounds.windows(2).map(|ends| ends[0]..ends[1]) {
        let norm =
            |of: &dyn Fn(usize) -> f64| part.clone().map(|at| of(at).powi(2)).sum::<f64>().sqrt();
        let (weight, step) = (norm(&|at| START[at]), norm(&direction));
        let ratio = if weight == 0.0 || step == 0.0 {
            1.0
        } else {
            weight / step
        };
        part.clone()
            .for_each(|at| p[at] -= 0.01 * ratio.min(most) * direction(at));
    }
    p
}

#[test]
fn lamb_has_a_ratio_for_each_tensor() {
    let attributes = "beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1";
    let first = |parts: &str, most: &str| {
        let count = if parts.is_empty() { 1 } else { 2 };
        let source = lamb_like(&format!("{attributes}{parts}"), count, most, "f32");
        three_steps(&source, true).remove(0)[0].clone()
    };
    close(&first("", ""), &lamb(&[0, 4], f64::INFINITY));
    let parts = first(", parts=[1, 1]", "");
    close(&parts, &lamb(&[0, 2, 4], f64::INFINITY));
    assert_ne!(parts, first("", ""));
    let bounded = first(", parts=[1, 1]", ", max_ratio=0.75");
    close(&bounded, &lamb(&[0, 2, 4], 0.75));
    assert_ne!(parts, bounded);
}

#[test]
fn lamb_of_nothing_steps_as_adam() {
    let attributes = "beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1";
    let mut feeds = BTreeMap::from([
        ("p", vec![0.0; 4]),
        ("m", vec![0.5; 4]),
        ("v", vec![0.25; 4]),
        ("g", vec![1.0, 2.0, 3.0, 4.0]),
    ]);
    for scalar in ["factor", "lr", "c1", "c2"] {
        feeds.insert(scalar, vec![1.0]);
    }
    feeds.insert("key", vec![0.0; 2]);
    let lamb = run(&lamb_like(attributes, 1, "", "f32"), &feeds);
    assert_eq!(lamb, run(&adam_like("adam", attributes, "f32"), &feeds));
}

#[test]
fn sgd_is_that_of_torch() {
    for nesterov in [false, true] {
        let source = format!(
            "graph @update {{
  %p = param {{value=p}} : f32[4]
  %g = input {{name=g}} : f32[4]
  %v = state {{name=v}} : f32[4]
  %f = input {{name=factor}} : f32[]
  %l = input {{name=lr}} : f32[]
  %a, %b = sgd %p, %g, %v, %f, %l {{decay=0.1, momentum=0.9, nesterov={nesterov}}} : f32[4], f32[4]
  return %a as \"param:p\"
  return %b as \"state:v\"
}}"
        );
        let (mut p, mut velocity) = (START.to_vec(), vec![0.0; 4]);
        let (mut expected, mut buffer) = (START, [0.0; 4]);
        for gradient in GRADIENTS {
            let feeds = BTreeMap::from([
                ("p", p),
                ("g", gradient.to_vec()),
                ("v", velocity),
                ("factor", vec![0.5]),
                ("lr", vec![0.02]),
            ]);
            [p, velocity] = run(&source, &feeds).try_into().unwrap();
            for at in 0..4 {
                let mut g = 0.5 * gradient[at] + 0.1 * expected[at];
                buffer[at] = 0.9 * buffer[at] + g;
                g = if nesterov {
                    g + 0.9 * buffer[at]
                } else {
                    buffer[at]
                };
                expected[at] -= 0.02 * g;
            }
            close(&p, &expected);
            close(&velocity, &buffer);
        }
    }
}

#[test]
fn a_factor_that_is_not_finite_skips_the_step() {
    let attributes = "beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1";
    for source in [
        adam_like("adam", attributes, "f32"),
        lamb_like(attributes, 1, "", "f32"),
    ] {
        for factor in [f32::NAN, f32::INFINITY] {
            let mut feeds = BTreeMap::from([
                ("p", vec![1.0f32, 2.0, 3.0, 4.0]),
                ("m", vec![0.5; 4]),
                ("v", vec![0.25; 4]),
                ("g", vec![f32::NAN; 4]),
                ("factor", vec![factor]),
            ]);
            for scalar in ["lr", "c1", "c2"] {
                feeds.insert(scalar, vec![1.0]);
            }
            feeds.insert("key", vec![0.0; 2]);
            let outputs = run(&source, &feeds);
            assert_eq!(outputs, [feeds["p"].clone(), vec![0.5; 4], vec![0.25; 4]]);
        }
    }
}

#[test]
fn a_stochastic_step_rounds_the_exact_result() {
    let attributes = "beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1";
    let nearest = adam_like("adam", attributes, "f16")
        .replace("f16[2,2], f16[2,2], f32", "f32[2,2], f16[2,2], f32");
    let nearest = nearest.replace("return %a as \"param:p\"", "return %a as \"p\"");
    let stochastic = adam_like("adam", &format!("{attributes}, stochastic=9"), "f16")
        .replace("%1, %2 {", "%1, %2, %s {");
    let mut feeds = BTreeMap::from([
        ("p", vec![1.0f32, -2.0, 3.0, -4.0]),
        ("m", vec![0.0; 4]),
        ("v", vec![0.0; 4]),
        ("g", vec![1.0, 2.0, 3.0, 4.0]),
        ("lr", vec![1e-4]),
    ]);
    for scalar in ["factor", "c1", "c2"] {
        feeds.insert(scalar, vec![1.0]);
    }
    let mut moved = 0;
    for step in 0..64 {
        feeds.insert("key", vec![step as f32, 1.0]);
        let exact = run(&nearest, &feeds).remove(0);
        let rounded = run(&stochastic, &feeds).remove(0);
        for (element, (&exact, &rounded)) in exact.iter().zip(&rounded).enumerate() {
            let word = rounding_word(9, [step, 1], element);
            assert_eq!(rounded, round_stochastically(exact, word));
            moved += usize::from(rounded != feeds["p"][element]);
        }
    }
    // Rounded to nearest, no step of 1e-4 would ever move these.
    assert!(moved > 0 && moved < 256, "{moved}");
}

fn squares(values: Vec<f32>) -> f32 {
    let source = format!(
        "graph @g {{
  %x = input {{name=x}} : f32[{}]
  %y = sum_squares %x : f32[1]
  return %y as \"y\"
}}",
        values.len()
    );
    run(&source, &BTreeMap::from([("x", values)])).remove(0)[0]
}

#[test]
fn squares_are_summed_in_f64() {
    // In f32 the ones would vanish behind the first square.
    let mut values = vec![1f32; 1 << 14];
    values[0] = 65536.0;
    assert_eq!(squares(values), 4_294_967_296.0 + 16384.0);
    assert_eq!(squares(vec![3.0, -4.0]), 25.0);
    assert_eq!(squares(Vec::new()), 0.0);
    assert!(squares(vec![1.0, f32::NAN]).is_nan());
}

#[test]
fn a_histogram_counts_what_is_not_below_its_edge() {
    let source = "graph @g {
  %x = input {name=x} : f32[6]
  %f = input {name=f} : f32[]
  %y = histogram %x, %f {edge=8188.0} : f32[2]
  return %y as \"y\"
}";
    let x = vec![0.0f32, -8187.0, 8188.0, -9000.0, f32::NAN, f32::INFINITY];
    let counted = |factor| {
        let feeds = BTreeMap::from([("x", x.clone()), ("f", vec![factor])]);
        run(source, &feeds).remove(0)
    };
    assert_eq!(counted(1.0), [2.0, 4.0]);
    assert_eq!(counted(0.5), [4.0, 2.0]);
}

fn clipped(max_norm: &str, squares: [f32; 2], scale: f32) -> [f32; 2] {
    let source = format!(
        "graph @g {{
  %q = input {{name=q}} : f32[2]
  %s = input {{name=s}} : f32[]
  %f, %n = clip %q, %s{max_norm} : f32[], f32[]
  return %f as \"factor\"
  return %n as \"norm\"
}}"
    );
    let feeds = BTreeMap::from([("q", squares.to_vec()), ("s", vec![scale])]);
    let outputs = run(&source, &feeds);
    [outputs[0][0], outputs[1][0]]
}

#[test]
fn clip_bounds_the_norm() {
    let one = " {max_norm=1.0}";
    let expected = (0.5 / (2.5 + 1e-6f64)) as f32;
    assert_eq!(clipped(one, [9.0, 16.0], 0.5), [expected, 2.5]);
    assert_eq!(clipped(one, [9.0, 16.0], 0.125), [0.125, 0.625]);
    assert_eq!(clipped("", [9.0, 16.0], 0.5), [0.5, 2.5]);
    for max_norm in [one, ""] {
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(clipped(max_norm, [1.0, broken], 0.5)[0].is_nan());
        }
    }
}

proptest! {
    /// Whatever the state, an element of `adam` depends on that element and the scalars alone.
    #[test]
    fn adam_is_elementwise(
        elements in prop::collection::vec((-4.0..4.0f64, -4.0..4.0f64, -1.0..1.0f64, 0.0..1.0f64), 4),
        factor in -2.0..2.0f64,
        lr in 0.0..0.1f64,
        (c1, c2) in (0.1..1.0f64, 0.001..1.0f64),
    ) {
        let source = adam_like("adam", "beta1=0.9, beta2=0.999, eps=1e-6, decay=0.1", "f32");
        let column = |of: fn(&(f64, f64, f64, f64)) -> f64| elements.iter().map(of).collect();
        let feeds = BTreeMap::from([
            ("p", column(|e| e.0)),
            ("g", column(|e| e.1)),
            ("m", column(|e| e.2)),
            ("v", column(|e| e.3)),
            ("factor", vec![factor]),
            ("lr", vec![lr]),
            ("c1", vec![c1]),
            ("c2", vec![c2]),
            ("key", vec![0.0; 2]),
        ]);
        let new = run(&source, &feeds);
        for (at, &(p, g, m, v)) in elements.iter().enumerate() {
            let m = 0.9 * m + 0.1 * g * factor;
            let v = 0.999 * v + 0.001 * (g * factor).powi(2);
            let step = m / c1 / ((v / c2).sqrt() + 1e-6) + 0.1 * p;
            for (new, expected) in new.iter().zip([p - lr * step, m, v]) {
                prop_assert!((new[at] - expected).abs() <= 1e-12 * expected.abs().max(1.0));
            }
        }
    }

    /// What is clipped has at most the largest norm, and keeps its own if that is smaller.
    #[test]
    fn clip_never_exceeds_its_norm(squares: [f32; 2], scale in 1e-3..1e3f32) {
        let squares = squares.map(|x| x.abs().min(1e9));
        prop_assume!(squares.iter().all(|x| x.is_finite()));
        let [factor, norm] = clipped(" {max_norm=1.0}", squares, scale);
        prop_assert!(factor <= scale);
        prop_assert!(f64::from(factor / scale) * f64::from(norm) <= 1.0 + 1e-6);
        if norm < 0.999 {
            prop_assert_eq!(factor, scale);
        }
    }

    /// Blocks change the sum by no more than f64 rounds.
    #[test]
    fn blocks_do_not_change_the_sum(values in prop::collection::vec(-1e3..1e3f32, 0..9000)) {
        let exact: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
        let sum = SumSquares::of(&values);
        prop_assert!((sum - exact).abs() <= 1e-12 * exact, "{} {}", sum, exact);
    }
}
