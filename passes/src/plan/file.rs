//! The plan file: one line that names the format and the checksum, then one JSON document.
//!
//! The same plan gives the same bytes. Any changed, missing or added byte is refused.

use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId, Shape, Target};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::lower::{Work, home, lower};
use super::{Plan, Provenance, Tile};
use crate::cost;
use crate::partition::Partition;
use crate::phase::phases;
use crate::schedule::{Phase, Schedule};
use crate::solve::partition::PartitionError;

/// Why a plan could not be made or read.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The user's model does not fit the user's target.
    #[error(
        "out of memory: tile {tile} needs {total} bytes and has {capacity}; the largest category is \
         {category} with {bytes}. Use more stages, --precision mixed, or a smaller --micro-batch, --seq-len or --boxes"
    )]
    OutOfMemory {
        /// The tile that is too small.
        tile: usize,
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
    accumulation: usize,
    group: usize,
    tiles: &'a [Tile],
    graph: String,
    update: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    provenance: Provenance,
    target: Target,
    replicas: usize,
    partition: Partition,
    schedule: Schedule,
    accumulation: usize,
    group: usize,
    tiles: Vec<Tile>,
    graph: String,
    update: Option<String>,
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
            update,
            partition,
            tiles,
            schedule,
            accumulation,
            group,
        } = self;
        let written = Written {
            provenance,
            target,
            replicas: *replicas,
            partition,
            schedule: schedule.clone(),
            accumulation: *accumulation,
            group: *group,
            tiles,
            graph: graph.to_string(),
            update: update.as_ref().map(Graph::to_string),
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
        let no_plan = || PlanError::File("this is no lxpod plan".into());
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
        let graph = |text: &str| {
            let graph = lxpod_ir::text::parse(text).map_err(|error| {
                PlanError::File(format!("the plan's graph does not parse: {error}"))
            })?;
            lxpod_ir::verify(&graph).map_err(|errors| PlanError::File(errors.to_string()))?;
            Ok::<Graph, PlanError>(graph)
        };
        let plan = Plan {
            graph: graph(&read.graph)?,
            update: read.update.as_deref().map(graph).transpose()?,
            provenance: read.provenance,
            target: read.target,
            replicas: read.replicas,
            partition: read.partition,
            tiles: read.tiles,
            schedule: read.schedule,
            accumulation: read.accumulation,
            group: read.group,
        };
        plan.check()?;
        Ok(plan)
    }

    /// Checks that each parameter's binding makes a value of its type from the expected tensors.
    fn check_parameters(&self) -> Result<(), String> {
        let expected: FxHashMap<&str, &[usize]> = self
            .provenance
            .expected
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.as_slice()))
            .collect();
        let graphs = [&self.graph].into_iter().chain(&self.update);
        for node in graphs.flat_map(|graph| graph.nodes().map(|id| graph.node(id))) {
            if let Op::Param(param) = &node.op {
                let shape = param
                    .value
                    .shape(&|name| expected.get(name).map(|shape| Shape::new(shape)))?;
                if shape != node.types[0].shape {
                    return Err(format!(
                        "parameter `{}` is {shape}, not {}",
                        param.value, node.types[0].shape
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that the programs are exactly what the graph and the target give, so that a backend
    /// may follow every index and offset of a plan: a file with a valid checksum may still have been
    /// made by hand.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(&self) -> Result<(), PlanError> {
        let file = |problem: &str| PlanError::File(format!("{problem}; compile the plan again"));
        let (used, tiles) = (self.schedule.tiles, self.target.tiles);
        self.target
            .check()
            .map_err(|problem| file(&format!("the plan's target: {problem}")))?;
        if used == 0 || self.tiles.len() != used || self.accumulation == 0 {
            return Err(file("the plan's tiles do not match its schedule"));
        }
        if !(1..=self.accumulation).contains(&self.group) {
            return Err(file(
                "the plan groups more micro-batches than a step has, or none",
            ));
        }
        self.schedule
            .check(self.visits(self.accumulation))
            .map_err(|problem| file(&problem))?;
        if self.replicas == 0 || self.replicas > tiles / used {
            return Err(file(
                "the plan's replicas and stages do not match its target's tiles",
            ));
        }
        check_graph(&self.graph, &phases(&self.graph), &self.schedule).map_err(file)?;
        if let Some(update) = &self.update {
            let phases = vec![Phase::Update; update.bound()];
            check_graph(update, &phases, &self.schedule).map_err(file)?;
        }
        let shared = |node: &lxpod_ir::Node| match &node.op {
            Op::State(state) => state.shards,
            _ => 1,
        };
        let update = self.update.iter();
        let mut nodes = update.flat_map(|graph| graph.nodes().map(|id| graph.node(id)));
        if !nodes.all(|node| [1, self.replicas].contains(&shared(node))) {
            return Err(file(
                "the plan's replicas are not those that share states out",
            ));
        }
        self.check_parameters().map_err(|problem| file(&problem))?;
        let cost = cost::model(&self.target);
        let work = Work {
            graph: &self.graph,
            update: self.update.as_ref(),
            schedule: &self.schedule,
            accumulation: self.accumulation,
            group: self.group,
        };
        if lower(work, &self.target, cost.as_ref())? != self.tiles {
            return Err(file("the plan's programs are not those of its graph"));
        }
        Ok(())
    }
}

/// Checks that every node is on a stage, that values of the forward half move to a stage behind it that the schedule
/// has an edge to, and those of the backward half back along one, and that no row space is empty.
fn check_graph(graph: &Graph, phases: &[Phase], schedule: &Schedule) -> Result<(), &'static str> {
    let stages = schedule.stages();
    let sends = |from: Option<u32>, to: Option<u32>| {
        let ends = from.zip(to).filter(|(from, to)| from < to);
        ends.is_some_and(|(from, to)| schedule.branches.has(from as usize, to as usize))
    };
    let placed = |id: NodeId| {
        let node = graph.node(id);
        let on = |stage: Option<u32>| stage.is_some_and(|stage| (stage as usize) < stages);
        let near = match (&node.op, phases[id.index()]) {
            (Op::Transfer(transfer), Phase::Forward) => sends(node.stage, Some(transfer.to)),
            (Op::Transfer(transfer), Phase::Backward) => sends(Some(transfer.to), node.stage),
            _ => true,
        };
        on(node.stage) && on(home(graph, id)) && near
    };
    if !graph.nodes().all(placed) {
        return Err("the plan's graph has nodes on no stage, or transfers past one");
    }
    if graph.spaces.iter().any(|(_, space)| space.capacity == 0) {
        return Err("the plan's graph has a row space without rows");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lxpod_ir::front::{LxmertConfig, ModelOptions};

    use super::*;
    use crate::{CompileOptions, compile};

    /// The file of a small plan whose body went through `change`, with a checksum that matches.
    fn hand_made(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let config = LxmertConfig {
            vocab_size: 30,
            hidden_size: 8,
            num_attention_heads: 2,
            intermediate_size: 16,
            l_layers: 1,
            r_layers: 1,
            x_layers: 1,
            visual_feat_dim: 6,
            num_qa_labels: 5,
            ..LxmertConfig::base()
        };
        let mut options = CompileOptions::new(
            ModelOptions::default(),
            Target::named("pod4").expect("built in"),
        );
        options.stages = Some(2);
        let (plan, _) = compile(&config, "small", &options, &mut |_, _| {}).expect("a plan");
        let bytes = plan.to_bytes().expect("a file");
        let line = bytes
            .iter()
            .position(|&byte| byte == b'\n')
            .expect("a first line");
        let mut body = serde_json::from_slice(&bytes[line + 1..]).expect("JSON");
        change(&mut body);
        let body = serde_json::to_vec(&body).expect("JSON");
        [format!("{MAGIC}{}\n", checksum(&body)).into_bytes(), body].concat()
    }

    #[test]
    fn a_plan_whose_programs_are_not_its_graphs_is_refused() {
        Plan::from_bytes(&hand_made(|_| {})).expect("nothing changed");
        for (path, value) in [
            (
                "/tiles/0/programs/0/steps/0/outputs/0/stride",
                1_000_000_000_u64,
            ),
            ("/tiles/0/programs/0/steps/0/inputs/0/buffer", 7),
            ("/tiles/1/buffers/3/offset", 1 << 40),
            ("/tiles/1/buffers/3/bytes", 1),
            ("/tiles/0/programs/0/steps/1/node", 100_000),
            ("/replicas", 1 << 60),
            ("/group", 0),
            ("/group", 2),
            ("/schedule/tiles", 3),
            ("/target/host/bytes_per_second", 0),
            ("/target/tile/cores", 1 << 60),
        ] {
            let file = hand_made(|body| *body.pointer_mut(path).expect(path) = value.into());
            assert!(Plan::from_bytes(&file).is_err(), "{path} = {value}");
        }
    }

    #[test]
    fn a_plan_with_branches_that_its_values_do_not_take_is_refused() {
        let branched = |branches: serde_json::Value| {
            Plan::from_bytes(&hand_made(|body| body["schedule"]["branches"] = branches))
        };
        branched(serde_json::json!([[], [0]])).expect("the chain");
        for branches in [
            serde_json::json!([[], []]),
            serde_json::json!([[1], [0]]),
            serde_json::json!([[], [0, 0]]),
            serde_json::json!([[], [0], [1]]),
            serde_json::json!([[]]),
        ] {
            assert!(branched(branches.clone()).is_err(), "{branches}");
        }
    }
}
