//! Recording a run: a plan is run with the value of every op among its outputs.

use std::collections::BTreeMap;
use std::ops::Range;

use lxpod_backends::Outputs;
use lxpod_backends::cpu::PackedWeights;
use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Extents, Graph, Layout, SpaceId, Tensor, Value};
use lxpod_passes::cost;
use lxpod_passes::plan::{Plan, lower};

use super::{Trace, Traced};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::pack::Packer;
use crate::samples::Samples;
use crate::session::{NamedTensor, SessionOptions, executable, unpack_outputs};
use crate::sharing::RowKind;
use crate::tensors::Dtype;

/// The most memory that a tile and its cores may have.
const MOST_MEMORY: [u64; 2] = [1 << 50, 1 << 39];

impl Trace {
    /// Runs samples and records the float value of every op, and the outputs.
    ///
    /// What runs is not the plan itself but one whose programs keep every value: the same graph on
    /// the same stages, at other offsets. It computes the same bits. The samples are packed as the
    /// plan itself packs them.
    ///
    /// # Errors
    /// As [`Session::new`](crate::Session::new) and [`Session::run`](crate::Session::run).
    pub fn record(
        plan: &Plan,
        weights: &dyn Weights,
        options: SessionOptions,
        samples: &Samples,
    ) -> Result<Trace> {
        let graph = &plan.graph;
        let packer = Packer::new(graph, samples)?;
        let feeds = packer.feeds()?;
        let values = op_values(graph, &packer);
        let plan = observing(plan, &values)?;
        let mut executable = executable(plan, weights, options, &PackedWeights::default())?;
        let mut results = Vec::new();
        executable.run(&feeds, &mut results)?;
        let recorder = Recorder {
            graph,
            packer: &packer,
            extents: feeds.iter().map(|feed| &feed.extents).collect(),
            micro_batches: packer.micro_batches(),
            results: &results,
        };
        let mut ranked = recorder.outputs();
        for ((index, &value), parts) in values.iter().enumerate().zip(recorder.parts(&values)) {
            let index = graph.outputs().len() + index;
            for part in parts {
                let rank = (recorder.rank(value), 0);
                ranked.push((rank, recorder.traced(value, index, part)));
            }
        }
        ranked.sort_by_key(|&(rank, _)| rank);
        Ok(Trace {
            tensors: ranked.into_iter().map(|(_, traced)| traced).collect(),
            ordered: true,
        })
    }
}

/// The float values that ops compute, in topological order. Views and transfers hold their operands'
/// bits; what depends on labels that are not there has no meaning.
fn op_values(graph: &Graph, packer: &Packer<'_>) -> Vec<Value> {
    let mut values = Vec::new();
    for node in graph.topo() {
        let op = &graph.node(node).op;
        if op.is_leaf() || op.is_view() || matches!(op, Op::Transfer(_)) {
            continue;
        }
        let outputs = 0..graph.node(node).types.len() as u16;
        let own = outputs.map(|output| Value { node, output });
        values.extend(
            own.filter(|&value| graph.ty(value).dtype.is_float() && packer.is_known(value)),
        );
    }
    values
}

/// The plan with these values among its outputs, behind its own.
fn observing(plan: &Plan, values: &[Value]) -> Result<Plan> {
    let mut plan = plan.clone();
    for (index, &value) in values.iter().enumerate() {
        plan.graph.add_output(&format!("trace:{index}"), value);
    }
    // Every value stays until the end, which is not to fail where the plan itself fits.
    let [tile, core] = MOST_MEMORY;
    plan.target.tile.core_memory = core.min(tile / plan.target.tile.cores.max(1));
    let cost = cost::model(&plan.target);
    plan.programs = lower(&plan.graph, &plan.target, cost.as_ref(), plan.stages())?;
    Ok(plan)
}

/// Rows of a value: those of one space, which may be one part of a union.
struct Part {
    /// The name of the traced tensor.
    name: String,
    /// What its rows are, if it has any.
    kind: Option<RowKind>,
    /// The spaces whose rows precede its own in the value.
    after: Vec<SpaceId>,
}

/// Turns the results of a run into traced tensors.
struct Recorder<'a> {
    graph: &'a Graph,
    packer: &'a Packer<'a>,
    extents: Vec<&'a Extents>,
    micro_batches: Vec<Range<usize>>,
    results: &'a [Outputs],
}

