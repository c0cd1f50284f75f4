//! Running one step: each worker does its share.

use std::ops::Range;

use lxpod_ir::ops::{Dropout, Reduction};
use lxpod_ir::random_bits::{RowState, name_hash, part_salt};
use lxpod_ir::{Extents, SpaceId};

use super::arena::Arena;
use super::kernels::{self, Kernels, LayerNorm, Linear, Scratch, View};
use super::members::Moment;
use super::operand::Operand;
use super::reduce::Sums;
use super::squares::Squares;
use super::step::{CpuStep, Dropping, Kernel, Source};
use super::store::Resident;
use super::team::{Poisoned, Worker};

/// Rows that a worker takes at a time, at least, of work that costs a microsecond a row.
const ROWS: usize = 2;

/// What a step runs on.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    /// The kernel table.
    pub kernels: &'static Kernels,
    /// The arenas of all replicas, by tile.
    pub replicas: &'a [Vec<Arena>],
    /// Which replica runs.
    pub replica: usize,
    /// The arenas of this replica, by tile.
    pub arenas: &'a [Arena],
    /// What it runs for.
    pub moment: Moment<'a>,
    /// What workers leave for each other within a step.
    pub sums: &'a Sums,
    /// What products leave for the update.
    pub squares: &'a Squares,
}

/// Why a worker did not do its share of a step.
pub(super) enum Halt {
    /// A value fed by the user is out of range.
    Data(String),
    /// Another worker panicked.
    Poisoned,
}

impl From<String> for Halt {
    fn from(error: String) -> Self {
        Halt::Data(error)
    }
}

impl From<Poisoned> for Halt {
    fn from(_: Poisoned) -> Self {
        Halt::Poisoned
    }
}

