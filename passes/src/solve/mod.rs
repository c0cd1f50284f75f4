//! The solvers behind partitioning and memory planning, free of the IR.
//!
//! Everything here is a pure function of integers: the same input gives the same output on every machine and
//! for every thread count. Work is bounded by counts of ideals, steps and nodes, never by time.
//!
//! - [`lattice`]: the ideals (down-sets) of a DAG, shared by the solvers below;
//! - [`partition`]: the exact split of a DAG into pipeline stages with the smallest bottleneck;
//! - [`order`]: the execution order with the smallest peak of live bytes;
//! - [`chain`]: which layers of a chain to compute again, so that it fits a pipeline;
//! - [`offsets`]: byte offsets for buffers whose lifetimes are fixed.

pub mod chain;
pub mod lattice;
pub mod offsets;
pub mod order;
pub mod partition;
