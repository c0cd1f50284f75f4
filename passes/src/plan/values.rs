//! Who writes a value and who reads it: what a value is to a tile's memory.

use std::cell::RefCell;

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Output, Value, sharding};
use rustc_hash::FxHashMap;

use super::Category;
use super::lower::home;
use crate::accumulate::ACCUMULATOR;
use crate::phase::phases;
use crate::schedule::{Phase, Schedule, Slot};

/// One program by what it does: the stage and the phase.
pub(super) type Role = (usize, Phase);

/// A graph with what is known of its values.
pub(super) struct Values<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Whether it is the update's.
    pub update: bool,
    /// The order of the programs.
    pub schedule: &'a Schedule,
    /// The schedule over as many visits as slots are counted for.
    played: Vec<Slot>,
    /// Micro-batches of a visit.
    group: usize,
    phases: Vec<Phase>,
    rounds: Vec<usize>,
    depths: RefCell<FxHashMap<(Role, Role), usize>>,
    /// The leaf whose bytes each stored value replaces.
    stored: FxHashMap<Value, NodeId>,
}

impl<'a> Values<'a> {
    /// Of a micro-batch's graph.
    pub(super) fn of_micro_batch(
        graph: &'a Graph,
        schedule: &'a Schedule,
        accumulation: usize,
        group: usize,
    ) -> Self {
        // An inference plan takes any number of visits; beyond a full pipeline nothing changes.
        let steady = 2 * schedule.stages();
        let visits = if schedule.training {
            accumulation.div_ceil(group)
        } else {
            steady
        };
        Values {
            graph,
            update: false,
            schedule,
            played: schedule.slots(visits),
            group,
            phases: phases(graph),
            rounds: vec![0; graph.bound()],
            depths: RefCell::default(),
            stored: replaced(graph),
        }
    }

    /// Of an update's graph: every transfer begins a round, and so does every sum over what replicas share out.
    pub(super) fn of_update(graph: &'a Graph, schedule: &'a Schedule) -> Self {
        let mut rounds = vec![0; graph.bound()];
        for id in graph.topo() {
            let after = |value: &Value| {
                let sent = matches!(graph.node(value.node).op, Op::Transfer(_))
                    || sharding::combines_replicas(graph, value.node);
                rounds[value.node.index()] + usize::from(sent)
            };
            rounds[id.index()] = graph.inputs(id).iter().map(after).max().unwrap_or(0);
        }
        Values {
            graph,
            update: true,
            schedule,
            played: Vec::new(),
            group: 1,
            phases: vec![Phase::Update; graph.bound()],
            rounds,
            depths: RefCell::default(),
            stored: replaced(graph),
        }
    }

    /// Micro-batches of a visit.
    pub(super) fn group(&self) -> usize {
        self.group
    }

    /// The phase of a node.
    pub(super) fn phase(&self, id: NodeId) -> Phase {
        self.phases[id.index()]
    }

    /// The round of a node; 0 outside updates.
    pub(super) fn round(&self, id: NodeId) -> usize {
        self.rounds[id.index()]
    }

    /// The rounds there are.
    pub(super) fn last_round(&self) -> usize {
        self.rounds.iter().copied().max().unwrap_or(0)
    }

    /// The program that a node is a step of, or whose run the host fills an input for.
    fn role(&self, id: NodeId) -> Option<Role> {
        Some((self.graph.node(id).stage? as usize, self.phase(id)))
    }

    /// The programs that read a value, directly or through views.
    fn readers(&self, value: Value, found: &mut Vec<Role>) {
        for user in self.graph.users(value) {
            if self.graph.node(user.node).op.is_view() {
                self.readers(self.graph.value(user.node), found);
            } else {
                found.extend(self.role(user.node));
            }
        }
    }

