//! Errors with their place in the source.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::ParsedLines;
use crate::verify::{VerifyError, VerifyErrors};

/// Why a text is no graph, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What is wrong.
    pub message: String,
    /// The bytes of the source it is about.
    pub span: Range<usize>,
    /// The line of the first byte, from 1.
    pub line: usize,
    /// The column of the first byte in characters, from 1.
    pub column: usize,
}

impl ParseError {
    pub(super) fn new(source: &str, span: Range<usize>, message: String) -> Self {
        let span = clamp(source, span);
        let before = &source[..span.start];
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before[line_start(before)..].chars().count() + 1;
        ParseError {
            message,
            span,
            line,
            column,
        }
    }

    /// The message under the source line it is about.
    pub fn render(&self, path: &str, source: &str) -> String {
        snippet(path, source, self.span.clone(), &self.message)
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}

impl std::error::Error for ParseError {}

/// Every error of the verifier under the line of the source it is about.
pub fn render_verify_errors(
    path: &str,
    source: &str,
    lines: &ParsedLines,
    errors: &VerifyErrors,
) -> String {
    let place = |error: &VerifyError| {
        let node = error.node.and_then(|node| lines.node(node));
        node.or_else(|| error.output.and_then(|output| lines.output(output)))
            .unwrap_or_else(|| lines.name())
    };
    let rendered = errors.0.iter();
    rendered
        .map(|error| snippet(path, source, place(error), &error.message))
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// Shows only the first line that `span` touches, so that rendering never scans the whole source.
fn snippet(path: &str, source: &str, span: Range<usize>, message: &str) -> String {
    let span = clamp(source, span);
    let start = line_start(&source[..span.start]);
    let end = source[span.start..]
        .find('\n')
        .map_or(source.len(), |length| span.start + length);
    let number = source[..start]
        .bytes()
        .filter(|&byte| byte == b'\n')
        .count()
        + 1;
    let marked = span.start - start..span.end.min(end) - start;
    let text = source[start..end].trim_end_matches('\r');
    let marked = marked.start.min(text.len())..marked.end.min(text.len());
    let group = Level::ERROR.primary_title(message).element(
        Snippet::source(text)
            .path(path)
            .line_start(number)
            .annotation(AnnotationKind::Primary.span(marked)),
    );
    Renderer::plain().render(&[group])
}

fn line_start(before: &str) -> usize {
    before.rfind('\n').map_or(0, |newline| newline + 1)
}

/// The span moved back to character boundaries inside the source.
fn clamp(source: &str, span: Range<usize>) -> Range<usize> {
    let boundary = |at: usize| {
        let mut at = at.min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(span.start);
    start..boundary(span.end).max(start)
}
