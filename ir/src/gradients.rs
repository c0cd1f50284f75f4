//! From gradients of parameters to gradients of checkpoint tensors.

use std::collections::BTreeMap;

use crate::{Binding, Scalar, Shape, Tensor};

/// The gradient of each checkpoint tensor, from the outputs that are gradients, as
/// ([`crate::Output::gradient_of`], value) in the graph's order: the transpose of evaluating bindings. Rows of a
/// tensor that no parameter reads have zeros; what several parameters read adds up in the order given.
///
/// # Errors
/// A binding does not parse or fit its gradient, or `shape` knows no shape of a tensor in it.
pub fn gradients_by_tensor<'a, S: Scalar>(
    gradients: impl IntoIterator<Item = (&'a str, &'a Tensor<S>)>,
    shape: impl Fn(&str) -> Option<Shape>,
) -> Result<BTreeMap<String, Tensor<S>>, String> {
    let mut sums: BTreeMap<String, (Shape, Vec<S>)> = BTreeMap::new();
    for (text, gradient) in gradients {
        let binding: Binding = text.parse()?;
        let whole = binding.shape(&shape)?;
        if whole != gradient.shape {
            return Err(format!("gradient {} of `{text}` {whole}", gradient.shape));
        }
        let rows = |tensor: &str| shape(tensor).map_or(0, |shape| shape.rows());
        let mut left = gradient.reals();
        for piece in binding.pieces(0, whole.rows(), &rows) {
            let (shape, sum) = sums.entry(piece.tensor.to_owned()).or_insert_with(|| {
                let shape = shape(piece.tensor).unwrap_or_default();
                let zeros = vec![S::from_f64(0.0); shape.elements()];
                (shape, zeros)
            });
            let width = shape.row_elements();
            let own = &mut sum[piece.start * width..piece.end * width];
            let (given, rest) = left.split_at(own.len());
            let factor = S::from_f64(piece.factor.into());
            for (sum, &given) in own.iter_mut().zip(given) {
                *sum += factor * given;
            }
            left = rest;
        }
    }
    let tensors = sums.into_iter();
    Ok(tensors
        .map(|(name, (shape, sum))| (name, Tensor::real(shape, sum)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_binding_leads_back() {
        let shape = |name: &str| match name {
            "a" => Some(Shape::new(&[2, 2])),
            "b" => Some(Shape::new(&[3, 2])),
            _ => None,
        };
        let tensor = |rows: usize, values: &[f64]| {
            Tensor::<f64>::real(Shape::new(&[rows, 2]), values.to_vec())
        };
        let merged = tensor(3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let whole = tensor(2, &[10.0, 20.0, 30.0, 40.0]);
        let given = [
            ("concat(rows(1, 2, b), scale(0.5, a))", &merged),
            ("a", &whole),
        ];
        let got = gradients_by_tensor(given, shape).unwrap();
        assert_eq!(got["a"], tensor(2, &[11.5, 22.0, 32.5, 43.0]));
        assert_eq!(got["b"], tensor(3, &[0.0, 0.0, 1.0, 2.0, 0.0, 0.0]));
        assert!(gradients_by_tensor([("c", &whole)], shape).is_err());
        assert!(gradients_by_tensor([("b", &whole)], shape).is_err());
    }
}
