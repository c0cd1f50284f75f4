//! Patches: checked edits. Passes read the graph and write patches; only applying one changes it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::graph::{Node, Output, User};
use crate::ops::{Infer, Op};
use crate::{Binding, DType, Graph, NodeId, SpaceId, TensorType, Types, Value};

/// A value as a patch sees it: one of the graph's, or one of the patch's own new nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A value of the graph.
    Old(Value),
    /// An output of a node that the patch adds.
    New(usize, u16),
}

impl Wire {
    /// Another output of the same node.
    pub fn output(self, output: u16) -> Self {
        match self {
            Wire::Old(value) => Wire::Old(Value { output, ..value }),
            Wire::New(index, _) => Wire::New(index, output),
        }
    }
}

impl From<Value> for Wire {
    fn from(value: Value) -> Self {
        Wire::Old(value)
    }
}

#[derive(Debug)]
struct NewNode {
    node: Node,
    inputs: SmallVec<[Wire; 4]>,
}

/// A change to a graph that keeps the types of everything it does not touch.
#[derive(Debug, Default)]
pub struct Patch {
    nodes: Vec<NewNode>,
    replaced: Vec<(Value, Wire)>,
    rewired: Vec<(User, Wire)>,
    retyped: Vec<(Value, TensorType)>,
    placed: Vec<(NodeId, u32)>,
    removed: Vec<NodeId>,
    leaving: Vec<(String, Wire)>,
    dropped: HashSet<String>,
    unions: Vec<Vec<SpaceId>>,
}

impl Patch {
    /// A patch that changes nothing.
    pub fn new() -> Self {
        Patch::default()
    }

