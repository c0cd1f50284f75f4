//! The steps of the update: norms, clipping, optimisers.
//!
//! Tensors are flat: rows do not matter. Workers claim whole blocks of elements, or of a weight that is packed
//! anew its panels. What is summed over a tensor is
//! summed block by block; the sums of blocks are left in [`Sums`] and added up in the order of blocks. Where replicas
//! share a tensor out, each does the blocks of its share, and the last one adds up for all.

use std::ops::Range;

use lxpod_ir::ops::{Adam, Clip, Op, Sgd, SumSquares};
use lxpod_ir::{Graph, NodeId, sharding};

use super::exec::{Halt, Machine};
use super::kernels::{self, AdamRule, Rounding, Rule, Scratch, SgdRule, Update, View};
use super::reduce::Reduction;
use super::step::CpuStep;
use super::team::Worker;

/// Elements of a block.
pub(super) const BLOCK: usize = SumSquares::BLOCK;
/// Blocks that a worker takes at a time, at least.
pub(super) const GRAIN: usize = 8;

/// What a step of the update does.
#[derive(Clone, Debug)]
pub(super) enum Updating {
    /// A sum over all elements.
    Reduce(Reduction),
    /// `clip`.
    Clip(Clip),
    /// `sgd`.
    Sgd(Sgd),
    /// `adam`, or `lamb` with the elements of each tensor in the parameter.
    Adam(Adam, Vec<Range<usize>>),
    /// `cast` of what replicas share out.
    Cast,
}

