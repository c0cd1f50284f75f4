//! Sums over all elements of a tensor: `sum_squares`, `histogram`, `trust_ratio`.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use lxpod_ir::ops::{Adam, Op, TrustRatio};
use lxpod_ir::{Graph, NodeId};

use super::exec::Machine;
use super::exec_update::{BLOCK, GRAIN, adam_rule};
use super::kernels::{self, Rule, Update, View};
use super::step::CpuStep;
use super::team::{Poisoned, Worker};

/// The most sums of a block.
const SUMS: usize = 2;

/// A sum over the elements of each of a parameter's tensors.
#[derive(Clone, Debug)]
pub(super) struct Reduction {
    kind: Kind,
    /// The elements of each tensor.
    parts: Vec<Range<usize>>,
    /// Where the sums of its blocks lie in [`Sums`].
    at: usize,
}

/// What is summed.
#[derive(Clone, Debug)]
enum Kind {
    /// `sum_squares`.
    Squares,
    /// `histogram` with that edge.
    Histogram(f64),
    /// `trust_ratio`, and its step.
    TrustRatio(TrustRatio, Adam),
}

impl Reduction {
    /// That of a node; none if it is another op. What nodes of one graph leave does not overlap.
    pub(super) fn of(graph: &Graph, node: NodeId) -> Option<Self> {
        let at = || {
            let before = graph.nodes().take_while(|&other| other != node);
            before.map(|other| sums(graph, other)).sum()
        };
        let (kind, parts) = kind_of(graph, node)?;
        Some(Reduction {
            kind,
            parts,
            at: at(),
        })
    }

    fn elements(&self) -> usize {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// The blocks of a replica that has these elements. Where replicas share a tensor out, all its tensors but the last
    /// are whole blocks.
    fn blocks(&self, share: &Range<usize>) -> Range<usize> {
        let before = |end: usize| {
            let parts = self.parts.iter();
            let inside = parts.map(|part| end.clamp(part.start, part.end) - part.start);
            inside.map(|elements| elements.div_ceil(BLOCK)).sum()
        };
        before(share.start)..before(share.end)
    }

    /// The elements of a block.
    fn block(&self, mut index: usize) -> Range<usize> {
        for part in &self.parts {
            let blocks = part.len().div_ceil(BLOCK);
            if index < blocks {
                let start = part.start + index * BLOCK;
                return start..part.end.min(start + BLOCK);
            }
            index -= blocks;
        }
        unreachable!("a block of the tensor")
    }
}

fn kind_of(graph: &Graph, node: NodeId) -> Option<(Kind, Vec<Range<usize>>)> {
    let shape = || graph.input_types(node)[0].shape.clone();
    let one = || std::iter::once(0..shape().elements()).collect();
    Some(match &graph.node(node).op {
        Op::SumSquares(_) => (Kind::Squares, one()),
        Op::Histogram(histogram) => (Kind::Histogram(histogram.edge), one()),
        Op::TrustRatio(ratio) => {
            let parts = ratio.ranges(shape().elements(), shape().row_elements());
            (Kind::TrustRatio(ratio.clone(), ratio.adam()), parts)
        }
        _ => return None,
    })
}

/// How many sums a node leaves for all workers.
fn sums(graph: &Graph, node: NodeId) -> usize {
    let parts = kind_of(graph, node).map(|(_, parts)| parts);
    let parts = parts.into_iter().flatten();
    parts.map(|part| part.len().div_ceil(BLOCK) * SUMS).sum()
}

/// f64 values that workers, and replicas, leave for each other. Who reads what others left has met them.
pub(super) struct Sums(Box<[AtomicU64]>);

impl Sums {
    /// Room for what the steps of a graph leave.
    pub(super) fn of(graph: Option<&Graph>) -> Self {
        let nodes = graph
            .into_iter()
            .flat_map(|graph| graph.nodes().map(move |id| sums(graph, id)));
        Sums((0..nodes.sum()).map(|_| AtomicU64::new(0)).collect())
    }

