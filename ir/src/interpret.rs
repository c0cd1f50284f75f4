//! Running a graph by its reference semantics.

use crate::ops::{Eval, Op};
use crate::rows::Extents;
use crate::tensor::{Data, Scalar, Tensor};
use crate::{Graph, NodeId, TensorType};

/// Evaluates every node in order and returns the outputs, in the order of [`Graph::outputs`].
/// `feed` gives the values of inputs, parameters and states at their run-time extents; a state that
/// is to read as zeros is fed zeros.
///
/// # Errors
/// An op rejects its operands' values, or a fed tensor has another shape or kind than its type; the message
/// names the node's scope and op.
pub fn interpret<S: Scalar>(
    graph: &Graph,
    extents: &Extents,
    mut feed: impl FnMut(&Op, &TensorType) -> Result<Tensor<S>, String>,
) -> Result<Vec<Tensor<S>>, String> {
    let mut values: Vec<Vec<Tensor<S>>> = vec![Vec::new(); graph.bound()];
    for id in graph.topo() {
        let node = graph.node(id);
        let place = |error: String| match &*node.scope {
            "" => format!("{}: {error}", node.op.name()),
            scope => format!("{} in {scope}: {error}", node.op.name()),
        };
        values[id.index()] = match &node.op {
            Op::Input(_) | Op::Param(_) | Op::State(_) => {
                let tensor = feed(&node.op, &node.types[0])
                    .map_err(place)?
                    .round_to(node.types[0].dtype);
                vec![check_shape(graph, extents, id, tensor).map_err(place)?]
            }
            op => {
                let inputs = graph.inputs(id);
                let operands: Vec<&Tensor<S>> = inputs
                    .iter()
                    .map(|value| &values[value.node.index()][usize::from(value.output)])
                    .collect();
                let types = graph.input_types(id);
                op.eval(&Eval {
                    inputs: &operands,
                    types: &types,
                    outputs: &node.types,
                    extents,
                    spaces: &graph.spaces,
                })
                .map_err(place)?
            }
        };
    }
    let outputs = graph.outputs().iter();
    Ok(outputs
        .map(|out| values[out.value.node.index()][usize::from(out.value.output)].clone())
        .collect())
}

fn check_shape<S: Scalar>(
    graph: &Graph,
    extents: &Extents,
    id: NodeId,
    tensor: Tensor<S>,
) -> Result<Tensor<S>, String> {
    let ty = &graph.node(id).types[0];
    let expected = ty.shape_at(extents);
    let real = matches!(tensor.data, Data::Real(_));
    if tensor.shape != expected {
        Err(format!("fed {} for {}", tensor.shape, expected))
    } else if real != ty.dtype.is_float() {
        let kind = if real { "reals" } else { "integers" };
        Err(format!("fed {kind} for {}", ty.dtype))
    } else {
        Ok(tensor)
    }
}
