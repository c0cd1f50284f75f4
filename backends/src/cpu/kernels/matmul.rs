//! `matmul`: A · B with B as it is stored, row by row; A as it is stored or transposed.
//!
//! The summed index may be cut into several sums, each finished before the next and added to what that is to be added to:
//! a weight's gradient of several micro-batches. All of them are taken for a block of results before the next block, so that
//! results that each sum is added to wait in registers or, where sums are long or rounded, in a cache.
//!
//! B needs no packing beforehand: the first tile of rows that meets a panel of its columns packs it for the others,
//! with instructions that cost it no time. The summed index is cut into shares of [`DEPTH`], so that what one share
//! reads of A and B stays in the nearer caches; sums wait in f32 between shares.

mod chains;
mod drain;
mod tile;

use std::ops::Range;

use lxpod_ir::DType;

use super::gemm::{BLOCK, Feed, Tiles, pack_columns, widen};
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{Floats, Half, LANES, Simd, Single, Tiled};
use super::{Kernels, Scratch, View};
pub use chains::Chain;
use chains::{Share, Total};
use drain::Drain;
use tile::{Rows, Tile};

/// The most rows that pass 16 columns before the next: their share of A stays in the second-level cache.
const ROW_BLOCK: usize = 192;

/// Products summed at a time: 32 columns of that many rows of B, and as many values of twelve rows of A, are half of the
/// first-level cache.
const DEPTH: usize = 96;

/// The most panels of B that a tile takes at once, and the most rows.
const MOST_AT_ONCE: usize = 2;
const MOST_ROWS: usize = 12;

/// Panels of B that are fetched together: longer runs come from memory faster, but a tile of one panel has room for fewer in the
/// first-level cache.
const fn fetched<S: Tiled>() -> usize {
    if at_once::<S>() > 1 { BLOCK } else { BLOCK / 2 }
}

/// Panels of B that a tile takes at once.
const fn at_once<S: Tiled>() -> usize {
    let many = S::PANELS[S::PANELS.len() - 1];
    assert!(many <= MOST_AT_ONCE);
    many
}

/// Values from one row of A's share to the next: rows of a multiple of 4 KiB would share their cache sets.
const A_ROW: usize = DEPTH + LINE;

/// The most panels of 16 columns whose sums wait side by side, in the second-level cache.
const STRIP: usize = 24;

/// Panels that a worker does well to take at a time: fewer, and it reads A more often.
const GRAIN: usize = BLOCK;

/// f32 values of scratch that [`matmul`] needs.
pub const MATMUL_SCRATCH: usize = RESULTS + MOST_ROWS * MOST_AT_ONCE * PANEL;
/// Where the packed panels lie in the scratch, after A's share, and the values from one to the next.
const PACKED: usize = ROW_BLOCK * A_ROW;
const PACKED_PANEL: usize = DEPTH * PANEL;
/// Where the sums lie.
const SUMS: usize = PACKED + MOST_AT_ONCE * PACKED_PANEL;
/// Where the results of one tile wait that go past the caches.
const RESULTS: usize = SUMS + ROW_BLOCK * STRIP * PANEL;

/// A product.
#[derive(Clone, Copy)]
pub struct Matmul<'a> {
    /// The left side, \[m, d\], or if `transposed` \[d, m\].
    pub a: View<'a>,
    /// Whether the left side is given by columns.
    pub transposed: bool,
    /// The right side, \[d, n\].
    pub b: View<'a>,
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

    /// Rows of each block but the last: nearly equal, in whole tiles.
    fn block_rows(&self) -> usize {
        let blocks = self.rows().div_ceil(ROW_BLOCK).max(1);
        self.rows().div_ceil(blocks).next_multiple_of(MOST_ROWS)
    }
}

/// Writes the given units of A · B, one [`Chain`] after the other.
///
/// Each element of a chain's result is one sum in the chain's order, in f32, whatever the units are; `add` and one rounding to
/// the dtype of `out` follow. `scratch` must have [`MATMUL_SCRATCH`] values.
///
/// # Panics
/// If shapes disagree, or units or what chains are over are out of range.
pub fn matmul(
    kernels: &Kernels,
    product: &Matmul<'_>,
    chains: &[Chain<'_>],
    units: &mut dyn Iterator<Item = Range<usize>>,
    scratch: &mut Scratch,
) {
    let Matmul { a, transposed, b } = *product;
    let depth = if transposed { a.rows() } else { a.cols() };
    assert_eq!(depth, b.rows(), "summed index of a product");
    let shape = (product.rows(), b.cols());
    for Chain { over, add, out } in chains {
        assert!(
            over.iter()
                .all(|range| range.start <= range.end && range.end <= depth),
            "sums over {over:?} of {depth}"
        );
        assert_eq!((out.rows(), out.cols()), shape, "output shape of a product");
        assert!(
            add.view()
                .is_none_or(|add| (add.rows(), add.cols()) == shape),
            "shape of what is added to a product"
        );
    }
    let work = scratch.take(MATMUL_SCRATCH);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.matmul)(Args {
            product,
            chains,
            units,
            work,
        })
    };
}

