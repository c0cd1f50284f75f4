//! The Mk2's cost model: bulk-synchronous phases of compute, exchange and sync on 1,472 cores.
//!
//! Matrix products follow poplin's estimator for the 1x1 AMP vertex (`PerformanceEstimation.hpp`):
//! a block of 16 inputs x 8 outputs over P rows takes 24·⌈P/6⌉ + 152 cycles with f16 inputs and
//! float partials, 48·⌈P/6⌉ + 152 in f32, where 152 holds the weight load. The split of rows,
//! outputs and inputs over cores is searched, as poplin's planner does, for the fewest cycles.
//! Elementwise work follows popops' per-worker loops; six workers share a core's issue slots, so a
//! loop of c cycles per element and worker takes c cycles per element of the core.

use std::cell::RefCell;

use lxpod_ir::ops::Op;
use lxpod_ir::{DType, Graph, NodeId, Target, TensorType, Tile, sharding};
use rustc_hash::FxHashMap;

use super::{CostModel, Cycles};

/// Inputs and outputs of one AMP block.
const BLOCK_INPUTS: u64 = 16;
const BLOCK_OUTPUTS: u64 = 8;
/// Workers of a core.
const WORKERS: u64 = 6;
/// Cycles of a block beyond its rows: weight load, inner and outer loop.
const BLOCK_OVERHEAD: u64 = 152;
/// Cycles of a vertex's supervisor code.
const SUPERVISOR: u64 = 50;
/// Partials a core reduces in three cycles: (4/2 + 1)·depth cycles for 4 outputs of one worker, six of
/// which take turns (poplin's multi-input reduction in float).
const REDUCE_PER_3_CYCLES: u64 = 4;
/// Cycles to start one elementwise vertex: supervisor and worker prologues (popops).
const VERTEX: u64 = 170;
/// Cycles per element and worker of a softmax: maximum, subtract, exp, sum, multiply (popnn).
const SOFTMAX_CYCLES: u64 = 3;
/// Cycles per element and worker of a layer norm: two statistics, whiten, gain and bias.
const NORM_CYCLES: u64 = 3;
/// Cycles per element and worker of a nonlinearity, 5 per 64-bit vector (popnn's GELU).
const ACTIVATION_CYCLES: u64 = 2;
/// Cycles per element and worker of dropout: load, random mask (`f16v4rmask`), scale and store of each
/// 64-bit vector.
const DROPOUT_CYCLES: u64 = 1;
/// Cycles per element and worker of an optimiser: four loads, some 16 operations and a root on pairs of
/// floats, three stores.
const UPDATE_CYCLES: u64 = 12;

/// One product of an M x K by a K x N matrix, `groups` of them side by side.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Product {
    groups: u64,
    rows: u64,
    inner: u64,
    outputs: u64,
    half: bool,
}

/// The second-generation IPU.
pub(super) struct Mk2 {
    tile: Tile,
    products: RefCell<FxHashMap<Product, Cycles>>,
}

impl Mk2 {
    pub(super) fn new(target: &Target) -> Self {
        Mk2 {
            tile: target.tile.clone(),
            products: RefCell::default(),
        }
    }

    fn product(&self, product: Product) -> Cycles {
        if let Some(&known) = self.products.borrow().get(&product) {
            return known;
        }
        let best = self.plan_product(product);
        self.products.borrow_mut().insert(product, best);
        best
    }

    /// The cheapest split of rows, outputs and inputs over the cores.
    fn plan_product(&self, product: Product) -> Cycles {
        let cores = (self.tile.cores / product.groups).max(1);
        let rounds = product.groups.div_ceil(self.tile.cores);
        let (inputs, outputs) = (
            product.inner.div_ceil(BLOCK_INPUTS),
            product.outputs.div_ceil(BLOCK_OUTPUTS),
        );
        let mut best: Option<Cycles> = None;
        for row_split in splits(product.rows.div_ceil(WORKERS), cores) {
            for output_split in splits(outputs, cores / row_split) {
                for input_split in splits(inputs, cores / row_split / output_split) {
                    let cycles = self.split_product(product, row_split, output_split, input_split);
                    if best.is_none_or(|best| cycles.total() < best.total()) {
                        best = Some(cycles);
                    }
                }
            }
        }
        let best = best.unwrap_or_default();
        Cycles {
            compute: best.compute * rounds,
            exchange: best.exchange * rounds,
            sync: best.sync,
        }
    }

