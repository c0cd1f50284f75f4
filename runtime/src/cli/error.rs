//! What ends a command early.

use std::fmt;
use std::io;

use lxpod_backends::BackendError;
use lxpod_passes::CompileError;
use lxpod_passes::plan::PlanError;
use lxpod_runtime::out_of_memory::OutOfMemory;
use lxpod_runtime::{Error, Fault};

use super::memory;

/// Result of a command.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum CliError {
    /// From the library.
    Library(Error),
    /// A plan that does not fit its target.
    OutOfMemory(Box<OutOfMemory>),
    /// The user's input; the message names the file or flag and the way out.
    Usage(String),
    /// The user's input, shown with its place; the message begins with `error:`.
    Shown(String),
    /// An option that this version does not have.
    Unsupported(String),
    /// Standard output failed.
    Output(io::Error),
    /// Whoever read standard output stopped reading.
    ClosedPipe,
    /// The user asked for an end; the message says what is left and how to go on.
    Interrupted(String),
    /// A defect of lxpod.
    Internal(String),
}

impl CliError {
    /// The exit code of a process that ends with this.
    pub(crate) fn exit_code(&self) -> u8 {
        /// What a shell reports of a process that ended by SIGINT.
        const INTERRUPTED: u8 = 130;
        let fault = match self {
            CliError::Library(error) => error.fault(),
            CliError::OutOfMemory(_) | CliError::Usage(_) | CliError::Shown(_) => Fault::Input,
            CliError::Unsupported(_) => Fault::Unsupported,
            CliError::Output(_) | CliError::ClosedPipe => Fault::Io,
            CliError::Internal(_) => Fault::Internal,
            CliError::Interrupted(_) => return INTERRUPTED,
        };
        fault.exit_code()
    }

    /// The error as a document, if it is an answer that programs read.
    pub(crate) fn document(&self) -> Option<serde_json::Value> {
        match self {
            CliError::OutOfMemory(found) => Some(memory::document(found)),
            _ => None,
        }
    }

    /// A wrong value of an option.
    pub(crate) fn option(flag: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        CliError::Library(Error::Option { flag, message })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Library(error) => error.fmt(f),
            CliError::OutOfMemory(found) => f.write_str(&memory::text(found)),
            CliError::Usage(message)
            | CliError::Shown(message)
            | CliError::Interrupted(message) => f.write_str(message),
            CliError::Unsupported(message) => write!(f, "not supported: {message}"),
            CliError::Output(error) => write!(f, "cannot write to standard output: {error}"),
            CliError::ClosedPipe => f.write_str("standard output was closed"),
            CliError::Internal(what) => write!(
                f,
                "internal error: {what}\n  help: this is a defect of lxpod, please report it"
            ),
        }
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        CliError::Library(error)
    }
}

impl From<CompileError> for CliError {
    fn from(error: CompileError) -> Self {
        CliError::Library(error.into())
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        CliError::Library(error.into())
    }
}

impl From<BackendError> for CliError {
    fn from(error: BackendError) -> Self {
        CliError::Library(error.into())
    }
}
