//! The CPU's cost model: what each kernel's inner loop takes, or the memory, and a barrier.
//!
//! Rates (cores, clock, multiply-adds a cycle, memory bandwidth, barrier) come from the target; what belongs to the
//! kernels stands here, in cycles of one core, fitted to the shares of the peak that docs/kernels.md lists.
//! The memory is one for all cores: its rate is that of the tile's host link.

use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Extents, Graph, NodeId, Spaces, Target, TensorType, Tile};
use smallvec::SmallVec;

use super::{CostModel, Cycles};

/// Outputs of a panel of weights.
const PANEL: u64 = 16;
/// Rows that are packed and multiplied at a time.
const BLOCK_ROWS: u64 = 96;
/// Multiply-adds a cycle of two units of eight f32.
const NARROW: u64 = 16;
/// The most rows of a tile with registers of eight f32, and of sixteen.
const TILE_ROWS: [u64; 2] = [6, 12];
/// Cycles of one input and one panel for a narrow tile of 1 to 6 rows of f32: two vectors a row, two multiply-adds a cycle, but
/// three rows are too few sums to hide a latency of four cycles. One and two rows take several panels at once.
const TILE_CYCLES: [f64; 6] = [1.1, 2.2, 4.15, 4.2, 5.2, 6.2];
/// What other tiles take of the cycles that their products take at the peak.
const TILE_FACTOR: f64 = 1.04;
/// Cycles to begin and end a tile of one panel: sums, bias, store.
const TILE_OVERHEAD: f64 = 40.0;
/// Cycles per element to pack the left side, which each core does.
const PACK: f64 = 0.35;
/// What is not hidden of the shorter of computing and reading the weights, of so many rows;
/// with more there is more time to read ahead.
const EXPOSED: f64 = 0.65;
const AHEAD_ROWS: u64 = 6;
/// Cycles per element of the loops over elements.
const COPY: f64 = 0.5;
const ACTIVATION: f64 = 2.4;
const NORM: f64 = 1.15;
const LOSS: f64 = 8.0;
/// How much slower than a stream rows are read that lie anywhere.
const SCATTERED: f64 = 3.0;
/// Attention pads the keys of a segment to whole panels. Cycles per pair of rows and head beside the products, per
/// element of a key to pack it and its value, per segment and head; and the share of the peak that its products reach.
const SOFTMAX: f64 = 7.0;
const KEY: f64 = 0.5;
const HEAD: f64 = 2000.0;
const ATTENTION_PEAK: f64 = 0.8;

/// A shared-memory processor.
pub(super) struct Cpu {
    tile: Tile,
    /// Bytes per cycle of the memory behind the caches.
    memory: f64,
}

/// A node with its types at the shapes it runs with.
struct Work<'a> {
    op: &'a Op,
    inputs: SmallVec<[TensorType; 4]>,
    output: TensorType,
    spaces: &'a Spaces,
    extents: Option<&'a Extents>,
    /// The micro-batches whose rows they are.
    group: usize,
}

impl Cpu {
    pub(super) fn new(target: &Target) -> Self {
        Cpu {
            tile: target.tile.clone(),
            memory: target.host.bytes_per_second as f64 / target.tile.clock_hz as f64,
        }
    }

    /// The part of `items` equal pieces of work that the busiest core does, as a share of all.
    fn share(&self, items: u64) -> f64 {
        items.div_ceil(self.tile.cores) as f64 / items.max(1) as f64
    }

