//! What candidates share: graphs by micro-batch and recomputation, updates by shares, splits by stages.

use lxpod_ir::front::LxmertConfig;
use lxpod_ir::{Graph, Target};

use super::bound::UpdateNeeds;
use crate::compile::{
    CompileError, CompileOptions, Group, Optimised, Placed, Placement, state_bytes,
};
use crate::cost;
use crate::partition::{Among, Floor, Pipeline, Split, floor, refuted};
use crate::pass::Recompute;
use crate::plan::{Plan, PlanError, Provenance, ring_bytes};
use crate::schedule::Schedule;

/// The graph of one micro-batch size and one mode of recomputation.
pub(super) struct Graphs {
    model: Optimised,
    /// What every placement of it comes to at least.
    pub(super) floor: Floor,
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
            model.complete(&options, passes, &mut *ignore)?;
            let floor = floor_of(&model.graph, &base.target);
            all.push(Graphs { model, floor });
        }
        Ok(all)
    }
}

/// What every placement of a graph comes to at least, without what an update keeps.
fn floor_of(graph: &Graph, target: &Target) -> Floor {
    let cost = cost::model(target);
    let pipeline = Pipeline {
        target,
        cost: cost.as_ref(),
        schedule: &Schedule::inference(1),
        accumulation: 1,
        states: &Default::default(),
        pinned: None,
        branches: false,
    };
    floor(graph, &pipeline)
}

/// The update of a replica whose states are shared out among so many, if there is one.
pub(super) struct Update {
    graph: Option<Graph>,
    /// What every placement of it comes to.
    pub(super) needs: UpdateNeeds,
}

impl Update {
    /// The update of a model that is trained as `base` says.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn of(
        graphs: &Graphs,
        base: &CompileOptions,
        shards: usize,
    ) -> Result<Self, CompileError> {
        let mut options = base.clone();
        options.replicas = shards;
        if let Some(training) = &mut options.training {
            training.replicated_tensor_sharding = true;
        }
        let graph = graphs.model.update(&options)?;
        let cost = cost::model(&base.target);
        let needs = graph.as_ref().map_or_else(UpdateNeeds::default, |update| {
            let work = update.nodes().map(|id| cost.node(update, id).total());
            UpdateNeeds {
                cycles: work.sum(),
                ring: ring_bytes(update, |_| true),
                resident: state_bytes(Some(update)).values().sum(),
            }
        });
        Ok(Update { graph, needs })
    }
}

/// What is to be split: a micro-batch's graph and an update over the stages of a schedule.
#[derive(Clone)]
pub(super) struct Task<'a> {
    pub(super) graphs: &'a Graphs,
    pub(super) update: &'a Update,
    pub(super) target: &'a Target,
    pub(super) schedule: Schedule,
    pub(super) accumulation: usize,
    /// Replicas that share out the optimiser's states.
    pub(super) shards: usize,
}

impl Task<'_> {
    /// If no split has a slowest stage of at most `cycles`: the least that one might have, `u64::MAX` if none fits the
    /// memory, where that `is_limited`.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn refuted(
        &self,
        cycles: u64,
        is_limited: bool,
    ) -> Result<Option<u64>, CompileError> {
        let cost = cost::model(self.target);
        let states = state_bytes(self.update.graph.as_ref());
        let placement = self.placement(self.target);
        let pipeline = placement.pipeline(cost.as_ref(), &states);
        let found = refuted(&self.graphs.model.graph, &pipeline, cycles, is_limited);
        Ok(found.map_err(PlanError::from)?)
    }

    /// Whether a split fits the memory under the task's schedule, by the reckoning of the search for splits.
    pub(super) fn is_kept_by(&self, split: &Split) -> bool {
        split.keeps_memory(self.target, &self.schedule, self.accumulation)
    }

    /// The best split.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn placed(&self, among: Among) -> Result<Placed, CompileError> {
        let graphs = (self.graphs.model.graph.clone(), self.update.graph.clone());
        Placed::new(graphs, &self.placement(self.target), among, &mut Vec::new())
    }

    /// The plan of a split, made as if tiles had room for anything.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub(super) fn plan(&self, placed: Placed) -> Result<Plan, CompileError> {
        let nobody = Provenance {
            version: String::new(),
            model: String::new(),
            config_hash: String::new(),
            config: serde_json::Value::Null,
            options: serde_json::Value::Null,
            expected: Vec::new(),
        };
        let roomy = roomy(self.target);
        placed.lower(nobody, self.placement(&roomy), &mut Vec::new())
    }

    fn placement<'t>(&self, target: &'t Target) -> Placement<'t> {
        Placement {
            target,
            replicas: self.shards,
            schedule: self.schedule.clone(),
            accumulation: self.accumulation,
            group: Group::Exactly(1),
            pinned: None,
            branches: false,
        }
    }
}

/// A target whose tiles have room for anything.
fn roomy(target: &Target) -> Target {
    let mut roomy = target.clone();
    roomy.tile.core_memory = (1 << 50) / roomy.tile.cores;
    roomy
}
