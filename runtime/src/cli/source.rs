//! What a command is about: a model by name, or a file that says itself what it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lxpod_passes::plan::{Plan, PlanError};
use lxpod_passes::{CompileOptions, CompileReport, compile};
use lxpod_runtime::{Error, Model};

use super::Global;
use super::error::{CliError, Result};
use super::files;
use super::options::{PlanOptions, Use};
use super::{auto, output};

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
) -> Result<(Plan, CompileReport)> {
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

/// A plan, and how it is used.
pub(crate) struct Planned {
    /// The plan.
    pub(crate) plan: Plan,
    /// How it is used.
    pub(crate) used: Use,
    /// The seconds compiling took, if it was compiled just now.
    pub(crate) seconds: Option<f64>,
    /// The search that found its options, if there was one.
    pub(crate) found: Option<auto::Found>,
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
                seconds: None,
                found: None,
            })
        }
        Subject::Model(name) => {
            let model = Model::open(&name, options.seed.unwrap_or(0))?;
            let resolved = auto::resolve(options, &model, global)?;
            let (plan, report) = compile_model(&model, &resolved.options, global, &mut |_, _| {})?;
            Ok(Planned {
                plan,
                used: resolved.used,
                seconds: Some(report.duration.as_secs_f64()),
                found: resolved.found,
            })
        }
        Subject::Graph(path) | Subject::Tensors(path) => Err(CliError::Usage(format!(
            "{}: is neither a model nor a plan; name a folder, lxmert-base, or a FILE.plan",
            path.display()
        ))),
    }
}
