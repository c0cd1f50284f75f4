//! Matrix products in tiles: a few rows of a left side times panels of 16 columns.
//!
//! Every element of a product of floats is one chain of `fma`, in ascending order of the summed index, from +0. How rows are
//! grouped in tiles and panels in calls does not enter it; a chain may be cut and resumed, since it is kept in f32.
//! Products in fixed point are sums of integers ([`CHUNK`] inputs at a time), which have no order.

mod fixed;
mod lhs;
mod tile;

pub(super) use fixed::quantise;
pub(super) use lhs::{copy_columns, pack_columns, widen};
pub(super) use tile::{BLOCK, Feed, Fixed, LINE_BYTES, Packing, Tile, multiply};

/// A split of rows into as few tiles as possible, their sizes as equal as possible, larger ones first.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    count: usize,
    base: usize,
    larger: usize,
}

impl Tiles {
    /// The split of `rows` rows into tiles of at most `most`.
    #[inline(always)]
    pub(super) fn new(rows: usize, most: usize) -> Self {
        let count = rows.div_ceil(most);
        let base = rows.checked_div(count).unwrap_or(0);
        Tiles {
            count,
            base,
            larger: rows - base * count,
        }
    }

    /// Number of tiles.
    #[inline(always)]
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// First row and number of rows of tile `i`.
    #[inline(always)]
    pub(super) fn tile(self, i: usize) -> (usize, usize) {
        (
            i * self.base + i.min(self.larger),
            self.base + usize::from(i < self.larger),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Tiles;

    #[test]
    fn tiles_cover_all_rows_once() {
        for most in 1..=6 {
            for rows in 0..60 {
                let tiles = Tiles::new(rows, most);
                let mut next = 0;
                for i in 0..tiles.count() {
                    let (first, n) = tiles.tile(i);
                    assert_eq!(first, next);
                    assert!(n <= most && n >= tiles.base && n <= tiles.base + 1);
                    next += n;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
