//! Golden cases: a small model, its inputs, and what Transformers computes from them.
#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod compare;
pub(crate) mod pack;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lxpod_ir::Shape;
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, PretrainingLoss, Task};
use safetensors::{Dtype, SafeTensors};

/// Elements of a stored tensor.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    Real(Vec<f32>),
    Int(Vec<i32>),
}

/// A stored tensor.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements,
}

impl Array {
    /// The elements as f32.
    pub(crate) fn reals(&self) -> Vec<f32> {
        match &self.elements {
            Elements::Real(values) => values.clone(),
            Elements::Int(values) => values.iter().map(|&value| value as f32).collect(),
        }
    }
}

/// The tensors of one file.
pub(crate) type Tensors = BTreeMap<String, Array>;

/// One folder of `tests/golden`.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) config: LxmertConfig,
    pub(crate) task: Task,
    pub(crate) weights: Tensors,
    pub(crate) inputs: Tensors,
    pub(crate) expected: Tensors,
    /// Of the loss, by parameter; empty where the case has none.
    pub(crate) gradients: Tensors,
}

/// Where the cases are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

impl Case {
    pub(crate) fn load(name: &'static str) -> Case {
        let folder = folder().join(name);
        let config = fs::read(folder.join("config.json")).expect("config.json");
        let config = LxmertConfig::from_json(&config).expect("a valid configuration");
        let task = Task::from_architectures(&config.architectures);
        let weights = tensors(&folder.join("model.safetensors"));
        let prefix = if task == Task::Base { "lxmert." } else { "" };
        Case {
            name,
            task,
            config,
            weights: weights
                .into_iter()
                .map(|(name, array)| (format!("{prefix}{name}"), array))
                .collect(),
            inputs: tensors(&folder.join("inputs.safetensors")),
            expected: tensors(&folder.join("expected.safetensors")),
            gradients: match folder.join("gradients.safetensors") {
                path if path.exists() => tensors(&path),
                _ => Tensors::new(),
            },
        }
    }

    /// A checkpoint tensor, as backends ask for it.
    pub(crate) fn parameter(&self, name: &str) -> Option<(Shape, Vec<f32>)> {
        let array = self.weights.get(name)?;
        Some((Shape::new(&array.shape), array.reals()))
    }

    /// The losses whose labels are given.
    pub(crate) fn losses(&self) -> Losses {
        let given = |name: &str| self.inputs.contains_key(name);
        match self.task {
            Task::Base => Losses::None,
            Task::Qa => Losses::Answer {
                loss: given("labels").then_some(AnswerLoss::CrossEntropy),
                bce: given("soft_labels"),
            },
            Task::Pretraining => {
                let labels = [
                    ("lm_labels", PretrainingLoss::MaskedLanguage),
                    ("matched_label", PretrainingLoss::Matched),
                    ("obj_labels", PretrainingLoss::Objects),
                    ("attr_labels", PretrainingLoss::Attributes),
                    ("feat_labels", PretrainingLoss::Features),
                    ("ans", PretrainingLoss::Answer),
                ];
                let wanted = labels.into_iter().filter(|(name, _)| given(name));
                Losses::Pretraining(wanted.map(|(_, loss)| loss).collect())
            }
        }
    }

    /// Samples, tokens and boxes of the inputs.
    pub(crate) fn sizes(&self) -> [usize; 3] {
        let (text, boxes) = (&self.inputs["input_ids"], &self.inputs["visual_feats"]);
        [text.shape[0], text.shape[1], boxes.shape[1]]
    }
}

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let elements = match view.dtype() {
            Dtype::F32 => Elements::Real(words(data, f32::from_le_bytes)),
            Dtype::I64 => {
                let wide = words(data, i64::from_le_bytes).into_iter();
                Elements::Int(wide.map(|value| i32::try_from(value).unwrap()).collect())
            }
            other => panic!("{name} holds {other:?}"),
        };
        let shape = view.shape().to_vec();
        (name, Array { shape, elements })
    };
    file.tensors().into_iter().map(read).collect()
}

fn words<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (words, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty());
    words.iter().map(|&word| decode(word)).collect()
}
