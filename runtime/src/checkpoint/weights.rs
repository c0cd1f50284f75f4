//! Where parameters come from.

use super::Checkpoint;
use crate::error::Result;
use std::ops::Range;

/// A source of parameters by canonical name. Reads may run on several threads at once.
pub trait Weights: Send + Sync {
    /// The shape of a parameter.
    ///
    /// # Errors
    /// [`InvalidFile`](crate::error::Error::InvalidFile) when the source has no such parameter.
    fn shape(&self, name: &str) -> Result<&[usize]>;

    /// Writes rows `rows` of axis 0, trailing axes flattened, to `out`, as f32. A scalar has one row.
    ///
    /// # Errors
    /// As [`Weights::shape`]; [`Internal`](crate::error::Error::Internal) when the rows leave the parameter or do
    /// not fill `out`; errors of the source.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
}

impl Weights for Checkpoint {
    fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.info.shape)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_rows_f32(name, rows, out)
    }
}
