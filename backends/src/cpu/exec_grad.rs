//! The steps that only gradients are made of.

use std::ops::Range;

use lxpod_ir::ops::{Activation, AttentionGrad, Op, Reduction};
use lxpod_ir::{DType, Graph, NodeId, SpaceId};
use smallvec::{SmallVec, smallvec};

use super::exec::Machine;
use super::kernels::{
    self, Chain, IGNORE_INDEX, LayerNormGrad, Matmul, ScatterAdd, Scratch, Start, View,
};
use super::members::{Pieces, Turns};
use super::step::{CpuStep, Source};
use super::team::Worker;

/// Rows that a worker takes at a time, at least.
const ROWS: usize = 4;
/// Columns that a worker sums over all rows at a time.
const COLUMNS: usize = 64;
/// Members of a visit whose rows are listed without an allocation.
const MEMBERS: usize = 8;
/// Ranges of rows per worker that `scatter_add_rows` is shared out in: each reads all indices.
const SCATTERS: usize = 8;

/// Ranges of rows of some members, in order.
type Rows = SmallVec<[Range<usize>; 2 * MEMBERS]>;

/// What a step of the backward half does.
#[derive(Clone, Debug)]
pub(super) enum Gradient {
    /// `zeros`.
    Zeros,
    /// `matmul`.
    Matmul,
    /// `weight_grad`.
    Weight,
    /// `sum_rows`.
    SumRows,
    /// `scatter_add_rows` with that padding.
    ScatterAdd(Option<i32>),
    /// `activate_grad`.
    Activate(Activation),
    /// `attention_grad`, and the segments' space of queries and keys.
    Attention(AttentionGrad, SpaceId, SpaceId),
    /// `layer_norm_grad` with that eps.
    LayerNorm(f32),
    /// `cross_entropy_grad`.
    CrossEntropy(Reduction),
    /// `bce_grad` with that factor.
    Bce(f32),
    /// `smooth_l1_grad`.
    SmoothL1,
}

impl Gradient {
    /// What a node does; none if it is not of the backward half, or in no row space where that is needed.
    pub(super) fn of(graph: &Graph, node: NodeId) -> Option<Self> {
        let types = graph.input_types(node);
        Some(match &graph.node(node).op {
            Op::Zeros(_) => Gradient::Zeros,
            Op::Matmul(_) => Gradient::Matmul,
            Op::WeightGrad(_) => Gradient::Weight,
            Op::SumRows(_) => Gradient::SumRows,
            Op::ScatterAddRows(scatter) => Gradient::ScatterAdd(scatter.padding),
            Op::ActivateGrad(activate) => Gradient::Activate(activate.kind),
            Op::AttentionGrad(grad) => {
                Gradient::Attention(grad.clone(), types[1].rows?, types[2].rows?)
            }
            Op::LayerNormGrad(norm) => Gradient::LayerNorm(norm.eps as f32),
            Op::CrossEntropyGrad(loss) => Gradient::CrossEntropy(loss.reduction),
            Op::BceGrad(loss) => Gradient::Bce(loss.factor),
            Op::SmoothL1Grad(_) => Gradient::SmoothL1,
            _ => return None,
        })
    }

    /// f32 values of scratch that the step needs for so many micro-batches at full capacity.
    pub(super) fn scratch(graph: &Graph, node: NodeId, group: usize) -> usize {
        let types = graph.input_types(node);
        let longest = |operand: usize| {
            let space = types[operand].rows;
            space.map_or(0, |space| graph.spaces.longest(space))
        };
        match Self::of(graph, node) {
            Some(Gradient::Matmul | Gradient::Weight) => kernels::MATMUL_SCRATCH,
            Some(Gradient::ScatterAdd(_)) => types[0].shape.row_elements(),
            Some(Gradient::LayerNorm(_)) => {
                kernels::layer_norm_grad_scratch(types[1].shape.rows() * group)
            }
            Some(Gradient::Attention(grad, ..)) => {
                let width = types[1].shape.last_axis() / grad.heads;
                kernels::attention_grad_scratch(longest(1), longest(2), width)
            }
            _ => 0,
        }
    }
}

