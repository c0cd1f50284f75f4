//! `matmul`: A · B with B as it is stored, row by row; A as it is stored or transposed.
//!
//! A sum may be over some ranges of the summed index, and go on from an accumulator: a weight's gradient of several
//! micro-batches. Where each is rounded, there are several sums; all of them are taken for a block of results before the next block,
//! so that results wait in a cache.
//!
//! A block of results is taken at a time, and of the summed index a share: the block's columns of B are packed, into the
//! second-level cache, then a few rows of A at a time, unless they lie as a tile reads them, into the first; they pass all columns
//! before the next rows. Where A is given by rows, the first of its rows pack B as they pass it, so that the stores wait behind
//! multiply-adds. Sums wait in f32 between shares. This is the order of Goto and van de Geijn, *Anatomy of High-Performance
//! Matrix Multiplication* (2008), with the sides exchanged.

mod chains;
mod drain;
mod sides;
mod tile;

use std::ops::Range;

use lxpod_ir::DType;

use super::gemm::{Feed, Tiles};
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{Floats, Half, Left, Right, Single, Tiled, WIDE_ROWS};
use super::view::Row;
use super::{Kernels, Scratch, View};
use chains::Share;
pub use chains::{Chain, Start};
use drain::Drain;
use tile::Tile;

/// The most products summed at a time: as many values of a tile's rows of A are half of the first-level cache.
const DEPTH: usize = 512;

/// The most panels of 16 columns of a block of results: their share of B is three quarters of the second-level cache.
const PANELS: usize = 24;
/// The same where A is given by rows: B is a weight then, and its next share, on its way from the memory, needs room there too.
const FEW_PANELS: usize = 12;

/// The most rows of a block whose sums wait between shares, and of one whose sums do not: its columns of B are packed once for
/// all blocks that a worker takes of them, so that it may be small.
const ROWS: usize = 288;
const FEW_ROWS: usize = 96;

/// The most panels of a tile, in any table.
const MOST_PANELS: usize = 3;

/// Tiles whose rows of A are packed at once, where it is given by columns: what is read of its rows are whole cache lines.
const TOGETHER: usize = 8;

/// f32 values of scratch that [`matmul`] needs: the rows of some tiles of A, the results of a tile that go past the caches, B's columns,
/// and sums.
pub const MATMUL_SCRATCH: usize = SUMS + ROWS * PANELS * PANEL;
/// Values from one tile's rows of A to the next: no multiple of 4 KiB, so that they do not share their cache sets.
const LEFT: usize = DEPTH * WIDE_ROWS + LINE;
/// The same from one row of A to the next, where it is given by rows.
const ROW: usize = DEPTH + LINE;
const RESULTS: usize = TOGETHER * LEFT;
const RIGHT: usize = RESULTS + WIDE_ROWS * MOST_PANELS * PANEL;
const SUMS: usize = RIGHT + DEPTH * PANELS * PANEL;

/// A product.
#[derive(Clone, Copy)]
pub struct Matmul<'a> {
    /// The left side, \[m, d\], or if `transposed` \[d, m\].
    pub a: View<'a>,
    /// Whether the left side is given by columns.
    pub transposed: bool,
    /// The right side, \[d, n\].
    pub b: View<'a>,
    /// How many workers share it: it is cut into blocks for them.
    pub workers: usize,
}

impl Matmul<'_> {
    fn rows(&self) -> usize {
        if self.transposed {
            self.a.cols()
        } else {
            self.a.rows()
        }
    }

    /// The number of units: blocks of results, that may be done in any order, by anyone. A worker does well to take one after the
    /// other.
    pub fn units(&self) -> usize {
        Cut::of(self).count()
    }
}

/// How a product is cut into blocks of results: by columns into pieces of whole panels, and each of them by rows. Unit `u` is
/// block `u % blocks` of piece `u / blocks`.
struct Cut {
    /// Rows and columns of the product.
    shape: (usize, usize),
    /// Rows of each block but the last of a piece, and columns of each piece but the last.
    rows: usize,
    columns: usize,
}

