//! `lxpod compare`.

mod shown;
mod side;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use lxpod_runtime::compare::Comparison;

use super::error::{CliError, Result};
use super::{Global, output};
use shown::Shown;
use side::Side;

/// Say where two plans, option sets or dumps first differ
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod compare \"path/to/checkpoint --precision fp32\" path/to/checkpoint --inputs in.safetensors\n  \
    lxpod compare \"lxmert-base --stages 1\" \"lxmert-base --stages 16\" --inputs in.safetensors\n  \
    lxpod compare \"lxmert.plan --model DIR\" \"DIR --backend reference\" --inputs in.safetensors --tolerance 1e-5\n  \
    lxpod compare DIR outputs.safetensors --inputs in.safetensors --dump all.safetensors --json\n\n\
    A and B are each a plan file, a model, or a .safetensors file of tensors: a dump, the outputs of a\n\
    run, or those of another framework. A plan or a model may be followed, in the same quotes, by\n\
    --model, --backend cpu|reference and the plan options of `lxpod run`.\n\n\
    Values of ops are matched by scope, op and number among the scope's ops of that name; outputs by\n\
    name. Without --tolerance every bit must be the same. All values are held in memory: compare few\n\
    samples of a large model.\n\n\
    Exit codes: 0 within the tolerance, 1 not; otherwise as every command.")]
pub(crate) struct Compare {
    /// A plan, a model, or a file of tensors, with options in quotes
    #[arg(value_name = "A")]
    a: String,

    /// What to compare it with
    #[arg(value_name = "B")]
    b: String,

    /// The samples; two files of tensors need none
    #[arg(long, value_name = "IN.safetensors")]
    inputs: Option<PathBuf>,

    /// The most that an element may differ, as a share of the largest entry of its tensor
    #[arg(long, value_name = "X", value_parser = tolerance)]
    tolerance: Option<f64>,

    /// Write every value of A
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

impl Compare {
    /// Compares, prints, and gives the exit code.
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode> {
        let inputs = self.inputs.as_deref();
        let sides = [Side::parse("A", &self.a)?, Side::parse("B", &self.b)?];
        let [a, b] = sides.map(|side| side.trace(inputs, global));
        let (a, b) = (a?, b?);
        if let Some(path) = &self.dump {
            let producer = format!("lxpod {}", env!("CARGO_PKG_VERSION"));
            let metadata = [("producer", producer), ("of", self.a.clone())];
            let metadata: BTreeMap<String, String> = metadata
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            a.write(path, &metadata)?;
        }
        let comparison = Comparison::of(&a, &b);
        if comparison.pairs.is_empty() {
            let message = format!(
                "{} and {} have no tensor of the same name; `lxpod inspect` lists those of a file",
                self.a, self.b
            );
            return Err(CliError::Usage(message));
        }
        let shown = Shown {
            names: [&self.a, &self.b],
            comparison: &comparison,
            tolerance: self.tolerance,
            dump: self.dump.as_deref(),
        };
        if global.json {
            output::json(&shown.document())?;
        } else {
            output::print(&shown.text())?;
        }
        let differ = comparison.first_divergence(self.tolerance).is_some();
        Ok(ExitCode::from(u8::from(differ)))
    }
}

/// Parses a tolerance.
fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("must be a number of at least 0, such as 1e-5".to_owned()),
    }
}
