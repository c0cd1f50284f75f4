//! One tile of a plan: steps, buffers, and a map of its memory over time.

use lxpod_ir::Value;
use lxpod_passes::plan::{Buffer, Category, Plan, Program, Step};
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
    let tiles = plan.replicas * plan.stages();
    if tile >= tiles {
        let message = format!("is {tile}; the plan has tiles 0 to {}", tiles - 1);
        return Err(CliError::option("--tile", message));
    }
    let (replica, stage) = (tile / plan.stages(), tile % plan.stages());
    let program = &plan.programs[stage];
    if global.json {
        let steps = program.steps.iter().map(|step| step_document(plan, step));
        return output::json(&json!({
            "tile": tile, "replica": replica, "stage": stage, "memory": program.memory,
            "steps": steps.collect::<Vec<_>>(), "buffers": program.buffers,
        }));
    }
    let head = format!(
        "{}  {tile}: replica {replica}, stage {stage}\n\n",
        styled(HEADING, "tile")
    );
    output::print(&format!(
        "{head}{}\n{}\n{}",
        steps(plan, program),
        buffers(plan, program),
        map(program)
    ))
}

fn step_document(plan: &Plan, step: &Step) -> serde_json::Value {
    let node = plan.graph.node(step.id(&plan.graph));
    json!({
        "node": step.node,
        "op": node.op.name(),
        "scope": node.scope.as_ref(),
        "types": types(plan, step),
        "cycles": step.cycles,
        "inputs": step.inputs,
        "outputs": step.outputs,
    })
}

fn types(plan: &Plan, step: &Step) -> Vec<String> {
    let node = plan.graph.node(step.id(&plan.graph));
    node.types
        .iter()
        .map(|ty| ty.display(&plan.graph.spaces))
        .collect()
}

fn steps(plan: &Plan, program: &Program) -> String {
    let mut table = Table::new(&[
        "step", "<op", "<scope", "<type", "compute", "exchange", "sync",
    ]);
    for (time, step) in program.steps.iter().enumerate() {
        let node = plan.graph.node(step.id(&plan.graph));
        table.row([
            time.to_string(),
            node.op.name().to_owned(),
            node.scope.to_string(),
            types(plan, step).join(", "),
            grouped(step.cycles.compute),
            grouped(step.cycles.exchange),
            grouped(step.cycles.sync),
        ]);
    }
    table.render()
}

fn buffers(plan: &Plan, program: &Program) -> String {
    let mut table = Table::new(&[
        "buffer",
        "<category",
        "offset",
        "bytes",
        "steps",
        "<type",
        "<of",
    ]);
    for (index, buffer) in program.buffers.iter().enumerate() {
        let Some(id) = plan.graph.at(buffer.node) else {
            continue;
        };
        let node = plan.graph.node(id);
        let value = Value {
            node: id,
            output: u16::try_from(buffer.output).unwrap_or(0),
        };
        let shown = node
            .types
            .get(buffer.output)
            .map(|_| plan.graph.ty(value).display(&plan.graph.spaces));
        table.row([
            index.to_string(),
            category(buffer.category).to_owned(),
            grouped(buffer.offset),
            grouped(buffer.bytes),
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
        Category::HostIo => "host I/O",
        Category::Transfer => "transfer",
        Category::Activations => "activations",
    }
}

/// The activations' region over steps: a letter for each buffer, a dot for free bytes.
fn map(program: &Program) -> String {
    let activations = || {
        program
            .buffers
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
    let per_column = program.steps.len().div_ceil(MAP_COLUMNS).max(1);
    let columns = program.steps.len().div_ceil(per_column);
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
