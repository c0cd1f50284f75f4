//! `cross_entropy`: −log softmax(logits)[label].

use serde::{Deserialize, Serialize};

use super::{Cost, CrossEntropyGrad, Eval, Infer, OpDef, Operand, Reduction, Vjp};
use crate::DType;
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// The label that does not count, as in `torch.nn.CrossEntropyLoss`.
pub(crate) const IGNORED: i32 = -100;

/// The cross-entropy of class labels, reduced over rows to an f32 scalar. A row labelled −100 has
/// loss 0 and, under [`Reduction::Mean`], does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossEntropy {
    /// How rows are reduced; `weighted` takes one weight per row as the third operand.
    #[serde(default)]
    pub reduction: Reduction,
}

impl OpDef for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn operands(&self) -> &'static [Operand] {
        match self.reduction {
            Reduction::Mean => &[Operand::Required("logits"), Operand::Required("labels")],
            Reduction::Weighted => &[
                Operand::Required("logits"),
                Operand::Required("labels"),
                Operand::Required("weights"),
            ],
        }
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let (logits, labels) = (cx.float(0, "logits")?, cx.integer(1, "labels")?);
        if cx.inputs.len() > 2 {
            cx.float(2, "weights")?;
        }
        for ty in [labels, cx.inputs.get(2).unwrap_or(labels)] {
            if logits.shape.len() != 2
                || *ty.shape != [logits.shape.rows()]
                || ty.rows != logits.rows
            {
                return Err(format!(
                    "{} is not one value per row of {}",
                    cx.show(ty),
                    cx.show(logits)
                ));
            }
        }
        Ok(Types::from_elem(TensorType::fixed(DType::F32, []), 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(4)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let mut read = vec![cx.cotangent()?];
        read.extend(cx.operands());
        let reduction = self.reduction;
        let dlogits = cx.emit(CrossEntropyGrad { reduction }, &read)?;
        cx.give(0, dlogits);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (logits, labels) = (cx.inputs[0], cx.inputs[1].ints());
        let (mut total, mut count) = (0.0, 0.0);
        for (row, &label) in labels.iter().enumerate() {
            if label == IGNORED {
                continue;
            }
            let values = logits.row(row);
            let class = class_of(label, values.len())?;
            let LogSum { peak, sum } = LogSum::of(values);
            let weight = cx
                .inputs
                .get(2)
                .map_or(1.0, |weights| weights.reals()[row].to_f64());
            total += weight * (sum.ln() + peak - values[class].to_f64());
            count += 1.0;
        }
        let rows = match self.reduction {
            Reduction::Mean => count,
            Reduction::Weighted => labels.len() as f64,
        };
        Ok(vec![Tensor::real([], vec![S::from_f64(total / rows)])])
    }
}

/// The class that a label names.
pub(super) fn class_of(label: i32, classes: usize) -> Result<usize, String> {
    let class = usize::try_from(label).ok().filter(|&class| class < classes);
    class.ok_or_else(|| format!("label {label} is outside 0..{classes}"))
}

/// log Σ eˣ of a row of logits, as its largest element and the sum of e^(x − largest).
pub(super) struct LogSum {
    peak: f64,
    sum: f64,
}

impl LogSum {
    pub(super) fn of<S: Scalar>(logits: &[S]) -> Self {
        let peak = logits.iter().copied().reduce(S::maximum);
        let peak = peak.map_or(0.0, S::to_f64);
        let sum = logits.iter().map(|x| (x.to_f64() - peak).exp()).sum();
        LogSum { peak, sum }
    }

    /// The softmax of one of the row's logits.
    pub(super) fn probability<S: Scalar>(&self, logit: S) -> f64 {
        (logit.to_f64() - self.peak).exp() / self.sum
    }
}
