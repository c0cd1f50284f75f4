//! The fast CPU backend; the only home of SIMD.
//!
//! Loading a plan packs its parameters and resolves its steps; a run is one parallel region in which
//! every worker walks the same schedule, does its share of each step and meets the others. Tiles are
//! time-sliced on one team: each has its own arena at planned offsets, and transfers copy between
//! arenas.

mod affinity;
mod arena;
mod exec;
pub mod kernels;
mod step;
mod store;
mod team;
mod trace;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use lxpod_ir::ops::Op;
use lxpod_ir::{Data, Extents, Graph, Tensor};
use lxpod_passes::plan::Plan;

use crate::{BackendError, Executable, Feed, Fetch, HostLedger, Outputs, StepTime, TileLedger};
use arena::Arena;
use exec::Machine;
use kernels::{Kernels, Scratch, View, ViewMut};
use step::{CpuProgram, HostValue, Source};
use store::Store;
use team::{Poisoned, Team, Worker};
use trace::{Guard, TileTrace};

/// How to run a plan on the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Workers; 0 means one per CPU the process may use.
    pub threads: usize,
    /// Poison free bytes and check every access; runs on one worker.
    pub guard: bool,
}

/// A plan on the CPU.
pub struct Cpu {
    plan: Plan,
    kernels: &'static Kernels,
    team: Team,
    programs: Vec<CpuProgram>,
    /// By replica, then stage.
    arenas: Vec<Vec<Arena>>,
    scratch: Vec<Mutex<Scratch>>,
    /// By tile.
    traces: Vec<Mutex<TileTrace>>,
    /// By stage, then step: the last run's times over all replicas and micro-batches.
    times: Mutex<Vec<Vec<Duration>>>,
    weight_bytes: u64,
    guard: bool,
}

impl Cpu {
    /// Loads a plan's parameters and makes it ready to run.
    ///
    /// # Errors
    /// The source of the weights fails, `LXPOD_ISA` names no kernel table, or the plan holds an op
    /// without a kernel.
    pub fn load(plan: Plan, fetch: Fetch<'_>, options: CpuOptions) -> Result<Self, BackendError> {
        if !options.guard {
            plan.check()
                .map_err(|error| BackendError::Internal(error.to_string()))?;
        }
        let kernels = Kernels::select().map_err(|error| BackendError::Data(error.to_string()))?;
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 {
            available
        } else {
            options.threads
        };
        let team = Team::new(if options.guard { 1 } else { threads })
            .map_err(BackendError::Unsupported)?;
        let rows: std::collections::BTreeMap<&str, usize> = plan
            .provenance
            .expected
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.first().copied().unwrap_or(1)))
            .collect();
        let tensor_rows = |name: &str| rows.get(name).copied().unwrap_or(0);
        let store = team.install(|| Store::load(&plan.graph, &tensor_rows, fetch))?;
        let programs: Result<Vec<CpuProgram>, _> = (0..plan.stages())
            .map(|stage| step::resolve(&plan, stage, &store))
            .collect();
        let programs = programs?;
        check_outputs(&plan.graph, &programs)?;
        let tile_arenas = |_| {
            let pairs = plan.programs.iter().zip(&programs);
            let ranges = pairs.map(|(program, resolved)| trace::arena_range(program, resolved));
            ranges
                .map(|range| Arena::new(range.start, range.end))
                .collect()
        };
        let arenas: Result<Vec<Vec<Arena>>, String> = (0..plan.replicas).map(tile_arenas).collect();
        let scratch = scratch_len(&plan.graph);
        Ok(Cpu {
            arenas: arenas.map_err(BackendError::Unsupported)?,
            scratch: (0..team.workers())
                .map(|_| Mutex::new(Scratch::new(scratch)))
                .collect(),
            traces: (0..plan.replicas * plan.stages())
                .map(|_| Mutex::default())
                .collect(),
            times: Mutex::new(
                programs
                    .iter()
                    .map(|program| vec![Duration::ZERO; program.steps.len()])
                    .collect(),
            ),
            weight_bytes: store.bytes(),
            guard: options.guard,
            plan,
            kernels,
            team,
            programs,
        })
    }

    /// Plays the schedule of one replica over its feeds.
    fn play(
        &self,
        replica: usize,
        feeds: &[&Feed],
        results: &[Vec<Cell>],
    ) -> Result<(), BackendError> {
        let failure = Mutex::new(None);
        self.team.run(|worker| {
            let mut scratch = lock(&self.scratch[worker.index]);
            for slot in self.plan.schedule.slots(feeds.len()) {
                let visit = Visit {
                    cpu: self,
                    replica,
                    stage: slot.stage,
                    feed: feeds[slot.micro_batch],
                    results: &results[slot.micro_batch],
                    failure: &failure,
                };
                visit.run(worker, &mut scratch)?;
            }
            Ok(())
        });
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// One program for one micro-batch.
struct Visit<'a> {
    cpu: &'a Cpu,
    replica: usize,
    stage: usize,
    feed: &'a Feed,
    results: &'a [Cell],
    failure: &'a Mutex<Option<BackendError>>,
}

