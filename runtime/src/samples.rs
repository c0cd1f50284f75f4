//! What a user asks: samples under Transformers' names, checked.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions, PretrainingLoss, Task};

use crate::error::{Error, Result};
use crate::tensors::HostTensor;

/// Samples as dense tensors, as the user gave them; packing fills in Transformers' defaults for what is
/// absent.
#[derive(Clone, Debug)]
pub struct Samples {
    /// B, the number of samples.
    pub batch: usize,
    /// T, tokens of each text, padding included.
    pub tokens: usize,
    /// V, boxes of each image.
    pub boxes: usize,
    /// The image of each sample.
    pub images: Vec<usize>,
    /// Every input by name, row-major, axes 0 and 1 flattened where the input has one value per
    /// token or box.
    pub(crate) values: BTreeMap<&'static str, Values>,
}

/// The elements of one input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// What axis 0 and 1 of a user's tensor count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axes {
    /// \[B\]: one entry per sample.
    Sample,
    /// \[B, T\]: one entry per token.
    Text,
    /// \[images, V\]: one entry per box of each distinct image.
    Image,
    /// \[B, V\]: one entry per box of each sample.
    Box,
}

/// An input a user may give.
pub(crate) struct Field {
    /// Its name, in user files and in graphs.
    pub name: &'static str,
    /// What it counts.
    pub axes: Axes,
    /// What a value must be.
    pub content: Content,
}

/// The values of a field.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Indices below a bound; −100 too if the flag is set. The default is the third, if any.
    Index(fn(&LxmertConfig) -> usize, bool, Option<i32>),
    /// Floats, one for each entry or that many. The default is the second, if any.
    Float(Option<fn(&LxmertConfig) -> usize>, Option<f32>),
}

/// The label that a loss ignores.
pub(crate) const IGNORED_LABEL: i32 = -100;

/// Every field. A label's default is what the losses ignore.
pub(crate) const FIELDS: &[Field] = &[
    field(
        "input_ids",
        Axes::Text,
        Content::Index(|c| c.vocab_size, false, None),
    ),
    field(
        "token_type_ids",
        Axes::Text,
        Content::Index(|c| c.type_vocab_size, false, Some(0)),
    ),
    field(
        "attention_mask",
        Axes::Text,
        Content::Float(None, Some(1.0)),
    ),
    field(
        "visual_feats",
        Axes::Image,
        Content::Float(Some(|c| c.visual_feat_dim), None),
    ),
    field(
        "visual_pos",
        Axes::Image,
        Content::Float(Some(|c| c.visual_pos_dim), None),
    ),
    field(
        "visual_attention_mask",
        Axes::Image,
        Content::Float(None, Some(1.0)),
    ),
    field(
        "labels",
        Axes::Sample,
        Content::Index(|c| c.num_qa_labels, true, Some(IGNORED_LABEL)),
    ),
    field(
        "soft_labels",
        Axes::Sample,
        Content::Float(Some(|c| c.num_qa_labels), Some(0.0)),
    ),
    field(
        "lm_labels",
        Axes::Text,
        Content::Index(|c| c.vocab_size, true, Some(IGNORED_LABEL)),
    ),
    field(
        "matched_label",
        Axes::Sample,
        Content::Index(|_| 2, true, Some(IGNORED_LABEL)),
    ),
    field(
        "ans",
        Axes::Sample,
        Content::Index(|c| c.num_qa_labels, true, Some(IGNORED_LABEL)),
    ),
    field(
        "obj_labels",
        Axes::Box,
        Content::Index(|c| c.num_object_labels, true, Some(IGNORED_LABEL)),
    ),
    field("obj_conf", Axes::Box, Content::Float(None, Some(0.0))),
    field(
        "attr_labels",
        Axes::Box,
        Content::Index(|c| c.num_attr_labels, true, Some(IGNORED_LABEL)),
    ),
    field("attr_conf", Axes::Box, Content::Float(None, Some(0.0))),
    field(
        "feat_labels",
        Axes::Box,
        Content::Float(Some(|c| c.visual_feat_dim), Some(0.0)),
    ),
    field("feat_conf", Axes::Box, Content::Float(None, Some(0.0))),
];