    fn split_product(
        &self,
        product: Product,
        row_split: u64,
        output_split: u64,
        input_split: u64,
    ) -> Cycles {
        let bytes = if product.half { 2 } else { 4 };
        let rows = product.rows.div_ceil(row_split);
        let outputs = product
            .outputs
            .div_ceil(BLOCK_OUTPUTS)
            .div_ceil(output_split);
        let inputs = product.inner.div_ceil(BLOCK_INPUTS).div_ceil(input_split);
        let row_cycles = if product.half { 24 } else { 48 };
        let block = row_cycles * rows.div_ceil(WORKERS) + BLOCK_OVERHEAD;
        let partials = rows * outputs * BLOCK_OUTPUTS;
        let reduce = if input_split > 1 {
            (partials * 3).div_ceil(REDUCE_PER_3_CYCLES) + VERTEX
        } else {
            0
        };
        let received = rows * inputs * BLOCK_INPUTS * bytes
            + if row_split > 1 {
                inputs * BLOCK_INPUTS * outputs * BLOCK_OUTPUTS * bytes
            } else {
                0
            }
            + if input_split > 1 { partials * 4 } else { 0 };
        Cycles {
            compute: inputs * outputs * block + SUPERVISOR + reduce,
            exchange: received.div_ceil(self.tile.exchange_bytes_per_cycle),
            sync: self.tile.sync_cycles * if input_split > 1 { 2 } else { 1 },
        }
    }

    /// `cycles` per element and worker over all elements of a type, in `phases` vertices.
    fn elementwise(&self, ty: &TensorType, cycles: u64, phases: u64) -> Cycles {
        let elements = (ty.shape.elements() as u64).div_ceil(self.tile.cores);
        let vector = if ty.dtype == DType::F32 { 2 } else { 1 };
        Cycles {
            compute: elements * cycles * vector + phases * VERTEX,
            exchange: 0,
            sync: phases * self.tile.sync_cycles,
        }
    }

    /// A type's bytes spread evenly over the cores and received by each.
    fn moved(&self, bytes: u64) -> Cycles {
        let share = bytes.div_ceil(self.tile.cores);
        let exchange = share.div_ceil(self.tile.exchange_bytes_per_cycle);
        Cycles {
            compute: share / 8 + VERTEX,
            exchange,
            sync: self.tile.sync_cycles,
        }
    }

    fn attention(&self, graph: &Graph, id: NodeId, heads: u64) -> Cycles {
        let types = graph.input_types(id);
        let Some([scores, context]) = attention_products(graph, &types[..2], heads) else {
            return Cycles::default();
        };
        self.product(scores)
            + self.softmax(scores, types[0].dtype)
            + self.product(context)
            + self.moved(types.iter().map(|ty| ty.bytes() as u64).sum())
    }

    /// The scores once more, and the four products that the cotangents are.
    fn attention_grad(&self, graph: &Graph, id: NodeId, heads: u64) -> Cycles {
        let types = graph.input_types(id);
        let Some([scores, context]) = attention_products(graph, &types[1..3], heads) else {
            return Cycles::default();
        };
        let over_queries = Product {
            rows: context.inner,
            inner: context.rows,
            ..context
        };
        [scores, scores, context, over_queries, over_queries]
            .into_iter()
            .map(|product| self.product(product))
            .fold(self.softmax(scores, types[1].dtype), |sum, cycles| {
                sum + cycles
            })
            + self.moved(types.iter().map(|ty| ty.bytes() as u64).sum())
    }

    fn softmax(&self, scores: Product, dtype: DType) -> Cycles {
        let elements = (scores.groups * scores.rows * scores.outputs) as usize;
        self.elementwise(&TensorType::fixed(dtype, [elements]), SOFTMAX_CYCLES, 4)
    }

    /// dyᵀ · x: the rows are summed over.
    fn weight_grad(&self, graph: &Graph, id: NodeId) -> Cycles {
        let types = graph.input_types(id);
        self.product(Product {
            groups: 1,
            rows: types[0].shape.row_elements() as u64,
            inner: types[0].shape.rows() as u64,
            outputs: types[1].shape.row_elements() as u64,
            half: types[1].dtype != DType::F32,
        })
    }

    fn matmul(&self, graph: &Graph, id: NodeId) -> Cycles {
        let types = graph.input_types(id);
        self.product(Product {
            groups: 1,
            rows: types[0].shape.rows() as u64,
            inner: types[1].shape.rows() as u64,
            outputs: types[1].shape.row_elements() as u64,
            half: types[1].dtype != DType::F32,
        })
    }

    fn linear(&self, graph: &Graph, id: NodeId, activated: bool) -> Cycles {
        let types = graph.input_types(id);
        let output = &graph.node(id).types[0];
        let product = Product {
            groups: 1,
            rows: types[0].shape.rows() as u64,
            inner: types[1].shape.last_axis() as u64,
            outputs: types[1].shape.rows() as u64,
            half: types[1].dtype != DType::F32,
        };
        let epilogue = u64::from(types.len() > 2) + if activated { ACTIVATION_CYCLES } else { 0 };
        let phases = u64::from(types.len() > 2) + u64::from(activated);
        self.product(product) + self.elementwise(output, epilogue, phases)
    }
}

