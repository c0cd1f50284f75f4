//! Reading typed fields out of a JSON object, with errors that name the field and the fix.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::FrontError;

/// The fields of a configuration.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a JSON object. Of fields given twice the last counts, as in Python.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FrontError> {
        let value = serde_json::from_slice(bytes).map_err(|error| explain(bytes, &error))?;
        match value {
            Value::Object(map) => Ok(Fields(map)),
            other => Err(FrontError::Json {
                line: 1,
                message: format!("a configuration is a JSON object, this is {}", show(&other)),
            }),
        }
    }

    /// A field, whatever it holds.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A whole number in `range`.
    pub(super) fn size(
        &self,
        name: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, FrontError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| range.contains(size)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            let message = format!(
                "is {}; it must be a whole number from {least} to {most} (Transformers' default is {default})",
                show(value)
            );
            FrontError::field(name, message)
        })
    }

    /// A real number that `accept`s, of which `rule` says what it must be.
    pub(super) fn number(
        &self,
        name: &str,
        default: f64,
        rule: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64, FrontError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        value
            .as_f64()
            .filter(|&number| accept(number))
            .ok_or_else(|| {
                let message = format!(
                    "is {}; it must be {rule} (Transformers' default is {default})",
                    show(value)
                );
                FrontError::field(name, message)
            })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, FrontError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                let message = format!("is {}; it must be true or false", show(other));
                Err(FrontError::field(name, message))
            }
        }
    }
}

/// A value as it is quoted in an error: its JSON text, shortened.
pub(super) fn show(value: &Value) -> String {
    const LONGEST: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// A syntax error, with a hint where Python's extensions of JSON are the cause.
fn explain(bytes: &[u8], error: &serde_json::Error) -> FrontError {
    let line = error.line().max(1);
    let start = match line {
        1 => 0,
        _ => bytes
            .iter()
            .enumerate()
            .filter(|&(_, &byte)| byte == b'\n')
            .nth(line - 2)
            .map_or(bytes.len(), |(index, _)| index + 1),
    };
    let at = (start + error.column().saturating_sub(1)).min(bytes.len());
    let message = match python_number(&bytes[at.saturating_sub(1)..]) {
        Some(word) => {
            let field = field_before(&bytes[..at]);
            let field = field.map_or("a field".to_owned(), |name| format!("`{name}`"));
            format!("{field} is {word}, which is no JSON number; write a finite number")
        }
        None => format!("not valid JSON: {error}"),
    };
    FrontError::Json { line, message }
}

/// The word at, or one byte after, the start of `rest`, that Python writes for a float that JSON
/// does not have.
fn python_number(rest: &[u8]) -> Option<&'static str> {
    let words = ["-Infinity", "Infinity", "NaN"];
    let starts = |from: &[u8]| {
        words
            .into_iter()
            .find(|word| from.starts_with(word.as_bytes()))
    };
    starts(rest).or_else(|| starts(rest.get(1..)?))
}

/// The name in quotes before the last colon.
fn field_before(bytes: &[u8]) -> Option<String> {
    let colon = bytes.iter().rposition(|&byte| byte == b':')?;
    let name = bytes[..colon].trim_ascii_end().strip_suffix(b"\"")?;
    let quote = name.iter().rposition(|&byte| byte == b'"')?;
    Some(String::from_utf8_lossy(&name[quote + 1..]).into_owned())
}
