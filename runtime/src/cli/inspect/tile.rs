//! One tile of a plan: steps, buffers, and a map of its memory over time.

use lxpod_ir::{Graph, Value};
use lxpod_passes::plan::{Buffer, Category, Plan, Program, Step, Tile};
use lxpod_passes::schedule::Phase;
use serde_json::json;

use crate::cli::error::{CliError, Result};
use crate::cli::output::{self, HEADING, bytes, grouped, styled};
use crate::cli::table::Table;
use crate::cli::{Global, scopes};

/// Columns of the map at most.
const MAP_COLUMNS: usize = 96;
/// Rows of the map.
const MAP_ROWS: u64 = 24;
/// How buffers look in the map, in turn.
const MARKS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

pub(super) fn show(plan: &Plan, tile: usize, global: &Global) -> Result<()> {
    let tiles = plan.replicas * plan.tiles.len();
    if tile >= tiles {
        let message = format!("is {tile}; the plan has tiles 0 to {}", tiles - 1);
        return Err(CliError::option("--tile", message));
    }
    let (replica, stage) = (tile / plan.tiles.len(), tile % plan.tiles.len());
    let planned = &plan.tiles[stage];
    if global.json {
        let steps = planned.steps().map(|step| step_document(plan, step));
        return output::json(&json!({
            "tile": tile, "replica": replica, "stage": stage, "memory": planned.memory,
            "steps": steps.collect::<Vec<_>>(), "buffers": planned.buffers,
        }));
    }
    let head = format!(
        "{}  {tile}: replica {replica}, stage {stage}\n\n",
        styled(HEADING, "tile")
    );
    output::print(&format!(
        "{head}{}\n{}\n{}",
        steps(plan, planned),
        buffers(plan, planned),
        map(planned)
    ))
}

fn step_document(plan: &Plan, (program, step): (&Program, &Step)) -> serde_json::Value {
    let graph = plan.graph_of(program.phase);
    let node = graph.node(step.id(graph));
    json!({
        "stage": program.stage,
        "phase": program.phase,
        "node": step.node,
        "op": node.op.name(),
        "scope": node.scope.as_ref(),
        "types": types(graph, step),
        "cycles": step.cycles,
        "inputs": step.inputs,
        "outputs": step.outputs,
    })
}

fn types(graph: &Graph, step: &Step) -> Vec<String> {
    let node = graph.node(step.id(graph));
    node.types
        .iter()
        .map(|ty| ty.display(&graph.spaces))
        .collect()
}

/// A table of each program; of the only one without a heading.
fn steps(plan: &Plan, tile: &Tile) -> String {
    let mut text = String::new();
    for (program, first) in tile.programs.iter().zip(tile.first_steps()) {
        let (stage, phase) = (program.stage, program.phase.name());
        match (tile.programs.len(), program.phase) {
            (1, _) => {}
            (_, Phase::Update) => text += &format!("update, round {}\n", program.round),
            _ => text += &format!("{phase} of stage {stage}\n"),
        }
        text += &program_table(plan.graph_of(program.phase), program, first);
    }
    text
}

fn program_table(graph: &Graph, program: &Program, first: usize) -> String {
    let mut table = Table::new(&[
        "step", "<op", "<scope", "<type", "compute", "exchange", "sync",
    ]);
    for (time, step) in (first..).zip(&program.steps) {
        let node = graph.node(step.id(graph));
        table.row([
            time.to_string(),
            node.op.name().to_owned(),
            node.scope.to_string(),
            types(graph, step).join(", "),
            grouped(step.cycles.compute),
            grouped(step.cycles.exchange),
            grouped(step.cycles.sync),
        ]);
    }
    table.render()
}

fn buffers(plan: &Plan, tile: &Tile) -> String {
    let mut table = Table::new(&[
        "buffer",
        "<category",
        "offset",
        "bytes",
        "steps",
        "<type",
        "<of",
    ]);
    for (index, buffer) in tile.buffers.iter().enumerate() {
        let graph = match &plan.update {
            Some(update) if buffer.update => update,
            _ => &plan.graph,
        };
        let Some(id) = graph.at(buffer.node) else {
            continue;
        };
        let node = graph.node(id);
        let value = Value {
            node: id,
            output: u16::try_from(buffer.output).unwrap_or(0),
        };
        let shown = node
            .types
            .get(buffer.output)
            .map(|_| graph.ty(value).display(&graph.spaces));
        table.row([
            index.to_string(),
            category(buffer.category).to_owned(),
            grouped(buffer.offset),
            match buffer.slots {
                1 => grouped(buffer.bytes),
                slots => format!("{slots} x {}", grouped(buffer.bytes)),
            },
            format!("{}..{}", buffer.birth, buffer.death),
            shown.unwrap_or_default(),
            format!("{} {}", node.op.name(), scopes::module(&node.scope)),
        ]);
    }
    table.render()
}

fn category(category: Category) -> &'static str {
    match category {
        Category::Weights => "weights",
        Category::Optimizer => "optimiser",
        Category::Accumulators => "accumulators",
        Category::HostIo => "host I/O",
        Category::Stash => "stash",
        Category::Transfer => "transfer",
        Category::Activations => "activations",
    }
}

/// The activations' region over steps: a letter for each buffer, a dot for free bytes.
fn map(tile: &Tile) -> String {
    let activations = || {
        tile.buffers
            .iter()
            .filter(|buffer| buffer.category == Category::Activations)
    };
    let start = activations().map(|buffer| buffer.offset).min();
    let end = activations()
        .map(|buffer| buffer.offset.saturating_add(buffer.bytes))
        .max();
    let (Some(start), Some(end)) = (start, end) else {
        return "The tile holds no activations.\n".to_owned();
    };
    let per_row = (end - start).div_ceil(MAP_ROWS).max(1);
    let steps = tile.steps().count();
    let per_column = steps.div_ceil(MAP_COLUMNS).max(1);
    let columns = steps.div_ceil(per_column);
    let mut text = format!(
        "{}: a column is {}, a row {}, a letter a buffer, a dot free bytes\n",
        styled(HEADING, "memory of activations over steps"),
        output::plural(per_column, "step"),
        bytes(per_row),
    );
    for row in (0..MAP_ROWS).rev() {
        let from = start + row * per_row;
        if from >= end {
            continue;
        }
        let line: String = (0..columns)
            .map(|column| {
                cell(
                    activations(),
                    column * per_column,
                    per_column,
                    from..from + per_row,
                )
            })
            .collect();
        text += &format!("{:>14}  {}\n", grouped(from), line.trim_end());
    }
    text
}

/// The mark of the buffer that is alive in most of the cell's bytes.
fn cell<'a>(
    buffers: impl Iterator<Item = &'a Buffer>,
    step: usize,
    steps: usize,
    bytes: std::ops::Range<u64>,
) -> char {
    let covered = |buffer: &Buffer| {
        let end = buffer.offset.saturating_add(buffer.bytes).min(bytes.end);
        end.saturating_sub(buffer.offset.max(bytes.start))
    };
    let alive =
        |buffer: &Buffer| (buffer.birth as usize) < step + steps && step < buffer.death as usize;
    let inside = buffers
        .enumerate()
        .filter(|(_, buffer)| alive(buffer) && covered(buffer) > 0);
    let largest = inside.max_by_key(|(index, buffer)| (covered(buffer), std::cmp::Reverse(*index)));
    largest.map_or('.', |(index, _)| char::from(MARKS[index % MARKS.len()]))
}
