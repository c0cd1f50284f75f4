//! The graph: nodes, values, and the one door to petgraph.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;

use crate::binding::Binding;
use crate::ops::{Cost, Infer, Op};
use crate::rows::{Extents, Spaces};
use crate::types::{TensorType, Types};

/// Names a node of one graph. Ordered by age, as long as none was removed: a later node may take
/// the place of a removed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// A dense index, smaller than [`Graph::bound`].
    pub fn index(self) -> usize {
        self.0 as usize
    }

    fn petgraph(self) -> NodeIndex {
        NodeIndex::new(self.index())
    }
}

impl From<NodeIndex> for NodeId {
    fn from(index: NodeIndex) -> Self {
        NodeId(index.index() as u32)
    }
}

/// One output of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node that computes it.
    pub node: NodeId,
    /// Which of the node's outputs.
    pub output: u16,
}

/// A node: what it computes, of which types, for which part of the model, where.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// The types of its outputs.
    pub types: Types,
    /// The module of the model it belongs to, such as `lxmert.encoder.layer.0.output`.
    pub scope: Arc<str>,
    /// The forward node whose derivative it is part of, or whose value it computes again; none for
    /// forward nodes, and for sums that belong to no single one.
    pub forward: Option<NodeId>,
    /// The pipeline stage it runs on; given by partition.
    pub stage: Option<u32>,
}

/// A value that leaves the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The name the runtime returns it by, unique in the graph.
    pub name: String,
    /// The value.
    pub value: Value,
}

/// The output that is differentiated.
pub const LOSS: &str = "loss";

/// What the names of outputs that are gradients begin with; the parameter's binding follows.
const GRADIENT: &str = "grad:";

/// What the names of outputs that states become begin with; the state's name follows.
const STATE: &str = "state:";

/// What the names of outputs that parameters become begin with; the binding follows.
const PARAM: &str = "param:";

impl Output {
    /// The binding of the parameter whose gradient of [`LOSS`] this is. The name says it, so that text
    /// forms, plans and backends carry gradients as they carry other outputs.
    pub fn gradient_of(&self) -> Option<&str> {
        self.name.strip_prefix(GRADIENT)
    }

    /// The state that this value becomes; see [`crate::ops::State`].
    pub fn stored_state(&self) -> Option<&str> {
        self.name.strip_prefix(STATE)
    }

    /// The binding of the parameter that this value becomes.
    pub fn stored_param(&self) -> Option<&str> {
        self.name.strip_prefix(PARAM)
    }

    /// Whether the value takes the place of a state or a parameter; the host does not read it.
    pub fn is_stored(&self) -> bool {
        self.stored_state().or(self.stored_param()).is_some()
    }

    /// The name of the output that stores a state.
    pub fn state_name(state: &str) -> String {
        format!("{STATE}{state}")
    }

    /// The name of the output that stores a parameter.
    pub fn param_name(value: &Binding) -> String {
        format!("{PARAM}{value}")
    }

    /// The name of the output that is the gradient of the parameter of that binding.
    pub(crate) fn gradient_name(parameter: &Binding) -> String {
        format!("{GRADIENT}{parameter}")
    }
}

/// A use of a value: operand `input` of `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// The using node.
    pub node: NodeId,
    /// Which of its operands.
    pub input: u16,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    output: u16,
    input: u16,
}

