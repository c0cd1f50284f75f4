//! From placed graphs to tiles: buffers, views, steps.

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Target, Value};
use rustc_hash::FxHashMap;

use super::layout::lay_out;
use super::order::order_steps;
use super::values::Values;
use super::{Buffer, Category, Place, PlanError, Program, Step, Tile};
use crate::cost::CostModel;
use crate::schedule::{Phase, Schedule};

/// What a pod is to do: compacted, placed graphs and the order of their programs.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The graph of a micro-batch.
    pub graph: &'a Graph,
    /// The graph of the update.
    pub update: Option<&'a Graph>,
    /// The order of the programs.
    pub schedule: &'a Schedule,
    /// Micro-batches of a training step.
    pub accumulation: usize,
    /// Micro-batches that one visit of a program computes together.
    pub group: usize,
}

/// The tiles of one replica.
///
/// # Errors
/// A tile's memory is too small, or a view cannot be expressed.
pub fn lower(
    work: Work<'_>,
    target: &Target,
    cost: &dyn CostModel,
) -> Result<Vec<Tile>, PlanError> {
    let Work {
        graph,
        update,
        schedule,
        accumulation,
        group,
    } = work;
    let mut tiles = Vec::with_capacity(schedule.tiles);
    let micro = Values::of_micro_batch(graph, schedule, accumulation, group);
    let update = update.map(|update| Values::of_update(update, schedule));
    let graphs: Vec<&Values<'_>> = [&micro].into_iter().chain(&update).collect();
    let mut places: Vec<Places> = graphs.iter().map(|_| Places::default()).collect();
    for tile in 0..schedule.tiles {
        let mut lowered = Lowered::default();
        for (values, places) in graphs.iter().zip(&mut places) {
            lowered.allocate(values, tile, places)?;
        }
        tiles.push(lowered);
    }
    let finish = |(index, lowered): (usize, Lowered)| {
        let mut tile = Tile {
            programs: Vec::with_capacity(lowered.programs.len()),
            buffers: lowered.buffers,
            ..Tile::default()
        };
        for planned in lowered.programs {
            let (values, places) = match planned.phase {
                Phase::Update => (graphs[1], &places[1]),
                _ => (graphs[0], &places[0]),
            };
            tile.programs.push(planned.resolve(values, cost, places));
        }
        let graph_of = |phase| {
            if phase == Phase::Update {
                graphs[1].graph
            } else {
                graph
            }
        };
        set_lifetimes(&mut tile, &graph_of);
        lay_out(&mut tile, target, lowered.best_peak, index)?;
        Ok(tile)
    };
    tiles.into_iter().enumerate().map(finish).collect()
}

/// The stage in whose memory a node's value lies.
pub(super) fn home(graph: &Graph, id: NodeId) -> Option<u32> {
    match &graph.node(id).op {
        Op::Transfer(transfer) => Some(transfer.to),
        _ => graph.node(id).stage,
    }
}

pub(super) fn is_send(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Transfer(_))
}

type Places = FxHashMap<Value, Place>;

/// A tile whose buffers are known, and the order of its programs' nodes.
#[derive(Default)]
struct Lowered {
    programs: Vec<Planned>,
    buffers: Vec<Buffer>,
    best_peak: u64,
    /// The buffers of parameters and states, by stage and by what they hold.
    resident: FxHashMap<(Option<u32>, String), usize>,
}

/// A program before its operands have places.
struct Planned {
    stage: usize,
    phase: Phase,
    round: usize,
    nodes: Vec<NodeId>,
}

impl Lowered {
    /// Orders the programs that the tile has of a graph, and gives every value that lies in its memory
    /// a buffer, or a place in another's.
    fn allocate(
        &mut self,
        values: &Values<'_>,
        tile: usize,
        places: &mut Places,
    ) -> Result<(), PlanError> {
        let graph = values.graph;
        let first = self.programs.len();
        self.order(values, tile);
        let here = |id: &NodeId| values.tile(*id) == Some(tile);
        let on_stage = |id: &NodeId| {
            let stage = graph.node(*id).stage.map(|stage| stage as usize);
            stage.is_some_and(|stage| values.schedule.tile_of(stage) == tile)
        };
        let leaves = graph.nodes().filter(|&id| graph.node(id).op.is_leaf());
        let arriving = graph.nodes().filter(|&id| is_send(graph, id));
        let ordered = self.programs[first..]
            .iter()
            .flat_map(|program| &program.nodes);
        let computed = ordered.copied().filter(|&id| !is_send(graph, id));
        let resident: Vec<NodeId> = leaves
            .chain(arriving)
            .filter(here)
            .chain(computed)
            .collect();
        for id in resident {
            for value in crate::walk::values(graph, id) {
                let place = match values.stored_over(value) {
                    Some(leaf) => places[&graph.value(leaf)].clone(),
                    None => self.new_place(values, value),
                };
                places.insert(value, place);
            }
        }
        for id in graph.topo() {
            if graph.node(id).op.is_view() && on_stage(&id) {
                places.insert(graph.value(id), view(graph, id, places)?);
            }
        }
        Ok(())
    }

