//! `lxpod run --mode training`: the gradient of the loss for each parameter.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_passes::Precision;
use lxpod_runtime::{Model, RunResult, Samples, Session, read_tensors};
use serde_json::{Value, json};

use super::Global;
use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::output::{self, seconds};
use super::run::{output_document, outputs, write_tensors};
use super::source::Subject;

/// What to differentiate, and where the results go.
pub(crate) struct Training<'a> {
    pub(crate) subject: &'a Path,
    pub(crate) inputs: &'a Path,
    pub(crate) outputs: Option<&'a Path>,
    pub(crate) gradients: &'a Path,
    pub(crate) options: &'a PlanOptions,
}

impl Training<'_> {
    /// Runs the samples once, as one micro-batch, and writes the gradients.
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let Subject::Model(name) = Subject::of(self.subject)? else {
            let message = "--mode training on a file; name a model: plans are for inference";
            return Err(CliError::Unsupported(message.to_owned()));
        };
        let options = PlanOptions {
            mode: None,
            ..self.options.clone()
        };
        let model = Model::open(&name, options.seed.unwrap_or(0))?;
        let task = options.task_of(&model);
        let tensors = read_tensors(self.inputs)?;
        let samples = Samples::from_tensors(&tensors, self.inputs, &model.config, task)?;
        let built = options.model_options_for(&model, &samples)?;
        let precision = options.precision.unwrap_or(Precision::Mixed);
        let (mut session, report) = Session::training(&model, &built, precision)?;
        for note in &report.notes {
            global.note(note);
        }
        let result = session.run(&samples)?;
        let metadata = BTreeMap::from([
            (
                "producer".to_owned(),
                format!("lxpod {}", env!("CARGO_PKG_VERSION")),
            ),
            ("model".to_owned(), model.name.clone()),
        ]);
        write_tensors(self.gradients, &metadata, &result.gradients)?;
        if let Some(path) = self.outputs {
            write_tensors(path, &metadata, &result.outputs)?;
        }
        if global.json {
            let mut document = document(&result, samples.batch);
            document["model"] = json!(model.name);
            document["task"] = json!(task.name());
            document["precision"] = json!(precision.name());
            return output::json(&document);
        }
        output::print(&self.text(&result, samples.batch))
    }

    fn text(&self, result: &RunResult, samples: usize) -> String {
        let mut text = format!(
            "{} of {} in {}, by the definitions of the ops\n\n",
            output::plural(result.gradients.len(), "gradient"),
            output::plural(samples, "sample"),
            seconds(result.duration.as_secs_f64()),
        );
        text += &outputs(result);
        text += &format!("\nGradients written to {}.\n", self.gradients.display());
        if let Some(path) = self.outputs {
            text += &format!("Outputs written to {}.\n", path.display());
        }
        text
    }
}

fn document(result: &RunResult, samples: usize) -> Value {
    let time = result.duration.as_secs_f64();
    let gradients = result.gradients.iter();
    json!({
        "mode": "training",
        "outputs": result.outputs.iter().map(output_document).collect::<Vec<_>>(),
        "gradients": gradients
            .map(|tensor| json!({"name": tensor.name, "shape": tensor.shape}))
            .collect::<Vec<_>>(),
        "measured": {
            "seconds": time,
            "samples": samples,
            "samples_per_second": samples as f64 / time.max(1e-9),
        },
    })
}
