//! `gather`: rows of a table by index.

use std::ops::Range;

use thiserror::Error;

use super::{Kernels, Panels, View, ViewMut, elementwise};

/// An index that points outside the table.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("index {index} at position {position}: the table has {rows} rows")]
pub struct IndexError {
    /// The index.
    pub index: i32,
    /// Where it stands among the indices.
    pub position: usize,
    /// Rows of the table.
    pub rows: usize,
}

/// The table row that `indices[position]` names.
fn lookup(indices: &[i32], position: usize, rows: usize) -> Result<usize, IndexError> {
    let index = indices[position];
    usize::try_from(index)
        .ok()
        .filter(|&i| i < rows)
        .ok_or(IndexError {
            index,
            position,
            rows,
        })
}

/// Row `i` of `out` = row `indices[i]` of `table`, for `i` in `rows`, rounded to the dtype of `out`.
///
/// # Errors
/// At the first index outside the table; rows before it are written.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn gather(
    kernels: &Kernels,
    table: View<'_>,
    indices: &[i32],
    mut out: ViewMut<'_>,
    rows: Range<usize>,
) -> Result<(), IndexError> {
    assert_eq!(indices.len(), out.rows(), "one index per output row");
    for i in rows {
        let row = lookup(indices, i, table.rows())?;
        let to = out.reborrow().row_range(i..i + 1);
        elementwise::copy(kernels, table.row_range(row..row + 1), to, 0..1);
    }
    Ok(())
}

/// [`gather`] from a table that is stored as the packed weight of a linear layer (a tied decoder).
///
/// # Errors
/// At the first index outside the table; rows before it are written.
///
/// # Panics
/// If shapes disagree or rows are out of range.
pub fn gather_panels(
    kernels: &Kernels,
    table: &Panels,
    indices: &[i32],
    mut out: ViewMut<'_>,
    rows: Range<usize>,
) -> Result<(), IndexError> {
    const CHUNK: usize = 256;
    assert_eq!(indices.len(), out.rows(), "one index per output row");
    assert_eq!(table.k(), out.cols(), "columns of the table");
    let mut values = [0.0; CHUNK];
    for i in rows {
        let row = lookup(indices, i, table.n())?;
        for first in (0..table.k()).step_by(CHUNK) {
            let values = &mut values[..CHUNK.min(table.k() - first)];
            table.read_row(row, first, values);
            out.store_row(kernels, i, first, values);
        }
    }
    Ok(())
}
