//! Random graphs with a loss.

use std::collections::BTreeMap;

use super::{Rng, random_graph};
use crate::graph::LOSS;
use crate::ops::{Add, Bce, Input, Op, Param};
use crate::{Binding, DType, Graph, NodeId, TensorType, Value};

/// [`random_graph`] with the output [`LOSS`]: the sum of binary cross-entropies of up to three of its
/// values against inputs. The values depend on parameters, if any does; the tensors that parameters
/// take rows of are outputs too.
pub fn random_loss_graph(seed: u64, size: usize) -> Graph {
    let mut graph = random_graph(seed, size);
    let mut rng = Rng::keyed(seed, LOSS);
    let mut depends = vec![false; graph.bound()];
    let mut candidates: Vec<Value> = Vec::new();
    for id in graph.topo() {
        let operands = graph.inputs(id);
        let is_param = matches!(graph.node(id).op, Op::Param(_));
        depends[id.index()] = is_param || operands.iter().any(|v| depends[v.node.index()]);
        if depends[id.index()] && !is_param {
            candidates.extend(float_results(&graph, id));
        }
    }
    let mut total: Option<Value> = None;
    for position in 0..1 + rng.below(3) {
        let Some(x) = rng.pick(&candidates) else {
            break;
        };
        let part = against_input(&mut graph, x, &format!("target.{position}"));
        total = Some(match total {
            None => part,
            Some(sum) => scalar(&mut graph, Add::default(), &[sum, part]),
        });
    }
    if let Some(total) = total {
        graph.add_output(LOSS, total);
    }
    declare_tensors(&mut graph);
    graph
}

/// Lets every tensor that no parameter is alone be an output, so that its shape is known: with the
/// rows that a scaled parameter has, or a row more than parameters take of it.
fn declare_tensors(graph: &mut Graph) {
    let mut tensors: BTreeMap<String, (usize, TensorType)> = BTreeMap::new();
    let mut known: Vec<String> = Vec::new();
    for id in graph.nodes() {
        let Op::Param(param) = &graph.node(id).op else {
            continue;
        };
        if let Binding::Tensor(name) = &param.value {
            known.push(name.clone());
        }
        let ty = &graph.node(id).types[0];
        let beyond = usize::from(!is_whole(&param.value));
        for piece in param.value.pieces(0, ty.shape.rows(), &|_| 0) {
            let tensor = tensors.entry(piece.tensor.to_owned());
            let (rows, _) = tensor.or_insert((0, ty.clone()));
            *rows = (piece.end + beyond).max(*rows);
        }
    }
    tensors.retain(|name, _| !known.contains(name));
    for (name, (rows, ty)) in tensors {
        let ty = TensorType::fixed(ty.dtype, ty.shape.with_rows(rows));
        let value = Binding::Tensor(name.clone());
        let param = insert(graph, Param { value }, &[], &[ty]);
        graph.add_output(&name, param);
    }
}

fn is_whole(binding: &Binding) -> bool {
    match binding {
        Binding::Tensor(_) => true,
        Binding::Scale(_, inner) => is_whole(inner),
        Binding::Rows(..) | Binding::Concat(_) => false,
    }
}

fn float_results(graph: &Graph, node: NodeId) -> Vec<Value> {
    let results = (0..graph.node(node).types.len() as u16).map(|output| Value { node, output });
    results
        .filter(|&value| graph.ty(value).dtype.is_float())
        .collect()
}

fn against_input(graph: &mut Graph, x: Value, name: &str) -> Value {
    let ty = graph.ty(x).with_dtype(DType::F32);
    let name = name.to_owned();
    let target = insert(graph, Input { name }, &[], &[ty]);
    scalar(graph, Bce { factor: 2.0 }, &[x, target])
}

fn scalar(graph: &mut Graph, op: impl Into<Op>, operands: &[Value]) -> Value {
    insert(graph, op, operands, &[TensorType::fixed(DType::F32, [])])
}

fn insert(graph: &mut Graph, op: impl Into<Op>, operands: &[Value], ty: &[TensorType]) -> Value {
    let node = graph.add(op.into(), operands, ty, &"".into());
    graph.value(node.expect("the operands fit"))
}
