//! `lxpod solve check`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lxpod_passes::solve::partition::certificate::Certificate;
use lxpod_passes::solve::partition::{Limits, Refusal};
use lxpod_runtime::Error;
use lxpod_runtime::problems::partition::Instance;
use serde_json::json;

use crate::cli::error::Result;
use crate::cli::output::{self, plural};
use crate::cli::{Global, files};

use super::{Patience, Problem};

/// Verify a certificate of a partition, independently of the search that made it
///
/// Reads the problem again, derives the placement's load from the problem alone, and checks the evidence for the lower
/// bound ideal by ideal. Give the --devices and --capacity that the problem was solved with.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod solve partition resnet50_training.json --certificate resnet50.cert.json\n  \
    lxpod solve check resnet50_training.json resnet50.cert.json")]
pub(crate) struct Check {
    #[command(flatten)]
    problem: Problem,

    /// The certificate
    #[arg(value_name = "CERT.json")]
    certificate: PathBuf,

    #[command(flatten)]
    patience: Patience,
}

impl Check {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let over = self.patience.start();
        let (instance, contracted) = self.problem.read()?;
        let started = Instant::now();
        let text = files::read_text(&self.certificate)?;
        let certificate: Certificate = serde_json::from_str(&text).map_err(|error| {
            let problem = format!("is no certificate: {error}");
            self.refused(
                "contents",
                problem,
                "make it again with `lxpod solve partition --certificate`",
            )
        })?;
        let limits = Limits {
            steps: u64::MAX,
            stop: Some(&over),
            ..Limits::default()
        };
        certificate
            .check(&contracted.problem, &limits)
            .map_err(|refusal| {
                let help = match refusal {
                    Refusal::Problem => {
                        "name the file, --devices and --capacity that it was made with"
                    }
                    Refusal::Unfinished => "allow more time with --time-limit",
                    Refusal::Field(..) | Refusal::Evidence(..) => {
                        "it was changed or is wrong; make it again"
                    }
                };
                let message = refusal.to_string();
                let (field, problem) = message.split_once(": ").unwrap_or(("contents", &message));
                self.refused(field, problem.to_owned(), help)
            })?;
        let assignment = contracted.assignment(&certificate.device_of);
        self.report(
            global,
            &instance,
            &certificate,
            &assignment,
            contracted.time_scale,
            started,
        )
    }

    fn refused(&self, field: &str, problem: String, help: &str) -> Error {
        Error::InvalidFile {
            path: self.certificate.clone(),
            field: field.to_owned(),
            problem,
            help: help.to_owned(),
        }
    }

    fn report(
        &self,
        global: &Global,
        instance: &Instance,
        certificate: &Certificate,
        assignment: &[usize],
        time_scale: f64,
        started: Instant,
    ) -> Result<()> {
        let objective = instance.evaluate(assignment).objective();
        let optimal = certificate.lower_bound == certificate.objective;
        let bound = certificate.lower_bound as f64 / time_scale;
        let bound = if optimal {
            objective
        } else {
            bound.min(objective)
        };
        let seconds = started.elapsed().as_secs_f64();
        if global.json {
            return output::json(&json!({
                "accepted": true,
                "objective": objective,
                "lower_bound": bound,
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
            "accepted   largest load {objective:.6}, lower bound {bound:.6} ({proof})\n\
             checked    {} in {}\n",
            plural(certificate.ideals.len(), "ideal"),
            output::seconds(seconds)
        ))
    }
}
