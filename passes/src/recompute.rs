//! `recompute`: what is cheap to compute again is not kept for the backward half.
//!
//! *What it does.* A *layer* is what shares a scope up to its first number (`encoder.layer.3`), or up to
//! its second word where there is no number. A forward value is at a border if another layer reads it
//! in the forward half. In each chosen layer, the backward half reads borders only: what else it reads
//! is computed from them again, by copies of forward nodes that name their originals. Under
//! `layer` all layers are chosen; under `auto` those that [`mod@chain`] finds to slow the pipeline
//! least while it fits.
//!
//! *Why it helps.* The values kept for the backward half are what fills a tile in a deep pipeline: one
//! set for each micro-batch under way. Of a layer's dozen, one or two stay.
//!
//! *What it needs.* `autodiff`, and no `cse` behind it, which would undo it.
//!
//! *What it promises.* No bit changes: copies are the same ops of the same values, and random masks
//! depend on names, not on nodes. Leaves are never copied. One patch.
//!
//! ```text
//! %2 = linear %1, %0 : f32[text:160,8] in "m.0"          %2 = linear %1, %0 : f32[text:160,8] in "m.0"
//! %3 = activate %2 : f32[text:160,8] in "m.0"       →    %3 = activate %2 : f32[text:160,8] in "m.0"
//! %5 = activate_grad %4, %2 : f32[text:160,8]            %5 = linear %1, %0 : f32[text:160,8] in "m.0" of %2
//!                                                        %6 = activate_grad %4, %5 : f32[text:160,8]
//! ```

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Patch, User, Value, Wire};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cost::CostModel;
use crate::pass::{Found, Options, Pass, Recompute, Run};
use crate::phase::phases;
use crate::schedule::Phase;
use crate::solve::chain::{self, MOST_LAYERS};

/// See the module.
pub const PASS: Pass = Pass {
    name: "recompute",
    doc: "computes values of the backward half again instead of keeping them",
    run: Run::Whole(run),
};

fn run(graph: &Graph, options: &Options) -> Found {
    let mut split = Split::new(graph);
    match options.recompute {
        Recompute::None | Recompute::Auto => return Ok(None),
        Recompute::Layer => {}
        Recompute::Layers { chosen } => split.choose(chosen),
    }
    split.patch()
}

/// The layers of a graph without copies, in the order of their first forward nodes, as links of a chain: what each
/// takes, and keeps. `states` are the bytes beside each parameter, by binding. Where there are more than
/// [`MOST_LAYERS`] layers, the last link is all the rest.
pub fn chain(
    graph: &Graph,
    cost: &dyn CostModel,
    states: &BTreeMap<String, u64>,
) -> Vec<chain::Layer> {
    let mut split = Split::new(graph);
    let mut links = vec![chain::Layer::default(); split.links()];
    for &id in &split.order {
        links[split.link(id)].cycles += cost.node(graph, id).total();
        if let Op::Param(param) = &graph.node(id).op {
            let bytes = graph.ty(graph.value(id)).bytes() as u64;
            let beside = states.get(&param.value.to_string()).copied();
            let users = graph.users(graph.value(id)).into_iter();
            let first = users.map(|user| split.link(user.node)).min();
            links[first.unwrap_or(0)].resident += bytes + beside.unwrap_or(0);
        }
    }
    for index in split.copied().ones() {
        let id = graph.at(index).expect("copies are of nodes");
        links[split.link(id)].again += cost.node(graph, id).total();
    }
    for value in split.kept() {
        links[split.link(value.node)].border += graph.ty(value).bytes() as u64;
    }
    split.chosen.clear();
    for value in split.kept() {
        links[split.link(value.node)].kept += graph.ty(value).bytes() as u64;
    }
    links
}

/// The layer of a scope; see the module.
fn layer(scope: &str) -> &str {
    let ends = scope.match_indices('.').map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([scope.len()]).collect();
    let mut start = 0;
    for &end in &ends {
        if scope[start..end].parse::<u32>().is_ok() {
            return &scope[..end];
        }
        start = end + 1;
    }
    &scope[..ends.get(1).copied().unwrap_or(scope.len())]
}

/// What is kept of each layer.
struct Split<'a> {
    graph: &'a Graph,
    order: Vec<NodeId>,
    phases: Vec<Phase>,
    /// The layer of each node, by index.
    layers: Vec<&'a str>,
    /// The number of each layer that has forward nodes, in order of the first.
    numbers: FxHashMap<&'a str, usize>,
    /// The layers of which only borders are kept.
    chosen: FxHashSet<&'a str>,
}

