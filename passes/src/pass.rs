//! What a pass is, and the table of all of them.

use std::fmt;
use std::str::FromStr;

use lxpod_ir::{Graph, NodeId, Patch};
use serde::{Deserialize, Serialize};

use crate::{
    autodiff, canonicalise, cse, dce, fold, fuse_epilogue, fuse_norm, merge_linear, narrow,
    precision,
};

/// A named step of the compiler: it reads a graph and says how to change it.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The name on the command line and in reports, in kebab case.
    pub name: &'static str,
    /// One sentence: what it does.
    pub doc: &'static str,
    /// Where it looks.
    pub run: Run,
}

/// What a pass finds: a change, or nothing to do. An error is the text of a refused patch.
pub type Found = Result<Option<Patch>, String>;

/// Where a pass looks for its next change. Either kind is asked again after its patch was applied,
/// until it finds nothing.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// At every node, operands before users.
    Each(fn(&Graph, NodeId, &Options) -> Found),
    /// At the graph as a whole.
    Whole(fn(&Graph, &Options) -> Found),
}

/// What the user decides about the compilation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How values are stored.
    pub precision: Precision,
    /// What multiplies the loss before it is differentiated.
    pub loss_scale: LossScale,
}

/// What multiplies the loss before it is differentiated, so that gradients stored in f16 do not
/// underflow. All gradients come out multiplied by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossScale {
    /// Nothing does.
    #[default]
    One,
    /// The input [`autodiff::LOSS_SCALE`], an f32 scalar given for each run: one plan serves a
    /// static and a moving scale.
    Input,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in f32.
    Fp32,
    /// Weights and activations in f16; sums, norms, exponentials and losses in f32.
    #[default]
    Mixed,
}

impl Precision {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Mixed => "mixed",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Precision::Fp32, Precision::Mixed]
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| format!("unknown precision `{text}`; expected fp32 or mixed"))
    }
}

/// Every pass, in the order of its first run.
pub static PASSES: &[&Pass] = &[
    &canonicalise::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &narrow::PASS,
    &autodiff::PASS,
    &fuse_epilogue::PASS,
    &merge_linear::PASS,
    &fuse_norm::PASS,
    &precision::PASS,
];

/// The passes of [`crate::optimise`], in order.
///
/// Epilogues are fused before linears are merged, so that two linears merge only if the same
/// activation follows both.
pub static PIPELINE: &[&Pass] = &[
    &canonicalise::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &narrow::PASS,
    &cse::PASS,
    &dce::PASS,
    &fuse_epilogue::PASS,
    &merge_linear::PASS,
    &fuse_norm::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &precision::PASS,
    &dce::PASS,
];

/// The passes of a graph that is to be trained, in order: [`PIPELINE`] with the gradients.
///
/// They are added after what leaves values out and before what fuses them, so that a value that a
/// gradient reads stays.
pub static TRAINING: &[&Pass] = &[
    &canonicalise::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &narrow::PASS,
    &cse::PASS,
    &dce::PASS,
    &autodiff::PASS,
    &canonicalise::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &fuse_epilogue::PASS,
    &merge_linear::PASS,
    &fuse_norm::PASS,
    &fold::PASS,
    &cse::PASS,
    &dce::PASS,
    &precision::PASS,
    &dce::PASS,
];

/// A name that no pass has. The user's input is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown pass `{0}`; the passes are {known}", known = names().collect::<Vec<_>>().join(", "))]
pub struct UnknownPass(pub String);

/// The pass of that name.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<&'static Pass, UnknownPass> {
    PASSES
        .iter()
        .copied()
        .find(|pass| pass.name == name)
        .ok_or_else(|| UnknownPass(name.to_owned()))
}

/// The name of every pass, in the order of [`PASSES`].
pub fn names() -> impl Iterator<Item = &'static str> {
    PASSES.iter().map(|pass| pass.name)
}
