//! What a plan is and what it is predicted to do: one JSON document, or text for people.

use std::fmt::Write;

use lxpod_backends::sim::Simulation;
use lxpod_ir::front::RowSpaces;
use lxpod_ir::ops::Op;
use lxpod_ir::{Graph, NodeId};
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::Phase;
use serde_json::{Value, json};

use super::options::Use;
use super::output::{HEADING, bytes, count, grouped, percent, plural, seconds, styled};
use super::predicted;
use super::rival::Rival;
use super::scopes;
use super::table::Table;

/// A plan with its simulation.
pub(crate) struct Report<'a> {
    plan: &'a Plan,
    used: Use,
    compile_seconds: Option<f64>,
    simulation: Simulation,
    stages: Vec<StageSummary>,
    rival: Option<&'a Rival>,
}

/// What a stage holds and does.
pub(crate) struct StageSummary {
    /// Steps, sends excluded.
    pub(crate) ops: usize,
    /// Elements of resident parameters.
    pub(crate) parameters: u64,
    /// Floating-point operations for one micro-batch at full capacity.
    pub(crate) flops: u64,
    /// The modules whose operators it holds, in order.
    pub(crate) modules: Vec<String>,
}

impl StageSummary {
    fn of(plan: &Plan, stage: usize) -> StageSummary {
        let graph = &plan.graph;
        let steps = plan.tiles[plan.schedule.tile_of(stage)].steps();
        let steps =
            steps.filter(|(program, _)| program.stage == stage && program.phase != Phase::Update);
        let steps: Vec<NodeId> = steps
            .filter(|(_, step)| step.receiver(graph).is_none())
            .map(|(_, step)| step.id(graph))
            .collect();
        let mut modules: Vec<String> = Vec::new();
        for &id in &steps {
            let module = scopes::module(&graph.node(id).scope);
            if !module.is_empty() && !modules.iter().any(|known| known == module) {
                modules.push(module.to_owned());
            }
        }
        StageSummary {
            ops: steps.len(),
            parameters: plan
                .stage_nodes(stage)
                .map(|id| parameter_elements(graph, id))
                .sum(),
            flops: steps.iter().map(|&id| graph.cost(id).flops).sum(),
            modules,
        }
    }
}

/// Elements of a parameter; 0 of anything else.
pub(crate) fn parameter_elements(graph: &Graph, id: NodeId) -> u64 {
    match &graph.node(id).op {
        Op::Param(_) => graph.node(id).types[0].shape.elements() as u64,
        _ => 0,
    }
}

/// Samples of one micro-batch of a plan.
pub(crate) fn micro_batch(graph: &Graph) -> usize {
    RowSpaces::find(&graph.spaces).map_or(1, |spaces| graph.spaces.get(spaces.sample).capacity)
}

impl<'a> Report<'a> {
    /// Simulates a plan as it is used. `compile_seconds` if it was compiled just now.
    pub(crate) fn new(plan: &'a Plan, used: Use, compile_seconds: Option<f64>) -> Self {
        let used = used.of(plan);
        Report {
            plan,
            used,
            compile_seconds,
            simulation: Simulation::new(plan, micro_batch(&plan.graph), used.micro_batches),
            stages: (0..plan.stages())
                .map(|stage| StageSummary::of(plan, stage))
                .collect(),
            rival: None,
        }
    }

    /// Beside the compiler's own plan, if this one was placed by hand.
    pub(crate) fn beside(mut self, rival: Option<&'a Rival>) -> Self {
        self.rival = rival;
        self
    }

    /// The plan.
    pub(crate) fn plan(&self) -> &Plan {
        self.plan
    }

    /// Its simulation.
    pub(crate) fn simulation(&self) -> &Simulation {
        &self.simulation
    }

    /// What each stage does, in a few words.
    pub(crate) fn labels(&self) -> Vec<String> {
        let label =
            |stage: &StageSummary| scopes::abbreviate(stage.modules.iter().map(String::as_str));
        self.stages.iter().map(label).collect()
    }

    /// Elements of the parameters on a stage's tile.
    pub(crate) fn stage_parameters(&self, stage: usize) -> u64 {
        self.stages[stage].parameters
    }

    /// The plan's parameters, those that no output needs included.
    fn parameters(&self) -> u64 {
        let shapes = self.plan.provenance.expected.iter();
        shapes
            .map(|(_, shape)| shape.iter().map(|&axis| axis as u64).product::<u64>())
            .sum()
    }

