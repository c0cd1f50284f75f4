//! The update graph against loops written out here, and what it asks of names.

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::text::parse;
use lxpod_ir::{DType, Data, Extents, Graph, Scalar, Tensor, TensorType, interpret, verify};
use lxpod_passes::{Optimizer, UpdateOptions, update_graph};

const BETAS: [f64; 2] = [0.9, 0.99];
const EPS: f64 = 1e-6;
const DECAY: f64 = 0.01;

/// A micro-batch graph that accumulates for three parameters, of which only its leaves and outputs count.
fn micro() -> Graph {
    let text = "graph @micro {
  %0 = param {value=\"dense.weight\"} : f16[2,2] in \"m.dense\"
  %1 = param {value=\"concat(q.bias, k.bias)\"} : f32[3]
  %2 = param {value=\"LayerNorm.weight\"} : f32[2]
  %3 = state {name=\"acc:dense.weight\", reset=true} : f16[2,2]
  %4 = state {name=\"acc:concat(q.bias, k.bias)\", reset=true} : f32[3]
  %5 = state {name=\"acc:LayerNorm.weight\", reset=true} : f32[2]
  return %3 as \"state:acc:dense.weight\"
  return %4 as \"state:acc:concat(q.bias, k.bias)\"
  return %5 as \"state:acc:LayerNorm.weight\"
}";
    parse(text).unwrap()
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    let shapes: [(&str, &[usize]); 4] = [
        ("dense.weight", &[2, 2]),
        ("q.bias", &[1]),
        ("k.bias", &[2]),
        ("LayerNorm.weight", &[2]),
    ];
    let owned = shapes.map(|(name, shape)| (name.to_owned(), shape.to_vec()));
    owned.to_vec()
}

fn options(optimizer: Optimizer) -> UpdateOptions {
    UpdateOptions {
        optimizer,
        decay: DECAY,
        decay_everything: false,
        max_norm: Some(1.0),
        moments: [DType::F32; 2],
        masters: false,
        stochastic: false,
        frozen: Vec::new(),
        histogram_edge: None,
        shards: 1,
    }
}

const ADAM: Optimizer = Optimizer::Adam {
    betas: BETAS,
    eps: EPS,
};

/// Every leaf's tensor by the name of the output that stores it, or of the input.
type Store<S> = BTreeMap<String, Tensor<S>>;

fn name(op: &Op) -> String {
    match op {
        Op::Param(param) => format!("param:{}", param.value),
        Op::State(state) => format!("state:{}", state.name),
        Op::Input(input) => input.name.clone(),
        other => panic!("{} is no leaf", other.name()),
    }
}

/// Runs the graph once, stores what it stores, and returns the other outputs.
fn run<S: Scalar>(graph: &Graph, store: &mut Store<S>) -> Store<S> {
    let extents = Extents::full(&graph.spaces);
    let outputs = interpret(graph, &extents, |op: &Op, _: &TensorType| {
        let name = name(op);
        store.get(&name).cloned().ok_or(name)
    });
    let names = graph.outputs().iter().map(|output| output.name.clone());
    let (stored, others): (Store<S>, Store<S>) = names
        .zip(outputs.unwrap())
        .partition(|(name, _)| name.contains(':'));
    store.extend(stored);
    others
}

/// Parameters, zero states and the scalars of step 1.
fn start<S: Scalar>(graph: &Graph) -> Store<S> {
    let mut store = Store::new();
    for id in graph.nodes().filter(|&id| graph.node(id).op.is_leaf()) {
        let (op, ty) = (&graph.node(id).op, &graph.node(id).types[0]);
        let moment = matches!(op, Op::State(_));
        let value = |at: usize| if moment { 0.0 } else { 0.5 - 0.125 * at as f64 };
        let values = (0..ty.shape.elements()).map(|at| S::from_f64(value(at)));
        store.insert(name(op), Tensor::real(ty.shape.clone(), values.collect()));
    }
    store
}

const NAMES: [&str; 3] = ["LayerNorm.weight", "concat(q.bias, k.bias)", "dense.weight"];

fn gradient(step: usize, at: usize) -> f64 {
    (step + 1) as f64 * 0.75 - at as f64 * 0.5
}

/// The scalars and gradients of a step, counted from 1.
fn give<S: Scalar>(store: &mut Store<S>, step: usize) {
    let scalar = |value: f64| Tensor::real([], vec![S::from_f64(value)]);
    let t = step as i32;
    store.insert("scale".to_owned(), scalar(0.5));
    store.insert("lr".to_owned(), scalar(0.25));
    store.insert("correction1".to_owned(), scalar(1.0 - BETAS[0].powi(t)));
    store.insert("correction2".to_owned(), scalar(1.0 - BETAS[1].powi(t)));
    store.insert("rounding_key".to_owned(), Tensor::int([2], vec![t, 0]));
    for name in NAMES {
        let name = format!("state:acc:{name}");
        let Some(old) = store.get(&name) else {
            continue;
        };
        let values = (0..old.shape.elements()).map(|at| S::from_f64(gradient(step, at)));
        let tensor = Tensor::real(old.shape.clone(), values.collect());
        store.insert(name, tensor);
    }
}

fn close(actual: f64, expected: f64) {
    let error = (actual - expected).abs();
    assert!(
        error <= 1e-12 * expected.abs() + 1e-14,
        "{actual} {expected}"
    );
}

/// The factor of a step, of the gradients of all parameters: 9 elements.
fn factor(step: usize, norm: f64) -> f64 {
    let sizes = [2, 3, 4].into_iter();
    let squares = sizes.flat_map(|size| (0..size).map(|at| gradient(step, at).powi(2)));
    close(norm, 0.5 * squares.sum::<f64>().sqrt());
    0.5 * (1.0 / (norm + 1e-6)).min(1.0)
}

#[test]
fn three_steps_of_adam() {
    let graph = update_graph(&micro(), &tensors(), &options(ADAM)).unwrap();
    verify(&graph).unwrap();
    let mut store = start::<f64>(&graph);
    let mut expected = store.clone();
    for step in 1..=3 {
        give(&mut store, step);
        let others = run(&graph, &mut store);
        let factor = factor(step, others["grad_norm"].reals()[0]);
        close(others["factor"].reals()[0], factor);
        let corrections = BETAS.map(|beta| 1.0 - beta.powi(step as i32));
        for name in NAMES {
            let decay = if name == "dense.weight" { DECAY } else { 0.0 };
            let [p, m, v] = ["param:", "state:m:", "state:v:"].map(|kind| format!("{kind}{name}"));
            for at in 0..expected[&p].reals().len() {
                let old = |name: &str| expected[name].reals()[at];
                let g = gradient(step, at) * factor;
                let new_m = BETAS[0] * old(&m) + (1.0 - BETAS[0]) * g;
                let new_v = BETAS[1] * old(&v) + (1.0 - BETAS[1]) * g * g;
                let root = (new_v / corrections[1]).sqrt();
                let d = new_m / corrections[0] / (root + EPS) + decay * old(&p);
                let new = [(&p, old(&p) - 0.25 * d), (&m, new_m), (&v, new_v)];
                for (name, value) in new {
                    close(store[name].reals()[at], value);
                    let Some(Data::Real(values)) = expected.get_mut(name).map(|t| &mut t.data)
                    else {
                        panic!("{name} holds integers");
                    };
                    values[at] = value;
                }
            }
        }
    }
}

#[test]
fn three_steps_of_sgd_and_a_skipped_one() {
    let optimizer = Optimizer::Sgd {
        momentum: 0.5,
        nesterov: false,
    };
    let sgd = UpdateOptions {
        max_norm: None,
        decay_everything: true,
        ..options(optimizer)
    };
    let graph = update_graph(&micro(), &tensors(), &sgd).unwrap();
    verify(&graph).unwrap();
    let mut store = start::<f64>(&graph);
    let mut p = store["param:concat(q.bias, k.bias)"].reals().to_vec();
    let mut velocity = [0.0; 3];
    for step in 1..=3 {
        give(&mut store, step);
        let others = run(&graph, &mut store);
        assert_eq!(others["factor"].reals(), [0.5]);
        for at in 0..3 {
            velocity[at] = 0.5 * velocity[at] + gradient(step, at) * 0.5 + DECAY * p[at];
            p[at] -= 0.25 * velocity[at];
            close(store["param:concat(q.bias, k.bias)"].reals()[at], p[at]);
            close(
                store["state:m:concat(q.bias, k.bias)"].reals()[at],
                velocity[at],
            );
        }
    }
    give(&mut store, 4);
    let broken = Tensor::real([2], vec![f64::INFINITY, 0.0]);
    store.insert("state:acc:LayerNorm.weight".to_owned(), broken);
    let before = store.clone();
    run(&graph, &mut store);
    assert_eq!(store, before, "the step is skipped");
}

#[test]
fn weights_behind_f16_parameters_keep_what_f16_loses() {
    let masters = UpdateOptions {
        masters: true,
        max_norm: None,
        ..options(Optimizer::Sgd {
            momentum: 0.0,
            nesterov: false,
        })
    };
    let graph = update_graph(&micro(), &tensors(), &masters).unwrap();
    verify(&graph).unwrap();
    let mut store = start::<f32>(&graph);
    let master = store["param:dense.weight"].clone();
    store.insert("state:master:dense.weight".to_owned(), master);
    give(&mut store, 1);
    store.insert("lr".to_owned(), Tensor::real([], vec![1e-5]));
    run(&graph, &mut store);
    let [half, full] =
        ["param:", "state:master:"].map(|kind| &store[&format!("{kind}dense.weight")]);
    assert_eq!(half.reals()[0], 0.5, "f16 loses the step");
    assert!(full.reals()[0] < 0.5 && full.reals()[0] > 0.499_9);
    assert!(!store.contains_key("state:master:LayerNorm.weight"));
}

#[test]
fn lamb_knows_the_tensors_of_a_parameter_and_f16_is_rounded_stochastically() {
    let lamb = UpdateOptions {
        stochastic: true,
        moments: [DType::F16, DType::F32],
        ..options(Optimizer::Lamb {
            betas: BETAS,
            eps: EPS,
            max_ratio: None,
        })
    };
    let graph = update_graph(&micro(), &tensors(), &lamb).unwrap();
    verify(&graph).unwrap();
    let ops = graph.nodes().filter_map(|id| match &graph.node(id).op {
        Op::Lamb(lamb) => Some((lamb.parts.clone(), lamb.stochastic.is_some(), lamb.decay)),
        _ => None,
    });
    let expected = [
        (vec![], false, 0.0),
        (vec![1, 2], false, 0.0),
        (vec![], true, DECAY),
    ];
    assert_eq!(ops.collect::<Vec<_>>(), expected);
    let ratios = graph.nodes().filter_map(|id| match &graph.node(id).op {
        Op::TrustRatio(ratio) => Some((ratio.parts.clone(), ratio.decay)),
        _ => None,
    });
    let expected = expected.map(|(parts, _, decay)| (parts, decay));
    assert_eq!(ratios.collect::<Vec<_>>(), expected);
    let text = graph.to_string();
    assert!(
        text.contains("state {name=\"m:dense.weight\"} : f16[2,2] in \"m.dense\""),
        "{text}"
    );
    assert!(
        text.contains("state {name=\"v:dense.weight\"} : f32[2,2]"),
        "{text}"
    );
}

#[test]
fn frozen_tensors_stay_and_mixed_parameters_are_refused() {
    let graph = |frozen: &[&str]| {
        let frozen = frozen.iter().map(|&name| name.to_owned()).collect();
        let options = UpdateOptions {
            frozen,
            ..options(ADAM)
        };
        update_graph(&micro(), &tensors(), &options)
    };
    let some = graph(&["dense", "q.", "k."]).unwrap();
    let stored = some
        .outputs()
        .iter()
        .filter_map(|output| output.stored_param());
    assert_eq!(stored.collect::<Vec<_>>(), ["LayerNorm.weight"]);
    let error = graph(&["q."]).unwrap_err();
    assert!(error.contains("concat(q.bias, k.bias)"), "{error}");
    let error = graph(&["dense", "q.", "k.", "LayerNorm"]).unwrap_err();
    assert!(error.contains("every parameter is frozen"), "{error}");
}

#[test]
fn gradients_are_counted_where_asked() {
    let counting = UpdateOptions {
        histogram_edge: Some(0.5),
        ..options(ADAM)
    };
    let graph = update_graph(&micro(), &tensors(), &counting).unwrap();
    verify(&graph).unwrap();
    let mut store = start::<f64>(&graph);
    give(&mut store, 1);
    store.insert("mean".to_owned(), Tensor::real([], vec![0.5]));
    run(&graph, &mut store);
    // Halves of 1.5, 1, 0.5 and 0: two of them reach the edge.
    for (name, counts) in NAMES.iter().zip([[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]]) {
        assert_eq!(store[&format!("histogram:{name}")].reals(), counts);
    }
}

#[test]
fn replicas_share_out_what_is_large_and_splits_into_blocks() {
    let micro = |first: usize, elements: usize| {
        let rest = elements - first;
        let text = format!(
            "graph @micro {{
  %0 = param {{value=\"concat(a, b)\"}} : f32[{elements}]
  %1 = state {{name=\"acc:concat(a, b)\", reset=true}} : f32[{elements}]
  return %1 as \"state:acc:concat(a, b)\"
}}"
        );
        let shapes = vec![("a".to_owned(), vec![first]), ("b".to_owned(), vec![rest])];
        let shared = UpdateOptions {
            shards: 4,
            masters: false,
            ..options(ADAM)
        };
        let graph = update_graph(&parse(&text).unwrap(), &shapes, &shared).unwrap();
        verify(&graph).unwrap();
        let states = graph.nodes().filter_map(|id| match &graph.node(id).op {
            Op::State(state) => Some(state.shards),
            _ => None,
        });
        states.collect::<Vec<_>>()
    };
    assert_eq!(micro(4096, 10_000), [4, 4, 4]);
    assert_eq!(micro(4096, 8191), [1, 1, 1], "too small to be worth it");
    assert_eq!(micro(4095, 10_000), [1, 1, 1], "a block would lie on two");
}
