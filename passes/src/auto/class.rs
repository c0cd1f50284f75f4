//! What candidates share: graphs by micro-batch and recomputation, splits by stages.

use lxpod_ir::front::LxmertConfig;
use lxpod_ir::{Graph, Target};

use super::bound::Needs;
use super::space::Candidate;
use crate::compile::{
    CompileError, CompileOptions, Optimised, Placement, split_graph, state_bytes,
};
use crate::cost;
use crate::partition::{Pipeline, Split, floor};
use crate::pass::Recompute;
use crate::plan::{Plan, Programs, Provenance};
use crate::schedule::{Rule, Schedule};

/// The graphs of one micro-batch size and one mode of recomputation.
pub(super) struct Graphs {
    training: bool,
    graph: Graph,
    update: Option<Graph>,
    /// What every placement of them comes to at least.
    pub(super) needs: Needs,
}

impl Graphs {
    /// The graphs of a micro-batch size in several modes, whose passes before recomputation run once.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn of(
        config: &LxmertConfig,
        base: &CompileOptions,
        micro_batch: usize,
        modes: &[Recompute],
    ) -> Result<Vec<Self>, CompileError> {
        let mut options = base.clone();
        options.model.micro_batch = micro_batch;
        let ignore = &mut |_: &'static str, _: &Graph| {};
        let passes = &mut Vec::new();
        let model = Optimised::new(config, &options, passes, &mut *ignore)?;
        let mut all = Vec::with_capacity(modes.len());
        for &recompute in modes {
            let mut model = model.clone();
            if let Some(training) = &mut options.training {
                training.recompute = recompute;
            }
            let update = model.complete(&options, passes, &mut *ignore)?;
            let needs = needs(&model.graph, update.as_ref(), &base.target);
            all.push(Graphs {
                training: options.training.is_some(),
                graph: model.graph,
                update,
                needs,
            });
        }
        Ok(all)
    }
}

/// What every placement of a pair of graphs comes to at least.
fn needs(graph: &Graph, update: Option<&Graph>, target: &Target) -> Needs {
    let cost = cost::model(target);
    let states = state_bytes(update);
    let schedule = Schedule::inference(1);
    let pipeline = Pipeline {
        target,
        cost: cost.as_ref(),
        schedule: &schedule,
        accumulation: 1,
        states: &states,
        pinned: None,
    };
    let floor = floor(graph, &pipeline);
    let work = update.map(|update| update.nodes().map(|id| cost.node(update, id).total()));
    Needs {
        floor,
        update: work.into_iter().flatten().sum(),
        accumulators: update.map_or(0, accumulator_bytes),
    }
}

/// Bytes of the sums of gradients that an update reads.
fn accumulator_bytes(update: &Graph) -> u64 {
    let nodes = update.nodes().map(|id| update.node(id));
    let sums = nodes.filter(|node| match &node.op {
        lxpod_ir::ops::Op::State(state) => state.name.starts_with(crate::accumulate::ACCUMULATOR),
        _ => false,
    });
    sums.map(|node| node.types[0].bytes() as u64).sum()
}

/// The candidates that differ in replicas, accumulation and the order of programs alone: where memory allows it,
/// they have one split and the same programs.
pub(super) struct Class {
    split: Split,
    plan: Plan,
}

impl Class {
    /// Splits and lowers the graphs, as if tiles had room for anything.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn new(
        graphs: &Graphs,
        target: &Target,
        (tiles, chunks): (usize, usize),
    ) -> Result<Self, CompileError> {
        let schedule = Schedule {
            rule: if chunks > 1 {
                Rule::Interleaved
            } else {
                Rule::GPipe
            },
            tiles,
            chunks,
            training: graphs.training,
        };
        let placement = Placement {
            target: &roomy(target),
            replicas: 1,
            schedule,
            accumulation: tiles,
            pinned: None,
        };
        let pair = (graphs.graph.clone(), graphs.update.clone());
        let passes = &mut Vec::new();
        let nobody = Provenance {
            version: String::new(),
            model: String::new(),
            config_hash: String::new(),
            config: serde_json::Value::Null,
            options: serde_json::Value::Null,
            expected: Vec::new(),
        };
        let (plan, split) = split_graph(pair, nobody, placement, passes, &mut |_, _| {})?;
        Ok(Class { split, plan })
    }

    /// A lower bound of the cycles of the slowest stage of every split.
    pub(super) fn slowest(&self) -> u64 {
        self.plan.partition.lower_bound_cycles
    }

    /// Its programs.
    pub(super) fn programs(&self) -> Programs<'_> {
        Programs::new(&self.plan)
    }

    /// Whether a compilation of the candidate finds this split.
    pub(super) fn is_split_of(&self, target: &Target, found: &Candidate) -> bool {
        let order = found.order(self.plan.schedule.training);
        self.split.keeps_memory(target, &order, found.accumulation)
    }
}

/// A target whose tiles have room for anything.
fn roomy(target: &Target) -> Target {
    let mut roomy = target.clone();
    roomy.tile.core_memory = (1 << 50) / roomy.tile.cores;
    roomy
}