impl<'a> Split<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut layers = vec![""; graph.bound()];
        for id in graph.nodes() {
            layers[id.index()] = layer(&graph.node(id).scope);
        }
        let (order, phases) = (graph.topo(), phases(graph));
        let mut numbers = FxHashMap::default();
        let works =
            |id: &&NodeId| phases[id.index()] == Phase::Forward && !graph.node(**id).op.is_leaf();
        for &id in order.iter().filter(works) {
            let next = numbers.len();
            numbers.entry(layers[id.index()]).or_insert(next);
        }
        Split {
            graph,
            order,
            phases,
            numbers,
            chosen: layers.iter().copied().collect(),
            layers,
        }
    }

    /// Links of the chain of layers.
    fn links(&self) -> usize {
        self.numbers.len().clamp(1, MOST_LAYERS)
    }

    /// The link of a node: that of its layer; the last for what is in no layer that works forward.
    fn link(&self, id: NodeId) -> usize {
        let last = self.links() - 1;
        let number = self.numbers.get(self.layer(id));
        number.map_or(last, |&number| number.min(last))
    }

    fn layer(&self, id: NodeId) -> &'a str {
        self.layers[id.index()]
    }

    fn is_forward(&self, id: NodeId) -> bool {
        self.phases[id.index()] == Phase::Forward
    }

    /// Whether the backward half is to compute a value again: a forward one inside a chosen layer.
    fn is_again(&self, value: Value) -> bool {
        let (id, own) = (value.node, self.layer(value.node));
        let inside = |user: &User| !self.is_forward(user.node) || self.layer(user.node) == own;
        self.is_forward(id)
            && !self.graph.node(id).op.is_leaf()
            && self.chosen.contains(own)
            && self.graph.users(value).iter().all(inside)
    }

    /// The nodes to copy: those whose values are computed again for a backward node or for a copy.
    fn copied(&self) -> FixedBitSet {
        let mut copied = FixedBitSet::with_capacity(self.graph.bound());
        for &id in self.order.iter().rev() {
            if !self.is_forward(id) || copied.contains(id.index()) {
                let again = self.graph.inputs(id).into_iter();
                for value in again.filter(|&value| self.is_again(value)) {
                    copied.insert(value.node.index());
                }
            }
        }
        copied
    }

    /// What the forward half leaves for the backward half; a view leaves what it names part of.
    fn kept(&self) -> FxHashSet<Value> {
        let (graph, copied) = (self.graph, self.copied());
        let reads = |id: &&NodeId| !self.is_forward(**id) || copied.contains(id.index());
        let mut kept: FxHashSet<Value> = FxHashSet::default();
        for &id in self.order.iter().filter(reads) {
            for mut value in graph.inputs(id) {
                if !self.is_forward(value.node) || self.is_again(value) {
                    continue;
                }
                while graph.node(value.node).op.is_view() {
                    value = graph.inputs(value.node)[0];
                }
                if !graph.node(value.node).op.is_leaf() {
                    kept.insert(value);
                }
            }
        }
        kept
    }

    /// Chooses the layers whose bits are set.
    fn choose(&mut self, bits: u64) {
        let last = self.links() - 1;
        let is_set = |number: usize| bits >> number.min(last) & 1 == 1;
        let chosen = self.numbers.iter();
        let chosen = chosen.filter(|&(_, &number)| is_set(number));
        self.chosen = chosen.map(|(&layer, _)| layer).collect();
    }

    fn patch(&self) -> Found {
        let mut patch = Patch::new();
        let mut copies: FxHashMap<NodeId, Wire> = FxHashMap::default();
        let (graph, copied) = (self.graph, self.copied());
        for &id in self.order.iter().filter(|id| copied.contains(id.index())) {
            let node = graph.node(id);
            let operands =
                graph
                    .inputs(id)
                    .into_iter()
                    .map(|value| match copies.get(&value.node) {
                        Some(copy) if self.is_again(value) => copy.output(value.output),
                        _ => value.into(),
                    });
            let operands: Vec<Wire> = operands.collect();
            let copy = patch.add_typed(graph, id, node.op.clone(), &operands, &node.types)?;
            patch.set_forward(copy, id);
            copies.insert(id, copy);
        }
        for &id in self.order.iter().filter(|&&id| !self.is_forward(id)) {
            for (input, value) in (0..).zip(graph.inputs(id)) {
                if self.is_again(value) {
                    let copy = copies[&value.node].output(value.output);
                    patch.rewire(User { node: id, input }, copy);
                }
            }
        }
        Ok((!patch.is_empty()).then_some(patch))
    }
}
