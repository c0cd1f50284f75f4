//! One test for each `.lx` file in the folders of `tests/filetests`.
//!
//! The first line says what is tested, the second may set an option of passes, the graph follows, and
//! then what is expected:
//!
//! ```text
//! ; test: parse                        or: verify, or passes in order: canonicalise, dce, or: pipeline
//! ; set precision=fp32                 mixed where nothing is set; or: recompute=layer
//! ; other comments
//! graph @g { … }
//! ; expect
//! graph @g { … }                       as it is printed
//! ```
//!
//! An error is expected on its line instead: `%1 = add %0 : f32[2] ; error: takes operands`. Files
//! of `parse` and `verify` with such lines have no `; expect`; neither need valid files of `verify`.
//!
//! `BLESS=1 cargo test --test filetests` writes what came out below `; expect`.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};
use lxpod_ir::text::{ParsedLines, parse_with_lines, print, render_verify_errors};
use lxpod_ir::{Graph, verify};
use lxpod_passes::{Manager, Options, PIPELINE, Recompute, find};

const EXPECT: &str = "\n; expect\n";

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let trials = files(&root).into_iter().map(|path| {
        let name = path.strip_prefix(&root).unwrap_or(&path);
        let name = name.with_extension("").to_string_lossy().replace('\\', "/");
        Trial::test(name, move || test(&path).map_err(Failed::from))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Every `.lx` file below a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder of tests is readable") {
        let path = entry.expect("the folder of tests is readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "lx") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn test(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (source, expected) = match text.split_once(EXPECT) {
        Some((source, expected)) => (format!("{source}\n"), Some(expected)),
        None => (text.clone(), None),
    };
    let header = source.lines().next().unwrap_or_default();
    let names = header
        .strip_prefix("; test:")
        .ok_or("the first line must begin with `; test:`")?;
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    let outcome = run(&path.to_string_lossy(), &source, &names)?;
    match outcome {
        Outcome::Graph(printed) if names == ["verify"] && expected.is_none() => {
            check_errors(&source, &[], &printed)
        }
        Outcome::Graph(printed) => {
            check_errors(&source, &[], &printed)?;
            check_text(path, &source, expected, &printed)
        }
        Outcome::Errors(errors, rendered) => check_errors(&source, &errors, &rendered),
    }
}

enum Outcome {
    /// What came out, printed.
    Graph(String),
    /// The byte each error is about and its message; and all of them rendered.
    Errors(Vec<(usize, String)>, String),
}

fn run(path: &str, source: &str, names: &[&str]) -> Result<Outcome, String> {
    let (graph, lines) = match parse_with_lines(source) {
        Ok(parsed) => parsed,
        Err(error) if names == ["parse"] => {
            let rendered = error.render(path, source);
            return Ok(Outcome::Errors(
                vec![(error.span.start, error.message)],
                rendered,
            ));
        }
        Err(error) => return Err(error.render(path, source)),
    };
    match names {
        ["parse"] => Ok(Outcome::Graph(print(&graph))),
        ["verify"] => Ok(verified(path, source, &graph, &lines)),
        passes => {
            let graph = run_passes(passes, options(source)?, graph)?;
            Ok(Outcome::Graph(print(&graph)))
        }
    }
}

fn verified(path: &str, source: &str, graph: &Graph, lines: &ParsedLines) -> Outcome {
    let Err(errors) = verify(graph) else {
        return Outcome::Graph(print(graph));
    };
    let place = |error: &lxpod_ir::VerifyError| {
        let node = error.node.and_then(|node| lines.node(node));
        let span = node.or_else(|| error.output.and_then(|output| lines.output(output)));
        span.unwrap_or_else(|| lines.name()).start
    };
    let found = errors.0.iter();
    let found = found.map(|error| (place(error), error.message.clone()));
    let rendered = render_verify_errors(path, source, lines, &errors);
    Outcome::Errors(found.collect(), rendered)
}

/// What the second line sets.
fn options(source: &str) -> Result<Options, String> {
    let second = source.lines().nth(1).unwrap_or_default();
    let mut options = Options::default();
    if let Some(setting) = second.strip_prefix("; set ") {
        match setting.split_once('=') {
            Some(("precision", value)) => options.precision = value.parse()?,
            Some(("recompute", "layer")) => options.recompute = Recompute::Layer,
            _ => {
                return Err(format!(
                    "there is no option `{setting}`; there are precision=fp32 and recompute=layer"
                ));
            }
        }
    }
    Ok(options)
}

/// Runs passes by name, as the compiler does; `pipeline` names the standard ones. The graph is verified
/// before the first and after each.
fn run_passes(names: &[&str], options: Options, mut graph: Graph) -> Result<Graph, String> {
    let mut passes = Vec::new();
    for name in names {
        match *name {
            "pipeline" => passes.extend(PIPELINE),
            name => passes.push(find(name).map_err(|error| error.to_string())?),
        }
    }
    Manager::new(options)
        .run(&passes, &mut graph)
        .map_err(|error| error.to_string())?;
    Ok(graph.compacted())
}

/// Each `; error:` has its error on that line, and each error its `; error:`.
fn check_errors(source: &str, errors: &[(usize, String)], rendered: &str) -> Result<(), String> {
    let mut left: Vec<(usize, &str)> = errors
        .iter()
        .map(|(at, message)| (source[..*at].matches('\n').count(), message.as_str()))
        .collect();
    for (number, line) in source.lines().enumerate() {
        for wanted in line.split("; error:").skip(1).map(str::trim) {
            let found = left
                .iter()
                .position(|(at, message)| *at == number && message.contains(wanted));
            match found {
                Some(found) => drop(left.remove(found)),
                None => {
                    return Err(format!(
                        "line {}: no error with `{wanted}`; got\n{rendered}",
                        number + 1
                    ));
                }
            }
        }
    }
    match left.as_slice() {
        [] => Ok(()),
        _ => Err(format!("errors that were not expected among\n{rendered}")),
    }
}

fn check_text(
    path: &Path,
    source: &str,
    expected: Option<&str>,
    printed: &str,
) -> Result<(), String> {
    if expected == Some(printed) {
        return Ok(());
    }
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        let text = format!("{}{EXPECT}{printed}", source.trim_end());
        return fs::write(path, text).map_err(|error| error.to_string());
    }
    Err(format!(
        "expected\n{}\ngot\n{printed}\nBLESS=1 accepts it",
        expected.unwrap_or("nothing yet")
    ))
}
