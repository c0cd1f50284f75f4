//! `input`, `param` and `state`: values from outside.

use serde::{Deserialize, Serialize};

use super::{Eval, Infer, OpDef, Operand};
use crate::binding::Binding;
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// A value given for each run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The name the runtime feeds it by.
    pub name: String,
}

/// A value that stays resident between runs, made from checkpoint tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// How it is made.
    pub value: Binding,
}

/// A tensor that lives between runs: what the graph output `state:NAME` stored last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The name, such as `acc:B`, `m:B`, `v:B` or `master:B` of a parameter with binding B.
    pub name: String,
    /// Whether it reads as zeros in the first micro-batch of a step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// How many replicas share its elements out; see [`crate::sharding`].
    #[serde(
        default = "State::unshared",
        skip_serializing_if = "State::is_unshared"
    )]
    pub shards: usize,
}

impl State {
    fn unshared() -> usize {
        1
    }

    fn is_unshared(shards: &usize) -> bool {
        *shards == 1
    }
}

fn declared(cx: &Infer<'_>) -> Result<Types, String> {
    match cx.declared {
        [ty] => Ok(Types::from_elem(ty.clone(), 1)),
        _ => Err("needs exactly one declared type".to_owned()),
    }
}

impl OpDef for Input {
    const NAME: &'static str = "input";

    fn operands(&self) -> &'static [Operand] {
        &[]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        declared(cx)
    }

    fn eval<S: Scalar>(&self, _: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Err(format!("input `{}` was not given", self.name))
    }
}

impl OpDef for Param {
    const NAME: &'static str = "param";

    fn operands(&self) -> &'static [Operand] {
        &[]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let types = declared(cx)?;
        match types[0].rows {
            None if types[0].dtype.is_float() => Ok(types),
            _ => Err(format!(
                "a parameter is a float without a row space, not {}",
                cx.show(&types[0])
            )),
        }
    }

    fn eval<S: Scalar>(&self, _: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Err(format!("parameter `{}` was not bound", self.value))
    }
}

impl OpDef for State {
    const NAME: &'static str = "state";

    fn operands(&self) -> &'static [Operand] {
        &[]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let types = declared(cx)?;
        if self.shards == 0 {
            return Err("a state is shared out by at least one replica".to_owned());
        }
        match types[0].rows {
            None => Ok(types),
            Some(_) => Err(format!(
                "a state has no row space, unlike {}",
                cx.show(&types[0])
            )),
        }
    }

    fn eval<S: Scalar>(&self, _: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        Err(format!("state `{}` was not given", self.name))
    }
}
