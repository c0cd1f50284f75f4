//! The intermediate representation of lxpod.
//!
//! A [`Graph`] is a dataflow graph: nodes compute, edges carry values, and there is no other state.
//! A [`Value`] is one output of one [`Node`]; its [`TensorType`] gives the dtype, the shape and the
//! row space of axis 0. A node is evaluated once per run, after the nodes it uses; the order among
//! independent nodes means nothing.
//!
//! # Ops
//! An [`ops::Op`] is one of a closed list, each defined in one file: attributes, formula, type rule,
//! cost and reference semantics. An op is a function on real numbers; the dtype of an output is a
//! property of the value, and storing the value is where it rounds. So precision is chosen by
//! retyping values, and no op comes in several precisions.
//!
//! # Rows
//! Axis 0 of an activation is a [`RowSpace`]: text rows, box rows, one row per sample. It has a
//! static capacity, which the memory plan uses, and a run-time extent ([`Extents`]), which is what
//! is computed. Rows of all samples lie end to end, so that a batch of short texts needs no padding.
//! All ops work row by row, except attention, which knows segments, and `gather_rows`.
//!
//! # Parameters
//! The compiler sees names and types, no weights. A `param` node holds a [`Binding`]: an expression
//! over the tensors of a checkpoint, evaluated when a plan is loaded.
//!
//! # Edits
//! Graphs are made by a [`Builder`] or parsed from text, and changed by [`Patch`]es, which refuse
//! to change a type by accident. [`verify()`] states every invariant and reports every violation at
//! once.
//!
//! # Stages
//! Partition gives each node a pipeline stage. From then on a value crosses stages only through a
//! `transfer` node.
#![forbid(unsafe_code)]

pub mod binding;
mod builder;
mod dot;
mod dtype;
pub mod front;
mod gradients;
mod graph;
mod interpret;
pub mod ops;
mod patch;
pub mod random;
pub mod random_bits;
mod rows;
mod shape;
pub mod sharding;
mod target;
mod tensor;
pub mod text;
mod types;
mod verify;

pub use binding::Binding;
pub use builder::Builder;
pub use dot::dot;
pub use dtype::DType;
pub use gradients::gradients_by_tensor;
pub use graph::{Graph, LOSS, Node, NodeId, Output, User, Value};
pub use interpret::interpret;
pub use patch::{Patch, Wire};
pub use rows::{Extents, Layout, MAX_ROWS, RowSpace, Segment, SpaceId, Spaces};
pub use shape::Shape;
pub use target::{Host, Link, Machine, Target, Tile};
pub use tensor::{Data, Scalar, Tensor};
pub use types::{TensorType, Types};
pub use verify::{VerifyError, VerifyErrors, verify};
