//! Steps with everything resolved that does not change between runs.

use std::ops::Range;
use std::sync::Arc;

use lxpod_ir::ops::{Attention, Dropout, Op, Reduction};
use lxpod_ir::{DType, Graph, Layout, NodeId, SpaceId, Spaces, TensorType, Value, sharding};
use lxpod_passes::accumulate::ACCUMULATOR;
use lxpod_passes::plan::{Buffer, Place, Plan, Program};
use lxpod_passes::schedule::Phase;

use super::definition::Definition;
use super::exec_grad::Gradient;
use super::exec_update::Updating;
use super::host::HostValue;
use super::kernels::Panels;
use super::meetings;
use super::members::Turns;
use super::operand::{Operand, Role};
use super::store::{Form, Resident, Store};
use crate::BackendError;

/// An operand of a step: in the arena, or resident.
#[derive(Clone)]
pub(super) enum Source {
    /// Computed or fed.
    Arena(Operand),
    /// A parameter or constant.
    Resident(Resident),
}

/// What a step does.
#[derive(Clone, Debug)]
pub(super) enum Kernel {
    /// `linear`.
    Linear(Option<lxpod_ir::ops::Activation>),
    /// `attention`, and the segments' space of queries and keys.
    Attention(Attention, SpaceId, SpaceId),
    /// `layer_norm` with that eps.
    LayerNorm(f32),
    /// `dropout`.
    Dropout(Arc<Dropping>),
    /// `gather_rows`.
    Gather,
    /// `concat` of rows (`false`) or columns (`true`).
    Concat(bool),
    /// `add`.
    Add,
    /// `scale`.
    Scale(f32),
    /// `activate`.
    Activate(lxpod_ir::ops::Activation),
    /// `cast` and `transfer`.
    Copy,
    /// `cross_entropy`.
    CrossEntropy(Reduction),
    /// `bce` with that factor.
    Bce(f32),
    /// `smooth_l1`.
    SmoothL1,
    /// An op without a kernel.
    Definition(Arc<Definition>),
    /// A step of the backward half.
    Gradient(Gradient),
    /// A step of the update.
    Updating(Updating),
}

/// A `dropout`, and what its rows belong to.
#[derive(Debug)]
pub(super) struct Dropping {
    pub dropout: Dropout,
    pub spaces: Spaces,
    pub rows: SpaceId,
}

/// One step, ready to run.
#[derive(Clone)]
pub(super) struct CpuStep {
    /// The node, for messages and profiles.
    pub node: NodeId,
    /// What to do.
    pub kernel: Kernel,
    /// How it does that for several micro-batches.
    pub turns: Turns,
    /// The operands.
    pub inputs: Vec<Source>,
    /// The tile addresses of the parameters among the operands that it reads in forms of their own.
    pub parameters: Vec<Range<u64>>,
    /// The results.
    pub outputs: Vec<Operand>,
    /// The operand that reads as zeros in the first micro-batch of a step, when its bytes are still the last step's.
    pub reset: Option<usize>,
    /// How many replicas share the step's work out; 1 if each does all of it.
    pub shards: usize,
    /// Where the parameter that it updates is packed, if it packs it anew.
    pub packs: Option<Arc<Panels>>,
    /// Whether workers meet before the next step.
    pub meets: bool,
    /// The number that [`Squares`](super::squares::Squares) has for the gradient that it finishes or reads, if any.
    pub gradient: Option<usize>,
}

/// One program, ready to run.
pub(super) struct CpuProgram {
    /// The number of its first step in the tile.
    pub first: usize,
    /// Written by the host before the steps.
    pub loads: Vec<HostValue>,
    /// The steps.
    pub steps: Vec<CpuStep>,
    /// Read by the host after the steps.
    pub stores: Vec<HostValue>,
}

/// Resolves the programs of one tile.
pub(super) fn resolve(
    plan: &Plan,
    tile: usize,
    store: &Store,
) -> Result<Vec<CpuProgram>, BackendError> {
    let programs = &plan.tiles[tile].programs;
    let first = plan.tiles[tile].first_steps();
    let resolve = |(program, &first): (&Program, &usize)| {
        let graph = plan.graph_of(program.phase);
        let resolver = Resolver {
            plan,
            graph,
            phases: plan.phases(program.phase),
            gradients: graph.has_backward(),
            program,
            tile,
            store,
        };
        let steps: Result<Vec<CpuStep>, _> = program
            .steps
            .iter()
            .map(|step| resolver.step(step))
            .collect();
        let mut steps = steps?;
        meetings::plan(&mut steps);
        Ok(CpuProgram {
            first,
            loads: resolver.loads(),
            stores: resolver.stores(&steps),
            steps,
        })
    };
    programs.iter().zip(&first).map(resolve).collect()
}