    /// Whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
            && self.rewired.is_empty()
            && self.retyped.is_empty()
            && self.placed.is_empty()
            && self.removed.is_empty()
            && self.leaving.is_empty()
            && self.dropped.is_empty()
    }

    /// Adds a node in the scope, on the stage and of the forward node of `like`, and returns its first
    /// output.
    ///
    /// # Errors
    /// The op's type rule rejects the operands.
    pub fn add(
        &mut self,
        graph: &Graph,
        like: NodeId,
        op: impl Into<Op>,
        inputs: &[Wire],
    ) -> Result<Wire, String> {
        self.add_typed(graph, like, op, inputs, &[])
    }

    /// [`Patch::add`] with declared output types.
    ///
    /// # Errors
    /// The op's type rule rejects the operands.
    pub fn add_typed(
        &mut self,
        graph: &Graph,
        like: NodeId,
        op: impl Into<Op>,
        inputs: &[Wire],
        declared: &[TensorType],
    ) -> Result<Wire, String> {
        let op = op.into();
        let operands: Vec<TensorType> = inputs
            .iter()
            .map(|&wire| self.ty(graph, wire).clone())
            .collect();
        let mut spaces = graph.spaces.clone();
        self.unions.iter().for_each(|parts| {
            spaces.union(parts);
        });
        let cx = Infer {
            inputs: &operands,
            declared,
            spaces: &spaces,
            extents: None,
        };
        let types = op
            .infer(&cx)
            .map_err(|error| format!("{}: {error}", op.name()))?;
        let Node {
            op: _,
            types: _,
            scope,
            forward,
            stage,
        } = graph.node(like);
        let node = Node {
            op,
            types,
            scope: Arc::clone(scope),
            forward: *forward,
            stage: *stage,
        };
        self.nodes.push(NewNode {
            node,
            inputs: SmallVec::from_slice(inputs),
        });
        Ok(Wire::New(self.nodes.len() - 1, 0))
    }

    /// Places the node of a new value on another stage than the one it was made like.
    pub fn set_stage(&mut self, wire: Wire, stage: u32) {
        if let Wire::New(index, _) = wire {
            self.nodes[index].node.stage = Some(stage);
        }
    }

    /// Makes the node of a new value part of the derivative of `forward`.
    pub fn set_forward(&mut self, wire: Wire, forward: NodeId) {
        if let Wire::New(index, _) = wire {
            self.nodes[index].node.forward = Some(forward);
        }
    }

    /// How many nodes the patch adds so far.
    pub(crate) fn added(&self) -> usize {
        self.nodes.len()
    }

    /// Stores a new value as another float dtype, if its op leaves the choice; says whether it does.
    pub(crate) fn store_as(&mut self, graph: &Graph, wire: Wire, dtype: DType) -> bool {
        let Wire::New(index, output) = wire else {
            return false;
        };
        let NewNode { node, inputs } = &self.nodes[index];
        let mut declared = node.types.clone();
        declared[usize::from(output)].dtype = dtype;
        let operands = inputs.iter().map(|&wire| self.ty(graph, wire).clone());
        let types = node.op.infer(&Infer {
            inputs: &operands.collect::<Vec<_>>(),
            declared: &declared,
            spaces: &graph.spaces,
            extents: None,
        });
        let fits = types.is_ok_and(|types| types == declared);
        if fits {
            self.nodes[index].node.types = declared;
        }
        fits
    }

    /// Declares the union of row spaces, for a `concat` to come.
    pub fn declare_union(&mut self, parts: &[SpaceId]) {
        self.unions.push(parts.to_vec());
    }

    /// The type a wire has, or will have once the patch is applied.
    pub fn ty<'a>(&'a self, graph: &'a Graph, wire: Wire) -> &'a TensorType {
        match wire {
            Wire::Old(value) => graph.ty(value),
            Wire::New(index, output) => &self.nodes[index].node.types[usize::from(output)],
        }
    }

    /// Makes every user of `old` use `new`, which must have the same type. Nodes of the patch keep
    /// the operands they were added with, so that `new` may be computed from `old`.
    pub fn replace(&mut self, old: Value, new: impl Into<Wire>) {
        self.replaced.push((old, new.into()));
    }

    /// Makes one operand of one node another value of the same type.
    pub fn rewire(&mut self, user: User, new: impl Into<Wire>) {
        self.rewired.push((user, new.into()));
    }

    /// Stores a value otherwise: as another float dtype.
    pub fn retype(&mut self, value: Value, ty: TensorType) {
        self.retyped.push((value, ty));
    }

    /// Puts a node on a stage.
    pub fn place(&mut self, node: NodeId, stage: u32) {
        self.placed.push((node, stage));
    }

    /// Removes a node that nothing uses once the patch is applied.
    pub fn remove(&mut self, node: NodeId) {
        self.removed.push(node);
    }

    /// Lets a value leave the graph, behind the outputs there are.
    pub fn add_output(&mut self, name: &str, wire: impl Into<Wire>) {
        self.leaving.push((name.to_owned(), wire.into()));
    }

    /// Lets the value of an output leave no more.
    pub fn drop_output(&mut self, name: &str) {
        self.dropped.insert(name.to_owned());
    }

    /// Lets a value leave the graph as the gradient of a parameter; see
    /// [`crate::Output::gradient_of`].
    pub fn add_gradient(&mut self, parameter: &Binding, wire: impl Into<Wire>) {
        self.add_output(&Output::gradient_name(parameter), wire);
    }

    /// Changes the graph. A forward node that is removed, or that replacements leave without users,
    /// passes the backward nodes that name it on to what replaces it.
    ///
    /// # Errors
    /// A replacement has another type than what it replaces, replacements go in a circle, or
    /// something would still use a removed node. The graph is then unchanged, except that unions
    /// may have been declared.
    pub fn apply(self, graph: &mut Graph) -> Result<(), String> {
        self.unions.iter().for_each(|parts| {
            graph.spaces.union(parts);
        });
        self.check_types(graph)?;
        let changes = self.changes(graph)?;
        self.check_removals(graph, &changes)?;
        let mut added: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        let resolve = |added: &[NodeId], wire: Wire| match wire {
            Wire::Old(value) => value,
            Wire::New(index, output) => Value {
                node: added[index],
                output,
            },
        };
        for NewNode { node, inputs } in self.nodes {
            let inputs: Vec<Value> = inputs.iter().map(|&wire| resolve(&added, wire)).collect();
            added.push(graph.insert(node, &inputs));
        }
        for (user, wire) in changes.operands {
            graph.set_input(user, resolve(&added, wire));
        }
        for (output, wire) in changes.outputs {
            graph.set_output(output, resolve(&added, wire));
        }
        graph.retain_outputs(|output| !self.dropped.contains(&output.name));
        for (name, wire) in self.leaving {
            graph.add_output(&name, resolve(&added, wire));
        }
        for (value, ty) in self.retyped {
            graph.node_mut(value.node).types[usize::from(value.output)] = ty;
        }
        for (node, stage) in self.placed {
            graph.node_mut(node).stage = Some(stage);
        }
        let heirs = changes.heirs.into_iter();
        let heirs = heirs.map(|(old, wire)| (old, resolve(&added, wire).node));
        retire(graph, heirs, &self.removed);
        Ok(())
    }

    fn check_types(&self, graph: &Graph) -> Result<(), String> {
        let rewired = self
            .rewired
            .iter()
            .map(|&(user, wire)| (graph.inputs(user.node)[usize::from(user.input)], wire));
        for (old, wire) in self.replaced.iter().copied().chain(rewired) {
            let (before, after) = (graph.ty(old), self.ty(graph, wire));
            if before != after {
                return Err(format!(
                    "a patch replaces {} by {}",
                    before.display(&graph.spaces),
                    after.display(&graph.spaces)
                ));
            }
        }
        Ok(())
    }

    /// What each operand and output that changes becomes in the end: a replacement that is itself
    /// replaced is followed.
    fn changes(&self, graph: &Graph) -> Result<Changes, String> {
        let replaced: HashMap<Value, Wire> = self.replaced.iter().copied().collect();
        let follow = |mut wire: Wire| {
            for _ in 0..=replaced.len() {
                match wire {
                    Wire::Old(value) if replaced.contains_key(&value) => wire = replaced[&value],
                    _ => return Ok(wire),
                }
            }
            Err("a patch replaces values in a circle".to_owned())
        };
        let mut changes = Changes::default();
        for &old in replaced.keys() {
            let new = follow(Wire::Old(old))?;
            let users = graph.users(old).into_iter();
            changes.operands.extend(users.map(|user| (user, new)));
            changes.heirs.insert(old.node, new);
        }
        for &(user, wire) in &self.rewired {
            changes.operands.insert(user, follow(wire)?);
        }
        for (position, output) in graph.outputs().iter().enumerate() {
            if replaced.contains_key(&output.value) {
                let new = follow(Wire::Old(output.value))?;
                changes.outputs.push((position, new));
            }
        }
        Ok(changes)
    }

    /// Nothing uses a removed node: no operand that stays, no operand or output that changes, no
    /// new node.
    fn check_removals(&self, graph: &Graph, changes: &Changes) -> Result<(), String> {
        let removed: HashSet<NodeId> = self.removed.iter().copied().collect();
        let gone = |wire: &Wire| match wire {
            Wire::Old(value) => removed.contains(&value.node),
            Wire::New(..) => false,
        };
        let mut wires: Vec<Wire> = Vec::new();
        wires.extend(self.nodes.iter().flat_map(|new| new.inputs.iter()));
        let operands = changes.operands.iter();
        wires.extend(
            operands
                .filter(|(user, _)| !removed.contains(&user.node))
                .map(|(_, wire)| *wire),
        );
        wires.extend(changes.outputs.iter().map(|&(_, wire)| wire));
        wires.extend(self.leaving.iter().map(|&(_, wire)| wire));
        let kept = graph.outputs().iter().enumerate();
        let kept = kept.filter(|(_, output)| !self.dropped.contains(&output.name));
        let changed: HashSet<usize> = changes
            .outputs
            .iter()
            .map(|&(position, _)| position)
            .collect();
        wires.extend(
            kept.filter(|(position, _)| !changed.contains(position))
                .map(|(_, output)| Wire::Old(output.value)),
        );
        for &node in &self.removed {
            wires.extend(self.staying_uses(graph, changes, &removed, node));
        }
        match wires.iter().find(|wire| gone(wire)) {
            Some(Wire::Old(value)) => Err(format!(
                "a patch removes a `{}` that is still used",
                graph.node(value.node).op.name()
            )),
            _ => Ok(()),
        }
    }

    /// The outputs of `node` that nodes use, will go on to use, and outlive it.
    fn staying_uses(
        &self,
        graph: &Graph,
        changes: &Changes,
        removed: &HashSet<NodeId>,
        node: NodeId,
    ) -> Vec<Wire> {
        let outputs: &Types = &graph.node(node).types;
        let values = (0..outputs.len()).map(|output| Value {
            node,
            output: output as u16,
        });
        let stays =
            |user: &User| !removed.contains(&user.node) && !changes.operands.contains_key(user);
        values
            .filter(|&value| graph.users(value).iter().any(stays))
            .map(Wire::Old)
            .collect()
    }
}

/// Removes nodes, after those that are left without users passed on what names them to their heirs.
fn retire(graph: &mut Graph, heirs: impl Iterator<Item = (NodeId, NodeId)>, removed: &[NodeId]) {
    let gone: HashSet<NodeId> = removed.iter().copied().collect();
    let mut passed: HashMap<NodeId, Option<NodeId>> = HashMap::new();
    passed.extend(removed.iter().map(|&id| (id, None)));
    for (old, heir) in heirs {
        if (gone.contains(&old) || !graph.is_used(old)) && !gone.contains(&heir) {
            passed.insert(old, Some(heir));
        }
    }
    graph.pass_on(&passed);
    removed.iter().for_each(|&id| graph.remove(id));
}

/// What operands, outputs and nodes become.
#[derive(Default)]
struct Changes {
    operands: BTreeMap<User, Wire>,
    outputs: Vec<(usize, Wire)>,
    /// What takes the place of nodes that lose users.
    heirs: BTreeMap<NodeId, Wire>,
}
