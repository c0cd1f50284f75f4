//! Out of memory, as an answer.

use lxpod_runtime::out_of_memory::OutOfMemory;
use serde_json::{Value, json};

use super::output::{HEADING, bytes, grouped, percent, styled};
use super::table::Table;

/// For people; the first line follows `error: `.
pub(super) fn text(found: &OutOfMemory) -> String {
    let missing = found.needed - found.capacity;
    let mut text = format!(
        "out of memory: tile {} needs {} and has {}: {} too little ({} bytes, {}); most is {}\n\n",
        found.tile,
        bytes(found.needed),
        bytes(found.capacity),
        bytes(missing),
        grouped(missing),
        percent(missing as f64 / found.capacity.max(1) as f64),
        found.category,
    );
    let mut table = Table::new(&["<category", "bytes", "share"]);
    for &(name, size) in found.categories.iter().filter(|(_, size)| *size > 0) {
        let share = percent(size as f64 / found.needed.max(1) as f64);
        table.row([name.to_owned(), bytes(size), share]);
    }
    text += &table.render();
    let mut table = Table::new(&["<largest tensors", "<category", "bytes", "<type", "<scope"]);
    for tensor in &found.largest {
        let held = match tensor.slots {
            1 => bytes(tensor.bytes),
            slots => format!("{slots} x {}", bytes(tensor.bytes)),
        };
        let scope = tensor.scope.clone();
        let of: String = tensor.of.chars().take(60).collect();
        table.row([
            of,
            tensor.category.to_owned(),
            held,
            tensor.ty.clone(),
            scope,
        ]);
    }
    text += &format!("\n{}\n", table.render());
    if found.changes.is_empty() {
        let help = "compile for a larger --target, or combine several such changes";
        return text
            + &format!(
                "None of {} changes tried fits.\n  help: {help}",
                found.tried
            );
    }
    let mut table = Table::new(&[
        "<change that fits",
        "time a sample",
        "time a step",
        "samples/s",
        "fullest tile",
    ]);
    for change in &found.changes {
        table.row([
            change.options.clone(),
            format!("{:.2} x", change.time_per_sample),
            format!("{:.2} x", change.time_per_step),
            format!("{:.1}", change.samples_per_second),
            bytes(change.fullest),
        ]);
    }
    text + &table.render()
        + &format!(
            "{} predicted, beside the same plan on tiles that are large enough",
            styled(HEADING, "times")
        )
}

/// For programs.
pub(super) fn document(found: &OutOfMemory) -> Value {
    let mut document = json!(found);
    document["kind"] = "out_of_memory".into();
    document["missing"] = (found.needed - found.capacity).into();
    document["categories"] = found
        .categories
        .iter()
        .map(|&(name, size)| json!({"category": name, "bytes": size}))
        .collect();
    json!({ "error": document })
}
