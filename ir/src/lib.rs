//! The intermediate representation of lxpod.
#![forbid(unsafe_code)]

mod dtype;
pub mod ops;

pub use dtype::DType;