impl Machine<'_> {
    /// Does this worker's share of a step of the backward half.
    ///
    /// # Errors
    /// A value fed by the user is out of range.
    pub(super) fn gradient(
        &self,
        step: &CpuStep,
        gradient: &Gradient,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), String> {
        match gradient {
            Gradient::Matmul => self.matmul(step, worker, scratch),
            Gradient::Weight => self.weight_grad(step, worker, scratch),
            Gradient::SumRows => self.sum_rows(step, worker),
            Gradient::ScatterAdd(padding) => {
                return self.scatter_add(step, *padding, worker, scratch);
            }
            Gradient::Attention(grad, queries, keys) => {
                self.attention_grad(step, grad, [*queries, *keys], worker, scratch);
            }
            Gradient::LayerNorm(eps) => self.layer_norm_grad(step, *eps, worker, scratch),
            Gradient::CrossEntropy(reduction) => {
                return self.cross_entropy_grad(step, *reduction, worker);
            }
            Gradient::Zeros | Gradient::Activate(_) | Gradient::Bce(_) | Gradient::SmoothL1 => {
                self.elementwise_grad(step, gradient, worker);
            }
        }
        Ok(())
    }

    /// Operand `index`, if the step has one.
    fn read_optional<'a>(&'a self, step: &'a CpuStep, index: usize) -> Option<View<'a>> {
        (step.inputs.len() > index).then(|| self.read(step, index))
    }

    fn matmul(&self, step: &CpuStep, worker: &Worker<'_>, scratch: &mut Scratch) {
        let product = Matmul {
            a: self.read(step, 0),
            transposed: false,
            b: self.read(step, 1),
            workers: worker.workers,
        };
        let all = 0..product.b.rows();
        let out = self.write(step, 0);
        let chain = Chain::new(std::slice::from_ref(&all), Start::Zero, out);
        let mut units = worker.claims(product.units(), 1);
        kernels::matmul(self.kernels, &product, &[chain], &mut units, scratch);
    }

    fn weight_grad(&self, step: &CpuStep, worker: &Worker<'_>, scratch: &mut Scratch) {
        let all = self.with_rows_of(step);
        let product = Matmul {
            a: all.read(step, 0),
            transposed: true,
            b: all.read(step, 1),
            workers: worker.workers,
        };
        let sums = self.row_sums(step, 2);
        let chains = sums.iter().map(|(own, rows)| {
            let start = match (own.accumulated(step, 2), own.reset(step)) {
                (Some(start), _) => Start::From(start),
                (None, Some(_)) => Start::Reset,
                (None, None) => Start::Zero,
            };
            // SAFETY: as `write`; the copies of members are their own, and chains to one result are finished in order.
            let out = unsafe { step.outputs[0].view_mut(self.arenas, own.moment) };
            Chain::new(rows, start, out)
        });
        let chains: SmallVec<[Chain<'_>; MEMBERS]> = chains.collect();
        let mut units = worker.claims(product.units(), 1);
        let squares = kernels::matmul(self.kernels, &product, &chains, &mut units, scratch);
        if let Some(gradient) = step.gradient {
            // A later visit goes on from an accumulator, and takes back what the first one left.
            self.squares.leave(gradient, worker.index, squares);
        }
    }

    /// With the rows of all members, where a step sums those of each.
    fn with_rows_of(&self, step: &CpuStep) -> Self {
        match step.turns {
            Turns::Sums => Machine {
                moment: self.moment.of_all(),
                ..*self
            },
            Turns::Together | Turns::InTurn => *self,
        }
    }

    /// The rows of operand 0 that each member has, as rows of [`Machine::with_rows_of`].
    fn each_rows(&self, step: &CpuStep) -> impl Iterator<Item = Pieces> {
        let operand = match &step.inputs[0] {
            Source::Arena(operand) if step.turns == Turns::Sums => operand.rows,
            _ => None,
        };
        self.moment.each().map(move |moment| match operand {
            Some(space) => moment.pieces(space),
            None => smallvec![0..self.read(step, 0).rows()],
        })
    }

    /// What a step sums over rows, as rows of [`Machine::with_rows_of`], of which operand `accumulator` may be what it starts
    /// from: one sum, where each member goes on in f32 from what the one before it left, else one for each.
    fn row_sums(&self, step: &CpuStep, accumulator: usize) -> SmallVec<[(Self, Rows); MEMBERS]> {
        let sum = &step.outputs[0];
        let in_place = match step.inputs.get(accumulator) {
            Some(Source::Arena(old)) => (old.tile, old.offset) == (sum.tile, sum.offset),
            _ => false,
        };
        let go_on = in_place && sum.copy == 0 && sum.dtype == DType::F32;
        let mut sums: SmallVec<[(Self, Rows); MEMBERS]> = SmallVec::new();
        for (moment, pieces) in self.moment.each().zip(self.each_rows(step)) {
            if sums.is_empty() || !go_on {
                sums.push((Machine { moment, ..*self }, Rows::new()));
            }
            let (_, rows) = sums.last_mut().expect("a sum");
            for piece in pieces {
                match rows.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => rows.push(piece),
                }
            }
        }
        sums
    }

    /// Operand `index`, an accumulator, if the step has one that is not to be read as zeros.
    fn accumulated<'a>(&'a self, step: &'a CpuStep, index: usize) -> Option<View<'a>> {
        self.read_optional(step, index)
            .filter(|_| self.reset(step).is_none())
    }

    fn sum_rows(&self, step: &CpuStep, worker: &Worker<'_>) {
        let all = self.with_rows_of(step);
        let x = all.read(step, 0);
        let sums = self.row_sums(step, 1);
        for blocks in worker.claims(x.cols().div_ceil(COLUMNS), 1) {
            let columns = blocks.start * COLUMNS..x.cols().min(blocks.end * COLUMNS);
            for (own, rows) in &sums {
                let start = own.accumulated(step, 1).map(View::flat);
                let out = own.write(step, 0).flat();
                kernels::sum_rows(self.kernels, x, rows, start, out, columns.clone());
            }
        }
    }

    /// Work is split by the rows that are added to.
    fn scatter_add(
        &self,
        step: &CpuStep,
        padding: Option<i32>,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), String> {
        let scatter = ScatterAdd {
            x: self.read(step, 0),
            index: self.ints(step, 1),
            padding,
            start: self.accumulated(step, 2),
        };
        let targets = self.write(step, 0).rows();
        let grain = targets.div_ceil(SCATTERS * worker.workers);
        for rows in worker.claims(targets, grain) {
            let out = self.write(step, 0);
            kernels::scatter_add(self.kernels, &scatter, out, rows, scratch)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Work is split over (segment, head) pairs.
    fn attention_grad(
        &self,
        step: &CpuStep,
        grad: &AttentionGrad,
        [queries, keys]: [SpaceId; 2],
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let heads = grad.heads;
        let width = self.read(step, 1).cols() / heads;
        let pairs = self.extents().segments(queries) * heads;
        for unit in worker.claims(pairs, 1).flatten() {
            let (segment, head) = (unit / heads, unit % heads);
            let columns = head * width..(head + 1) * width;
            let rows = self.extents().segment(queries, segment);
            let seen = self.extents().segment(keys, segment);
            let part = |index: usize, rows: &Range<usize>| {
                let all = self.read(step, index);
                all.row_range(rows.clone()).col_range(columns.clone())
            };
            let after = 5 + usize::from(grad.dropout.is_some());
            let given = self.read_optional(step, after).map(|given| {
                let first = head * (given.cols() / heads);
                let given = given.row_range(rows.clone());
                given.col_range(first..first + seen.len())
            });
            let inputs = kernels::AttentionGrad {
                forward: kernels::Attention {
                    q: part(1, &rows),
                    k: part(2, &seen),
                    v: part(3, &seen),
                    mask: &self.vector(step, 4)[seen.clone()],
                    scale: grad.scale,
                    dropout: self.head_dropout(step, 5, grad.dropout.as_ref(), [segment, head]),
                },
                dy: part(0, &rows),
                dprobs: given,
            };
            let out = [(0, &rows), (1, &seen), (2, &seen)].map(|(output, rows)| {
                let all = self.write(step, output);
                all.row_range(rows.clone()).col_range(columns.clone())
            });
            kernels::attention_grad_head(self.kernels, &inputs, out, scratch);
        }
    }

    /// Rows of the input's cotangent are shared out first, then columns of the parameters', which sum the rows of each
    /// member.
    fn layer_norm_grad(
        &self,
        step: &CpuStep,
        eps: f32,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let grad = LayerNormGrad {
            dy: self.read(step, 0),
            x: self.read(step, 1),
            residual: self.read_optional(step, 3),
            gamma: self.vector(step, 2),
            eps,
        };
        let (rows, columns) = (grad.x.rows(), grad.x.cols());
        let blocks = rows.div_ceil(ROWS);
        let members: SmallVec<[Pieces; MEMBERS]> = self.each_rows(step).collect();
        let (mut moments, mut scratch): (&[f32], _) = (&[], Some(scratch));
        for unit in worker
            .claims(blocks + columns.div_ceil(COLUMNS), 1)
            .flatten()
        {
            if unit < blocks {
                let rows = unit * ROWS..rows.min((unit + 1) * ROWS);
                kernels::layer_norm_grad(self.kernels, &grad, self.write(step, 0), rows);
                continue;
            }
            let first = (unit - blocks) * COLUMNS;
            let part = first..columns.min(first + COLUMNS);
            if let Some(scratch) = scratch.take() {
                moments = kernels::layer_norm_moments(self.kernels, &grad, scratch);
            }
            for (moment, over) in self.moment.each().zip(&members) {
                let own = Machine { moment, ..*self };
                let sums = [1, 2].map(|output| own.write(step, output).flat());
                kernels::layer_norm_grad_sums(
                    self.kernels,
                    &grad,
                    moments,
                    over,
                    sums,
                    part.clone(),
                );
            }
        }
    }

    fn cross_entropy_grad(
        &self,
        step: &CpuStep,
        reduction: Reduction,
        worker: &Worker<'_>,
    ) -> Result<(), String> {
        let (logits, labels) = (self.read(step, 1), self.ints(step, 2));
        let (count, weights) = match reduction {
            Reduction::Mean => {
                let kept = labels.iter().filter(|&&label| label != IGNORE_INDEX);
                (kept.count(), None)
            }
            Reduction::Weighted => (labels.len(), Some(self.vector(step, 3))),
        };
        let dloss = self.scalar(step, 0);
        let factor = |row: usize| {
            dloss * weights.map_or(1.0, |weights| f64::from(weights[row])) / count as f64
        };
        for rows in worker.claims(labels.len(), 1) {
            let out = self.write(step, 0);
            kernels::cross_entropy_grad(self.kernels, logits, labels, factor, out, rows)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn elementwise_grad(&self, step: &CpuStep, gradient: &Gradient, worker: &Worker<'_>) {
        let shape = self.write(step, 0);
        let elements = (shape.rows() * shape.cols()) as f64;
        for rows in worker.claims(shape.rows(), ROWS) {
            let (kernels, out) = (self.kernels, self.write(step, 0));
            match *gradient {
                Gradient::Activate(kind) => {
                    let (dy, x) = (self.read(step, 0), self.read(step, 1));
                    kernels::activate_grad(kernels, dy, x, kind, out, rows);
                }
                Gradient::Bce(factor) => {
                    let factor = self.scalar(step, 0) * f64::from(factor) / elements;
                    let (x, target) = (self.read(step, 1), self.read(step, 2));
                    kernels::bce_grad(kernels, x, target, factor as f32, out, rows);
                }
                Gradient::SmoothL1 => self.smooth_l1_grad(step, rows),
                _ => kernels::zeros(kernels, out, rows),
            }
        }
    }

    fn smooth_l1_grad(&self, step: &CpuStep, rows: Range<usize>) {
        let (x, target, weights) = (self.read(step, 1), self.read(step, 2), self.vector(step, 3));
        let factor = self.scalar(step, 0) / (x.rows() * x.cols()) as f64;
        for row in rows {
            let factor = (factor * f64::from(weights[row])) as f32;
            let out = self.write(step, 0);
            kernels::smooth_l1_grad(self.kernels, x, target, factor, out, row..row + 1);
        }
    }
}
