//! The operators.

mod activate;

pub use activate::Activation;
