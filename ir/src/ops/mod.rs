//! The operators. Each is one file: attributes, formula, type rule, cost, reference semantics,
//! derivative.
//!
//! [`Op`] is a closed enum made from the one list at the end of this file, so that the compiler
//! walks whoever adds an op through what is missing.

mod activate;
mod activate_grad;
mod adam;
mod add;
mod attention;
mod attention_grad;
mod bce;
mod bce_grad;
mod cast;
mod clip;
mod concat;
mod constant;
mod context;
mod cross_entropy;
mod cross_entropy_grad;
mod dropout;
mod gather_rows;
mod histogram;
mod lamb;
mod layer_norm;
mod layer_norm_grad;
mod leaf;
mod linear;
mod matmul;
mod part;
mod scale;
mod scatter_add_rows;
mod sgd;
mod slice;
mod smooth_l1;
mod smooth_l1_grad;
mod sum_rows;
mod sum_squares;
mod transfer;
mod trust_ratio;
mod update;
mod vjp;
mod weight_grad;
mod zeros;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use activate::{Activate, Activation};
pub use activate_grad::ActivateGrad;
pub use adam::Adam;
pub use add::Add;
pub use attention::Attention;
pub use attention_grad::AttentionGrad;
pub use bce::Bce;
pub use bce_grad::BceGrad;
pub use cast::Cast;
pub use clip::Clip;
pub use concat::Concat;
pub use constant::Constant;
pub use context::{Cost, Eval, Infer};
pub use cross_entropy::CrossEntropy;
pub(crate) use cross_entropy::IGNORED;
pub use cross_entropy_grad::CrossEntropyGrad;
pub use dropout::Dropout;
pub use gather_rows::GatherRows;
pub use histogram::Histogram;
pub use lamb::Lamb;
pub use layer_norm::LayerNorm;
pub use layer_norm_grad::LayerNormGrad;
pub use leaf::{Input, Param, State};
pub use linear::Linear;
pub use matmul::Matmul;
pub use part::Part;
pub use scale::Scale;
pub use scatter_add_rows::ScatterAddRows;
pub use sgd::Sgd;
pub use slice::Slice;
pub use smooth_l1::SmoothL1;
pub use smooth_l1_grad::SmoothL1Grad;
pub use sum_rows::SumRows;
pub use sum_squares::SumSquares;
pub use transfer::Transfer;
pub use trust_ratio::TrustRatio;
pub use vjp::Vjp;
pub use weight_grad::WeightGrad;
pub use zeros::Zeros;

use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// An operand of an op, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Must be given.
    Required(&'static str),
    /// May be left out at the end of the operand list.
    Optional(&'static str),
    /// Takes all operands that follow, at least one.
    Variadic(&'static str),
}

impl Operand {
    /// The operand's name.
    pub fn name(self) -> &'static str {
        match self {
            Operand::Required(name) | Operand::Optional(name) | Operand::Variadic(name) => name,
        }
    }
}

/// How the rows of an op's outputs depend on the rows of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowUse {
    /// Row i of each output depends on row i of each operand that has a row space, and on all of
    /// the others.
    Local,
    /// Row i of each output depends on row i of operand 0 and on rows of the others.
    Query,
    /// Anything may depend on anything.
    Mixing,
}

/// What an op is. Everything known about it stands in its one file.
pub trait OpDef: Clone + PartialEq + Serialize + DeserializeOwned {
    /// The name in text forms.
    const NAME: &'static str;

    /// The operands, in order.
    fn operands(&self) -> &'static [Operand];

    /// The type rule: the types of the outputs, or why the operands do not fit. A float output
    /// takes the dtype declared for it, since storing a value is where it rounds.
    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String>;