impl Visit<'_> {
    fn run(&self, worker: &Worker<'_>, scratch: &mut Scratch) -> Result<(), Poisoned> {
        let program = &self.cpu.programs[self.stage];
        let arenas = &self.cpu.arenas[self.replica];
        let extents = &self.feed.extents;
        let machine = Machine {
            kernels: self.cpu.kernels,
            arenas,
            extents,
        };
        let guard = self.cpu.guard.then(|| Guard {
            program: &self.cpu.plan.programs[self.stage],
            stage: self.stage,
        });
        if let Some(guard) = &guard {
            guard.poison(&arenas[self.stage], 0);
        }
        for load in &program.loads {
            self.load(load, worker);
            self.trace_host(load, worker);
        }
        worker.meet()?;
        let mut start = Instant::now();
        for (time, step) in program.steps.iter().enumerate() {
            if worker.index == 0 {
                self.trace(time, step);
            }
            let checked = guard
                .as_ref()
                .map_or(Ok(()), |guard| guard.before(time, step, extents));
            self.note(checked.map_err(BackendError::Internal));
            self.note(
                machine
                    .run(step, worker, scratch)
                    .map_err(|error| self.data_error(step, &error)),
            );
            let checked = guard
                .as_ref()
                .map_or(Ok(()), |guard| guard.after(&arenas[self.stage], time));
            self.note(checked.map_err(BackendError::Internal));
            worker.meet()?;
            if worker.index == 0 {
                let end = Instant::now();
                lock(&self.cpu.times)[self.stage][time] += end - start;
                start = end;
            }
        }
        for store in &program.stores {
            self.store(store, worker);
            self.trace_host(store, worker);
        }
        if worker.index == 0 {
            let tile = self.replica * self.cpu.plan.stages() + self.stage;
            lock(&self.cpu.traces[tile]).finish();
        }
        worker.meet()
    }

    /// Keeps the first error; the run goes on, so that no worker waits for another.
    fn note(&self, result: Result<(), BackendError>) {
        if let Err(error) = result {
            lock(self.failure).get_or_insert(error);
        }
    }

    fn data_error(&self, step: &step::CpuStep, error: &str) -> BackendError {
        let node = self.cpu.plan.graph.node(step.node);
        BackendError::Data(format!("{} in {}: {error}", node.op.name(), node.scope))
    }

    fn trace(&self, time: usize, step: &step::CpuStep) {
        let stages = self.cpu.plan.stages();
        let tile = |stage| &self.cpu.traces[self.replica * stages + stage];
        let extents = &self.feed.extents;
        let mut trace = lock(tile(self.stage));
        trace.read_parameters(step);
        for source in &step.inputs {
            if let Source::Arena(operand) = source {
                trace.touch(time, operand, extents, false);
            }
        }
        drop(trace);
        for operand in &step.outputs {
            lock(tile(operand.stage)).touch(time, operand, extents, true);
        }
    }

    fn trace_host(&self, value: &HostValue, worker: &Worker<'_>) {
        if worker.index == 0 {
            let tile = self.replica * self.cpu.plan.stages() + self.stage;
            lock(&self.cpu.traces[tile]).touch(0, &value.operand, &self.feed.extents, false);
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
                let out = unsafe { load.operand.view_mut(arenas, &self.feed.extents) };
                kernels::copy(
                    self.cpu.kernels,
                    View::new(values, rows, columns),
                    out,
                    worker.share(rows),
                );
            }
            Data::Int(values) if worker.index == 0 => {
                // SAFETY: only worker 0 writes integers, and no step runs.
                unsafe { load.operand.ints_mut(arenas, &self.feed.extents) }
                    .copy_from_slice(values);
            }
            Data::Int(_) => {}
        }
    }

    /// Reads this worker's share of an output from the stage's host buffer.
    fn store(&self, store: &HostValue, worker: &Worker<'_>) {
        let arenas = &self.cpu.arenas[self.replica];
        // SAFETY: all steps are done, so nobody writes.
        let x = unsafe { store.operand.view(arenas, &self.feed.extents) };
        let rows = x.rows();
        // SAFETY: the cell belongs to this micro-batch and output, and workers write disjoint rows.
        let out = unsafe { self.results[store.index].view_mut(rows, x.cols()) };
        kernels::copy(self.cpu.kernels, x, out, worker.share(rows));
    }
}

/// Where workers write one output of one micro-batch.
struct Cell(*mut f32, usize);

// SAFETY: the memory is reached only through `view_mut`, whose callers write disjoint rows.
unsafe impl Sync for Cell {}

