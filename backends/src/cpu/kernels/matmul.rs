//! `matmul`: A · B with B as it is stored, row by row; A as it is stored or transposed.
//!
//! B needs no packing beforehand: the first tile of rows that meets 16 of its columns packs them for the others,
//! with instructions that cost it no time. The summed index is cut into shares of [`DEPTH`], so that what one share
//! reads of A and B stays in the nearer caches; sums wait in f32 between shares.

mod tile;

use std::ops::Range;

use lxpod_ir::DType;

use super::gemm::{BLOCK, Feed, Tiles, pack_columns, widen};
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{Floats, Half, LANES, Simd, Single, Tiled, has_tile};
use super::{Addend, Kernels, Scratch, View, ViewMut};
use tile::{Rows, Tile};

/// The most rows that pass 16 columns before the next: their share of A stays in the second-level cache.
const ROW_BLOCK: usize = 96;

/// Products summed at a time: 16 columns of that many rows of B are a quarter of the first-level cache.
const DEPTH: usize = 128;

/// Panels of B that are fetched together: runs of a few cache lines come faster than lines alone.
const GROUP: usize = 4;

/// Values from one row of A's share to the next: rows of a multiple of 4 KiB would share their cache sets.
const A_ROW: usize = DEPTH + LINE;

/// The most panels of 16 columns whose sums wait side by side, in the second-level cache.
const STRIP: usize = 24;

/// Panels that a worker does well to take at a time: fewer, and it reads A more often.
const GRAIN: usize = GROUP;

/// f32 values of scratch that [`matmul`] needs.
pub const MATMUL_SCRATCH: usize = SUMS + ROW_BLOCK * STRIP * PANEL;
/// Where the packed columns lie in the scratch, after A's share.
const PACKED: usize = ROW_BLOCK * A_ROW;
/// Where the sums lie.
const SUMS: usize = PACKED + DEPTH * PANEL;

/// A product.
#[derive(Clone, Copy)]
pub struct Matmul<'a> {
    /// The left side, \[m, d\], or if `transposed` \[d, m\].
    pub a: View<'a>,
    /// Whether the left side is given by columns.
    pub transposed: bool,
    /// The right side, \[d, n\].
    pub b: View<'a>,
    /// Added to the finished sums.
    pub add: Addend<'a>,
}

impl Matmul<'_> {
    fn rows(&self) -> usize {
        if self.transposed {
            self.a.cols()
        } else {
            self.a.rows()
        }
    }

    fn panels(&self) -> usize {
        self.b.cols().div_ceil(PANEL)
    }

    /// The number of units: pieces of work that may be done in any order, by anyone. Unit `u` is panel
    /// `u % panels` (16 columns) of block `u / panels` of the rows.
    pub fn units(&self) -> usize {
        self.rows().div_ceil(ROW_BLOCK) * self.panels()
    }

    /// How many units a worker does well to take at a time.
    pub fn grain(&self) -> usize {
        GRAIN
    }

    /// Whether results go past the caches: they start a sum that the next micro-batch, or the update, goes on with, and
    /// the 16 columns of a panel are a cache line.
    fn streams(&self, out: &ViewMut<'_>) -> bool {
        let line = LINE * size_of::<f32>();
        let start = out.as_view().row(0).at(0).addr();
        let whole = (start | (out.stride() * size_of::<f32>())).is_multiple_of(line);
        matches!(self.add, Addend::Zeros) && out.dtype() == DType::F32 && out.rows() > 0 && whole
    }

    /// Rows of each block but the last: nearly equal, in whole tiles.
    fn block_rows(&self) -> usize {
        let blocks = self.rows().div_ceil(ROW_BLOCK).max(1);
        self.rows().div_ceil(blocks).next_multiple_of(12)
    }
}