impl Updating {
    /// What a node does; none if only the update has no such op.
    pub(super) fn of(graph: &Graph, node: NodeId) -> Option<Self> {
        if let Some(reduction) = Reduction::of(graph, node) {
            return Some(Updating::Reduce(reduction));
        }
        Some(match &graph.node(node).op {
            Op::Clip(clip) => Updating::Clip(clip.clone()),
            Op::Sgd(sgd) => Updating::Sgd(sgd.clone()),
            Op::Adam(adam) => Updating::Adam(adam.clone(), Vec::new()),
            Op::Lamb(lamb) => {
                let shape = &graph.input_types(node)[0].shape;
                let parts = lamb.ranges(shape.elements(), shape.row_elements());
                Updating::Adam(lamb.adam(), parts)
            }
            Op::Cast(_) if sharding::operand_shards(graph, node) > 1 => Updating::Cast,
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
            Updating::Reduce(reduction) => self.reduce(step, reduction, worker)?,
            Updating::Clip(clip) if worker.index == 0 => self.clip(step, clip, scratch),
            Updating::Clip(_) => {}
            Updating::Sgd(sgd) => {
                let rule = SgdRule {
                    momentum: sgd.momentum as f32,
                    decay: sgd.decay as f32,
                    nesterov: sgd.nesterov,
                };
                self.optimise(step, Rule::Sgd(rule), sgd.stochastic, &[], worker);
            }
            Updating::Adam(adam, parts) => {
                let corrections = [6, 7].map(|operand| self.scalar(step, operand) as f32);
                let rule = Rule::Adam(adam_rule(adam, corrections));
                self.optimise(step, rule, adam.stochastic, parts, worker);
            }
            Updating::Cast => self.cast_share(step, worker),
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

    /// The elements that this replica works on, of a tensor of so many.
    pub(super) fn share(&self, step: &CpuStep, elements: usize) -> Range<usize> {
        match step.shards {
            1 => 0..elements,
            shards => sharding::shard(elements, shards, self.replica),
        }
    }

    /// Operand `index` as one row of the elements that this replica works on. Where it has only those,
    /// they are the operand's first.
    pub(super) fn own<'a>(&'a self, step: &'a CpuStep, index: usize, elements: usize) -> View<'a> {
        let (view, share) = (self.read(step, index).flat(), self.share(step, elements));
        match view.cols() == elements {
            true => view.col_range(share),
            false => view.col_range(0..share.len()),
        }
    }

    /// Rounds this replica's share of a tensor to another dtype.
    fn cast_share(&self, step: &CpuStep, worker: &Worker<'_>) {
        let whole = self.write(step, 0).flat();
        let elements = whole.as_view().cols();
        let share = self.share(step, elements);
        let x = self.own(step, 0, elements);
        let mut out = whole.col_range(share.clone());
        for blocks in worker.claims(share.len().div_ceil(BLOCK), GRAIN) {
            let range = blocks.start * BLOCK..share.len().min(blocks.end * BLOCK);
            let out = out.reborrow().col_range(range.clone());
            kernels::copy(self.kernels, x.col_range(range), out, 0..1);
        }
    }

    /// A step of an optimiser. `parts` are the elements of each tensor whose rate has a ratio of its own, the
    /// ninth operand.
    fn optimise(
        &self,
        step: &CpuStep,
        rule: Rule,
        stochastic: Option<u64>,
        parts: &[Range<usize>],
        worker: &Worker<'_>,
    ) {
        let (states, count) = self.states(step);
        let update = self.update(step, rule, stochastic, &states[..count]);
        let elements = update.p.cols();
        // The packed form is of the first replica's parameter.
        if let Some(panels) = step.packs.as_deref().filter(|_| self.replica == 0) {
            for panel in worker.claims(panels.panels(), 1).flatten() {
                self.step_elements(step, &update, parts, panels.elements(panel));
                let new = self.write(step, 0);
                // SAFETY: workers have disjoint panels, which no step of the update reads; this one wrote what it reads here.
                unsafe { panels.refill(self.kernels, new.as_view(), panel..panel + 1) };
            }
            return;
        }
        for blocks in worker.claims(elements.div_ceil(BLOCK), GRAIN) {
            let range = blocks.start * BLOCK..elements.min(blocks.end * BLOCK);
            self.step_elements(step, &update, parts, range);
        }
    }

    /// [`Machine::optimise`] for some elements.
    fn step_elements(
        &self,
        step: &CpuStep,
        update: &Update<'_>,
        parts: &[Range<usize>],
        range: Range<usize>,
    ) {
        if parts.is_empty() {
            self.apply(step, update, range.clone());
        }
        for (index, part) in parts.iter().enumerate() {
            let own = [part.start, part.end].map(|end| end.saturating_sub(update.first));
            let [start, end] = own.map(|end| end.clamp(range.start, range.end));
            if start < end {
                let lr = update.lr * self.entry(step, 8, index) as f32;
                self.apply(step, &Update { lr, ..*update }, start..end);
            }
        }
    }

    /// The states of an optimiser: the first so many of two.
    fn states<'a>(&'a self, step: &'a CpuStep) -> ([View<'a>; 2], usize) {
        let count = step.outputs.len() - 1;
        let elements = self.read(step, 1).flat().cols();
        let states = [0, 1].map(|state| self.own(step, 2 + state.min(count - 1), elements));
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
        let elements = self.read(step, 1).flat().cols();
        Update {
            rule,
            p: self.own(step, 0, elements),
            g: self.own(step, 1, elements),
            states,
            factor: self.scalar(step, scalars) as f32,
            lr: self.scalar(step, scalars + 1) as f32,
            rounding,
            first: self.share(step, elements).start,
        }
    }

    /// Writes some elements of the results of an optimiser.
    fn apply(&self, step: &CpuStep, update: &Update<'_>, range: Range<usize>) {
        let last = update.states.len();
        let elements = self.read(step, 1).flat().cols();
        let share = update.first..update.first + update.p.cols();
        let mut out = [0, 1, last].map(|output| {
            let out = self.write(step, output).flat();
            match out.as_view().cols() == elements {
                true => out.col_range(share.clone()),
                false => out.col_range(0..share.len()),
            }
        });
        kernels::update(self.kernels, update, &mut out[..=last], range);
    }
}

/// The rule of a step of Adam.
pub(super) fn adam_rule(adam: &Adam, corrections: [f32; 2]) -> AdamRule {
    let betas = [adam.beta1, adam.beta2];
    AdamRule {
        betas: betas.map(|beta| beta as f32),
        rests: betas.map(|beta| (1.0 - beta) as f32),
        eps: adam.eps as f32,
        decay: adam.decay as f32,
        corrections,
    }
}
