//! Writing a trained model so that Transformers' `from_pretrained` and lxpod read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use lxpod_ir::front::Task;
use lxpod_ir::{Binding, DType, Shape, Tensor};
use serde_json::{Value, json};

use super::folder::Staging;
use super::scatter::Scattered;
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tensors::{Dtype, TensorSpec};

/// The weights of a model folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// What a tokenizer may consist of.
const VOCABULARY: [&str; 6] = [
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
];

/// What of a model training leaves as it was, and how the rest is stored.
pub struct Export {
    config: Value,
    /// Files by name: read at once, since their folder may be a checkpoint that is removed.
    vocabulary: Vec<(&'static str, Vec<u8>)>,
    expected: Vec<(String, Vec<usize>)>,
    weights: Box<dyn Weights>,
    dtype: Dtype,
}

impl Export {
    /// A model of `task` with tensors `expected`. Those that training does not change are read from
    /// `weights` and stay f32; the others are written as `dtype`.
    ///
    /// # Errors
    /// The model's files cannot be read; [`Error::Internal`] for a dtype that is not f32 or f16.
    pub fn new(
        model: &Model,
        task: Task,
        expected: Vec<(String, Vec<usize>)>,
        weights: Box<dyn Weights>,
        dtype: DType,
    ) -> Result<Export> {
        let (dtype, word) = match dtype {
            DType::F32 => (Dtype::F32, "float32"),
            DType::F16 => (Dtype::F16, "float16"),
            other => return Err(Error::internal(format!("a checkpoint of {other}"))),
        };
        Ok(Export {
            config: config_of(model, task, word)?,
            vocabulary: vocabulary_of(model)?,
            expected,
            weights,
            dtype,
        })
    }

    /// Writes config.json, the vocabulary and the weights. `trained` are the bindings that the
    /// update changes; `persistent` are a plan's persistent tensors. A parameter with a master copy
    /// is written from it.
    ///
    /// # Errors
    /// Writing or reading fails; [`Error::Internal`] when a trained parameter is missing.
    pub(super) fn write(
        &self,
        staging: &Staging<'_>,
        trained: &BTreeSet<String>,
        persistent: &[(String, Tensor<f32>)],
    ) -> Result<()> {
        staging.file("config.json", format!("{:#}\n", self.config).as_bytes())?;
        for (name, bytes) in &self.vocabulary {
            staging.file(name, bytes)?;
        }
        let parameters = parameters(trained, persistent)?;
        let shapes: BTreeMap<&str, Shape> = self
            .expected
            .iter()
            .map(|(name, shape)| (name.as_str(), Shape::new(shape)))
            .collect();
        let scattered = Scattered::new(&parameters, &|name| shapes.get(name).cloned())?;
        let specs = self.specs(&scattered);
        staging.tensors(MODEL_FILE, &BTreeMap::new(), &specs, |writer| {
            for (name, shape) in &shapes {
                let untrained =
                    |out: &mut [f32]| self.weights.read_rows(name, 0..shape.rows(), out);
                writer.write_f32(name, &scattered.tensor(name, shape, untrained)?)?;
            }
            Ok(())
        })
    }

    fn specs(&self, scattered: &Scattered<'_>) -> Vec<TensorSpec> {
        let spec = |(name, shape): &(String, Vec<usize>)| TensorSpec {
            name: name.clone(),
            dtype: if scattered.has(name) {
                self.dtype
            } else {
                Dtype::F32
            },
            shape: shape.clone(),
        };
        self.expected.iter().map(spec).collect()
    }
}

/// The value of each trained parameter.
fn parameters<'a>(
    trained: &BTreeSet<String>,
    persistent: &'a [(String, Tensor<f32>)],
) -> Result<Vec<(Binding, &'a Tensor<f32>)>> {
    let named: BTreeMap<&str, &Tensor<f32>> = persistent
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let value = |text: &String| {
        let names = [format!("state:master:{text}"), format!("param:{text}")];
        let found = names.iter().find_map(|name| named.get(name.as_str()));
        let missing = || Error::internal(format!("a plan without the trained parameter {text}"));
        let binding = text.parse().map_err(Error::internal)?;
        Ok((binding, *found.ok_or_else(missing)?))
    };
    trained.iter().map(value).collect()
}

/// The model's config.json, fields that lxpod does not know included, with the class and dtype of
/// what is written.
fn config_of(model: &Model, task: Task, dtype: &str) -> Result<Value> {
    let mut config = match model.folder() {
        None => model.config.to_json(),
        Some(folder) => {
            let path = folder.join("config.json");
            let bytes = fs::read(&path).map_err(|error| Error::reading(&path, error))?;
            let parsed = serde_json::from_slice(&bytes);
            parsed.map_err(|error| {
                Error::invalid(&path, "contents", error.to_string(), "correct config.json")
            })?
        }
    };
    let class = match task {
        Task::Qa => "LxmertForQuestionAnswering",
        Task::Base => "LxmertModel",
        Task::Pretraining => "LxmertForPreTraining",
    };
    if let Some(fields) = config.as_object_mut() {
        fields.remove("torch_dtype");
        fields.insert("architectures".to_owned(), json!([class]));
        fields.insert("dtype".to_owned(), json!(dtype));
    }
    Ok(config)
}

fn vocabulary_of(model: &Model) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let Some(folder) = model.folder() else {
        return Ok(Vec::new());
    };
    let paths = VOCABULARY.iter().map(|name| (*name, folder.join(name)));
    let read = |(name, path): (&'static str, PathBuf)| {
        let bytes = fs::read(&path).map_err(|error| Error::reading(&path, error))?;
        Ok((name, bytes))
    };
    paths.filter(|(_, path)| path.is_file()).map(read).collect()
}
