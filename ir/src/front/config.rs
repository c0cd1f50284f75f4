//! The configuration of an LXMERT model, as Transformers writes it in config.json.

use serde_json::{Value, json};

use super::json::{Fields, show};
use super::{FrontError, Task};
use crate::ops::Activation;

/// The largest hidden size, vocabulary, and so on.
const MAX_SIZE: usize = 1 << 24;
/// The largest number of layers of one kind.
const MAX_LAYERS: usize = 1024;
/// The largest number of parameters, so that no count of bytes or operations overflows.
const MAX_PARAMETERS: u128 = 1 << 40;
/// The largest initialiser range and loss normaliser.
const MAX_FACTOR: f64 = 1e6;

/// The epsilon of every layer normalisation: Transformers' implementation of LXMERT fixes it and
/// ignores `layer_norm_eps`.
pub const LAYER_NORM_EPS: f64 = 1e-12;

/// A checked configuration. The fields have the names and meanings of Transformers'
/// `LxmertConfig`; all sizes are positive and at most 2^24, layer counts at most 1024.
#[derive(Clone, Debug, PartialEq)]
pub struct LxmertConfig {
    /// The model class names in the file; any string is legal.
    pub architectures: Vec<String>,
    /// `dtype`, or `torch_dtype` in older files: how the checkpoint was stored. Not binding.
    pub dtype: Option<String>,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Features of a row, D; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Answers.
    pub num_qa_labels: usize,
    /// Object classes of the pretraining head.
    pub num_object_labels: usize,
    /// Attribute classes of the pretraining head.
    pub num_attr_labels: usize,
    /// Features inside a feed-forward block.
    pub intermediate_size: usize,
    /// The nonlinearity of feed-forward blocks and of the heads' transforms.
    pub hidden_act: Activation,
    /// Dropout of embeddings and of what is added to residuals; in 0..1.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention probabilities; in 0..1.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position embedding: the longest text.
    pub max_position_embeddings: usize,
    /// Rows of the token type embedding.
    pub type_vocab_size: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Language layers, L.
    pub l_layers: usize,
    /// Cross layers, X; L + X and R + X are at least 1.
    pub x_layers: usize,
    /// Relational (vision) layers, R.
    pub r_layers: usize,
    /// Features of a box, f.
    pub visual_feat_dim: usize,
    /// Coordinates of a box, p.
    pub visual_pos_dim: usize,
    /// Multiplies each visual loss.
    pub visual_loss_normalizer: f64,
    /// Whether pretraining has the sentence-matches-image loss.
    pub task_matched: bool,
    /// Whether pretraining has the masked-language loss.
    pub task_mask_lm: bool,
    /// Whether pretraining has the object head.
    pub task_obj_predict: bool,
    /// Whether pretraining has the answer head.
    pub task_qa: bool,
    /// Whether the object head predicts classes.
    pub visual_obj_loss: bool,
    /// Whether the object head predicts attributes.
    pub visual_attr_loss: bool,
    /// Whether the object head predicts features.
    pub visual_feat_loss: bool,
}

impl LxmertConfig {
    /// The configuration of lxmert-base with the 1,842 answers of GQA.
    pub fn base() -> Self {
        LxmertConfig {
            architectures: vec!["LxmertForQuestionAnswering".to_owned()],
            dtype: None,
            vocab_size: 30522,
            hidden_size: 768,
            num_attention_heads: 12,
            num_qa_labels: 1842,
            num_object_labels: 1600,
            num_attr_labels: 400,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            l_layers: 9,
            x_layers: 5,
            r_layers: 5,
            visual_feat_dim: 2048,
            visual_pos_dim: 4,
            visual_loss_normalizer: 6.67,
            task_matched: true,
            task_mask_lm: true,
            task_obj_predict: true,
            task_qa: true,
            visual_obj_loss: true,
            visual_attr_loss: true,
            visual_feat_loss: true,
        }
    }

    /// Transformers' defaults: lxmert-base with the 9,500 answers of pretraining.
    fn transformers() -> Self {
        LxmertConfig {
            architectures: Vec::new(),
            num_qa_labels: 9500,
            ..Self::base()
        }
    }

