//! `activate`: an elementwise nonlinearity.

use serde::{Deserialize, Serialize};

/// An elementwise nonlinearity, alone or as the epilogue of `linear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// 0.5·x·(1 + erf(x/√2)).
    Gelu,
    /// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), Transformers' `gelu_new`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x / (1 + e⁻ˣ).
    Silu,
    /// tanh x.
    Tanh,
}