    /// Work at the shapes of `cx`; by default none, and each operand and output moved once.
    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.moved()
    }

    /// How rows depend on rows.
    fn row_use(&self) -> RowUse {
        RowUse::Mixing
    }

    /// The cotangents of the operands, from those of the outputs. Operands of integers, and those
    /// that hold data rather than what a model computes (masks, targets, weights of rows), get none.
    fn vjp(&self, _: &mut Vjp<'_>) -> Result<(), String> {
        Err("has no derivative".to_owned())
    }

    /// The reference semantics, plain loops. The outputs are not yet rounded to their dtypes.
    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String>;
}

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// What a node computes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(
                #[doc = concat!("See [`", stringify!($op), "`].")]
                $op($op),
            )*
        }

        impl Op {
            /// The name of every op, in declaration order.
            pub const NAMES: &'static [&'static str] = &[$(<$op as OpDef>::NAME),*];

            /// The name in text forms.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => <$op as OpDef>::NAME,)* }
            }

            /// The attributes as a JSON object.
            pub fn attributes(&self) -> serde_json::Map<String, serde_json::Value> {
                let value = match self { $(Op::$op(op) => serde_json::to_value(op),)* };
                match value {
                    Ok(serde_json::Value::Object(map)) => map,
                    _ => serde_json::Map::new(),
                }
            }

            /// The op of that name with those attributes.
            ///
            /// # Errors
            /// Says that the name is unknown, or which attribute is missing, unknown or wrong.
            pub fn from_attributes(
                name: &str,
                attributes: serde_json::Map<String, serde_json::Value>,
            ) -> Result<Self, String> {
                let value = serde_json::Value::Object(attributes);
                match name {
                    $(<$op as OpDef>::NAME => serde_json::from_value::<$op>(value)
                        .map(Op::$op)
                        .map_err(|error| format!("{name}: {error}")),)*
                    _ => Err(format!("unknown op `{name}`; the ops are {}", Op::NAMES.join(", "))),
                }
            }

            /// The operands, in order.
            pub fn operands(&self) -> &'static [Operand] {
                match self { $(Op::$op(op) => op.operands(),)* }
            }

            /// The types of the outputs; see [`OpDef::infer`].
            ///
            /// # Errors
            /// Says why the operands do not fit.
            pub fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
                context::check_arity(self.operands(), cx.inputs.len())?;
                match self { $(Op::$op(op) => op.infer(cx),)* }
            }

            /// Work at the shapes of `cx`.
            pub fn cost(&self, cx: &Infer<'_>) -> Cost {
                match self { $(Op::$op(op) => op.cost(cx),)* }
            }

            /// How rows depend on rows.
            pub fn row_use(&self) -> RowUse {
                match self { $(Op::$op(op) => op.row_use(),)* }
            }

            /// The cotangents of the operands; see [`OpDef::vjp`].
            pub(crate) fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
                match self { $(Op::$op(op) => op.vjp(cx),)* }
            }

            /// The reference semantics, each output rounded to its dtype.
            ///
            /// # Errors
            /// Says what in the operands' values is wrong, such as an index out of range.
            pub fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
                let outputs = match self { $(Op::$op(op) => op.eval(cx),)* }?;
                Ok(outputs
                    .into_iter()
                    .zip(cx.outputs)
                    .map(|(tensor, ty)| tensor.round_to(ty.dtype))
                    .collect())
            }
        }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Op {
                Op::$op(op)
            }
        })*
    };
}

ops! {
    Input, Param, Constant,
    GatherRows, Concat, Slice, Part, Cast, Transfer,
    Add, Scale, Activate, Dropout,
    Linear, Attention, LayerNorm,
    CrossEntropy, Bce, SmoothL1,
    // what only gradients are made of
    Zeros, Matmul, WeightGrad, SumRows, ScatterAddRows,
    ActivateGrad, AttentionGrad, LayerNormGrad,
    CrossEntropyGrad, BceGrad, SmoothL1Grad,
    // what only steps of training are made of
    State, SumSquares, Histogram, Clip, Sgd, Adam, TrustRatio, Lamb,
}

impl Op {
    /// Whether the op has no operands and takes its value from outside or from itself.
    pub fn is_leaf(&self) -> bool {
        matches!(
            self,
            Op::Input(_) | Op::Param(_) | Op::State(_) | Op::Constant(_)
        )
    }

    /// Whether the op only names part of its operand's storage, so that it needs no work.
    pub fn is_view(&self) -> bool {
        matches!(self, Op::Slice(_) | Op::Part(_))
    }
}

/// The reduction of a loss over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The mean over the rows that count; NaN if none does.
    #[default]
    Mean,
    /// The mean over all rows of loss x weight, the weights being the last operand.
    Weighted,
}