/// Writes the given units of A · B (+ `add`) to `out`, \[m, n\].
///
/// Each element is one sum in ascending order, in f32, whatever the units are; `add` and one rounding to the dtype of
/// `out` follow. `out` may be the memory of `add`. `scratch` must have [`MATMUL_SCRATCH`] values.
///
/// # Panics
/// If shapes disagree or units are out of range.
pub fn matmul(
    kernels: &Kernels,
    product: &Matmul<'_>,
    out: ViewMut<'_>,
    units: &mut dyn Iterator<Item = Range<usize>>,
    scratch: &mut Scratch,
) {
    let Matmul { a, b, add, .. } = *product;
    let depth = if product.transposed {
        a.rows()
    } else {
        a.cols()
    };
    assert_eq!(depth, b.rows(), "summed index of a product");
    let shape = (product.rows(), b.cols());
    assert_eq!((out.rows(), out.cols()), shape, "output shape of a product");
    assert!(
        add.view()
            .is_none_or(|add| (add.rows(), add.cols()) == shape),
        "shape of what is added to a product"
    );
    let work = scratch.take(MATMUL_SCRATCH);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.matmul)(Args {
            product,
            out,
            units,
            work,
        })
    };
}

/// A checked call of [`matmul`].
pub(super) struct Args<'a> {
    product: &'a Matmul<'a>,
    out: ViewMut<'a>,
    units: &'a mut dyn Iterator<Item = Range<usize>>,
    work: &'a mut [f32],
}

/// The body of [`matmul`].
///
/// # Safety
/// The shapes were checked and `work` has [`MATMUL_SCRATCH`] values.
#[inline(always)]
pub(super) unsafe fn run<S: Tiled>(s: S, args: Args<'_>) {
    // SAFETY: the caller's contract.
    unsafe {
        match args.product.b.dtype() {
            DType::F16 => all_units::<S, Half>(s, args),
            _ => all_units::<S, Single>(s, args),
        }
    }
}

/// [`run`] for one type of right side.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn all_units<S: Tiled, W: Floats>(s: S, args: Args<'_>) {
    let (product, panels) = (args.product, args.product.panels());
    let streams = product.streams(&args.out);
    let mut ahead = args.units.next();
    while let Some(range) = ahead {
        assert!(range.end <= product.units(), "units {range:?}");
        ahead = args.units.next();
        let after = ahead.as_ref().map(|range| range.start);
        let mut unit = range.start;
        while unit < range.end {
            let (block, first) = (unit / panels, unit % panels * PANEL);
            let count = STRIP.min(range.end - unit).min(panels - unit % panels);
            let start = block * product.block_rows();
            unit += count;
            let next = Some(unit).filter(|&unit| unit < range.end).or(after);
            let strip = Strip {
                product,
                out: &args.out,
                next: next.map(|unit| unit % panels * PANEL),
                rows: start..product.rows().min(start + product.block_rows()),
                columns: first..product.b.cols().min(first + count * PANEL),
                streams,
                work: args.work.as_mut_ptr(),
            };
            // SAFETY: the caller's contract; rows and columns exist.
            unsafe { strip.run::<S, W>(s) };
        }
    }
    if streams {
        s.fence();
    }
}

/// Some panels of one block of rows.
struct Strip<'a> {
    product: &'a Matmul<'a>,
    out: &'a ViewMut<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// The first column of the strip to follow.
    next: Option<usize>,
    /// Whether results go past the caches.
    streams: bool,
    work: *mut f32,
}

/// A share of the summed index: a panel's part of it is one visit of all tiles.
#[derive(Clone, Copy)]
struct Share {
    start: usize,
    depth: usize,
    /// Whether sums start at zero.
    first: bool,
    /// Whether sums are finished after it.
    last: bool,
}

