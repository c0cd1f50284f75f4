//! A model: its configuration, and where its weights are.

use std::path::{Path, PathBuf};

use lxpod_ir::front::{FrontError, LxmertConfig};
use lxpod_passes::plan::Plan;

use crate::checkpoint::{Checkpoint, Report, Seeded, Weights, resolve_model};
use crate::error::{Error, Result};

/// The name of the built-in configuration with seeded random weights.
pub const BUILT_IN: &str = "lxmert-base";

/// A model, opened but not loaded: compiling needs no weights.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name given, without leading folders.
    pub name: String,
    /// The configuration.
    pub config: LxmertConfig,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Seeded(u64),
    Folder(PathBuf),
}

impl Model {
    /// Opens a folder with `config.json` and weights, a name in the local Hugging Face cache, or
    /// [`BUILT_IN`] with weights made from `seed`.
    ///
    /// # Errors
    /// There is no such model, or its configuration is wrong; names the file and the field.
    pub fn open(name: &str, seed: u64) -> Result<Model> {
        if name == BUILT_IN {
            let config = LxmertConfig::base();
            return Ok(Model {
                name: name.to_owned(),
                config,
                source: Source::Seeded(seed),
            });
        }
        let folder = resolve_model(Path::new(name))?;
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|error| Error::reading(&path, error))?;
        let config = LxmertConfig::from_json(&bytes).map_err(|error| config_error(&path, error))?;
        let short = Path::new(name)
            .file_name()
            .map_or(name.into(), |name| name.to_string_lossy());
        Ok(Model {
            name: short.into_owned(),
            config,
            source: Source::Folder(folder),
        })
    }

    /// Where the model's files are; none for [`BUILT_IN`].
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Seeded(_) => None,
            Source::Folder(folder) => Some(folder),
        }
    }

    /// The weights, checked against the tensors the plan expects, and notes for the user: what the
    /// checkpoint holds besides.
    ///
    /// # Errors
    /// The plan was compiled for another configuration, or the checkpoint does not fit.
    pub fn weights(&self, plan: &Plan) -> Result<(Box<dyn Weights>, Report)> {
        let hash = lxpod_passes::config_hash(&self.config.to_json());
        if hash != plan.provenance.config_hash {
            return Err(Error::Option {
                flag: "--model",
                message: format!(
                    "the plan was compiled for the configuration of `{}`, and that of `{}` differs; compile it again",
                    plan.provenance.model, self.name
                ),
            });
        }
        self.weights_of(&plan.provenance.expected)
    }

    /// The weights, checked against these tensors, and notes for the user.
    ///
    /// # Errors
    /// The checkpoint does not fit.
    pub fn weights_of(
        &self,
        expected: &[(String, Vec<usize>)],
    ) -> Result<(Box<dyn Weights>, Report)> {
        match &self.source {
            Source::Seeded(seed) => {
                let weights = Seeded::new(*seed, expected.iter().cloned())?;
                Ok((Box::new(weights), Report::default()))
            }
            Source::Folder(folder) => {
                let checkpoint = Checkpoint::open(folder)?;
                let report = checkpoint.check(expected)?;
                Ok((Box::new(checkpoint), report))
            }
        }
    }
}

fn config_error(path: &Path, error: FrontError) -> Error {
    let help = "correct config.json; Transformers' LxmertConfig lists the fields";
    match error {
        FrontError::NotSupported { field, message } => {
            Error::unsupported(path, field, message, help)
        }
        FrontError::Field { field, message } => Error::invalid(path, field, message, help),
        FrontError::Json { line, message } => {
            Error::invalid(path, format!("line {line}"), message, help)
        }
        FrontError::Option { flag, message } => Error::Option { flag, message },
        FrontError::Internal(what) => Error::internal(what),
    }
}
