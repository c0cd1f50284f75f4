//! A session: a plan with its weights, ready to answer.

use std::ops::Range;
use std::time::{Duration, Instant};

use lxpod_backends::cpu::{Cpu, CpuOptions, PackedWeights};
use lxpod_backends::reference::Reference;
use lxpod_backends::{
    BackendError, Executable, Feed, HostLedger, Outputs, SourceError, StepTime, TileLedger,
};
use lxpod_ir::front::PretrainingLoss;
use lxpod_ir::ops::Op;
use lxpod_ir::{Extents, Graph, Shape, Tensor, gradients_by_tensor};
use lxpod_passes::autodiff::LOSS_SCALE;
use lxpod_passes::plan::Plan;

use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::pack::{Dropping, Packer};
use crate::samples::Samples;

/// Which backend runs a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// The plan's programs, fast.
    #[default]
    Cpu,
    /// The plan's graph by its reference semantics, slow.
    Reference,
}

/// How to run a plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// The backend.
    pub backend: BackendKind,
    /// Workers; 0 means one per CPU.
    pub threads: usize,
    /// Whether to check every access against the plan's live buffers.
    pub guard: bool,
    /// The seed that decides what a plan with dropout drops; without one it drops nothing.
    pub dropout: Option<u64>,
}

impl SessionOptions {
    pub(crate) fn cpu(self) -> CpuOptions {
        CpuOptions {
            threads: self.threads,
            guard: self.guard,
        }
    }
}

/// An output in Transformers' name and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name.
    pub name: String,
    /// The shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub values: Vec<f32>,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// Every output that the inputs given determine, in the graph's order.
    pub outputs: Vec<NamedTensor>,
    /// The gradient of the loss for each parameter that has one, by its name; none of an inference
    /// plan.
    pub gradients: Vec<NamedTensor>,
    /// Time of the run, packing and unpacking included.
    pub duration: Duration,
}

impl RunResult {
    /// The output of that name.
    pub fn get(&self, name: &str) -> Option<&NamedTensor> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

/// A plan with its weights.
///
/// ```no_run
/// # use lxpod_runtime::{Model, Samples, Session, SessionOptions, read_tensors};
/// # use lxpod_passes::{CompileOptions, compile};
/// # use lxpod_ir::{Target, front::{AnswerLoss, Task}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::open("path/to/lxmert-gqa", 0)?;
/// let path = std::path::Path::new("inputs.safetensors");
/// let samples = Samples::from_tensors(&read_tensors(path)?, path, &model.config, Task::Qa)?;
/// let options = samples.model_options(Task::Qa, AnswerLoss::CrossEntropy);
/// let options = CompileOptions::new(options, Target::named("pod16")?);
/// let (plan, _) = compile(&model.config, &model.name, &options, &mut |_, _| {})?;
/// let (weights, _) = model.weights(&plan)?;
/// let mut session = Session::new(plan, weights.as_ref(), SessionOptions::default())?;
/// let result = session.run(&samples)?;
/// println!("{:?}", result.get("question_answering_score"));
/// # Ok(())
/// # }
/// ```
pub struct Session {
    graph: Graph,
    executable: Box<dyn Executable>,
    packed: PackedWeights,
    /// The last run's outputs, whose memory the next run uses.
    results: Vec<Outputs>,
    /// The checkpoint's tensors and their shapes.
    expected: Vec<(String, Vec<usize>)>,
    dropping: Option<Dropping>,
}

impl Session {
    /// Loads a plan's weights.
    ///
    /// # Errors
    /// The weights cannot be read, or the backend cannot run the plan.
    pub fn new(plan: Plan, weights: &dyn Weights, options: SessionOptions) -> Result<Session> {
        Session::load(plan, weights, options, PackedWeights::default())
    }

    /// Another plan of the same checkpoint. Weights that both plans want packed the same way are read
    /// and held once.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn beside(
        &self,
        plan: Plan,
        weights: &dyn Weights,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::load(plan, weights, options, self.packed.clone())
    }

    fn load(
        plan: Plan,
        weights: &dyn Weights,
        options: SessionOptions,
        packed: PackedWeights,
    ) -> Result<Session> {
        let graph = plan.graph.clone();
        let expected = plan.provenance.expected.clone();
        let executable = executable(plan, weights, options, &packed)?;
        Ok(Session {
            graph,
            executable,
            packed,
            results: Vec::new(),
            expected,
            dropping: options.dropout.map(|seed| Dropping {
                seed,
                step: 0,
                first: 0,
            }),
        })
    }

    /// Answers samples, in micro-batches of the plan's size.
    ///
    /// # Errors
    /// The samples are larger than the plan's capacities.
    pub fn run(&mut self, samples: &Samples) -> Result<RunResult> {
        let start = Instant::now();
        let packer = Packer::new(&self.graph, samples)?.dropping(self.dropping);
        let mut feeds = packer.feeds()?;
        let mut named = self.graph.outputs().iter();
        if feeds.len() > 1 && named.any(|output| output.gradient_of().is_some()) {
            return Err(Error::Backend(BackendError::Unsupported(
                "gradients over several micro-batches; leave --micro-batch out".to_owned(),
            )));
        }
        let scaled = is_scaled(&self.graph);
        let mut scale = if scaled { MOST_SCALE } else { 1.0 };
        loop {
            if scaled {
                set_loss_scale(&mut feeds, scale);
            }
            self.executable.run(&feeds, &mut self.results)?;
            if scale <= 1.0 || self.are_finite() {
                break;
            }
            scale *= 0.5;
        }
        let outputs = unpack_outputs(&packer, &self.graph, &self.results);
        Ok(RunResult {
            outputs,
            gradients: self.gradients(scale)?,
            duration: start.elapsed(),
        })
    }

