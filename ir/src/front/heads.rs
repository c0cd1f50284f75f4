//! The pooler and the heads.

use super::inputs::Context;
use super::modules::{Dense, Norm, activate};
use crate::ops::{Activation, GatherRows, Linear};
use crate::{Builder, Value};

/// tanh(linear(first token)), in scope `pooler`: one row per sample.
pub(super) fn pooler(b: &mut Builder, cx: &Context<'_>, language: Value) -> Value {
    let width = cx.config.hidden_size;
    b.scoped("pooler", |b| {
        let dense = Dense::declare(b, "dense", width, width);
        let first = b.op(GatherRows::default(), &[language, cx.inputs.first_token]);
        let pooled = dense.apply(b, first);
        activate(b, Activation::Tanh, pooled)
    })
}

/// linear(LN(gelu(linear(pooled)))), in scope `answer_head`. The nonlinearity is the erf GELU,
/// whatever `hidden_act`.
pub(super) fn answer(b: &mut Builder, cx: &Context<'_>, pooled: Value) -> Value {
    let (width, answers) = (cx.config.hidden_size, cx.config.num_qa_labels);
    b.scoped("answer_head.logit_fc", |b| {
        let wide = Dense::declare(b, "0", 2 * width, width);
        let norm = Norm::declare(b, "2", 2 * width);
        let last = Dense::declare(b, "3", answers, 2 * width);
        let x = wide.apply(b, pooled);
        let x = activate(b, Activation::Gelu, x);
        let x = norm.apply(b, x);
        last.apply(b, x)
    })
}

/// LN(act(linear(x))), in scope `transform`.
fn transform(b: &mut Builder, cx: &Context<'_>, x: Value) -> Value {
    let width = cx.config.hidden_size;
    b.scoped("transform", |b| {
        let dense = Dense::declare(b, "dense", width, width);
        let norm = Norm::declare(b, "LayerNorm", width);
        let x = dense.apply(b, x);
        let x = activate(b, cx.config.hidden_act, x);
        norm.apply(b, x)
    })
}

/// The words' scores, in scope `cls.predictions`; the decoder's weight is the word `table`.
pub(super) fn language(b: &mut Builder, cx: &Context<'_>, x: Value, table: Value) -> Value {
    b.scoped("cls.predictions", |b| {
        let bias = b.param("bias", [cx.config.vocab_size]);
        let x = transform(b, cx, x);
        b.op(Linear::default(), &[x, table, bias])
    })
}

/// The scores of no match and match, in scope `cls`.
pub(super) fn matched(b: &mut Builder, cx: &Context<'_>, pooled: Value) -> Value {
    b.scoped("cls", |b| {
        Dense::declare(b, "seq_relationship", 2, cx.config.hidden_size).apply(b, pooled)
    })
}

/// The boxes' predictions that the configuration has, in Transformers' order.
pub(super) struct Objects {
    pub(super) classes: Option<Value>,
    pub(super) attributes: Option<Value>,
    pub(super) features: Option<Value>,
}

/// Scope `obj_predict_head`.
pub(super) fn objects(b: &mut Builder, cx: &Context<'_>, vision: Value) -> Objects {
    let config = cx.config;
    b.scoped("obj_predict_head", |b| {
        let x = transform(b, cx, vision);
        let mut decode = |name, wanted: bool, classes| {
            wanted.then(|| {
                b.scoped("decoder_dict", |b| {
                    Dense::declare(b, name, classes, config.hidden_size).apply(b, x)
                })
            })
        };
        Objects {
            classes: decode("obj", config.visual_obj_loss, config.num_object_labels),
            attributes: decode("attr", config.visual_attr_loss, config.num_attr_labels),
            features: decode("feat", config.visual_feat_loss, config.visual_feat_dim),
        }
    })
}