const fn field(name: &'static str, axes: Axes, content: Content) -> Field {
    Field {
        name,
        axes,
        content,
    }
}

impl Samples {
    /// Reads samples from the tensors of the file `path`. Tensors the task does not read are ignored.
    ///
    /// # Errors
    /// A tensor is missing, misshaped, of the wrong kind, or holds a value out of range; names the
    /// file, the tensor and the place.
    pub fn from_tensors(
        tensors: &BTreeMap<String, HostTensor>,
        path: &Path,
        config: &LxmertConfig,
        task: Task,
    ) -> Result<Samples> {
        let reader = Reader {
            tensors,
            path,
            config,
        };
        let [batch, tokens] = reader.leading("input_ids", "[batch, tokens]")?;
        let [images, boxes] = reader.leading("visual_feats", "[batch, boxes, features]")?;
        let image_of = reader.image_index(batch, images)?;
        if tokens > config.max_position_embeddings {
            let limit = config.max_position_embeddings;
            let problem =
                format!("has {tokens} tokens; the model's position table ends at {limit}");
            return Err(reader.wrong(
                "input_ids",
                &problem,
                "shorten the texts (max_position_embeddings)",
            ));
        }
        let mut samples = Samples {
            batch,
            tokens,
            boxes,
            images: image_of,
            values: BTreeMap::new(),
        };
        for field in FIELDS.iter().filter(|field| reads(task, field.name)) {
            let shape = match field.axes {
                Axes::Sample => vec![batch],
                Axes::Text => vec![batch, tokens],
                Axes::Image => vec![images, boxes],
                Axes::Box => vec![batch, boxes],
            };
            if let Some(values) = reader.field(field, &shape)? {
                samples.values.insert(field.name, values);
            }
        }
        for (labels, weights) in [
            ("obj_labels", "obj_conf"),
            ("attr_labels", "attr_conf"),
            ("feat_labels", "feat_conf"),
        ] {
            if samples.has(labels) && !samples.has(weights) {
                let help = format!("give one weight per box, or leave `{labels}` out");
                return Err(reader.wrong(weights, &format!("is missing beside `{labels}`"), &help));
            }
        }
        Ok(samples)
    }

    /// Whether the user gave the input, rather than its default.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The model options that fit these samples: all in one micro-batch, every loss that their
    /// labels allow. `loss` is what the output `loss` of question answering is.
    pub fn model_options(&self, task: Task, loss: AnswerLoss) -> ModelOptions {
        ModelOptions {
            task,
            micro_batch: self.batch,
            seq_len: self.tokens,
            boxes: self.boxes,
            losses: self.losses(task, loss),
            ..ModelOptions::default()
        }
    }

    fn losses(&self, task: Task, loss: AnswerLoss) -> Losses {
        use PretrainingLoss::*;
        match task {
            Task::Base => Losses::None,
            Task::Qa => {
                let needed = if loss == AnswerLoss::CrossEntropy {
                    "labels"
                } else {
                    "soft_labels"
                };
                let loss = self.has(needed).then_some(loss);
                let bce = self.has("soft_labels");
                if loss.is_none() && !bce {
                    Losses::None
                } else {
                    Losses::Answer { loss, bce }
                }
            }
            Task::Pretraining => {
                let parts = [
                    ("lm_labels", MaskedLanguage),
                    ("matched_label", Matched),
                    ("obj_labels", Objects),
                    ("attr_labels", Attributes),
                    ("feat_labels", Features),
                    ("ans", Answer),
                ];
                let given = parts
                    .into_iter()
                    .filter(|(name, _)| self.has(name))
                    .map(|(_, part)| part);
                let given: std::collections::BTreeSet<_> = given.collect();
                if given.is_empty() {
                    Losses::None
                } else {
                    Losses::Pretraining(given)
                }
            }
        }
    }
}

