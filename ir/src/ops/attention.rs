//! `attention`: softmax(q kᵀ · scale + mask) v, segment by segment, head by head.

use serde::{Deserialize, Serialize};

use super::dropout::key;
use super::{AttentionGrad, Cost, Dropout, Eval, Infer, OpDef, Operand, RowUse, Vjp, Zeros};
use crate::random_bits::{RowState, part_salt};
use crate::rows::SpaceId;
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// Multi-head attention. The rows of segment s of the queries see the rows of segment s of the
/// keys and values; both spaces belong to the same entities.
///
/// score = q · k · scale + (1 − `mask[key]`) · f32::MIN, so that a segment whose keys are all masked
/// attends to them uniformly, as Transformers does. The second output, if asked for, holds the
/// probabilities \[query row, head, key within the segment\], zero beyond the segment's last key.
///
/// With `dropout`, probabilities are dropped as [`Dropout`] drops elements, and returned so. The row
/// is the query's place in its segment, the column the key's, the salt that of the head's part, and
/// `dropout_keys` has the keys of the entities that own the segments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// The number of heads; head h owns columns h·d..(h+1)·d.
    pub heads: usize,
    /// Multiplies the products, usually 1/√d.
    pub scale: f32,
    /// Whether the probabilities are an output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probabilities: bool,
    /// Which probabilities are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<Dropout>,
}

impl Attention {
    fn spaces(cx: &Infer<'_>) -> Result<(SpaceId, SpaceId), String> {
        match (cx.inputs[0].rows, cx.inputs[1].rows) {
            (Some(query), Some(key)) => Ok((query, key)),
            _ => Err("queries and keys need row spaces with segments".to_owned()),
        }
    }

    fn check_mask(cx: &Infer<'_>) -> Result<(), String> {
        let (key, mask) = (&cx.inputs[1], cx.float(3, "mask")?);
        if mask.shape.len() == 1 && mask.rows == key.rows {
            return Ok(());
        }
        let (mask, key) = (cx.show(mask), cx.show(key));
        Err(format!("mask {mask} is not one value per row of {key}"))
    }

    /// The segments, and the query and key rows of one, at capacity.
    fn scores(cx: &Infer<'_>) -> Result<(usize, usize, usize), String> {
        let (query, key) = Self::spaces(cx)?;
        let (owner, segments, queries) = cx.segments(query)?;
        let (key_owner, _, keys) = cx.segments(key)?;
        if owner == key_owner {
            Ok((segments, queries, keys))
        } else {
            Err("the segments of queries and keys belong to different entities".to_owned())
        }
    }
}

impl OpDef for Attention {
    const NAME: &'static str = "attention";

    fn operands(&self) -> &'static [Operand] {
        const OPERANDS: &[Operand] = &[
            Operand::Required("query"),
            Operand::Required("key"),
            Operand::Required("value"),
            Operand::Required("mask"),
            Operand::Required("dropout_keys"),
        ];
        &OPERANDS[..4 + usize::from(self.dropout.is_some())]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (query, key) = (cx.float(0, "query")?, cx.float(1, "key")?);
        cx.float(2, "value")?;
        cx.same(1, 2)?;
        let (_, _, keys) = Self::scores(cx)?;
        let width = query.shape.last_axis();
        if query.shape.len() != 2
            || key.shape.len() != 2
            || width == 0
            || self.heads == 0
            || width % self.heads != 0
            || key.shape.last_axis() != width
        {
            return Err(format!(
                "{} heads over {} and {}",
                self.heads,
                cx.show(query),
                cx.show(key)
            ));
        }
        Self::check_mask(cx)?;
        if let (Some(dropout), Some(rows)) = (&self.dropout, query.rows) {
            dropout.check(cx, rows, 4)?;
        }
        let mut types = cx.like_first()?;
        if self.probabilities {
            let shape = [query.shape.rows(), self.heads, keys];
            types.push(cx.output(1, query.rows, shape.into(), query.dtype));
        }
        Ok(types)
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        let scores = Self::spaces(cx).map_or(0, |(query, key)| cx.pairs(query, key));
        let width = cx.inputs[0].shape.last_axis();
        let each = 4 * width as u64 + 8 * self.heads as u64;
        Cost {
            flops: scores.saturating_mul(each),
            ..cx.moved()
        }
    }

    fn row_use(&self) -> RowUse {
        match self.dropout {
            None => RowUse::Query,
            // where a query stands in its segment decides what is dropped
            Some(_) => RowUse::Mixing,
        }
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let operands = cx.operands();
        let dy = match cx.cotangent_of(0) {
            Some(dy) => dy,
            None => {
                let query = cx.operand_type(0);
                cx.emit_like(Zeros {}, &[], query)?
            }
        };
        let mut read = vec![dy];
        read.extend(operands);
        if self.probabilities {
            read.extend(cx.cotangent_of(1));
        }
        let op = AttentionGrad {
            heads: self.heads,
            scale: self.scale,
            dropout: self.dropout.clone(),
        };
        let dquery = cx.emit(op, &read)?;
        for operand in 0..3 {
            cx.give(operand, dquery.output(operand as u16));
        }
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (Some(queries), Some(keys)) = (cx.types[0].rows, cx.types[1].rows) else {
            return Err("queries and keys need row spaces".to_owned());
        };
        let width = cx.inputs[0].shape.row_elements();
        let longest = cx.spaces.longest(keys);
        let rows = cx.inputs[0].shape.rows();
        let zero = S::from_f64(0.0);
        let mut context = vec![zero; rows * width];
        let mut probabilities = vec![zero; rows * self.heads * longest];
        for segment in 0..cx.extents.segments(queries) {
            let span = cx.extents.segment(keys, segment);
            for (place, row) in cx.extents.segment(queries, segment).enumerate() {
                for head in 0..self.heads {
                    let operands = [0, 1, 3].map(|operand| cx.inputs[operand]);
                    let mut weights = self.weights(operands, row, span.clone(), head);
                    if let Some(keys) = cx.inputs.get(4) {
                        self.drop(key(keys, segment), [head, place], &mut weights);
                    }
                    let columns = head_columns(head, width / self.heads);
                    for (&weight, key) in weights.iter().zip(span.clone()) {
                        for column in columns.clone() {
                            context[row * width + column] += weight * cx.inputs[2].row(key)[column];
                        }
                    }
                    let first = (row * self.heads + head) * longest;
                    probabilities[first..first + weights.len()].copy_from_slice(&weights);
                }
            }
        }
        let mut outputs = vec![Tensor::real(cx.shape(0), context)];
        if self.probabilities {
            outputs.push(Tensor::real(cx.shape(1), probabilities));
        }
        Ok(outputs)
    }
}

