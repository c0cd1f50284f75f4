//! The fast CPU backend; the only home of SIMD.

pub mod kernels;
