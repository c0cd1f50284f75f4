//! Traces: every value a run computes, under names and in shapes that do not depend on the plan.
//!
//! A trace is what [`compare`](crate::compare) compares. It is recorded from a run
//! ([`Trace::record`]) or read from a file of tensors ([`Trace::read`]).

mod dump;
mod names;
mod record;

use std::ops::Range;

use crate::tensors::Dtype;

/// The values of a run, or the tensors of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// In order of computation, if that is known.
    pub tensors: Vec<Traced>,
    /// Whether the order is that of computation.
    pub ordered: bool,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced {
    /// An output's name; or that of an op's value, `scope/op.number`, followed by `:output` where it
    /// is not the op's first, and by `@sample`, `@text` or `@box`, what its rows are. The number
    /// counts the ops of that name and kind of rows in the scope.
    pub name: String,
    /// How the values were stored.
    pub dtype: Dtype,
    /// The samples, then the rows of each where a sample has several, then the axes of a row. What
    /// belongs to no sample has the micro-batches as its first axis.
    pub shape: Vec<usize>,
    /// Where not every row was computed: the leading rows of each sample that were. The others hold
    /// zeros.
    pub rows: Option<Vec<usize>>,
    /// The elements, row-major.
    pub values: Vec<f32>,
}

impl Traced {
    /// The scope and the op, unless it is an output.
    pub fn origin(&self) -> Option<(&str, &str)> {
        origin(&self.name)
    }

    /// The elements of each sample that were computed, by their positions in `values`: all of them
    /// at once where that is every one.
    pub(crate) fn computed(&self) -> Vec<Range<usize>> {
        let Some(rows) = &self.rows else {
            return std::iter::once(0..self.values.len()).collect();
        };
        let row: usize = self.shape.iter().skip(2).product();
        let sample = self.shape.get(1).map_or(0, |rows| rows * row);
        let of_sample = |(index, rows): (usize, &usize)| {
            let start = index * sample;
            start..start + rows * row
        };
        rows.iter().enumerate().map(of_sample).collect()
    }

    /// The coordinates of an element.
    pub(crate) fn coordinates(&self, element: usize) -> Vec<usize> {
        let mut rest = element;
        let mut coordinates: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&extent| {
                let coordinate = rest % extent.max(1);
                rest /= extent.max(1);
                coordinate
            })
            .collect();
        coordinates.reverse();
        coordinates
    }
}

/// The scope and the op in the name of an op's value; `None` for the name of an output.
pub(crate) fn origin(name: &str) -> Option<(&str, &str)> {
    let (scope, rest) = name.rsplit_once('/')?;
    let op = rest.split('.').next().unwrap_or(rest);
    Some((scope, op))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_coordinates_and_rows_that_count() {
        let traced = Traced {
            name: "lxmert.pooler/linear.0:1@text".to_owned(),
            dtype: Dtype::F32,
            shape: vec![2, 3, 4],
            rows: Some(vec![1, 2]),
            values: vec![0.0; 24],
        };
        assert_eq!(traced.origin(), Some(("lxmert.pooler", "linear")));
        assert_eq!(traced.computed(), [0..4, 12..20]);
        assert_eq!(traced.coordinates(17), [1, 1, 1]);
        assert_eq!(origin("loss"), None);
    }
}
