//! The fast CPU backend; the only home of SIMD.
//!
//! Loading a plan packs its parameters and resolves its steps; a run is one parallel region in which
//! every worker walks the same schedule, does its share of each step and meets the others where it must. Tiles are
//! time-sliced on one team: each has its own arena at planned offsets, and transfers copy between
//! arenas.

mod affinity;
mod arena;
mod definition;
mod exec;
mod exec_grad;
mod exec_update;
mod host;
pub mod kernels;
mod meetings;
mod members;
mod operand;
mod persistent;
mod reduce;
mod squares;
mod step;
mod store;
mod team;
mod trace;
mod train;
mod visit;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use lxpod_ir::ops::Op;
use lxpod_ir::{Data, Extents, Graph, Tensor};
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::Schedule;

pub use store::PackedWeights;

use crate::{
    BackendError, Executable, Feed, Fetch, HostLedger, Outputs, Overflow, StepTime, TileLedger,
};
use arena::Arena;
use exec_update::Updating;
use kernels::{Kernels, Scratch};
use members::Members;
use reduce::Sums;
use squares::Squares;
use step::CpuProgram;
use store::{Form, Store};
use team::Team;
use trace::TileTrace;
use train::{Accumulated, Gather, Repack};
use visit::{Cell, Visit};

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
    /// By tile of a replica, as the plan's programs.
    programs: Vec<Vec<CpuProgram>>,
    /// By replica, then tile.
    arenas: Vec<Vec<Arena>>,
    scratch: Vec<Mutex<Scratch>>,
    /// What workers leave for each other within a step of the update.
    sums: Sums,
    /// What the products of a step leave for its update.
    squares: Squares,
    /// By tile of all replicas.
    traces: Vec<Mutex<TileTrace>>,
    /// The schedules played so far, by whether they train and their number of visits.
    plays: BTreeMap<(bool, usize), Vec<Play>>,
    /// The outputs of the run in progress: feed after feed.
    results: Vec<Cell>,
    /// By replica, then visit: the extents of its members, where visits may have several.
    joined: Vec<Vec<Extents>>,
    /// By tile of a replica, then step: the last run's times over all replicas and micro-batches. They are the first worker's, and
    /// waiting for the others belongs to the step before.
    times: Mutex<Vec<Vec<Duration>>>,
    /// Weights that are packed anew after an update.
    repacks: Vec<Repack>,
    /// The accumulators of a replica, in blocks.
    accumulators: Vec<Accumulated>,
    /// The parameters that replicas update a share of each, in blocks.
    gathers: Vec<Gather>,
    weight_bytes: u64,
    guard: bool,
}

/// One program for the micro-batches of one visit.
#[derive(Clone, Copy)]
struct Play {
    tile: usize,
    program: usize,
    visit: usize,
}

impl Cpu {
    /// Loads a plan's parameters and makes it ready to run. What `packed` holds already is not read again;
    /// it must be of the checkpoint that `fetch` reads.
    ///
    /// # Errors
    /// The source of the weights fails, `LXPOD_ISA` names no kernel table, or the plan holds an op
    /// without a kernel.
    pub fn load(
        plan: Plan,
        fetch: Fetch<'_>,
        packed: &PackedWeights,
        options: CpuOptions,
    ) -> Result<Self, BackendError> {
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
        let first_axis = |(name, shape): &(String, Vec<usize>)| {
            (name.clone(), shape.first().copied().unwrap_or(1))
        };
        let expected = plan.provenance.expected.iter();
        let rows: BTreeMap<String, usize> = expected.map(first_axis).collect();
        let tensor_rows = |name: &str| rows.get(name).copied().unwrap_or(0);
        let updated = plan.update.is_some();
        let wanted = |form| !updated || matches!(form, Form::Panels { .. });
        let store = with_threads(team.workers(), || {
            Store::load(&plan.graph, &wanted, &tensor_rows, fetch, packed)
        })?;
        let programs: Result<Vec<Vec<CpuProgram>>, _> = (0..plan.tiles.len())
            .map(|tile| step::resolve(&plan, tile, &store))
            .collect();
        let mut programs = programs?;
        check_outputs(&plan.graph, &programs)?;
        let new_arena = |tile| {
            let range = trace::arena_range(tile, updated);
            Arena::new(range.start, range.end)
        };
        let new_arenas = |_| plan.tiles.iter().map(new_arena).collect();
        let arenas: Result<Vec<Vec<Arena>>, String> = (0..plan.replicas).map(new_arenas).collect();
        let graphs = [&plan.graph].into_iter().chain(&plan.update);
        let scratch = graphs.map(|graph| scratch_len(graph, plan.group)).max();
        let scratch = scratch.unwrap_or(0);
        let no_times = |programs: &Vec<CpuProgram>| {
            let steps = programs.iter().map(|program| program.steps.len());
            vec![Duration::ZERO; steps.sum()]
        };
        let mut cpu = Cpu {
            arenas: arenas.map_err(BackendError::Unsupported)?,
            scratch: (0..team.workers())
                .map(|_| Mutex::new(Scratch::new(scratch)))
                .collect(),
            traces: (0..plan.replicas * plan.tiles.len())
                .map(|_| Mutex::default())
                .collect(),
            times: Mutex::new(programs.iter().map(no_times).collect()),
            repacks: if updated {
                Repack::all(&plan, &mut programs)
            } else {
                Vec::new()
            },
            accumulators: Accumulated::all(&plan),
            gathers: Gather::all(&plan),
            plays: BTreeMap::new(),
            results: Vec::new(),
            joined: Vec::new(),
            sums: Sums::of(plan.update.as_ref()),
            squares: Squares::link(&mut programs, plan.replicas, team.workers()),
            weight_bytes: store.bytes(),
            guard: options.guard,
            plan,
            kernels,
            team,
            programs,
        };
        if updated {
            cpu.load_persistent(&tensor_rows, fetch)?;
        }
        Ok(cpu)
    }