/// The products of queries with keys and of probabilities with values, from the types of queries and
/// keys, for all segments and heads side by side.
fn attention_products(graph: &Graph, types: &[TensorType], heads: u64) -> Option<[Product; 2]> {
    let (query, spaces) = (&types[0], &graph.spaces);
    let (queries, keys) = (query.rows?, types[1].rows?);
    let segments = spaces
        .owner(queries)
        .map_or(1, |owner| spaces.get(owner).capacity) as u64;
    let scores = Product {
        groups: segments * heads,
        rows: spaces.longest(queries) as u64,
        inner: query.shape.last_axis() as u64 / heads,
        outputs: spaces.longest(keys) as u64,
        half: query.dtype != DType::F32,
    };
    let context = Product {
        inner: scores.outputs,
        outputs: scores.inner,
        ..scores
    };
    Some([scores, context])
}

/// A type with the elements of it that a replica works on.
fn share(graph: &Graph, id: NodeId, ty: &TensorType) -> TensorType {
    match sharding::operand_shards(graph, id) {
        1 => ty.clone(),
        shards => {
            let elements = sharding::largest_shard(ty.shape.elements(), shards);
            TensorType::fixed(ty.dtype, [elements])
        }
    }
}

/// Ways to split `items` over at most `most` cores that differ in the largest share.
fn splits(items: u64, most: u64) -> impl Iterator<Item = u64> {
    let most = most.min(items).max(1);
    let mut next = Some(1);
    std::iter::from_fn(move || {
        let split = next?;
        let share = items.max(1).div_ceil(split);
        next = (share > 1)
            .then(|| items.div_ceil(share - 1))
            .filter(|&after| after <= most);
        Some(split)
    })
}

impl CostModel for Mk2 {
    fn explain(&self) -> &'static str {
        "mk2: AMP blocks of 16x8 take 24*ceil(rows/6) + 152 cycles (f16, float partials) or 48*ceil(rows/6) + 152 \
         (f32), split over cores for the fewest cycles (poplin PerformanceEstimation.hpp); exchange and \
         sync at the rates of the target file; elementwise loops as popops and popnn estimate them. Analytic, not calibrated: \
         published runs imply 25-35 % of peak for well-filled products, small products far less"
    }

    fn node(&self, graph: &Graph, id: NodeId) -> Cycles {
        let node = graph.node(id);
        let output = node.types.first();
        match (&node.op, output) {
            (
                Op::Input(_)
                | Op::Param(_)
                | Op::State(_)
                | Op::Constant(_)
                | Op::Slice(_)
                | Op::Part(_)
                | Op::Transfer(_),
                _,
            )
            | (_, None) => Cycles::default(),
            (Op::Linear(linear), _) => self.linear(graph, id, linear.activation.is_some()),
            (Op::Attention(attention), _) => self.attention(graph, id, attention.heads as u64),
            (Op::AttentionGrad(attention), _) => {
                self.attention_grad(graph, id, attention.heads as u64)
            }
            (Op::Matmul(_), _) => self.matmul(graph, id),
            (Op::WeightGrad(_), _) => self.weight_grad(graph, id),
            (Op::LayerNormGrad(_), Some(ty)) => self.elementwise(ty, 2 * NORM_CYCLES, 5),
            (Op::LayerNorm(_), Some(ty)) => self.elementwise(ty, NORM_CYCLES, 3),
            (Op::Add(_) | Op::Scale(_), Some(ty)) => self.elementwise(ty, 1, 1),
            (Op::Dropout(_), Some(ty)) => self.elementwise(ty, DROPOUT_CYCLES, 1),
            (Op::Activate(_) | Op::ActivateGrad(_), Some(ty)) => {
                self.elementwise(ty, ACTIVATION_CYCLES, 1)
            }
            (Op::Sgd(_) | Op::Adam(_) | Op::Lamb(_), Some(ty)) => {
                self.elementwise(&share(graph, id, ty), UPDATE_CYCLES, 1)
            }
            (Op::TrustRatio(_), _) => {
                let ty = share(graph, id, &graph.input_types(id)[0]);
                self.elementwise(&ty, UPDATE_CYCLES, 2)
            }
            (Op::SumSquares(_) | Op::Histogram(_) | Op::Clip(_), _) => {
                self.elementwise(&share(graph, id, &graph.input_types(id)[0]), 1, 2)
            }
            (Op::SumRows(_), _) => self.elementwise(&graph.input_types(id)[0], 1, 2),
            (
                Op::Concat(_)
                | Op::GatherRows(_)
                | Op::ScatterAddRows(_)
                | Op::Zeros(_)
                | Op::Cast(_),
                Some(ty),
            ) => self.moved(share(graph, id, ty).bytes() as u64),
            (Op::CrossEntropy(_) | Op::Bce(_) | Op::SmoothL1(_), _) => {
                self.elementwise(&graph.input_types(id)[0], SOFTMAX_CYCLES, 4)
            }
            (Op::CrossEntropyGrad(_) | Op::BceGrad(_) | Op::SmoothL1Grad(_), Some(ty)) => {
                self.elementwise(ty, SOFTMAX_CYCLES, 4)
            }
        }
    }
}
