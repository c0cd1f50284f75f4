//! What differs between two plans.

use std::collections::BTreeMap;

use lxpod_backends::sim::Prediction;
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::Phase;
use serde_json::{Value, json};

use crate::cli::report::Report;
use crate::cli::scopes;

/// Two plans, A and B, side by side.
pub(super) struct Difference {
    /// Options and fields of the target with different values, by name; null where one has none.
    pub(super) options: Vec<(String, [Value; 2])>,
    /// Operators that lie on another tile, by module and by tiles.
    pub(super) moved: Vec<Moved>,
    /// Operators of both that lie on the same tile.
    pub(super) stayed: usize,
    /// Operators that only one has, by op.
    pub(super) only: [BTreeMap<&'static str, usize>; 2],
    /// Each tile of a replica; none where a plan has fewer.
    pub(super) tiles: Vec<[Option<TileSummary>; 2]>,
    pub(super) predicted: [Prediction; 2],
    /// Cycles of the slowest stage.
    pub(super) objective: [u64; 2],
}

/// Operators of a module that went from one tile to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) module: String,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) operators: usize,
    /// Their cycles in A.
    pub(super) cycles: u64,
}

/// What a tile does for a micro-batch and holds.
pub(super) struct TileSummary {
    pub(super) cycles: u64,
    /// Bytes by category, and of all.
    pub(super) bytes: [(&'static str, u64); 8],
}

/// An operator: whether it is the update's, its scope and op, and its number among those alike.
type Name<'a> = (bool, &'a str, &'static str, usize);

/// Where an operator is, and its cycles.
type Site = (usize, u64);

impl Difference {
    pub(super) fn of(reports: &[Report<'_>; 2]) -> Difference {
        let plans = reports.each_ref().map(Report::plan);
        let [a, b] = plans.map(operators);
        let mut moved: BTreeMap<(usize, usize, &str), (usize, u64)> = BTreeMap::new();
        let mut stayed = 0;
        for (name, &(from, cycles)) in &a {
            match b.get(name) {
                Some(&(to, _)) if to != from => {
                    let found = moved.entry((from, to, scopes::module(name.1))).or_default();
                    *found = (found.0 + 1, found.1 + cycles);
                }
                Some(_) => stayed += 1,
                None => {}
            }
        }
        let moved = moved
            .into_iter()
            .map(|((from, to, module), (operators, cycles))| Moved {
                module: module.to_owned(),
                from,
                to,
                operators,
                cycles,
            });
        let tiles = plans.map(|plan| plan.tiles.len());
        let tile = |tile| plans.map(|plan| TileSummary::of(plan, tile));
        Difference {
            options: options(plans.map(recorded)),
            moved: moved.collect(),
            stayed,
            only: [missing(&a, &b), missing(&b, &a)],
            tiles: (0..tiles.into_iter().max().unwrap_or(0))
                .map(tile)
                .collect(),
            predicted: reports
                .each_ref()
                .map(|report| report.simulation().predict()),
            objective: plans.map(|plan| plan.partition.objective_cycles),
        }
    }
}

/// The operators of one replica that some tile runs, transfers excluded.
fn operators(plan: &Plan) -> BTreeMap<Name<'_>, Site> {
    let mut sites: BTreeMap<(bool, usize), Site> = BTreeMap::new();
    for (tile, planned) in plan.tiles.iter().enumerate() {
        for (program, step) in planned.steps() {
            if step.receiver(plan.graph_of(program.phase)).is_none() {
                let key = (program.phase == Phase::Update, step.node);
                sites.insert(key, (tile, step.cycles.total()));
            }
        }
    }
    let mut named = BTreeMap::new();
    let mut counts: BTreeMap<(bool, &str, &str), usize> = BTreeMap::new();
    let graphs = [(false, Some(&plan.graph)), (true, plan.update.as_ref())];
    for (update, graph) in graphs
        .into_iter()
        .filter_map(|(u, graph)| Some((u, graph?)))
    {
        for id in graph.topo() {
            let node = graph.node(id);
            if let Some(&site) = sites.get(&(update, id.index())) {
                let count = counts
                    .entry((update, &node.scope, node.op.name()))
                    .or_default();
                named.insert((update, &*node.scope, node.op.name(), *count), site);
                *count += 1;
            }
        }
    }
    named
}

/// The operators of `a` that `b` has not, by op.
fn missing(
    a: &BTreeMap<Name<'_>, Site>,
    b: &BTreeMap<Name<'_>, Site>,
) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for name in a.keys().filter(|name| !b.contains_key(*name)) {
        *counts.entry(name.2).or_default() += 1;
    }
    counts
}

/// What made a plan: its options, and its target's fields.
fn recorded(plan: &Plan) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    flatten("", &plan.provenance.options, &mut fields);
    flatten("target", &json!(plan.target), &mut fields);
    fields.insert("model".to_owned(), plan.provenance.model.clone().into());
    fields.insert(
        "config_hash".to_owned(),
        plan.provenance.config_hash.clone().into(),
    );
    fields.insert("version".to_owned(), plan.provenance.version.clone().into());
    fields
}

fn flatten(name: &str, value: &Value, fields: &mut BTreeMap<String, Value>) {
    let Value::Object(entries) = value else {
        fields.insert(name.to_owned(), value.clone());
        return;
    };
    for (key, value) in entries {
        let separator = if name.is_empty() { "" } else { "." };
        flatten(&format!("{name}{separator}{key}"), value, fields);
    }
}

fn options([a, b]: [BTreeMap<String, Value>; 2]) -> Vec<(String, [Value; 2])> {
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let value = |side: &BTreeMap<String, Value>, name| side.get(name).cloned().unwrap_or_default();
    let pairs = names
        .into_iter()
        .map(|name| (name.clone(), [value(&a, name), value(&b, name)]));
    pairs.filter(|(_, [a, b])| a != b).collect()
}

impl TileSummary {
    fn of(plan: &Plan, tile: usize) -> Option<TileSummary> {
        let memory = &plan.tiles.get(tile)?.memory;
        let mut bytes = [("total", memory.total); 8];
        bytes[..7].copy_from_slice(&memory.executed());
        Some(TileSummary {
            cycles: plan.tile_cycles(tile).total(),
            bytes,
        })
    }
}
