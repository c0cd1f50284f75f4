//! Errors of reading and writing files, sorted by whose fault they are.
//!
//! Every message names the file, the tensor or field, and the way out, and fits on one screen: text that comes from
//! a file is escaped and shortened by [`quote`].

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use lxpod_backends::BackendError;
use lxpod_ir::front::FrontError;
use lxpod_passes::CompileError;
use lxpod_passes::plan::PlanError;
use lxpod_passes::solve::partition::PartitionError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; decides the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The user's input is missing, wrong, truncated or hostile.
    Input,
    /// The input is well formed but asks for something lxpod does not do.
    Unsupported,
    /// The operating system failed: disk full, permissions, a broken device.
    Io,
    /// A defect of lxpod.
    Internal,
}

impl Fault {
    /// The exit code of a process that ends with this fault: 2, 3, 74 or 70.
    pub fn exit_code(self) -> u8 {
        match self {
            Fault::Input => 2,
            Fault::Unsupported => 3,
            Fault::Io => 74,
            Fault::Internal => 70,
        }
    }
}

/// Everything that can go wrong between a user's files and the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// User input: a file or folder that is needed does not exist or is of the wrong kind.
    #[error("{}: {problem}\n  help: {help}", path.display())]
    MissingFile {
        /// The path that was looked for.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The way out.
        help: String,
    },
    /// User input: a file that breaks its format or holds values that make no sense.
    #[error("{}: {field}: {problem}\n  help: {help}", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// The tensor, header or field inside it.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// The way out.
        help: String,
    },
    /// User input: the tensors of a checkpoint are not those the model needs.
    #[error(transparent)]
    Mismatch(Box<Mismatch>),
    /// User input: a model name that is neither a folder nor in the local Hugging Face cache.
    #[error(
        "model {name}: {problem}\n  looked in: {}\n  help: {help}",
        join_paths(looked)
    )]
    ModelNotFound {
        /// The name as given, quoted.
        name: String,
        /// Why it was not found.
        problem: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
        /// The way out.
        help: String,
    },
    /// Unsupported: a well-formed file that uses a feature lxpod does not read.
    #[error("{}: {field}: {problem}\n  help: {help}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor, header or field inside it.
        field: String,
        /// What is not supported.
        problem: String,
        /// The way out.
        help: String,
    },
    /// I/O: the operating system refused or failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted, as a verb.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// User input: an option that does not fit the model, the target or the data.
    #[error("{flag}: {message}")]
    Option {
        /// The command line flag.
        flag: &'static str,
        /// What is wrong and what would do.
        message: String,
    },
    /// Compiling failed; whose fault it is depends on why.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Reading a plan failed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Running failed.
    #[error(transparent)]
    Backend(BackendError),
    /// Our bug: a caller inside lxpod broke a contract.
    #[error("internal error: {what}\n  help: this is a defect of lxpod, please report it")]
    Internal {
        /// The broken contract.
        what: String,
    },
}

impl Error {
    /// Whose fault this error is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::MissingFile { .. }
            | Error::InvalidFile { .. }
            | Error::Mismatch(_)
            | Error::ModelNotFound { .. }
            | Error::Option { .. } => Fault::Input,
            Error::Compile(error) => compile_fault(error),
            Error::Plan(error) => plan_fault(error),
            Error::Backend(error) => backend_fault(error),
            Error::Unsupported { .. } => Fault::Unsupported,
            Error::Io { .. } => Fault::Io,
            Error::Internal { .. } => Fault::Internal,
        }
    }

    /// [`Error::InvalidFile`] of `field` in `path`.
    pub(crate) fn invalid(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Error::InvalidFile {
            path: path.into(),
            field: field.into(),
            problem: problem.into(),
            help: help.into(),
        }
    }

    /// [`Error::Unsupported`] of `field` in `path`.
    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Error::Unsupported {
            path: path.into(),
            field: field.into(),
            problem: problem.into(),
            help: help.into(),
        }
    }

    /// [`Error::MissingFile`] at `path`.
    pub(crate) fn missing(
        path: &Path,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Error::MissingFile {
            path: path.into(),
            problem: problem.into(),
            help: help.into(),
        }
    }

    /// The error of opening or reading an input file: a path that does not exist, or is a folder, is the user's
    /// input; a file that ends early is an invalid file; the rest is I/O.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::missing(path, "no such file", "check the path")
            }
            io::ErrorKind::IsADirectory => {
                Error::missing(path, "is a folder, not a file", "name a file")
            }
            io::ErrorKind::UnexpectedEof => Error::invalid(
                path,
                "contents",
                "the file ends before the data its header announces",
                "it was cut short or changed while being read; fetch it again",
            ),
            _ => Error::Io {
                path: path.into(),
                action: "read",
                source,
            },
        }
    }

    /// [`Error::Internal`]: a contract broken inside lxpod.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Error::Internal { what: what.into() }
    }
}

