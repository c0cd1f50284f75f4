//! Training steps: micro-batches, the sum over replicas, the update, weights packed anew.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Tensor, TensorType, sharding};
use lxpod_passes::plan::{Buffer, Category, Plan};
use lxpod_passes::schedule::Phase;

use super::exec_update::Updating;
use super::kernels::{self, Panels, View, ViewMut};
use super::members::Members;
use super::step::{CpuProgram, CpuStep, Kernel, Source};
use super::store::Resident;
use super::team::Worker;
use super::visit::{Cell, Visit};
use super::{Cpu, Play, check_feed, first_failure, lock, shape_outputs};
use crate::{BackendError, Feed, Hyper, Outputs, Overflow, Trainable, update_feed};

/// Bytes of an accumulator that a worker clears or sums at a time.
const BLOCK: u64 = 1 << 18;

/// A packed weight and where its parameter lies.
pub(super) struct Repack {
    panels: Arc<Panels>,
    tile: usize,
    span: Range<u64>,
    when: When,
}

/// When a step of training packs a weight anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// As the parameter is updated, while it is in a cache.
    Updating,
    /// After the update.
    Updated,
    /// Never: it is frozen.
    Never,
}

impl Repack {
    /// Every packed weight of a plan's programs; a step that updates the parameter of one, and does not share that out, is told to
    /// pack it anew.
    pub(super) fn all(plan: &Plan, programs: &mut [Vec<CpuProgram>]) -> Vec<Repack> {
        let mut found = Repack::find(plan, programs);
        for repack in &mut found {
            let steps = programs.iter_mut().flatten();
            let mut steps = steps.flat_map(|program| &mut program.steps);
            if let Some(step) = steps.find(|step| repack.is_written(step)) {
                repack.when = When::Updated;
                if repack.is_updated(step) {
                    step.packs = Some(repack.panels.clone());
                    repack.when = When::Updating;
                }
            }
        }
        found
    }

    /// Whether a step writes the parameter.
    fn is_written(&self, step: &CpuStep) -> bool {
        let mut outputs = step.outputs.iter();
        outputs.any(|new| (new.tile, new.offset) == (self.tile, self.span.start))
    }

    /// Whether a step that writes the parameter is an optimiser's, of all of it.
    fn is_updated(&self, step: &CpuStep) -> bool {
        let optimises = matches!(
            step.kernel,
            Kernel::Updating(Updating::Sgd(_) | Updating::Adam(..))
        );
        optimises && step.shards == 1
    }

    /// Every packed weight, as if all were frozen.
    fn find(plan: &Plan, programs: &[Vec<CpuProgram>]) -> Vec<Repack> {
        let mut found: Vec<Repack> = Vec::new();
        for (tile, programs) in programs.iter().enumerate() {
            let steps = programs.iter().zip(&plan.tiles[tile].programs);
            let steps = steps.flat_map(|(own, planned)| own.steps.iter().zip(&planned.steps));
            for (step, planned) in steps {
                for (source, place) in step.inputs.iter().zip(&planned.inputs) {
                    let Source::Resident(Resident::Panels(panels)) = source else {
                        continue;
                    };
                    let known = |other: &Repack| Arc::ptr_eq(&other.panels, panels);
                    if found.iter().any(known) {
                        continue;
                    }
                    let buffer = &plan.tiles[tile].buffers[place.buffer];
                    found.push(Repack {
                        panels: panels.clone(),
                        tile,
                        span: buffer.offset..buffer.offset + buffer.bytes,
                        when: When::Never,
                    });
                }
            }
        }
        found
    }
}

/// Some bytes of an accumulator.
pub(super) struct Accumulated {
    tile: usize,
    span: Range<u64>,
    dtype: DType,
    /// The replica that alone needs the sum over replicas; none if all do.
    owner: Option<usize>,
}

impl Accumulated {
    /// Those of a plan.
    pub(super) fn all(plan: &Plan) -> Vec<Accumulated> {
        let shards = |name: &str| {
            let update = plan.update.iter();
            let mut leaves = update.flat_map(|graph| graph.nodes().map(move |id| graph.node(id)));
            let found = leaves.find_map(|node| match &node.op {
                Op::State(state) if state.name == name => Some(state.shards),
                _ => None,
            });
            found.unwrap_or(1)
        };
        let mut found = Vec::new();
        for (tile, buffer) in buffers(plan, Category::Accumulators) {
            let node = plan
                .graph
                .node(plan.graph.at(buffer.node).expect("a node of the graph"));
            let Op::State(state) = &node.op else {
                continue;
            };
            let ty = &node.types[0];
            for (owner, span) in spans(buffer, ty, shards(&state.name)) {
                let dtype = ty.dtype;
                found.push(Accumulated {
                    tile,
                    span,
                    dtype,
                    owner,
                });
            }
        }
        found
    }
}

