//! What a difference shows.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::difference::{Difference, TileSummary};
use crate::cli::output::{HEADING, STRONG, bytes, grouped, plural, seconds, styled};
use crate::cli::scopes;
use crate::cli::table::Table;

/// A difference and how its sides are called.
pub(super) struct Shown<'a> {
    /// A and B as they were given.
    pub(super) names: [&'a str; 2],
    pub(super) difference: &'a Difference,
}

impl Shown<'_> {
    /// For programs.
    pub(super) fn document(&self) -> Value {
        let difference = self.difference;
        let options = difference.options.iter();
        let options = options.map(|(name, [a, b])| json!({"option": name, "a": a, "b": b}));
        let moved = difference.moved.iter().map(|moved| {
            json!({
                "module": moved.module,
                "from": moved.from,
                "to": moved.to,
                "operators": moved.operators,
                "cycles": moved.cycles,
            })
        });
        let tiles = difference.tiles.iter().enumerate().map(
            |(tile, [a, b])| json!({"tile": tile, "a": tile_document(a), "b": tile_document(b)}),
        );
        let [a, b] = &difference.predicted;
        json!({
            "a": self.names[0],
            "b": self.names[1],
            "options": options.collect::<Vec<_>>(),
            "moved": moved.collect::<Vec<_>>(),
            "stayed": difference.stayed,
            "only_a": difference.only[0],
            "only_b": difference.only[1],
            "tiles": tiles.collect::<Vec<_>>(),
            "objective_cycles": {"a": difference.objective[0], "b": difference.objective[1]},
            "predicted": {"a": a, "b": b, "step_ratio": self.step_ratio(), "time_per_sample_ratio": self.sample_ratio()},
        })
    }

    /// The time of B's step over that of A's.
    fn step_ratio(&self) -> Option<f64> {
        let [a, b] = &self.difference.predicted;
        (a.step_seconds > 0.0).then(|| b.step_seconds / a.step_seconds)
    }

    /// The time B takes for a sample over that of A.
    fn sample_ratio(&self) -> Option<f64> {
        let [a, b] = &self.difference.predicted;
        (b.samples_per_second > 0.0).then(|| a.samples_per_second / b.samples_per_second)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let line = |name: &str, value: &str| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")))
        };
        let mut text = line("A", self.names[0]) + &line("B", self.names[1]);
        text += &line("operators", &self.operators());
        text += "\n";
        text += &self.options();
        text += &self.moved();
        text += &self.tiles();
        text + &self.predicted()
    }

    fn operators(&self) -> String {
        let difference = self.difference;
        let moved: usize = difference.moved.iter().map(|moved| moved.operators).sum();
        let listed = |only: &BTreeMap<&'static str, usize>| {
            let ops = only.iter().map(|(op, count)| format!("{count} {op}"));
            let listed = ops.collect::<Vec<_>>().join(", ");
            if listed.is_empty() {
                "none".to_owned()
            } else {
                listed
            }
        };
        let [only_a, only_b] = difference.only.each_ref().map(listed);
        format!(
            "{} on the same tile, {moved} on another; only in A: {only_a}; only in B: {only_b}",
            difference.stayed
        )
    }

    fn options(&self) -> String {
        if self.difference.options.is_empty() {
            return "The options are the same.\n\n".to_owned();
        }
        let mut table = Table::new(&["<option", "<A", "<B"]);
        let shown = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            value => value.to_string().chars().take(60).collect(),
        };
        for (name, [a, b]) in &self.difference.options {
            table.row([name.clone(), shown(a), shown(b)]);
        }
        table.render() + "\n"
    }

    /// One row for each pair of tiles.
    fn moved(&self) -> String {
        let mut table = Table::new(&["from tile", "to tile", "operators", "cycles in A", "<of"]);
        let mut pairs: BTreeMap<(usize, usize), (usize, u64, Vec<&str>)> = BTreeMap::new();
        for moved in &self.difference.moved {
            let found = pairs.entry((moved.from, moved.to)).or_default();
            found.0 += moved.operators;
            found.1 += moved.cycles;
            found.2.push(&moved.module);
        }
        if pairs.is_empty() {
            return "Nothing lies on another tile.\n\n".to_owned();
        }
        for ((from, to), (operators, cycles, modules)) in pairs {
            table.row([
                from.to_string(),
                to.to_string(),
                operators.to_string(),
                grouped(cycles),
                scopes::abbreviate(modules.into_iter()),
            ]);
        }
        table.render() + "\n"
    }

    fn tiles(&self) -> String {
        let mut table = Table::new(&[
            "tile",
            "cycles A",
            "cycles B",
            "change",
            "weights",
            "optimizer",
            "accumulators",
            "activations",
            "stash",
            "transfer",
            "host I/O",
            "total",
        ]);
        for (tile, sides) in self.difference.tiles.iter().enumerate() {
            let [a, b] = sides.each_ref().map(Option::as_ref);
            let cycles = |side: Option<&TileSummary>| side.map(|side| side.cycles);
            let shown = |cycles: Option<u64>| cycles.map_or("-".to_owned(), grouped);
            let mut cells = vec![tile.to_string(), shown(cycles(a)), shown(cycles(b))];
            cells.push(change(
                cycles(a).unwrap_or(0),
                cycles(b).unwrap_or(0),
                grouped,
            ));
            for category in 0..8 {
                let size =
                    |side: Option<&TileSummary>| side.map_or(0, |side| side.bytes[category].1);
                cells.push(change(size(a), size(b), bytes));
            }
            table.row(cells);
        }
        table.render() + "\n"
    }

    fn predicted(&self) -> String {
        let mut text = String::new();
        let sides = ["A", "B"].into_iter().zip(&self.difference.predicted);
        for ((name, predicted), objective) in sides.zip(self.difference.objective) {
            text += &format!(
                "{}  step {}, {:.1} samples/s, slowest stage {} cycles, bubble {:.1} %\n",
                styled(HEADING, format!("predicted {name}")),
                seconds(predicted.step_seconds),
                predicted.samples_per_second,
                grouped(objective),
                predicted.bubble_fraction * 100.0,
            );
        }
        let times =
            |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3} x"));
        text + &format!(
            "B takes {} the time of A's step, {} the time of A for a sample; {} differ.\n",
            styled(STRONG, times(self.step_ratio())),
            times(self.sample_ratio()),
            plural(self.difference.options.len(), "option"),
        )
    }
}

/// What came or went: `+1.5 MiB`; empty if nothing did.
fn change(a: u64, b: u64, shown: impl Fn(u64) -> String) -> String {
    match b.cmp(&a) {
        std::cmp::Ordering::Equal => String::new(),
        std::cmp::Ordering::Greater => format!("+{}", shown(b - a)),
        std::cmp::Ordering::Less => format!("-{}", shown(a - b)),
    }
}

fn tile_document(tile: &Option<TileSummary>) -> Value {
    let Some(tile) = tile else {
        return Value::Null;
    };
    let memory = tile
        .bytes
        .iter()
        .map(|&(name, size)| (name.to_owned(), size.into()));
    json!({"cycles": tile.cycles, "memory": memory.collect::<Map<String, Value>>()})
}
