//! Errors of the front end.

use thiserror::Error;

/// Why a configuration does not become a graph. Each names the field or flag and the fix; the
/// caller knows the file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrontError {
    /// The configuration is no JSON object.
    #[error("line {line}: {message}")]
    Json {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// A field has a value no model can have.
    #[error("`{field}` {message}")]
    Field {
        /// The field's name in config.json.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The configuration is meaningful, but asks for what is not implemented.
    #[error("`{field}` {message}")]
    NotSupported {
        /// The field's name in config.json.
        field: String,
        /// What is not supported and what is.
        message: String,
    },
    /// The options do not fit the configuration or each other.
    #[error("{flag}: {message}")]
    Option {
        /// The command line flag.
        flag: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// The front end built an ill-typed graph, which no input should make it do.
    #[error("internal error: {0}")]
    Internal(String),
}

impl FrontError {
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        FrontError::Field {
            field: field.to_owned(),
            message: message.into(),
        }
    }
}
