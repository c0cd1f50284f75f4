//! One of the two things compared.

use std::path::{Path, PathBuf};

use clap::Parser;
use lxpod_runtime::SessionOptions;
use lxpod_runtime::trace::Trace;

use super::super::Global;
use super::super::error::{CliError, Result};
use super::super::load::{Inputs, Request};
use super::super::options::{Mode, PlanOptions};
use super::super::quoted;
use super::super::run::Backend;
use super::super::source::Subject;

/// A plan or a model with its options, or a file of tensors.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(super) struct Side {
    #[arg(value_name = "MODEL|FILE.plan|FILE.safetensors")]
    subject: PathBuf,

    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    #[arg(long, value_enum, default_value = "cpu")]
    backend: Backend,

    #[command(flatten)]
    options: PlanOptions,
}

impl Side {
    /// Parses the argument `name`: a path as it stands, or words as a shell would split them.
    ///
    /// # Errors
    /// Names the argument and the word.
    pub(super) fn parse(name: &str, text: &str) -> Result<Side> {
        let what = "a plan, a model, or a .safetensors file, and options of `lxpod run`";
        quoted::parse(name, text, what)
    }

    /// Its values, run on the samples of the file `inputs` unless it is a file of tensors.
    pub(super) fn trace(&self, inputs: Option<&Path>, global: &Global) -> Result<Trace> {
        if let Subject::Tensors(path) = Subject::of(&self.subject)? {
            return Ok(Trace::read(&path)?);
        }
        let Some(inputs) = inputs else {
            let message = "is needed to run a plan or a model; name a file of samples";
            return Err(CliError::option("--inputs", message));
        };
        let options = self.options.clone().resolved(global)?;
        options.usage()?;
        if options.mode == Some(Mode::Training) {
            let message =
                "compare with --mode training; it compares what a micro-batch gives forward";
            return Err(CliError::Unsupported(message.to_owned()));
        }
        let session = SessionOptions {
            backend: self.backend.into(),
            threads: global.threads.unwrap_or(0),
            ..SessionOptions::default()
        };
        let request = Request {
            subject: &self.subject,
            model: self.model.as_deref(),
            inputs: Inputs::File(inputs),
            options: &options,
            gradients: false,
            session,
        };
        let prepared = request.prepare(global)?;
        let weights = prepared.weights.as_ref();
        let (plan, samples) = (&prepared.plan, &prepared.samples);
        Ok(Trace::record(plan, weights, session, samples)?)
    }
}