/// Some bytes of a parameter that one replica updates for all.
pub(super) struct Gather {
    tile: usize,
    span: Range<u64>,
    owner: usize,
}

impl Gather {
    /// Those of a plan.
    pub(super) fn all(plan: &Plan) -> Vec<Gather> {
        let Some(update) = &plan.update else {
            return Vec::new();
        };
        let stored = update.outputs().iter();
        let stored = stored.filter_map(|output| {
            let shards = sharding::shards(update, output.value);
            Some((output.stored_param()?, shards))
        });
        let shards: BTreeMap<&str, usize> = stored.collect();
        let mut found = Vec::new();
        for (tile, buffer) in buffers(plan, Category::Weights) {
            let graph = if buffer.update { update } else { &plan.graph };
            let node = graph.node(graph.at(buffer.node).expect("a node of the graph"));
            let Op::Param(param) = &node.op else {
                continue;
            };
            let shards = shards.get(&*param.value.to_string()).copied().unwrap_or(1);
            for (owner, span) in spans(buffer, &node.types[0], shards) {
                found.extend(owner.map(|owner| Gather { tile, span, owner }));
            }
        }
        found
    }
}

/// The buffers of a category, with their tiles.
fn buffers(plan: &Plan, category: Category) -> impl Iterator<Item = (usize, &Buffer)> {
    let tiles = plan.tiles.iter().enumerate();
    let all =
        tiles.flat_map(|(tile, planned)| planned.buffers.iter().map(move |buffer| (tile, buffer)));
    all.filter(move |(_, buffer)| buffer.category == category)
}

/// The bytes of a buffer in blocks, each with the replica that has it if so many share it out.
fn spans(
    buffer: &Buffer,
    ty: &TensorType,
    shards: usize,
) -> impl Iterator<Item = (Option<usize>, Range<u64>)> {
    let (offset, size) = (buffer.offset, ty.dtype.size() as u64);
    let elements = ty.shape.elements();
    (0..shards).flat_map(move |owner| {
        let share = sharding::shard(elements, shards, owner);
        let [start, end] = [share.start, share.end].map(|at| offset + at as u64 * size);
        let starts = (start..end).step_by(BLOCK as usize);
        let owner = (shards > 1).then_some(owner);
        starts.map(move |start| (owner, start..(start + BLOCK).min(end)))
    })
}

impl Cpu {
    /// Clears the accumulators of a replica without a micro-batch: the first of others overwrites them.
    fn clear_accumulators(&self, replica: usize, worker: &Worker<'_>) {
        for block in &self.accumulators[worker.share(self.accumulators.len())] {
            let length = (block.span.end - block.span.start) as usize;
            // SAFETY: workers have disjoint blocks, and no step runs.
            unsafe {
                self.bytes(replica, block.tile, &block.span)
                    .write_bytes(0, length)
            };
        }
    }

