//! The update graph: what happens once per step, after the last micro-batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use lxpod_ir::ops::{
    Adam, Cast, Clip, Concat, Histogram, Input, Lamb, Op, Param, Sgd, State, SumSquares, TrustRatio,
};
use lxpod_ir::random_bits::name_hash;
use lxpod_ir::{Binding, DType, Graph, Output, Shape, Spaces, TensorType, Value};
use serde::{Deserialize, Serialize};

use crate::accumulate::ACCUMULATOR;

/// The input of an update that rounds stochastically: i32 `[2]`, the step's
/// [`rounding_key`](lxpod_ir::random_bits::rounding_key).
pub const ROUNDING_KEY: &str = "rounding_key";
/// The input of an update that counts gradients: what makes a sum over micro-batches their mean.
pub const MEAN: &str = "mean";
/// What the name of the output that counts a parameter's gradient begins with; the binding follows.
pub const HISTOGRAM: &str = "histogram:";

/// The fewest elements of a parameter whose states replicas share out: PopART's
/// `minElementsForReplicatedTensorSharding`. What is smaller costs more to gather than to keep.
const FEWEST_SHARED: usize = 8192;

/// How parameters follow from gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateOptions {
    /// The rule.
    pub optimizer: Optimizer,
    /// The weight decay.
    pub decay: f64,
    /// Whether biases and the parameters of norms decay too.
    pub decay_everything: bool,
    /// The largest norm of all gradients together that is left as it is, if there is one.
    pub max_norm: Option<f64>,
    /// How the first and the second moment are stored. SGD's velocity is a first moment.
    pub moments: [DType; 2],
    /// Whether an f16 parameter has an f32 weight behind it.
    pub masters: bool,
    /// Whether an f16 parameter without one is rounded stochastically.
    pub stochastic: bool,
    /// What the names of tensors begin with that stay as they are.
    pub frozen: Vec<String>,
    /// Counts, for each parameter, the elements of its gradient on either side of this value, if there is one.
    pub histogram_edge: Option<f64>,
    /// How many replicas share out the states of each large parameter; 1 if each keeps all of them.
    pub shards: usize,
}

/// The rule by which an optimiser steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// See [`Adam`].
    Adam {
        /// The shares of the moments that stay.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// See [`Sgd`].
    Sgd {
        /// The share of the velocity that stays.
        momentum: f64,
        /// Whether the step looks ahead by one momentum.
        nesterov: bool,
    },
    /// See [`Lamb`].
    Lamb {
        /// As Adam's.
        betas: [f64; 2],
        /// As Adam's.
        eps: f64,
        /// The largest ratio of a step to its direction, if there is one.
        max_ratio: Option<f64>,
    },
}

/// The graph that updates what a micro-batch graph accumulates gradients for, parameters in name order.
///
/// For each state `acc:B` that `micro` stores, its leaves are the parameter B, the states `acc:B`, `m:B` and,
/// but for SGD, `v:B`, and `master:B` where there is one; its outputs are `param:B` and `state:NAME` of all but the first.
/// Then come a [`HISTOGRAM`] of each gradient, if they are counted, and last `grad_norm`, before clipping, and `factor`, by which
/// gradients were multiplied.
/// Inputs: `scale` and `lr`; `correction1` and `correction2`, but for SGD; [`ROUNDING_KEY`], where
/// something is rounded stochastically; [`MEAN`], where gradients are counted. `tensors` gives the shapes of the checkpoint's tensors.
///
/// # Errors
/// A parameter joins tensors of which one decays or is frozen and another is not; `micro` accumulates what
/// is no parameter of it; or `tensors` lacks a tensor.
pub fn update_graph(
    micro: &Graph,
    tensors: &[(String, Vec<usize>)],
    options: &UpdateOptions,
) -> Result<Graph, String> {
    let mut update = Update {
        graph: Graph::new("update", Spaces::default()),
        options,
        tensors: tensors
            .iter()
            .map(|(name, shape)| (&**name, &**shape))
            .collect(),
        inputs: BTreeMap::new(),
    };
    let mut weights = Vec::new();
    for (binding, accumulator) in accumulated(micro) {
        weights.extend(update.weight(micro, binding, accumulator)?);
    }
    let [factor, norm] = update.factor(&weights)?;
    for weight in &weights {
        update.step(weight, factor)?;
    }
    if let Some(edge) = options.histogram_edge {
        update.count(&weights, edge)?;
    }
    update.graph.add_output("grad_norm", norm);
    update.graph.add_output("factor", factor);
    Ok(update.graph)
}

