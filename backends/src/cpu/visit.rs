//! One visit of the team to a tile: one program for one micro-batch.

use std::sync::Mutex;
use std::time::Instant;

use lxpod_ir::{Data, Tensor, Value};

use super::exec::{Halt, Machine};
use super::kernels::{self, Scratch, View, ViewMut};
use super::operand::{Moment, Operand};
use super::step::{CpuProgram, CpuStep, HostValue, Source};
use super::team::{Poisoned, Worker};
use super::trace::{Guard, TileTrace};
use super::{Cpu, lock};
use crate::{BackendError, Feed, Overflow};

/// One program for one micro-batch.
pub(super) struct Visit<'a> {
    pub cpu: &'a Cpu,
    pub replica: usize,
    pub tile: usize,
    /// The program's position in the tile.
    pub program: usize,
    /// The micro-batch, counted per replica.
    pub micro_batch: usize,
    pub feed: &'a Feed,
    /// Where the outputs go.
    pub results: &'a [Cell],
    /// The first error of any worker.
    pub failure: &'a Mutex<Option<BackendError>>,
    /// Where the first value that is not finite goes, if it is looked for.
    pub overflow: Option<&'a Mutex<Option<Overflow>>>,
}

impl Visit<'_> {
    fn program(&self) -> &CpuProgram {
        &self.cpu.programs[self.tile][self.program]
    }

    fn moment(&self) -> Moment<'_> {
        Moment {
            extents: &self.feed.extents,
            micro_batch: self.micro_batch,
        }
    }

    /// Does this worker's share of all steps.
    ///
    /// # Errors
    /// Another worker panicked.
    pub(super) fn run(&self, worker: &Worker<'_>, scratch: &mut Scratch) -> Result<(), Poisoned> {
        let program = self.program();
        let arenas = &self.cpu.arenas[self.replica];
        let machine = Machine {
            kernels: self.cpu.kernels,
            replicas: &self.cpu.arenas,
            replica: self.replica,
            arenas,
            extents: &self.feed.extents,
            micro_batch: self.micro_batch,
            sums: &self.cpu.sums,
        };
        let guard = self.cpu.guard.then(|| Guard {
            plan: &self.cpu.plan.tiles[self.tile],
            tile: self.tile,
        });
        if let Some(guard) = &guard {
            guard.poison(&arenas[self.tile], program.first);
        }
        for load in &program.loads {
            self.load(load, worker);
            self.trace_host(load, worker);
        }
        if !program.loads.is_empty() {
            worker.meet()?;
        }
        let end = program.first + program.steps.len();
        let mut start = Instant::now();
        for (time, step) in (program.first..).zip(&program.steps) {
            if worker.index == 0 {
                self.trace(time, step);
            }
            let before = |guard: &Guard<'_>| guard.before(time, step, self.moment());
            let checked = guard.as_ref().map_or(Ok(()), before);
            self.note(checked.map_err(BackendError::Internal));
            match machine.run(step, worker, scratch) {
                Err(Halt::Data(error)) => self.note(Err(self.data_error(step, &error))),
                Err(Halt::Poisoned) => return Err(Poisoned),
                Ok(()) => {}
            }
            let after = |guard: &Guard<'_>| guard.after(&arenas[self.tile], time, end - 1);
            let checked = guard.as_ref().map_or(Ok(()), after);
            self.note(checked.map_err(BackendError::Internal));
            worker.meet()?;
            if let Some(found) = self.overflow {
                if worker.index == 0 {
                    self.look(step, &mut lock(found));
                }
                worker.meet()?;
            }
            if worker.index == 0 {
                let now = Instant::now();
                lock(&self.cpu.times)[self.tile][time] += now - start;
                start = now;
            }
        }
        self.finish(worker)
    }

    /// Hands the outputs to the host.
    fn finish(&self, worker: &Worker<'_>) -> Result<(), Poisoned> {
        let program = self.program();
        for store in &program.stores {
            self.store(store, worker);
            self.trace_host(store, worker);
        }
        if worker.index == 0 {
            lock(self.trace_of(self.tile)).finish();
        }
        if program.stores.is_empty() {
            return Ok(());
        }
        worker.meet()
    }

    fn trace_of(&self, tile: usize) -> &Mutex<TileTrace> {
        &self.cpu.traces[self.replica * self.cpu.plan.tiles.len() + tile]
    }

    /// Keeps the first error; the run goes on, so that no worker waits for another.
    fn note(&self, result: Result<(), BackendError>) {
        if let Err(error) = result {
            lock(self.failure).get_or_insert(error);
        }
    }

    /// Keeps the first result of a step that is not finite, if nothing is kept yet. No step may run.
    fn look(&self, step: &CpuStep, found: &mut Option<Overflow>) {
        if found.is_some() {
            return;
        }
        let mut outputs = step.outputs.iter();
        let infinite = |operand: &Operand| operand.dtype.is_float() && !self.is_finite(operand);
        *found = outputs.position(infinite).map(|output| {
            let plan = &self.cpu.plan;
            let phase = plan.tiles[self.tile].programs[self.program].phase;
            let value = Value {
                node: step.node,
                output: output as u16,
            };
            let micro_batch = self.micro_batch * plan.replicas + self.replica;
            Overflow::new(plan.graph_of(phase), value, micro_batch)
        });
    }

    fn is_finite(&self, operand: &Operand) -> bool {
        let arenas = &self.cpu.arenas[self.replica];
        // SAFETY: no step runs, so nobody writes.
        let x = unsafe { operand.view(arenas, self.moment()) };
        let mut row = vec![0.0; x.cols()];
        (0..x.rows()).all(|index| {
            x.load_row(self.cpu.kernels, index, 0..x.cols(), &mut row);
            row.iter().all(|value| value.is_finite())
        })
    }

    fn data_error(&self, step: &CpuStep, error: &str) -> BackendError {
        let phase = self.cpu.plan.tiles[self.tile].programs[self.program].phase;
        let node = self.cpu.plan.graph_of(phase).node(step.node);
        BackendError::Data(format!("{} in {}: {error}", node.op.name(), node.scope))
    }

    fn trace(&self, time: usize, step: &CpuStep) {
        let mut trace = lock(self.trace_of(self.tile));
        trace.read_parameters(step);
        for source in &step.inputs {
            if let Source::Arena(operand) = source {
                trace.touch(time, operand, self.moment(), false);
            }
        }
        drop(trace);
        for operand in &step.outputs {
            lock(self.trace_of(operand.tile)).touch(time, operand, self.moment(), true);
        }
    }

    fn trace_host(&self, value: &HostValue, worker: &Worker<'_>) {
        if worker.index == 0 {
            let time = self.program().first;
            lock(self.trace_of(self.tile)).touch(time, &value.operand, self.moment(), false);
        }
    }

    /// Writes this worker's share of an input into the stage's host buffer.
    fn load(&self, load: &HostValue, worker: &Worker<'_>) {
        let arenas = &self.cpu.arenas[self.replica];
        let tensor = &self.feed.inputs[&load.name];
        match &tensor.data {
            Data::Real(values) => {
                let (rows, columns) = (tensor.shape.rows(), tensor.shape.row_elements());
                // SAFETY: workers write disjoint rows, and no step runs.
                let out = unsafe { load.operand.view_mut(arenas, self.moment()) };
                kernels::copy(
                    self.cpu.kernels,
                    View::new(values, rows, columns),
                    out,
                    worker.share(rows),
                );
            }
            Data::Int(values) if worker.index == 0 => {
                // SAFETY: only worker 0 writes integers, and no step runs.
                unsafe { load.operand.ints_mut(arenas, self.moment()) }.copy_from_slice(values);
            }
            Data::Int(_) => {}
        }
    }

    /// Reads this worker's share of an output from the stage's host buffer.
    fn store(&self, store: &HostValue, worker: &Worker<'_>) {
        let arenas = &self.cpu.arenas[self.replica];
        // SAFETY: all steps are done, so nobody writes.
        let x = unsafe { store.operand.view(arenas, self.moment()) };
        let rows = x.rows();
        // SAFETY: the cell belongs to this micro-batch and output, and workers write disjoint rows.
        let out = unsafe { self.results[store.index].view_mut(rows, x.cols()) };
        kernels::copy(self.cpu.kernels, x, out, worker.share(rows));
    }
}

/// Where workers write one output of one micro-batch.
pub(super) struct Cell(*mut f32, usize);

// SAFETY: the memory is reached only through `view_mut`, whose callers write disjoint rows of tensors that outlive the run.
unsafe impl Sync for Cell {}
// SAFETY: as for `Sync`.
unsafe impl Send for Cell {}

impl Cell {
    pub(super) fn new(tensor: &mut Tensor<f32>) -> Self {
        match &mut tensor.data {
            Data::Real(values) => Cell(values.as_mut_ptr(), values.len()),
            Data::Int(_) => Cell(std::ptr::null_mut(), 0),
        }
    }

    /// # Safety
    /// Workers write disjoint rows.
    unsafe fn view_mut(&self, rows: usize, columns: usize) -> ViewMut<'_> {
        assert!(
            rows * columns <= self.1,
            "an output has {} elements",
            self.1
        );
        // SAFETY: the tensor outlives the run and holds that many elements.
        unsafe {
            ViewMut::from_raw_parts(
                self.0.cast(),
                lxpod_ir::DType::F32,
                [rows, columns],
                columns,
            )
        }
    }
}
