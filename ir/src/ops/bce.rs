//! `bce`: binary cross-entropy with logits.

use serde::{Deserialize, Serialize};

use super::{BceGrad, Cost, Eval, Infer, OpDef, Operand, Vjp};
use crate::DType;
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};

/// The mean over all elements of max(x, 0) − x·target + log(1 + e^−|x|), times `factor`, as an f32
/// scalar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bce {
    /// 1 for Transformers' mean; the number of labels for the original LXMERT's sum over labels.
    pub factor: f32,
}

impl OpDef for Bce {
    const NAME: &'static str = "bce";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("logits"), Operand::Required("targets")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        cx.float(0, "logits")?;
        cx.float(1, "targets")?;
        cx.same(0, 1)?;
        Ok(Types::from_elem(TensorType::fixed(DType::F32, []), 1))
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(16)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let mut read = vec![cx.cotangent()?];
        read.extend(cx.operands());
        let factor = self.factor;
        let dlogits = cx.emit(BceGrad { factor }, &read)?;
        cx.give(0, dlogits);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (logits, targets) = (cx.inputs[0].reals(), cx.inputs[1].reals());
        let loss = |(x, target): (&S, &S)| {
            let (x, target) = (x.to_f64(), target.to_f64());
            x.max(0.0) - x * target + (-x.abs()).exp().ln_1p()
        };
        let total: f64 = logits.iter().zip(targets).map(loss).sum();
        let mean = total / logits.len() as f64 * f64::from(self.factor);
        Ok(vec![Tensor::real([], vec![S::from_f64(mean)])])
    }
}
