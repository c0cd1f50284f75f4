//! Training steps: micro-batches, the sum over replicas, the update, weights packed anew.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use lxpod_ir::Tensor;
use lxpod_passes::plan::{Category, Plan};
use lxpod_passes::schedule::Phase;

use super::kernels::{self, Panels, View, ViewMut};
use super::step::{CpuProgram, Source};
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
}

impl Repack {
    /// Every packed weight of a plan's programs.
    pub(super) fn all(plan: &Plan, programs: &[Vec<CpuProgram>]) -> Vec<Repack> {
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
                    });
                }
            }
        }
        found
    }
}

/// The accumulators of a plan, by tile, in blocks.
pub(super) fn accumulator_blocks(plan: &Plan) -> Vec<(usize, Range<u64>)> {
    let mut blocks = Vec::new();
    for (tile, planned) in plan.tiles.iter().enumerate() {
        let buffers = planned.buffers.iter();
        for buffer in buffers.filter(|buffer| buffer.category == Category::Accumulators) {
            let end = buffer.offset + buffer.bytes;
            let starts = (buffer.offset..end).step_by(BLOCK as usize);
            blocks.extend(starts.map(|start| (tile, start..(start + BLOCK).min(end))));
        }
    }
    blocks
}

impl Cpu {
    /// Clears the accumulators of a replica without a micro-batch: the first of others overwrites them.
    fn clear_accumulators(&self, replica: usize, worker: &Worker<'_>) {
        for (tile, block) in self.accumulator_blocks(worker) {
            let arena = &self.arenas[replica][*tile];
            // SAFETY: workers have disjoint blocks, and no step runs.
            unsafe {
                let length = (block.end - block.start) as usize;
                arena.at(block.start, block.end).write_bytes(0, length);
            }
        }
    }

    /// Adds the accumulators of every other replica to those of the first, in order, and gives all of
    /// them the sum.
    fn sum_over_replicas(&self, worker: &Worker<'_>) {
        for (tile, block) in self.accumulator_blocks(worker) {
            let elements = (block.end - block.start) as usize / size_of::<f32>();
            let at = |replica: usize| {
                let arena: &super::Arena = &self.arenas[replica][*tile];
                // SAFETY: workers have disjoint blocks, and no step runs.
                unsafe { arena.at(block.start, block.end).cast::<f32>() }
            };
            for replica in 1..self.plan.replicas {
                // SAFETY: the block holds that many f32; replicas have their own arenas.
                let (sum, more) = unsafe {
                    let sum = ViewMut::from_raw_parts(
                        at(0).cast(),
                        lxpod_ir::DType::F32,
                        [1, elements],
                        elements,
                    );
                    (
                        sum,
                        View::from_raw_parts(
                            at(replica).cast(),
                            lxpod_ir::DType::F32,
                            [1, elements],
                            elements,
                        ),
                    )
                };
                // SAFETY: as above; an element is read before it is written.
                let own = unsafe {
                    View::from_raw_parts(
                        at(0).cast(),
                        lxpod_ir::DType::F32,
                        [1, elements],
                        elements,
                    )
                };
                kernels::add(self.kernels, own, more, sum, 0..1);
            }
            for replica in 1..self.plan.replicas {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(at(0), at(replica), elements) };
            }
        }
    }

    /// This worker's share of the accumulators' blocks.
    fn accumulator_blocks(&self, worker: &Worker<'_>) -> &[(usize, Range<u64>)] {
        &self.accumulators[worker.share(self.accumulators.len())]
    }

    /// Packs every weight anew from its parameter.
    fn repack(&self, worker: &Worker<'_>) {
        for Repack { panels, tile, span } in &self.repacks {
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
                            micro_batch: 0,
                        },
                    ));
                }
            }
        }
        plays.sort_by_key(|&(round, play)| (round, play.tile, play.program));
        plays.into_iter().map(|(_, play)| play).collect()
    }

    /// Runs the update on every replica.
    fn update(&self, feed: &Feed, results: &[Cell]) -> Result<(), BackendError> {
        let plays = self.update_plays();
        let failure = Mutex::new(None);
        self.team.run(&|worker| {
            if self.plan.replicas > 1 {
                self.sum_over_replicas(worker);
                worker.meet()?;
            }
            for replica in 0..self.plan.replicas {
                let mut scratch = lock(&self.scratch[worker.index]);
                for play in &plays {
                    let visit = Visit {
                        cpu: self,
                        replica,
                        tile: play.tile,
                        program: play.program,
                        micro_batch: 0,
                        feed,
                        results,
                        failure: &failure,
                        overflow: None,
                    };
                    visit.run(worker, &mut scratch)?;
                }
            }
            self.repack(worker);
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
        let schedule = self.plan.schedule;
        self.prepare(&schedule, feeds, outputs)?;
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
        let schedule = self.plan.schedule;
        // Programs write the outputs, which must outlive the run.
        let mut outputs = Vec::new();
        self.prepare(&schedule, feeds, &mut outputs)?;
        let found = Mutex::new(None);
        let play = |replica| self.play(replica, schedule.training, feeds, Some(&found));
        (0..self.plan.replicas).try_for_each(play)?;
        Ok(found.into_inner().unwrap_or_default())
    }

    fn persistent(&self) -> Vec<(String, Tensor<f32>)> {
        self.read_persistent()
    }

    fn restore(&mut self, name: &str, tensor: &Tensor<f32>) -> Result<(), BackendError> {
        self.write_persistent(name, tensor)?;
        self.team.run(&|worker| {
            self.repack(worker);
            Ok(())
        });
        Ok(())
    }
}
