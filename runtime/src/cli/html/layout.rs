//! The activations of one tile over its steps, as a picture: a rectangle for each buffer.

use std::fmt::Write;

use lxpod_passes::plan::{Buffer, Category, Tile};

use super::{MARGIN, WIDTH, escaped};
use crate::cli::output::{bytes, plural};
use crate::cli::report::Report;

/// Height of the picture.
const HEIGHT: f64 = 260.0;

/// The fullest tile's buffers of activations: steps from left to right, addresses from bottom to top.
pub(super) fn layout(report: &Report<'_>) -> String {
    let plan = report.plan();
    let totals = plan.tiles.iter().map(|tile| tile.memory.total);
    let fullest = totals
        .enumerate()
        .max_by_key(|&(tile, total)| (total, usize::MAX - tile));
    let Some((index, _)) = fullest else {
        return String::new();
    };
    let tile = &plan.tiles[index];
    let buffers = || {
        let all = tile.buffers.iter();
        all.filter(|buffer| buffer.category == Category::Activations)
    };
    let from = buffers().map(|buffer| buffer.offset).min();
    let to = buffers().map(|buffer| buffer.offset + buffer.bytes).max();
    let (Some(from), Some(to)) = (from, to) else {
        return String::new();
    };
    let steps = tile.steps().count().max(1);
    let (across, up) = (
        (WIDTH - MARGIN) / steps as f64,
        HEIGHT / (to - from).max(1) as f64,
    );
    let mut text = format!(
        "<h2>Activations of the fullest tile, {index}</h2><p class=\"soft\">{} over {}, highest address on top; \
         lines begin its programs</p>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <text x=\"0\" y=\"12\">{}</text><text x=\"0\" y=\"{HEIGHT}\">0 B</text>",
        plural(buffers().count(), "buffer"),
        plural(steps, "step"),
        bytes(to - from),
    );
    for buffer in buffers() {
        let _ = write!(
            text,
            "<rect class=\"activations buffer\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\"><title>{}</title></rect>",
            MARGIN + f64::from(buffer.birth) * across,
            HEIGHT - (buffer.offset + buffer.bytes - from) as f64 * up,
            f64::from(buffer.death - buffer.birth) * across,
            buffer.bytes as f64 * up,
            title(report, buffer),
        );
    }
    programs(&mut text, tile, across);
    text + "</svg>\n"
}

/// What a buffer holds, and when.
fn title(report: &Report<'_>, buffer: &Buffer) -> String {
    let plan = report.plan();
    let graph = match &plan.update {
        Some(update) if buffer.update => update,
        _ => &plan.graph,
    };
    let of = graph.at(buffer.node).map(|id| {
        let node = graph.node(id);
        format!("{} {}", node.op.name(), node.scope)
    });
    escaped(&format!(
        "{}: {}, steps {} to {}",
        of.unwrap_or_default(),
        bytes(buffer.bytes),
        buffer.birth,
        buffer.death.saturating_sub(1),
    ))
}

/// A line where each program begins.
fn programs(text: &mut String, tile: &Tile, across: f64) {
    for first in tile.first_steps() {
        let x = MARGIN + first as f64 * across;
        let _ = write!(
            text,
            "<line class=\"axis\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"0\" y2=\"{HEIGHT}\"/>"
        );
    }
}
