//! Bindings: how a resident buffer is made from the tensors of a checkpoint.
//!
//! The compiler sees names and types, no weights. Merging and folding passes rewrite bindings; the
//! runtime evaluates them at load, row by row.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Shape;

/// An expression over checkpoint tensors. Its text form is a call, such as
/// `concat(a.weight, scale(0.5, b.weight))`; an odd name stands in quotes, as a JSON string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Binding {
    /// The tensor of that name.
    Tensor(String),
    /// The rows of several values end to end (axis 0).
    Concat(Vec<Binding>),
    /// Rows `start..end` of a value (axis 0).
    Rows(usize, usize, Box<Binding>),
    /// A value times a power of two, so that no element rounds.
    Scale(f32, Box<Binding>),
}

impl Binding {
    /// Every tensor read, by name.
    pub fn tensors(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.visit(&mut |name| {
            names.insert(name);
        });
        names
    }

    fn visit<'a>(&'a self, found: &mut impl FnMut(&'a str)) {
        match self {
            Binding::Tensor(name) => found(name),
            Binding::Concat(parts) => parts.iter().for_each(|part| part.visit(found)),
            Binding::Rows(_, _, inner) | Binding::Scale(_, inner) => inner.visit(found),
        }
    }

    /// The shape of the value, from the shapes of the tensors.
    ///
    /// # Errors
    /// Names a tensor without a shape, parts that do not stack, rows that do not exist.
    pub fn shape(&self, lookup: &impl Fn(&str) -> Option<Shape>) -> Result<Shape, String> {
        match self {
            Binding::Tensor(name) => {
                lookup(name).ok_or_else(|| format!("no tensor named `{name}`"))
            }
            Binding::Concat(parts) => {
                let shapes: Vec<Shape> = parts
                    .iter()
                    .map(|part| part.shape(lookup))
                    .collect::<Result<_, _>>()?;
                let first = shapes.first().ok_or("concat of nothing")?;
                let rows = shapes.iter().map(Shape::rows).sum();
                match shapes.iter().find(|shape| shape.get(1..) != first.get(1..)) {
                    Some(other) => Err(format!("concat of {first} and {other}: rows differ")),
                    None => Ok(first.with_rows(rows)),
                }
            }
            Binding::Rows(start, end, inner) => {
                let shape = inner.shape(lookup)?;
                if start <= end && *end <= shape.rows() {
                    Ok(shape.with_rows(end - start))
                } else {
                    Err(format!("rows {start}..{end} of {shape}"))
                }
            }
            Binding::Scale(_, inner) => inner.shape(lookup),
        }
    }

    /// Splits rows `start..end` of the value into pieces that each lie in one tensor, in order.
    /// `rows` tells the number of rows of a tensor.
    pub fn pieces(
        &self,
        start: usize,
        end: usize,
        rows: &impl Fn(&str) -> usize,
    ) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        self.collect_pieces(start, end, 1.0, rows, &mut pieces);
        pieces
    }

    fn collect_pieces<'a>(
        &'a self,
        start: usize,
        end: usize,
        factor: f32,
        rows: &impl Fn(&str) -> usize,
        pieces: &mut Vec<Piece<'a>>,
    ) {
        match self {
            Binding::Tensor(name) => pieces.push(Piece {
                tensor: name,
                start,
                end,
                factor,
            }),
            Binding::Scale(own, inner) => {
                inner.collect_pieces(start, end, factor * own, rows, pieces)
            }
            Binding::Rows(first, _, inner) => {
                inner.collect_pieces(start + first, end + first, factor, rows, pieces);
            }
            Binding::Concat(parts) => {
                let mut base = 0;
                for part in parts {
                    let length = part.row_count(rows);
                    let (from, to) = (start.max(base), end.min(base + length));
                    if from < to {
                        part.collect_pieces(from - base, to - base, factor, rows, pieces);
                    }
                    base += length;
                }
            }
        }
    }

    fn row_count(&self, rows: &impl Fn(&str) -> usize) -> usize {
        match self {
            Binding::Tensor(name) => rows(name),
            Binding::Concat(parts) => parts.iter().map(|part| part.row_count(rows)).sum(),
            Binding::Rows(start, end, _) => end - start,
            Binding::Scale(_, inner) => inner.row_count(rows),
        }
    }
}

