//! The graph's inputs; the table in the module's header says what each holds.

use super::{LxmertConfig, ModelOptions, RowSpaces};
use crate::ops::Dropout;
use crate::random_bits::name_hash;
use crate::{Builder, DType, Value};

/// The inputs of the towers and what joins them.
pub(super) struct Inputs {
    pub(super) input_ids: Value,
    pub(super) token_type_ids: Value,
    pub(super) position_ids: Value,
    pub(super) attention_mask: Value,
    pub(super) visual_feats: Value,
    pub(super) visual_pos: Value,
    pub(super) visual_attention_mask: Value,
    pub(super) first_token: Value,
    /// `sample_text_rows` and `sample_box_rows`, where samples may share questions and images.
    pub(super) sample_rows: Option<[Value; 2]>,
    /// Present where anything is dropped.
    dropout_keys: Option<Value>,
}

impl Inputs {
    pub(super) fn declare(
        b: &mut Builder,
        config: &LxmertConfig,
        rows: &RowSpaces,
        drops: bool,
    ) -> Self {
        let (text, boxes) = (rows.text, rows.boxes);
        Inputs {
            input_ids: b.input("input_ids", DType::I32, text, &[]),
            token_type_ids: b.input("token_type_ids", DType::I32, text, &[]),
            position_ids: b.input("position_ids", DType::I32, text, &[]),
            attention_mask: b.input("attention_mask", DType::F32, text, &[]),
            visual_feats: b.input("visual_feats", DType::F32, boxes, &[config.visual_feat_dim]),
            visual_pos: b.input("visual_pos", DType::F32, boxes, &[config.visual_pos_dim]),
            visual_attention_mask: b.input("visual_attention_mask", DType::F32, boxes, &[]),
            sample_rows: rows.are_shared().then(|| {
                [
                    b.input("sample_text_rows", DType::I32, rows.sample_text, &[]),
                    b.input("sample_box_rows", DType::I32, rows.sample_box, &[]),
                ]
            }),
            first_token: b.input("first_token", DType::I32, rows.sample, &[]),
            dropout_keys: drops.then(|| b.input("dropout_keys", DType::I32, rows.sample, &[2])),
        }
    }
}

/// What every part of the model is built from.
pub(super) struct Context<'a> {
    pub(super) config: &'a LxmertConfig,
    pub(super) options: &'a ModelOptions,
    pub(super) rows: RowSpaces,
    pub(super) inputs: Inputs,
}

impl Context<'_> {
    /// `x` with elements dropped, as the module `dropout` of the current scope does.
    pub(super) fn drop_hidden(&self, b: &mut Builder, x: Value) -> Value {
        match self.dropping(b, self.config.hidden_dropout_prob) {
            Some((op, keys)) => b.scoped("dropout", |b| b.op(op, &[x, keys])),
            None => x,
        }
    }

    /// What the module `dropout` of the current scope does to attention probabilities, and the keys
    /// it does it by; `None` where it does nothing.
    pub(super) fn drop_probabilities(&self, b: &Builder) -> Option<(Dropout, Value)> {
        self.dropping(b, self.config.attention_probs_dropout_prob)
    }

    fn dropping(&self, b: &Builder, rate: f64) -> Option<(Dropout, Value)> {
        let keys = self.inputs.dropout_keys.filter(|_| rate > 0.0)?;
        let op = Dropout {
            rate: (rate as f32).min(1f32.next_down()),
            salt: name_hash(&b.scoped_name("dropout")),
        };
        Some((op, keys))
    }
}

/// Outputs besides the task's own, in the order they arise.
pub(super) struct Trace {
    hidden_states: bool,
    pub(super) attentions: bool,
    outputs: Vec<(String, Value)>,
}

impl Trace {
    pub(super) fn new(options: &ModelOptions) -> Self {
        Trace {
            hidden_states: options.hidden_states,
            attentions: options.attentions,
            outputs: Vec::new(),
        }
    }

    pub(super) fn hidden_state(&mut self, name: impl Into<String>, value: Value) {
        if self.hidden_states {
            self.outputs.push((name.into(), value));
        }
    }

    pub(super) fn attention(&mut self, name: impl Into<String>, value: Option<Value>) {
        if let Some(value) = value {
            self.outputs.push((name.into(), value));
        }
    }

    pub(super) fn finish(self, b: &mut Builder) {
        for (name, value) in self.outputs {
            b.output(&name, value);
        }
    }
}