impl Recorder<'_> {
    /// The parts of each value, named.
    fn parts(&self, values: &[Value]) -> Vec<Vec<Part>> {
        let levels = levels(self.graph);
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&index| (levels[values[index].node.index()], index));
        let mut counts = BTreeMap::new();
        let mut parts: Vec<Vec<Part>> = values.iter().map(|_| Vec::new()).collect();
        for index in order {
            parts[index] = self.parts_of(values[index], &mut counts);
        }
        parts
    }

    /// The parts of one value; `counts` holds how many there were of each scope, op and kind of rows.
    fn parts_of(&self, value: Value, counts: &mut BTreeMap<String, usize>) -> Vec<Part> {
        let node = self.graph.node(value.node);
        let spaces: Vec<Option<SpaceId>> = match self.graph.ty(value).rows {
            None => vec![None],
            Some(space) => match &self.graph.spaces.get(space).layout {
                Layout::Union(parts) => parts.iter().copied().map(Some).collect(),
                Layout::Entities | Layout::Segments { .. } => vec![Some(space)],
            },
        };
        let mut parts: Vec<Part> = Vec::new();
        for (index, &space) in spaces.iter().enumerate() {
            let kind = space.and_then(|space| self.packer.kind(space));
            let output = match value.output {
                0 => String::new(),
                output => format!(":{output}"),
            };
            let suffix = output + suffix(kind);
            let stem = format!("{}/{}", node.scope, node.op.name());
            let count = counts.entry(format!("{stem}{suffix}")).or_default();
            parts.push(Part {
                name: format!("{stem}.{count}{suffix}"),
                kind,
                after: spaces[..index].iter().copied().flatten().collect(),
            });
            *count += 1;
        }
        parts
    }

    /// The outputs in Transformers' shapes, with their places in the order of computation.
    fn outputs(&self) -> Vec<((usize, usize), Traced)> {
        let named = unpack_outputs(self.packer, self.graph, self.results);
        let traced = |NamedTensor {
                          name,
                          shape,
                          values,
                      }| {
            let mut outputs = self.graph.outputs().iter();
            let value = outputs.find(|output| output.name == name);
            let value = value.map(|output| output.value);
            let traced = Traced {
                name,
                dtype: stored(value.map_or(DType::F32, |value| self.graph.ty(value).dtype)),
                shape,
                rows: None,
                values,
            };
            (
                (value.map_or(usize::MAX, |value| self.rank(value)), 1),
                traced,
            )
        };
        named.into_iter().map(traced).collect()
    }

    /// The place of a value in topological order, which is that of the ids of a plan's graph.
    fn rank(&self, value: Value) -> usize {
        value.node.index()
    }

    /// One part of a value, which is output `index` of the run.
    fn traced(&self, value: Value, index: usize, part: Part) -> Traced {
        let dtype = stored(self.graph.ty(value).dtype);
        let Some(kind) = part.kind else {
            let tensors = self.results.iter().map(|outputs| &outputs[index]);
            let mut shape = vec![self.results.len()];
            shape.extend_from_slice(&self.graph.ty(value).shape);
            return Traced {
                name: part.name,
                dtype,
                shape,
                rows: None,
                values: tensors.flat_map(|t| t.reals().iter().copied()).collect(),
            };
        };
        let row = self.row_shape(value);
        let longest = self.packer.longest(kind);
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for (batch, samples) in self.micro_batches.iter().enumerate() {
            let extents = self.extents[batch];
            let before: usize = part.after.iter().map(|&space| extents.rows(space)).sum();
            for own in self.packer.sample_rows(kind, samples.clone()) {
                let end = values.len() + longest.unwrap_or(1) * row.iter().product::<usize>();
                rows.push(own.len());
                for index_of_row in own {
                    let tensor = &self.results[batch][index];
                    push_row(tensor, before + index_of_row, &row, &mut values);
                }
                values.resize(end, 0.0);
            }
        }
        let cut = longest.is_some_and(|longest| rows.iter().any(|&rows| rows < longest));
        let mut shape = vec![rows.len()];
        shape.extend(longest);
        shape.extend(row);
        Traced {
            name: part.name,
            dtype,
            shape,
            rows: cut.then_some(rows),
            values,
        }
    }

    /// The axes of one row; of attention probabilities only the keys that the user gave.
    fn row_shape(&self, value: Value) -> Vec<usize> {
        let mut row = self.graph.ty(value).shape[1..].to_vec();
        if let (Some(keys), Some(last)) = (self.packer.keys(value), row.last_mut()) {
            *last = keys;
        }
        row
    }
}

/// Appends one row, its last axis cut to that of `shape`.
fn push_row(tensor: &Tensor<f32>, row: usize, shape: &[usize], values: &mut Vec<f32>) {
    let row = tensor.row(row);
    let (Some(&kept), Some(&capacity)) = (shape.last(), tensor.shape.last()) else {
        return values.extend_from_slice(row);
    };
    if kept == capacity || shape.len() + 1 != tensor.shape.len() {
        return values.extend_from_slice(row);
    }
    for run in row.chunks(capacity) {
        values.extend_from_slice(&run[..kept]);
    }
}

/// What the rows of a traced tensor are, at the end of its name.
fn suffix(kind: Option<RowKind>) -> &'static str {
    match kind {
        None => "",
        Some(kind) if kind.is_text() => "@text",
        Some(kind) if kind.is_boxes() => "@box",
        Some(_) => "@sample",
    }
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 | DType::I32 | DType::Bool => Dtype::F32,
    }
}

/// How many ops are on the longest way to each node, not counting transfers and casts: an order of a
/// scope's ops that neither the split into stages nor the precision changes.
fn levels(graph: &Graph) -> Vec<usize> {
    let mut levels = vec![0; graph.bound()];
    for id in graph.topo() {
        let operands = graph.inputs(id);
        let deepest = operands
            .iter()
            .map(|value| levels[value.node.index()])
            .max();
        let own = usize::from(!matches!(graph.node(id).op, Op::Transfer(_) | Op::Cast(_)));
        levels[id.index()] = deepest.map_or(0, |deepest| deepest + own);
    }
    levels
}
