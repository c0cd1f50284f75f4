//! Small graphs in text form, before and after passes.

use lxpod_ir::Graph;
use lxpod_ir::text::{parse, print};
use lxpod_passes::{Manager, Options, Precision, find};

const SPACES: &str = "  rows sample = 3
  rows question = 2
  rows text = 12 by sample, 4 each
  rows box = 9 by sample, 3 each
  rows qtext = 8 by question, 4 each
";

fn graph(lines: &str) -> Graph {
    parse(&format!("graph @test {{\n{SPACES}{lines}\n}}\n")).unwrap()
}

/// The lines of a graph, without the row spaces it started with.
fn lines(graph: &Graph) -> String {
    let text = print(graph);
    let own = text
        .lines()
        .filter(|line| line.starts_with("  ") && !SPACES.contains(line));
    own.map(str::trim).collect::<Vec<_>>().join("\n")
}

fn trimmed(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// The pass makes `expected` of `before`, in fp32, and no bit of the outputs changes.
#[track_caller]
pub(crate) fn becomes(pass: &str, before: &str, expected: &str) {
    let before = graph(before);
    let after = super::exact(&before, pass);
    assert_eq!(lines(&after), trimmed(expected));
}

/// The pass finds nothing to do, in fp32.
#[track_caller]
pub(crate) fn stays(pass: &str, lines: &str) {
    becomes(pass, lines, lines);
}

/// The pass makes `expected` of `before`, in mixed precision.
#[track_caller]
pub(crate) fn in_mixed(pass: &str, before: &str, expected: &str) {
    let mut graph = graph(before);
    let options = Options {
        precision: Precision::Mixed,
    };
    let run = Manager::new(options).run(&[find(pass).unwrap()], &mut graph);
    run.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(lines(&graph), trimmed(expected));
}