/// The bindings whose gradients a graph accumulates, in order of their text, and the types of the sums.
fn accumulated(micro: &Graph) -> BTreeMap<&str, TensorType> {
    let stored = micro.outputs().iter().filter_map(|output| {
        let binding = output.stored_state()?.strip_prefix(ACCUMULATOR)?;
        Some((binding, micro.ty(output.value).clone()))
    });
    stored.collect()
}

/// One parameter.
struct Weight {
    binding: Binding,
    scope: Arc<str>,
    /// The parameter itself.
    leaf: Value,
    /// The f32 weight behind it, if it has one.
    master: Option<Value>,
    gradient: Value,
    decay: f64,
    /// How many replicas share its states out.
    shards: usize,
    /// The rows of each tensor in it; empty if it is one.
    parts: Vec<usize>,
}

struct Update<'a> {
    graph: Graph,
    options: &'a UpdateOptions,
    tensors: BTreeMap<&'a str, &'a [usize]>,
    /// The inputs so far, by name.
    inputs: BTreeMap<&'static str, Value>,
}

impl Update<'_> {
    /// The leaves of a parameter; none if it is frozen.
    fn weight(
        &mut self,
        micro: &Graph,
        text: &str,
        accumulator: TensorType,
    ) -> Result<Option<Weight>, String> {
        let binding: Binding = text.parse()?;
        let is_it = |op: &Op| matches!(op, Op::Param(param) if param.value == binding);
        let mut nodes = micro.nodes().map(|id| micro.node(id));
        let param = nodes.find(|node| is_it(&node.op));
        let param = param.ok_or_else(|| format!("no parameter is `{text}`"))?;
        let (ty, scope) = (param.types[0].clone(), param.scope.clone());
        let frozen = |name: &str| {
            self.options
                .frozen
                .iter()
                .any(|start| name.starts_with(start))
        };
        if agreed(&binding, frozen)? {
            return Ok(None);
        }
        let decays = agreed(&binding, |name| {
            self.options.decay_everything || decays(name)
        })?;
        let behind = self.options.masters && ty.dtype != DType::F32;
        let wide = ty.with_dtype(DType::F32);
        let parts = self.parts(&binding)?;
        let shards = self.shards(&ty, &parts);
        let op = Param {
            value: binding.clone(),
        };
        Ok(Some(Weight {
            leaf: self.leaf(op, ty, &scope)?,
            master: match behind {
                true => Some(self.state("master:", text, wide, shards, &scope)?),
                false => None,
            },
            gradient: self.state(ACCUMULATOR, text, accumulator, shards, &scope)?,
            decay: if decays { self.options.decay } else { 0.0 },
            shards,
            parts,
            binding,
            scope,
        }))
    }

    fn leaf(
        &mut self,
        op: impl Into<Op>,
        ty: TensorType,
        scope: &Arc<str>,
    ) -> Result<Value, String> {
        let id = self.graph.add(op.into(), &[], &[ty], scope)?;
        Ok(self.graph.value(id))
    }

    fn state(
        &mut self,
        kind: &str,
        binding: &str,
        ty: TensorType,
        shards: usize,
        scope: &Arc<str>,
    ) -> Result<Value, String> {
        let state = State {
            name: format!("{kind}{binding}"),
            reset: false,
            shards,
        };
        self.leaf(state, ty, scope)
    }

    /// How many replicas share out the states of a parameter. A tensor in it is summed in blocks of its own, none of
    /// which may lie on two replicas.
    fn shards(&self, ty: &TensorType, parts: &[usize]) -> usize {
        let width = ty.shape.row_elements();
        let inner = parts.split_last().map_or(&[][..], |(_, inner)| inner);
        let whole = |rows: &usize| (rows * width).is_multiple_of(SumSquares::BLOCK);
        let shared = ty.shape.elements() >= FEWEST_SHARED && inner.iter().all(whole);
        if shared { self.options.shards } else { 1 }
    }

    fn scalar(&mut self, name: &'static str) -> Result<Value, String> {
        self.input(name, TensorType::fixed(DType::F32, []))
    }

    fn input(&mut self, name: &'static str, ty: TensorType) -> Result<Value, String> {
        if let Some(&value) = self.inputs.get(name) {
            return Ok(value);
        }
        let op = Input {
            name: name.to_owned(),
        };
        let value = self.leaf(op, ty, &"".into())?;
        self.inputs.insert(name, value);
        Ok(value)
    }

    /// What gradients are multiplied by, and the norm of all of them.
    fn factor(&mut self, weights: &[Weight]) -> Result<[Value; 2], String> {
        let mut squares = Vec::with_capacity(weights.len());
        for Weight {
            gradient, scope, ..
        } in weights
        {
            let id = self
                .graph
                .add(SumSquares {}.into(), &[*gradient], &[], scope)?;
            squares.push(self.graph.value(id));
        }
        if squares.is_empty() {
            return Err("nothing to update: every parameter is frozen".to_owned());
        }
        let scope = "".into();
        let all = self
            .graph
            .add(Concat { axis: 0 }.into(), &squares, &[], &scope)?;
        let operands = [self.graph.value(all), self.scalar("scale")?];
        let clip = Clip {
            max_norm: self.options.max_norm,
        };
        let node = self.graph.add(clip.into(), &operands, &[], &scope)?;
        Ok([0, 1].map(|output| Value { node, output }))
    }

    /// The new values of a parameter and of its states.
    fn step(&mut self, weight: &Weight, factor: Value) -> Result<(), String> {
        let text = weight.binding.to_string();
        let p = weight.master.unwrap_or(weight.leaf);
        let ty = self.graph.ty(p).clone();
        let rounds = self.options.stochastic && ty.dtype == DType::F16;
        let op = self.op(weight, rounds.then(|| name_hash(&text)));
        let (mut operands, mut types) = (vec![p, weight.gradient], vec![ty.clone()]);
        let moments = ["m:", "v:"].into_iter().zip(self.options.moments);
        let adam = !matches!(op, Op::Sgd(_));
        let kinds: Vec<(&str, DType)> = moments.take(1 + usize::from(adam)).collect();
        for &(kind, dtype) in &kinds {
            let ty = ty.with_dtype(dtype);
            operands.push(self.state(kind, &text, ty.clone(), weight.shards, &weight.scope)?);
            types.push(ty);
        }
        let tensors = operands.clone();
        operands.extend([factor, self.scalar("lr")?]);
        if adam {
            for name in ["correction1", "correction2"] {
                operands.push(self.scalar(name)?);
            }
        }
        if let Op::Lamb(lamb) = &op {
            operands.push(self.trust_ratio(weight, lamb, tensors, factor)?);
        }
        if rounds {
            operands.push(self.input(ROUNDING_KEY, TensorType::fixed(DType::I32, [2]))?);
        }
        let node = self.graph.add(op, &operands, &types, &weight.scope)?;
        self.store(weight, &text, self.graph.value(node))?;
        for ((kind, _), output) in kinds.into_iter().zip(1..) {
            let name = Output::state_name(&format!("{kind}{text}"));
            self.graph.add_output(&name, Value { node, output });
        }
        Ok(())
    }

    /// How long a step of LAMB is: `tensors` are the parameter, its gradient and its moments.
    fn trust_ratio(
        &mut self,
        weight: &Weight,
        lamb: &Lamb,
        tensors: Vec<Value>,
        factor: Value,
    ) -> Result<Value, String> {
        let Optimizer::Lamb { max_ratio, .. } = self.options.optimizer else {
            return Err("a ratio of another optimiser than LAMB".to_owned());
        };
        let op = TrustRatio {
            beta1: lamb.beta1,
            beta2: lamb.beta2,
            eps: lamb.eps,
            decay: lamb.decay,
            max_ratio,
            parts: lamb.parts.clone(),
        };
        let mut operands = tensors;
        operands.push(factor);
        for name in ["correction1", "correction2"] {
            operands.push(self.scalar(name)?);
        }
        let id = self.graph.add(op.into(), &operands, &[], &weight.scope)?;
        Ok(self.graph.value(id))
    }

    /// Counts the elements of each gradient on either side of `edge`.
    fn count(&mut self, weights: &[Weight], edge: f64) -> Result<(), String> {
        let mean = self.scalar(MEAN)?;
        for weight in weights {
            let operands = [weight.gradient, mean];
            let op = Histogram { edge };
            let id = self.graph.add(op.into(), &operands, &[], &weight.scope)?;
            let name = format!("{HISTOGRAM}{}", weight.binding);
            let counted = self.graph.value(id);
            self.graph.add_output(&name, counted);
        }
        Ok(())
    }

    /// Stores a parameter, and the weight behind it first.
    fn store(&mut self, weight: &Weight, text: &str, new: Value) -> Result<(), String> {
        let mut stored = new;
        if weight.master.is_some() {
            let to = self.graph.ty(weight.leaf).dtype;
            let id = self
                .graph
                .add(Cast { to }.into(), &[new], &[], &weight.scope)?;
            stored = self.graph.value(id);
        }
        self.graph
            .add_output(&Output::param_name(&weight.binding), stored);
        if weight.master.is_some() {
            let name = Output::state_name(&format!("master:{text}"));
            self.graph.add_output(&name, new);
        }
        Ok(())
    }

    fn op(&self, weight: &Weight, stochastic: Option<u64>) -> Op {
        let decay = weight.decay;
        match self.options.optimizer {
            Optimizer::Adam {
                betas: [beta1, beta2],
                eps,
            } => Adam {
                beta1,
                beta2,
                eps,
                decay,
                stochastic,
            }
            .into(),
            Optimizer::Sgd { momentum, nesterov } => Sgd {
                momentum,
                decay,
                nesterov,
                stochastic,
            }
            .into(),
            Optimizer::Lamb {
                betas: [beta1, beta2],
                eps,
                ..
            } => Lamb {
                beta1,
                beta2,
                eps,
                decay,
                parts: weight.parts.clone(),
                stochastic,
            }
            .into(),
        }
    }

    /// The rows of each tensor in a parameter; empty if it is one tensor.
    fn parts(&self, binding: &Binding) -> Result<Vec<usize>, String> {
        let shape = |name: &str| self.tensors.get(name).map(|&shape| Shape::new(shape));
        let rows = |name: &str| shape(name).map_or(0, |shape| shape.rows());
        let pieces = binding.pieces(0, binding.shape(&shape)?.rows(), &rows);
        let parts: Vec<usize> = pieces.iter().map(|piece| piece.end - piece.start).collect();
        Ok(if parts.len() > 1 { parts } else { Vec::new() })
    }
}

/// What holds for one tensor of a binding, if it holds for all or for none.
fn agreed(binding: &Binding, holds: impl Fn(&str) -> bool) -> Result<bool, String> {
    let names = binding.tensors();
    let count = names.iter().filter(|name| holds(name)).count();
    match count {
        0 => Ok(false),
        _ if count == names.len() => Ok(true),
        _ => Err(format!(
            "`{binding}` joins tensors that decay or are frozen and others that are not"
        )),
    }
}

/// Whether a tensor decays: neither biases nor parameters of norms do, by the names that
/// Transformers gives them.
fn decays(name: &str) -> bool {
    let norms = ["LayerNorm", "layer_norm", "logit_fc.2."];
    !name.ends_with(".bias") && !norms.iter().any(|norm| name.contains(norm))
}
