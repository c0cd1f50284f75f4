//! Random graphs on stages.

use std::collections::HashMap;

use super::random_graph;
use crate::graph::Node;
use crate::ops::Transfer;
use crate::{Graph, Types, Value};

/// [`random_graph`] on at most `stages` stages, at least one, cut in the order of
/// [`Graph::topo`], with a `transfer` wherever a value crosses.
pub fn random_placed_graph(seed: u64, size: usize, stages: u32) -> Graph {
    let graph = random_graph(seed, size);
    let mut cut = Cut {
        placed: Graph::new(&graph.name, graph.spaces.clone()),
        values: HashMap::new(),
    };
    let order = graph.topo();
    for (position, &id) in order.iter().enumerate() {
        let stage = (position * stages.max(1) as usize / order.len()) as u32;
        let operands = graph.inputs(id);
        let operands: Vec<Value> = operands.iter().map(|&old| cut.on(old, stage)).collect();
        let node = Node {
            stage: Some(stage),
            ..graph.node(id).clone()
        };
        let outputs = node.types.len();
        let new = cut.placed.insert(node, &operands);
        for output in 0..outputs as u16 {
            let value = Value { node: new, output };
            cut.values
                .insert(Value { node: id, output }, vec![(stage, value)]);
        }
    }
    for output in graph.outputs() {
        let (_, value) = cut.values[&output.value][0];
        cut.placed.add_output(&output.name, value);
    }
    cut.placed
}

struct Cut {
    placed: Graph,
    /// The copies of each value of the unplaced graph, first the one on its own stage.
    values: HashMap<Value, Vec<(u32, Value)>>,
}

impl Cut {
    /// The copy of a value on a stage, transferred there if need be.
    fn on(&mut self, old: Value, stage: u32) -> Value {
        let copies = self.values.entry(old).or_default();
        if let Some(&(_, copy)) = copies.iter().find(|(on, _)| *on == stage) {
            return copy;
        }
        let (home, value) = copies[0];
        let node = Node {
            op: Transfer { to: stage }.into(),
            types: Types::from_elem(self.placed.ty(value).clone(), 1),
            scope: self.placed.node(value.node).scope.clone(),
            forward: None,
            stage: Some(home),
        };
        let transfer = self.placed.insert(node, &[value]);
        let copy = self.placed.value(transfer);
        copies.push((stage, copy));
        copy
    }
}
