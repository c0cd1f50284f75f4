//! Random graphs.

use std::sync::Arc;

use super::Rng;
use crate::ops::{
    Activate, Activation, Add, Attention, Bce, Cast, Concat, Constant, CrossEntropy, Dropout,
    GatherRows, Input, LayerNorm, Linear, Op, Param, Part, Reduction, Scale, Slice, SmoothL1,
};
use crate::rows::{Layout, SpaceId, Spaces};
use crate::{Binding, DType, Graph, TensorType, Value};

/// No element of a random graph's values grows beyond this, so that f16 holds them all.
const MAX_MAGNITUDE: f64 = 4096.0;
const WIDTHS: [usize; 3] = [4, 8, 12];
const MAX_WIDTH: usize = 24;

/// A well-typed graph of at least `size` nodes over all ops but `transfer`, with entity spaces,
/// segments and unions, merged parameters, constants, repeated and unused nodes, and one to five
/// outputs.
pub fn random_graph(seed: u64, size: usize) -> Graph {
    let mut rng = Rng::new(seed);
    let spaces = random_spaces(&mut rng);
    let mut grower = Grower {
        graph: Graph::new("random", spaces),
        rng,
        pool: Vec::new(),
        named: 0,
        scope: "".into(),
    };
    grower.seed_values();
    while grower.graph.len() < size {
        grower.rescope();
        if grower.grow().is_none() {
            grower.matrix();
        }
    }
    grower.outputs();
    grower.graph
}

fn random_spaces(rng: &mut Rng) -> Spaces {
    let mut spaces = Spaces::default();
    let sample = spaces.entities("sample", 1 + rng.below(3));
    let text = spaces.segments("text", sample, 2 + rng.below(4));
    let boxes = spaces.segments("box", sample, 1 + rng.below(3));
    let image = spaces.entities("image", 1 + rng.below(2));
    let region = spaces.segments("region", image, 2);
    let both = spaces.union(&[text, boxes]);
    spaces.union(&[text, text]);
    spaces.union(&[both, region]);
    spaces
}

/// A value to use as an operand, and how large its elements can be.
#[derive(Clone, Copy)]
struct Made {
    value: Value,
    magnitude: f64,
}

struct Grower {
    graph: Graph,
    rng: Rng,
    pool: Vec<Made>,
    named: usize,
    scope: Arc<str>,
}

impl Grower {
    fn ty(&self, made: Made) -> TensorType {
        self.graph.ty(made.value).clone()
    }

    fn name(&mut self, kind: &str) -> String {
        self.named += 1;
        format!("{kind}.{}", self.named)
    }

    fn rescope(&mut self) {
        if self.rng.one_in(6) {
            let layer = self.rng.below(4);
            self.scope = format!("encoder.layer.{layer}").into();
        }
    }

    /// Adds a node whose first output has elements up to `magnitude`; `None` where they would be
    /// too large or the operands do not fit.
    fn add(&mut self, op: impl Into<Op>, operands: &[Made], magnitude: f64) -> Option<Made> {
        let dtype = if self.rng.one_in(6) {
            DType::F16
        } else {
            DType::F32
        };
        let declared = TensorType::fixed(dtype, []);
        let declared = if self.rng.one_in(2) {
            vec![declared.clone(), declared]
        } else {
            Vec::new()
        };
        self.add_typed(op.into(), operands, &declared, magnitude)
    }

    fn add_typed(
        &mut self,
        op: Op,
        operands: &[Made],
        declared: &[TensorType],
        magnitude: f64,
    ) -> Option<Made> {
        if magnitude > MAX_MAGNITUDE {
            return None;
        }
        let values: Vec<Value> = operands.iter().map(|made| made.value).collect();
        let node = self.graph.add(op, &values, declared, &self.scope).ok()?;
        for output in 0..self.graph.node(node).types.len() as u16 {
            let value = Value { node, output };
            self.pool.push(Made { value, magnitude });
        }
        let value = self.graph.value(node);
        Some(Made { value, magnitude })
    }

