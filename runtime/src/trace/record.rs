//! Recording a run: a plan is run with the value of every op among its outputs.

use std::ops::Range;

use lxpod_backends::Outputs;
use lxpod_backends::cpu::PackedWeights;
use lxpod_ir::{DType, Extents, Graph, Tensor, Value};
use lxpod_passes::cost;
use lxpod_passes::plan::{Plan, Work, lower};

use super::names::{Part, name_parts, op_values};
use super::{Trace, Traced};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::pack::Packer;
use crate::samples::Samples;
use crate::session::{NamedTensor, SessionOptions, executable, unpack_outputs};
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
        for ((index, &value), parts) in values
            .iter()
            .enumerate()
            .zip(name_parts(graph, &packer, &values))
        {
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
    let work = Work {
        graph: &plan.graph,
        update: plan.update.as_ref(),
        schedule: &plan.schedule,
        accumulation: plan.accumulation,
        group: plan.group,
    };
    plan.tiles = lower(work, &plan.target, cost.as_ref())?;
    Ok(plan)
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
        let Some(kind) = part.kind else {
            return self.per_micro_batch(value, index, part.name);
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
            dtype: stored(self.graph.ty(value).dtype),
            shape,
            rows: cut.then_some(rows),
            values,
        }
    }

    /// A value without rows, which is output `index` of the run: that of each micro-batch.
    fn per_micro_batch(&self, value: Value, index: usize, name: String) -> Traced {
        let ty = self.graph.ty(value);
        let mut shape = vec![self.results.len()];
        shape.extend_from_slice(&ty.shape);
        let tensors = self.results.iter().map(|outputs| &outputs[index]);
        Traced {
            name,
            dtype: stored(ty.dtype),
            shape,
            rows: None,
            values: tensors.flat_map(|t| t.reals().iter().copied()).collect(),
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

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 | DType::I32 | DType::Bool => Dtype::F32,
    }
}
