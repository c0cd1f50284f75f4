//! The embeddings of tokens and of boxes.

use super::inputs::Context;
use super::modules::{Dense, Norm};
use crate::ops::{Add, GatherRows, Scale};
use crate::{Builder, Value};

/// The text's embedding, and the word table, which the language head shares.
pub(super) struct Words {
    pub(super) embedded: Value,
    pub(super) table: Value,
}

/// dropout(LN((word + position) + token type)), in scope `embeddings`. Row 0 of each table is padding and is
/// not trained by what it looks up.
pub(super) fn words(b: &mut Builder, cx: &Context<'_>) -> Words {
    let (config, inputs) = (cx.config, &cx.inputs);
    let width = config.hidden_size;
    b.scoped("embeddings", |b| {
        let tables = [
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", config.max_position_embeddings),
            ("token_type_embeddings", config.type_vocab_size),
        ]
        .map(|(name, rows)| b.scoped(name, |b| b.param("weight", [rows, width])));
        let norm = Norm::declare(b, "LayerNorm", width);
        let [word, position, kind] = [
            (tables[0], inputs.input_ids),
            (tables[1], inputs.position_ids),
            (tables[2], inputs.token_type_ids),
        ]
        .map(|(table, index)| b.op(GatherRows { padding: Some(0) }, &[table, index]));
        let sum = b.op(Add::default(), &[word, position]);
        let sum = b.op(Add::default(), &[sum, kind]);
        let embedded = norm.apply(b, sum);
        Words {
            embedded: cx.drop_hidden(b, embedded),
            table: tables[0],
        }
    })
}

/// dropout((LN(linear(features)) + LN(linear(coordinates))) / 2), in scope `visn_fc` of the encoder.
pub(super) fn boxes(b: &mut Builder, cx: &Context<'_>) -> Value {
    let (config, inputs) = (cx.config, &cx.inputs);
    let width = config.hidden_size;
    b.scoped("visn_fc", |b| {
        let feature = Dense::declare(b, "visn_fc", width, config.visual_feat_dim);
        let feature_norm = Norm::declare(b, "visn_layer_norm", width);
        let place = Dense::declare(b, "box_fc", width, config.visual_pos_dim);
        let place_norm = Norm::declare(b, "box_layer_norm", width);
        let features = feature.apply(b, inputs.visual_feats);
        let features = feature_norm.apply(b, features);
        let places = place.apply(b, inputs.visual_pos);
        let places = place_norm.apply(b, places);
        let sum = b.op(Add::default(), &[features, places]);
        let mean = b.op(Scale { factor: 0.5 }, &[sum]);
        cx.drop_hidden(b, mean)
    })
}
