//! Pictures of an assignment: time from left to right, addresses from bottom to top.

use std::fmt::Write;

use lxpod_passes::solve::offsets::{Assignment, Buffer};
use lxpod_runtime::problems::memory::Instance;

/// Columns and rows of the text picture.
const COLUMNS: usize = 96;
const ROWS: usize = 24;

/// Width and height of the drawing.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 600.0;

/// Buffers as areas of letters, each sampled at the middle of a cell; a dot is free memory.
pub(super) fn text(instance: &Instance, found: &Assignment) -> String {
    let steps = instance.times.len().saturating_sub(1);
    if steps == 0 || found.peak == 0 {
        return String::new();
    }
    let columns = steps.min(COLUMNS);
    let mut cells = vec![vec!['.'; columns]; ROWS];
    let live = instance.buffers.iter().zip(&found.offsets).enumerate();
    for (at, (buffer, &offset)) in live.filter(|(_, (b, _))| b.size > 0) {
        let letter = char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[at % 52]);
        let rows = cells.iter_mut().enumerate();
        for (_, cells) in rows.filter(|(row, _)| covers(buffer, offset, ROWS - 1 - row, found.peak))
        {
            let middle = |column: usize| ((2 * column + 1) * steps / (2 * columns)) as u32;
            for (column, cell) in cells.iter_mut().enumerate() {
                if (buffer.start..buffer.end).contains(&middle(column)) {
                    *cell = letter;
                }
            }
        }
    }
    let width = found.peak.to_string().len();
    let mut text = String::new();
    for (row, line) in cells.iter().enumerate() {
        let top = u128::from(found.peak) * (ROWS - row) as u128 / ROWS as u128;
        let mark = if row.is_multiple_of(6) {
            top.to_string()
        } else {
            String::new()
        };
        let line: String = line.iter().collect();
        text += &format!("{mark:>width$} |{line}\n");
    }
    let rule = "-".repeat(columns);
    format!("{text}{:>width$} +{rule}\n", 0)
}

/// Whether the middle of a row of addresses, counted from below, is the buffer's.
fn covers(buffer: &Buffer, offset: u64, row: usize, peak: u64) -> bool {
    let middle = u128::from(peak) * (2 * row as u128 + 1) / (2 * ROWS as u128);
    (u128::from(offset)..u128::from(offset) + u128::from(buffer.size)).contains(&middle)
}

/// Buffers as rectangles that show their name, lifetime, offset and size when pointed at.
pub(super) fn svg(instance: &Instance, found: &Assignment) -> String {
    let (first, last) = match (instance.times.first(), instance.times.last()) {
        (Some(&first), Some(&last)) if first < last => (first as f64, last as f64),
        _ => (0.0, 1.0),
    };
    let (across, up) = (WIDTH / (last - first), HEIGHT / found.peak.max(1) as f64);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n\
         <title>{} buffers, peak {} bytes</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#f4f4f4\"/>\n",
        instance.buffers.len(),
        found.peak
    );
    for (at, (buffer, &offset)) in instance.buffers.iter().zip(&found.offsets).enumerate() {
        if buffer.start >= buffer.end || buffer.size == 0 {
            continue;
        }
        let (lower, upper) = (
            instance.times[buffer.start as usize],
            instance.times[buffer.end as usize],
        );
        // Steps of the golden angle set neighbours apart.
        let hue = at as f64 * 137.508 % 360.0;
        let size = buffer.size;
        let drawn = writeln!(
            text,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"hsl({hue:.0},55%,65%)\" \
             stroke=\"#333\" stroke-width=\"0.5\"><title>{}: {lower} to {upper}, {size} bytes at {offset}</title></rect>",
            (lower as f64 - first) * across,
            HEIGHT - (offset + size) as f64 * up,
            (upper as f64 - lower as f64) * across,
            size as f64 * up,
            escaped(&instance.names[at]),
        );
        drawn.expect("text takes any text");
    }
    text + "</svg>\n"
}

fn escaped(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
