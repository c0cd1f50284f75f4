//! What a comparison shows.

use std::path::Path;

use lxpod_runtime::compare::{Comparison, Difference, NonFinite, Pair};
use serde_json::{Value, json};

use super::super::output::{HEADING, STRONG, plural, styled};
use super::super::table::Table;

/// How many tensors the text lists from the first divergence on; JSON has them all.
const LISTED: usize = 12;

/// A comparison and how it came about.
pub(super) struct Shown<'a> {
    /// A and B as they were given.
    pub(super) names: [&'a str; 2],
    pub(super) comparison: &'a Comparison,
    pub(super) tolerance: Option<f64>,
    /// Where A was written.
    pub(super) dump: Option<&'a Path>,
}

impl Shown<'_> {
    fn first(&self) -> Option<&Pair> {
        self.comparison.first_divergence(self.tolerance)
    }

    fn is_equal(&self) -> bool {
        self.comparison.first_divergence(None).is_none()
    }

    /// For programs.
    pub(super) fn document(&self) -> Value {
        let Comparison {
            pairs,
            unmatched: [only_a, only_b],
            non_finite: [a, b],
        } = self.comparison;
        let documents = |outputs: bool| -> Vec<Value> {
            let chosen = pairs.iter().filter(|pair| pair.is_output() == outputs);
            chosen.map(|pair| self.pair_document(pair)).collect()
        };
        json!({
            "a": self.names[0],
            "b": self.names[1],
            "tolerance": self.tolerance,
            "equal": self.is_equal(),
            "within_tolerance": self.first().is_none(),
            "first_divergence": self.first().map(|pair| self.pair_document(pair)),
            "non_finite": {
                "a": a.as_ref().map(non_finite_document),
                "b": b.as_ref().map(non_finite_document),
            },
            "ops": documents(false),
            "outputs": documents(true),
            "only_a": only_a,
            "only_b": only_b,
        })
    }

    fn pair_document(&self, pair: &Pair) -> Value {
        let mut document = json!({
            "name": pair.name,
            "scope": pair.origin().map(|(scope, _)| scope),
            "op": pair.origin().map(|(_, op)| op),
            "shape": pair.shapes[0],
            "within_tolerance": pair.is_within(self.tolerance),
        });
        match &pair.difference {
            None => document["shape_b"] = json!(pair.shapes[1]),
            Some(difference) => {
                document["elements"] = json!(difference.elements);
                document["differing"] = json!(difference.differing);
                // JSON has no infinity; null is a difference beyond every number.
                document["max_abs"] = json!(difference.max_abs);
                document["rms"] = json!(difference.rms);
                document["relative"] = json!(difference.relative);
                document["ulp"] = json!(difference.ulp);
                document["worst"] = json!(difference.worst);
            }
        }
        document
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let line = |name: &str, value: &str| {
            format!("{}  {value}\n", styled(HEADING, format!("{name:<8}")))
        };
        let mut text = line("A", self.names[0]) + &line("B", self.names[1]);
        text += &line("compared", &self.counts());
        text += &line("verdict", &self.verdict());
        for (name, found) in ["A", "B"].into_iter().zip(&self.comparison.non_finite) {
            if let Some(found) = found {
                let place = place(&found.name, found.origin());
                let value = format!("first {} in {place} at {:?}", found.value, found.at);
                text += &line(&format!("in {name}"), &value);
            }
        }
        if let Some(diverging) = self.diverging() {
            text += &format!("\n{diverging}");
        }
        let outputs = self.comparison.pairs.iter().filter(|pair| pair.is_output());
        let outputs: Vec<&Pair> = outputs.collect();
        if !outputs.is_empty() {
            text += &format!("\n{}", table("<output", &outputs));
        }
        if let Some(path) = self.dump {
            text += &format!("\nA is written to {}.\n", path.display());
        }
        text
    }

    fn counts(&self) -> String {
        let outputs = self.comparison.pairs.iter();
        let outputs = outputs.filter(|pair| pair.is_output()).count();
        let ops = self.comparison.pairs.len() - outputs;
        let [only_a, only_b] = self.comparison.unmatched.each_ref().map(Vec::len);
        format!(
            "values of {}, and {}; {only_a} only in A, {only_b} only in B",
            plural(ops, "op"),
            plural(outputs, "output"),
        )
    }

    fn verdict(&self) -> String {
        match (self.first(), self.tolerance) {
            (Some(pair), _) => {
                let place = place(&pair.name, pair.origin());
                format!("they first differ in {}", styled(STRONG, place))
            }
            (None, Some(tolerance)) if !self.is_equal() => {
                format!("within {tolerance:e} of the largest entry of each tensor")
            }
            (None, _) => styled(STRONG, "equal to the bit"),
        }
    }

    /// The ops that are not within the tolerance, the first of them first.
    fn diverging(&self) -> Option<String> {
        let pairs = self.comparison.pairs.iter();
        let ops = pairs.filter(|pair| !pair.is_output() && !pair.is_within(self.tolerance));
        let ops: Vec<&Pair> = ops.collect();
        let listed = &ops[..ops.len().min(LISTED)];
        if listed.is_empty() {
            return None;
        }
        let mut text = table("<differs", listed);
        if ops.len() > LISTED {
            text += &format!("and {} more\n", ops.len() - LISTED);
        }
        Some(text)
    }
}

/// `linear in lxmert.pooler (its full name)`, or the name of an output.
fn place(name: &str, origin: Option<(&str, &str)>) -> String {
    match origin {
        Some((scope, op)) => format!("{op} in {scope} ({name})"),
        None => format!("the output {name}"),
    }
}

fn non_finite_document(found: &NonFinite) -> Value {
    json!({
        "name": found.name,
        "scope": found.origin().map(|(scope, _)| scope),
        "op": found.origin().map(|(_, op)| op),
        "at": found.at,
        "value": found.value.to_string(),
    })
}

fn table(heading: &'static str, pairs: &[&Pair]) -> String {
    let headings = [
        heading,
        "<shape",
        "differing",
        "max abs",
        "rms",
        "relative",
        "ulp",
        "<at",
    ];
    let mut table = Table::new(&headings);
    for pair in pairs {
        let mut cells = vec![pair.name.clone(), format!("{:?}", pair.shapes[0])];
        match &pair.difference {
            Some(difference) => cells.extend(numbers(difference)),
            None => cells.push(format!("B has {:?}", pair.shapes[1])),
        }
        table.row(cells);
    }
    table.render()
}

fn numbers(difference: &Difference) -> [String; 6] {
    let number = |value: f64| match value {
        0.0 => "0".to_owned(),
        value => format!("{value:.2e}"),
    };
    [
        format!("{} of {}", difference.differing, difference.elements),
        number(difference.max_abs),
        number(difference.rms),
        number(difference.relative),
        difference.ulp.map_or("-".to_owned(), |ulp| ulp.to_string()),
        difference
            .worst
            .as_ref()
            .map_or(String::new(), |at| format!("{at:?}")),
    ]
}