impl Strip<'_> {
    /// # Safety
    /// The rows and columns exist, and `work` has [`MATMUL_SCRATCH`] values that nobody else uses.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats>(&self, s: S) {
        let total = self.product.b.rows();
        let mut start = 0;
        loop {
            let depth = DEPTH.min(total - start);
            let share = Share {
                start,
                depth,
                first: start == 0,
                last: start + depth == total,
            };
            // SAFETY: the caller's contract; the share exists.
            unsafe {
                self.load_left(s, share);
                for first in self.columns.clone().step_by(GROUP * PANEL) {
                    let group = first..self.columns.end.min(first + GROUP * PANEL);
                    let mut feed = self.feed::<S>(share, group.clone());
                    for column in group.step_by(PANEL) {
                        self.panel::<S, W>(s, share, column, &mut feed);
                    }
                }
            }
            start += depth;
            if share.last {
                break;
            }
        }
    }

    /// A's share, row by row as f32.
    ///
    /// # Safety
    /// As [`Strip::run`]; the share exists.
    #[inline(always)]
    unsafe fn load_left<S: Simd>(&self, s: S, share: Share) {
        let summed = share.start..share.start + share.depth;
        // SAFETY: the scratch has room for the rows of a block, each rounded up to eight values.
        unsafe {
            if self.product.transposed {
                let a = self.product.a.col_range(self.rows.clone());
                for first in summed.clone().step_by(LANES) {
                    let count = LANES.min(summed.end - first);
                    let to = self.work.add(first - summed.start);
                    pack_columns(s, a, first, count, to, A_ROW);
                }
            } else {
                let a = self.product.a.col_range(summed);
                for (i, row) in self.rows.clone().enumerate() {
                    widen(s, a.row(row), share.depth, self.work.add(i * A_ROW));
                }
            }
        }
    }

    /// One share of the sums of the panel from `column` on.
    ///
    /// # Safety
    /// As [`Strip::run`]; A's share is loaded.
    #[inline(always)]
    unsafe fn panel<S: Tiled, W: Floats>(
        &self,
        s: S,
        share: Share,
        column: usize,
        feed: &mut Feed,
    ) {
        let b = self
            .product
            .b
            .row_range(share.start..share.start + share.depth);
        let whole = column + PANEL <= b.cols() && b.dtype() != DType::BF16;
        let packed = self.work.wrapping_add(PACKED);
        if !whole {
            // SAFETY: the columns exist; the scratch has room for a share of a panel.
            unsafe { pack_rows(s, b.col_range(column..b.cols().min(column + PANEL)), packed) };
        }
        let tiles = Tiles::new(self.rows.len(), S::MAX_ROWS);
        for i in 0..tiles.count() {
            let (first, rows) = tiles.tile(i);
            let tile = Tile {
                strip: self,
                share,
                column,
                first,
                source: (whole && i == 0 && share.depth > 0)
                    .then(|| (b.row(0).at(column), b.stride() * W::SIZE)),
            };
            /// The tile of so many rows, where the instruction set has it.
            macro_rules! tile {
                ($($count:literal),+) => {
                    match rows {
                        $($count if const { has_tile::<S>($count, 1) } => {
                            s.apart(Rows::<W, $count>::new(&tile, feed))
                        })+
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                };
            }
            // SAFETY: the caller's contract; all but the first tile read what that, or `pack_rows`, packed.
            unsafe {
                tile!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
            }
        }
    }

    /// What is read of B after a group of panels: the same share of the next group, the next share of the first, or what
    /// follows the strip.
    #[inline(always)]
    fn feed<S: Tiled>(&self, share: Share, group: Range<usize>) -> Feed {
        let b = self.product.b;
        let (start, column) = if b.rows() == 0 {
            return Feed::none();
        } else if group.end < self.columns.end {
            (share.start, group.end)
        } else if !share.last {
            (share.start + share.depth, self.columns.start)
        } else if let Some(next) = self.next {
            (0, next)
        } else {
            return Feed::none();
        };
        let count = DEPTH.min(b.rows() - start);
        let columns = (GROUP * PANEL).min(b.cols() - column);
        let size = b.dtype().size();
        let tiles = Tiles::new(self.rows.len(), S::MAX_ROWS).count();
        let blocks = group.len().div_ceil(PANEL) * tiles * (share.depth / BLOCK);
        Feed::runs(
            b.row(start).at(column),
            count,
            (columns * size, b.stride() * size),
            blocks,
        )
    }
}

/// Packs all rows of at most 16 columns as f32, missing columns as zeros.
///
/// # Safety
/// `to` is valid for writing 16 values a row.
#[inline(always)]
unsafe fn pack_rows<S: Simd>(s: S, b: View<'_>, to: *mut f32) {
    for r in 0..b.rows() {
        for c in [0, LANES] {
            let left = b.cols().saturating_sub(c);
            // SAFETY: the caller's contract; only columns that exist are read.
            unsafe {
                let x = if left > 0 {
                    b.row(r).load_up_to(s, c, left)
                } else {
                    s.splat(0.0)
                };
                s.store_f32(to.add(r * PANEL + c), x);
            }
        }
    }
}
