//! The losses, as f32 scalars.

use std::collections::{BTreeMap, BTreeSet};

use super::heads::Objects;
use super::inputs::Context;
use super::{AnswerLoss, PretrainingLoss};
use crate::ops::{Add, Bce, CrossEntropy, Reduction, Scale, SmoothL1};
use crate::{Builder, DType, Value};

/// The outputs `loss` and `loss_bce` of question answering.
pub(super) fn answer(
    b: &mut Builder,
    cx: &Context<'_>,
    score: Value,
    loss: Option<AnswerLoss>,
    bce: bool,
) {
    let answers = cx.config.num_qa_labels;
    let soft = bce || matches!(loss, Some(AnswerLoss::Bce | AnswerLoss::BceTimesLabels));
    let soft_labels = soft.then(|| b.input("soft_labels", DType::F32, cx.rows.sample, &[answers]));
    let binary = |b: &mut Builder, factor: f32| {
        soft_labels.map(|labels| b.op(Bce { factor }, &[score, labels]))
    };
    let mean = if bce || loss == Some(AnswerLoss::Bce) {
        binary(b, 1.0)
    } else {
        None
    };
    let value = match loss {
        None => None,
        Some(AnswerLoss::CrossEntropy) => {
            let labels = b.input("labels", DType::I32, cx.rows.sample, &[]);
            Some(b.op(CrossEntropy::default(), &[score, labels]))
        }
        Some(AnswerLoss::Bce) => mean,
        Some(AnswerLoss::BceTimesLabels) => binary(b, answers as f32),
    };
    let outputs = [("loss", value), ("loss_bce", mean.filter(|_| bce))];
    for (name, value) in outputs {
        if let Some(value) = value {
            b.output(name, value);
        }
    }
}

/// What the pretraining losses read.
pub(super) struct Predictions {
    pub(super) words: Value,
    pub(super) matched: Value,
    pub(super) objects: Option<Objects>,
    pub(super) answer: Option<Value>,
}

/// The outputs `loss_*` of the parts that are wanted and switched on, and their sum `loss`.
pub(super) fn pretraining(
    b: &mut Builder,
    cx: &Context<'_>,
    wanted: &BTreeSet<PretrainingLoss>,
    predictions: &Predictions,
) {
    let mut parts = BTreeMap::new();
    for &kind in wanted.iter().filter(|kind| kind.is_enabled(cx.config)) {
        if let Some(loss) = build_part(b, cx, kind, predictions) {
            b.output(kind.output(), loss);
            parts.insert(kind, loss);
        }
    }
    let part = |kind| parts.get(&kind).copied();
    if let Some(total) = PretrainingLoss::sum(part, |sum, part| b.op(Add::default(), &[sum, part]))
    {
        b.output("loss", total);
    }
}

/// One part; `None` without the head it needs.
fn build_part(
    b: &mut Builder,
    cx: &Context<'_>,
    kind: PretrainingLoss,
    predictions: &Predictions,
) -> Option<Value> {
    let objects = predictions.objects.as_ref();
    let cross_entropy = |b: &mut Builder, logits: Value, name: &str, space| {
        let labels = b.input(name, DType::I32, space, &[]);
        b.op(CrossEntropy::default(), &[logits, labels])
    };
    Some(match kind {
        PretrainingLoss::MaskedLanguage => {
            cross_entropy(b, predictions.words, "lm_labels", cx.rows.sample_text)
        }
        PretrainingLoss::Matched => {
            cross_entropy(b, predictions.matched, "matched_label", cx.rows.sample)
        }
        PretrainingLoss::Answer => cross_entropy(b, predictions.answer?, "ans", cx.rows.sample),
        PretrainingLoss::Objects => classes(b, cx, objects?.classes?, ["obj_labels", "obj_conf"]),
        PretrainingLoss::Attributes => {
            classes(b, cx, objects?.attributes?, ["attr_labels", "attr_conf"])
        }
        PretrainingLoss::Features => features(b, cx, objects?.features?),
    })
}

/// The mean over all boxes of cross-entropy times confidence, normalised.
fn classes(b: &mut Builder, cx: &Context<'_>, logits: Value, inputs: [&str; 2]) -> Value {
    let labels = b.input(inputs[0], DType::I32, cx.rows.sample_box, &[]);
    let confidence = b.input(inputs[1], DType::F32, cx.rows.sample_box, &[]);
    let op = CrossEntropy {
        reduction: Reduction::Weighted,
    };
    let loss = b.op(op, &[logits, labels, confidence]);
    normalise(b, cx, loss)
}

/// The mean over all boxes of smooth L1 times confidence, normalised.
fn features(b: &mut Builder, cx: &Context<'_>, predicted: Value) -> Value {
    let width = cx.config.visual_feat_dim;
    let target = b.input("feat_labels", DType::F32, cx.rows.sample_box, &[width]);
    let confidence = b.input("feat_conf", DType::F32, cx.rows.sample_box, &[]);
    let loss = b.op(SmoothL1::default(), &[predicted, target, confidence]);
    normalise(b, cx, loss)
}

fn normalise(b: &mut Builder, cx: &Context<'_>, loss: Value) -> Value {
    let factor = cx.config.visual_loss_normalizer as f32;
    b.op(Scale { factor }, &[loss])
}