    /// The plan's schedule over so many visits: both halves, or the forward one alone.
    fn plays(plan: &Plan, training: bool, visits: usize) -> Vec<Play> {
        let schedule = Schedule {
            training,
            ..plan.schedule.clone()
        };
        let play = |slot: lxpod_passes::schedule::Slot| Play {
            tile: slot.tile,
            program: plan.tiles[slot.tile]
                .program(slot.stage, slot.phase)
                .expect("every stage has a program for every phase of the schedule"),
            visit: slot.micro_batch,
        };
        let slots = schedule.slots(visits);
        slots.into_iter().map(play).collect()
    }

    /// Micro-batches of a replica among so many feeds, dealt in turn.
    fn own(&self, replica: usize, feeds: usize) -> usize {
        feeds.saturating_sub(replica).div_ceil(self.plan.replicas)
    }

    /// Visits that a replica's micro-batches among so many feeds take.
    fn visits(&self, replica: usize, feeds: usize) -> usize {
        self.own(replica, feeds).div_ceil(self.plan.group)
    }

    /// The first feed of a visit.
    fn first_feed(&self, replica: usize, visit: usize) -> usize {
        visit * self.plan.group * self.plan.replicas + replica
    }

    /// The micro-batches of a visit.
    fn members<'a>(&'a self, replica: usize, visit: usize, feeds: &'a [Feed]) -> Members<'a> {
        let (plan, own) = (&self.plan, self.own(replica, feeds.len()));
        let first = visit * plan.group;
        let feeds = &feeds[self.first_feed(replica, visit)..];
        let joined = self.joined.get(replica).map(|visits| &visits[visit]);
        Members {
            spaces: &plan.graph.spaces,
            feeds,
            every: plan.replicas,
            count: plan.group.min(own - first),
            joined: joined.unwrap_or(&feeds[0].extents),
            visit,
            first,
        }
    }

    /// Plays the schedule of one replica over its feeds, every `replicas`-th: both halves, or the
    /// forward one alone. `overflow`, where given, gets the first value that is not finite.
    fn play(
        &self,
        replica: usize,
        training: bool,
        feeds: &[Feed],
        overflow: Option<&Mutex<Option<Overflow>>>,
    ) -> Result<(), BackendError> {
        let plays = &self.plays[&(training, self.visits(replica, feeds.len()))];
        let outputs = self.plan.graph.outputs().len();
        let failure = Mutex::new(None);
        self.team.run(&|worker| {
            let mut scratch = lock(&self.scratch[worker.index]);
            for play in plays {
                let first = self.first_feed(replica, play.visit);
                let visit = Visit {
                    cpu: self,
                    replica,
                    tile: play.tile,
                    program: play.program,
                    members: self.members(replica, play.visit, feeds),
                    results: &self.results[first * outputs..],
                    outputs,
                    failure: &failure,
                    overflow,
                };
                visit.run(worker, &mut scratch)?;
            }
            Ok(())
        });
        first_failure(failure)
    }

    /// Checks feeds, and makes ready what playing a schedule over them needs.
    fn prepare(
        &mut self,
        training: bool,
        feeds: &[Feed],
        outputs: &mut Vec<Outputs>,
    ) -> Result<(), BackendError> {
        for feed in feeds {
            check_feed(&self.plan.graph, feed)?;
        }
        for replica in 0..self.plan.replicas {
            let visits = self.visits(replica, feeds.len());
            let plan = &self.plan;
            if training {
                plan.schedule.check(visits).map_err(BackendError::Data)?;
            }
            let plays = self.plays.entry((training, visits));
            plays.or_insert_with(|| Cpu::plays(plan, training, visits));
        }
        self.join_extents(feeds);
        outputs.resize_with(feeds.len(), Outputs::new);
        self.results.clear();
        for (feed, outputs) in feeds.iter().zip(outputs) {
            shape_outputs(&self.plan.graph, &feed.extents, outputs);
            self.results.extend(outputs.iter_mut().map(Cell::new));
        }
        let mut times = lock(&self.times);
        times
            .iter_mut()
            .flatten()
            .for_each(|time| *time = Duration::ZERO);
        Ok(())
    }

