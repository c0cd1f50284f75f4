//! `attention_grad`: the cotangents of queries, keys and values.

use serde::{Deserialize, Serialize};

use super::attention::head_columns;
use super::{Attention, Cost, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// dq, dk, dv of [`Attention`], whose probabilities P are computed again from queries, keys and mask.
///
/// With dP = dy · vᵀ + dprobabilities and dS = P ∘ (dP − Σ P ∘ dP) · scale, the sum over the keys of
/// one query row: dq = dS · k, dk = dSᵀ · q, dv = Pᵀ · dy. Each element is one sum over the rows of
/// its segment, ascending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionGrad {
    /// As [`Attention::heads`].
    pub heads: usize,
    /// As [`Attention::scale`].
    pub scale: f32,
}

impl AttentionGrad {
    fn forward(&self) -> Attention {
        Attention {
            heads: self.heads,
            scale: self.scale,
            probabilities: true,
        }
    }
}

impl OpDef for AttentionGrad {
    const NAME: &'static str = "attention_grad";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("dy"),
            Operand::Required("query"),
            Operand::Required("key"),
            Operand::Required("value"),
            Operand::Required("mask"),
            Operand::Optional("dprobabilities"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let forward = self.forward().infer(&Infer {
            inputs: &cx.inputs[1..5],
            declared: &[],
            ..*cx
        })?;
        for (cotangent, result) in [(Some(0), 0), (cx.inputs.get(5).map(|_| 5), 1)] {
            let Some(operand) = cotangent else { continue };
            let ty = cx.float(operand, self.operands()[operand].name())?;
            if ty.rows != forward[result].rows || ty.shape != forward[result].shape {
                return Err(format!(
                    "cotangent {} of {}",
                    cx.show(ty),
                    cx.show(&forward[result])
                ));
            }
        }
        let like = |output: usize| {
            let ty = &cx.inputs[output + 1];
            cx.output(output, ty.rows, ty.shape.clone(), cx.inputs[0].dtype)
        };
        Ok((0..3).map(like).collect())
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        let forward = self.forward().cost(&Infer {
            inputs: &cx.inputs[1..5],
            declared: &[],
            ..*cx
        });
        Cost {
            // the forward's two products, scores among them, and three more
            flops: forward.flops.saturating_mul(5) / 2,
            ..cx.moved()
        }
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (Some(queries), Some(keys)) = (cx.types[1].rows, cx.types[2].rows) else {
            return Err("queries and keys need row spaces".to_owned());
        };
        let zeros = |output| vec![S::from_f64(0.0); cx.shape(output).elements()];
        let mut sums = [zeros(0), zeros(1), zeros(2)];
        for segment in 0..cx.extents.segments(queries) {
            let span = cx.extents.segment(keys, segment);
            for row in cx.extents.segment(queries, segment) {
                for head in 0..self.heads {
                    self.add_row(cx, row, span.clone(), head, &mut sums);
                }
            }
        }
        let outputs = sums.into_iter().enumerate();
        Ok(outputs
            .map(|(output, values)| Tensor::real(cx.shape(output), values))
            .collect())
    }
}

impl AttentionGrad {
    /// Adds what one query row and head contribute to dq, dk and dv.
    fn add_row<S: Scalar>(
        &self,
        cx: &Eval<'_, S>,
        row: usize,
        keys: std::ops::Range<usize>,
        head: usize,
        [dq, dk, dv]: &mut [Vec<S>; 3],
    ) {
        let [dy, query, key, value, mask] = [0, 1, 2, 3, 4].map(|operand| cx.inputs[operand]);
        let width = query.shape.row_elements();
        let columns = head_columns(head, width / self.heads);
        let weights = self
            .forward()
            .weights([query, key, mask], row, keys.clone(), head);
        let mut dweights: Vec<S> = Vec::with_capacity(weights.len());
        for at in keys.clone() {
            let mut dot = match cx.inputs.get(5) {
                Some(given) => given.row(row)[head * given.shape[2] + at - keys.start],
                None => S::from_f64(0.0),
            };
            for column in columns.clone() {
                dot += dy.row(row)[column] * value.row(at)[column];
            }
            dweights.push(dot);
        }
        let mut mean = S::from_f64(0.0);
        for (&weight, &dweight) in weights.iter().zip(&dweights) {
            mean += weight * dweight;
        }
        let scale = S::from_f64(f64::from(self.scale));
        for ((&weight, &dweight), at) in weights.iter().zip(&dweights).zip(keys) {
            let dscore = weight * (dweight - mean) * scale;
            for column in columns.clone() {
                dq[row * width + column] += dscore * key.row(at)[column];
                dk[at * width + column] += dscore * query.row(row)[column];
                dv[at * width + column] += weight * dy.row(row)[column];
            }
        }
    }
}