/// Rows of one tensor times a factor: what a loader reads in one go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece<'a> {
    /// The tensor's name.
    pub tensor: &'a str,
    /// The first row.
    pub start: usize,
    /// One past the last row.
    pub end: usize,
    /// What each element is multiplied by.
    pub factor: f32,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Binding::Tensor(name) if is_plain(name) => f.write_str(name),
            Binding::Tensor(name) => write!(f, "{}", serde_json::Value::from(name.as_str())),
            Binding::Concat(parts) => {
                f.write_str("concat(")?;
                for (index, part) in parts.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{part}")?;
                }
                f.write_str(")")
            }
            Binding::Rows(start, end, inner) => write!(f, "rows({start}, {end}, {inner})"),
            Binding::Scale(factor, inner) => write!(f, "scale({factor:?}, {inner})"),
        }
    }
}

impl From<Binding> for String {
    fn from(binding: Binding) -> String {
        binding.to_string()
    }
}

impl TryFrom<String> for Binding {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Binding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (binding, rest) = parse(text, 0)?;
        if rest.trim().is_empty() {
            Ok(binding)
        } else {
            Err(format!("unexpected `{rest}` in binding `{text}`"))
        }
    }
}

/// Deeper nesting than any pass makes, and shallow enough for the stack.
const MAX_DEPTH: usize = 64;

fn parse(text: &str, depth: usize) -> Result<(Binding, &str), String> {
    if depth > MAX_DEPTH {
        return Err(format!("binding nested deeper than {MAX_DEPTH}"));
    }
    let text = text.trim_start();
    if text.starts_with('"') {
        let (name, length) = quoted(text)?;
        return Ok((Binding::Tensor(name), &text[length..]));
    }
    let (word, rest) = token(text)?;
    let Some(mut rest) = rest.trim_start().strip_prefix('(') else {
        return Ok((Binding::Tensor(word.to_owned()), rest));
    };
    let mut numbers = Vec::new();
    let mut parts = Vec::new();
    loop {
        let leading = if parts.is_empty() {
            token(rest).ok()
        } else {
            None
        };
        rest = match leading {
            Some((number, after)) if is_number(word, number, numbers.len()) => {
                numbers.push(number);
                after
            }
            _ => {
                let (part, after) = parse(rest, depth + 1)?;
                parts.push(part);
                after
            }
        };
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(')') {
            return Ok((build(word, &numbers, parts)?, after));
        }
        rest = rest
            .strip_prefix(',')
            .ok_or_else(|| format!("expected `,` or `)` before `{rest}`"))?;
    }
}

/// The name in quotes at the start of `text`, and how many bytes it takes.
fn quoted(text: &str) -> Result<(String, usize), String> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match stream.next() {
        Some(Ok(name)) => Ok((name, stream.byte_offset())),
        _ => Err(format!("expected a name in quotes before `{text}`")),
    }
}

/// Whether a tensor's name stands in a binding without quotes.
fn is_plain(name: &str) -> bool {
    let special =
        |c: char| matches!(c, '(' | ')' | ',' | '"') || c.is_whitespace() || c.is_control();
    !name.is_empty() && !name.contains(special)
}

/// Whether the operand at `position` of `call` is a number rather than a binding.
fn is_number(call: &str, text: &str, position: usize) -> bool {
    match call {
        "rows" => position < 2 && text.parse::<usize>().is_ok(),
        "scale" => position < 1 && text.parse::<f32>().is_ok(),
        _ => false,
    }
}

fn token(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim_start();
    let end = text.find(['(', ')', ',', ' ']).unwrap_or(text.len());
    if end == 0 {
        Err(format!("expected a name before `{text}`"))
    } else {
        Ok(text.split_at(end))
    }
}

fn build(call: &str, numbers: &[&str], mut parts: Vec<Binding>) -> Result<Binding, String> {
    let wrong = || {
        format!(
            "`{call}` does not take {} numbers and {} values",
            numbers.len(),
            parts.len()
        )
    };
    match (call, numbers, parts.len()) {
        ("concat", [], 1..) => Ok(Binding::Concat(parts)),
        ("rows", [start, end], 1) => {
            let bound = |text: &str| text.parse::<usize>().map_err(|error| error.to_string());
            let (start, end) = (bound(start)?, bound(end)?);
            if start > end {
                return Err(format!("rows {start}..{end} end before they start"));
            }
            Ok(Binding::Rows(start, end, Box::new(parts.remove(0))))
        }
        ("scale", [factor], 1) => {
            let factor = factor.parse::<f32>().map_err(|error| error.to_string())?;
            if !crate::ops::Scale::is_exact(factor) {
                return Err(format!("{factor} is not a power of two"));
            }
            Ok(Binding::Scale(factor, Box::new(parts.remove(0))))
        }
        _ => Err(wrong()),
    }
}
