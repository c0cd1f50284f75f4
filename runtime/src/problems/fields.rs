//! JSON values that know where in the file they stand.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::quote;
use crate::{Error, Result};

/// The largest file that is read, in bytes.
pub(super) const LARGEST: u64 = 1 << 30;

/// A value and its place, such as `nodes[3].size`.
pub(super) struct Field<'a> {
    path: &'a Path,
    place: String,
    value: &'a Value,
}

/// The text of a file of at most [`LARGEST`] bytes.
///
/// # Errors
/// The file cannot be read, is too large, or is not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(|error| Error::reading(path, error))?;
    if size.len() > LARGEST {
        let problem = format!("has {} bytes; at most {LARGEST} are read", size.len());
        let help = "a problem of that size is not solved exactly; contract it first";
        return Err(Error::invalid(path, "contents", problem, help));
    }
    let bytes = std::fs::read(path).map_err(|error| Error::reading(path, error))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid(path, "contents", "is not UTF-8 text", "name a text file"))
}

/// Parses a JSON document.
///
/// # Errors
/// It is none; the message names line and column.
pub(super) fn parse(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        let help = if error.is_eof() {
            "the file was cut short; fetch it again"
        } else {
            "make it one JSON object; NaN, Infinity and numbers beyond 1.8e308 are no JSON"
        };
        Error::invalid(path, "contents", format!("is not JSON: {error}"), help)
    })
}

impl<'a> Field<'a> {
    /// The document itself.
    pub(super) fn root(path: &'a Path, value: &'a Value) -> Self {
        let place = String::new();
        Field { path, place, value }
    }

    /// An error about this value.
    pub(super) fn error(&self, problem: impl Into<String>, help: &str) -> Error {
        let place = match self.place.as_str() {
            "" => "contents".to_owned(),
            place => place.to_owned(),
        };
        Error::invalid(self.path, place, problem, help)
    }

    fn object(&self) -> Result<&'a Map<String, Value>> {
        let wrong = || self.error(format!("is {}, not an object", kind(self.value)), EXPECTED);
        self.value.as_object().ok_or_else(wrong)
    }

    /// The member `name`, if it is there and not null.
    pub(super) fn find(&self, name: &str) -> Result<Option<Field<'a>>> {
        let dot = if self.place.is_empty() { "" } else { "." };
        let place = format!("{}{dot}{name}", self.place);
        let found = self.object()?.get(name).filter(|value| !value.is_null());
        Ok(found.map(|value| Field {
            path: self.path,
            place,
            value,
        }))
    }

    /// The member `name`.
    pub(super) fn member(&self, name: &str) -> Result<Field<'a>> {
        let missing = || self.error(format!("has no `{name}`"), EXPECTED);
        self.find(name)?.ok_or_else(missing)
    }

    /// The entries of a list.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = Field<'a>>> {
        let wrong = || self.error(format!("is {}, not a list", kind(self.value)), EXPECTED);
        let list = self.value.as_array().ok_or_else(wrong)?;
        let (path, place) = (self.path, self.place.clone());
        Ok(list.iter().enumerate().map(move |(at, value)| Field {
            path,
            place: format!("{place}[{at}]"),
            value,
        }))
    }

    /// A finite number of at least 0.
    pub(super) fn amount(&self) -> Result<f64> {
        let wrong = || {
            let found = match self.value {
                Value::Number(number) => number.to_string(),
                other => kind(other).to_owned(),
            };
            let problem = format!("is {found}, not a number of at least 0");
            self.error(problem, "times, costs and sizes are finite and at least 0")
        };
        let number = self.value.as_f64().filter(|n| n.is_finite() && *n >= 0.0);
        number.ok_or_else(wrong)
    }

    /// A whole number of at most `most`.
    pub(super) fn count(&self, most: usize) -> Result<usize> {
        let number = self.value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.filter(|&n| n <= most).ok_or_else(|| {
            let problem = format!("is {}, not a whole number up to {most}", shown(self.value));
            self.error(problem, EXPECTED)
        })
    }

    /// An integer that names something.
    pub(super) fn id(&self) -> Result<i64> {
        let wrong = || {
            self.error(
                format!("is {}, not an integer", shown(self.value)),
                EXPECTED,
            )
        };
        self.value.as_i64().ok_or_else(wrong)
    }

    /// `true`, `false`, 1 or 0.
    pub(super) fn flag(&self) -> Result<bool> {
        match (self.value.as_bool(), self.value.as_i64()) {
            (Some(flag), _) => Ok(flag),
            (None, Some(number @ (0 | 1))) => Ok(number == 1),
            (None, _) => {
                let problem = format!("is {}, neither true nor false", shown(self.value));
                Err(self.error(problem, EXPECTED))
            }
        }
    }
}

const EXPECTED: &str = "see `lxpod solve partition --help` for the format";

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => quote(text),
        other => kind(other).to_owned(),
    }
}