/// Resolves the steps of one program.
pub(super) struct Resolver<'a> {
    pub plan: &'a Plan,
    pub graph: &'a Graph,
    /// The phase of each of the graph's nodes.
    phases: Vec<Phase>,
    /// Whether it has a backward half.
    gradients: bool,
    pub program: &'a Program,
    pub tile: usize,
    store: &'a Store,
}

impl Resolver<'_> {
    pub(super) fn graph(&self) -> &Graph {
        self.graph
    }

    /// Whether a step reads a parameter where the update writes it, not in a form of its own.
    fn reads_in_place(&self, value: Value, form: Form) -> bool {
        let is_param = matches!(self.graph.node(value.node).op, Op::Param(_));
        is_param && self.plan.update.is_some() && !matches!(form, Form::Panels { .. })
    }

    fn step(&self, step: &lxpod_passes::plan::Step) -> Result<CpuStep, BackendError> {
        let node = step.id(self.graph());
        let op = &self.graph().node(node).op;
        let mut parameters = Vec::new();
        let mut inputs = Vec::new();
        for (input, (value, place)) in self
            .graph()
            .inputs(node)
            .into_iter()
            .zip(&step.inputs)
            .enumerate()
        {
            let form = Form::of(op, input, self.gradients);
            let resident = matches!(
                self.graph().node(value.node).op,
                Op::Param(_) | Op::Constant(_)
            );
            if resident && !self.reads_in_place(value, form) {
                let resident = self.store.get(self.graph(), value.node, form)?;
                let dtype = self.graph().ty(value).dtype;
                let start = self.plan.tiles[self.tile].buffers[place.buffer].offset;
                parameters.push(start..start + resident.logical_bytes(dtype));
                inputs.push(Source::Resident(resident));
            } else {
                inputs.push(Source::Arena(self.operand(value, place, self.tile)));
            }
        }
        self.check_operands(node, &inputs)?;
        let schedule = &self.plan.schedule;
        let receiver = step
            .receiver(self.graph())
            .map(|stage| schedule.tile_of(stage));
        let receiver = receiver.unwrap_or(self.tile);
        let output = |(output, place): (usize, &Place)| {
            self.operand(
                Value {
                    node,
                    output: output as u16,
                },
                place,
                receiver,
            )
        };
        let outputs: Vec<Operand> = step.outputs.iter().enumerate().map(output).collect();
        let kernel = self.kernel(node)?;
        let turns = Turns::of(&kernel, &inputs, &outputs);
        self.check_turns(node, turns)?;
        Ok(CpuStep {
            node,
            kernel,
            turns,
            inputs,
            parameters,
            outputs,
            reset: self.reset(node)?,
            shards: sharding::operand_shards(self.graph(), node),
            packs: None,
            meets: true,
            gradient: None,
        })
    }

    /// Checks that each micro-batch has its rows end to end where a step takes one after the other.
    fn check_turns(&self, node: NodeId, turns: Turns) -> Result<(), BackendError> {
        let graph = self.graph;
        let given = graph.input_types(node);
        let types = graph.node(node).types.iter().chain(&given);
        let mut spaces = types.filter_map(|ty| ty.rows);
        let is_union = |space| matches!(graph.spaces.get(space).layout, Layout::Union(_));
        if turns != Turns::InTurn || self.plan.group == 1 || !spaces.any(is_union) {
            return Ok(());
        }
        Err(BackendError::Unsupported(format!(
            "`{}` over rows of several kinds in a plan with --group {} on the CPU",
            graph.node(node).op.name(),
            self.plan.group
        )))
    }

    /// The operand of a node that is a resetting state, read by a program of micro-batches.
    fn reset(&self, node: NodeId) -> Result<Option<usize>, BackendError> {
        let resets = |value: &Value| {
            let root = &self.graph.node(self.root(*value).node).op;
            matches!(root, Op::State(state) if state.reset)
        };
        let inputs = self.graph.inputs(node);
        let reset = inputs
            .iter()
            .position(resets)
            .filter(|_| self.program.phase != Phase::Update);
        match (&self.graph.node(node).op, reset) {
            (_, None) => Ok(None),
            (Op::WeightGrad(_) | Op::ScatterAddRows(_), Some(2))
            | (Op::SumRows(_), Some(1))
            | (Op::Add(_), Some(_)) => Ok(reset),
            (op, Some(_)) => Err(BackendError::Unsupported(format!(
                "a state that resets as an operand of `{}` on the CPU",
                op.name()
            ))),
        }
    }

    /// Checks what the kernels take for granted beyond the type rules: weights of linears are
    /// parameters, vectors are parameters or lie in the arena as f32, and what an update reads has no gaps.
    fn check_operands(&self, node: NodeId, inputs: &[Source]) -> Result<(), BackendError> {
        let op = &self.graph().node(node).op;
        let vectors: &[usize] = match op {
            Op::Linear(_) => &[2],
            Op::LayerNorm(_) => &[1, 2],
            Op::Attention(_) => &[3],
            Op::CrossEntropy(_) | Op::SmoothL1(_) | Op::LayerNormGrad(_) => &[2],
            Op::CrossEntropyGrad(_) | Op::SmoothL1Grad(_) => &[3],
            Op::AttentionGrad(_) => &[4],
            _ => &[],
        };
        let is_f32 = |input: &usize| match inputs.get(*input) {
            Some(Source::Arena(operand)) => operand.dtype == DType::F32 && operand.is_dense(),
            Some(Source::Resident(Resident::Vector(_))) | None => true,
            Some(Source::Resident(_)) => false,
        };
        let weight = inputs
            .get(1)
            .is_some_and(|w| matches!(w, Source::Resident(Resident::Panels(_))));
        let has_gaps = |source: &Source| match source {
            Source::Arena(operand) => operand.capacity > 1 && !operand.is_dense(),
            Source::Resident(_) => false,
        };
        let gaps = Updating::of(self.graph(), node).is_some() && inputs.iter().any(has_gaps);
        if !vectors.iter().all(is_f32) || (matches!(op, Op::Linear(_)) && !weight) || gaps {
            return Err(BackendError::Unsupported(format!(
                "these operands of `{}` on the CPU",
                op.name()
            )));
        }
        Ok(())
    }

    pub(super) fn operand(&self, value: Value, place: &Place, tile: usize) -> Operand {
        let ty = self.graph().ty(value);
        let buffer = &self.plan.tiles[tile].buffers[place.buffer];
        let root = self.root(value);
        let role = self.role(root);
        let shards = sharding::shards(self.graph, value);
        if role == Role::Optimizer && shards > 1 {
            let columns = sharding::largest_shard(ty.shape.elements(), shards);
            return Operand {
                capacity: 1,
                columns,
                stride: columns,
                ..self.whole(ty, place, buffer, tile, role)
            };
        }
        let shared = matches!(role, Role::Weight | Role::Optimizer | Role::Accumulator);
        let copied = !shared && self.program.phase != Phase::Update && ty.rows.is_none();
        Operand {
            copy: if copied {
                self.graph.ty(root).bytes() as u64
            } else {
                0
            },
            ..self.whole(ty, place, buffer, tile, role)
        }
    }

    /// [`Resolver::operand`] of a value that micro-batches share.
    fn whole(
        &self,
        ty: &TensorType,
        place: &Place,
        buffer: &Buffer,
        tile: usize,
        role: Role,
    ) -> Operand {
        Operand {
            tile,
            offset: buffer.offset,
            end: buffer.offset + buffer.slot_stride() * u64::from(buffer.slots),
            slots: (buffer.slots as usize, buffer.slot_stride()),
            buffer: place.buffer,
            role,
            dtype: ty.dtype,
            rows: ty.rows,
            capacity: ty.shape.rows(),
            columns: ty.shape.row_elements(),
            column: place.column,
            stride: place.stride,
            after: place.after.clone(),
            copy: 0,
        }
    }

    /// What the bytes of a value are to its tile.
    fn role(&self, root: Value) -> Role {
        let stored = self
            .graph
            .outputs()
            .iter()
            .find(|output| output.value == root);
        let stored = stored.and_then(|output| self.stored_role(output));
        match &self.graph.node(root.node).op {
            Op::Input(_) => Role::HostIo,
            Op::Param(_) => Role::Weight,
            Op::State(state) if state.name.starts_with(ACCUMULATOR) => Role::Accumulator,
            Op::State(_) => Role::Optimizer,
            _ if stored.is_some() => stored.unwrap_or(Role::Weight),
            _ if self.leaves(root) => Role::HostIo,
            _ if self.is_stashed(root) => Role::Stash,
            Op::Transfer(_) => Role::Received,
            _ => Role::Activation,
        }
    }

    /// What a stored output is stored over.
    fn stored_role(&self, output: &lxpod_ir::Output) -> Option<Role> {
        match output.stored_state() {
            Some(name) if name.starts_with(ACCUMULATOR) => Some(Role::Accumulator),
            Some(_) => Some(Role::Optimizer),
            None => output.stored_param().map(|_| Role::Weight),
        }
    }

    /// Whether a program of another phase reads the value, directly or through views.
    fn is_stashed(&self, value: Value) -> bool {
        let own = self.phases[value.node.index()];
        self.graph.users(value).iter().any(|user| {
            let view = self.graph.node(user.node).op.is_view();
            self.phases[user.node.index()] != own
                || (view && self.is_stashed(self.graph.value(user.node)))
        })
    }

    /// The value whose storage a view names.
    pub(super) fn root(&self, value: Value) -> Value {
        match &self.graph().node(value.node).op {
            op if op.is_view() => self.root(self.graph().inputs(value.node)[0]),
            _ => value,
        }
    }

    /// Whether the host reads the value, or a view of it.
    fn leaves(&self, value: Value) -> bool {
        let mut outputs = self.graph.outputs().iter();
        outputs.any(|output| output.value == value && !output.is_stored())
            || self.graph().users(value).iter().any(|user| {
                self.graph().node(user.node).op.is_view()
                    && self.leaves(self.graph().value(user.node))
            })
    }

    fn kernel(&self, node: NodeId) -> Result<Kernel, BackendError> {
        let types = self.graph().input_types(node);
        let define = || Kernel::Definition(Arc::new(Definition::of(self.graph(), node)));
        let internal = |what: &str| BackendError::Internal(what.to_owned());
        let unsupported = |what: &str| Err(BackendError::Unsupported(format!("{what} on the CPU")));
        Ok(match &self.graph().node(node).op {
            Op::Linear(linear) => Kernel::Linear(linear.activation),
            Op::Attention(attention) => match (types[0].rows, types[1].rows) {
                (Some(query), Some(key)) => Kernel::Attention(attention.clone(), query, key),
                _ => return unsupported("attention without row spaces"),
            },
            Op::LayerNorm(norm) => Kernel::LayerNorm(norm.eps as f32),
            Op::GatherRows(_) => Kernel::Gather,
            Op::Concat(concat) if concat.axis == 0 => Kernel::Concat(false),
            Op::Concat(concat) if concat.axis == 1 && types[0].shape.len() == 2 => {
                Kernel::Concat(true)
            }
            Op::Concat(_) => define(),
            Op::Add(_) => Kernel::Add,
            Op::Scale(scale) => Kernel::Scale(scale.factor),
            Op::Activate(activate) => Kernel::Activate(activate.kind),
            Op::Cast(_) | Op::Transfer(_) => match Updating::of(self.graph(), node) {
                Some(updating) => Kernel::Updating(updating),
                None => Kernel::Copy,
            },
            Op::CrossEntropy(loss) => Kernel::CrossEntropy(loss.reduction),
            Op::Bce(loss) => Kernel::Bce(loss.factor),
            Op::SmoothL1(_) => Kernel::SmoothL1,
            Op::Dropout(dropout) => Kernel::Dropout(Arc::new(Dropping {
                dropout: dropout.clone(),
                spaces: self.graph().spaces.clone(),
                rows: types[0]
                    .rows
                    .ok_or_else(|| internal("a `dropout` in no row space"))?,
            })),
            Op::SumSquares(_)
            | Op::Histogram(_)
            | Op::Clip(_)
            | Op::Sgd(_)
            | Op::Adam(_)
            | Op::TrustRatio(_)
            | Op::Lamb(_) => {
                let updating = Updating::of(self.graph(), node);
                Kernel::Updating(updating.ok_or_else(|| internal("an op of another kind"))?)
            }
            Op::Zeros(_)
            | Op::Matmul(_)
            | Op::WeightGrad(_)
            | Op::SumRows(_)
            | Op::ScatterAddRows(_)
            | Op::ActivateGrad(_)
            | Op::AttentionGrad(_)
            | Op::LayerNormGrad(_)
            | Op::CrossEntropyGrad(_)
            | Op::BceGrad(_)
            | Op::SmoothL1Grad(_) => match Gradient::of(self.graph(), node) {
                Some(gradient) => Kernel::Gradient(gradient),
                None => return unsupported("attention without row spaces"),
            },
            Op::Input(_)
            | Op::Param(_)
            | Op::State(_)
            | Op::Constant(_)
            | Op::Slice(_)
            | Op::Part(_) => {
                return Err(internal("a step of a leaf or a view"));
            }
        })
    }
}
