//! Bindings read backwards: from the values of parameters to the tensors of a checkpoint.

use std::collections::BTreeMap;

use lxpod_ir::{Binding, Shape, Tensor};

use crate::error::{Error, Result};

/// Rows of a checkpoint tensor as a parameter holds them.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    first_row: usize,
    /// Whole rows.
    values: &'a [f32],
    /// What the parameter holds them multiplied by: a power of two.
    factor: f32,
}

/// The values of trained parameters, by the checkpoint tensors they are made of.
#[derive(Debug, Default)]
pub(super) struct Scattered<'a> {
    parts: BTreeMap<String, Vec<Part<'a>>>,
}

impl<'a> Scattered<'a> {
    /// Takes parameters apart. `shape` tells the shape of a checkpoint tensor.
    ///
    /// # Errors
    /// [`Error::Internal`] when a value does not have its binding's shape.
    pub(super) fn new(
        parameters: &[(Binding, &'a Tensor<f32>)],
        shape: &impl Fn(&str) -> Option<Shape>,
    ) -> Result<Self> {
        let mut scattered = Scattered::default();
        for (binding, value) in parameters {
            let expected = binding.shape(shape).map_err(Error::internal)?;
            if value.shape != expected || value.reals().len() != expected.elements() {
                let found = &value.shape;
                return Err(Error::internal(format!(
                    "parameter {binding} is {found}, not {expected}"
                )));
            }
            let width = expected.row_elements();
            let rows = |name: &str| shape(name).map_or(0, |shape| shape.rows());
            let mut at = 0;
            for piece in binding.pieces(0, expected.rows(), &rows) {
                let end = at + (piece.end - piece.start) * width;
                let part = Part {
                    first_row: piece.start,
                    values: &value.reals()[at..end],
                    factor: piece.factor,
                };
                scattered
                    .parts
                    .entry(piece.tensor.to_owned())
                    .or_default()
                    .push(part);
                at = end;
            }
        }
        Ok(scattered)
    }

    /// Whether parameters hold any row of a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.parts.contains_key(tensor)
    }

    /// The values of a tensor; rows that no parameter holds are as `untrained` reads them.
    ///
    /// # Errors
    /// Those of `untrained`; [`Error::Internal`] when two parameters disagree about a row.
    pub(super) fn tensor(
        &self,
        name: &str,
        shape: &Shape,
        untrained: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let parts = self.parts.get(name).map_or(&[][..], Vec::as_slice);
        let width = shape.row_elements();
        let mut values = vec![0.0; shape.elements()];
        let held: usize = parts.iter().map(|part| part.values.len()).sum();
        if held < values.len() || parts.len() > 1 {
            untrained(&mut values)?;
        }
        let mut written = vec![false; shape.rows()];
        for part in parts {
            for (offset, row) in part.values.chunks_exact(width.max(1)).enumerate() {
                let row_number = part.first_row + offset;
                let target = &mut values[row_number * width..(row_number + 1) * width];
                let inverse = row.iter().map(|value| value / part.factor);
                if !std::mem::replace(&mut written[row_number], true) {
                    target
                        .iter_mut()
                        .zip(inverse)
                        .for_each(|(to, from)| *to = from);
                } else if !inverse
                    .map(f32::to_bits)
                    .eq(target.iter().map(|value| value.to_bits()))
                {
                    let what = format!("two values of row {row_number} of `{name}` after training");
                    return Err(Error::internal(what));
                }
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxpod_backends::reference::bind;

    fn shape(name: &str) -> Option<Shape> {
        match name {
            "q" | "k" => Some(Shape::new(&[2, 3])),
            "table" => Some(Shape::new(&[4, 3])),
            "bias" => Some(Shape::new(&[4])),
            _ => None,
        }
    }

    fn tensor_of(name: &str) -> (Shape, Vec<f32>) {
        let shape = shape(name).expect("known");
        let first = name.len() as f32 * 100.0;
        let values = (0..shape.elements())
            .map(|at| first + at as f32 / 3.0)
            .collect();
        (shape, values)
    }

    fn round_trip(bindings: &[&str], name: &str) -> Result<Vec<f32>> {
        let bindings: Vec<Binding> = bindings.iter().map(|text| text.parse().unwrap()).collect();
        let values: Vec<Tensor<f32>> = bindings
            .iter()
            .map(|binding| bind(binding, |name| Some(tensor_of(name))).unwrap())
            .collect();
        let parameters: Vec<_> = bindings.into_iter().zip(&values).collect();
        let scattered = Scattered::new(&parameters, &shape)?;
        assert!(scattered.has(name));
        scattered.tensor(name, &shape(name).unwrap(), |out| {
            out.fill(-1.0);
            Ok(())
        })
    }

    #[test]
    fn what_a_binding_reads_is_written_back() {
        let all = "concat(q, scale(0.125, k), rows(1, 3, table))";
        assert_eq!(round_trip(&[all], "q").unwrap(), tensor_of("q").1);
        assert_eq!(round_trip(&[all], "k").unwrap(), tensor_of("k").1);
        let table = round_trip(&[all], "table").unwrap();
        assert_eq!(table[3..9], tensor_of("table").1[3..9]);
        assert!(
            table[..3]
                .iter()
                .chain(&table[9..])
                .all(|&value| value == -1.0)
        );
        assert_eq!(
            round_trip(&["scale(-4.0, bias)"], "bias").unwrap(),
            tensor_of("bias").1
        );
        let halves = ["rows(0, 2, table)", "rows(2, 4, table)"];
        assert_eq!(round_trip(&halves, "table").unwrap(), tensor_of("table").1);
        let nested = "rows(1, 4, concat(rows(0, 1, k), scale(2.0, table)))";
        let table = round_trip(&[nested], "table").unwrap();
        assert_eq!(table[..9], tensor_of("table").1[..9]);
    }

    #[test]
    fn parameters_that_share_a_tensor_must_agree() {
        let shared = ["concat(q, k)", "scale(0.5, q)"];
        assert_eq!(round_trip(&shared, "q").unwrap(), tensor_of("q").1);
        let one = Tensor::real([2, 3], vec![1.0; 6]);
        let two = Tensor::real([2, 3], vec![2.0; 6]);
        let q = || Binding::Tensor("q".to_owned());
        let parameters = [(q(), &one), (q(), &two)];
        let scattered = Scattered::new(&parameters, &shape).unwrap();
        let values = scattered.tensor("q", &shape("q").unwrap(), |_| Ok(()));
        assert!(values.unwrap_err().to_string().contains("row 0 of `q`"));
    }

    #[test]
    fn a_value_of_another_shape_is_refused() {
        let value = Tensor::real([3, 3], vec![0.0; 9]);
        let parameters = [("concat(q, k)".parse().unwrap(), &value)];
        assert!(Scattered::new(&parameters, &shape).is_err());
        let parameters = [("absent".parse().unwrap(), &value)];
        assert!(Scattered::new(&parameters, &shape).is_err());
    }
}
