//! One visit of the team to a tile: one program for the micro-batches that the plan groups.

use std::sync::Mutex;
use std::time::Instant;

use lxpod_ir::{Data, Tensor, Value};

use super::exec::{Halt, Machine};
use super::host::HostValue;
use super::kernels::{self, Scratch, View, ViewMut};
use super::members::{Members, Moment, Turns};
use super::operand::Operand;
use super::step::{CpuProgram, CpuStep, Source};
use super::team::{Poisoned, Worker};
use super::trace::{Guard, TileTrace};
use super::{Cpu, lock};
use crate::{BackendError, Overflow};

/// One program for some micro-batches, its members.
pub(super) struct Visit<'a> {
    pub cpu: &'a Cpu,
    pub replica: usize,
    pub tile: usize,
    /// The program's position in the tile.
    pub program: usize,
    pub members: Members<'a>,
    /// Where the outputs go, as members lie in their feeds: so many for each feed.
    pub results: &'a [Cell],
    pub outputs: usize,
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
        Moment::of(self.members)
    }

    /// The moments in which a step computes all members. Where overflows are looked for, members are added one by one to
    /// what they share.
    fn turns<'s>(&'s self, step: &CpuStep) -> impl Iterator<Item = Moment<'s>> {
        let is_shared = |operand: &Operand| operand.rows.is_none() && operand.copy == 0;
        let one_by_one = match step.turns {
            Turns::Together => false,
            Turns::Sums => self.overflow.is_some() && step.outputs.iter().any(is_shared),
            Turns::InTurn => true,
        };
        let together = (!one_by_one).then(|| self.moment());
        let each = one_by_one.then(|| self.moment().each());
        together.into_iter().chain(each.into_iter().flatten())
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
            moment: self.moment(),
            sums: &self.cpu.sums,
            squares: &self.cpu.squares,
        };
        // Without steps there is no moment at which something is dead.
        let guard = (self.cpu.guard && !program.steps.is_empty()).then(|| Guard {
            plan: &self.cpu.plan.tiles[self.tile],
            tile: self.tile,
        });
        if let Some(guard) = &guard {
            guard.poison(&arenas[self.tile], program.first);
        }
        for load in &program.loads {
            self.moment()
                .each()
                .for_each(|moment| self.load(load, moment, worker));
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
            let checks = guard.is_some() || self.overflow.is_some();
            let mut turns = self.turns(step).peekable();
            while let Some(moment) = turns.next() {
                match (Machine { moment, ..machine }).run(step, worker, scratch) {
                    Err(Halt::Data(error)) => self.note(Err(self.data_error(step, &error))),
                    Err(Halt::Poisoned) => return Err(Poisoned),
                    Ok(()) => {}
                }
                if checks || step.meets || turns.peek().is_some() {
                    worker.meet()?;
                }
                if let Some(found) = self.overflow {
                    if worker.index == 0 {
                        self.look(step, moment, &mut lock(found));
                    }
                    worker.meet()?;
                }
            }
            let after = |guard: &Guard<'_>| guard.after(&arenas[self.tile], time, end - 1);
            let checked = guard.as_ref().map_or(Ok(()), after);
            self.note(checked.map_err(BackendError::Internal));
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
            self.moment()
                .each()
                .for_each(|moment| self.store(store, moment, worker));
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
    fn look(&self, step: &CpuStep, moment: Moment<'_>, found: &mut Option<Overflow>) {
        if found.is_some() {
            return;
        }
        *found = moment.each().find_map(|moment| {
            let infinite =
                |operand: &Operand| operand.dtype.is_float() && !self.is_finite(operand, moment);
            let output = step.outputs.iter().position(infinite)?;
            let plan = &self.cpu.plan;
            let phase = plan.tiles[self.tile].programs[self.program].phase;
            let value = Value {
                node: step.node,
                output: output as u16,
            };
            let micro_batch = moment.micro_batch() * plan.replicas + self.replica;
            Some(Overflow::new(plan.graph_of(phase), value, micro_batch))
        });
    }

    fn is_finite(&self, operand: &Operand, moment: Moment<'_>) -> bool {
        let (place, pieces) = operand.parts(moment);
        // SAFETY: no step runs, so nobody writes.
        let x = unsafe { operand.view(&self.cpu.arenas[self.replica], place) };
        let mut row = vec![0.0; x.cols()];
        pieces.into_iter().flatten().all(|index| {
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

    /// Writes this worker's share of an input of a member into the stage's host buffer.
    fn load(&self, load: &HostValue, moment: Moment<'_>, worker: &Worker<'_>) {
        let arenas = &self.cpu.arenas[self.replica];
        let (place, pieces) = load.operand.parts(moment);
        let tensor = &moment.feed().inputs[&load.name];
        let columns = tensor.shape.row_elements();
        let mut first = 0;
        for piece in pieces {
            let given = first..first + piece.len();
            first = given.end;
            match &tensor.data {
                Data::Real(values) => {
                    let x = View::new(values, tensor.shape.rows(), columns).row_range(given);
                    // SAFETY: workers write disjoint rows, and no step runs.
                    let out = unsafe { load.operand.view_mut(arenas, place) };
                    let (own, out) = (worker.share(piece.len()), out.row_range(piece));
                    kernels::copy(self.cpu.kernels, x, out, own);
                }
                Data::Int(values) if worker.index == 0 => {
                    // SAFETY: only worker 0 writes integers, and no step runs.
                    let out = unsafe { load.operand.ints_mut(arenas, place) };
                    out[piece.start * columns..piece.end * columns]
                        .copy_from_slice(&values[given.start * columns..given.end * columns]);
                }
                Data::Int(_) => {}
            }
        }
    }

    /// Reads this worker's share of an output of a member from the stage's host buffer.
    fn store(&self, store: &HostValue, moment: Moment<'_>, worker: &Worker<'_>) {
        let result = &self.results[moment.first() * self.members.every * self.outputs..];
        let (place, pieces) = store.operand.parts(moment);
        // SAFETY: all steps are done, so nobody writes.
        let x = unsafe { store.operand.view(&self.cpu.arenas[self.replica], place) };
        let mut first = 0;
        for piece in pieces {
            let rows = piece.len();
            // SAFETY: the cell belongs to this micro-batch and output, and workers write disjoint rows.
            let out = unsafe { result[store.index].view_mut(first + rows, x.cols()) };
            let out = out.row_range(first..first + rows);
            first += rows;
            kernels::copy(
                self.cpu.kernels,
                x.row_range(piece),
                out,
                worker.share(rows),
            );
        }
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
