//! Passes of the lxpod compiler.
#![forbid(unsafe_code)]

pub mod solve;
