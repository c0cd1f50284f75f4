//! Random graphs in which there is something to do for every pass.

use lxpod_ir::ops::{
    Activate, Activation, Add, Attention, Concat, Constant, GatherRows, LayerNorm, Linear, Part,
    Scale, Slice,
};
use lxpod_ir::{DType, Graph, TensorType, Value};

use super::{Make, Rng};

const WIDTH: usize = 4;
const FACTORS: [f32; 5] = [0.5, 2.0, 0.25, 1.0, 3.0];
const SPACES: [&str; 4] = ["sample", "text", "box", "qtext"];

struct Grow {
    make: Make,
    rng: Rng,
    /// Values of [`WIDTH`] columns.
    values: Vec<Value>,
    /// Masks and indices.
    known: Vec<(String, Value)>,
    union: lxpod_ir::SpaceId,
}

/// A graph of about `size` ops.
pub(crate) fn graph(seed: u64, size: usize) -> Graph {
    let mut spaces = super::spaces();
    let parts = ["text", "box"].map(|name| spaces.find(name).unwrap());
    let union = spaces.union(&parts);
    let make = Make(lxpod_ir::Builder::new("random", spaces));
    let mut grow = Grow {
        make,
        rng: Rng::new(seed),
        values: Vec::new(),
        known: Vec::new(),
        union,
    };
    for space in SPACES {
        let value = grow.make.input(&format!("x.{space}"), space, WIDTH);
        grow.values.push(value);
    }
    for _ in 0..size {
        if let Some(value) = grow.step() {
            grow.values.push(value);
        }
    }
    let outputs: Vec<Value> = (0..3).map(|_| grow.recent()).collect();
    grow.make.finish(&outputs)
}

impl Grow {
    fn any(&mut self) -> Value {
        self.values[self.rng.below(self.values.len())]
    }

    /// One of the last values, so that graphs grow deep.
    fn recent(&mut self) -> Value {
        let newest = self.values.len();
        self.values[newest - 1 - self.rng.below(newest.min(5))]
    }

    fn with_rows(&mut self, like: Value) -> Value {
        let rows = self.make.0.ty(like).rows;
        let fitting: Vec<Value> = self
            .values
            .iter()
            .copied()
            .filter(|&value| self.make.0.ty(value).rows == rows)
            .collect();
        self.rng.pick(&fitting)
    }

    fn space_of(&self, value: Value) -> String {
        let rows = self.make.0.ty(value).rows.unwrap();
        self.make.0.spaces().get(rows).name.clone()
    }

    /// The input of that name, declared once.
    fn declared(&mut self, name: &str, dtype: DType, space: &str) -> Value {
        if let Some(&(_, value)) = self.known.iter().find(|(own, _)| own == name) {
            return value;
        }
        let id = self.make.0.spaces().find(space).unwrap();
        let value = self.make.0.input(name, dtype, id, &[]);
        self.known.push((name.to_owned(), value));
        value
    }

    fn linear(&mut self, x: Value) -> Value {
        let (name, inner) = (self.rng.below(3), self.make.0.ty(x).shape.last_axis());
        let w = self
            .make
            .param(&format!("w{name}.{inner}"), &[WIDTH, inner]);
        let b = self.make.param(&format!("b{name}"), &[WIDTH]);
        match self.rng.below(3) {
            0 => self.make.op(Linear::default(), &[x, w]),
            _ => self.make.op(Linear::default(), &[x, w, b]),
        }
    }

    fn norm(&mut self, x: Value) -> Value {
        let name = self.rng.below(4);
        let g = self.make.param(&format!("g{name}"), &[WIDTH]);
        let b = self.make.param(&format!("b{name}"), &[WIDTH]);
        self.make.op(LayerNorm { eps: 1e-6 }, &[x, g, b])
    }

    fn attention(&mut self, query: Value) -> Option<Value> {
        let space = self.space_of(query);
        let keys = match space.as_str() {
            "text" | "box" => self.rng.pick(&["text", "box"]),
            "qtext" => "qtext",
            _ => return None,
        };
        let rows = self.make.0.spaces().find(keys);
        let like = self
            .values
            .iter()
            .copied()
            .find(|&value| self.make.0.ty(value).rows == rows)?;
        let (k, v) = (self.with_rows(like), self.with_rows(like));
        let (q, k, v) = (self.linear(query), self.linear(k), self.linear(v));
        let mask = self.declared(&format!("mask.{keys}"), DType::F32, keys);
        let op = Attention {
            heads: 2,
            scale: self.rng.pick(&FACTORS),
            probabilities: self.rng.below(4) == 0,
            dropout: None,
        };
        Some(self.make.op(op, &[q, k, v, mask]))
    }

