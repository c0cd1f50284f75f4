//! Names, roles, and comparing with what a model needs.

use super::{folder_with, golden, one_screen, open_bytes, zeros};
use crate::checkpoint::{Checkpoint, Role, canonical, role};
use crate::error::{Error, Fault};
use crate::tensors::Dtype;

fn expected_of(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>)> {
    let shape = |name: &str| checkpoint.get(name).unwrap().shape.clone();
    checkpoint
        .names()
        .map(|name| (name.to_owned(), shape(name)))
        .collect()
}

#[test]
fn names_of_every_origin_become_canonical() {
    for (stored, wanted) in [
        ("lxmert.pooler.dense.bias", "lxmert.pooler.dense.bias"),
        ("pooler.dense.bias", "lxmert.pooler.dense.bias"),
        ("bert.pooler.dense.bias", "lxmert.pooler.dense.bias"),
        ("module.bert.pooler.dense.bias", "lxmert.pooler.dense.bias"),
        (
            "lxrt_encoder.model.bert.pooler.dense.bias",
            "lxmert.pooler.dense.bias",
        ),
        (
            "lxrt_encoder.model.module.bert.pooler.dense.bias",
            "lxmert.pooler.dense.bias",
        ),
        (
            "module.lxrt_encoder.model.bert.pooler.dense.bias",
            "lxmert.pooler.dense.bias",
        ),
        (
            "encoder.layer.0.output.LayerNorm.gamma",
            "lxmert.encoder.layer.0.output.LayerNorm.weight",
        ),
        (
            "embeddings.LayerNorm.beta",
            "lxmert.embeddings.LayerNorm.bias",
        ),
        ("logit_fc.3.weight", "answer_head.logit_fc.3.weight"),
        (
            "module.answer_head.logit_fc.3.weight",
            "answer_head.logit_fc.3.weight",
        ),
        (
            "module.cls.predictions.transform.LayerNorm.gamma",
            "cls.predictions.transform.LayerNorm.weight",
        ),
        ("something.gamma_ray", "something.gamma_ray"),
        ("gamma", "gamma"),
        ("", ""),
    ] {
        assert_eq!(canonical(stored), wanted);
        assert_eq!(canonical(wanted), wanted, "not idempotent");
    }
}

#[test]
fn roles_cover_all_classes_and_nothing_else() {
    use Role::{AnswerHead, Backbone, PretrainingHead, TiedDecoder, Unknown};
    for (name, wanted) in [
        ("lxmert.embeddings.token_type_embeddings.weight", Backbone),
        ("lxmert.embeddings.token_type_embeddings.bias", Unknown),
        ("lxmert.embeddings.position_ids", Unknown),
        ("lxmert.encoder.visn_fc.box_layer_norm.bias", Backbone),
        ("lxmert.encoder.layer.8.attention.self.key.bias", Backbone),
        ("lxmert.encoder.layer.08.attention.self.key.bias", Unknown),
        ("lxmert.encoder.layer.8.attention.att.key.bias", Unknown),
        ("lxmert.encoder.layer.+8.attention.self.key.bias", Unknown),
        (
            "lxmert.encoder.r_layers.12.intermediate.dense.weight",
            Backbone,
        ),
        (
            "lxmert.encoder.x_layers.4.visual_attention.att.query.weight",
            Backbone,
        ),
        (
            "lxmert.encoder.x_layers.4.visual_attention.self.query.weight",
            Unknown,
        ),
        (
            "lxmert.encoder.x_layers.4.lang_self_att.output.LayerNorm.bias",
            Backbone,
        ),
        ("lxmert.encoder.x_layers.4.visn_inter.dense.bias", Backbone),
        ("lxmert.encoder.x_layers.4.visn_output.dense.bias", Backbone),
        ("lxmert.encoder.x_layers.4.intermediate.dense.bias", Unknown),
        ("lxmert.pooler.dense.weight", Backbone),
        ("answer_head.logit_fc.2.weight", AnswerHead),
        ("answer_head.logit_fc.1.weight", Unknown),
        ("cls.predictions.bias", PretrainingHead),
        (
            "cls.predictions.transform.LayerNorm.weight",
            PretrainingHead,
        ),
        ("cls.seq_relationship.bias", PretrainingHead),
        ("cls.predictions.decoder.weight", TiedDecoder),
        ("cls.predictions.decoder.bias", Unknown),
        ("obj_predict_head.transform.dense.bias", PretrainingHead),
        ("obj_predict_head.decoder_dict.attr.weight", PretrainingHead),
        ("obj_predict_head.decoder_dict.size.weight", Unknown),
        ("bert.pooler.dense.weight", Unknown),
        ("", Unknown),
    ] {
        assert_eq!(role(name), wanted, "{name}");
    }
}