    /// Whether no gradient of the last run overflowed.
    fn are_finite(&self) -> bool {
        let values = self.results.iter().flatten();
        let mut values = self.graph.outputs().iter().cycle().zip(values);
        values.all(|(output, tensor)| {
            output.gradient_of().is_none() || tensor.reals().iter().all(|e| e.is_finite())
        })
    }

    /// The gradients of the last run's first micro-batch, by checkpoint tensor; its loss was
    /// multiplied by `scale`, a power of two.
    fn gradients(&self, scale: f32) -> Result<Vec<NamedTensor>> {
        let values = self
            .graph
            .outputs()
            .iter()
            .zip(self.results.iter().flatten());
        let given = values.filter_map(|(output, tensor)| Some((output.gradient_of()?, tensor)));
        let shape = |name: &str| {
            let mut expected = self.expected.iter();
            let found = expected.find(|(other, _)| other == name);
            found.map(|(_, shape)| Shape::new(shape))
        };
        let gradients = gradients_by_tensor(given, shape)
            .map_err(|error| Error::Backend(BackendError::Internal(error)))?;
        let named = gradients.into_iter().map(|(name, tensor)| NamedTensor {
            name,
            shape: tensor.shape.to_vec(),
            values: tensor.reals().iter().map(|e| e / scale).collect(),
        });
        Ok(named.collect())
    }

    /// How many rows each micro-batch of these samples computes.
    ///
    /// # Errors
    /// The samples are larger than the plan's capacities.
    pub fn extents(&self, samples: &Samples) -> Result<Vec<Extents>> {
        let packer = Packer::new(&self.graph, samples)?;
        let micro_batches = packer.micro_batches().into_iter();
        micro_batches
            .map(|range| packer.extents_of(range))
            .collect()
    }

    /// What each tile really used so far.
    pub fn ledger(&self) -> Vec<TileLedger> {
        self.executable.ledger()
    }

    /// How long each step of the plan took in the last run.
    pub fn step_times(&self) -> Vec<StepTime> {
        self.executable.step_times()
    }

    /// What the host really allocated.
    pub fn host(&self) -> HostLedger {
        self.executable.host()
    }

    /// What the plan runs on.
    pub fn description(&self) -> String {
        self.executable.description()
    }
}

/// The loss scale of gradients under mixed precision, before any of them overflows: a power of two,
/// so that dividing by it changes no bit of what did not underflow.
const MOST_SCALE: f32 = 16384.0;

/// Whether micro-batches take the input [`LOSS_SCALE`].
pub(crate) fn is_scaled(graph: &Graph) -> bool {
    graph.nodes().any(|id| match &graph.node(id).op {
        Op::Input(input) => input.name == LOSS_SCALE,
        _ => false,
    })
}

/// Sets the loss scale of micro-batches.
pub(crate) fn set_loss_scale(feeds: &mut [Feed], scale: f32) {
    for feed in feeds {
        let scalar = Tensor::real(Shape::new(&[]), vec![scale]);
        feed.inputs.insert(LOSS_SCALE.to_owned(), scalar);
    }
}

/// What a backend reads parameters with.
pub(crate) fn rows_of(
    weights: &dyn Weights,
) -> impl Fn(&str, Range<usize>, &mut [f32]) -> Result<(), SourceError> {
    |name, rows, out| {
        let read = weights.read_rows(name, rows, out);
        read.map_err(|error| Box::new(error) as SourceError)
    }
}

/// Loads a plan's weights into a backend.
pub(crate) fn executable(
    plan: Plan,
    weights: &dyn Weights,
    options: SessionOptions,
    packed: &PackedWeights,
) -> Result<Box<dyn Executable>> {
    let fetch = rows_of(weights);
    Ok(match options.backend {
        BackendKind::Cpu => Box::new(Cpu::load(plan, &fetch, packed, options.cpu())?),
        BackendKind::Reference => {
            let expected = &plan.provenance.expected;
            Box::new(Reference::load(plan.graph, expected, &fetch)?)
        }
    })
}

/// The outputs of all micro-batches, as [`RunResult::outputs`]; `results` begin with the outputs of
/// `graph`.
pub(crate) fn unpack_outputs(
    packer: &Packer<'_>,
    graph: &Graph,
    results: &[Outputs],
) -> Vec<NamedTensor> {
    let results: Vec<(Range<usize>, &Outputs)> =
        packer.micro_batches().into_iter().zip(results).collect();
    let mut outputs = Vec::new();
    for (index, output) in graph.outputs().iter().enumerate() {
        let read = output.gradient_of().is_none() && !output.is_stored();
        if read && packer.is_known(output.value) {
            let (shape, values) = packer.unpack(index, &results);
            outputs.push(NamedTensor {
                name: output.name.clone(),
                shape,
                values,
            });
        }
    }
    add_pretraining_loss(&mut outputs, results.len());
    outputs
}

/// Adds `loss`, the sum of the parts whose labels were given, where a plan holds more parts than
/// there were labels for, or the parts are means over several micro-batches.
fn add_pretraining_loss(outputs: &mut Vec<NamedTensor>, micro_batches: usize) {
    let part = |kind: PretrainingLoss| {
        let mut named = outputs.iter().filter(|output| output.name == kind.output());
        named.next().map(|output| output.values[0])
    };
    let Some(total) = PretrainingLoss::sum(part, |sum, part| sum + part) else {
        return;
    };
    if micro_batches > 1 {
        outputs.retain(|output| output.name != "loss");
    }
    if !outputs.iter().any(|output| output.name == "loss") {
        outputs.push(NamedTensor {
            name: "loss".to_owned(),
            shape: Vec::new(),
            values: vec![total],
        });
    }
}