    /// Reads a config.json. Absent fields take Transformers' defaults, unknown ones are ignored;
    /// so are `num_hidden_layers`, which repeats the layer counts, and `layer_norm_eps`.
    ///
    /// # Errors
    /// Names the line or the field, what it holds, and what it may hold.
    pub fn from_json(bytes: &[u8]) -> Result<Self, FrontError> {
        let fields = Fields::parse(bytes)?;
        check_model_type(&fields)?;
        let base = Self::transformers();
        let size = |name, default| fields.size(name, default, 1..=MAX_SIZE);
        let layers = |name, default| fields.size(name, default, 0..=MAX_LAYERS);
        let rate = |name, default| {
            fields.number(name, default, "from 0 to below 1", |rate| {
                (0.0..1.0).contains(&rate)
            })
        };
        let factor = |name, default, least: f64| {
            let rule = format!("from {least:e} to {MAX_FACTOR}");
            fields.number(name, default, &rule, |factor| {
                (least..=MAX_FACTOR).contains(&factor)
            })
        };
        let config = LxmertConfig {
            architectures: architectures(&fields)?,
            dtype: dtype(&fields),
            vocab_size: size("vocab_size", base.vocab_size)?,
            hidden_size: size("hidden_size", base.hidden_size)?,
            num_attention_heads: size("num_attention_heads", base.num_attention_heads)?,
            num_qa_labels: size("num_qa_labels", base.num_qa_labels)?,
            num_object_labels: size("num_object_labels", base.num_object_labels)?,
            num_attr_labels: size("num_attr_labels", base.num_attr_labels)?,
            intermediate_size: size("intermediate_size", base.intermediate_size)?,
            hidden_act: hidden_act(&fields)?,
            hidden_dropout_prob: rate("hidden_dropout_prob", base.hidden_dropout_prob)?,
            attention_probs_dropout_prob: rate(
                "attention_probs_dropout_prob",
                base.attention_probs_dropout_prob,
            )?,
            max_position_embeddings: size("max_position_embeddings", base.max_position_embeddings)?,
            type_vocab_size: size("type_vocab_size", base.type_vocab_size)?,
            initializer_range: factor("initializer_range", base.initializer_range, 0.0)?,
            l_layers: layers("l_layers", base.l_layers)?,
            x_layers: layers("x_layers", base.x_layers)?,
            r_layers: layers("r_layers", base.r_layers)?,
            visual_feat_dim: size("visual_feat_dim", base.visual_feat_dim)?,
            visual_pos_dim: size("visual_pos_dim", base.visual_pos_dim)?,
            visual_loss_normalizer: factor(
                "visual_loss_normalizer",
                base.visual_loss_normalizer,
                1e-6,
            )?,
            task_matched: fields.flag("task_matched", true)?,
            task_mask_lm: fields.flag("task_mask_lm", true)?,
            task_obj_predict: fields.flag("task_obj_predict", true)?,
            task_qa: fields.flag("task_qa", true)?,
            visual_obj_loss: fields.flag("visual_obj_loss", true)?,
            visual_attr_loss: fields.flag("visual_attr_loss", true)?,
            visual_feat_loss: fields.flag("visual_feat_loss", true)?,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks what concerns several fields, and again the sizes, which are public.
    pub(super) fn check(&self) -> Result<(), FrontError> {
        self.check_sizes()?;
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if !hidden.is_multiple_of(heads) {
            return Err(FrontError::field(
                "hidden_size",
                format!("is {hidden}; it must be a multiple of num_attention_heads, {heads}"),
            ));
        }
        for (name, layers) in [("l_layers", self.l_layers), ("r_layers", self.r_layers)] {
            if layers + self.x_layers == 0 {
                return Err(FrontError::field(
                    name,
                    "and `x_layers` are both 0; one of them must be at least 1",
                ));
            }
        }
        let count = self.count(Task::Pretraining).max(self.count(Task::Qa));
        if count > MAX_PARAMETERS {
            return Err(FrontError::NotSupported {
                field: "hidden_size".to_owned(),
                message: format!(
                    "and the other sizes make {count} parameters; at most {MAX_PARAMETERS} are supported"
                ),
            });
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), FrontError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_qa_labels", self.num_qa_labels),
            ("num_object_labels", self.num_object_labels),
            ("num_attr_labels", self.num_attr_labels),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("visual_feat_dim", self.visual_feat_dim),
            ("visual_pos_dim", self.visual_pos_dim),
        ];
        let layers = [
            ("l_layers", self.l_layers),
            ("x_layers", self.x_layers),
            ("r_layers", self.r_layers),
        ];
        let size = sizes
            .iter()
            .find(|(_, size)| !(1..=MAX_SIZE).contains(size));
        let count = layers.iter().find(|(_, count)| *count > MAX_LAYERS);
        match size.or(count) {
            Some((name, value)) => {
                let message = format!(
                    "is {value}; sizes go from 1 to {MAX_SIZE}, layer counts from 0 to {MAX_LAYERS}"
                );
                Err(FrontError::field(name, message))
            }
            None => Ok(()),
        }
    }

    /// Features of one head, D / heads.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The number of parameters of the model class of `task`, tied ones counted once.
    pub fn parameter_count(&self, task: Task) -> u64 {
        u64::try_from(self.count(task)).unwrap_or(u64::MAX)
    }

    fn count(&self, task: Task) -> u128 {
        let wide = |size: usize| size as u128;
        let (d, inner) = (wide(self.hidden_size), wide(self.intermediate_size));
        let attention = 4 * (d * d + d) + 2 * d;
        let feed_forward = 2 * d * inner + inner + 3 * d;
        let tables = wide(self.vocab_size + self.max_position_embeddings + self.type_vocab_size);
        let visual = wide(self.visual_feat_dim + self.visual_pos_dim);
        let embeddings = d * (tables + 2) + d * (visual + 6);
        let towers = wide(self.l_layers + self.r_layers) * (attention + feed_forward);
        let cross = wide(self.x_layers) * (3 * attention + 2 * feed_forward);
        let pooler = d * d + d;
        let heads = match task {
            Task::Base => 0,
            Task::Qa => self.count_answer_head(),
            Task::Pretraining => self.count_pretraining_heads(),
        };
        embeddings + towers + cross + pooler + heads
    }

    fn count_answer_head(&self) -> u128 {
        let (d, answers) = (self.hidden_size as u128, self.num_qa_labels as u128);
        2 * d * d + 6 * d + (2 * d + 1) * answers
    }

    fn count_pretraining_heads(&self) -> u128 {
        let d = self.hidden_size as u128;
        let transform = d * d + 3 * d;
        let decoders = [
            (self.visual_obj_loss, self.num_object_labels),
            (self.visual_attr_loss, self.num_attr_labels),
            (self.visual_feat_loss, self.visual_feat_dim),
        ];
        let decoded: u128 = decoders
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|&(_, classes)| (d + 1) * classes as u128)
            .sum();
        let language = transform + self.vocab_size as u128 + 2 * d + 2;
        let objects = u128::from(self.task_obj_predict) * (transform + decoded);
        language + objects + u128::from(self.task_qa) * self.count_answer_head()
    }

