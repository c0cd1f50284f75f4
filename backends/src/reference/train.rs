//! Training steps by reference semantics: the oracle of every other trainer.

use std::collections::BTreeMap;

use lxpod_ir::ops::{Op, Param, State};
use lxpod_ir::{Graph, Tensor, TensorType, Value, interpret};

use super::bind;
use crate::{
    BackendError, Executable, Feed, Fetch, HostLedger, Hyper, Outputs, Overflow, StepTime,
    TileLedger, Trainable, update_feed,
};

/// What a state that holds a parameter in full precision is called before the binding's text.
const MASTER: &str = "master:";

/// The graphs of a micro-batch and of the update, run by their reference semantics, in f32.
pub struct ReferenceTrainer {
    graph: Graph,
    update: Graph,
    /// Parameters and states, by the names of [`Trainable::persistent`].
    tensors: BTreeMap<String, Tensor<f32>>,
}

impl ReferenceTrainer {
    /// Reads every parameter; states start as zeros, or as the parameter that they are in full
    /// precision. `expected` are the checkpoint's tensors with their shapes.
    ///
    /// # Errors
    /// The source of the weights fails.
    pub fn load(
        graph: Graph,
        update: Graph,
        expected: &[(String, Vec<usize>)],
        fetch: Fetch<'_>,
    ) -> Result<Self, BackendError> {
        let mut trainer = ReferenceTrainer {
            tensors: BTreeMap::new(),
            graph,
            update,
        };
        let parameters = super::Reference::load(trainer.graph.clone(), expected, fetch)?.parameters;
        for graph in [&trainer.graph, &trainer.update] {
            for node in graph.nodes().map(|id| graph.node(id)) {
                let (ty, exact) = (&node.types[0], |param: &Param| {
                    bind(&param.value, |name| parameters.get(name).cloned())
                        .map_err(BackendError::Internal)
                });
                let tensor = match &node.op {
                    Op::Param(param) => exact(param)?,
                    Op::State(state) => match master_of(&trainer.graph, state) {
                        Some(param) => exact(&param)?,
                        None => zeros(ty),
                    },
                    _ => continue,
                };
                let name = persistent_name(&node.op).unwrap_or_default();
                trainer.tensors.insert(name, tensor.round_to(ty.dtype));
            }
        }
        Ok(trainer)
    }

    /// Runs a graph, keeps what it stores, and returns its outputs; stored ones are empty.
    fn run_graph(
        &mut self,
        update: bool,
        feed: &Feed,
        first: bool,
    ) -> Result<Outputs, BackendError> {
        let graph = if update { &self.update } else { &self.graph };
        let given = |op: &Op, ty: &TensorType| match op {
            Op::Input(input) => {
                let missing = || format!("input `{}` is missing", input.name);
                feed.inputs.get(&input.name).cloned().ok_or_else(missing)
            }
            Op::State(state) if state.reset && first && !update => Ok(zeros(ty)),
            op => {
                let name = persistent_name(op).unwrap_or_default();
                let missing = || format!("`{name}` is missing");
                self.tensors.get(&name).cloned().ok_or_else(missing)
            }
        };
        let mut outputs = interpret(graph, &feed.extents, given).map_err(BackendError::Data)?;
        for (output, tensor) in graph.outputs().iter().zip(&mut outputs) {
            if output.is_stored() {
                let empty = Tensor::real([0], Vec::new());
                self.tensors
                    .insert(output.name.clone(), std::mem::replace(tensor, empty));
            }
        }
        Ok(outputs)
    }
}

/// The name under which a leaf's value lasts.
fn persistent_name(op: &Op) -> Option<String> {
    match op {
        Op::Param(param) => Some(lxpod_ir::Output::param_name(&param.value)),
        Op::State(state) => Some(lxpod_ir::Output::state_name(&state.name)),
        _ => None,
    }
}