    fn pick(&mut self, fits: impl Fn(&TensorType) -> bool) -> Option<Made> {
        let fitting: Vec<Made> = self
            .pool
            .iter()
            .copied()
            .filter(|made| fits(self.graph.ty(made.value)))
            .collect();
        self.rng.pick(&fitting)
    }

    fn pick_matrix(&mut self) -> Option<Made> {
        self.pick(|ty| ty.dtype.is_float() && ty.shape.len() == 2)
    }

    fn pick_float(&mut self) -> Option<Made> {
        self.pick(|ty| ty.dtype.is_float())
    }

    fn pick_like(&mut self, like: &TensorType) -> Option<Made> {
        self.pick(|ty| ty.dtype.is_float() && ty.rows == like.rows && ty.shape == like.shape)
    }

    fn input(&mut self, ty: TensorType) -> Option<Made> {
        let name = self.name("input");
        let op = Input { name }.into();
        self.add_typed(op, &[], &[ty], 100.0)
    }

    fn real_input(&mut self, like: &TensorType) -> Option<Made> {
        let made = self.input(like.with_dtype(DType::F32))?;
        self.pool.pop();
        let made = Made {
            magnitude: 1.0,
            ..made
        };
        self.pool.push(made);
        Some(made)
    }

    fn space(&mut self) -> SpaceId {
        let all: Vec<SpaceId> = self.graph.spaces.iter().map(|(id, _)| id).collect();
        all[self.rng.below(all.len())]
    }

    /// A new input matrix in some row space.
    fn matrix(&mut self) -> Option<Made> {
        let space = self.space();
        let width = WIDTHS[self.rng.below(WIDTHS.len())];
        let ty = TensorType::in_space(DType::F32, &self.graph.spaces, space, &[width]);
        self.real_input(&ty)
    }

    fn seed_values(&mut self) {
        let spaces: Vec<SpaceId> = self.graph.spaces.iter().map(|(id, _)| id).collect();
        for space in spaces.into_iter().take(3) {
            let ty = TensorType::in_space(DType::F32, &self.graph.spaces, space, &[8]);
            self.real_input(&ty);
        }
    }

    /// A parameter, bound to one tensor or to parts of several, or an old one of that shape.
    fn param(&mut self, shape: &[usize]) -> Option<Made> {
        if self.rng.one_in(3) {
            let old = self.pick(|ty| ty.rows.is_none() && *ty.shape == *shape);
            if old.is_some_and(|made| matches!(self.graph.node(made.value.node).op, Op::Param(_))) {
                return old;
            }
        }
        let value = self.binding(shape[0]);
        let ty = TensorType::fixed(DType::F32, shape);
        self.add_typed(Param { value }.into(), &[], &[ty], 2.0)
    }

    fn binding(&mut self, rows: usize) -> Binding {
        let tensor = Binding::Tensor(self.name("weight"));
        match self.rng.below(5) {
            0 if rows > 1 => {
                let cut = 1 + self.rng.below(rows - 1);
                let other = Binding::Tensor(self.name("weight"));
                let scaled = Binding::Scale(0.5, Box::new(Binding::Rows(0, cut, Box::new(tensor))));
                let rest = Binding::Rows(1, 1 + rows - cut, Box::new(other));
                Binding::Concat(vec![scaled, rest])
            }
            1 => Binding::Rows(2, 2 + rows, Box::new(tensor)),
            2 => Binding::Scale(0.25, Box::new(tensor)),
            _ => tensor,
        }
    }

