//! Cost models: how many cycles a node takes on a tile of a target.
//!
//! There is one trait and one model per kind of machine. Partition minimises these cycles and the
//! simulator plays them, so that the two cannot disagree.

mod cpu;
mod mk2;

use lxpod_ir::{Extents, Graph, Machine, NodeId, Target};
use serde::{Deserialize, Serialize};

/// Cycles of one node on one tile, by what the tile does meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycles {
    /// Cores computing.
    pub compute: u64,
    /// Cores exchanging data inside the tile.
    pub exchange: u64,
    /// Cores waiting for one another.
    pub sync: u64,
}

impl Cycles {
    /// All of them.
    pub fn total(self) -> u64 {
        self.compute + self.exchange + self.sync
    }

    /// So many times as many.
    pub fn times(self, count: u64) -> Cycles {
        Cycles {
            compute: self.compute.saturating_mul(count),
            exchange: self.exchange.saturating_mul(count),
            sync: self.sync.saturating_mul(count),
        }
    }
}

impl std::ops::Add for Cycles {
    type Output = Cycles;

    fn add(self, other: Cycles) -> Cycles {
        Cycles {
            compute: self.compute + other.compute,
            exchange: self.exchange + other.exchange,
            sync: self.sync + other.sync,
        }
    }
}

impl std::iter::Sum for Cycles {
    fn sum<I: Iterator<Item = Cycles>>(items: I) -> Cycles {
        items.fold(Cycles::default(), |sum, cycles| sum + cycles)
    }
}

/// The cycles of nodes on the tiles of one machine.
pub trait CostModel {
    /// What the model assumes and where its constants come from, for `--explain`.
    fn explain(&self) -> &'static str;

    /// Cycles of a node at full capacity. Leaves and views take none.
    fn node(&self, graph: &Graph, id: NodeId) -> Cycles;

    /// Cycles of a node for `group` micro-batches at once, at full capacity; by default those of each of them.
    fn visit(&self, graph: &Graph, id: NodeId, group: usize) -> Cycles {
        self.node(graph, id).times(group as u64)
    }

    /// Cycles of a node in a run at these extents, which must be of the graph. By default those at
    /// full capacity: a pod's programs are fixed, and compute every row there may be.
    fn node_at(&self, graph: &Graph, id: NodeId, extents: &Extents) -> Cycles {
        let _ = extents;
        self.node(graph, id)
    }
}

/// The model of a target's machine.
pub fn model(target: &Target) -> Box<dyn CostModel> {
    match target.machine {
        Machine::Mk2 => Box::new(mk2::Mk2::new(target)),
        Machine::Cpu => Box::new(cpu::Cpu::new(target)),
    }
}
