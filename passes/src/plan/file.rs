//! The plan file: one line that names the format and the checksum, then one JSON document.
//!
//! The same plan gives the same bytes. Any changed, missing or added byte is refused.

use lxpod_ir::Target;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{Plan, Program, Provenance};
use crate::partition::Partition;
use crate::schedule::Schedule;
use crate::solve::partition::PartitionError;

/// Why a plan could not be made or read.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The user's model does not fit the user's target.
    #[error(
        "out of memory: stage {stage} needs {total} bytes, its tile has {capacity}; the largest category is \
         {category} with {bytes}. Use more stages, --precision mixed, or a smaller --micro-batch, --seq-len or --boxes"
    )]
    OutOfMemory {
        /// The stage whose tile is too small.
        stage: usize,
        /// Its largest category.
        category: &'static str,
        /// Bytes of that category.
        bytes: u64,
        /// Bytes needed.
        total: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// The graph has no split that fits the target.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Something plans cannot express.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The bytes are no plan, or not the plan that was written.
    #[error("{0}")]
    File(String),
}

const MAGIC: &str = "lxpod-plan 1 sha256:";

#[derive(Serialize)]
struct Written<'a> {
    provenance: &'a Provenance,
    target: &'a Target,
    replicas: usize,
    partition: &'a Partition,
    schedule: Schedule,
    programs: &'a [Program],
    graph: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    provenance: Provenance,
    target: Target,
    replicas: usize,
    partition: Partition,
    schedule: Schedule,
    programs: Vec<Program>,
    graph: String,
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Plan {
    /// The plan file's bytes.
    ///
    /// # Errors
    /// The plan holds a number that JSON cannot write.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        let Plan {
            provenance,
            target,
            replicas,
            graph,
            partition,
            programs,
            schedule,
        } = self;
        let written = Written {
            provenance,
            target,
            replicas: *replicas,
            partition,
            schedule: *schedule,
            programs,
            graph: graph.to_string(),
        };
        let body =
            serde_json::to_vec(&written).map_err(|error| PlanError::File(error.to_string()))?;
        let mut bytes = format!("{MAGIC}{}\n", checksum(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The plan in a file's bytes.
    ///
    /// # Errors
    /// The bytes are not exactly what [`Plan::to_bytes`] wrote, or another version wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan, PlanError> {
        let no_plan = || {
            PlanError::File(
                "this is no lxpod plan; make one with `lxpod compile MODEL -o FILE.plan`".into(),
            )
        };
        let line_end = bytes
            .iter()
            .take(256)
            .position(|&byte| byte == b'\n')
            .ok_or_else(no_plan)?;
        let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| no_plan())?;
        let Some(expected) = line.strip_prefix(MAGIC) else {
            return Err(match line.strip_prefix("lxpod-plan ") {
                Some(_) => PlanError::File(format!(
                    "the plan has another format than this version reads: `{line}`; compile it again"
                )),
                None => no_plan(),
            });
        };
        let body = &bytes[line_end + 1..];
        if checksum(body) != expected {
            return Err(PlanError::File("the plan's checksum does not match its content: the file is damaged; compile it again".into()));
        }
        let read: Read = serde_json::from_slice(body)
            .map_err(|error| PlanError::File(format!("the plan does not parse: {error}")))?;
        let Read {
            provenance,
            target,
            replicas,
            partition,
            schedule,
            programs,
            graph,
        } = read;
        let graph = lxpod_ir::text::parse(&graph).map_err(|error| {
            PlanError::File(format!("the plan's graph does not parse: {error}"))
        })?;
        lxpod_ir::verify(&graph).map_err(|errors| PlanError::File(errors.to_string()))?;
        let plan = Plan {
            provenance,
            target,
            replicas,
            graph,
            partition,
            programs,
            schedule,
        };
        plan.check().map_err(PlanError::File)?;
        Ok(plan)
    }

    /// Checks that every index a backend will follow exists, so that a hand-made file with a valid
    /// checksum cannot make one panic.
    fn check(&self) -> Result<(), String> {
        let stages = self.programs.len();
        if stages == 0 || self.schedule.stages != stages || self.replicas == 0 {
            return Err("the plan's stages do not match its schedule".to_owned());
        }
        for program in &self.programs {
            for step in &program.steps {
                let id = self.graph.at(step.node).ok_or("a step of no node")?;
                let receiver = step.receiver(&self.graph).unwrap_or(0);
                let outputs = match step.receiver(&self.graph) {
                    Some(_) => self
                        .programs
                        .get(receiver)
                        .ok_or("a transfer to no stage")?,
                    None => program,
                };
                let known = step
                    .inputs
                    .iter()
                    .all(|place| place.buffer < program.buffers.len())
                    && step
                        .outputs
                        .iter()
                        .all(|place| place.buffer < outputs.buffers.len())
                    && step.inputs.len() == self.graph.inputs(id).len()
                    && step.outputs.len() == self.graph.node(id).types.len();
                if !known {
                    return Err("a step's operands do not match its node".to_owned());
                }
            }
            if program
                .buffers
                .iter()
                .any(|buffer| self.graph.at(buffer.node).is_none())
            {
                return Err("a buffer of no node".to_owned());
            }
        }
        Ok(())
    }
}