    /// One more node, if the random choices fit together.
    fn grow(&mut self) -> Option<Made> {
        match self.rng.below(20) {
            0 => self.constant(),
            1 | 2 => self.gather_rows(),
            3 => self.concat_rows(),
            4 => self.concat_columns(),
            5 => self.slice(),
            6 => self.part(),
            7 => self.cast(),
            8 | 9 => self.add_two(),
            10 => self.scale(),
            11 => self.activate(),
            12 | 13 => self.linear(),
            14 => self.attention(),
            15 => self.layer_norm(),
            16 => self.cross_entropy(),
            17 => self.dense_loss(),
            18 => self.dropout(),
            _ => self.repeat(),
        }
    }

    fn constant(&mut self) -> Option<Made> {
        let length = WIDTHS[self.rng.below(WIDTHS.len())];
        let data: Vec<f64> = (0..length).map(|_| self.rng.unit()).collect();
        let ty = TensorType::fixed(DType::F32, [length]);
        self.add_typed(Constant { data }.into(), &[], &[ty], 1.0)
    }

    fn gather_rows(&mut self) -> Option<Made> {
        let data = self.pick(|ty| ty.dtype.is_float() && !ty.shape.is_empty())?;
        let index = match self.pick(|ty| ty.dtype == DType::I32 && ty.shape.len() == 1) {
            Some(index) if !self.rng.one_in(3) => index,
            _ => {
                let space = self.space();
                let ty = TensorType::in_space(DType::I32, &self.graph.spaces, space, &[]);
                self.input(ty)?
            }
        };
        self.add(GatherRows::default(), &[data, index], data.magnitude)
    }

    fn concat_rows(&mut self) -> Option<Made> {
        let first = self.pick(|ty| ty.dtype.is_float() && !ty.shape.is_empty())?;
        let ty = self.ty(first);
        let unions: Vec<SpaceId> = self
            .graph
            .spaces
            .iter()
            .filter_map(|(_, space)| match (&space.layout, ty.rows) {
                (Layout::Union(parts), Some(rows)) if parts[0] == rows => Some(parts[1]),
                _ => None,
            })
            .collect();
        let rows = match ty.rows {
            Some(_) => Some(self.rng.pick(&unions)?),
            None => None,
        };
        let second = self.pick(|other| {
            other.dtype == ty.dtype
                && other.rows == rows
                && other.shape.get(1..) == ty.shape.get(1..)
        })?;
        let magnitude = first.magnitude.max(second.magnitude);
        self.add(Concat { axis: 0 }, &[first, second], magnitude)
    }

    fn concat_columns(&mut self) -> Option<Made> {
        let first = self.pick_matrix()?;
        let ty = self.ty(first);
        let second = self.pick(|other| {
            other.dtype == ty.dtype
                && other.rows == ty.rows
                && other.shape.len() == 2
                && other.shape[0] == ty.shape[0]
                && other.shape[1] + ty.shape[1] <= MAX_WIDTH
        })?;
        let magnitude = first.magnitude.max(second.magnitude);
        self.add(Concat { axis: 1 }, &[first, second], magnitude)
    }

    fn slice(&mut self) -> Option<Made> {
        let x = self.pick_float()?;
        let ty = self.ty(x);
        let first = usize::from(ty.rows.is_some());
        let axes: Vec<usize> = (first..ty.shape.len())
            .filter(|&axis| ty.shape[axis] > 1)
            .collect();
        let axis = self.rng.pick(&axes)?;
        let start = self.rng.below(ty.shape[axis]);
        let end = start + 1 + self.rng.below(ty.shape[axis] - start);
        self.add(Slice { axis, start, end }, &[x], x.magnitude)
    }

    fn part(&mut self) -> Option<Made> {
        let spaces = self.graph.spaces.clone();
        let x = self.pick(|ty| {
            let layout = ty.rows.map(|space| &spaces.get(space).layout);
            ty.dtype.is_float() && matches!(layout, Some(Layout::Union(_)))
        })?;
        let index = self.rng.below(2);
        self.add(Part { index }, &[x], x.magnitude)
    }