    /// Operations of one micro-batch.
    fn flops(&self) -> u64 {
        self.stages.iter().map(|stage| stage.flops).sum()
    }

    fn option(&self, name: &str) -> &Value {
        &self.plan.provenance.options[name]
    }

    fn recompute(&self) -> &str {
        self.option("recompute").as_str().unwrap_or("none")
    }

    /// Whether replicas share out the optimiser's states.
    fn shares_states(&self) -> bool {
        self.option("replicated_tensor_sharding") == true
    }

    /// The document of `--json`.
    pub(crate) fn document(&self) -> Value {
        let plan = self.plan;
        let partition = &plan.partition;
        let mut document = json!({
            "model": plan.provenance.model,
            "target": plan.target.name,
            "mode": self.option("mode"),
            "task": self.option("task"),
            "precision": self.option("precision"),
            "replicas": plan.replicas,
            "stages": plan.schedule.tiles,
            "micro_batch": micro_batch(&plan.graph),
            "seq_len": self.option("seq_len"),
            "boxes": self.option("boxes"),
            "gradient_accumulation": self.used.micro_batches,
            "group": plan.group,
            "schedule": self.used.schedule,
            "longest_path": plan.schedule.longest_path(),
            "recompute": self.recompute(),
            "replicated_tensor_sharding": self.shares_states(),
            "compile_seconds": self.compile_seconds,
            "parameters": self.parameters(),
            "flops": self.flops(),
            "version": plan.provenance.version,
            "config_hash": plan.provenance.config_hash,
            "partition": {
                "objective_cycles": partition.objective_cycles,
                "lower_bound_cycles": partition.lower_bound_cycles,
                "optimal": partition.optimal,
                "ideals": partition.ideals,
                "atoms": partition.atoms,
            },
            "tiles": self.tiles(),
            "predicted": predicted::document(&self.simulation.predict(), plan.target.machine),
        });
        if let Some(rival) = self.rival {
            let (field, rival) = rival.document(self, self.used);
            document[field] = rival;
        }
        document
    }

    /// An entry per replica and stage.
    fn tiles(&self) -> Vec<Value> {
        let stages = self.plan.stages();
        let per_replica = self.plan.schedule.tiles;
        let entry = |index: usize| {
            let (replica, stage) = (index / stages, index % stages);
            let (summary, tile) = (&self.stages[stage], self.plan.schedule.tile_of(stage));
            json!({
                "tile": replica * per_replica + tile,
                "replica": replica,
                "stage": stage,
                "after": self.plan.schedule.branches.before(stage),
                "ops": summary.ops,
                "parameters": summary.parameters,
                "flops": summary.flops,
                "cycles": self.simulation.stage_cycles(stage),
                "utilisation": self.simulation.utilisation(tile),
                "scopes": summary.modules,
                "memory": self.plan.tiles[tile].memory,
            })
        };
        (0..self.plan.replicas * stages).map(entry).collect()
    }

    /// Everything, for people.
    pub(crate) fn text(&self) -> String {
        let mut text = self.head();
        text.push('\n');
        text.push_str(&self.tile_table());
        text.push('\n');
        text.push_str(&self.memory_table());
        text.push('\n');
        text.push_str(&predicted::text(&self.simulation, self.plan.target.machine));
        text
    }

    /// What was compiled, and how good the split is.
    pub(crate) fn head(&self) -> String {
        let plan = self.plan;
        let line = |name: &str, value: String| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        let value = |name: &str| self.option(name).as_str().unwrap_or("?").to_owned();
        let mut text = line(
            "model",
            format!(
                "{}: {} parameters, {}FLOP a micro-batch",
                plan.provenance.model,
                count(self.parameters()),
                unit(self.flops()),
            ),
        );
        text += &line(
            "options",
            format!(
                "{}, task {}, {} precision, micro-batch {}{}, {} tokens, {} boxes",
                value("mode"),
                value("task"),
                value("precision"),
                micro_batch(&plan.graph),
                match plan.group {
                    1 => String::new(),
                    group => format!(", {group} computed together"),
                },
                self.option("seq_len"),
                self.option("boxes"),
            ),
        );
        text += &line(
            "target",
            format!(
                "{}: {}{} x {}, schedule {}",
                plan.target.name,
                plural(plan.replicas, "replica"),
                if self.shares_states() && plan.replicas > 1 {
                    " sharing the optimiser's state"
                } else {
                    ""
                },
                plural(plan.stages(), "stage"),
                self.used.schedule,
            ),
        );
        text += &line("partition", self.partition());
        if let Some(rival) = self.rival {
            text += &rival.text(self, self.used);
        }
        if let Some(time) = self.compile_seconds {
            text += &line("compiled", format!("in {}", seconds(time)));
        }
        text
    }

