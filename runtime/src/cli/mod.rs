//! The command line: one file per command, each thin: parse, call the library, print.
//!
//! Results go to standard output, everything else to standard error. With `--json` standard output
//! holds one JSON document and nothing else.

mod auto;
mod bench;
mod compare;
mod compile;
mod diff;
mod emit;
mod error;
mod files;
mod html;
mod inspect;
mod load;
mod machine;
mod made_up;
mod memory;
mod opt;
mod options;
mod output;
mod predicted;
mod quoted;
mod report;
mod rival;
mod run;
mod scopes;
mod simulate;
mod solve;
mod source;
mod sweep;
mod table;
mod train;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{
    ArgAction, Args, Command as Parsing, CommandFactory, FromArgMatches, Parser, Subcommand,
};
use lxpod_backends::cpu::kernels::Kernels;
use lxpod_runtime::Fault;

use error::{CliError, Result};

/// Compiles LXMERT for a pod of simulated IPUs, runs it on the CPU, and predicts it on the pod.
#[derive(Parser)]
#[command(
    name = "lxpod",
    disable_version_flag = true,
    arg_required_else_help = true,
    max_term_width = 110,
    after_help = "Exit codes: 1 compare found a difference, 2 your input, 3 not supported, 74 input/output failed,\n\
                  70 a defect of lxpod, 130 training was interrupted.\n\n\
                  Examples:\n  \
                  lxpod compile lxmert-base -o lxmert.plan\n  \
                  lxpod simulate lxmert.plan --gradient-accumulation 64 --report lxmert.html\n  \
                  lxpod inspect lxmert.plan --tile 3"
)]
struct Cli {
    #[command(flatten)]
    global: Global,

    /// Print the version; with -v also the CPU kernels in use
    #[arg(short = 'V', long)]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Use N threads; results do not depend on it [default: one per CPU]
    #[arg(long, global = true, value_name = "N", value_parser = options::threads)]
    pub(crate) threads: Option<usize>,

    /// Print no notes and no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more on standard error
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// Writes a line to standard error, unless `-q` was given.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            output::diagnose(text);
        }
    }

    /// Writes a line to standard error if `-v` was given.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose > 0 {
            output::diagnose(text);
        }
    }
}

#[derive(Subcommand)]
enum Command {
    Compile(Box<compile::Compile>),
    Run(Box<run::Run>),
    Compare(compare::Compare),
    Train(Box<train::Train>),
    Diff(diff::Diff),
    Simulate(Box<simulate::Simulate>),
    Inspect(Box<inspect::Inspect>),
    Bench(Box<bench::Bench>),
    Opt(opt::Opt),
    Solve(solve::Solve),
}

impl Command {
    fn run(self, global: &Global) -> Result<ExitCode> {
        match self {
            Command::Compare(command) => return command.run(global),
            Command::Compile(command) => command.run(global),
            Command::Run(command) => command.run(global),
            Command::Train(command) => command.run(global),
            Command::Diff(command) => command.run(global),
            Command::Bench(command) => command.run(global),
            Command::Simulate(command) => command.run(global),
            Command::Inspect(command) => command.run(global),
            Command::Opt(command) => command.run(global),
            Command::Solve(command) => command.run(global),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// The parser, whose options take negative numbers: what is out of range is told so by name.
fn numbers(parser: Parsing) -> Parsing {
    let named = |arg: clap::Arg| match arg.is_positional() || !arg.get_action().takes_values() {
        true => arg,
        false => arg.allow_negative_numbers(true),
    };
    parser.mut_args(named).mut_subcommands(numbers)
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let parsed = numbers(Cli::command()).try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        output::diagnose(&format!(
            "error: internal error: {panic}\n  help: this is a defect of lxpod, please report it"
        ));
    }));
    let as_json = cli.global.json;
    let Ok(result) = catch_unwind(AssertUnwindSafe(|| dispatch(cli))) else {
        return ExitCode::from(Fault::Internal.exit_code());
    };
    match result {
        Ok(code) => code,
        Err(CliError::ClosedPipe) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(document) = error.document().filter(|_| as_json)
                && let Err(failed) = output::json(&document)
            {
                return ExitCode::from(failed.exit_code());
            }
            output::diagnose(&match &error {
                CliError::Shown(message) | CliError::Interrupted(message) => message.clone(),
                other => format!("{}: {other}", output::error_label()),
            });
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Some(command) if !cli.version => command.run(&cli.global),
        None if !cli.version => {
            output::diagnose(&Cli::command().render_help().to_string());
            Err(CliError::Usage("a command is needed".to_owned()))
        }
        _ => version(&cli.global).map(|()| ExitCode::SUCCESS),
    }
}

fn version(global: &Global) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let kernels = || Kernels::select().map_err(|error| CliError::Usage(error.to_string()));
    if global.json {
        let kernels = kernels()?.name();
        return output::json(&serde_json::json!({"version": version, "kernels": kernels}));
    }
    let mut text = format!("lxpod {version}\n");
    if global.verbose > 0 {
        let all: Vec<&str> = Kernels::all_supported().map(Kernels::name).collect();
        text += &format!(
            "kernels  {} (this CPU runs {})\n",
            kernels()?.name(),
            all.join(", ")
        );
    }
    output::print(&text)
}
