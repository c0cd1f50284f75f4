//! `cross_entropy_grad`: the cotangent of the logits of a cross-entropy.

use serde::{Deserialize, Serialize};

use super::cross_entropy::{LogSum, class_of};
use super::{Cost, CrossEntropy, Eval, IGNORED, Infer, OpDef, Operand, Reduction};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// `dlogits[r, c] = dloss · weight[r] / rows · (softmax(logits[r])[c] − [c = label[r]])` of
/// [`CrossEntropy`]: under [`Reduction::Mean`] the weights are 1 and `rows` counts the rows not labelled
/// −100; under [`Reduction::Weighted`] it counts all. A row labelled −100 takes 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossEntropyGrad {
    /// As [`CrossEntropy::reduction`].
    #[serde(default)]
    pub reduction: Reduction,
}

impl OpDef for CrossEntropyGrad {
    const NAME: &'static str = "cross_entropy_grad";

    fn operands(&self) -> &'static [Operand] {
        const OPERANDS: &[Operand] = &[
            Operand::Required("dloss"),
            Operand::Required("logits"),
            Operand::Required("labels"),
            Operand::Required("weights"),
        ];
        match self.reduction {
            Reduction::Mean => &OPERANDS[..3],
            Reduction::Weighted => OPERANDS,
        }
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let reduction = self.reduction;
        cx.loss_grad(|forward| CrossEntropy { reduction }.infer(forward))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.loss_grad_cost(6)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (dloss, logits) = (cx.inputs[0].reals()[0].to_f64(), cx.inputs[1]);
        let labels = cx.inputs[2].ints();
        let rows = match self.reduction {
            Reduction::Mean => labels.iter().filter(|&&label| label != IGNORED).count(),
            Reduction::Weighted => labels.len(),
        };
        let mut values = Vec::with_capacity(logits.shape.elements());
        for (row, &label) in labels.iter().enumerate() {
            let logits = logits.row(row);
            if label == IGNORED {
                values.extend(logits.iter().map(|_| S::from_f64(0.0)));
                continue;
            }
            let class = class_of(label, logits.len())?;
            let sum = LogSum::of(logits);
            let weight = cx.inputs.get(3);
            let weight = weight.map_or(1.0, |weights| weights.reals()[row].to_f64());
            let factor = dloss * weight / rows as f64;
            values.extend(logits.iter().enumerate().map(|(column, &logit)| {
                let hit = f64::from(u8::from(column == class));
                S::from_f64(factor * (sum.probability(logit) - hit))
            }));
        }
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}
