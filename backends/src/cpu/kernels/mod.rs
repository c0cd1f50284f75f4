//! The CPU kernels: linear layers over packed weights, attention, normalisation, elementwise
//! operations, gathers and losses.
//!
//! Every kernel is written once, over the eight-lane vectors of the private module `simd`, and stamped
//! out per instruction set into a table of functions, [`Kernels`]. All arithmetic is f32;
//! a result is rounded once, where it is stored, to the dtype of its view.
//!
//! # Bits
//! For one table, the bits of an output row depend on the inputs of that row alone: not on how many rows a
//! call has, how rows and panels are split over calls or workers, nor (in attention) on trailing
//! keys that the mask switches off. This holds because every sum has one order, fixed by the index of what it sums over.

mod attention;
mod elementwise;
mod gather;
mod gemm;
mod huge;
mod isa;
mod linear;
mod loss;
mod math;
mod norm;
mod pack;
mod peak;
mod scratch;
mod simd;
mod view;

pub use attention::{Attention, attention_head, attention_scratch};
pub use elementwise::{activate, add, copy, scale};
pub use gather::{IndexError, gather, gather_panels};
pub(super) use huge::huge_pages;
pub use isa::{IsaError, Kernels};
pub use linear::{Linear, linear, linear_scratch};
pub use loss::{CrossEntropy, IGNORE_INDEX, LabelError, bce_with_logits, cross_entropy, smooth_l1};
pub use norm::{LayerNorm, layer_norm};
pub use pack::Panels;
pub use peak::multiply_adds;
pub use scratch::Scratch;
pub use view::{Element, View, ViewMut};
