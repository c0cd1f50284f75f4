//! What a pass is, and the table of all of them.

use std::fmt;
use std::str::FromStr;

use lxpod_ir::{DType, Graph, NodeId, Patch};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate, autodiff, canonicalise, cse, dce, fold, fuse_epilogue, fuse_norm, merge_linear,
    narrow, precision, recompute,
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
    /// What the graph is for.
    pub mode: Mode,
    /// How values are stored.
    pub precision: Precision,
    /// What multiplies the loss before it is differentiated.
    pub loss_scale: LossScale,
    /// What the backward half computes again.
    pub recompute: Recompute,
    /// How sums of gradients over micro-batches are stored: f32 or f16.
    pub accumulator: DType,
}

/// What the backward half computes again instead of keeping it; see [`recompute`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// All but what passes from layer to layer.
    Layer,
    /// The same of some layers.
    Layers {
        /// A bit for each of [`recompute::chain`]'s layers.
        chosen: u64,
    },
    /// Of as few layers as it takes for the plan to fit its tiles; [`compile`](crate::compile) chooses them. To passes
    /// it means nothing.
    Auto,
}

impl Recompute {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Layer => "layer",
            Recompute::Layers { .. } => "layers",
            Recompute::Auto => "auto",
        }
    }
}

/// What a graph is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// To be run.
    #[default]
    Inference,
    /// To be differentiated: parameters stay what a checkpoint stores, so that they can be written back.
    Training,
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
    &fuse_epilogue::PASS,
    &merge_linear::PASS,
    &fuse_norm::PASS,
    &precision::PASS,
    &autodiff::PASS,
    &recompute::PASS,
    &accumulate::PASS,
];

/// The passes of both modes in order, each with the mode it is left to if it does not serve both.
///
/// Epilogues are fused before linears are merged, so that two linears merge only if the same
/// activation follows both. In training nothing is fused, since gradients read the inner values; they
/// are added to the finished forward half.
const STEPS: &[(&Pass, Option<Mode>)] = &[
    (&canonicalise::PASS, None),
    (&fold::PASS, None),
    (&cse::PASS, None),
    (&dce::PASS, None),
    (&narrow::PASS, None),
    (&cse::PASS, None),
    (&dce::PASS, None),
    (&fuse_epilogue::PASS, Some(Mode::Inference)),
    (&merge_linear::PASS, None),
    (&fuse_norm::PASS, Some(Mode::Inference)),
    (&fold::PASS, None),
    (&cse::PASS, None),
    (&dce::PASS, None),
    (&precision::PASS, None),
    (&dce::PASS, None),
    (&autodiff::PASS, Some(Mode::Training)),
    (&canonicalise::PASS, Some(Mode::Training)),
    (&cse::PASS, Some(Mode::Training)),
    (&dce::PASS, Some(Mode::Training)),
];

/// The passes of [`crate::optimise`], in order.
pub static PIPELINE: &[&Pass] = &steps::<{ count(Mode::Inference) }>(Mode::Inference);

/// The passes of a graph that is to be trained, in order.
pub static TRAINING: &[&Pass] = &steps::<{ count(Mode::Training) }>(Mode::Training);

/// The passes behind [`TRAINING`] of the graph of one micro-batch among several, in order.
pub static MICRO_BATCH: &[&Pass] = &[&recompute::PASS, &accumulate::PASS];

const fn serves(step: usize, mode: Mode) -> bool {
    match STEPS[step].1 {
        Some(only) => only as u8 == mode as u8,
        None => true,
    }
}

const fn count(mode: Mode) -> usize {
    let (mut step, mut found) = (0, 0);
    while step < STEPS.len() {
        found += serves(step, mode) as usize;
        step += 1;
    }
    found
}

/// The steps that serve a mode, of which there are `N`.
const fn steps<const N: usize>(mode: Mode) -> [&'static Pass; N] {
    let mut found = [STEPS[0].0; N];
    let (mut step, mut next) = (0, 0);
    while step < STEPS.len() {
        if serves(step, mode) {
            found[next] = STEPS[step].0;
            next += 1;
        }
        step += 1;
    }
    found
}

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