    /// Visits whose values are alive at once, and whether its bytes outlive the program
    /// that writes them.
    pub(super) fn slots(&self, value: Value) -> (u32, bool) {
        let mut readers = Vec::new();
        self.readers(value, &mut readers);
        readers.sort_unstable();
        readers.dedup();
        let writer = match &self.graph.node(value.node).op {
            Op::Param(_) | Op::Constant(_) | Op::State(_) => None,
            Op::Input(_) => readers.first().copied(),
            _ => self.role(value.node),
        };
        let Some(writer) = writer.filter(|_| !self.update) else {
            return (1, false);
        };
        let slots = |&reader: &Role| {
            let mut depths = self.depths.borrow_mut();
            let known = depths.entry((writer, reader));
            *known.or_insert_with(|| self.schedule.places(&self.played, writer, reader))
        };
        let others = readers.iter().filter(|&&reader| reader != writer);
        let deepest = others.map(slots).max();
        (deepest.unwrap_or(1).max(1) as u32, deepest.is_some())
    }

    /// What the bytes of a value are for.
    pub(super) fn category(&self, value: Value) -> Category {
        let op = &self.graph.node(value.node).op;
        match op {
            Op::Param(_) | Op::Constant(_) => return Category::Weights,
            Op::State(state) if state.name.starts_with(ACCUMULATOR) => {
                return Category::Accumulators;
            }
            Op::State(_) => return Category::Optimizer,
            Op::Input(_) => return Category::HostIo,
            _ if self.leaves(value) => return Category::HostIo,
            _ => {}
        }
        let mut readers = Vec::new();
        self.readers(value, &mut readers);
        let kept = readers
            .iter()
            .any(|&(_, phase)| phase != self.phase(value.node));
        match op {
            _ if kept => Category::Stash,
            Op::Transfer(_) => Category::Transfer,
            _ => Category::Activations,
        }
    }

    /// Bytes that a replica holds of the value for a visit. A sum of gradients is whole until replicas add theirs up;
    /// parameters and states are shared by all micro-batches.
    pub(super) fn bytes(&self, value: Value) -> u64 {
        let whole = self.graph.ty(value).bytes();
        let bytes = match self.category(value) {
            Category::Optimizer => sharding::shard_bytes(self.graph, value),
            Category::Weights | Category::Accumulators => whole,
            _ => whole.saturating_mul(self.group),
        };
        bytes as u64
    }

    /// Whether the host reads the value, or a view of it.
    fn leaves(&self, value: Value) -> bool {
        let outputs = self.graph.outputs().iter();
        let is_read = |output: &Output| output.value == value && !output.is_stored();
        outputs.filter(|output| is_read(output)).count() > 0
            || self.graph.users(value).iter().any(|user| {
                self.graph.node(user.node).op.is_view() && self.leaves(self.graph.value(user.node))
            })
    }

    /// The tile in whose memory a node's values lie.
    pub(super) fn tile(&self, id: NodeId) -> Option<usize> {
        home(self.graph, id).map(|stage| self.schedule.tile_of(stage as usize))
    }

    /// The leaf whose bytes a value replaces, if it is stored.
    pub(super) fn stored_over(&self, value: Value) -> Option<NodeId> {
        self.stored.get(&value).copied()
    }
}

/// The leaf on its own stage that each stored value replaces: its first output that is stored says which.
fn replaced(graph: &Graph) -> FxHashMap<Value, NodeId> {
    let mut leaves: FxHashMap<(String, Option<u32>), NodeId> = FxHashMap::default();
    for id in graph.nodes() {
        let node = graph.node(id);
        let name = match &node.op {
            Op::Param(param) => Output::param_name(&param.value),
            Op::State(state) => Output::state_name(&state.name),
            _ => continue,
        };
        leaves.entry((name, node.stage)).or_insert(id);
    }
    let mut stored = FxHashMap::default();
    for output in graph.outputs().iter().filter(|output| output.is_stored()) {
        let stage = home(graph, output.value.node);
        let leaf = leaves.get(&(output.name.clone(), stage)).copied();
        stored.entry(output.value).or_insert(leaf);
    }
    let known = |(value, leaf): (Value, Option<NodeId>)| Some((value, leaf?));
    stored.into_iter().filter_map(known).collect()
}
