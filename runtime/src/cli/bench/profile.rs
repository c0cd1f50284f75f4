//! Where the time of a run goes: measured, at the rates of the machine, and predicted; by step and by op.

use std::collections::BTreeMap;

use lxpod_backends::StepTime;
use lxpod_ir::ops::Cost;
use lxpod_ir::{Extents, Graph, NodeId};
use lxpod_passes::cost;
use serde_json::{Map, Value, json};

use super::rates::Rates;
use super::timing::percentile;
use crate::cli::error::Result;
use crate::cli::output::percent;
use crate::cli::table::Table;

/// The times of the same steps in several runs.
#[derive(Default)]
pub(super) struct Recorder {
    steps: Vec<(usize, NodeId)>,
    /// By step, then run, in seconds.
    times: Vec<Vec<f64>>,
}

impl Recorder {
    /// Takes the times of one run.
    pub(super) fn add(&mut self, run: &[StepTime]) {
        if self.steps.len() != run.len() {
            self.steps = run.iter().map(|step| (step.stage, step.node)).collect();
            self.times = vec![Vec::new(); run.len()];
        }
        for (times, step) in self.times.iter_mut().zip(run) {
            times.push(step.time.as_secs_f64());
        }
    }
}

/// Work, and how long it took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// Steps.
    pub(super) nodes: usize,
    /// Median of the measured times, in seconds.
    pub(super) seconds: f64,
    /// Predicted for this machine, in seconds.
    pub(super) predicted: f64,
    /// Floating-point operations really done.
    pub(super) flops: f64,
    /// Bytes of operands and results.
    pub(super) bytes: f64,
}

impl Part {
    fn add(&mut self, other: &Part) {
        self.nodes += other.nodes;
        self.seconds += other.seconds;
        self.predicted += other.predicted;
        self.flops += other.flops;
        self.bytes += other.bytes;
    }

    /// Floating-point operations a second.
    pub(super) fn flop_rate(&self) -> f64 {
        self.flops / self.seconds.max(1e-12)
    }

    /// Bytes a second.
    pub(super) fn byte_rate(&self) -> f64 {
        self.bytes / self.seconds.max(1e-12)
    }

    fn document(&self, total: f64, rates: &Rates) -> Map<String, Value> {
        let fields = json!({
            "ms": self.seconds * 1e3,
            "share": self.seconds / total,
            "flops": self.flops,
            "bytes": self.bytes,
            "gflops": self.flop_rate() / 1e9,
            "gbps": self.byte_rate() / 1e9,
            "peak_share": self.flop_rate() / rates.flops,
            "memory_share": self.byte_rate() / rates.memory,
            "predicted_ms": self.predicted * 1e3,
        });
        fields.as_object().cloned().unwrap_or_default()
    }

    fn cells(&self, name: &str, total: f64, rates: &Rates) -> [String; 9] {
        let none_at_0 = |value: f64, text: String| if value > 0.0 { text } else { String::new() };
        [
            name.to_owned(),
            none_at_0(self.nodes as f64, self.nodes.to_string()),
            format!("{:.3} ms", self.seconds * 1e3),
            percent(self.seconds / total),
            none_at_0(self.flops, format!("{:.1}", self.flop_rate() / 1e9)),
            none_at_0(self.flops, percent(self.flop_rate() / rates.flops)),
            none_at_0(self.bytes, format!("{:.1}", self.byte_rate() / 1e9)),
            none_at_0(self.bytes, percent(self.byte_rate() / rates.memory)),
            none_at_0(self.predicted, format!("{:.3} ms", self.predicted * 1e3)),
        ]
    }
}

/// One step of the plan.
pub(super) struct Step {
    /// Its pipeline stage.
    pub(super) stage: usize,
    /// The name of its op.
    pub(super) op: &'static str,
    /// The module it belongs to.
    pub(super) scope: String,
    /// Its operands' and results' types in the first micro-batch.
    pub(super) types: String,
    /// What it did.
    pub(super) part: Part,
}

/// Where the time of a run goes.
pub(super) struct Profile {
    /// Seconds of a run.
    pub(super) total: f64,
    /// What the machine could do meanwhile.
    pub(super) rates: Rates,
    /// Every step, in order of execution.
    pub(super) steps: Vec<Step>,
}

