//! `layer_norm_grad`: the cotangents of a layer norm.

use serde::{Deserialize, Serialize};

use super::layer_norm::mean;
use super::{Cost, Eval, Infer, LayerNorm, OpDef, Operand};
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// dz, dgain, dbias of [`LayerNorm`], z = x + residual; dz is the cotangent of x and of the residual.
///
/// With ẑ = (z − mean z) / √(var z + eps) and g = dy ∘ gain: dz = (g − mean g − ẑ · mean(g ∘ ẑ)) / √(var z
/// + eps), means over the last axis; dgain = Σ dy ∘ ẑ and dbias = Σ dy over all rows, ascending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNormGrad {
    /// As [`LayerNorm::eps`].
    pub eps: f64,
}

impl OpDef for LayerNormGrad {
    const NAME: &'static str = "layer_norm_grad";

    fn operands(&self) -> &'static [Operand] {
        &[
            Operand::Required("dy"),
            Operand::Required("x"),
            Operand::Required("gain"),
            Operand::Optional("residual"),
        ]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let dy = cx.float(0, "dy")?;
        for operand in [Some(1), cx.inputs.get(3).map(|_| 3)].into_iter().flatten() {
            cx.float(operand, self.operands()[operand].name())?;
            cx.same(0, operand)?;
        }
        let width = dy.shape.last_axis();
        cx.vector(2, "gain", width)?;
        let mut types = cx.like_first()?;
        types.extend([1, 2].map(|output| cx.output(output, None, [width].into(), dy.dtype)));
        Ok(types)
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(16)
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let (dy, x, gain) = (cx.inputs[0], cx.inputs[1], cx.inputs[2].reals());
        let width = gain.len();
        let zero = S::from_f64(0.0);
        let (mut dgain, mut dbias) = (vec![zero; width], vec![zero; width]);
        let mut dz = Vec::with_capacity(dy.shape.elements());
        for (row, dy) in dy.reals().chunks(width.max(1)).enumerate() {
            let range = row * width..row * width + dy.len();
            let mut z = x.reals()[range.clone()].to_vec();
            if let Some(residual) = cx.inputs.get(3) {
                let residual = &residual.reals()[range];
                z.iter_mut().zip(residual).for_each(|(z, &r)| *z += r);
            }
            let deviation = LayerNorm { eps: self.eps }.normalise(&mut z);
            for (i, (&dy, &z)) in dy.iter().zip(&z).enumerate() {
                dgain[i] += dy * z;
                dbias[i] += dy;
            }
            let g: Vec<S> = dy.iter().zip(gain).map(|(&dy, &gain)| dy * gain).collect();
            let centre = mean(g.iter().copied());
            let slope = mean(g.iter().zip(&z).map(|(&g, &z)| g * z));
            let each = g.iter().zip(&z);
            dz.extend(each.map(|(&g, &z)| (g - centre - z * slope) / deviation));
        }
        Ok(vec![
            Tensor::real(cx.shape(0), dz),
            Tensor::real(cx.shape(1), dgain),
            Tensor::real(cx.shape(2), dbias),
        ])
    }
}