    fn cast(&mut self) -> Option<Made> {
        let x = self.pick_float()?;
        let to = self.rng.pick(&[DType::F16, DType::BF16, DType::F32])?;
        self.add(Cast { to }, &[x], x.magnitude)
    }

    fn add_two(&mut self) -> Option<Made> {
        let a = self.pick_float()?;
        let b = self.pick_like(&self.ty(a))?;
        self.add(Add {}, &[a, b], a.magnitude + b.magnitude)
    }

    fn scale(&mut self) -> Option<Made> {
        let x = self.pick_float()?;
        let factor = self.rng.pick(&[0.5, 2.0, -1.0, 0.3, 1.0])?;
        self.add(Scale { factor }, &[x], x.magnitude * 2.0)
    }

    fn activation(&mut self) -> Activation {
        match self.rng.below(5) {
            0 => Activation::GeluTanh,
            1 => Activation::Relu,
            2 => Activation::Silu,
            3 => Activation::Tanh,
            _ => Activation::Gelu,
        }
    }

    fn activate(&mut self) -> Option<Made> {
        let x = self.pick_float()?;
        let kind = self.activation();
        self.add(Activate { kind }, &[x], x.magnitude.max(1.0))
    }

    fn linear(&mut self) -> Option<Made> {
        let x = self.pick_matrix()?;
        let inner = self.ty(x).shape[1];
        let outputs = WIDTHS[self.rng.below(WIDTHS.len())];
        let mut operands = vec![x, self.param(&[outputs, inner])?];
        if !self.rng.one_in(3) {
            operands.push(self.param(&[outputs])?);
        }
        let activation = match self.rng.one_in(3) {
            true => Some(self.activation()),
            false => None,
        };
        let magnitude = x.magnitude * 2.0 * inner as f64 + 2.0;
        self.add(Linear { activation }, &operands, magnitude)
    }

    fn attention(&mut self) -> Option<Made> {
        let query = self.pick(|ty| {
            ty.dtype.is_float() && ty.shape.len() == 2 && ty.rows.is_some() && ty.shape[1] % 2 == 0
        })?;
        let ty = self.ty(query);
        let spaces = self.graph.spaces.clone();
        let owner = |ty: &TensorType| ty.rows.and_then(|space| spaces.owner(space));
        let key = self.pick(|key| {
            key.dtype.is_float()
                && key.shape.len() == 2
                && key.shape[1] == ty.shape[1]
                && owner(key).is_some()
                && owner(key) == owner(&ty)
        })?;
        let value = self.pick_like(&self.ty(key))?;
        let mask = self.mask(self.ty(key).rows?)?;
        let mut operands = vec![query, key, value, mask];
        let dropout = match self.rng.one_in(3) {
            true => Some(self.dropping()?),
            false => None,
        };
        if dropout.is_some() {
            operands.push(self.keys(owner(&ty)?)?);
        }
        let op = Attention {
            heads: 2,
            scale: 0.5,
            probabilities: self.rng.one_in(2),
            dropout,
        };
        let magnitude = 2.0 * value.magnitude.max(1.0);
        self.add(op, &operands, magnitude)
    }

    fn dropout(&mut self) -> Option<Made> {
        let spaces = self.graph.spaces.clone();
        let owner = |ty: &TensorType| ty.rows.and_then(|space| spaces.common_owner(space));
        let x = self.pick(|ty| ty.dtype.is_float() && owner(ty).is_some())?;
        let keys = self.keys(owner(&self.ty(x))?)?;
        let op = self.dropping()?;
        self.add(op, &[x, keys], 2.0 * x.magnitude)
    }

    fn dropping(&mut self) -> Option<Dropout> {
        let rate = self.rng.pick(&[0.0, 0.1, 0.5])?;
        let salt = self.rng.bits();
        Some(Dropout { rate, salt })
    }

