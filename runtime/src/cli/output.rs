//! Standard output and standard error.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::error::{CliError, Result};

/// Headings.
pub(crate) const HEADING: Style = Style::new().bold();
/// What matters most in a line.
pub(crate) const STRONG: Style = AnsiColor::Cyan.on_default();

/// `text` in a style; terminals show it, other outputs get plain text.
pub(crate) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// The word before an error message.
pub(crate) fn error_label() -> String {
    styled(AnsiColor::Red.on_default().bold(), "error")
}

/// Writes text to standard output, without styles if that is no terminal or `NO_COLOR` is set.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a JSON document and a newline to standard output.
pub(crate) fn json(document: &Value) -> Result<()> {
    print(&format!("{document:#}\n"))
}

/// Writes a line to standard error; that failing is nothing anyone could be told.
pub(crate) fn diagnose(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

fn written(result: io::Result<()>) -> Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::ClosedPipe,
        _ => CliError::Output(error),
    })
}

/// A number with its thousands apart: `1,842`.
pub(crate) fn grouped(number: impl Into<u128>) -> String {
    let digits = number.into().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves at least 1: `624.0 KiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 || unit == "GiB" {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    String::new()
}

/// A count in the largest decimal unit that leaves at least 1: `207.9 M`.
pub(crate) fn count(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["", " k", " M", " G", " T"] {
        if value < 1000.0 || unit == " T" {
            return if unit.is_empty() {
                number.to_string()
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    String::new()
}

/// A time in a readable unit: `1.25 ms`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.3} µs", s * 1e6),
    }
}

/// A share in percent: `93.8 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `1 stage`, `2 stages`.
pub(crate) fn plural(number: usize, one: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {one}{ending}", grouped(number as u128))
}
