//! The names of LXMERT's parameters.
//!
//! Canonical names are those of Transformers' `LxmertForQuestionAnswering` and `LxmertForPreTraining`: the backbone
//! under `lxmert.`, the heads beside it.

/// What a canonical name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Embeddings, encoders and pooler, which every task has.
    Backbone,
    /// The answer classifier (`answer_head.*`).
    AnswerHead,
    /// The heads of pretraining other than the answers' (`cls.*`, `obj_predict_head.*`).
    PretrainingHead,
    /// `cls.predictions.decoder.weight`, which is the word embedding under another name.
    TiedDecoder,
    /// No parameter of any LXMERT class.
    Unknown,
}

/// The canonical name of a stored tensor.
///
/// Undoes data-parallel wrappers (`module.`), the wrappers and the `bert.` prefix of the original code, its answer
/// head (`logit_fc.*`), the missing prefix of a bare `LxmertModel`, and LayerNorm's old `gamma` and `beta`. Names of
/// no LXMERT class come back unchanged where none of this applies.
pub fn canonical(stored: &str) -> String {
    let mut name = stored;
    for wrapper in ["module.", "lxrt_encoder.model.", "module."] {
        name = name.strip_prefix(wrapper).unwrap_or(name);
    }
    let (prefix, rest) = if let Some(rest) = name.strip_prefix("bert.") {
        ("lxmert.", rest)
    } else if name.starts_with("logit_fc.") {
        ("answer_head.", name)
    } else if ["embeddings.", "encoder.", "pooler."]
        .iter()
        .any(|p| name.starts_with(p))
    {
        ("lxmert.", name)
    } else {
        ("", name)
    };
    let (stem, last) = match rest.rsplit_once('.') {
        Some((stem, "gamma")) => (stem, ".weight"),
        Some((stem, "beta")) => (stem, ".bias"),
        _ => (rest, ""),
    };
    format!("{prefix}{stem}{last}")
}

/// What the canonical name `name` stands for, in any configuration.
pub fn role(name: &str) -> Role {
    if let Some(rest) = name.strip_prefix("lxmert.") {
        return known(is_backbone(rest), Role::Backbone);
    }
    if let Some(rest) = name.strip_prefix("answer_head.logit_fc.") {
        return known(
            ["0", "2", "3"].iter().any(|i| is_affine(rest, i)),
            Role::AnswerHead,
        );
    }
    if name == "cls.predictions.decoder.weight" {
        return Role::TiedDecoder;
    }
    if let Some(rest) = name.strip_prefix("cls.") {
        let head = rest == "predictions.bias" || is_affine(rest, "seq_relationship");
        let transform = rest.strip_prefix("predictions.").is_some_and(is_transform);
        return known(head || transform, Role::PretrainingHead);
    }
    if let Some(rest) = name.strip_prefix("obj_predict_head.") {
        let decoder = ["obj", "attr", "feat"]
            .iter()
            .any(|kind| is_affine(rest, &format!("decoder_dict.{kind}")));
        return known(decoder || is_transform(rest), Role::PretrainingHead);
    }
    Role::Unknown
}

fn known(is_known: bool, role: Role) -> Role {
    if is_known { role } else { Role::Unknown }
}

/// True for `layer.weight` and `layer.bias`.
fn is_affine(name: &str, layer: &str) -> bool {
    matches!(name.strip_prefix(layer), Some(".weight" | ".bias"))
}

fn is_transform(name: &str) -> bool {
    is_affine(name, "transform.dense") || is_affine(name, "transform.LayerNorm")
}

fn is_backbone(name: &str) -> bool {
    if let Some(rest) = name.strip_prefix("embeddings.") {
        let table = matches!(
            rest,
            "word_embeddings.weight"
                | "position_embeddings.weight"
                | "token_type_embeddings.weight"
        );
        return table || is_affine(rest, "LayerNorm");
    }
    if let Some(rest) = name.strip_prefix("encoder.visn_fc.") {
        return ["visn_fc", "visn_layer_norm", "box_fc", "box_layer_norm"]
            .iter()
            .any(|layer| is_affine(rest, layer));
    }
    if let Some(rest) = name.strip_prefix("encoder.") {
        return is_layer(rest);
    }
    is_affine(name, "pooler.dense")
}

/// True for a parameter of one numbered layer of one of the three encoders.
fn is_layer(name: &str) -> bool {
    let mut parts = name.splitn(3, '.');
    let (Some(stack), Some(index), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_number = index.parse::<u32>().is_ok_and(|i| i.to_string() == index);
    is_number
        && match stack {
            "layer" | "r_layers" => {
                is_attention(rest, "attention", "self")
                    || is_affine(rest, "intermediate.dense")
                    || is_output(rest, "output")
            }
            "x_layers" => {
                is_attention(rest, "visual_attention", "att")
                    || ["lang", "visn"].iter().any(|side| {
                        is_attention(rest, &format!("{side}_self_att"), "self")
                            || is_affine(rest, &format!("{side}_inter.dense"))
                            || is_output(rest, &format!("{side}_output"))
                    })
            }
            _ => false,
        }
}

fn is_attention(name: &str, block: &str, inner: &str) -> bool {
    is_output(name, &format!("{block}.output"))
        || ["query", "key", "value"]
            .iter()
            .any(|part| is_affine(name, &format!("{block}.{inner}.{part}")))
}

fn is_output(name: &str, block: &str) -> bool {
    is_affine(name, &format!("{block}.dense")) || is_affine(name, &format!("{block}.LayerNorm"))
}