    /// Two words for each entity of the space.
    fn keys(&mut self, space: SpaceId) -> Option<Made> {
        let ty = TensorType::in_space(DType::I32, &self.graph.spaces, space, &[2]);
        match self.pick(|old| *old == ty) {
            Some(old) => Some(old),
            None => self.input(ty),
        }
    }

    /// An input with one number for each row of the space. Nothing but masks has that type.
    fn mask(&mut self, space: SpaceId) -> Option<Made> {
        let ty = TensorType::in_space(DType::F32, &self.graph.spaces, space, &[]);
        let old: Vec<Made> = self
            .pool
            .iter()
            .copied()
            .filter(|&made| {
                let is_input = matches!(self.graph.node(made.value.node).op, Op::Input(_));
                is_input && *self.graph.ty(made.value) == ty
            })
            .collect();
        match self.rng.pick(&old) {
            Some(old) => Some(old),
            None => self.real_input(&ty),
        }
    }

    fn layer_norm(&mut self) -> Option<Made> {
        let x = self.pick(|ty| ty.dtype.is_float() && !ty.shape.is_empty())?;
        let ty = self.ty(x);
        let width = ty.shape.last_axis();
        let mut operands = vec![x, self.param(&[width])?, self.param(&[width])?];
        if self.rng.one_in(2) {
            operands.extend(self.pick_like(&ty));
        }
        let magnitude = 2.0 * (width as f64).sqrt() + 2.0;
        self.add(LayerNorm { eps: 1e-5 }, &operands, magnitude)
    }

    fn cross_entropy(&mut self) -> Option<Made> {
        let logits = self.pick_matrix()?;
        let ty = self.ty(logits);
        let per_row = TensorType {
            shape: [ty.shape[0]].into(),
            ..ty
        };
        let labels = self.input(per_row.with_dtype(DType::I32))?;
        let mut operands = vec![logits, labels];
        let mut reduction = Reduction::Mean;
        if self.rng.one_in(2) {
            reduction = Reduction::Weighted;
            operands.push(self.weights(&per_row)?);
        }
        let magnitude = 4.0 * logits.magnitude + 4.0;
        self.add(CrossEntropy { reduction }, &operands, magnitude)
    }

    fn weights(&mut self, like: &TensorType) -> Option<Made> {
        match self.pick_like(like) {
            Some(old) => Some(old),
            None => self.real_input(like),
        }
    }

    fn dense_loss(&mut self) -> Option<Made> {
        let x = self.pick_matrix()?;
        let ty = self.ty(x);
        let target = self.pick_like(&ty)?;
        let bound = (x.magnitude + 1.0) * (target.magnitude + 1.0);
        if self.rng.one_in(2) {
            return self.add(Bce { factor: 0.5 }, &[x, target], bound);
        }
        let per_row = TensorType {
            shape: [ty.shape[0]].into(),
            ..ty
        };
        let weights = self.weights(&per_row)?;
        let operands = [x, target, weights];
        self.add(SmoothL1 {}, &operands, bound * weights.magnitude)
    }

    /// Some node once more.
    fn repeat(&mut self) -> Option<Made> {
        let made = self.rng.pick(&self.pool)?;
        let node = self.graph.node(made.value.node).clone();
        if matches!(node.op, Op::Input(_)) {
            return None;
        }
        let operands = self.graph.inputs(made.value.node);
        let operands: Vec<Made> = operands
            .iter()
            .map(|&value| Made { value, ..made })
            .collect();
        self.add_typed(node.op, &operands, &node.types, made.magnitude)
    }

    fn outputs(&mut self) {
        let last = self.pool.last().map(|made| made.value);
        let mut chosen: Vec<Value> = last.into_iter().collect();
        for _ in 0..self.rng.below(5) {
            chosen.extend(self.pick_float().map(|made| made.value));
        }
        for (position, value) in chosen.into_iter().enumerate() {
            self.graph.add_output(&format!("output.{position}"), value);
        }
    }
}
