//! `lxpod solve partition`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use lxpod_passes::solve::partition::certificate::Certificate;
use lxpod_passes::solve::partition::{Limits, PartitionError, Solution, solve};
use lxpod_runtime::Error;
use lxpod_runtime::problems::partition::{Contracted, Instance, Loads, Split};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::output::{self, bytes, grouped, percent, plural};
use crate::cli::table::Table;

use super::{Patience, Problem, write_certificate};

/// Place operators on accelerators and CPUs so that the slowest device is as fast as possible
///
/// The answer is optimal among placements whose forward part is contiguous on each device. FILE.json has the format of
/// Tarnawski et al. (NeurIPS 2020): maxFPGAs, maxCPUs, maxSizePerFPGA; nodes with id, supportedOnFpga, cpuLatency,
/// fpgaLatency, isBackwardNode, and if you like colorClass and size; edges with sourceId, destId and cost.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod solve partition bert_l-12_inference.json\n  \
    lxpod solve partition bert_l-12_inference.json --devices 16 --json\n  \
    lxpod solve partition resnet50_training.json --certificate resnet50.cert.json\n  \
    lxpod solve partition resnet50_inference.json --evaluate resnet50_expert.json")]
pub(crate) struct Partition {
    #[command(flatten)]
    problem: Problem,

    #[command(flatten)]
    patience: Patience,

    /// Write a certificate of the bound, for `lxpod solve check`
    #[arg(long, value_name = "CERT.json")]
    certificate: Option<PathBuf>,

    /// Compare with the split in a file: its "fpgas" and "cpus" list devices, each with the ids of its "nodes"
    #[arg(long, value_name = "SPLIT.json")]
    evaluate: Option<PathBuf>,
}

impl Problem {
    /// The instance on the machine asked for, and its contraction.
    pub(super) fn read(&self) -> Result<(Instance, Contracted)> {
        let mut instance = Instance::read(&self.file)?;
        if let Some(devices) = self.machine.devices {
            (instance.accelerators, instance.hosts) = (devices, 0);
        }
        if let Some(capacity) = self.machine.capacity {
            instance.memory_limit = capacity as f64;
        }
        let contracted = instance.contract(&self.file)?;
        Ok((instance, contracted))
    }
}

/// An optimal placement in the file's terms.
struct Answer {
    assignment: Vec<usize>,
    loads: Loads,
    objective: f64,
    lower_bound: f64,
    seconds: f64,
    solution: Solution,
}

impl Partition {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let over = self.patience.start();
        let started = Instant::now();
        let (instance, contracted) = self.problem.read()?;
        let limits = Limits {
            stop: Some(&over),
            ..Limits::default()
        };
        let found = solve(&contracted.problem, &limits);
        let found = found.map_err(|error| refused(&self.problem.file, &contracted, error))?;
        let answer = Answer::new(
            &instance,
            &contracted,
            found,
            started.elapsed().as_secs_f64(),
        );
        let split = self
            .evaluate
            .as_deref()
            .map(|path| Split::read(path, &instance));
        let split = split
            .transpose()?
            .map(|split| instance.evaluate(&split.device_of));
        let certificate = self.certificate.as_deref();
        let certificate = certificate.map(|path| certify(path, &contracted, &answer, &limits));
        if let Some(note) = certificate.transpose()? {
            global.note(&note);
        }
        if global.json {
            return output::json(&document(&instance, &contracted, &answer, split.as_ref()));
        }
        output::print(&report(&instance, &contracted, &answer, split.as_ref()))
    }
}

impl Answer {
    fn new(instance: &Instance, contracted: &Contracted, solution: Solution, seconds: f64) -> Self {
        let assignment = contracted.assignment(&solution.device_of);
        let loads = instance.evaluate(&assignment);
        let objective = loads.objective();
        let bound = solution.lower_bound as f64 / contracted.time_scale;
        Answer {
            assignment,
            loads,
            objective,
            lower_bound: if solution.optimal {
                objective
            } else {
                bound.min(objective)
            },
            seconds,
            solution,
        }
    }
}

