//! What the ops of optimisers have in common.
//!
//! Their operands are the parameter `p` (or the f32 weight behind it), its gradient `g`, their
//! states, then the scalars `factor` and `lr`, then more scalars, and last `key`, the step's
//! [`rounding_key`](crate::random_bits::rounding_key), where the new parameter is rounded stochastically. Their results are the new parameter and the new states,
//! which take the places of the old; a kernel reads each element before it writes it.
//!
//! The gradient is g · factor. If the factor is not finite the step is skipped: every result is its
//! operand.

use super::{Eval, Infer, Operand};
use crate::DType;
use crate::random_bits::rounding_word;
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// How an optimiser's operands and results lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    /// How many operands are tensors: `p`, `g` and the states. The scalars follow.
    pub(super) tensors: usize,
    /// The salt of the parameter's stochastic rounding to f16, if it is rounded so.
    pub(super) stochastic: Option<u64>,
}

impl Update {
    /// The operands of a list whose last is `key`.
    pub(super) fn operands(self, all: &'static [Operand]) -> &'static [Operand] {
        &all[..all.len() - usize::from(self.stochastic.is_none())]
    }

    /// The rule of operands: tensors of one shape without a row space, f32 scalars, a list of ratios, a key of
    /// two words.
    pub(super) fn check(self, cx: &Infer<'_>, operands: &[Operand]) -> Result<(), String> {
        let p = cx.float(0, "p")?;
        if p.rows.is_some() {
            return Err(format!("{} is in a row space", cx.show(p)));
        }
        for (index, operand) in operands.iter().enumerate().skip(1) {
            let ty = &cx.inputs[index];
            let (fits, wanted) = match operand.name() {
                _ if index < self.tensors => {
                    let same = ty.rows.is_none() && ty.shape == p.shape;
                    (same && ty.dtype.is_float(), "shaped like p")
                }
                "ratio" => (
                    ty.dtype == DType::F32 && ty.shape.len() == 1,
                    "a list of f32",
                ),
                "key" => (ty.dtype == DType::I32 && *ty.shape == [2], "i32[2]"),
                _ => (ty.dtype == DType::F32 && ty.shape.is_empty(), "f32[]"),
            };
            if !fits {
                let (name, given) = (operand.name(), cx.show(ty));
                return Err(format!("{name} is {given}, must be {wanted}"));
            }
        }
        Ok(())
    }

    /// The type rule: results have the declared float dtypes, or those of their operands.
    pub(super) fn infer(self, cx: &Infer<'_>, operands: &[Operand]) -> Result<Types, String> {
        self.check(cx, operands)?;
        let p = &cx.inputs[0];
        let results = self.replaced().enumerate().map(|(result, operand)| {
            let default = cx.inputs[operand].dtype;
            cx.output(result, None, p.shape.clone(), default)
        });
        let types: Types = results.collect();
        match self.stochastic {
            Some(_) if types[0].dtype != DType::F16 => Err(format!(
                "stochastic rounding gives f16, not {}",
                cx.show(&types[0])
            )),
            _ => Ok(types),
        }
    }

    /// The operands that results replace, in their order: all tensors but the gradient.
    fn replaced(self) -> impl Iterator<Item = usize> {
        (0..self.tensors).filter(|&operand| operand != 1)
    }

    /// The results: `compute` gives the elements of each, in the order of the operands they replace,
    /// from the gradient times the factor and from the scalars after the factor.
    pub(super) fn eval<S: Scalar>(
        self,
        cx: &Eval<'_, S>,
        compute: impl FnOnce(&[S], &[S]) -> Vec<Vec<S>>,
    ) -> Result<Vec<Tensor<S>>, String> {
        let keys = usize::from(self.stochastic.is_some());
        let scalars = cx.inputs[self.tensors..cx.inputs.len() - keys].iter();
        let scalars: Vec<S> = scalars.flat_map(|scalar| scalar.reals()).copied().collect();
        let factor = scalars[0];
        if !factor.to_f64().is_finite() {
            return Ok(self.replaced().map(|old| cx.inputs[old].clone()).collect());
        }
        let gradient = cx.inputs[1].reals().iter().map(|&g| g * factor);
        let gradient: Vec<S> = gradient.collect();
        let mut results = compute(&gradient, &scalars[1..]);
        if let (Some(salt), Some(key)) = (self.stochastic, cx.inputs.last()) {
            let key = [0, 1].map(|word| key.ints()[word].cast_unsigned());
            for (element, value) in results[0].iter_mut().enumerate() {
                *value = value.round_stochastically(rounding_word(salt, key, element));
            }
        }
        let results = results.into_iter().enumerate();
        Ok(results
            .map(|(result, values)| Tensor::real(cx.shape(result), values))
            .collect())
    }
}