/// The columns of a head of `size` columns.
pub(super) fn head_columns(head: usize, size: usize) -> std::ops::Range<usize> {
    head * size..(head + 1) * size
}

impl Attention {
    /// The probabilities of one query row and head over the keys of its segment.
    pub(super) fn weights<S: Scalar>(
        &self,
        [query, key, mask]: [&Tensor<S>; 3],
        row: usize,
        keys: std::ops::Range<usize>,
        head: usize,
    ) -> Vec<S> {
        let columns = head_columns(head, query.shape.row_elements() / self.heads);
        let query = &query.row(row)[columns.clone()];
        let scale = S::from_f64(f64::from(self.scale));
        let lowest = S::from_f64(f64::from(f32::MIN));
        let one = S::from_f64(1.0);
        let mut scores: Vec<S> = keys
            .map(|at| {
                let mut dot = S::from_f64(0.0);
                for (&q, &k) in query.iter().zip(&key.row(at)[columns.clone()]) {
                    dot += q * k;
                }
                (dot * scale + (one - mask.reals()[at]) * lowest).round_to(crate::DType::F32)
            })
            .collect();
        let peak = scores.iter().copied().reduce(S::maximum).unwrap_or(one);
        let mut sum = S::from_f64(0.0);
        for score in &mut scores {
            *score = (*score - peak).exp();
            sum += *score;
        }
        scores.iter_mut().for_each(|score| *score = *score / sum);
        scores
    }
}

impl Attention {
    /// Drops what is to be dropped of the values of one head and query, one for each key of the
    /// segment. `key` is that of the entity that owns the segment, `place` where in it the query is.
    pub(super) fn drop<S: Scalar>(
        &self,
        key: [u32; 2],
        [head, place]: [usize; 2],
        values: &mut [S],
    ) {
        if let Some(dropout) = &self.dropout {
            let salt = part_salt(dropout.salt, head as u64);
            dropout.drop_row(key, RowState::new(key, salt, place as u32), values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Extents, Spaces};
    use crate::{DType, Shape, TensorType};

    #[test]
    fn a_segment_of_masked_keys_attends_uniformly() {
        let mut spaces = Spaces::default();
        let sample = spaces.entities("sample", 1);
        let text = spaces.segments("text", sample, 2);
        let matrix = TensorType::in_space(DType::F32, &spaces, text, &[2]);
        let mask = TensorType::in_space(DType::F32, &spaces, text, &[]);
        let extents = Extents::full(&spaces);
        let x = Tensor::real(Shape::new(&[2, 2]), vec![5f32, 1.0, -3.0, 2.0]);
        let masked = Tensor::real(Shape::new(&[2]), vec![0f32, 0.0]);
        let op = Attention {
            heads: 1,
            scale: 1.0,
            probabilities: true,
            dropout: None,
        };
        let probabilities = TensorType::in_space(DType::F32, &spaces, text, &[1, 2]);
        let outputs = op
            .eval(&Eval {
                inputs: &[&x, &x, &x, &masked],
                types: &[matrix.clone(), matrix.clone(), matrix.clone(), mask],
                outputs: &[matrix, probabilities],
                extents: &extents,
                spaces: &spaces,
            })
            .unwrap();
        assert_eq!(outputs[1].reals(), [0.5; 4]);
        assert_eq!(outputs[0].reals(), [1.0, 1.5, 1.0, 1.5]);
    }
}