/// A dataflow graph of one model at one set of capacities.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The graph's name.
    pub name: String,
    /// The row spaces its types refer to.
    pub spaces: Spaces,
    dag: StableDiGraph<Node, Slot>,
    outputs: Vec<Output>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str, spaces: Spaces) -> Self {
        Graph {
            name: name.to_owned(),
            spaces,
            ..Graph::default()
        }
    }

    /// Adds a node whose output types follow from its operands; `declared` gives the types of a
    /// leaf and the dtypes of other outputs, and may be empty.
    ///
    /// # Errors
    /// The op's type rule rejects the operands.
    pub fn add(
        &mut self,
        op: Op,
        inputs: &[Value],
        declared: &[TensorType],
        scope: &Arc<str>,
    ) -> Result<NodeId, String> {
        let operands: Vec<TensorType> =
            inputs.iter().map(|&value| self.ty(value).clone()).collect();
        let cx = Infer {
            inputs: &operands,
            declared,
            spaces: &self.spaces,
            extents: None,
        };
        let types = op
            .infer(&cx)
            .map_err(|error| format!("{}: {error}", op.name()))?;
        Ok(self.insert(
            Node {
                op,
                types,
                scope: scope.clone(),
                forward: None,
                stage: None,
            },
            inputs,
        ))
    }

    /// Adds a node as it is, without asking its type rule; the verifier will.
    pub(crate) fn insert(&mut self, node: Node, inputs: &[Value]) -> NodeId {
        let id = self.dag.add_node(node).into();
        for (input, &value) in inputs.iter().enumerate() {
            let input = input as u16;
            self.connect(User { node: id, input }, value);
        }
        id
    }

    /// Gives a node an operand that it does not have yet.
    pub(crate) fn connect(&mut self, user: User, value: Value) {
        let slot = Slot {
            output: value.output,
            input: user.input,
        };
        self.dag
            .add_edge(value.node.petgraph(), user.node.petgraph(), slot);
    }

    /// The node named by `id`, which must be in the graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[id.petgraph()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.dag[id.petgraph()]
    }

    /// Whether the graph has the node.
    pub fn contains(&self, id: NodeId) -> bool {
        self.dag.contains_node(id.petgraph())
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the largest node index.
    pub fn bound(&self) -> usize {
        self.dag
            .node_indices()
            .next_back()
            .map_or(0, |id| id.index() + 1)
    }

    /// Every node, by age.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dag.node_indices().map(NodeId::from)
    }

    /// Whether it has a backward half.
    pub fn has_backward(&self) -> bool {
        self.nodes().any(|id| self.node(id).forward.is_some())
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.node(value.node).types[usize::from(value.output)]
    }

    /// The first output of a node.
    pub fn value(&self, node: NodeId) -> Value {
        Value { node, output: 0 }
    }

    /// The operands of a node, in order.
    pub fn inputs(&self, id: NodeId) -> SmallVec<[Value; 4]> {
        let mut slots: SmallVec<[(u16, Value); 4]> = self
            .dag
            .edges_directed(id.petgraph(), Direction::Incoming)
            .map(|edge| {
                let slot = edge.weight();
                (
                    slot.input,
                    Value {
                        node: edge.source().into(),
                        output: slot.output,
                    },
                )
            })
            .collect();
        slots.sort_unstable_by_key(|&(input, _)| input);
        slots.into_iter().map(|(_, value)| value).collect()
    }

    /// The numbers of a node's operands, ascending.
    pub(crate) fn operand_numbers(&self, id: NodeId) -> SmallVec<[u16; 4]> {
        let mut numbers: SmallVec<[u16; 4]> = self
            .dag
            .edges_directed(id.petgraph(), Direction::Incoming)
            .map(|edge| edge.weight().input)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// The nodes that use outputs of a node, one for each use.
    pub(crate) fn successors(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let users = self
            .dag
            .neighbors_directed(id.petgraph(), Direction::Outgoing);
        users.map(NodeId::from)
    }

    /// The uses of a value by nodes, in order of age.
    pub fn users(&self, value: Value) -> SmallVec<[User; 4]> {
        let mut users: SmallVec<[User; 4]> = self
            .dag
            .edges_directed(value.node.petgraph(), Direction::Outgoing)
            .filter(|edge| edge.weight().output == value.output)
            .map(|edge| User {
                node: edge.target().into(),
                input: edge.weight().input,
            })
            .collect();
        users.sort_unstable();
        users
    }

    /// Whether anything uses a value of the node: another node, or an output of the graph.
    pub fn is_used(&self, id: NodeId) -> bool {
        let mut outputs = self.outputs.iter();
        self.successors(id).next().is_some() || outputs.any(|output| output.value.node == id)
    }

    /// Whether nothing but `user` uses the value: neither another node nor an output of the graph.
    pub fn is_only_user(&self, value: Value, user: NodeId) -> bool {
        self.users(value).iter().all(|other| other.node == user) && !self.is_output(value)
    }

    /// The values that leave the graph.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Lets a value leave the graph.
    pub fn add_output(&mut self, name: &str, value: Value) {
        self.outputs.push(Output {
            name: name.to_owned(),
            value,
        });
    }

    /// Keeps only the outputs that `keep` accepts.
    pub fn retain_outputs(&mut self, keep: impl Fn(&Output) -> bool) {
        self.outputs.retain(keep);
    }

    /// Whether the value leaves the graph.
    pub fn is_output(&self, value: Value) -> bool {
        self.outputs.iter().any(|output| output.value == value)
    }

    /// The operand types of a node.
    pub fn input_types(&self, id: NodeId) -> SmallVec<[TensorType; 4]> {
        self.inputs(id)
            .iter()
            .map(|&value| self.ty(value).clone())
            .collect()
    }

    /// The work of a node at full capacity.
    pub fn cost(&self, id: NodeId) -> Cost {
        let node = self.node(id);
        let inputs = self.input_types(id);
        node.op.cost(&Infer {
            inputs: &inputs,
            declared: &node.types,
            spaces: &self.spaces,
            extents: None,
        })
    }

    /// The work of a node in a run at these extents, which must be of this graph.
    pub fn cost_at(&self, id: NodeId, extents: &Extents) -> Cost {
        let node = self.node(id);
        let at = |types: &[TensorType]| types.iter().map(|ty| ty.at(extents)).collect::<Types>();
        let (inputs, outputs) = (at(&self.input_types(id)), at(&node.types));
        node.op.cost(&Infer {
            inputs: &inputs,
            declared: &outputs,
            spaces: &self.spaces,
            extents: Some(extents),
        })
    }

    /// Every node after the nodes it uses; among the nodes that are ready, the oldest first. Nodes
    /// on a cycle are missing.
    pub fn topo(&self) -> Vec<NodeId> {
        let mut missing: Vec<usize> = vec![0; self.bound()];
        let mut ready = BinaryHeap::new();
        for id in self.nodes() {
            missing[id.index()] = self
                .dag
                .edges_directed(id.petgraph(), Direction::Incoming)
                .count();
            if missing[id.index()] == 0 {
                ready.push(Reverse(id));
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for edge in self.dag.edges_directed(id.petgraph(), Direction::Outgoing) {
                let user = NodeId::from(edge.target());
                missing[user.index()] -= 1;
                if missing[user.index()] == 0 {
                    ready.push(Reverse(user));
                }
            }
        }
        order
    }

    /// The same graph with its nodes numbered 0.. in the order of [`Graph::topo`], which is then the
    /// order of their ids and of the lines of the text form.
    pub fn compacted(&self) -> Graph {
        let mut compact = Graph::new(&self.name, self.spaces.clone());
        let mut renamed: Vec<Option<NodeId>> = vec![None; self.bound()];
        let rename = |renamed: &[Option<NodeId>], value: Value| {
            renamed[value.node.index()].map(|node| Value {
                node,
                output: value.output,
            })
        };
        for id in self.topo() {
            let inputs: Vec<Value> = self
                .inputs(id)
                .into_iter()
                .filter_map(|v| rename(&renamed, v))
                .collect();
            renamed[id.index()] = Some(compact.insert(self.node(id).clone(), &inputs));
        }
        for id in compact.nodes().collect::<Vec<_>>() {
            let forward = &mut compact.node_mut(id).forward;
            *forward = forward.and_then(|old| renamed.get(old.index()).copied().flatten());
        }
        for output in &self.outputs {
            if let Some(value) = rename(&renamed, output.value) {
                compact.add_output(&output.name, value);
            }
        }
        compact
    }

    /// The node with that index.
    pub fn at(&self, index: usize) -> Option<NodeId> {
        let id = NodeId(u32::try_from(index).ok()?);
        self.contains(id).then_some(id)
    }

    /// Makes one output another value.
    pub(crate) fn set_output(&mut self, position: usize, new: Value) {
        self.outputs[position].value = new;
    }

    /// Makes one operand of one node another value.
    pub(crate) fn set_input(&mut self, user: User, new: Value) {
        let edge = self
            .dag
            .edges_directed(user.node.petgraph(), Direction::Incoming)
            .find(|edge| edge.weight().input == user.input)
            .map(|edge| edge.id());
        if let Some(edge) = edge {
            self.dag.remove_edge(edge);
        }
        self.connect(user, new);
    }

    /// Makes backward nodes that name a key as their forward node name its heir instead, or none. An
    /// heir of a named node is a forward node itself.
    pub(crate) fn pass_on(&mut self, heirs: &HashMap<NodeId, Option<NodeId>>) {
        let heir = |id: NodeId| heirs.get(&self.node(id).forward?).map(|&heir| (id, heir));
        let named: Vec<(NodeId, Option<NodeId>)> = self.nodes().filter_map(heir).collect();
        for &(id, heir) in &named {
            self.node_mut(id).forward = heir;
        }
        for heir in named.into_iter().filter_map(|(_, heir)| heir) {
            self.node_mut(heir).forward = None;
        }
    }

    /// Removes a node that nothing uses.
    pub(crate) fn remove(&mut self, id: NodeId) {
        self.dag.remove_node(id.petgraph());
    }
}