    /// Adds up the rows of the members of each visit. A visit of one micro-batch has its extents.
    fn join_extents(&mut self, feeds: &[Feed]) {
        self.joined.clear();
        if self.plan.group == 1 {
            return;
        }
        let visits = |replica| {
            let extents = |visit: usize| {
                let own = feeds.iter().skip(self.first_feed(replica, visit));
                let own = own.step_by(self.plan.replicas).take(self.plan.group);
                Extents::joined(&self.plan.graph.spaces, own.map(|feed| &feed.extents))
            };
            (0..self.visits(replica, feeds.len()))
                .map(extents)
                .collect()
        };
        self.joined = (0..self.plan.replicas).map(visits).collect();
    }
}

fn first_failure(failure: Mutex<Option<BackendError>>) -> Result<(), BackendError> {
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Runs ordinary parallel work on that many threads.
fn with_threads<T: Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, BackendError> + Send,
) -> Result<T, BackendError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool =
        pool.map_err(|error| BackendError::Unsupported(format!("{threads} threads: {error}")))?;
    pool.install(work)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Executable for Cpu {
    fn run(&mut self, feeds: &[Feed], outputs: &mut Vec<Outputs>) -> Result<(), BackendError> {
        let training = self.plan.schedule.training && self.plan.update.is_none();
        self.prepare(training, feeds, outputs)?;
        (0..self.plan.replicas).try_for_each(|replica| self.play(replica, training, feeds, None))
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
        let mut found = Vec::new();
        for ((tile, programs), times) in self.programs.iter().enumerate().zip(times.iter()) {
            for (index, program) in programs.iter().enumerate() {
                let planned = &self.plan.tiles[tile].programs[index];
                let timed = program.steps.iter().zip(&times[program.first..]);
                found.extend(timed.map(|(step, &time)| StepTime {
                    stage: planned.stage,
                    phase: planned.phase,
                    node: step.node,
                    time,
                }));
            }
        }
        found
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

/// Checks that each output of the graph that the host reads is handed out by exactly one program.
fn check_outputs(graph: &Graph, programs: &[Vec<CpuProgram>]) -> Result<(), BackendError> {
    let outputs = graph.outputs().iter().enumerate();
    for (index, output) in outputs.filter(|(_, output)| !output.is_stored()) {
        let stores = programs
            .iter()
            .flatten()
            .flat_map(|program| &program.stores);
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
        let expected = ty.shape_at(&feed.extents);
        if tensor.shape != expected || ty.dtype.is_float() != matches!(tensor.data, Data::Real(_)) {
            return Err(BackendError::Data(format!(
                "input `{}` is {}, expected {} {}",
                input.name, tensor.shape, ty.dtype, expected
            )));
        }
    }
    Ok(())
}

/// Gives each output its run-time shape; its elements are anything. Allocates only what is larger than
/// ever before.
fn shape_outputs(graph: &Graph, extents: &Extents, outputs: &mut Outputs) {
    outputs.resize_with(graph.outputs().len(), || Tensor::real([0], Vec::new()));
    for (output, tensor) in graph.outputs().iter().zip(outputs) {
        if output.is_stored() {
            continue;
        }
        tensor.shape = graph.ty(output.value).shape_at(extents);
        let elements = tensor.shape.elements();
        match &mut tensor.data {
            Data::Real(values) => values.resize(elements, 0.0),
            data @ Data::Int(_) => *data = Data::Real(vec![0.0; elements]),
        }
    }
}

/// f32 values of scratch that any step of the graph needs for so many micro-batches at full capacity.
fn scratch_len(graph: &Graph, group: usize) -> usize {
    let need = |id| {
        let types = graph.input_types(id);
        match &graph.node(id).op {
            Op::Linear(_) => {
                let rows = types[0].shape.rows() * group;
                kernels::linear_scratch(rows, types[1].shape.last_axis())
            }
            Op::Attention(attention) => {
                let keys = types[1].rows.map_or(0, |space| graph.spaces.longest(space));
                kernels::attention_scratch(keys, types[0].shape.last_axis() / attention.heads)
            }
            Op::CrossEntropy(_) | Op::SmoothL1(_) => types[0].shape.rows(),
            _ => {
                let gradient = exec_grad::Gradient::scratch(graph, id, group);
                gradient.max(Updating::scratch(graph, id))
            }
        }
    };
    graph.nodes().map(need).max().unwrap_or(0)
}