impl Cut {
    fn of(product: &Matmul<'_>) -> Self {
        let shape = (product.rows(), product.b.cols());
        let most = if product.b.rows() > DEPTH {
            ROWS
        } else {
            FEW_ROWS
        };
        let blocks = shape.0.div_ceil(most).max(1);
        // Four units or more for each worker, whole tiles, and all columns that the cache has room for.
        let panels = shape.1.div_ceil(PANEL) * blocks / (4 * product.workers.max(1));
        let most = if product.transposed {
            PANELS
        } else {
            FEW_PANELS
        };
        let panels = (panels / MOST_PANELS * MOST_PANELS).clamp(MOST_PANELS, most);
        Cut {
            shape,
            rows: shape.0.div_ceil(blocks).next_multiple_of(WIDE_ROWS),
            columns: panels * PANEL,
        }
    }

    fn blocks(&self) -> usize {
        self.shape.0.div_ceil(self.rows.max(1))
    }

    fn count(&self) -> usize {
        self.shape.1.div_ceil(self.columns) * self.blocks()
    }

    /// Rows and columns of unit `u`.
    fn block(&self, u: usize) -> (Range<usize>, Range<usize>) {
        let part = |index, size, all: usize| index * size..all.min((index + 1) * size);
        (
            part(u % self.blocks(), self.rows, self.shape.0),
            part(u / self.blocks(), self.columns, self.shape.1),
        )
    }
}

/// Writes the given units of A · B, one [`Chain`] after the other.
///
/// Each element of a chain's result is one sum in the chain's order, in f32, whatever the units are, rounded once to the dtype of
/// `out`. `scratch` must have [`MATMUL_SCRATCH`] values. Where results go past the caches, it returns the sum of their squares, in
/// f64 and in the order in which they were done, so that they need not be read again for it.
///
/// # Panics
/// If shapes disagree, or units or what chains are over are out of range.
pub fn matmul(
    kernels: &Kernels,
    product: &Matmul<'_>,
    chains: &[Chain<'_>],
    units: &mut dyn Iterator<Item = Range<usize>>,
    scratch: &mut Scratch,
) -> Option<f64> {
    let Matmul {
        a, transposed, b, ..
    } = *product;
    let depth = if transposed { a.rows() } else { a.cols() };
    assert_eq!(depth, b.rows(), "summed index of a product");
    let shape = (product.rows(), b.cols());
    chains.iter().for_each(|chain| chain.check(depth, shape));
    let work = scratch.take(MATMUL_SCRATCH);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.matmul)(Args {
            product,
            chains,
            units,
            work,
        })
    }
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
pub(super) unsafe fn run<S: Tiled>(s: S, args: Args<'_>) -> Option<f64> {
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
unsafe fn all_units<S: Tiled, W: Floats>(s: S, args: Args<'_>) -> Option<f64> {
    let (product, cut) = (args.product, Cut::of(args.product));
    // Results that another chain begins with are better in a cache.
    let streams = matches!(args.chains, [chain] if chain.streams());
    let mut squares = [0.0; PANEL];
    let mut traffic = Traffic {
        packed: None,
        feed: Feed::none(),
        drain: Drain::new(&mut squares),
    };
    let mut units = args.units.flatten().peekable();
    while let Some(unit) = units.next() {
        assert!(unit < cut.count(), "unit {unit} of a product");
        let (rows, columns) = cut.block(unit);
        let next = units.peek().map(|&unit| cut.block(unit));
        let next = next.map(|(rows, columns)| (rows.start, columns.start));
        for (index, chain) in args.chains.iter().enumerate() {
            let behind = args.chains.get(index + 1);
            let again = args.chains.first().zip(next);
            let block = Block {
                product,
                chain,
                index,
                next: behind
                    .map(|chain| (chain, (rows.start, columns.start)))
                    .or(again),
                rows: rows.clone(),
                columns: columns.clone(),
                streams,
                work: args.work.as_mut_ptr(),
            };
            // SAFETY: the caller's contract; rows and columns exist.
            unsafe { block.run::<S, W>(s, &mut traffic) };
        }
    }
    // SAFETY: the results were stored for it, and their places exist.
    unsafe { traffic.drain.all(s) };
    if streams {
        s.fence();
    }
    streams.then(|| squares.iter().sum())
}

/// A block of results of one chain.
struct Block<'a> {
    product: &'a Matmul<'a>,
    chain: &'a Chain<'a>,
    /// The number of the chain.
    index: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    /// The chain and the first row and column of the block to follow.
    next: Option<(&'a Chain<'a>, (usize, usize))>,
    /// Whether results go past the caches.
    streams: bool,
    work: *mut f32,
}