    fn partition(&self) -> String {
        let partition = &self.plan.partition;
        let mut text = format!(
            "slowest stage {} cycles, lower bound {}",
            grouped(partition.objective_cycles),
            grouped(partition.lower_bound_cycles),
        );
        let verdict = if partition.optimal {
            " (optimal among contiguous splits)"
        } else if self.option("placement").is_array() {
            " (placed by hand)"
        } else {
            " (not proven optimal)"
        };
        if !self.plan.schedule.branches.is_chain() {
            let path = self.plan.schedule.longest_path();
            let _ = write!(text, ", the longest path has {}", plural(path, "stage"));
        }
        let _ = write!(
            text,
            "{verdict}; {}, {}",
            plural(partition.ideals, "ideal"),
            plural(partition.atoms, "atom")
        );
        text
    }

    /// What each stage does.
    pub(crate) fn tile_table(&self) -> String {
        let branches = &self.plan.schedule.branches;
        let mut table = Table::new(&[
            if branches.is_chain() {
                "stage"
            } else {
                "stage <- after"
            },
            "<scopes",
            "ops",
            "parameters",
            "GFLOP",
            "cycles",
            "load",
            "busy",
        ]);
        let slowest = self
            .simulation
            .tile_cycles(self.simulation.bottleneck())
            .max(1);
        for (stage, (summary, label)) in self.stages.iter().zip(self.labels()).enumerate() {
            let cycles = self.simulation.stage_cycles(stage);
            let after = match branches.is_chain() {
                true => String::new(),
                false => format!(" <- {}", listed(&branches.before(stage))),
            };
            table.row([
                format!("{stage}{after}"),
                if summary.ops == 0 {
                    "(empty)".to_owned()
                } else {
                    shortened(&label, 48)
                },
                summary.ops.to_string(),
                count(summary.parameters),
                format!("{:.3}", summary.flops as f64 / 1e9),
                grouped(cycles),
                percent(cycles as f64 / slowest as f64),
                percent(
                    self.simulation
                        .utilisation(stage % self.plan.schedule.tiles),
                ),
            ]);
        }
        table.render() + &self.tile_numbers()
    }

    fn tile_numbers(&self) -> String {
        let (replicas, stages) = (self.plan.replicas, self.plan.stages());
        match replicas {
            1 => String::new(),
            _ => format!(
                "Replica r has stage s on tile {stages}r + s; all {replicas} replicas are alike.\n"
            ),
        }
    }

    /// The planned bytes of each stage's tile.
    pub(crate) fn memory_table(&self) -> String {
        let mut table = Table::new(&[
            "stage",
            "weights",
            "activations",
            "live",
            "transfer",
            "host I/O",
            "code",
            "reserved",
            "total",
            "capacity",
            "used",
            "fullest core",
        ]);
        for (stage, tile) in self.plan.tiles.iter().enumerate() {
            let memory = &tile.memory;
            table.row([
                stage.to_string(),
                bytes(memory.weights),
                bytes(memory.activations),
                bytes(memory.max_live),
                bytes(memory.transfer),
                bytes(memory.host_io),
                bytes(memory.code),
                bytes(memory.reserved),
                bytes(memory.total),
                bytes(memory.capacity),
                percent(memory.total as f64 / memory.capacity.max(1) as f64),
                format!(
                    "{} of {}",
                    bytes(memory.core_max),
                    bytes(memory.core_capacity)
                ),
            ]);
        }
        table.render()
    }
}

/// A count with a unit's prefix and the blank before it: `11.2 G`.
fn unit(number: u64) -> String {
    let text = count(number);
    if text.ends_with(|last: char| last.is_ascii_digit()) {
        text + " "
    } else {
        text
    }
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most - 1).collect();
    kept + "…"
}

/// Numbers as a list; a dash for none.
fn listed(numbers: &[usize]) -> String {
    match numbers {
        [] => "-".to_owned(),
        _ => numbers
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    }
}