impl Cell {
    fn new(tensor: &mut Tensor<f32>) -> Self {
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Executable for Cpu {
    fn run(&mut self, feeds: &[Feed]) -> Result<Vec<Outputs>, BackendError> {
        for feed in feeds {
            check_feed(&self.plan.graph, feed)?;
        }
        let mut outputs: Vec<Outputs> = feeds
            .iter()
            .map(|feed| empty_outputs(&self.plan.graph, &feed.extents))
            .collect();
        let cells: Vec<Vec<Cell>> = outputs
            .iter_mut()
            .map(|outputs| outputs.iter_mut().map(Cell::new).collect())
            .collect();
        lock(&self.times)
            .iter_mut()
            .flatten()
            .for_each(|time| *time = Duration::ZERO);
        let replicas = self.plan.replicas;
        let mut by_replica: Vec<Vec<Vec<Cell>>> = (0..replicas).map(|_| Vec::new()).collect();
        for (index, cell) in cells.into_iter().enumerate() {
            by_replica[index % replicas].push(cell);
        }
        for (replica, cells) in by_replica.into_iter().enumerate() {
            let own: Vec<&Feed> = feeds.iter().skip(replica).step_by(replicas).collect();
            self.play(replica, &own, &cells)?;
        }
        Ok(outputs)
    }

    fn ledger(&self) -> Vec<TileLedger> {
        let tile = |(tile, trace): (usize, &Mutex<TileTrace>)| TileLedger {
            tile,
            memory: lock(trace).memory.clone(),
        };
        self.traces.iter().enumerate().map(tile).collect()
    }

    fn step_times(&self) -> Vec<StepTime> {
        let times = lock(&self.times);
        let stages = self.programs.iter().zip(times.iter()).enumerate();
        let of_stage = |(stage, (program, times)): (usize, (&CpuProgram, &Vec<Duration>))| {
            let steps = program.steps.iter().zip(times);
            let timed = steps.map(move |(step, &time)| StepTime {
                stage,
                node: step.node,
                time,
            });
            timed.collect::<Vec<_>>()
        };
        stages.flat_map(of_stage).collect()
    }

    fn host(&self) -> HostLedger {
        HostLedger {
            weights: self.weight_bytes,
            arenas: self.arenas.iter().flatten().map(Arena::bytes).sum(),
            scratch: self
                .scratch
                .iter()
                .map(|scratch| lock(scratch).bytes() as u64)
                .sum(),
        }
    }

    fn description(&self) -> String {
        format!(
            "cpu: {} kernels, {} threads",
            self.kernels.name(),
            self.team.workers()
        )
    }
}

/// Checks that each output of the graph is stored by exactly one stage.
fn check_outputs(graph: &Graph, programs: &[CpuProgram]) -> Result<(), BackendError> {
    for (index, output) in graph.outputs().iter().enumerate() {
        let stores = programs.iter().flat_map(|program| &program.stores);
        if stores.filter(|store| store.index == index).count() != 1 {
            let what = format!(
                "output `{}`, which is no step's result, on the CPU",
                output.name
            );
            return Err(BackendError::Unsupported(what));
        }
    }
    Ok(())
}

/// Checks that every input is there, of its type's kind and of its run-time shape.
fn check_feed(graph: &Graph, feed: &Feed) -> Result<(), BackendError> {
    feed.extents
        .fit(&graph.spaces)
        .map_err(BackendError::Data)?;
    for id in graph.nodes() {
        let Op::Input(input) = &graph.node(id).op else {
            continue;
        };
        let ty = &graph.node(id).types[0];
        let tensor = feed.inputs.get(&input.name);
        let tensor = tensor
            .ok_or_else(|| BackendError::Data(format!("input `{}` is missing", input.name)))?;
        let expected = ty.rows.map_or_else(
            || ty.shape.clone(),
            |space| ty.shape.with_rows(feed.extents.rows(space)),
        );
        if tensor.shape != expected || ty.dtype.is_float() != matches!(tensor.data, Data::Real(_)) {
            return Err(BackendError::Data(format!(
                "input `{}` is {}, expected {} {}",
                input.name, tensor.shape, ty.dtype, expected
            )));
        }
    }
    Ok(())
}

fn empty_outputs(graph: &Graph, extents: &Extents) -> Outputs {
    let empty = |output: &lxpod_ir::Output| {
        let ty = graph.ty(output.value);
        let shape = ty.rows.map_or_else(
            || ty.shape.clone(),
            |space| ty.shape.with_rows(extents.rows(space)),
        );
        let elements = shape.elements();
        Tensor::real(shape, vec![0.0; elements])
    };
    graph.outputs().iter().map(empty).collect()
}

/// f32 values of scratch that any step of the graph needs at full capacity.
fn scratch_len(graph: &Graph) -> usize {
    let need = |id| {
        let types = graph.input_types(id);
        match &graph.node(id).op {
            Op::Linear(_) => {
                kernels::linear_scratch(types[0].shape.rows(), types[1].shape.last_axis())
            }
            Op::Attention(attention) => {
                let keys = types[1].rows.map_or(0, |space| graph.spaces.longest(space));
                kernels::attention_scratch(keys, types[0].shape.last_axis() / attention.heads)
            }
            _ => 0,
        }
    };
    graph.nodes().map(need).max().unwrap_or(0)
}