#[test]
fn the_golden_model_is_known_and_fits_itself() {
    let checkpoint = Checkpoint::open(&golden("pytorch_model.bin")).unwrap();
    assert!(checkpoint.names().all(|name| role(name) != Role::Unknown));
    let report = checkpoint.check(&expected_of(&checkpoint)).unwrap();
    assert!(report.skipped.is_empty() && report.notes.is_empty());
}

#[test]
fn heads_of_another_task_are_skipped_with_a_note() {
    let checkpoint = open_bytes(&zeros(&[
        ("bert.pooler.dense.bias", "F16", &[4]),
        ("cls.predictions.decoder.weight", "F16", &[2, 4]),
        ("cls.seq_relationship.bias", "F16", &[2]),
        ("logit_fc.3.bias", "F16", &[2]),
    ]))
    .unwrap();
    let expected = [("lxmert.pooler.dense.bias".to_owned(), vec![4])];
    let report = checkpoint.check(&expected).unwrap();
    assert_eq!(
        report.skipped,
        [
            "answer_head.logit_fc.3.bias",
            "cls.predictions.decoder.weight",
            "cls.seq_relationship.bias"
        ]
    );
    assert_eq!(report.notes.len(), 3);
    assert_eq!(
        checkpoint.stored_name("lxmert.pooler.dense.bias"),
        Some("bert.pooler.dense.bias")
    );
}

#[test]
fn all_differences_are_reported_at_once() {
    let checkpoint = open_bytes(&zeros(&[
        ("pooler.dense.bias", "F16", &[4]),
        ("pooler.dense.weight", "I16", &[4, 4]),
        ("encoder.layer.9.output.dense.bias", "F16", &[4]),
        ("optimizer.step", "F16", &[1]),
    ]))
    .unwrap();
    let expected = [
        ("lxmert.pooler.dense.bias".to_owned(), vec![8]),
        ("lxmert.pooler.dense.weight".to_owned(), vec![4, 4]),
        ("answer_head.logit_fc.0.bias".to_owned(), vec![16]),
    ];
    let error = checkpoint.check(&expected).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    let text = one_screen(&error);
    for words in [
        "5 tensors",
        "missing    `answer_head.logit_fc.0.bias`",
        "`lxmert.pooler.dense.bias`: the model needs [8], the file has [4]",
        "`lxmert.pooler.dense.weight`: I16",
        "surplus    `lxmert.encoder.layer.9.output.dense.bias`",
        "unknown    `optimizer.step`",
    ] {
        assert!(text.contains(words), "{words} not in:\n{text}");
    }
}

#[test]
fn many_differences_are_counted() {
    let checkpoint = open_bytes(&zeros(&[])).unwrap();
    let expected: Vec<_> = (0..40)
        .map(|i| {
            (
                format!("lxmert.encoder.layer.{i}.output.dense.bias"),
                vec![4],
            )
        })
        .collect();
    let error = checkpoint.check(&expected).unwrap_err();
    assert!(one_screen(&error).contains("and 28 more"));
    let Error::Mismatch(mismatch) = error else {
        panic!("{error}");
    };
    assert_eq!(mismatch.missing.len(), 40);
}

#[test]
fn doubles_are_noted() {
    let header = r#"{"pooler.dense.bias":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    let checkpoint = open_bytes(&super::safetensors(header, &[0; 8])).unwrap();
    let expected = [("lxmert.pooler.dense.bias".to_owned(), vec![1])];
    let report = checkpoint.check(&expected).unwrap();
    assert_eq!(report.notes, ["1 tensors are F64 and are rounded to F32"]);
    assert_eq!(checkpoint.get(&expected[0].0).unwrap().dtype, Dtype::F64);
}

#[test]
fn two_names_of_one_parameter_are_refused() {
    let bytes = zeros(&[
        ("bert.pooler.dense.bias", "F16", &[4]),
        ("pooler.dense.bias", "F16", &[4]),
    ]);
    let folder = folder_with("model.safetensors", &bytes);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(one_screen(&error).contains("`bert.pooler.dense.bias`"));
}
