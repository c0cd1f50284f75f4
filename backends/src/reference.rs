//! The reference backend: runs a graph by the reference semantics of its ops, node by node. Slow,
//! and the definition of what every other backend must compute.

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::{Binding, Extents, Graph, Scalar, Shape, Tensor, TensorType, interpret};
use thiserror::Error;

use crate::{BackendError, Executable, Feed, Fetch, HostLedger, Outputs, StepTime, TileLedger};

/// Why a graph did not run; names the parameter or input, or the node's scope and op.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ReferenceError(String);

/// A graph run by its reference semantics, in f32.
pub struct Reference {
    graph: Graph,
    parameters: BTreeMap<String, (Shape, Vec<f32>)>,
}

impl Reference {
    /// Reads every tensor that the graph's parameters are made of; `expected` are those of the model
    /// with their shapes.
    ///
    /// # Errors
    /// The source of the weights fails.
    pub fn load(
        graph: Graph,
        expected: &[(String, Vec<usize>)],
        fetch: Fetch<'_>,
    ) -> Result<Self, BackendError> {
        let mut parameters = BTreeMap::new();
        for id in graph.nodes() {
            let Op::Param(param) = &graph.node(id).op else {
                continue;
            };
            for name in param.value.tensors() {
                let expected = expected.iter().find(|(other, _)| other == name);
                let unknown =
                    || BackendError::Internal(format!("the model has no tensor `{name}`"));
                let shape = Shape::new(&expected.ok_or_else(unknown)?.1);
                let mut values = vec![0.0; shape.elements()];
                fetch(name, 0..shape.rows(), &mut values)?;
                parameters.insert(name.to_owned(), (shape, values));
            }
        }
        Ok(Reference { graph, parameters })
    }
}

impl Executable for Reference {
    fn run(&mut self, feeds: &[Feed], outputs: &mut Vec<Outputs>) -> Result<(), BackendError> {
        let answer = |feed: &Feed| {
            let input = |name: &str| feed.inputs.get(name).cloned();
            let parameter = |name: &str| self.parameters.get(name).cloned();
            let outputs = run::<f32>(&self.graph, &feed.extents, input, parameter);
            let outputs = outputs.map_err(|error| BackendError::Data(error.to_string()))?;
            Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
        };
        *outputs = feeds
            .iter()
            .map(answer)
            .collect::<Result<_, BackendError>>()?;
        Ok(())
    }

    fn ledger(&self) -> Vec<TileLedger> {
        Vec::new()
    }

    fn step_times(&self) -> Vec<StepTime> {
        Vec::new()
    }

    fn host(&self) -> HostLedger {
        let bytes = self
            .parameters
            .values()
            .map(|(_, values)| size_of_val(values.as_slice()) as u64)
            .sum();
        HostLedger {
            weights: bytes,
            ..HostLedger::default()
        }
    }

    fn description(&self) -> String {
        "reference: plain loops, 1 thread".to_owned()
    }
}

/// Runs `graph` at these extents and returns its outputs by name, in the graph's order. `S` is the
/// type to compute with, `f32` or `f64`; only `f32` rounds stored values to their dtypes.
///
/// `input` gives the inputs, their rows at the run-time extents. `parameter` gives the tensors of
/// a checkpoint, row-major; bindings are evaluated over them.
///
/// # Errors
/// An input or a tensor is missing or has another shape than the graph's, or an op rejects a value
/// such as an index out of range.
pub fn run<S: Scalar>(
    graph: &Graph,
    extents: &Extents,
    input: impl Fn(&str) -> Option<Tensor<S>>,
    parameter: impl Fn(&str) -> Option<(Shape, Vec<f32>)>,
) -> Result<Vec<(String, Tensor<S>)>, ReferenceError> {
    let feed = |op: &Op, ty: &TensorType| match op {
        Op::Input(leaf) => {
            let expected = ty.shape_at(extents);
            let missing = || format!("input `{}` was not given", leaf.name);
            let tensor = input(&leaf.name).ok_or_else(missing)?;
            check_shape("input", &leaf.name, tensor, &expected)
        }
        Op::Param(leaf) => {
            let tensor = bind(&leaf.value, &parameter)?;
            check_shape("parameter", &leaf.value.to_string(), tensor, &ty.shape)
        }
        Op::State(leaf) => Err(format!("state `{}` was not given", leaf.name)),
        other => Err(format!("`{}` takes no value from outside", other.name())),
    };
    let values = interpret(graph, extents, feed).map_err(ReferenceError)?;
    let names = graph.outputs().iter().map(|output| output.name.clone());
    Ok(names.zip(values).collect())
}

fn check_shape<S>(
    kind: &str,
    name: &str,
    tensor: Tensor<S>,
    expected: &Shape,
) -> Result<Tensor<S>, String> {
    if tensor.shape == *expected {
        Ok(tensor)
    } else {
        let given = &tensor.shape;
        Err(format!("{kind} `{name}` is {given}, must be {expected}"))
    }
}

/// The value of a binding over the tensors of a checkpoint.
///
/// # Errors
/// A tensor is missing or inconsistent, or the binding does not fit the tensors' shapes.
pub fn bind<S: Scalar>(
    binding: &Binding,
    parameter: impl Fn(&str) -> Option<(Shape, Vec<f32>)>,
) -> Result<Tensor<S>, String> {
    let mut tensors: BTreeMap<&str, (Shape, Vec<f32>)> = BTreeMap::new();
    for name in binding.tensors() {
        let (shape, data) = parameter(name).ok_or_else(|| format!("no tensor named `{name}`"))?;
        if shape.elements() != data.len() {
            let elements = data.len();
            return Err(format!(
                "tensor `{name}` is {shape} with {elements} elements"
            ));
        }
        tensors.insert(name, (shape, data));
    }
    let shape = binding.shape(&|name| tensors.get(name).map(|(shape, _)| shape.clone()))?;
    let mut values = Vec::with_capacity(shape.elements());
    for piece in binding.pieces(0, shape.rows(), &|name| tensors[name].0.rows()) {
        let (shape, data) = &tensors[piece.tensor];
        let width = shape.row_elements();
        let rows = &data[piece.start * width..piece.end * width];
        let scaled = rows.iter().map(|value| value * piece.factor);
        values.extend(scaled.map(|value| S::from_f64(f64::from(value))));
    }
    Ok(Tensor::real(shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_reads_rows_of_several_tensors() {
        let tensors = |name: &str| match name {
            "a" => Some((Shape::new(&[2, 2]), vec![1.0, 2.0, 3.0, 4.0])),
            "b" => Some((Shape::new(&[1, 2]), vec![5.0, 6.0])),
            "short" => Some((Shape::new(&[2, 2]), vec![5.0])),
            _ => None,
        };
        let bound = |text: &str| bind::<f32>(&text.parse().expect("a binding"), tensors);
        let value = bound("concat(rows(1, 2, a), scale(0.5, b))").expect("fits");
        assert_eq!(*value.shape, [2, 2]);
        assert_eq!(value.reals(), [3.0, 4.0, 2.5, 3.0]);
        for wrong in ["c", "short", "rows(1, 3, a)"] {
            assert!(bound(wrong).is_err(), "{wrong}");
        }
    }
}