    /// Tiles of `rows` rows, and cycles of all of them for one input and one panel of weights of that dtype.
    fn tiles(&self, rows: u64, weights: DType) -> (u64, f64) {
        let tile = &self.tile;
        let macs = if weights == DType::F32 {
            tile.macs_float
        } else {
            tile.macs_half
        };
        let most = TILE_ROWS[usize::from(tile.macs_float > NARROW)];
        let cycles = |rows: u64| match rows {
            1..=6 if macs <= NARROW => TILE_CYCLES[rows as usize - 1] * NARROW as f64 / macs as f64,
            _ => (rows * PANEL) as f64 * TILE_FACTOR / macs as f64,
        };
        let block = |rows: u64| {
            let tiles = rows.div_ceil(most).max(1);
            let (small, larger) = (rows / tiles, rows % tiles);
            let sum = larger as f64 * cycles(small + 1) + (tiles - larger) as f64 * cycles(small);
            (tiles, sum)
        };
        let (whole, rest) = (rows / BLOCK_ROWS, block(rows % BLOCK_ROWS));
        let (tiles, cycles) = block(BLOCK_ROWS);
        (whole * tiles + rest.0, whole as f64 * cycles + rest.1)
    }

    /// Cycles of one core to do one operation at the peak rate.
    fn peak(&self, flops: f64) -> f64 {
        flops / (2 * self.tile.macs_float) as f64
    }

    fn cycles(&self, work: &Work<'_>) -> (f64, f64) {
        let elements = work.output.shape.elements() as f64;
        let rows = work.output.shape.rows() as u64;
        let loops = |cycles: f64| (elements * cycles * self.share(rows), 0.0);
        match work.op {
            Op::Linear(linear) => self.linear(work, linear.activation.is_some()),
            Op::Attention(attention) => (self.attention(work, attention.heads as u64), 0.0),
            Op::LayerNorm(_) => loops(NORM),
            Op::Activate(_) => loops(ACTIVATION),
            // Rows of a table lie anywhere in memory.
            Op::GatherRows(_) => {
                let read = elements * work.inputs[0].dtype.size() as f64;
                (loops(COPY).0, read * SCATTERED / self.memory)
            }
            // One core computes a loss.
            Op::CrossEntropy(_) | Op::Bce(_) | Op::SmoothL1(_) => {
                (work.inputs[0].shape.elements() as f64 * LOSS, 0.0)
            }
            _ => loops(COPY),
        }
    }

    /// Compute and memory cycles of a linear layer.
    fn linear(&self, work: &Work<'_>, activated: bool) -> (f64, f64) {
        let (x, weight) = (&work.inputs[0], &work.inputs[1]);
        let (rows, inputs) = (x.shape.rows() as u64, weight.shape.last_axis() as f64);
        let outputs = weight.shape.rows() as u64;
        let panels = outputs.div_ceil(PANEL);
        let busiest = panels as f64 * self.share(panels);
        let (tiles, cycles) = self.tiles(rows, weight.dtype);
        // A share of the products themselves, so that more rows never take less.
        let ahead = self.tiles(AHEAD_ROWS, weight.dtype).1 / cycles;
        let chains = busiest * inputs * cycles;
        let products = chains + busiest * tiles as f64 * TILE_OVERHEAD;
        let packing = rows as f64 * inputs * PACK;
        let epilogue = if activated { ACTIVATION } else { 0.0 };
        let epilogue = busiest * (rows * PANEL) as f64 * epilogue;
        let bytes = if weight.dtype == DType::F32 { 4.0 } else { 2.0 };
        let blocks = rows.div_ceil(BLOCK_ROWS) as f64;
        let streamed = outputs as f64 * inputs * bytes * blocks / self.memory;
        let compute = products + packing + epilogue;
        let exposed = chains.min(streamed) * EXPOSED * ahead.min(1.0);
        if compute > streamed {
            (compute + exposed, streamed)
        } else {
            (compute, streamed + exposed)
        }
    }

    fn attention(&self, work: &Work<'_>, heads: u64) -> f64 {
        let width = work.inputs[0].shape.last_axis() as f64;
        let keys = work.inputs[1].shape.rows() as f64;
        let (segments, pairs) = work.padded_pairs();
        let products = self.peak(4.0 * pairs * width) / ATTENTION_PEAK;
        let units = segments * heads;
        let rest = pairs * heads as f64 * SOFTMAX + keys * width * KEY + units as f64 * HEAD;
        (products + rest) * self.share(units)
    }

