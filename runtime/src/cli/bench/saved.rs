//! Measurements kept in a file, and compared with those of now.

use std::collections::BTreeMap;
use std::path::Path;

use lxpod_runtime::Error;
use serde_json::{Value, json};

use crate::cli::error::Result;
use crate::cli::files;
use crate::cli::machine::Machine;

/// Seconds by the name of what was measured.
pub(super) type Times = BTreeMap<String, f64>;

/// Writes times, with the machine they were measured on.
pub(super) fn save(path: &Path, times: &Times) -> Result<()> {
    let document = json!({"machine": Machine::this().document(), "seconds": times});
    files::write(path, format!("{document:#}\n").as_bytes())
}

/// Reads what [`save`] wrote.
pub(super) fn read(path: &Path) -> Result<Times> {
    let wrong = |field: &str, problem: &str| Error::InvalidFile {
        path: path.into(),
        field: field.to_owned(),
        problem: problem.to_owned(),
        help: "make a baseline with `lxpod bench ... --save FILE`".to_owned(),
    };
    let bytes = files::read(path)?;
    let document: Value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong("contents", &format!("is no JSON: {error}")))?;
    let Some(seconds) = document["seconds"].as_object() else {
        return Err(wrong("seconds", "is missing").into());
    };
    let time = |(name, value): (&String, &Value)| {
        let time = value.as_f64().filter(|time| *time > 0.0);
        let time =
            time.ok_or_else(|| wrong(&format!("seconds.{name}"), "is no positive number"))?;
        Ok((name.clone(), time))
    };
    seconds.iter().map(time).collect()
}

/// How many times as fast as before: above `1.00x` is faster.
pub(super) fn speedup(baseline: Option<&Times>, name: &str, now: f64) -> String {
    match baseline.and_then(|times| times.get(name)) {
        Some(before) if now > 0.0 => format!("{:.2}x", before / now),
        _ => String::new(),
    }
}
