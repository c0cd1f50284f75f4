//! The steps of the update: norms, clipping, optimisers.
//!
//! Tensors are flat: rows do not matter. Workers claim whole blocks of elements. What is summed over a tensor is
//! summed block by block; the sums of blocks are left in [`Sums`] and added up in the order of blocks.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use lxpod_ir::ops::{Adam, Clip, Op, Sgd, SumSquares};
use lxpod_ir::{Graph, NodeId};

use super::exec::{Halt, Machine};
use super::kernels::{self, AdamRule, Rounding, Rule, Scratch, SgdRule, Update, View};
use super::step::CpuStep;
use super::team::{Poisoned, Worker};

/// Elements of a block.
const BLOCK: usize = SumSquares::BLOCK;
/// Blocks that a worker takes at a time, at least.
const GRAIN: usize = 8;

/// What a step of the update does.
#[derive(Clone, Debug)]
pub(super) enum Updating {
    /// `sum_squares`.
    SumSquares,
    /// `clip`.
    Clip(Clip),
    /// `sgd`.
    Sgd(Sgd),
    /// `adam`.
    Adam(Adam),
}

impl Updating {
    /// What a node does; none if only the update has no such op.
    pub(super) fn of(graph: &Graph, node: NodeId) -> Option<Self> {
        Some(match &graph.node(node).op {
            Op::SumSquares(_) => Updating::SumSquares,
            Op::Clip(clip) => Updating::Clip(clip.clone()),
            Op::Sgd(sgd) => Updating::Sgd(sgd.clone()),
            Op::Adam(adam) => Updating::Adam(adam.clone()),
            _ => return None,
        })
    }

    /// f32 values of scratch that the step needs.
    pub(super) fn scratch(graph: &Graph, node: NodeId) -> usize {
        match &graph.node(node).op {
            Op::Clip(_) => graph.input_types(node)[0].shape.elements(),
            _ => 0,
        }
    }

    /// How many sums the step leaves for all workers.
    fn sums(graph: &Graph, node: NodeId) -> usize {
        let elements = || graph.input_types(node)[0].shape.elements();
        match &graph.node(node).op {
            Op::SumSquares(_) => elements().div_ceil(BLOCK),
            _ => 0,
        }
    }
}

/// f64 values that workers leave for each other within a step. A worker reads what others left after meeting them.
pub(super) struct Sums(Box<[AtomicU64]>);

impl Sums {
    /// Room for what any step of a graph leaves.
    pub(super) fn of(graph: Option<&Graph>) -> Self {
        let most = graph.and_then(|graph| graph.nodes().map(|id| Updating::sums(graph, id)).max());
        Sums((0..most.unwrap_or(0)).map(|_| AtomicU64::new(0)).collect())
    }

    fn leave(&self, index: usize, value: f64) {
        self.0[index].store(value.to_bits(), Ordering::Relaxed);
    }

    /// The sum of some values, in their order.
    fn total(&self, range: Range<usize>) -> f64 {
        let values = self.0[range].iter();
        let values = values.map(|bits| f64::from_bits(bits.load(Ordering::Relaxed)));
        values.fold(0.0, |sum, value| sum + value)
    }
}

impl Machine<'_> {
    /// Does this worker's share of a step of the update.
    ///
    /// # Errors
    /// Another worker panicked.
    pub(super) fn updating(
        &self,
        step: &CpuStep,
        updating: &Updating,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Halt> {
        match updating {
            Updating::SumSquares => self.sum_squares(step, worker)?,
            Updating::Clip(clip) if worker.index == 0 => self.clip(step, clip, scratch),
            Updating::Clip(_) => {}
            Updating::Sgd(sgd) => {
                let rule = SgdRule {
                    momentum: sgd.momentum as f32,
                    decay: sgd.decay as f32,
                    nesterov: sgd.nesterov,
                };
                self.optimise(step, Rule::Sgd(rule), sgd.stochastic, worker);
            }
            Updating::Adam(adam) => {
                let rule = Rule::Adam(self.adam_rule(step, adam));
                self.optimise(step, rule, adam.stochastic, worker);
            }
        }
        Ok(())
    }

    fn sum_squares(&self, step: &CpuStep, worker: &Worker<'_>) -> Result<(), Poisoned> {
        let x = self.read(step, 0).flat();
        let blocks = x.cols().div_ceil(BLOCK);
        for block in worker.claims(blocks, GRAIN).flatten() {
            let elements = block * BLOCK..x.cols().min((block + 1) * BLOCK);
            let sum = kernels::sum_squares(self.kernels, x, elements);
            self.sums.leave(block, sum);
        }
        worker.meet()?;
        if worker.index == 0 {
            self.store_scalar(step, 0, self.sums.total(0..blocks));
        }
        Ok(())
    }

    fn clip(&self, step: &CpuStep, clip: &Clip, scratch: &mut Scratch) {
        let given = self.read(step, 0).flat();
        let squares = scratch.take(given.cols());
        given.load_row(self.kernels, 0, 0..given.cols(), squares);
        let squares = squares.iter().map(|&square| f64::from(square));
        let (factor, norm) = clip.factor_and_norm(squares, self.scalar(step, 1));
        self.store_scalar(step, 0, factor);
        self.store_scalar(step, 1, norm);
    }

    /// The rule of a step whose operands are those of `adam`.
    fn adam_rule(&self, step: &CpuStep, adam: &Adam) -> AdamRule {
        let betas = [adam.beta1, adam.beta2];
        AdamRule {
            betas: betas.map(|beta| beta as f32),
            rests: betas.map(|beta| (1.0 - beta) as f32),
            eps: adam.eps as f32,
            decay: adam.decay as f32,
            corrections: [6, 7].map(|operand| self.scalar(step, operand) as f32),
        }
    }

    fn optimise(&self, step: &CpuStep, rule: Rule, stochastic: Option<u64>, worker: &Worker<'_>) {
        let (states, count) = self.states(step);
        let update = self.update(step, rule, stochastic, &states[..count]);
        let elements = update.p.cols();
        for blocks in worker.claims(elements.div_ceil(BLOCK), GRAIN) {
            let range = blocks.start * BLOCK..elements.min(blocks.end * BLOCK);
            self.apply(step, &update, range);
        }
    }

    /// The states of an optimiser: the first so many of two.
    fn states<'a>(&'a self, step: &'a CpuStep) -> ([View<'a>; 2], usize) {
        let count = step.outputs.len() - 1;
        let states = [0, 1].map(|state| self.read(step, 2 + state.min(count - 1)).flat());
        (states, count)
    }

    /// A step of an optimiser, whose operands are p, g, the states and the scalars.
    fn update<'a>(
        &'a self,
        step: &'a CpuStep,
        rule: Rule,
        stochastic: Option<u64>,
        states: &'a [View<'a>],
    ) -> Update<'a> {
        let scalars = 2 + states.len();
        let rounding = stochastic.map(|salt| Rounding {
            salt,
            key: [0, 1].map(|word| self.ints(step, step.inputs.len() - 1)[word].cast_unsigned()),
        });
        Update {
            rule,
            p: self.read(step, 0).flat(),
            g: self.read(step, 1).flat(),
            states,
            factor: self.scalar(step, scalars) as f32,
            lr: self.scalar(step, scalars + 1) as f32,
            rounding,
        }
    }

    /// Writes some elements of the results of an optimiser.
    fn apply(&self, step: &CpuStep, update: &Update<'_>, range: Range<usize>) {
        let last = update.states.len();
        let mut out = [0, 1, last].map(|output| self.write(step, output).flat());
        kernels::update(self.kernels, update, &mut out[..=last], range);
    }
}