/// An engine's refusal in the file's terms.
fn refused(path: &Path, contracted: &Contracted, error: PartitionError) -> CliError {
    let invalid = |field: &str, problem: String, help: &str| {
        CliError::Library(Error::InvalidFile {
            path: path.into(),
            field: field.to_owned(),
            problem,
            help: help.to_owned(),
        })
    };
    match error {
        PartitionError::Memory {
            devices,
            needed,
            proven,
            ..
        } => {
            let needed = needed as f64 / contracted.size_scale;
            let least = if proven {
                "every split needs"
            } else {
                "the best split found needs"
            };
            let problem = format!(
                "too small for {}: {least} {needed} bytes on some accelerator",
                plural(devices, "accelerator")
            );
            let help = "give more with --capacity, or more accelerators with --devices";
            invalid("maxSizePerFPGA", problem, help)
        }
        PartitionError::Invalid(problem) => {
            invalid("nodes", problem, "contract the problem, or make it smaller")
        }
        PartitionError::Graph(error) => CliError::Internal(error.to_string()),
    }
}

/// Writes a certificate and says so.
fn certify(
    path: &Path,
    contracted: &Contracted,
    answer: &Answer,
    limits: &Limits<'_>,
) -> Result<String> {
    let made = Certificate::new(&contracted.problem, &answer.solution, limits);
    let certificate = made.map_err(|error| {
        let way_out = "leave out --certificate, or allow more with --time-limit";
        CliError::option("--certificate", format!("{error}; {way_out}"))
    })?;
    write_certificate(path, &certificate, certificate.ideals.len())
}

fn kind(instance: &Instance, device: usize) -> &'static str {
    match device < instance.accelerators {
        true => "accelerator",
        false => "cpu",
    }
}

fn document(
    instance: &Instance,
    contracted: &Contracted,
    answer: &Answer,
    split: Option<&Loads>,
) -> Value {
    let nodes = |device| answer.assignment.iter().filter(|&&d| d == device).count();
    let device = |device: usize| {
        json!({
            "device": device,
            "kind": kind(instance, device),
            "load": answer.loads.time[device],
            "bytes": answer.loads.bytes[device],
            "nodes": nodes(device),
        })
    };
    let devices: Vec<Value> = (0..answer.loads.time.len()).map(device).collect();
    let mut document = json!({
        "objective": answer.objective,
        "lower_bound": answer.lower_bound,
        "optimal": answer.solution.optimal,
        "seconds": answer.seconds,
        "assignment": answer.assignment,
        "devices": devices,
        "nodes": instance.nodes.len(),
        "items": contracted.problem.items.len(),
        "ideals": answer.solution.ideals,
    });
    if let Some(split) = split {
        document["evaluated"] = json!({
            "objective": split.objective(),
            "loads": split.time,
            "bytes": split.bytes,
        });
    }
    document
}

fn report(
    instance: &Instance,
    contracted: &Contracted,
    answer: &Answer,
    split: Option<&Loads>,
) -> String {
    let ideals = match answer.solution.ideals {
        0 => "too many ideals to list".to_owned(),
        ideals => plural(ideals, "ideal"),
    };
    let proof = match answer.solution.optimal {
        true => "optimal among contiguous splits",
        false => "not proved optimal",
    };
    let mut text = format!(
        "problem    {} of {}, {}; {} in {}, {ideals}\n\
         result     largest load {:.6}, lower bound {:.6} ({proof})\n\
         solved     in {}\n",
        plural(instance.accelerators, "accelerator"),
        bytes(instance.memory_limit as u64),
        plural(instance.hosts, "CPU"),
        plural(instance.nodes.len(), "node"),
        plural(contracted.problem.items.len(), "item"),
        answer.objective,
        answer.lower_bound,
        output::seconds(answer.seconds),
    );
    if let Some(split) = split {
        let (theirs, ours) = (split.objective(), answer.objective);
        let ratio = if ours > 0.0 { theirs / ours } else { 1.0 };
        let full = split.bytes[..instance.accelerators]
            .iter()
            .copied()
            .fold(0.0, f64::max);
        let fits = match full <= instance.memory_limit {
            true => "it fits the memory",
            false => "it does not fit the memory",
        };
        text +=
            &format!("evaluated  largest load {theirs:.6}, {ratio:.3} times the result; {fits}\n");
    }
    let mut table = Table::new(&["device", "<kind", "nodes", "load", "share", "bytes"]);
    for (device, &load) in answer.loads.time.iter().enumerate() {
        let nodes = answer.assignment.iter().filter(|&&d| d == device).count();
        let share = if answer.objective > 0.0 {
            load / answer.objective
        } else {
            0.0
        };
        table.row([
            device.to_string(),
            kind(instance, device).to_owned(),
            grouped(nodes as u128),
            format!("{load:.6}"),
            percent(share),
            bytes(answer.loads.bytes[device] as u64),
        ]);
    }
    format!("{text}\n{}", table.render())
}