/// A checked call of [`matmul`].
pub(super) struct Args<'a> {
    product: &'a Matmul<'a>,
    chains: &'a [Chain<'a>],
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
    let totals = Total::all(args.chains);
    // Results that another chain adds to are better in a cache.
    let streams = totals.len() == 1 && totals.clone().all(Total::streams);
    let mut traffic = Traffic {
        feed: Feed::none(),
        drain: Drain::new(),
    };
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
            let next = next.map(|unit| unit % panels * PANEL);
            let again = totals.clone().next().zip(next);
            let behind = totals.clone().skip(1).map(|total| Some((total, first)));
            for (total, next) in totals.clone().zip(behind.chain([again])) {
                let strip = Strip {
                    product,
                    total,
                    next,
                    rows: start..product.rows().min(start + product.block_rows()),
                    columns: first..product.b.cols().min(first + count * PANEL),
                    streams,
                    work: args.work.as_mut_ptr(),
                };
                // SAFETY: the caller's contract; rows and columns exist.
                unsafe { strip.run::<S, W>(s, &mut traffic) };
            }
        }
    }
    // SAFETY: the results were stored for it, and their places exist.
    unsafe { traffic.drain.all(s) };
    if streams {
        s.fence();
    }
}

/// Some panels of one block of rows, of one total.
struct Strip<'a> {
    product: &'a Matmul<'a>,
    total: Total<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// The total and the first column of the strip to follow.
    next: Option<(Total<'a>, usize)>,
    /// Whether results go past the caches.
    streams: bool,
    work: *mut f32,
}

/// What passes between the memory and the caches while tiles are at work.
struct Traffic {
    /// What the tiles to follow read of B.
    feed: Feed,
    /// Results of the tile before.
    drain: Drain,
}

impl Strip<'_> {
    /// # Safety
    /// The rows and columns exist, and `work` has [`MATMUL_SCRATCH`] values that nobody else uses.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats>(&self, s: S, traffic: &mut Traffic) {
        let mut shares = self.total.shares();
        let mut ahead = shares.next();
        while let Some(share) = ahead {
            ahead = shares.next();
            // SAFETY: the caller's contract; the share exists.
            unsafe {
                self.load_left(s, share);
                for first in self.columns.clone().step_by(fetched::<S>() * PANEL) {
                    let group = first..self.columns.end.min(first + fetched::<S>() * PANEL);
                    traffic.feed = self.feed::<S>((share, ahead), group.clone());
                    let mut column = group.start;
                    while column < group.end {
                        let whole = (group.end - column) / PANEL >= at_once::<S>();
                        let panels = if whole { at_once::<S>() } else { 1 };
                        self.panels::<S, W>(s, share, (column, panels), traffic);
                        column += panels * PANEL;
                    }
                }
            }
        }
    }

    /// The tiles that a block of rows is cut into: those of several chains need registers for both a sum and a total.
    fn tiles<S: Tiled>(&self) -> Tiles {
        let most = if self.total.several() {
            S::MAX_ROWS / 2
        } else {
            S::MAX_ROWS
        };
        Tiles::new(self.rows.len(), most)
    }

    /// A's share, row by row as f32.
    ///
    /// # Safety
    /// As [`Strip::run`]; the share exists.
    #[inline(always)]
    unsafe fn load_left<S: Simd>(&self, s: S, share: Share<'_>) {
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

    /// One share of the sums of some panels, from a column on: as many as tiles take at once, or one.
    ///
    /// # Safety
    /// As [`Strip::run`]; A's share is loaded.
    #[inline(always)]
    unsafe fn panels<S: Tiled, W: Floats>(
        &self,
        s: S,
        share: Share<'_>,
        (column, panels): (usize, usize),
        traffic: &mut Traffic,
    ) {
        let b = self
            .product
            .b
            .row_range(share.start..share.start + share.depth);
        let whole = column + panels * PANEL <= b.cols() && b.dtype() != DType::BF16;
        let packed = self.work.wrapping_add(PACKED);
        if !whole {
            for p in 0..panels {
                let first = column + p * PANEL;
                let b = b.col_range(first..b.cols().min(first + PANEL));
                // SAFETY: the columns exist; the scratch has room for a share of as many panels.
                unsafe { pack_rows(s, b, packed.wrapping_add(p * PACKED_PANEL)) };
            }
        }
        let tiles = self.tiles::<S>();
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
            /// The tile of so many rows and panels, where the instruction set has it.
            macro_rules! tile {
                ($($count:literal),+) => {
                    match (rows, panels) {
                        $(($count, 1) if const { $count <= S::MAX_ROWS } => {
                            s.apart(Rows::<W, $count, 1>::new(&tile, traffic))
                        })+
                        $(($count, 2) if const { $count <= S::MAX_ROWS && at_once::<S>() == 2 } => {
                            s.apart(Rows::<W, $count, 2>::new(&tile, traffic))
                        })+
                        _ => unreachable!("a tile of {rows} rows and {panels} panels"),
                    }
                };
            }
            // SAFETY: the caller's contract; all but the first tile read what that, or `pack_rows`, packed.
            unsafe {
                tile!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
            }
        }
    }

    /// What is read of B after a group of panels: the same share of the next group, the share `ahead` of the first, or what
    /// follows the strip.
    #[inline(always)]
    fn feed<S: Tiled>(
        &self,
        (share, ahead): (Share<'_>, Option<Share<'_>>),
        group: Range<usize>,
    ) -> Feed {
        let b = self.product.b;
        let (next, column) = if group.end < self.columns.end {
            (Some(share), group.end)
        } else if ahead.is_some() {
            (ahead, self.columns.start)
        } else if let Some((total, column)) = self.next {
            (total.shares().next(), column)
        } else {
            return Feed::none();
        };
        let Some(next) = next.filter(|next| next.depth > 0) else {
            return Feed::none();
        };
        let columns = (fetched::<S>() * PANEL).min(b.cols() - column);
        let size = b.dtype().size();
        let tiles = self.tiles::<S>().count();
        let visits = group.len().div_ceil(PANEL * at_once::<S>());
        let blocks = visits * tiles * share.blocks();
        Feed::runs(
            b.row(next.start).at(column),
            next.depth,
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