    fn at(&self, graph: &Graph, id: NodeId, extents: Option<&Extents>) -> Cycles {
        self.of(&Work::of(graph, id, extents))
    }

    fn of(&self, work: &Work<'_>) -> Cycles {
        if work.op.is_leaf() || work.op.is_view() || matches!(work.op, Op::Transfer(_)) {
            return Cycles::default();
        }
        let (compute, memory) = self.cycles(work);
        let (compute, memory) = (compute.ceil() as u64, memory.ceil() as u64);
        Cycles {
            compute,
            exchange: memory.saturating_sub(compute),
            sync: self.tile.sync_cycles,
        }
    }
}

impl<'a> Work<'a> {
    /// A node at full capacity, or in a run at these extents.
    fn of(graph: &'a Graph, id: NodeId, extents: Option<&'a Extents>) -> Self {
        let at = |ty: &TensorType| extents.map_or_else(|| ty.clone(), |extents| ty.at(extents));
        Work {
            op: &graph.node(id).op,
            inputs: graph.input_types(id).iter().map(at).collect(),
            output: at(&graph.node(id).types[0]),
            spaces: &graph.spaces,
            extents,
            group: 1,
        }
    }

    /// A node for so many micro-batches at once, all rows end to end.
    fn of_visit(graph: &'a Graph, id: NodeId, group: usize) -> Self {
        let mut work = Work::of(graph, id, None);
        for ty in work.inputs.iter_mut().chain([&mut work.output]) {
            if ty.rows.is_some() {
                let rows = ty.shape.rows() * group;
                ty.shape = ty.shape.with_rows(rows);
            }
        }
        Work { group, ..work }
    }

    /// Segments of an attention, and pairs of a query with a key or a key's padding in all of them.
    fn padded_pairs(&self) -> (u64, f64) {
        let (Some(queries), Some(keys)) = (self.inputs[0].rows, self.inputs[1].rows) else {
            return (0, 0.0);
        };
        let pairs = |queries: usize, keys: usize| {
            queries as f64 * (keys as u64).next_multiple_of(PANEL) as f64
        };
        match (self.extents, self.spaces.owner(queries)) {
            (Some(extents), _) => {
                let rows = |space, segment| extents.segment(space, segment).len();
                let segments = 0..extents.segments(queries);
                let of = |segment| pairs(rows(queries, segment), rows(keys, segment));
                (segments.len() as u64, segments.map(of).sum())
            }
            (None, Some(owner)) => {
                let segments = self.spaces.get(owner).capacity * self.group;
                let each = pairs(self.spaces.longest(queries), self.spaces.longest(keys));
                (segments as u64, segments as f64 * each)
            }
            (None, None) => (0, 0.0),
        }
    }
}

impl CostModel for Cpu {
    fn explain(&self) -> &'static str {
        "cpu: cycles of each kernel's inner loop on the busiest core, or weights / memory bandwidth if that is more, \
         with what the two do not hide of one another, + one barrier per step; rates from the target file, cycles of the kernels fitted to measured ones (docs/cost-model.md)"
    }

    fn node(&self, graph: &Graph, id: NodeId) -> Cycles {
        self.at(graph, id, None)
    }

    fn visit(&self, graph: &Graph, id: NodeId, group: usize) -> Cycles {
        // Sums over rows go over those of all micro-batches; other values without rows are of each by itself.
        let node = graph.node(id);
        match (&node.op, node.types[0].rows) {
            (_, Some(_)) | (Op::WeightGrad(_) | Op::SumRows(_), None) => {
                self.of(&Work::of_visit(graph, id, group))
            }
            (_, None) => self.node(graph, id).times(group as u64),
        }
    }

    fn node_at(&self, graph: &Graph, id: NodeId, extents: &Extents) -> Cycles {
        self.at(graph, id, Some(extents))
    }
}
