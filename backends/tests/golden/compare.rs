//! Compares outputs, row by row, with the padded tensors of a case.

use lxpod_ir::{Scalar, SpaceId, Tensor};

use super::pack::Packed;
use super::{Array, Case};

/// Compares every output that the case has an expectation for, and returns their names.
///
/// # Panics
/// At the first output that differs, with the worst element.
pub(crate) fn compare<S: Scalar>(
    case: &Case,
    packed: &Packed,
    outputs: &[(String, Tensor<S>)],
) -> Vec<String> {
    let graph = &packed.built.graph;
    let mut compared = Vec::new();
    for ((name, tensor), output) in outputs.iter().zip(graph.outputs()) {
        let Some(expected) = case.expected.get(name) else {
            continue;
        };
        let picked = match graph.ty(output.value).rows {
            None => expected.reals(),
            Some(space) if name.contains("_attentions.") => weights(packed, space, expected),
            Some(space) => rows(packed, space, expected),
        };
        close(case, name, tensor, &picked);
        compared.push(name.clone());
    }
    compared
}

/// The rows of a \[samples, ...\] or \[samples, places, ...\] tensor.
fn rows(packed: &Packed, space: SpaceId, expected: &Array) -> Vec<f32> {
    let places = if space == packed.spaces.sample {
        1
    } else {
        expected.shape[1]
    };
    let values = expected.reals();
    let width = values.len() / expected.shape[0] / places;
    let sources = packed.sources(space);
    let rows = packed.rows(space).into_iter();
    rows.flat_map(|(entity, place)| {
        let row = sources[entity] * places + place;
        values[row * width..(row + 1) * width].to_vec()
    })
    .collect()
}

/// The rows \[query\]\[heads, keys\] of a \[samples, heads, queries, keys\] tensor.
fn weights(packed: &Packed, space: SpaceId, expected: &Array) -> Vec<f32> {
    let &[_, heads, queries, keys] = &*expected.shape else {
        panic!("attentions have four axes");
    };
    let values = expected.reals();
    let sources = packed.sources(space);
    let mut picked = Vec::new();
    for (entity, place) in packed.rows(space) {
        for head in 0..heads {
            let first = ((sources[entity] * heads + head) * queries + place) * keys;
            picked.extend_from_slice(&values[first..first + keys]);
        }
    }
    picked
}

/// Saturated softmax and tanh amplify rounding in one case.
fn absolute_tolerance(case: &Case) -> f64 {
    match case.name {
        "qa_big_logits" => 4e-4,
        _ => 2e-5,
    }
}

fn close<S: Scalar>(case: &Case, name: &str, tensor: &Tensor<S>, expected: &[f32]) {
    let case_name = case.name;
    let actual = tensor.reals();
    assert_eq!(actual.len(), expected.len(), "{case_name}: size of {name}");
    let excess = |(index, (a, e)): (usize, (&S, &f32))| {
        let (a, e) = (a.to_f64(), f64::from(*e));
        let allowed = absolute_tolerance(case) + 1e-5 * e.abs();
        let ok = (a - e).abs() <= allowed;
        (!ok).then(|| format!("element {index} is {a}, expected {e}"))
    };
    let wrong: Vec<String> = actual
        .iter()
        .zip(expected)
        .enumerate()
        .filter_map(excess)
        .collect();
    if let Some(first) = wrong.first() {
        panic!(
            "{case_name}: {name}: {} of {} elements differ; {first}",
            wrong.len(),
            actual.len()
        );
    }
}
