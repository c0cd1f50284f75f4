//! `lxpod opt`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use lxpod_ir::text::{self, ParsedLines};
use lxpod_ir::{Graph, verify};
use lxpod_passes::{Manager, Options, PIPELINE, Pass, PassError, Precision, Report, find};
use serde_json::json;

use super::error::{CliError, Result};
use super::{Global, files, output};

/// Run passes on a graph in text form and print the result
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lxpod opt graph.lx\n  \
    lxpod opt graph.lx --passes canonicalise,cse,dce\n  \
    lxpod compile lxmert-base -q --emit ir | lxpod opt - --verify")]
pub(crate) struct Opt {
    /// The graph; `-` reads standard input
    #[arg(value_name = "FILE.lx")]
    file: PathBuf,

    /// The passes to run, in order [default: the compiler's; none with --verify]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    passes: Option<Vec<String>>,

    /// Check the graph; runs only the passes that are named
    #[arg(long)]
    verify: bool,

    /// What the pass `precision` does: fp32 or mixed
    #[arg(long, default_value = "mixed")]
    precision: Precision,
}

impl Opt {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let passes = self.resolved_passes()?;
        let (mut graph, ..) = read_graph(&self.file)?;
        let report = run_passes(&passes, &mut graph, self.precision)?;
        for pass in &report.passes {
            global.detail(&format!(
                "{:<14} {:>5} patches  {:>5} -> {:>5} nodes",
                pass.name, pass.patches, pass.nodes_before, pass.nodes_after
            ));
        }
        if self.verify {
            global.note(&format!(
                "verified: {}",
                output::plural(graph.len(), "node")
            ));
        }
        if global.json {
            return output::json(&json!({"graph": graph.to_string(), "passes": report.passes}));
        }
        output::print(&graph.to_string())
    }

    fn resolved_passes(&self) -> Result<Vec<&'static Pass>> {
        let Some(names) = &self.passes else {
            return Ok(if self.verify {
                Vec::new()
            } else {
                PIPELINE.to_vec()
            });
        };
        let named = names
            .iter()
            .map(|name| name.trim())
            .filter(|name| !name.is_empty());
        let found = named.map(|name| {
            find(name).map_err(|error| CliError::option("--passes", error.to_string()))
        });
        found.collect()
    }
}

/// Reads and verifies a graph; errors show the line they are about.
pub(crate) fn read_graph(path: &Path) -> Result<(Graph, String, ParsedLines)> {
    let source = if path == Path::new("-") {
        read_stdin()?
    } else {
        files::read_text(path)?
    };
    let shown = path.display().to_string();
    let parsed = text::parse_with_lines(&source);
    let (graph, lines) = parsed.map_err(|error| CliError::Shown(error.render(&shown, &source)))?;
    verify(&graph).map_err(|errors| {
        CliError::Shown(text::render_verify_errors(&shown, &source, &lines, &errors))
    })?;
    Ok((graph, source, lines))
}

fn read_stdin() -> Result<String> {
    let mut source = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut source);
    read.map_err(|error| CliError::Usage(format!("cannot read standard input: {error}")))?;
    Ok(source)
}

fn run_passes(passes: &[&Pass], graph: &mut Graph, precision: Precision) -> Result<Report> {
    let run = Manager::new(Options {
        precision,
        ..Options::default()
    })
    .run(passes, graph);
    run.map_err(|error| match error {
        PassError::Input(_) => CliError::Usage(error.to_string()),
        PassError::Invalid { .. } | PassError::Refused { .. } | PassError::Unsettled { .. } => {
            CliError::Internal(error.to_string())
        }
    })
}