/// The parameter that a state holds in full precision.
fn master_of(graph: &Graph, state: &State) -> Option<Param> {
    let binding = state.name.strip_prefix(MASTER)?;
    graph.nodes().find_map(|id| match &graph.node(id).op {
        Op::Param(param) if param.value.to_string() == binding => Some(param.clone()),
        _ => None,
    })
}

fn zeros(ty: &TensorType) -> Tensor<f32> {
    Tensor::real(ty.shape.clone(), vec![0.0; ty.shape.elements()])
}

/// The float values that ops compute, in topological order.
fn computed(graph: &Graph) -> Vec<Value> {
    let ops = graph.topo().into_iter();
    let ops = ops.filter(|&id| !graph.node(id).op.is_leaf());
    let values = ops.flat_map(|node| {
        let outputs = 0..graph.node(node).types.len() as u16;
        outputs.map(move |output| Value { node, output })
    });
    values
        .filter(|&value| graph.ty(value).dtype.is_float())
        .collect()
}

impl Executable for ReferenceTrainer {
    fn run(&mut self, feeds: &[Feed], outputs: &mut Vec<Outputs>) -> Result<(), BackendError> {
        let answers: Result<Vec<Outputs>, _> = feeds
            .iter()
            .enumerate()
            .map(|(index, feed)| self.run_graph(false, feed, index == 0))
            .collect();
        *outputs = answers?;
        Ok(())
    }

    fn ledger(&self) -> Vec<TileLedger> {
        Vec::new()
    }

    fn step_times(&self) -> Vec<StepTime> {
        Vec::new()
    }

    fn host(&self) -> HostLedger {
        let bytes = |tensor: &Tensor<f32>| size_of_val(tensor.reals()) as u64;
        HostLedger {
            weights: self.tensors.values().map(bytes).sum(),
            ..HostLedger::default()
        }
    }

    fn description(&self) -> String {
        "reference: plain loops, 1 thread".to_owned()
    }
}

impl Trainable for ReferenceTrainer {
    fn step(
        &mut self,
        feeds: &[Feed],
        hyper: &Hyper,
        outputs: &mut Vec<Outputs>,
        update: &mut Outputs,
    ) -> Result<(), BackendError> {
        self.run(feeds, outputs)?;
        let feed = update_feed(&self.update, hyper);
        *update = self.run_graph(true, &feed, false)?;
        Ok(())
    }

    fn first_overflow(&mut self, feeds: &[Feed]) -> Result<Option<Overflow>, BackendError> {
        let own = self.graph.clone();
        let values = computed(&own);
        for (index, &value) in values.iter().enumerate() {
            self.graph.add_output(&format!("watched:{index}"), value);
        }
        let mut runs = Vec::new();
        let run = self.run(feeds, &mut runs);
        self.graph = own;
        run?;
        let found = runs.iter().enumerate().find_map(|(micro_batch, outputs)| {
            let mut watched = outputs[self.graph.outputs().len()..].iter();
            let is_finite = |tensor: &Tensor<f32>| tensor.reals().iter().all(|x| x.is_finite());
            let index = watched.position(|tensor| !is_finite(tensor))?;
            Some(Overflow::new(&self.graph, values[index], micro_batch))
        });
        Ok(found)
    }

    fn persistent(&self) -> Vec<(String, Tensor<f32>)> {
        let lasting = |name: &&String| !name.starts_with("state:acc:");
        let names = self.tensors.keys().filter(lasting);
        names
            .map(|name| (name.clone(), self.tensors[name].clone()))
            .collect()
    }

    fn restore(&mut self, name: &str, tensor: &Tensor<f32>) -> Result<(), BackendError> {
        let missing = || BackendError::Data(format!("the plan has no `{name}`"));
        let kept = self.tensors.get_mut(name).ok_or_else(missing)?;
        if kept.shape != tensor.shape {
            let (shape, given) = (&kept.shape, &tensor.shape);
            return Err(BackendError::Data(format!(
                "`{name}` is {given}, the plan's is {shape}"
            )));
        }
        *kept = tensor.clone();
        Ok(())
    }
}
