//! What a command is about: a model by name, or a file that says itself what it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lxpod_passes::partition::Split;
use lxpod_passes::plan::{Plan, PlanError};
use lxpod_passes::{CompileError, CompileOptions, CompileReport, compile};
use lxpod_runtime::{Error, Model, out_of_memory};

use super::Global;
use super::auto::{self, Found};
use super::error::{CliError, Result};
use super::files;
use super::options::{PlanOptions, Use};
use super::output;
use super::rival::Rival;

/// The first bytes of every plan file.
const PLAN_MAGIC: &[u8] = b"lxpod-plan ";

/// What the first argument of a command names.
pub(crate) enum Subject {
    /// A model: a folder, a name in the cache, or the built-in one.
    Model(String),
    /// A plan file.
    Plan(PathBuf),
    /// A graph in text form.
    Graph(PathBuf),
    /// Tensors.
    Tensors(PathBuf),
}

impl Subject {
    /// What `argument` names: by extension, else, if it is a file, by its first bytes.
    pub(crate) fn of(argument: &Path) -> Result<Subject> {
        let is_file = argument.is_file();
        match argument
            .extension()
            .and_then(|extension| extension.to_str())
        {
            _ if argument.is_dir() => {}
            Some("plan") => return Ok(Subject::Plan(argument.into())),
            Some("lx") => return Ok(Subject::Graph(argument.into())),
            Some("safetensors") if is_file => return Ok(Subject::Tensors(argument.into())),
            _ if is_file && starts_with(argument, PLAN_MAGIC)? => {
                return Ok(Subject::Plan(argument.into()));
            }
            _ => {}
        }
        let name = argument.to_str().ok_or_else(|| {
            CliError::Usage(format!(
                "{}: a model's name must be UTF-8",
                argument.display()
            ))
        })?;
        Ok(Subject::Model(name.to_owned()))
    }
}

fn starts_with(path: &Path, magic: &[u8]) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| files::problem(path, "read", error))?;
    let read = file.take(magic.len() as u64).read_to_end(&mut start);
    read.map_err(|error| files::problem(path, "read", error))?;
    Ok(start == magic)
}

/// Reads a plan file.
pub(crate) fn read_plan(path: &Path) -> Result<Plan> {
    let bytes = files::read(path)?;
    Plan::from_bytes(&bytes).map_err(|error| match error {
        PlanError::File(problem) => CliError::Library(Error::InvalidFile {
            path: path.into(),
            field: "plan".to_owned(),
            problem,
            help: "make a plan with `lxpod compile MODEL -o FILE.plan`".to_owned(),
        }),
        other => other.into(),
    })
}

/// Compiles a model, saying on standard error what is done with `-v`; `observe` sees the graph
/// after each pass.
pub(crate) fn compile_model(
    model: &Model,
    options: &CompileOptions,
    global: &Global,
    observe: lxpod_passes::Observer<'_>,
) -> std::result::Result<(Plan, CompileReport), CompileError> {
    let (plan, report) = compile(&model.config, &model.name, options, observe)?;
    for pass in &report.passes {
        global.detail(&format!(
            "{:<14} {:>5} patches  {:>5} -> {:>5} nodes  {}",
            pass.name,
            pass.patches,
            pass.nodes_before,
            pass.nodes_after,
            output::seconds(pass.duration.as_secs_f64())
        ));
    }
    Ok((plan, report))
}

/// [`compile_model`], with an explanation of a plan that does not fit.
pub(crate) fn compile_or_explain(
    model: &Model,
    options: &CompileOptions,
    global: &Global,
    observe: lxpod_passes::Observer<'_>,
) -> Result<(Plan, CompileReport)> {
    let compiled = compile_model(model, options, global, observe);
    compiled.map_err(|error| explained(error, model, options))
}

/// Why a model could not be compiled; a plan that does not fit is explained.
pub(crate) fn explained(error: CompileError, model: &Model, options: &CompileOptions) -> CliError {
    let found = error
        .is_out_of_memory()
        .then(|| out_of_memory::explain(model, options))
        .flatten();
    match found {
        Some(found) => CliError::OutOfMemory(Box::new(found)),
        None => error.into(),
    }
}

/// A plan, and what compiling it gave beside it.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    /// How it is used.
    pub(crate) used: Use,
    /// What a plan that was compiled just now has.
    pub(crate) compiled: Option<Compiled>,
}

/// What compiling gave beside a plan.
pub(crate) struct Compiled {
    /// The time it took, that of the search included.
    pub(crate) seconds: f64,
    /// The split into stages.
    pub(crate) split: Split,
    /// What the plan is judged by: the compiler's own beside a placement by hand, a chain beside branches.
    pub(crate) rival: Option<Rival>,
    /// The search that found its options, if there was one.
    pub(crate) found: Option<Found>,
}

impl Planned {
    /// The seconds that compiling took.
    pub(crate) fn seconds(&self) -> Option<f64> {
        self.compiled.as_ref().map(|compiled| compiled.seconds)
    }

    /// What the plan is judged by, if it is.
    pub(crate) fn rival(&self) -> Option<&Rival> {
        self.compiled.as_ref()?.rival.as_ref()
    }

    /// The search that found its options, if there was one.
    pub(crate) fn found(&self) -> Option<&Found> {
        self.compiled.as_ref()?.found.as_ref()
    }
}

/// Compiles the model of that name.
pub(crate) fn compiled(
    name: &str,
    options: &PlanOptions,
    global: &Global,
    observe: lxpod_passes::Observer<'_>,
) -> Result<Planned> {
    let model = Model::open(name, options.seed.unwrap_or(0))?;
    let resolved = auto::resolve(options, &model, global)?;
    let (plan, report) = compile_or_explain(&model, &resolved.options, global, observe)?;
    let searching = resolved.found.as_ref().map_or(0.0, |found| found.seconds);
    Ok(Planned {
        plan,
        used: resolved.used,
        compiled: Some(Compiled {
            seconds: searching + report.duration.as_secs_f64(),
            split: report.split,
            rival: Rival::of(&model, &resolved.options, global),
            found: resolved.found,
        }),
    })
}

/// The plan that the argument of a command names or describes.
pub(crate) fn plan_of(argument: &Path, options: &PlanOptions, global: &Global) -> Result<Planned> {
    match Subject::of(argument)? {
        Subject::Plan(path) => {
            let plan = read_plan(&path)?;
            options.check_settled(&path, &plan)?;
            Ok(Planned {
                plan,
                used: options.usage()?,
                compiled: None,
            })
        }
        Subject::Model(name) => compiled(&name, options, global, &mut |_, _| {}),
        Subject::Graph(path) | Subject::Tensors(path) => Err(CliError::Usage(format!(
            "{}: is neither a model nor a plan; name a folder, lxmert-base, or a FILE.plan",
            path.display()
        ))),
    }
}
