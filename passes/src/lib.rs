//! Passes of the lxpod compiler.
#![forbid(unsafe_code)]

pub mod cost;
pub mod solve;