/// Whether a task reads a field.
pub(crate) fn reads(task: Task, name: &str) -> bool {
    match name {
        "labels" | "soft_labels" => task == Task::Qa,
        "lm_labels" | "matched_label" | "ans" | "obj_labels" | "obj_conf" | "attr_labels"
        | "attr_conf" | "feat_labels" | "feat_conf" => task == Task::Pretraining,
        _ => true,
    }
}

struct Reader<'a> {
    tensors: &'a BTreeMap<String, HostTensor>,
    path: &'a Path,
    config: &'a LxmertConfig,
}

impl Reader<'_> {
    fn wrong(&self, name: &str, problem: &str, help: &str) -> Error {
        Error::invalid(self.path, format!("tensor `{name}`"), problem, help)
    }

    /// The first two axes of a required tensor, which must not be empty.
    fn leading(&self, name: &str, axes: &str) -> Result<[usize; 2]> {
        let help = format!("give `{name}` as {axes}");
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.wrong(name, "is missing", &help))?;
        match *tensor.shape() {
            [first, second, ..] if first > 0 && second > 0 => Ok([first, second]),
            ref shape => Err(self.wrong(name, &format!("has shape {shape:?}"), &help)),
        }
    }

    fn image_index(&self, batch: usize, images: usize) -> Result<Vec<usize>> {
        let name = "image_index";
        let Some(tensor) = self.tensors.get(name) else {
            if images == batch {
                return Ok((0..batch).collect());
            }
            let problem = format!("holds {images} images for {batch} questions");
            return Err(self.wrong(
                "visual_feats",
                &problem,
                "give one per question, or `image_index` [batch]",
            ));
        };
        if tensor.shape() != [batch] {
            return Err(self.wrong(
                name,
                &format!("has shape {:?}, must be [{batch}]", tensor.shape()),
                "one image per question",
            ));
        }
        let found = |(at, &index): (usize, &i32)| {
            let image = usize::try_from(index).ok().filter(|&image| image < images);
            image.ok_or_else(|| {
                self.wrong(
                    name,
                    &format!("[{at}] is {index}; there are {images} images"),
                    "number images from 0",
                )
            })
        };
        tensor.to_i32()?.iter().enumerate().map(found).collect()
    }

    /// The values of a field, its default where it has one and is absent; `None` for absent labels.
    fn field(&self, field: &Field, leading: &[usize]) -> Result<Option<Values>> {
        let Some(tensor) = self.tensors.get(field.name) else {
            return match field.content {
                Content::Index(_, _, None) | Content::Float(_, None) => {
                    Err(self.wrong(field.name, "is missing", "this input is required"))
                }
                _ => Ok(None),
            };
        };
        let mut shape = leading.to_vec();
        if let Content::Float(Some(width), _) = field.content {
            shape.push(width(self.config));
        }
        if tensor.shape() != shape {
            let problem = format!("has shape {:?}, must be {shape:?}", tensor.shape());
            return Err(self.wrong(
                field.name,
                &problem,
                "all inputs must agree with input_ids, visual_feats and config.json",
            ));
        }
        Ok(Some(match field.content {
            Content::Float(..) => Values::Floats(tensor.to_f32()?),
            Content::Index(bound, ignorable, _) => {
                let values = tensor.to_i32()?;
                self.check_range(field.name, &values, bound(self.config), ignorable)?;
                Values::Ints(values)
            }
        }))
    }

    fn check_range(&self, name: &str, values: &[i32], bound: usize, ignorable: bool) -> Result<()> {
        let fits = |value: i32| {
            usize::try_from(value).is_ok_and(|value| value < bound)
                || (ignorable && value == IGNORED_LABEL)
        };
        match values.iter().position(|&value| !fits(value)) {
            None => Ok(()),
            Some(at) => {
                let also = if ignorable {
                    ", or -100 to ignore it"
                } else {
                    ""
                };
                let problem = format!(
                    "element {at} is {}; must be in 0..{bound}{also}",
                    values[at]
                );
                Err(self.wrong(
                    name,
                    &problem,
                    "check the vocabulary and labels the file was made with",
                ))
            }
        }
    }
}
