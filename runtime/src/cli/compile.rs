//! `lxpod compile`.

use std::path::{Path, PathBuf};

use clap::Args;
use lxpod_ir::Graph;
use lxpod_passes::partition::Split;
use lxpod_passes::plan::Plan;
use lxpod_passes::solve::partition::Limits;

use super::auto::Found;
use super::emit::{self, Emit};
use super::error::{CliError, Result};
use super::options::PlanOptions;
use super::report::Report;
use super::solve::write_certificate;
use super::source::{Subject, compiled};
use super::{Global, files, output};

/// Compile a model into a plan
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod compile lxmert-base -o lxmert.plan\n  \
    lxpod compile path/to/checkpoint --stages 4 --replicas 4 --micro-batch 8 --json\n  \
    lxpod compile lxmert-base --mode training --seq-len 512 --auto --global-batch 64 -o lxmert.plan\n  \
    lxpod compile lxmert-base --precision fp32 --emit graph.dot\n  \
    lxpod compile lxmert-base --certificate lxmert.cert.json && lxpod solve check lxmert.cert.json")]
pub(crate) struct Compile {
    /// A folder with config.json, a name in the Hugging Face cache, or lxmert-base
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Write the plan to FILE
    #[arg(short, long, value_name = "FILE.plan")]
    output: Option<PathBuf>,

    /// Write a proof that no contiguous split has a faster slowest stage, for `lxpod solve check`
    #[arg(long, value_name = "FILE.json")]
    certificate: Option<PathBuf>,

    /// Write the placed graph: `ir` or `dot` to standard output, or a .lx, .dot or .json file
    #[arg(long, value_name = "ir|dot|FILE", value_parser = emit::parse)]
    emit: Option<Emit>,

    /// Write the graph to standard error after each run of PASS (`all`: after every pass)
    #[arg(long, value_name = "PASS")]
    print_after: Option<String>,

    #[command(flatten)]
    options: PlanOptions,
}

impl Compile {
    pub(crate) fn run(mut self, global: &Global) -> Result<()> {
        self.options = self.options.resolved(global)?;
        self.options.usage()?;
        if let Some(emit) = &self.emit {
            emit.check(global.json)?;
        }
        self.check_pass()?;
        let name = match Subject::of(&self.model)? {
            Subject::Model(name) => name,
            Subject::Plan(path) | Subject::Graph(path) | Subject::Tensors(path) => {
                let message = format!(
                    "{}: compile takes a model: a folder or lxmert-base",
                    path.display()
                );
                return Err(CliError::Usage(message));
            }
        };
        let wanted = self.print_after.as_deref();
        let mut observe = |pass: &'static str, graph: &Graph| {
            if wanted.is_some_and(|wanted| wanted == "all" || wanted == pass) {
                output::diagnose(&format!("; after {pass}\n{graph}"));
            }
        };
        let planned = compiled(&name, &self.options, global, &mut observe)?;
        let plan = &planned.plan;
        if let Some(path) = &self.output {
            files::write(path, &plan.to_bytes()?)?;
        }
        if let (Some(path), Some(compiled)) = (&self.certificate, &planned.compiled) {
            global.note(&certify(path, plan, &compiled.split)?);
        }
        let found = planned.found();
        let report = Report::new(plan, planned.used, planned.seconds()).beside(planned.rival());
        if let Some(emit) = &self.emit {
            emit.write(&plan.graph)?;
        }
        match &self.emit {
            _ if global.json => {
                let mut document = report.document();
                if let Some(found) = found {
                    document["auto"] = found.document();
                }
                output::json(&document)
            }
            Some(emit) if emit.is_stdout() => Ok(()),
            _ => output::print(&(found.map_or_else(String::new, Found::text) + &report.text())),
        }
    }

    fn check_pass(&self) -> Result<()> {
        let mut known: Vec<&str> = vec!["all", "build"];
        known.extend(lxpod_passes::names());
        known.push("partition");
        match self.print_after.as_deref() {
            Some(pass) if !known.contains(&pass) => {
                let message = format!("unknown pass `{pass}`; use one of {}", known.join(", "));
                Err(CliError::option("--print-after", message))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a certificate of a plan's split and says so.
fn certify(path: &Path, plan: &Plan, split: &Split) -> Result<String> {
    let made = split.certify(plan.partition.lower_bound_cycles, &Limits::default());
    let certified = made.map_err(|error| {
        let message = format!("{error}; leave out --certificate");
        CliError::option("--certificate", message)
    })?;
    write_certificate(path, &certified, certified.certificate.ideals.len())
}
