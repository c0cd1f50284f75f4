//! From a placed graph to programs: buffers, views, steps.

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Target, Value};
use rustc_hash::FxHashMap;

use super::layout::lay_out;
use super::order::order_steps;
use super::{Buffer, Category, Place, PlanError, Program, Step};
use crate::cost::CostModel;

/// One program per stage of a compacted, placed graph.
///
/// # Errors
/// A tile's memory is too small, or a view cannot be expressed.
pub fn lower(
    graph: &Graph,
    target: &Target,
    cost: &dyn CostModel,
    stages: usize,
) -> Result<Vec<Program>, PlanError> {
    let mut programs: Vec<Program> = vec![Program::default(); stages];
    let mut places: FxHashMap<Value, Place> = FxHashMap::default();
    let mut best = Vec::with_capacity(stages);
    let mut orders = Vec::with_capacity(stages);
    for (stage, program) in programs.iter_mut().enumerate() {
        let ordered = order_steps(graph, stage as u32);
        allocate(graph, stage as u32, &ordered.nodes, program, &mut places)?;
        best.push(ordered.best_peak);
        orders.push(ordered.nodes);
    }
    for (stage, program) in programs.iter_mut().enumerate() {
        program.steps = steps(graph, &orders[stage], cost, &places);
        set_lifetimes(graph, program);
        lay_out(program, target, best[stage], stage)?;
    }
    Ok(programs)
}

/// Gives every value that lies in the stage's memory a buffer, or a place in its operand's.
fn allocate(
    graph: &Graph,
    stage: u32,
    order: &[NodeId],
    program: &mut Program,
    places: &mut FxHashMap<Value, Place>,
) -> Result<(), PlanError> {
    let here = graph
        .nodes()
        .filter(|&id| graph.node(id).stage == Some(stage));
    let leaves = here.filter(|&id| graph.node(id).op.is_leaf());
    let arriving = graph.nodes().filter(|&id| arrives(graph, id, stage));
    let computed = order.iter().copied().filter(|&id| !is_send(graph, id));
    let resident: Vec<NodeId> = leaves.chain(arriving).chain(computed).collect();
    for id in resident {
        for output in 0..graph.node(id).types.len() {
            let value = Value {
                node: id,
                output: output as u16,
            };
            places.insert(value, new_buffer(graph, value, program));
        }
    }
    for id in graph.topo() {
        if graph.node(id).op.is_view() && graph.node(id).stage == Some(stage) {
            places.insert(graph.value(id), view(graph, id, places)?);
        }
    }
    for value in graph.outputs().iter().map(|output| output.value) {
        if let Some(place) = places
            .get(&value)
            .filter(|_| home(graph, value.node) == Some(stage))
        {
            let buffer = &mut program.buffers[place.buffer];
            if buffer.category == Category::Activations {
                buffer.category = Category::HostIo;
            }
        }
    }
    Ok(())
}

/// The stage in whose memory a node's value lies.
pub(super) fn home(graph: &Graph, id: NodeId) -> Option<u32> {
    match &graph.node(id).op {
        Op::Transfer(transfer) => Some(transfer.to),
        _ => graph.node(id).stage,
    }
}

fn arrives(graph: &Graph, id: NodeId, stage: u32) -> bool {
    is_send(graph, id) && home(graph, id) == Some(stage)
}

pub(super) fn is_send(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Transfer(_))
}

fn new_buffer(graph: &Graph, value: Value, program: &mut Program) -> Place {
    let node = graph.node(value.node);
    let ty = graph.ty(value);
    let category = match &node.op {
        Op::Param(_) | Op::Constant(_) => Category::Weights,
        Op::Input(_) => Category::HostIo,
        Op::Transfer(_) => Category::Transfer,
        _ => Category::Activations,
    };
    program.buffers.push(Buffer {
        node: value.node.index(),
        output: usize::from(value.output),
        category,
        offset: 0,
        bytes: ty.bytes() as u64,
        birth: 0,
        death: 0,
    });
    let buffer = program.buffers.len() - 1;
    Place {
        buffer,
        column: 0,
        stride: ty.shape.row_elements(),
        after: Vec::new(),
    }
}

/// Where a view lies: in its operand's buffer, from a later column or row.
fn view(graph: &Graph, id: NodeId, places: &FxHashMap<Value, Place>) -> Result<Place, PlanError> {
    let operand = graph.inputs(id)[0];
    let mut place = places[&operand].clone();
    let ty = graph.ty(operand);
    match &graph.node(id).op {
        Op::Slice(slice) if slice.axis == 1 && ty.shape.len() == 2 => place.column += slice.start,
        Op::Part(part) => {
            let parts = match ty.rows.map(|space| &graph.spaces.get(space).layout) {
                Some(lxpod_ir::Layout::Union(parts)) => parts,
                _ => return Err(PlanError::Unsupported("a `part` of no union".to_owned())),
            };
            place.after.extend_from_slice(&parts[..part.index]);
        }
        op => {
            let shown = ty.display(&graph.spaces);
            return Err(PlanError::Unsupported(format!(
                "`{}` of {shown} in a plan",
                op.name()
            )));
        }
    }
    Ok(place)
}

fn steps(
    graph: &Graph,
    order: &[NodeId],
    cost: &dyn CostModel,
    places: &FxHashMap<Value, Place>,
) -> Vec<Step> {
    let step = |&id: &NodeId| {
        let outputs = 0..graph.node(id).types.len();
        Step {
            node: id.index(),
            inputs: graph
                .inputs(id)
                .iter()
                .map(|value| places[value].clone())
                .collect(),
            outputs: outputs
                .map(|output| {
                    places[&Value {
                        node: id,
                        output: output as u16,
                    }]
                        .clone()
                })
                .collect(),
            cycles: cost.node(graph, id),
        }
    };
    order.iter().map(step).collect()
}

/// Sets when each buffer is born and dies. Parameters, host buffers and received values live for the
/// whole program; what is sent lives until its end, since sends come last.
fn set_lifetimes(graph: &Graph, program: &mut Program) {
    let Program {
        steps,
        buffers,
        memory: _,
    } = program;
    let end = steps.len() as u32;
    for buffer in buffers.iter_mut() {
        let whole = buffer.category != Category::Activations;
        (buffer.birth, buffer.death) = if whole { (0, end) } else { (end, 0) };
    }
    for (time, step) in steps.iter().enumerate() {
        let sends = step.receiver(graph).is_some();
        let outputs = if sends { &[] } else { step.outputs.as_slice() };
        for place in step.inputs.iter().chain(outputs) {
            let buffer = &mut buffers[place.buffer];
            buffer.birth = buffer.birth.min(time as u32);
            buffer.death = buffer.death.max(if sends { end } else { time as u32 + 1 });
        }
    }
}
