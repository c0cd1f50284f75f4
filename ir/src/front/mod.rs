//! The front end: a configuration becomes a graph.
//!
//! [`LxmertConfig`] reads config.json; [`build`] wires the model as Transformers defines it, one
//! node per operation and nothing merged, since merging is the passes' work. Parameters have the
//! checkpoint's names, with the prefix `lxmert.` that checkpoints of a bare `LxmertModel` lack.
//!
//! # Rows
//! [`RowSpaces`] says which row spaces there are. Below, *text* stands for `text`, one row per
//! token of each question, and *sample text* for `sample_text`, one row per token of each sample;
//! with room for one sample only, or with dropout, both are `text`. Likewise *box* and *sample box*.
//!
//! # Inputs
//! | name | type | holds |
//! |---|---|---|
//! | `input_ids` | i32\[text\] | token ids |
//! | `token_type_ids` | i32\[text\] | Transformers' default is 0 |
//! | `position_ids` | i32\[text\] | the token's place in its text, from 0; holes count |
//! | `attention_mask` | f32\[text\] | 1 keeps a key, 0 masks it; the default is 1 |
//! | `visual_feats` | f32\[box, visual_feat_dim\] | features of boxes |
//! | `visual_pos` | f32\[box, visual_pos_dim\] | coordinates of boxes |
//! | `visual_attention_mask` | f32\[box\] | as `attention_mask`; ones stand for no mask |
//! | `sample_text_rows` | i32\[sample text\] | the row of *text* that each token of a sample is; absent where both are one |
//! | `sample_box_rows` | i32\[sample box\] | the row of *box* that each box of a sample is; absent where both are one |
//! | `first_token` | i32\[sample\] | the row of *sample text* where each sample begins |
//! | `dropout_keys` | i32\[sample, 2\] | two words that decide what each sample drops; only with dropout |
//!
//! and, with the losses that read them,
//!
//! | name | type | holds |
//! |---|---|---|
//! | `labels` | i32\[sample\] | the answer's class; -100 is ignored, here and below |
//! | `soft_labels` | f32\[sample, num_qa_labels\] | a target in 0..1 for each answer |
//! | `lm_labels` | i32\[sample text\] | the words behind masked tokens |
//! | `matched_label` | i32\[sample\] | 1 if the text describes the image, else 0 |
//! | `obj_labels`, `attr_labels` | i32\[sample box\] | classes of boxes |
//! | `obj_conf`, `attr_conf`, `feat_conf` | f32\[sample box\] | weights of the boxes' losses |
//! | `feat_labels` | f32\[sample box, visual_feat_dim\] | features to predict |
//! | `ans` | i32\[sample\] | the answer's class |
//!
//! # Outputs
//! | task | outputs |
//! |---|---|
//! | all, with hidden states | `embedding_output`\[text, D\], `visual_embedding_output`\[box, D\]; `language_hidden_states.i`: the language layers \[text, D\], then the cross layers \[sample text, D\]; `vision_hidden_states.i` likewise |
//! | all, with attentions | `language_attentions.i`\[text, heads, T\], `vision_attentions.i`\[box, heads, V\], `cross_encoder_attentions.i`\[sample text, heads, V\]: per query row and head the probability of each key of its segment |
//! | qa | `question_answering_score`\[sample, num_qa_labels\], `pooled_output`\[sample, D\]; `loss`, `loss_bce` |
//! | base | `language_output`\[sample text, D\], `vision_output`\[sample box, D\], `pooled_output` |
//! | pretraining | `prediction_logits`\[sample text, vocab_size\], `cross_relationship_score`\[sample, 2\], `visual_prediction.obj`, `.attr`, `.feat`\[sample box, classes\], `question_answering_score`; `loss_mlm`, `loss_matched`, `loss_visual_obj`, `loss_visual_attr`, `loss_visual_feat`, `loss_qa`, and their sum `loss` |
//!
//! # Dropout
//! What is dropped is Transformers' choice: the text's embedding, the boxes' embedding, each `output.dense`
//! before its residual, and the probabilities of every attention, which are returned as dropped. The
//! salt of a mask is the hash of its module's path; see [`crate::ops::Dropout`].
//!
//! # Scopes
//! A node's scope is the path of its module in the checkpoint, except that the two uses of a cross
//! layer's `visual_attention` stand in `visual_attention.lang` and `visual_attention.visn`.

mod config;
mod embeddings;
mod encoder;
mod error;
mod heads;
mod inputs;
mod json;
mod losses;
mod lxmert;
mod modules;
mod options;
mod spaces;
#[cfg(test)]
mod tests;

pub use config::{LAYER_NORM_EPS, LxmertConfig};
pub use encoder::layer_scopes;
pub use error::FrontError;
pub use lxmert::{Built, build, parameters};
pub use options::{AnswerLoss, Losses, ModelOptions, PretrainingLoss, Task};
pub use spaces::RowSpaces;
