//! `lxpod solve check`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::Args;
use lxpod_passes::solve::partition::certificate::{Certificate, Certified};
use lxpod_passes::solve::partition::{self, Limits, Refusal};
use lxpod_runtime::Error;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cli::error::{CliError, Result};
use crate::cli::output::{self, grouped, plural};
use crate::cli::{Global, files};

use super::{Patience, Problem};

/// Verify a certificate of a partition, independently of the search that made it
///
/// Derives the placement's load from the problem alone, and checks the evidence for the lower bound ideal by ideal. The problem
/// is a published one, read again, with the --devices and --capacity that it was solved with; or that of a plan, which the
/// certificate of `lxpod compile` holds.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod solve partition resnet50_training.json --certificate resnet50.cert.json\n  \
    lxpod solve check resnet50_training.json resnet50.cert.json\n  \
    lxpod compile lxmert-base --certificate lxmert.cert.json\n  \
    lxpod solve check lxmert.cert.json")]
pub(crate) struct Check {
    #[command(flatten)]
    problem: Problem,

    /// The certificate, if the first file is a problem and not a certificate of `lxpod compile`
    #[arg(value_name = "CERT.json")]
    certificate: Option<PathBuf>,

    #[command(flatten)]
    patience: Patience,
}

impl Check {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let over = self.patience.start();
        let started = Instant::now();
        let (certificate, objective, bound) = match &self.certificate {
            Some(path) => self.published(path, &over)?,
            None => self.compiled(&over)?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let optimal = certificate.lower_bound == certificate.objective;
        if global.json {
            return output::json(&json!({
                "accepted": true,
                "objective": objective.document(),
                "lower_bound": bound.document(),
                "optimal": optimal,
                "ideals": certificate.ideals.len(),
                "seconds": seconds,
            }));
        }
        let proof = match optimal {
            true => "optimal among contiguous splits",
            false => "not optimal, or not proved so",
        };
        output::print(&format!(
            "accepted   {}, lower bound {} ({proof})\n\
             checked    {} in {}\n",
            objective.of_largest(),
            bound.text(),
            plural(certificate.ideals.len(), "ideal"),
            output::seconds(seconds)
        ))
    }

    /// A certificate of a published problem; its objective and lower bound in the problem's unit.
    fn published(&self, path: &Path, over: &AtomicBool) -> Result<(Certificate, Load, Load)> {
        let (instance, contracted) = self.problem.read()?;
        let way_out = "make it again with `lxpod solve partition --certificate`";
        let certificate: Certificate = read(path, way_out)?;
        let other = "name the file, --devices and --capacity that it was made with";
        verify(path, &certificate, &contracted.problem, over, other)?;
        let assignment = contracted.assignment(&certificate.device_of);
        let objective = instance.evaluate(&assignment).objective();
        let bound = match certificate.lower_bound == certificate.objective {
            true => objective,
            false => objective.min(certificate.lower_bound as f64 / contracted.time_scale),
        };
        Ok((certificate, Load::Given(objective), Load::Given(bound)))
    }

    /// A certificate of a plan's split; its objective and lower bound.
    fn compiled(&self, over: &AtomicBool) -> Result<(Certificate, Load, Load)> {
        let (path, machine) = (&self.problem.file, &self.problem.machine);
        if machine.devices.is_some() || machine.capacity.is_some() {
            let message = "--devices and --capacity belong to a problem; name the problem and then its certificate, or leave \
                           them out";
            return Err(CliError::Usage(message.to_owned()));
        }
        let way_out =
            "name the problem and then its certificate, or a file of `lxpod compile --certificate`";
        let Certified {
            problem,
            certificate,
        } = read(path, way_out)?;
        verify(path, &certificate, &problem, over, CHANGED)?;
        let (objective, bound) = (certificate.objective, certificate.lower_bound);
        Ok((certificate, Load::Cycles(objective), Load::Cycles(bound)))
    }
}

/// A load in a problem's own unit, or in cycles.
enum Load {
    Given(f64),
    Cycles(u64),
}

impl Load {
    fn document(&self) -> Value {
        match self {
            Load::Given(load) => json!(load),
            Load::Cycles(cycles) => json!(cycles),
        }
    }

    fn text(&self) -> String {
        match self {
            Load::Given(load) => format!("{load:.6}"),
            Load::Cycles(cycles) => grouped(u128::from(*cycles)),
        }
    }

    fn of_largest(&self) -> String {
        match self {
            Load::Given(_) => format!("largest load {}", self.text()),
            Load::Cycles(_) => format!("slowest stage {} cycles", self.text()),
        }
    }
}

/// What to do about a certificate that does not hold.
const CHANGED: &str = "it was changed or is wrong; make it again";

/// Reads a certificate; `way_out` is for a file that is none.
fn read<T: DeserializeOwned>(path: &Path, way_out: &str) -> Result<T> {
    let text = files::read_text(path)?;
    let read = serde_json::from_str(&text);
    Ok(read.map_err(|error| {
        let problem = format!("is no certificate: {error}");
        refused(path, "contents", problem, way_out)
    })?)
}

/// Checks a certificate; `other` is the way out where it is for another problem.
fn verify(
    path: &Path,
    certificate: &Certificate,
    problem: &partition::Problem,
    over: &AtomicBool,
    other: &str,
) -> Result<()> {
    let limits = Limits {
        steps: u64::MAX,
        stop: Some(over),
        ..Limits::default()
    };
    let checked = certificate.check(problem, &limits);
    Ok(checked.map_err(|refusal| {
        let help = match refusal {
            Refusal::Problem => other,
            Refusal::Unfinished => "allow more time with --time-limit",
            Refusal::Field(..) | Refusal::Evidence(..) => CHANGED,
        };
        let message = refusal.to_string();
        let (field, problem) = message.split_once(": ").unwrap_or(("contents", &message));
        refused(path, field, problem.to_owned(), help)
    })?)
}

fn refused(path: &Path, field: &str, problem: String, help: &str) -> Error {
    Error::InvalidFile {
        path: path.to_owned(),
        field: field.to_owned(),
        problem,
        help: help.to_owned(),
    }
}