impl Machine<'_> {
    /// Does this worker's share of a step. The caller sees to it that all workers run the same steps and meet where
    /// [`super::meetings`] has them meet, and that no step writes what it reads.
    ///
    /// # Errors
    /// A value fed by the user is out of range, or another worker panicked.
    pub(super) fn run(
        &self,
        step: &CpuStep,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Halt> {
        match &step.kernel {
            Kernel::Linear(activation) => self.linear(step, *activation, worker, scratch),
            Kernel::Attention(attention, queries, keys) => {
                self.attention(step, attention, [*queries, *keys], worker, scratch);
            }
            Kernel::Dropout(dropping) => self.dropout(step, dropping, worker),
            Kernel::LayerNorm(eps) => self.layer_norm(step, *eps, worker),
            Kernel::Definition(definition) if worker.index == 0 => {
                self.define(step, definition)?;
            }
            Kernel::Definition(_) => {}
            Kernel::Gradient(gradient) => self.gradient(step, gradient, worker, scratch)?,
            Kernel::Updating(updating) => self.updating(step, updating, worker, scratch)?,
            Kernel::Gather => self.gather(step, worker)?,
            Kernel::Concat(columns) => self.concat(step, *columns, worker),
            Kernel::CrossEntropy(reduction) if worker.index == 0 => {
                self.cross_entropy(step, *reduction, scratch)?;
            }
            Kernel::Bce(factor) if worker.index == 0 => self.bce(step, *factor),
            Kernel::SmoothL1 if worker.index == 0 => self.smooth_l1(step, scratch),
            Kernel::CrossEntropy(_) | Kernel::Bce(_) | Kernel::SmoothL1 => {}
            Kernel::Add | Kernel::Scale(_) | Kernel::Activate(_) | Kernel::Copy => {
                self.elementwise(step, worker)
            }
        }
        Ok(())
    }

    /// Operand `index`, as a matrix to read.
    pub(super) fn read<'a>(&'a self, step: &'a CpuStep, index: usize) -> View<'a> {
        match &step.inputs[index] {
            // SAFETY: no worker writes a step's operands while the step runs.
            Source::Arena(operand) => unsafe { operand.view(self.arenas, self.moment()) },
            Source::Resident(Resident::Table(table)) => table.view(),
            Source::Resident(Resident::Vector(values)) => {
                View::new(values.as_slice(), values.len(), 1)
            }
            Source::Resident(Resident::Panels(_)) => unreachable!("only `linear` reads panels"),
        }
    }

    /// Operand `index`, as one f32 per row.
    pub(super) fn vector<'a>(&'a self, step: &'a CpuStep, index: usize) -> &'a [f32] {
        match &step.inputs[index] {
            // SAFETY: as `read`.
            Source::Arena(operand) => unsafe { operand.floats(self.arenas, self.moment()) },
            Source::Resident(Resident::Vector(values)) => values,
            Source::Resident(_) => unreachable!("vectors are stored as vectors"),
        }
    }

    pub(super) fn ints<'a>(&'a self, step: &'a CpuStep, index: usize) -> &'a [i32] {
        match &step.inputs[index] {
            // SAFETY: as `read`.
            Source::Arena(operand) => unsafe { operand.ints(self.arenas, self.moment()) },
            Source::Resident(_) => unreachable!("parameters are floats"),
        }
    }

    /// Output `index`, as a matrix of which this worker writes its share.
    pub(super) fn write<'a>(&'a self, step: &'a CpuStep, index: usize) -> kernels::ViewMut<'a> {
        // SAFETY: workers write disjoint rows or columns, and nobody reads an output before all met.
        unsafe { step.outputs[index].view_mut(self.arenas, self.moment()) }
    }

    /// The operand that reads as zeros now.
    pub(super) fn reset(&self, step: &CpuStep) -> Option<usize> {
        step.reset.filter(|_| self.moment.micro_batch() == 0)
    }

    pub(super) fn moment(&self) -> Moment<'_> {
        self.moment
    }

    /// What the step computes with rows.
    pub(super) fn extents(&self) -> &Extents {
        self.moment.extents()
    }

    fn rows(&self, output: &Operand) -> usize {
        output.extent(self.moment())
    }

    fn linear(
        &self,
        step: &CpuStep,
        activation: Option<lxpod_ir::ops::Activation>,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let Source::Resident(Resident::Panels(weights)) = &step.inputs[1] else {
            unreachable!("the weight of a `linear` is a parameter");
        };
        let bias = (step.inputs.len() > 2).then(|| self.vector(step, 2));
        let layer = Linear {
            x: self.read(step, 0),
            weights,
            bias,
            activation,
        };
        let mut units = worker.claims(layer.units(), layer.grain(self.kernels));
        let out = self.write(step, 0);
        kernels::linear(self.kernels, &layer, out, &mut units, scratch);
    }

    fn layer_norm(&self, step: &CpuStep, eps: f32, worker: &Worker<'_>) {
        let norm = LayerNorm {
            gamma: self.vector(step, 1),
            beta: self.vector(step, 2),
            eps,
        };
        let residual = (step.inputs.len() > 3).then(|| self.read(step, 3));
        for rows in worker.claims(self.rows(&step.outputs[0]), ROWS) {
            let (x, out) = (self.read(step, 0), self.write(step, 0));
            kernels::layer_norm(self.kernels, x, residual, &norm, out, rows);
        }
    }

    /// Work is split over (segment, head) pairs.
    fn attention(
        &self,
        step: &CpuStep,
        attention: &lxpod_ir::ops::Attention,
        [queries, keys]: [SpaceId; 2],
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let heads = attention.heads;
        let width = self.read(step, 0).cols() / heads;
        for unit in worker
            .claims(self.extents().segments(queries) * heads, 1)
            .flatten()
        {
            let (segment, head) = (unit / heads, unit % heads);
            let columns = head * width..(head + 1) * width;
            let (rows, seen) = (
                self.extents().segment(queries, segment),
                self.extents().segment(keys, segment),
            );
            let part = |index: usize, rows: &Range<usize>| {
                self.read(step, index)
                    .row_range(rows.clone())
                    .col_range(columns.clone())
            };
            let inputs = kernels::Attention {
                q: part(0, &rows),
                k: part(1, &seen),
                v: part(2, &seen),
                mask: &self.vector(step, 3)[seen.clone()],
                scale: attention.scale,
                dropout: self.head_dropout(step, 4, attention.dropout.as_ref(), [segment, head]),
            };
            let out = self
                .write(step, 0)
                .row_range(rows.clone())
                .col_range(columns.clone());
            let probabilities = attention.probabilities.then(|| {
                let longest = self.write(step, 1).cols() / heads;
                let first = head * longest;
                self.clear(step, rows.clone(), first + seen.len()..first + longest);
                self.write(step, 1)
                    .row_range(rows.clone())
                    .col_range(first..first + seen.len())
            });
            kernels::attention_head(self.kernels, &inputs, out, probabilities, scratch);
        }
    }

    /// The dropout of a head of a segment, whose keys are operand `keys`.
    pub(super) fn head_dropout(
        &self,
        step: &CpuStep,
        keys: usize,
        dropout: Option<&Dropout>,
        [segment, head]: [usize; 2],
    ) -> Option<kernels::HeadDropout> {
        let dropout = dropout?;
        let key = self.key(step, keys, segment);
        Some(kernels::HeadDropout {
            rate: dropout.rate_under(key),
            key,
            salt: part_salt(dropout.salt, head as u64),
        })
    }

    /// The key of an entity; operand `keys` has two words for each.
    fn key(&self, step: &CpuStep, keys: usize, entity: usize) -> [u32; 2] {
        let keys = self.ints(step, keys);
        [0, 1].map(|word| keys[2 * entity + word].cast_unsigned())
    }

    /// Workers claim rows, whose segments are then found.
    fn dropout(&self, step: &CpuStep, dropping: &Dropping, worker: &Worker<'_>) {
        let Dropping {
            dropout,
            spaces,
            rows,
        } = dropping;
        for claimed in worker.claims(self.rows(&step.outputs[0]), ROWS) {
            self.extents()
                .visit_segments(spaces, *rows, &mut |segment| {
                    let start = segment.rows.start;
                    let own = start.max(claimed.start)..segment.rows.end.min(claimed.end);
                    if own.is_empty() {
                        return;
                    }
                    let salt = part_salt(dropout.salt, name_hash(&spaces.get(segment.space).name));
                    let key = self.key(step, 1, segment.entity);
                    let state = |row: usize| RowState::new(key, salt, (row - start) as u32);
                    let (x, out) = (self.read(step, 0), self.write(step, 0));
                    kernels::dropout(self.kernels, x, dropout.rate_under(key), state, out, own);
                });
        }
    }

    /// Writes zeros to some columns of the probabilities: keys that a segment does not have.
    fn clear(&self, step: &CpuStep, rows: Range<usize>, columns: Range<usize>) {
        const ZEROS: [f32; 64] = [0.0; 64];
        for row in rows {
            for first in columns.clone().step_by(ZEROS.len()) {
                let zeros = &ZEROS[..ZEROS.len().min(columns.end - first)];
                self.write(step, 1)
                    .store_row(self.kernels, row, first, zeros);
            }
        }
    }

    fn gather(&self, step: &CpuStep, worker: &Worker<'_>) -> Result<(), String> {
        let output = &step.outputs[0];
        let index = self.ints(step, 1);
        let rows = worker.share(self.rows(output));
        if !output.dtype.is_float() {
            return if worker.index == 0 {
                self.gather_ints(step, index)
            } else {
                Ok(())
            };
        }
        let out = self.write(step, 0);
        kernels::gather(self.kernels, self.read(step, 0), index, out, rows)
            .map_err(|error| error.to_string())
    }

    fn gather_ints(&self, step: &CpuStep, index: &[i32]) -> Result<(), String> {
        let data = self.ints(step, 0);
        // SAFETY: only worker 0 comes here, and no step writes what it reads.
        let out = unsafe { step.outputs[0].ints_mut(self.arenas, self.moment()) };
        for (out, &index) in out.iter_mut().zip(index) {
            let picked = usize::try_from(index)
                .ok()
                .and_then(|index| data.get(index));
            *out = *picked.ok_or_else(|| format!("index {index} is outside 0..{}", data.len()))?;
        }
        Ok(())
    }

    fn concat(&self, step: &CpuStep, columns: bool, worker: &Worker<'_>) {
        let mut first = 0;
        for part in 0..step.inputs.len() {
            let x = self.read(step, part);
            let (rows, width) = (x.rows(), x.cols());
            let out = if columns {
                self.write(step, 0).col_range(first..first + width)
            } else {
                self.write(step, 0).row_range(first..first + rows)
            };
            first += if columns { width } else { rows };
            kernels::copy(self.kernels, x, out, worker.share(rows));
        }
    }

    fn elementwise(&self, step: &CpuStep, worker: &Worker<'_>) {
        if !step.outputs[0].dtype.is_float() {
            return self.copy_ints(step, worker);
        }
        for rows in worker.claims(self.rows(&step.outputs[0]), ROWS) {
            let (x, out) = (self.read(step, 0), self.write(step, 0));
            match step.kernel {
                Kernel::Add => self.add(step, out, rows),
                Kernel::Scale(factor) => kernels::scale(self.kernels, x, factor, out, rows),
                Kernel::Activate(kind) => kernels::activate(self.kernels, x, kind, out, rows),
                _ => kernels::copy(self.kernels, x, out, rows),
            }
        }
    }

    /// A reset operand is written as zeros where the sum will be.
    fn add(&self, step: &CpuStep, out: kernels::ViewMut<'_>, rows: Range<usize>) {
        let Some(reset) = self.reset(step) else {
            return kernels::add(
                self.kernels,
                self.read(step, 0),
                self.read(step, 1),
                out,
                rows,
            );
        };
        let zeros = self.write(step, 0);
        kernels::zeros(self.kernels, self.write(step, 0), rows.clone());
        kernels::add(
            self.kernels,
            zeros.as_view(),
            self.read(step, 1 - reset),
            out,
            rows,
        );
    }

    fn copy_ints(&self, step: &CpuStep, worker: &Worker<'_>) {
        if worker.index == 0 {
            // SAFETY: only worker 0 comes here, and no step writes what it reads.
            let out = unsafe { step.outputs[0].ints_mut(self.arenas, self.moment()) };
            out.copy_from_slice(self.ints(step, 0));
        }
    }

    /// Operand `index`, one number.
    pub(super) fn scalar(&self, step: &CpuStep, index: usize) -> f64 {
        self.entry(step, index, 0)
    }

    /// An entry of operand `index`, a list.
    pub(super) fn entry(&self, step: &CpuStep, index: usize, row: usize) -> f64 {
        let mut value = [0.0];
        self.read(step, index)
            .load_row(self.kernels, row, 0..1, &mut value);
        f64::from(value[0])
    }

    /// Writes output `index`, one number.
    pub(super) fn store_scalar(&self, step: &CpuStep, index: usize, value: f64) {
        self.write(step, index)
            .store_row(self.kernels, 0, 0, &[value as f32]);
    }

    fn cross_entropy(
        &self,
        step: &CpuStep,
        reduction: Reduction,
        scratch: &mut Scratch,
    ) -> Result<(), String> {
        let (logits, labels) = (self.read(step, 0), self.ints(step, 1));
        let (total, rows) = match reduction {
            Reduction::Mean => {
                let total = kernels::cross_entropy(self.kernels, logits, labels, None)
                    .map_err(|error| error.to_string())?;
                (total.sum, total.kept)
            }
            Reduction::Weighted => {
                let losses = scratch.take(labels.len());
                kernels::cross_entropy(self.kernels, logits, labels, Some(losses))
                    .map_err(|error| error.to_string())?;
                (self.weigh(step, losses), labels.len())
            }
        };
        self.store_scalar(step, 0, total / rows as f64);
        Ok(())
    }

    /// Σ loss · weight, in row order; the weights are the third operand.
    fn weigh(&self, step: &CpuStep, losses: &[f32]) -> f64 {
        let pairs = losses.iter().zip(self.vector(step, 2));
        pairs
            .map(|(&loss, &weight)| f64::from(loss) * f64::from(weight))
            .sum()
    }

    fn bce(&self, step: &CpuStep, factor: f32) {
        let logits = self.read(step, 0);
        let elements = (logits.rows() * logits.cols()) as f64;
        let total = kernels::bce_with_logits(self.kernels, logits, self.read(step, 1));
        self.store_scalar(step, 0, total / elements * f64::from(factor));
    }

    fn smooth_l1(&self, step: &CpuStep, scratch: &mut Scratch) {
        let x = self.read(step, 0);
        let losses = scratch.take(x.rows());
        kernels::smooth_l1(self.kernels, x, self.read(step, 1), losses);
        self.store_scalar(step, 0, self.weigh(step, losses) / losses.len() as f64);
    }
}
