//! The building blocks of the model: affine maps, normalisation, attention, feed-forward.
//!
//! A block is declared once, which makes its parameters under the checkpoint's names, and applied
//! once or more. Nodes stand in the scope they are applied in.

use super::LAYER_NORM_EPS;
use super::config::LxmertConfig;
use super::inputs::Context;
use crate::ops::{Activate, Activation, Add, Attention, LayerNorm, Linear};
use crate::{Builder, Value};

/// `torch.nn.Linear`: weight \[outputs, inputs\] and bias \[outputs\].
#[derive(Clone, Copy)]
pub(super) struct Dense {
    name: &'static str,
    weight: Value,
    bias: Value,
}

impl Dense {
    pub(super) fn declare(
        b: &mut Builder,
        name: &'static str,
        outputs: usize,
        inputs: usize,
    ) -> Self {
        b.scoped(name, |b| Dense {
            name,
            weight: b.param("weight", [outputs, inputs]),
            bias: b.param("bias", [outputs]),
        })
    }

    pub(super) fn apply(self, b: &mut Builder, x: Value) -> Value {
        b.scoped(self.name, |b| {
            b.op(Linear::default(), &[x, self.weight, self.bias])
        })
    }
}

/// Layer normalisation over the last axis.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    name: &'static str,
    gain: Value,
    bias: Value,
}

impl Norm {
    pub(super) fn declare(b: &mut Builder, name: &'static str, width: usize) -> Self {
        b.scoped(name, |b| Norm {
            name,
            gain: b.param("weight", [width]),
            bias: b.param("bias", [width]),
        })
    }

    pub(super) fn apply(self, b: &mut Builder, x: Value) -> Value {
        let op = LayerNorm {
            eps: LAYER_NORM_EPS,
        };
        b.scoped(self.name, |b| b.op(op, &[x, self.gain, self.bias]))
    }
}

/// An elementwise nonlinearity.
pub(super) fn activate(b: &mut Builder, kind: Activation, x: Value) -> Value {
    b.op(Activate { kind }, &[x])
}

/// What closes every residual block: LN(dropout(dense(y)) + x).
#[derive(Clone, Copy)]
struct Closing {
    dense: Dense,
    norm: Norm,
}

impl Closing {
    fn declare(b: &mut Builder, name: &'static str, width: usize, inputs: usize) -> Self {
        b.scoped(name, |b| Closing {
            dense: Dense::declare(b, "dense", width, inputs),
            norm: Norm::declare(b, "LayerNorm", width),
        })
    }

    fn apply(self, b: &mut Builder, cx: &Context<'_>, name: &str, y: Value, x: Value) -> Value {
        b.scoped(name, |b| {
            let y = self.dense.apply(b, y);
            let y = cx.drop_hidden(b, y);
            let sum = b.op(Add::default(), &[y, x]);
            self.norm.apply(b, sum)
        })
    }
}

/// Rows of the language or of the vision side, with the mask of their keys: 1 keeps, 0 masks.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    pub(super) x: Value,
    pub(super) mask: Value,
}

/// A residual attention block.
#[derive(Clone, Copy)]
pub(super) struct AttentionBlock {
    inner: &'static str,
    query: Dense,
    key: Dense,
    value: Dense,
    output: Closing,
    heads: usize,
    scale: f32,
}

impl AttentionBlock {
    /// `inner` is the checkpoint's name of the module that holds query, key and value.
    pub(super) fn declare(b: &mut Builder, config: &LxmertConfig, inner: &'static str) -> Self {
        let width = config.hidden_size;
        let [query, key, value] = b.scoped(inner, |b| {
            ["query", "key", "value"].map(|name| Dense::declare(b, name, width, width))
        });
        AttentionBlock {
            inner,
            query,
            key,
            value,
            output: Closing::declare(b, "output", width, width),
            heads: config.num_attention_heads,
            scale: (1.0 / (config.head_size() as f64).sqrt()) as f32,
        }
    }

    /// LN(dropout(dense(attention(x, context))) + x), and the probabilities if asked for.
    pub(super) fn apply(
        self,
        b: &mut Builder,
        cx: &Context<'_>,
        x: Value,
        context: Stream,
        probabilities: bool,
    ) -> (Value, Option<Value>) {
        let attended = b.scoped(self.inner, |b| {
            let query = self.query.apply(b, x);
            let key = self.key.apply(b, context.x);
            let value = self.value.apply(b, context.x);
            let mut operands = vec![query, key, value, context.mask];
            let (dropout, keys) = cx.drop_probabilities(b).unzip();
            operands.extend(keys);
            let op = Attention {
                heads: self.heads,
                scale: self.scale,
                probabilities,
                dropout,
            };
            b.op(op, &operands)
        });
        let weights = probabilities.then(|| b.second(attended));
        (self.output.apply(b, cx, "output", attended, x), weights)
    }
}

/// A residual feed-forward block.
#[derive(Clone, Copy)]
pub(super) struct FeedForward {
    names: [&'static str; 2],
    up: Dense,
    act: Activation,
    down: Closing,
}

impl FeedForward {
    /// `names` are the checkpoint's names of the widening and of the closing half.
    pub(super) fn declare(
        b: &mut Builder,
        config: &LxmertConfig,
        names: [&'static str; 2],
    ) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        FeedForward {
            names,
            up: b.scoped(names[0], |b| Dense::declare(b, "dense", inner, width)),
            act: config.hidden_act,
            down: Closing::declare(b, names[1], width, inner),
        }
    }

    /// LN(dropout(dense(act(dense(x)))) + x).
    pub(super) fn apply(self, b: &mut Builder, cx: &Context<'_>, x: Value) -> Value {
        let wide = b.scoped(self.names[0], |b| {
            let wide = self.up.apply(b, x);
            activate(b, self.act, wide)
        });
        self.down.apply(b, cx, self.names[1], wide, x)
    }
}
