//! `attention_grad`: the cotangents of queries, keys and values.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::attention::head_columns;
use super::dropout::key;
use super::{Attention, Cost, Dropout, Eval, Infer, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// dq, dk, dv of [`Attention`], whose probabilities P are computed again from queries, keys and mask.
///
/// With dP = dy · vᵀ + dprobabilities and dS = P ∘ (dP − Σ P ∘ dP) · scale, the sum over the keys of
/// one query row: dq = dS · k, dk = dSᵀ · q, dv = Pᵀ · dy. Each element is one sum over the rows of
/// its segment, ascending.
///
/// With `dropout`, the mask is drawn again: dP is dropped as P was, and dv = drop(P)ᵀ · dy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionGrad {
    /// As [`Attention::heads`].
    pub heads: usize,
    /// As [`Attention::scale`].
    pub scale: f32,
    /// As [`Attention::dropout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<Dropout>,
}

/// One head of one query row.
struct Query {
    segment: usize,
    /// Where in its segment the row is.
    place: usize,
    row: usize,
    keys: Range<usize>,
    head: usize,
}

impl AttentionGrad {
    fn forward(&self) -> Attention {
        Attention {
            heads: self.heads,
            scale: self.scale,
            probabilities: true,
            dropout: self.dropout.clone(),
        }
    }

    /// The position of the forward op's operand after the last: that of `dprobabilities`.
    fn after_forward(&self) -> usize {
        1 + self.forward().operands().len()
    }

    /// The forward op's context.
    fn forward_of<'a>(&self, cx: &Infer<'a>) -> Infer<'a> {
        Infer {
            inputs: &cx.inputs[1..self.after_forward()],
            declared: &[],
            ..*cx
        }
    }
}

impl OpDef for AttentionGrad {
    const NAME: &'static str = "attention_grad";

    fn operands(&self) -> &'static [Operand] {
        match self.dropout {
            None => &[
                Operand::Required("dy"),
                Operand::Required("query"),
                Operand::Required("key"),
                Operand::Required("value"),
                Operand::Required("mask"),
                Operand::Optional("dprobabilities"),
            ],
            Some(_) => &[
                Operand::Required("dy"),
                Operand::Required("query"),
                Operand::Required("key"),
                Operand::Required("value"),
                Operand::Required("mask"),
                Operand::Required("dropout_keys"),
                Operand::Optional("dprobabilities"),
            ],
        }
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let forward = self.forward().infer(&self.forward_of(cx))?;
        for (operand, result) in [(0, 0), (self.after_forward(), 1)] {
            if operand >= cx.inputs.len() {
                continue;
            }
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
        let forward = self.forward().cost(&self.forward_of(cx));
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
            for (place, row) in cx.extents.segment(queries, segment).enumerate() {
                for head in 0..self.heads {
                    let keys = span.clone();
                    let query = Query {
                        segment,
                        place,
                        row,
                        keys,
                        head,
                    };
                    self.add_query(cx, &query, &mut sums);
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
    /// Adds what one head of one query row contributes to dq, dk and dv.
    fn add_query<S: Scalar>(&self, cx: &Eval<'_, S>, at: &Query, [dq, dk, dv]: &mut [Vec<S>; 3]) {
        let [dy, query, key, mask] = [0, 1, 2, 4].map(|operand| cx.inputs[operand]);
        let (width, row) = (query.shape.row_elements(), at.row);
        let columns = head_columns(at.head, width / self.heads);
        let operands = [query, key, mask];
        let weights = (self.forward()).weights(operands, row, at.keys.clone(), at.head);
        let mut dweights = self.cotangents(cx, at);
        let mut dropped = weights.clone();
        self.drop(cx, at, &mut dweights);
        self.drop(cx, at, &mut dropped);
        let mut mean = S::from_f64(0.0);
        for (&weight, &dweight) in weights.iter().zip(&dweights) {
            mean += weight * dweight;
        }
        let scale = S::from_f64(f64::from(self.scale));
        for (place, to) in at.keys.clone().enumerate() {
            let dscore = weights[place] * (dweights[place] - mean) * scale;
            for column in columns.clone() {
                dq[row * width + column] += dscore * key.row(to)[column];
                dk[to * width + column] += dscore * query.row(row)[column];
                dv[to * width + column] += dropped[place] * dy.row(row)[column];
            }
        }
    }

    /// The cotangents of the probabilities as they multiply the values and are returned.
    fn cotangents<S: Scalar>(&self, cx: &Eval<'_, S>, at: &Query) -> Vec<S> {
        let (dy, value) = (cx.inputs[0], cx.inputs[3]);
        let columns = head_columns(at.head, dy.shape.row_elements() / self.heads);
        let given = cx.inputs.get(self.after_forward());
        let of_key = |(place, key): (usize, usize)| {
            let mut dot = match given {
                Some(given) => given.row(at.row)[at.head * given.shape[2] + place],
                None => S::from_f64(0.0),
            };
            for column in columns.clone() {
                dot += dy.row(at.row)[column] * value.row(key)[column];
            }
            dot
        };
        at.keys.clone().enumerate().map(of_key).collect()
    }

    /// Drops what the forward op dropped.
    fn drop<S: Scalar>(&self, cx: &Eval<'_, S>, at: &Query, values: &mut [S]) {
        if self.dropout.is_some() {
            let key = key(cx.inputs[5], at.segment);
            self.forward().drop(key, [at.head, at.place], values);
        }
    }
}
