//! The shape of LXMERT, small: two towers, cross layers with shared attention, an answer from [CLS].

use lxpod_ir::ops::{Activation, Add, Attention, GatherRows, Scale};
use lxpod_ir::{DType, Graph, TensorType, Value};

use super::Make;

const WIDTH: usize = 8;

/// How many layers of each kind.
#[derive(Clone, Copy)]
pub(crate) struct Layers {
    pub(crate) language: usize,
    pub(crate) vision: usize,
    pub(crate) cross: usize,
}

/// One stream of rows and its mask.
#[derive(Clone, Copy)]
struct Stream {
    rows: Value,
    mask: Value,
}

/// The whole model, to the answer's scores.
pub(crate) fn build(layers: Layers) -> Graph {
    let mut make = Make::new();
    let mut text = embedding(&mut make);
    let mut boxes = visual(&mut make);
    for layer in 0..layers.language {
        text.rows = tower_layer(&mut make, text, &format!("language.{layer}"));
    }
    for layer in 0..layers.vision {
        boxes.rows = tower_layer(&mut make, boxes, &format!("vision.{layer}"));
    }
    for layer in 0..layers.cross {
        cross_layer(&mut make, &mut text, &mut boxes, &format!("cross.{layer}"));
    }
    let first = make.index("pick.text.0", "sample");
    let first = make.op(GatherRows::default(), &[text.rows, first]);
    let pooled = make.linear(first, "pooler", WIDTH);
    let pooled = make.activate(pooled, Activation::Tanh);
    let hidden = make.linear(pooled, "answer.0", 2 * WIDTH);
    let hidden = make.activate(hidden, Activation::Gelu);
    let hidden = make.norm(hidden, "answer.2");
    let score = make.linear(hidden, "answer.3", 5);
    make.finish(&[score])
}

fn embedding(make: &mut Make) -> Stream {
    let ids = make.index("ids", "text");
    let words = make.param("words", &[5, WIDTH]);
    let rows = make.op(GatherRows::default(), &[words, ids]);
    let rows = make.norm(rows, "embedding");
    let mask = make.mask("text");
    Stream { rows, mask }
}

fn visual(make: &mut Make) -> Stream {
    let (features, places) = (
        make.input("x.feats", "box", 6),
        make.input("x.pos", "box", 4),
    );
    let features = make.linear(features, "visn_fc", WIDTH);
    let features = make.norm(features, "visn_norm");
    let places = make.linear(places, "box_fc", WIDTH);
    let places = make.norm(places, "box_norm");
    let sum = make.op(Add {}, &[features, places]);
    let rows = make.op(Scale { factor: 0.5 }, &[sum]);
    let mask = make.mask("box");
    Stream { rows, mask }
}

fn attend(make: &mut Make, x: Value, context: Stream, name: &str) -> Value {
    let [q, k, v] = [(x, "query"), (context.rows, "key"), (context.rows, "value")]
        .map(|(rows, part)| make.linear(rows, &format!("{name}.{part}"), WIDTH));
    let op = Attention {
        heads: 2,
        scale: 0.5,
        probabilities: false,
        dropout: None,
    };
    let y = make.op(op, &[q, k, v, context.mask]);
    residual(make, y, x, &format!("{name}.output"))
}

fn residual(make: &mut Make, y: Value, x: Value, name: &str) -> Value {
    let y = make.linear(y, &format!("{name}.dense"), WIDTH);
    let sum = make.op(Add {}, &[y, x]);
    make.norm(sum, &format!("{name}.norm"))
}

fn feed_forward(make: &mut Make, x: Value, name: &str) -> Value {
    let inner = make.linear(x, &format!("{name}.inter"), 2 * WIDTH);
    let inner = make.activate(inner, Activation::Gelu);
    residual(make, inner, x, &format!("{name}.output"))
}

fn tower_layer(make: &mut Make, x: Stream, name: &str) -> Value {
    let rows = attend(make, x.rows, x, &format!("{name}.attention"));
    feed_forward(make, rows, name)
}

fn cross_layer(make: &mut Make, text: &mut Stream, boxes: &mut Stream, name: &str) {
    let shared = format!("{name}.visual_attention");
    let (old_text, old_boxes) = (*text, *boxes);
    text.rows = attend(make, old_text.rows, old_boxes, &shared);
    boxes.rows = attend(make, old_boxes.rows, old_text, &shared);
    text.rows = tower_layer(make, *text, &format!("{name}.lang"));
    boxes.rows = tower_layer(make, *boxes, &format!("{name}.visn"));
}

/// A vector type, for constants.
pub(crate) fn vector(length: usize) -> TensorType {
    TensorType::fixed(DType::F32, [length])
}
