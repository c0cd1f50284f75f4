//! Passes of the lxpod compiler.
#![forbid(unsafe_code)]

pub mod cost;
pub mod partition;
pub mod plan;
pub mod schedule;
pub mod solve;