    /// Adds the accumulators of every other replica to those of the first, in order, and gives the sum to
    /// whoever needs it.
    fn sum_over_replicas(&self, worker: &Worker<'_>) {
        let replicas = self.plan.replicas;
        for block in &self.accumulators[worker.share(self.accumulators.len())] {
            let length = (block.span.end - block.span.start) as usize;
            let at = |replica| self.bytes(replica, block.tile, &block.span);
            let extent = [1, length / block.dtype.size()];
            for replica in 1..replicas {
                // SAFETY: the block holds that many elements, replicas have their own arenas, workers have disjoint
                // blocks, no step runs, and an element is read before it is written.
                unsafe {
                    let view = |data| View::from_raw_parts(data, block.dtype, extent, extent[1]);
                    let sum = ViewMut::from_raw_parts(at(0), block.dtype, extent, extent[1]);
                    kernels::add(self.kernels, view(at(0)), view(at(replica)), sum, 0..1);
                }
            }
            for replica in (1..replicas).filter(|&to| block.owner.is_none_or(|owner| owner == to)) {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(at(0), at(replica), length) };
            }
        }
    }

    /// Gives all replicas what one of them has updated for all.
    fn gather_parameters(&self, worker: &Worker<'_>) {
        for block in &self.gathers[worker.share(self.gathers.len())] {
            let length = (block.span.end - block.span.start) as usize;
            let at = |replica| self.bytes(replica, block.tile, &block.span);
            for replica in (0..self.plan.replicas).filter(|&to| to != block.owner) {
                // SAFETY: replicas have their own arenas, workers have disjoint blocks, and no step runs.
                unsafe { std::ptr::copy_nonoverlapping(at(block.owner), at(replica), length) };
            }
        }
    }

    /// Where bytes of a tile lie. Whoever uses them sees to it that no other worker does.
    fn bytes(&self, replica: usize, tile: usize, span: &Range<u64>) -> *mut u8 {
        // SAFETY: the arena checks the range.
        unsafe { self.arenas[replica][tile].at(span.start, span.end) }
    }

    /// Packs some weights anew from their parameters.
    fn repack(&self, worker: &Worker<'_>, which: impl Fn(&Repack) -> bool) {
        for repack in self.repacks.iter().filter(|repack| which(repack)) {
            let Repack {
                panels, tile, span, ..
            } = repack;
            let extent = [panels.n(), panels.k()];
            // SAFETY: no step runs, so nobody writes the parameter.
            let weight = unsafe {
                let start = self.arenas[0][*tile].at(span.start, span.end);
                View::from_raw_parts(start, panels.format().dtype(), extent, extent[1])
            };
            let own = worker.share(panels.panels());
            // SAFETY: workers have disjoint panels, and no step runs.
            unsafe { panels.refill(self.kernels, weight, own) };
        }
    }

    /// The programs of the update in order: round by round, tile by tile.
    fn update_plays(&self) -> Vec<Play> {
        let mut plays = Vec::new();
        for (tile, planned) in self.plan.tiles.iter().enumerate() {
            for (program, planned) in planned.programs.iter().enumerate() {
                if planned.phase == Phase::Update {
                    plays.push((
                        planned.round,
                        Play {
                            tile,
                            program,
                            visit: 0,
                        },
                    ));
                }
            }
        }
        plays.sort_by_key(|&(round, play)| (round, play.tile, play.program));
        plays.into_iter().map(|(_, play)| play).collect()
    }

    /// Runs the update on every replica, program by program: what replicas make together in one round, all read in
    /// the next.
    fn update(&self, feed: &Feed, results: &[Cell]) -> Result<(), BackendError> {
        let plays = self.update_plays();
        let failure = Mutex::new(None);
        let members = Members {
            spaces: &self.plan.graph_of(Phase::Update).spaces,
            feeds: std::slice::from_ref(feed),
            every: 1,
            count: 1,
            joined: &feed.extents,
            visit: 0,
            first: 0,
        };
        self.team.run(&|worker| {
            if self.plan.replicas > 1 {
                self.sum_over_replicas(worker);
                worker.meet()?;
            }
            let mut scratch = lock(&self.scratch[worker.index]);
            for play in &plays {
                for replica in 0..self.plan.replicas {
                    let visit = Visit {
                        cpu: self,
                        replica,
                        tile: play.tile,
                        program: play.program,
                        members,
                        results,
                        outputs: results.len(),
                        failure: &failure,
                        overflow: None,
                    };
                    visit.run(worker, &mut scratch)?;
                }
            }
            if !self.gathers.is_empty() {
                self.gather_parameters(worker);
                worker.meet()?;
            }
            self.repack(worker, |repack| repack.when == When::Updated);
            Ok(())
        });
        first_failure(failure)
    }
}

impl Trainable for Cpu {
    fn step(
        &mut self,
        feeds: &[Feed],
        hyper: &Hyper,
        outputs: &mut Vec<Outputs>,
        update: &mut Outputs,
    ) -> Result<(), BackendError> {
        let Some(graph) = &self.plan.update else {
            return Err(BackendError::Unsupported(
                "training with an inference plan".to_owned(),
            ));
        };
        let feed = update_feed(graph, hyper);
        check_feed(graph, &feed)?;
        shape_outputs(graph, &feed.extents, update);
        let results: Vec<Cell> = update.iter_mut().map(Cell::new).collect();
        self.prepare(self.plan.schedule.training, feeds, outputs)?;
        self.squares.forget();
        let idle = |replica: &usize| self.own(*replica, feeds.len()) == 0;
        if (0..self.plan.replicas).any(|replica| idle(&replica)) {
            self.team.run(&|worker| {
                let idle = (0..self.plan.replicas).filter(idle);
                idle.for_each(|replica| self.clear_accumulators(replica, worker));
                worker.meet()
            });
        }
        (0..self.plan.replicas).try_for_each(|replica| self.play(replica, true, feeds, None))?;
        self.update(&feed, &results)
    }

    fn first_overflow(&mut self, feeds: &[Feed]) -> Result<Option<Overflow>, BackendError> {
        let training = self.plan.schedule.training;
        // Programs write the outputs, which must outlive the run.
        let mut outputs = Vec::new();
        self.prepare(training, feeds, &mut outputs)?;
        let found = Mutex::new(None);
        let play = |replica| self.play(replica, training, feeds, Some(&found));
        (0..self.plan.replicas).try_for_each(play)?;
        Ok(found.into_inner().unwrap_or_default())
    }

    fn persistent(&self) -> Vec<(String, Tensor<f32>)> {
        self.read_persistent()
    }

    fn restore(&mut self, name: &str, tensor: &Tensor<f32>) -> Result<(), BackendError> {
        let written = self.write_persistent(name, tensor)?;
        self.team.run(&|worker| {
            self.repack(worker, |repack| {
                written.contains(&(repack.tile, repack.span.start))
            });
            Ok(())
        });
        Ok(())
    }
}
