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
mod attention_grad;
mod elementwise;
mod gather;
mod gemm;
mod huge;
mod isa;
mod linear;
mod loss;
mod math;
mod matmul;
mod norm;
mod norm_grad;
mod pack;
mod peak;
mod scratch;
mod simd;
mod squares;
mod sums;
mod update;
mod view;

pub use attention::{Attention, HeadDropout, attention_head, attention_scratch};
pub use attention_grad::{AttentionGrad, attention_grad_head, attention_grad_scratch};
pub use elementwise::{
    activate, activate_grad, add, bce_grad, copy, dropout, scale, smooth_l1_grad, zeros,
};
pub use gather::{IndexError, gather, gather_panels};
pub use huge::{Zeros, huge_pages};
pub use isa::{IsaError, Kernels};
pub use linear::{Linear, linear, linear_scratch};
pub use loss::{
    CrossEntropy, IGNORE_INDEX, LabelError, bce_with_logits, cross_entropy, cross_entropy_grad,
    smooth_l1,
};
pub use matmul::{Chain, MATMUL_SCRATCH, Matmul, Start, matmul};
pub use norm::{LayerNorm, layer_norm};
pub use norm_grad::{
    LayerNormGrad, layer_norm_grad, layer_norm_grad_scratch, layer_norm_grad_sums,
    layer_norm_moments,
};
pub use pack::{Format, Panels};
pub use peak::{multiply_adds, read_all};
pub use scratch::Scratch;
pub use squares::sum_squares;
pub use sums::{ScatterAdd, scatter_add, sum_rows};
pub use update::{AdamRule, Rounding, Rule, SgdRule, Update, lamb_squares, update};
pub use view::{Element, View, ViewMut};
