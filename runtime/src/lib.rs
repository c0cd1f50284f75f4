//! The runtime of lxpod.

pub mod checkpoint;
pub mod error;
pub mod tensors;
