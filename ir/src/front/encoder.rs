//! The two towers and the cross layers.

use super::LxmertConfig;
use super::embeddings;
use super::inputs::{Context, Trace};
use super::modules::{AttentionBlock, FeedForward, Stream};
use crate::ops::GatherRows;
use crate::{Builder, Value};

/// What the encoder gives: one row per token and one per box of each sample.
pub(super) struct Encoded {
    pub(super) language: Value,
    pub(super) vision: Value,
}

/// Scope `encoder`, from the embedded text on.
pub(super) fn encode(b: &mut Builder, cx: &Context<'_>, text: Value, trace: &mut Trace) -> Encoded {
    b.scoped("encoder", |b| {
        let boxes = embeddings::boxes(b, cx);
        trace.hidden_state("visual_embedding_output", boxes);
        let mut language = Stream {
            x: text,
            mask: cx.inputs.attention_mask,
        };
        let mut vision = Stream {
            x: boxes,
            mask: cx.inputs.visual_attention_mask,
        };
        language.x = tower(b, cx, Tower::LANGUAGE, cx.config.l_layers, language, trace);
        vision.x = tower(b, cx, Tower::VISION, cx.config.r_layers, vision, trace);
        if let Some([text_rows, box_rows]) = cx.inputs.sample_rows {
            language = gather(b, language, text_rows);
            vision = gather(b, vision, box_rows);
        }
        for index in 0..cx.config.x_layers {
            [language.x, vision.x] = b.scoped(&format!("{CROSS}.{index}"), |b| {
                cross_layer(b, cx, language, vision, index, trace)
            });
            let below = [cx.config.l_layers, cx.config.r_layers];
            trace.hidden_state(Tower::LANGUAGE.state(below[0] + index), language.x);
            trace.hidden_state(Tower::VISION.state(below[1] + index), vision.x);
        }
        Encoded {
            language: language.x,
            vision: vision.x,
        }
    })
}

/// A stack of layers on one modality.
#[derive(Clone, Copy)]
struct Tower {
    module: &'static str,
    name: &'static str,
}

impl Tower {
    const LANGUAGE: Tower = Tower {
        module: "layer",
        name: "language",
    };
    const VISION: Tower = Tower {
        module: "r_layers",
        name: "vision",
    };

    fn state(self, index: usize) -> String {
        format!("{}_hidden_states.{index}", self.name)
    }
}

/// The module of the cross layers.
const CROSS: &str = "x_layers";

/// The scopes of all layers, in Transformers' order: language, vision, cross.
pub fn layer_scopes(config: &LxmertConfig) -> Vec<String> {
    let stacks = [
        (Tower::LANGUAGE.module, config.l_layers),
        (Tower::VISION.module, config.r_layers),
        (CROSS, config.x_layers),
    ];
    let scopes =
        |(module, layers)| (0..layers).map(move |index| format!("lxmert.encoder.{module}.{index}"));
    stacks.into_iter().flat_map(scopes).collect()
}

fn tower(
    b: &mut Builder,
    cx: &Context<'_>,
    tower: Tower,
    layers: usize,
    mut stream: Stream,
    trace: &mut Trace,
) -> Value {
    for index in 0..layers {
        let (x, weights) = b.scoped(&format!("{}.{index}", tower.module), |b| {
            let block = b.scoped("attention", |b| {
                AttentionBlock::declare(b, cx.config, "self")
            });
            let feed = FeedForward::declare(b, cx.config, ["intermediate", "output"]);
            let (x, weights) = b.scoped("attention", |b| {
                block.apply(b, cx, stream.x, stream, trace.attentions)
            });
            (feed.apply(b, cx, x), weights)
        });
        stream.x = x;
        trace.hidden_state(tower.state(index), x);
        trace.attention(format!("{}_attentions.{index}", tower.name), weights);
    }
    stream.x
}

/// Brings the rows of questions or images to the samples that use them.
fn gather(b: &mut Builder, stream: Stream, rows: Value) -> Stream {
    Stream {
        x: b.op(GatherRows::default(), &[stream.x, rows]),
        mask: b.op(GatherRows::default(), &[stream.mask, rows]),
    }
}

/// One cross layer: each side attends to the other, both through the parameters of
/// `visual_attention`, then to itself, then feeds forward. Both directions read the layer's
/// inputs. The nodes of the directions stand in scopes `visual_attention.lang` (text queries) and
/// `visual_attention.visn` (box queries).
fn cross_layer(
    b: &mut Builder,
    cx: &Context<'_>,
    language: Stream,
    vision: Stream,
    index: usize,
    trace: &mut Trace,
) -> [Value; 2] {
    let shared = b.scoped("visual_attention", |b| {
        AttentionBlock::declare(b, cx.config, "att")
    });
    let (lang, weights) = b.scoped("visual_attention.lang", |b| {
        shared.apply(b, cx, language.x, vision, trace.attentions)
    });
    let (visn, _) = b.scoped("visual_attention.visn", |b| {
        shared.apply(b, cx, vision.x, language, false)
    });
    trace.attention(format!("cross_encoder_attentions.{index}"), weights);
    let names = ["lang_self_att", "lang_inter", "lang_output"];
    let lang = side(b, cx, names, lang, language.mask);
    let names = ["visn_self_att", "visn_inter", "visn_output"];
    [lang, side(b, cx, names, visn, vision.mask)]
}

/// Self-attention and feed-forward of one side of a cross layer.
fn side(
    b: &mut Builder,
    cx: &Context<'_>,
    [attention, inter, output]: [&'static str; 3],
    x: Value,
    mask: Value,
) -> Value {
    let x = b.scoped(attention, |b| {
        let block = AttentionBlock::declare(b, cx.config, "self");
        block.apply(b, cx, x, Stream { x, mask }, false).0
    });
    FeedForward::declare(b, cx.config, [inter, output]).apply(b, cx, x)
}
