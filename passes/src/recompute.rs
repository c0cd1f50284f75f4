//! `recompute`: what is cheap to compute again is not kept for the backward half.
//!
//! *What it does.* A *layer* is what shares a scope up to its first number (`encoder.layer.3`), or up to
//! its second word where there is no number. A forward value is at a border if another layer reads it
//! in the forward half. In each chosen layer, the backward half reads borders only: what else it reads
//! is computed from them again, by copies of forward nodes that name their originals. Under
//! `layer` all layers are chosen; under `auto` those that save most bytes for each operation, until what is
//! kept for one micro-batch fits a budget.
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

use std::collections::BTreeSet;

use fixedbitset::FixedBitSet;
use lxpod_ir::{Graph, NodeId, Patch, User, Value, Wire};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::pass::{Found, Options, Pass, Recompute, Run};
use crate::phase::phases;
use crate::schedule::Phase;

/// See the module.
pub const PASS: Pass = Pass {
    name: "recompute",
    doc: "computes values of the backward half again instead of keeping them",
    run: Run::Whole(run),
};

fn run(graph: &Graph, options: &Options) -> Found {
    if options.recompute == Recompute::None {
        return Ok(None);
    }
    let mut split = Split::new(graph);
    if let Recompute::Auto { bytes } = options.recompute {
        split.choose(bytes);
    }
    split.patch()
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
    /// The layers of which only borders are kept.
    chosen: FxHashSet<&'a str>,
}

/// What choosing a layer changes for one micro-batch.
struct Trade {
    /// Bytes that are not kept.
    bytes: u64,
    /// Operations done again.
    flops: u64,
}

impl<'a> Split<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut layers = vec![""; graph.bound()];
        for id in graph.nodes() {
            layers[id.index()] = layer(&graph.node(id).scope);
        }
        Split {
            graph,
            order: graph.topo(),
            phases: phases(graph),
            chosen: layers.iter().copied().collect(),
            layers,
        }
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

    /// The bytes of what the forward half leaves for the backward half; a view leaves what it names
    /// part of.
    fn kept_bytes(&self) -> u64 {
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
        kept.iter()
            .map(|&value| graph.ty(value).bytes() as u64)
            .sum()
    }

    /// What choosing this layer alone changes, where nothing chosen keeps so many bytes.
    fn trade(&mut self, layer: &'a str, without: u64) -> Trade {
        self.chosen = FxHashSet::from_iter([layer]);
        let copied = self.copied();
        let copied = copied.ones().filter_map(|index| self.graph.at(index));
        Trade {
            bytes: without.saturating_sub(self.kept_bytes()),
            flops: copied.map(|id| self.graph.cost(id).flops).sum(),
        }
    }

    /// Leaves as few layers chosen as it takes to keep at most so many bytes, those first that save
    /// most for each operation.
    fn choose(&mut self, budget: u64) {
        let layers: BTreeSet<&str> = self.chosen.drain().collect();
        let without = self.kept_bytes();
        let trades = layers
            .into_iter()
            .map(|layer| (layer, self.trade(layer, without)));
        let mut trades: Vec<(&str, Trade)> = trades.filter(|(_, trade)| trade.bytes > 0).collect();
        let worth = |a: &Trade, b: &Trade| u128::from(a.bytes) * u128::from(b.flops);
        trades.sort_by(|(_, a), (_, b)| worth(b, a).cmp(&worth(a, b)));
        self.chosen.clear();
        for (layer, _) in trades {
            if self.kept_bytes() <= budget {
                break;
            }
            self.chosen.insert(layer);
        }
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