    /// The configuration in Transformers' form.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": self.architectures,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "dtype": self.dtype.as_deref().unwrap_or("float32"),
            "hidden_act": activation_name(self.hidden_act),
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "l_layers": self.l_layers,
            "layer_norm_eps": LAYER_NORM_EPS,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "lxmert",
            "num_attention_heads": self.num_attention_heads,
            "num_attr_labels": self.num_attr_labels,
            "num_hidden_layers": {
                "cross_encoder": self.x_layers,
                "language": self.l_layers,
                "vision": self.r_layers,
            },
            "num_object_labels": self.num_object_labels,
            "num_qa_labels": self.num_qa_labels,
            "r_layers": self.r_layers,
            "task_mask_lm": self.task_mask_lm,
            "task_matched": self.task_matched,
            "task_obj_predict": self.task_obj_predict,
            "task_qa": self.task_qa,
            "type_vocab_size": self.type_vocab_size,
            "visual_attr_loss": self.visual_attr_loss,
            "visual_feat_dim": self.visual_feat_dim,
            "visual_feat_loss": self.visual_feat_loss,
            "visual_loss_normalizer": self.visual_loss_normalizer,
            "visual_obj_loss": self.visual_obj_loss,
            "visual_pos_dim": self.visual_pos_dim,
            "vocab_size": self.vocab_size,
            "x_layers": self.x_layers,
        })
    }
}

fn check_model_type(fields: &Fields) -> Result<(), FrontError> {
    match fields.get("model_type") {
        None => Ok(()),
        Some(Value::String(name)) if name == "lxmert" => Ok(()),
        Some(other) => {
            let message = format!("is {}; only \"lxmert\" models are supported", show(other));
            Err(FrontError::field("model_type", message))
        }
    }
}

fn architectures(fields: &Fields) -> Result<Vec<String>, FrontError> {
    let names = match fields.get("architectures") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(name)) => Some(vec![name.clone()]),
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    };
    names.ok_or_else(|| FrontError::field("architectures", "must be a list of class names"))
}

fn dtype(fields: &Fields) -> Option<String> {
    let name = fields.get("dtype").or_else(|| fields.get("torch_dtype"))?;
    name.as_str().map(str::to_owned)
}

/// The nonlinearities, by Transformers' names; the first of two names is the one written.
const ACTIVATIONS: [(&str, Activation); 5] = [
    ("gelu", Activation::Gelu),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu_new", Activation::GeluTanh),
];

fn hidden_act(fields: &Fields) -> Result<Activation, FrontError> {
    let name = match fields.get("hidden_act") {
        None => return Ok(Activation::Gelu),
        Some(Value::String(name)) => name,
        Some(other) => {
            let message = format!("is {}; it must be a name such as \"gelu\"", show(other));
            return Err(FrontError::field("hidden_act", message));
        }
    };
    let found = ACTIVATIONS.iter().find(|(known, _)| known == name);
    found
        .map(|&(_, kind)| kind)
        .ok_or_else(|| FrontError::NotSupported {
            field: "hidden_act".to_owned(),
            message: format!(
                "{} is not supported; supported are {}",
                show(&Value::String(name.clone())),
                ACTIVATIONS.map(|(name, _)| name).join(", ")
            ),
        })
}

fn activation_name(kind: Activation) -> &'static str {
    let found = ACTIVATIONS.iter().find(|(_, known)| *known == kind);
    found.map_or("tanh", |&(name, _)| name)
}