impl From<BackendError> for Error {
    /// An error of reading weights is this crate's own again.
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Source(source) => match source.downcast::<Error>() {
                Ok(own) => *own,
                Err(source) => Error::Backend(BackendError::Source(source)),
            },
            other => Error::Backend(other),
        }
    }
}

fn compile_fault(error: &CompileError) -> Fault {
    match error {
        CompileError::Front(FrontError::NotSupported { .. }) => Fault::Unsupported,
        CompileError::Front(FrontError::Internal(_)) | CompileError::Pass(_) => Fault::Internal,
        CompileError::Front(_) | CompileError::Option { .. } => Fault::Input,
        CompileError::Plan(error) => plan_fault(error),
    }
}

fn plan_fault(error: &PlanError) -> Fault {
    match error {
        PlanError::OutOfMemory { .. }
        | PlanError::Partition(PartitionError::Memory { .. } | PartitionError::Invalid(_))
        | PlanError::File(_) => Fault::Input,
        PlanError::Unsupported(_) => Fault::Unsupported,
        PlanError::Partition(_) => Fault::Internal,
    }
}

fn backend_fault(error: &BackendError) -> Fault {
    match error {
        BackendError::Data(_) => Fault::Input,
        BackendError::Unsupported(_) => Fault::Unsupported,
        BackendError::Source(_) | BackendError::Internal(_) => Fault::Internal,
    }
}

/// How a checkpoint differs from what a model needs; all differences at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The checkpoint.
    pub path: PathBuf,
    /// Needed tensors that the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors with another shape than needed: name, needed, found.
    pub misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Needed tensors whose element type cannot serve as a weight: name, type.
    pub not_weights: Vec<(String, String)>,
    /// Tensors of LXMERT that this configuration has no place for.
    pub surplus: Vec<String>,
    /// Tensors that no LXMERT class has.
    pub unknown: Vec<String>,
}

impl Mismatch {
    /// How many differences the message lists before it only counts them.
    const LISTED: usize = 12;

    /// The number of differences.
    pub fn len(&self) -> usize {
        self.missing.len()
            + self.misshaped.len()
            + self.not_weights.len()
            + self.surplus.len()
            + self.unknown.len()
    }

    /// True when there is no difference.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let missing = self
            .missing
            .iter()
            .map(|n| format!("missing    {}", quote(n)));
        let misshaped = self.misshaped.iter().map(|(n, want, have)| {
            format!(
                "shape      {}: the model needs {want:?}, the file has {}",
                quote(n),
                quote_shape(have)
            )
        });
        let types = self
            .not_weights
            .iter()
            .map(|(n, t)| format!("type       {}: {t} is not a weight type", quote(n)));
        let surplus = self
            .surplus
            .iter()
            .map(|n| format!("surplus    {}", quote(n)));
        let unknown = self
            .unknown
            .iter()
            .map(|n| format!("unknown    {}", quote(n)));
        missing
            .chain(misshaped)
            .chain(types)
            .chain(surplus)
            .chain(unknown)
    }

    fn help(&self) -> &'static str {
        if self.missing.len() + self.misshaped.len() + self.surplus.len() > 0 {
            "compare config.json with the checkpoint: layer counts, sizes, num_qa_labels and the task (--task) must be its own"
        } else if !self.unknown.is_empty() {
            "is this an LXMERT checkpoint? Remove tensors that do not belong to the model"
        } else {
            "store weights as F32, F16 or BF16"
        }
    }
}

impl std::error::Error for Mismatch {}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} tensors do not fit the model:",
            self.path.display(),
            self.len()
        )?;
        for line in self.lines().take(Self::LISTED) {
            write!(f, "\n  {line}")?;
        }
        if self.len() > Self::LISTED {
            write!(f, "\n  and {} more", self.len() - Self::LISTED)?;
        }
        write!(f, "\n  help: {}", self.help())
    }
}

/// `text` in backquotes, control characters escaped, cut to about 100 characters.
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 100;
    let mut out: String = text
        .chars()
        .take(SHOWN)
        .flat_map(|c| c.escape_debug())
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    format!("`{out}`")
}

/// A shape as `[2, 3]`, cut after 8 axes.
pub(crate) fn quote_shape(shape: &[usize]) -> String {
    const SHOWN: usize = 8;
    if shape.len() <= SHOWN {
        return format!("{shape:?}");
    }
    format!("{:?}… ({} axes)", &shape[..SHOWN], shape.len())
}

fn join_paths(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "nowhere: no cache folder is known (set HF_HOME)".into();
    }
    let shown: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    shown.join(", ")
}