    fn gather(&mut self, x: Value) -> Option<Value> {
        let (space, shared) = (self.space_of(x), self.rng.below(3) == 0);
        let (kind, to) = match space.as_str() {
            "text" | "box" if !shared => ("pick", "sample"),
            "qtext" if !shared => ("pick", "question"),
            "text" => ("any", "box"),
            "box" => ("any", "text"),
            "qtext" => ("any", "text"),
            _ => return None,
        };
        let name = format!("{kind}.{space}.{}", self.rng.below(2));
        let index = self.declared(&name, DType::I32, to);
        let rows = self.make.op(GatherRows::default(), &[x, index]);
        (to != "question").then_some(rows)
    }

    /// Both halves of a value side by side again, in either order, or padded by itself.
    fn columns(&mut self, x: Value) -> Value {
        let (cut, end) = (WIDTH / 2, WIDTH);
        let half = |start, end| Slice {
            axis: 1,
            start,
            end,
        };
        let (a, b) = (
            self.make.op(half(0, cut), &[x]),
            self.make.op(half(cut, end), &[x]),
        );
        let parts = self.rng.pick(&[[a, b], [b, a], [a, a]]);
        self.make.op(Concat { axis: 1 }, &parts)
    }

    fn stack(&mut self) -> Option<Value> {
        let [text, boxes] = [1, 2].map(|space| self.values[space]);
        let parts = [self.with_rows(text), self.with_rows(boxes)];
        let stacked = self.make.op(Concat { axis: 0 }, &parts);
        assert_eq!(self.make.0.ty(stacked).rows, Some(self.union));
        let stacked = if self.rng.below(2) == 0 {
            self.linear(stacked)
        } else {
            stacked
        };
        let index = self.rng.below(2);
        Some(self.make.op(Part { index }, &[stacked]))
    }

    /// A linear whose bias is computed from constants or from pieces of parameters.
    fn made_bias(&mut self, x: Value) -> Value {
        let name = self.rng.below(3);
        let w = self
            .make
            .param(&format!("w{name}.{WIDTH}"), &[WIDTH, WIDTH]);
        let bias = if self.rng.below(2) == 0 {
            let ty = TensorType::fixed(DType::F32, [WIDTH]);
            let data = (0..WIDTH).map(|_| f64::from(self.rng.real())).collect();
            let constant = self.make.0.typed(Constant { data }, &[], &[ty]);
            let factor = self.rng.pick(&FACTORS);
            self.make.op(Scale { factor }, &[constant])
        } else {
            let long = self.make.param("long", &[2 * WIDTH]);
            let start = self.rng.below(WIDTH + 1);
            let piece = Slice {
                axis: 0,
                start,
                end: start + WIDTH,
            };
            self.make.op(piece, &[long])
        };
        self.make.op(Linear::default(), &[x, w, bias])
    }

    fn step(&mut self) -> Option<Value> {
        let x = if self.rng.below(3) == 0 {
            self.any()
        } else {
            self.recent()
        };
        match self.rng.below(16) {
            0..4 => Some(self.linear(x)),
            4 => Some(self.norm(x)),
            5 | 6 => {
                let other = self.with_rows(x);
                let sum = self.make.op(Add {}, &[x, other]);
                Some(if self.rng.below(2) == 0 {
                    self.norm(sum)
                } else {
                    sum
                })
            }
            7 | 8 => {
                let x = if self.rng.below(2) == 0 {
                    self.linear(x)
                } else {
                    x
                };
                let factor = self.rng.pick(&FACTORS);
                Some(self.make.op(Scale { factor }, &[x]))
            }
            9 => {
                let kind = self.rng.pick(&[Activation::Relu, Activation::Tanh]);
                Some(self.make.op(Activate { kind }, &[x]))
            }
            10 | 11 => self.attention(x),
            12 | 13 => self.gather(x),
            14 if self.rng.below(2) == 0 => Some(self.columns(x)),
            14 => Some(self.made_bias(x)),
            _ => self.stack(),
        }
    }
}