    fn order(&mut self, values: &Values<'_>, tile: usize) {
        let stages = (0..values.schedule.stages()).filter(|&s| values.schedule.tile_of(s) == tile);
        let stages: Vec<usize> = stages.collect();
        let phases: &[Phase] = match values.update {
            true => &[Phase::Update],
            false if values.schedule.training => &[Phase::Forward, Phase::Backward],
            false => &[Phase::Forward],
        };
        for &phase in phases {
            for round in 0..=values.last_round() {
                for &stage in &stages {
                    let ordered = order_steps(values, stage as u32, phase, round);
                    self.best_peak = self.best_peak.max(ordered.best_peak);
                    self.programs.push(Planned {
                        stage,
                        phase,
                        round,
                        nodes: ordered.nodes,
                    });
                }
            }
        }
    }

    /// A buffer for a value, or that of the same parameter or state in the other graph.
    fn new_place(&mut self, values: &Values<'_>, value: Value) -> Place {
        let graph = values.graph;
        let node = graph.node(value.node);
        let ty = graph.ty(value);
        let name = match &node.op {
            Op::Param(param) => Some(format!("param:{}", param.value)),
            Op::State(state) => Some(format!("state:{}", state.name)),
            _ => None,
        };
        let key = name.map(|name| (node.stage, name));
        let known = key.as_ref().and_then(|key| self.resident.get(key).copied());
        let buffer = known.unwrap_or_else(|| {
            let (slots, outlives) = values.slots(value);
            let category = values.category(value);
            debug_assert!(!outlives || category != Category::Activations);
            self.buffers.push(Buffer {
                node: value.node.index(),
                update: values.update,
                output: usize::from(value.output),
                category,
                offset: 0,
                bytes: values.bytes(value),
                slots,
                birth: 0,
                death: 0,
            });
            self.buffers.len() - 1
        });
        if let Some(key) = key {
            self.resident.insert(key, buffer);
        }
        Place {
            buffer,
            column: 0,
            stride: ty.shape.row_elements(),
            after: Vec::new(),
        }
    }
}

/// Where a view lies: in its operand's buffer, from a later column or row.
fn view(graph: &Graph, id: NodeId, places: &Places) -> Result<Place, PlanError> {
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

impl Planned {
    fn resolve(self, values: &Values<'_>, cost: &dyn CostModel, places: &Places) -> Program {
        let graph = values.graph;
        let place = |value: &Value| places[value].clone();
        let step = |&id: &NodeId| Step {
            node: id.index(),
            inputs: graph.inputs(id).iter().map(place).collect(),
            outputs: crate::walk::values(graph, id)
                .map(|value| place(&value))
                .collect(),
            cycles: cost.visit(graph, id, values.group()),
        };
        Program {
            stage: self.stage,
            phase: self.phase,
            round: self.round,
            steps: self.nodes.iter().map(step).collect(),
        }
    }
}

/// Sets when each buffer is born and dies. Activations live inside their program, or inside the
/// update; what is sent lives until its program's end, since sends come last. Everything else lives
/// for the whole step.
fn set_lifetimes<'a>(tile: &mut Tile, graph_of: &dyn Fn(Phase) -> &'a Graph) {
    let first = tile.first_steps();
    let end = first[tile.programs.len()] as u32;
    for buffer in &mut tile.buffers {
        let whole = buffer.category != Category::Activations;
        (buffer.birth, buffer.death) = if whole { (0, end) } else { (end, 0) };
    }
    for (program, window) in tile.programs.iter().zip(first.windows(2)) {
        let graph = graph_of(program.phase);
        for (time, step) in program.steps.iter().enumerate() {
            let time = (window[0] + time) as u32;
            let sends = step.receiver(graph).is_some();
            let outputs = if sends { &[] } else { step.outputs.as_slice() };
            for place in step.inputs.iter().chain(outputs) {
                let buffer = &mut tile.buffers[place.buffer];
                buffer.birth = buffer.birth.min(time);
                buffer.death = buffer
                    .death
                    .max(if sends { window[1] as u32 } else { time + 1 });
            }
        }
    }
}