    fn leave(&self, index: usize, values: [f64; SUMS]) {
        for (cell, value) in self.0[index..].iter().zip(values) {
            cell.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    fn left(&self, index: usize) -> [f64; SUMS] {
        [0, 1].map(|of| f64::from_bits(self.0[index + of].load(Ordering::Relaxed)))
    }
}

impl Machine<'_> {
    /// Sums the blocks of this replica, unless a product has; the last of those that share the tensor out adds up.
    ///
    /// # Errors
    /// Another worker panicked.
    pub(super) fn reduce(
        &self,
        step: &CpuStep,
        reduction: &Reduction,
        worker: &Worker<'_>,
    ) -> Result<(), Poisoned> {
        let elements = reduction.elements();
        if let Some(sum) = self.left(step, reduction) {
            if worker.index == 0 {
                self.publish(step, 0, &[sum.into()]);
            }
            return Ok(());
        }
        let share = self.share(step, elements);
        let own = reduction.blocks(&share);
        let summing = self.summing(step, &reduction.kind, elements);
        for index in worker.claims(own.len(), GRAIN).flatten() {
            let index = own.start + index;
            let Range { start, end } = reduction.block(index);
            let sums = self.block(&summing, start - share.start..end - share.start);
            self.sums.leave(reduction.at + index * SUMS, sums);
        }
        worker.meet()?;
        if worker.index == 0 && (step.shards == 1 || self.replica + 1 == step.shards) {
            self.add_up(step, reduction);
        }
        Ok(())
    }

    /// The sum of squares that the product behind a gradient left, if it is that of the blocks.
    fn left(&self, step: &CpuStep, reduction: &Reduction) -> Option<f32> {
        let gradient = step
            .gradient
            .filter(|_| matches!(reduction.kind, Kind::Squares))?;
        self.squares.of(gradient, reduction.elements())
    }

    /// What a block's sums are of.
    fn summing<'a>(&'a self, step: &'a CpuStep, kind: &Kind, elements: usize) -> Summing<'a> {
        let x = || self.own(step, 0, elements);
        match kind {
            Kind::Squares => Summing::Squares(x()),
            Kind::Histogram(edge) => Summing::Histogram(x(), self.scalar(step, 1) as f32, *edge),
            Kind::TrustRatio(_, adam) => {
                let corrections = [5, 6].map(|operand| self.scalar(step, operand) as f32);
                Summing::Direction {
                    rule: Rule::Adam(adam_rule(adam, corrections)),
                    tensors: [0, 1, 2, 3].map(|operand| self.own(step, operand, elements)),
                    factor: self.scalar(step, 4) as f32,
                    first: self.share(step, elements).start,
                }
            }
        }
    }

    fn block(&self, summing: &Summing<'_>, block: Range<usize>) -> [f64; SUMS] {
        match *summing {
            Summing::Squares(x) => [kernels::sum_squares(self.kernels, x, block), 0.0],
            Summing::Histogram(x, factor, edge) => {
                let mut values = [0.0; BLOCK];
                let values = &mut values[..block.len()];
                x.load_row(self.kernels, 0, block, values);
                let is_lower = |&&value: &&f32| f64::from(value * factor).abs() < edge;
                let lower = values.iter().filter(is_lower).count();
                [lower as f64, (values.len() - lower) as f64]
            }
            Summing::Direction {
                rule,
                tensors: [p, g, ref states @ ..],
                factor,
                first,
            } => {
                let update = Update {
                    rule,
                    p,
                    g,
                    states,
                    factor,
                    lr: 0.0,
                    rounding: None,
                    first,
                };
                kernels::lamb_squares(self.kernels, &update, block)
            }
        }
    }

    /// Adds up the sums of blocks, tensor by tensor, and gives every replica that shares the tensor out the result.
    fn add_up(&self, step: &CpuStep, reduction: &Reduction) {
        for (index, part) in reduction.parts.iter().enumerate() {
            let mut total = [0.0; SUMS];
            for block in reduction.blocks(part) {
                let sums = self.sums.left(reduction.at + block * SUMS);
                total = [total[0] + sums[0], total[1] + sums[1]];
            }
            match &reduction.kind {
                Kind::Squares => self.publish(step, index, &total[..1]),
                Kind::Histogram(_) => self.publish(step, index, &total),
                Kind::TrustRatio(ratio, _) => {
                    self.publish(step, index, &[ratio.of_squares(total)]);
                }
            }
        }
    }

    /// Writes entries of the result, from `first` on, for every replica that shares the tensor out.
    fn publish(&self, step: &CpuStep, first: usize, entries: &[f64]) {
        let replicas = match step.shards {
            1 => self.replica..self.replica + 1,
            shards => 0..shards,
        };
        for replica in replicas {
            // SAFETY: one worker of one replica runs this, and no step accesses the result before workers meet.
            let mut out =
                unsafe { step.outputs[0].view_mut(&self.replicas[replica], self.moment()) };
            for (row, &entry) in (first..).zip(entries) {
                out.store_row(self.kernels, row, 0, &[entry as f32]);
            }
        }
    }
}

/// What the sums of a block are of: views of this replica's share.
enum Summing<'a> {
    /// Σ x².
    Squares(View<'a>),
    /// How many |x · factor| are below the edge, and how many not.
    Histogram(View<'a>, f32, f64),
    /// Σ p² and Σ d².
    Direction {
        rule: Rule,
        tensors: [View<'a>; 4],
        factor: f32,
        first: usize,
    },
}