impl Profile {
    /// The profile of runs of a plan's graph over micro-batches of these extents, `total` seconds
    /// each.
    pub(super) fn new(
        graph: &Graph,
        extents: &[Extents],
        recorder: &Recorder,
        total: f64,
        rates: Rates,
    ) -> Result<Profile> {
        let target = rates.target()?;
        let (model, clock) = (cost::model(&target), target.tile.clock_hz as f64);
        let step = |(&(stage, id), times): (&(usize, NodeId), &Vec<f64>)| {
            let mut part = Part {
                nodes: 1,
                seconds: percentile(times, 0.5),
                ..Part::default()
            };
            for extents in extents {
                let Cost {
                    flops,
                    read,
                    written,
                } = graph.cost_at(id, extents);
                part.flops += flops as f64;
                part.bytes += read as f64 + written as f64;
                part.predicted += model.node_at(graph, id, extents).total() as f64 / clock;
            }
            Step {
                stage,
                op: graph.node(id).op.name(),
                scope: graph.node(id).scope.to_string(),
                types: types(graph, id, extents.first()),
                part,
            }
        };
        Ok(Profile {
            total,
            rates,
            steps: recorder
                .steps
                .iter()
                .zip(&recorder.times)
                .map(step)
                .collect(),
        })
    }

    /// Seconds predicted for a run; what the host does beside the steps is not in it.
    pub(super) fn predicted(&self) -> f64 {
        self.steps.iter().map(|step| step.part.predicted).sum()
    }

    /// One step of that op: the mean of their medians.
    pub(super) fn one_of(&self, op: &str) -> Part {
        let mut sum = Part::default();
        let steps = self.steps.iter().filter(|step| step.op == op);
        steps.for_each(|step| sum.add(&step.part));
        let count = sum.nodes.max(1) as f64;
        Part {
            nodes: sum.nodes,
            seconds: sum.seconds / count,
            predicted: sum.predicted / count,
            flops: sum.flops / count,
            bytes: sum.bytes / count,
        }
    }

    /// A whole run.
    pub(super) fn whole(&self) -> Part {
        let mut sum = Part::default();
        self.steps.iter().for_each(|step| sum.add(&step.part));
        Part {
            seconds: self.total,
            ..sum
        }
    }

    /// What the steps do not account for: feeding inputs, fetching outputs, waking threads.
    fn host(&self) -> Part {
        let steps: f64 = self.steps.iter().map(|step| step.part.seconds).sum();
        Part {
            seconds: self.total - steps,
            ..Part::default()
        }
    }

    /// The steps of each op together, the slowest op first, then the host.
    pub(super) fn ops(&self) -> Vec<(&'static str, Part)> {
        let mut ops: BTreeMap<&'static str, Part> = BTreeMap::new();
        for step in &self.steps {
            ops.entry(step.op).or_default().add(&step.part);
        }
        let mut ops: Vec<_> = ops.into_iter().collect();
        ops.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        ops.push(("host", self.host()));
        ops
    }

    /// JSON of [`Profile::ops`].
    pub(super) fn ops_document(&self) -> Vec<Value> {
        let document = |(op, part): (&str, Part)| {
            let mut fields = part.document(self.total, &self.rates);
            fields.insert("op".to_owned(), op.into());
            fields.insert("nodes".to_owned(), part.nodes.into());
            Value::Object(fields)
        };
        self.ops().into_iter().map(document).collect()
    }

    /// JSON of every step.
    pub(super) fn steps_document(&self) -> Vec<Value> {
        let document = |step: &Step| {
            let mut fields = step.part.document(self.total, &self.rates);
            fields.insert("stage".to_owned(), step.stage.into());
            fields.insert("op".to_owned(), step.op.into());
            fields.insert("scope".to_owned(), step.scope.as_str().into());
            fields.insert("types".to_owned(), step.types.as_str().into());
            Value::Object(fields)
        };
        self.steps.iter().map(document).collect()
    }

    /// The ops as a table, and the steps too if asked.
    pub(super) fn text(&self, steps: bool) -> String {
        let heading = [
            "time",
            "share",
            "GFLOP/s",
            "of peak",
            "GB/s",
            "of memory",
            "predicted",
        ];
        let mut table = Table::new(&[&["<op", "nodes"][..], &heading].concat());
        for (op, part) in self.ops() {
            table.row(part.cells(op, self.total, &self.rates));
        }
        let mut text = table.render();
        if steps {
            let mut table = Table::new(&[&["<step", "stage"][..], &heading, &["<types"]].concat());
            for step in &self.steps {
                let name = format!("{} {}", step.op, step.scope);
                let mut cells = step.part.cells(&name, self.total, &self.rates).to_vec();
                cells[1] = step.stage.to_string();
                cells.push(step.types.clone());
                table.row(cells);
            }
            text = text + "\n" + &table.render();
        }
        text
    }
}

/// `f16[20,768] f16[768,768] -> f16[20,768]`: a node's types at these extents.
fn types(graph: &Graph, id: NodeId, extents: Option<&Extents>) -> String {
    let one = |ty: &lxpod_ir::TensorType| {
        let ty = extents.map_or_else(|| ty.clone(), |extents| ty.at(extents));
        ty.display(&graph.spaces)
    };
    let inputs: Vec<String> = graph.input_types(id).iter().map(one).collect();
    let outputs: Vec<String> = graph.node(id).types.iter().map(one).collect();
    format!("{} -> {}", inputs.join(" "), outputs.join(" "))
}
