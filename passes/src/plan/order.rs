//! The order of a program's steps: the one with the least peak of live activations.
//!
//! A step that only picks rows of leaves frees nothing, so that the later it runs the better: it is
//! left out of the search and put right before its first user.

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Value};
use rustc_hash::FxHashMap;

use super::Category;
use super::lower::is_send;
use super::values::Values;
use crate::schedule::Phase;
use crate::solve::order::{OrderProblem, OrderValue, minimum_peak_order};

/// More ideals than any LXMERT stage has; beyond, the order is greedy and the bound says so.
const MOST_IDEALS: usize = 20_000;

/// The steps of one stage in order, sends last.
pub(super) struct OrderedSteps {
    /// The nodes of the steps.
    pub nodes: Vec<NodeId>,
    /// A lower bound of the peak of every order: the least peak when picked rows count nothing.
    pub best_peak: u64,
}

/// Orders the steps of `stage` in one phase and round. Only values that live inside the program
/// count: others lie in buffers of their own.
pub(super) fn order_steps(
    values: &Values<'_>,
    stage: u32,
    phase: Phase,
    round: usize,
) -> OrderedSteps {
    let graph = values.graph;
    let here = |id: &NodeId| {
        let node = graph.node(*id);
        let in_program = values.phase(*id) == phase && values.round(*id) == round;
        let works = !node.op.is_leaf() && !node.op.is_view();
        node.stage == Some(stage) && in_program && works
    };
    let (sends, work): (Vec<NodeId>, Vec<NodeId>) = graph
        .topo()
        .into_iter()
        .filter(here)
        .partition(|&id| is_send(graph, id));
    let (picks, steps): (Vec<NodeId>, Vec<NodeId>) =
        work.iter().partition(|&&id| picks_leaves(graph, id));
    let index: FxHashMap<NodeId, usize> = steps
        .iter()
        .enumerate()
        .map(|(index, &id)| (id, index))
        .collect();
    let problem = OrderProblem {
        workspace: vec![0; steps.len()],
        edges: Vec::new(),
        values: live_values(values, &steps, &index),
    };
    let ordered = minimum_peak_order(&problem, MOST_IDEALS).expect("a verified graph has an order");
    let mut nodes = Vec::with_capacity(work.len() + sends.len());
    for id in ordered
        .order
        .iter()
        .map(|&item| steps[item])
        .chain(picks.iter().copied())
        .chain(sends)
    {
        place_after_picks(graph, id, &picks, &mut nodes);
    }
    OrderedSteps {
        nodes,
        best_peak: ordered.lower_bound,
    }
}

/// Whether a node picks rows of inputs or parameters.
fn picks_leaves(graph: &Graph, id: NodeId) -> bool {
    let is_leaf = |value: &Value| {
        let op = &graph.node(value.node).op;
        op.is_leaf() || picks_leaves(graph, value.node)
    };
    matches!(graph.node(id).op, Op::GatherRows(_)) && graph.inputs(id).iter().all(is_leaf)
}

/// Appends the program's picks that `id` needs and are not there yet, then `id`.
fn place_after_picks(graph: &Graph, id: NodeId, picks: &[NodeId], nodes: &mut Vec<NodeId>) {
    if nodes.contains(&id) {
        return;
    }
    for value in graph.inputs(id) {
        let mut operand = value.node;
        while graph.node(operand).op.is_view() {
            operand = graph.inputs(operand)[0].node;
        }
        if picks.contains(&operand) {
            place_after_picks(graph, operand, picks, nodes);
        }
    }
    nodes.push(id);
}

/// What each step leaves in memory, for how long. A view keeps its operand alive.
fn live_values(
    values: &Values<'_>,
    steps: &[NodeId],
    index: &FxHashMap<NodeId, usize>,
) -> Vec<OrderValue> {
    let graph = values.graph;
    let mut live = Vec::new();
    for (producer, &id) in steps.iter().enumerate() {
        for (output, ty) in graph.node(id).types.iter().enumerate() {
            let value = Value {
                node: id,
                output: output as u16,
            };
            let mut uses = Uses::default();
            uses.collect(graph, value, index);
            let counts = values.category(value) == Category::Activations
                && values.stored_over(value).is_none();
            live.push(OrderValue {
                producer: Some(producer),
                users: uses.steps,
                bytes: if counts { ty.bytes() as u64 } else { 0 },
                kept: uses.sent,
            });
        }
    }
    live
}

#[derive(Default)]
struct Uses {
    steps: Vec<usize>,
    sent: bool,
}

impl Uses {
    fn collect(&mut self, graph: &Graph, value: Value, index: &FxHashMap<NodeId, usize>) {
        for user in graph.users(value) {
            if graph.node(user.node).op.is_view() {
                self.collect(graph, graph.value(user.node), index);
            } else if let Some(&step) = index.get(&user.node) {
                self.steps.push(step);
            } else {
                self.sent = true;
            }
        }
    }
}