/// What passes between the memory and the caches while tiles are at work.
#[derive(Clone, Copy)]
struct Traffic {
    /// What is packed of B, as (chain, start of the share, first column).
    packed: Option<(usize, usize, usize)>,
    /// What is packed next, step by step.
    feed: Feed,
    /// Results of the tile before.
    drain: Drain,
}

impl Block<'_> {
    /// # Safety
    /// The rows and columns exist, and `work` has [`MATMUL_SCRATCH`] values that nobody else uses.
    #[inline(always)]
    unsafe fn run<S: Tiled, W: Floats>(&self, s: S, traffic: &mut Traffic) {
        let tiles = Tiles::new(self.rows.len(), S::WIDE.0);
        let mut shares = self.chain.shares().peekable();
        while let Some(share) = shares.next() {
            let ahead = shares.peek().copied();
            let right = Some((self.index, share.start, self.columns.start));
            let mut unpacked = None;
            if traffic.packed != right {
                unpacked = self.rows_of_right(share);
                // SAFETY: the caller's contract; the share exists.
                unsafe { self.pack_right::<S, W>(s, share, unpacked.is_some()) };
                traffic.packed = right;
            }
            traffic.feed = self.feed_right::<S>(share, ahead, tiles.count());
            let most = if self.product.transposed { TOGETHER } else { 1 };
            for start in (0..tiles.count()).step_by(most) {
                let some = start..tiles.count().min(start + most);
                if self.product.transposed {
                    traffic.feed = self.feed_left::<S>(share, ahead, tiles, &some);
                }
                // SAFETY: as above; the tiles exist.
                unsafe {
                    let first = self.left(s, share, tiles, &some);
                    for tile in some {
                        let left = first.behind((tile - start) * LEFT);
                        self.row_of_tiles(
                            s,
                            share,
                            tiles.tile(tile),
                            (left, unpacked.take()),
                            traffic,
                        );
                    }
                }
            }
        }
    }

    /// Adds the products of a share to the sums of a few rows, (first in the block, count), of which A's are `left`. B's share of the widest
    /// tiles is packed by the way, if it is `unpacked`.
    ///
    /// # Safety
    /// As [`Block::run`]; the rows exist, and the share is packed but for that.
    #[inline(always)]
    unsafe fn row_of_tiles<S: Tiled>(
        &self,
        s: S,
        share: Share,
        (first, rows): (usize, usize),
        (left, unpacked): (Left, Option<(Row, usize)>),
        traffic: &mut Traffic,
    ) {
        for (column, panels) in self.groups::<S>() {
            let packed = self.right(share, column);
            let by_tile = unpacked.filter(|_| self.is_wide::<S>(column));
            let tile = Tile {
                block: self,
                share,
                column,
                first,
                left,
                right: match by_tile {
                    Some((row, step)) => Right::Rows(row.at(column).cast(), step, packed),
                    None => Right::Packed(packed),
                },
            };
            // SAFETY: the caller's contract.
            unsafe { tile.add_share(s, rows, panels, traffic) };
        }
    }

    /// Whether all columns of the widest tile from `column` on exist.
    #[inline(always)]
    fn is_wide<S: Tiled>(&self, column: usize) -> bool {
        column + S::WIDE.1 * PANEL <= self.columns.end
    }

    /// The panels that tiles take at once, as (first column, panels): as many as the widest tile has, then one at a time.
    #[inline(always)]
    fn groups<S: Tiled>(&self) -> impl Iterator<Item = (usize, usize)> {
        let Range { start, end } = self.columns;
        let mut next = start;
        std::iter::from_fn(move || {
            let column = next;
            let panels = if self.is_wide::<S>(column) {
                S::WIDE.1
            } else {
                1
            };
            next += panels * PANEL;
            (column < end).then_some((column, panels))
        })
    }
}
