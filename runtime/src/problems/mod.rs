//! The public formats of planning problems, and their translation for the engines in
//! [`lxpod_passes::solve`].
//!
//! - [`partition`]: device placement, as JSON (Tarnawski et al., NeurIPS 2020);
//! - [`memory`]: buffers with fixed lifetimes, as CSV (MiniMalloc, ASPLOS 2023).

mod fields;
pub mod memory;
pub mod partition;
