//! `linear`: activation(x · Wᵀ + bias) over packed weights.

use std::ops::Range;

use lxpod_ir::DType;
use lxpod_ir::ops::Activation;

use super::gemm::{
    BLOCK, Feed, Half, Packed, SLACK, Single, Tile, Tiles, Weights, group, multiply, pack_tile,
};
use super::math::activation;
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{LANES, Simd};
use super::view::{Row, RowMut};
use super::{Kernels, Panels, Scratch, View, ViewMut};

/// Rows that [`linear`] packs and multiplies at a time. A caller that splits rows over workers does well
/// to cut at multiples of this.
pub const ROW_BLOCK: usize = 96;

/// Inputs multiplied at a time, so that one panel's share stays in the first-level cache while the rows pass.
const DEPTH: usize = 768;

/// Values for the sums of one row and four panels, or two and two: the most that few rows have at once.
const FEW_ROWS: usize = 4 * PANEL;

/// A linear layer and its input.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// The input, \[m, k\].
    pub x: View<'a>,
    /// The weight, \[n, k\].
    pub weights: &'a Panels,
    /// Added to each row; n values.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Option<Activation>,
}

/// f32 values of scratch that [`linear`] needs for up to `m` rows of up to `k` inputs.
pub fn linear_scratch(m: usize, k: usize) -> usize {
    let rows = m.min(ROW_BLOCK);
    packed_len(rows, k) + (rows * PANEL).max(FEW_ROWS)
}

/// Values for `rows` packed rows, up to the next cache line.
fn packed_len(rows: usize, k: usize) -> usize {
    (rows * k + SLACK).next_multiple_of(LINE)
}

/// Writes the columns of activation(x · Wᵀ + bias) that belong to the given panels (16 columns each) to `out`, \[m, n\].
///
/// Each element is a sum over inputs in ascending order, in f32, whatever m and the panels are; bias, activation and one
/// rounding to the dtype of `out` follow. x is packed once per call and per [`ROW_BLOCK`] rows, so a call should take a good many panels.
/// `scratch` must have [`linear_scratch`] values.
///
/// # Panics
/// If shapes or lengths disagree, or panels are out of range.
pub fn linear(
    kernels: &Kernels,
    layer: &Linear<'_>,
    out: ViewMut<'_>,
    panels: Range<usize>,
    scratch: &mut Scratch,
) {
    let (m, k, n) = (layer.x.rows(), layer.weights.k(), layer.weights.n());
    assert_eq!(layer.x.cols(), k, "inputs of a linear layer");
    assert_eq!(
        (out.rows(), out.cols()),
        (m, n),
        "output shape of a linear layer"
    );
    assert!(
        layer.bias.is_none_or(|bias| bias.len() == n),
        "length of the bias"
    );
    assert!(
        panels.end <= layer.weights.panels(),
        "panels {panels:?} of {}",
        layer.weights.panels()
    );
    if m == 0 || panels.is_empty() {
        return;
    }
    let work = scratch.take(linear_scratch(m, k));
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.linear)(Args {
            layer,
            out,
            panels,
            work,
        })
    };
}

/// A checked call of [`linear`].
pub(super) struct Args<'a> {
    layer: &'a Linear<'a>,
    out: ViewMut<'a>,
    panels: Range<usize>,
    work: &'a mut [f32],
}

/// The body of [`linear`].
///
/// # Safety
/// The shapes were checked and `work` has [`linear_scratch`] values.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, mut args: Args<'_>) {
    let mut first = 0;
    while first < args.out.rows() {
        let rows = first..(first + ROW_BLOCK).min(args.out.rows());
        first = rows.end;
        // SAFETY: the caller's contract; the rows exist.
        unsafe {
            match args.layer.weights.dtype() {
                DType::F16 => row_block::<S, Half>(s, &mut args, rows),
                _ => row_block::<S, Single>(s, &mut args, rows),
            }
        }
    }
}

/// What the panels of one block of rows share.
struct Block<'a> {
    layer: &'a Linear<'a>,
    out: &'a ViewMut<'a>,
    first: usize,
    rows: usize,
    tiles: Tiles,
    packed: *const f32,
    sums: *mut f32,
}

/// All panels for some rows.
///
/// # Safety
/// As [`run`]; the rows exist.
#[inline(always)]
unsafe fn row_block<S: Simd, W: Weights>(s: S, args: &mut Args<'_>, rows: Range<usize>) {
    let k = args.layer.weights.k();
    let tiles = Tiles::new(rows.len(), S::MAX_ROWS);
    let packed = args.work.as_mut_ptr();
    for i in 0..tiles.count() {
        let (first, n) = tiles.tile(i);
        // SAFETY: tiles lie end to end in the scratch, what one writes past its end the next overwrites, and the
        // scratch has room for the last one's.
        unsafe {
            pack_tile(
                s,
                args.layer.x,
                rows.start + first,
                n,
                packed.add(first * k),
            )
        };
    }
    let sums = packed.wrapping_add(packed_len(rows.len(), k));
    let block = Block {
        layer: args.layer,
        out: &args.out,
        first: rows.start,
        rows: rows.len(),
        tiles,
        packed,
        sums,
    };
    let step = if tiles.count() == 1 {
        group(rows.len())
    } else {
        1
    };
    let mut p = args.panels.start;
    while p < args.panels.end {
        let count = step.min(args.panels.end - p);
        // SAFETY: the caller's contract; the panels exist and the scratch has room for the sums.
        unsafe {
            block.multiply::<S, W>(s, p, count, p + count < args.panels.end);
            block.finish(s, p, count);
        }
        p += count;
    }
}

impl Block<'_> {
    /// The sums of `count` panels from `p` on, into `sums`, \[rows, count · 16\].
    ///
    /// # Safety
    /// As [`run`]; the panels exist.
    #[inline(always)]
    unsafe fn multiply<S: Simd, W: Weights>(&self, s: S, p: usize, count: usize, more: bool) {
        let (w, w_panel) = self.layer.weights.panel(p);
        let k = self.layer.weights.k();
        let mut start = 0;
        loop {
            // Several panels go together only where there are few rows, which do not need cutting.
            let depth = if count > 1 { k } else { DEPTH.min(k - start) };
            let w = w.wrapping_add(start * PANEL * W::SIZE);
            let bytes = depth * PANEL * W::SIZE;
            let blocks = self.tiles.count() * depth.div_ceil(BLOCK);
            let last = start + depth == k;
            let mut feed = if last && !more {
                Feed::none()
            } else {
                Feed::new(w.wrapping_add(bytes), bytes, blocks)
            };
            for i in 0..self.tiles.count() {
                let (first, rows) = self.tiles.tile(i);
                let tile = Tile {
                    a: self.packed.wrapping_add(first * k + start * rows),
                    a_row: 1,
                    w,
                    w_panel,
                    depth,
                    c: self.sums.wrapping_add(first * count * PANEL),
                    c_row: count * PANEL,
                    fresh: start == 0,
                };
                // SAFETY: the caller's contract.
                unsafe { multiply::<S, W, Packed>(s, tile, rows, count, &mut feed) };
            }
            start += depth;
            if start >= k {
                break;
            }
        }
    }

    /// Bias, activation and rounding of what [`Block::multiply`] left.
    ///
    /// # Safety
    /// As [`run`]; the panels exist.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, p: usize, count: usize) {
        let n = self.layer.weights.n();
        for r in 0..self.rows {
            let out = self.out.row(self.first + r);
            let sums = self.sums.wrapping_add(r * count * PANEL);
            for half in 0..2 * count {
                let col = p * PANEL + half * LANES;
                if col < n {
                    // SAFETY: the sums were written; columns from `col` up to `n` exist.
                    unsafe {
                        self.store(s, s.load_f32(sums.add(half * LANES)), out, (col, n - col))
                    };
                }
            }
        }
    }

    /// Finishes eight sums and stores those of the `valid` columns from `col` on.
    ///
    /// # Safety
    /// The columns exist.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, sums: S::V, out: RowMut, (col, valid): (usize, usize)) {
        let mut y = sums;
        if let Some(bias) = self.layer.bias {
            // SAFETY: the bias has as many values as there are columns.
            y = s.add(y, unsafe { Row::of(bias).load_up_to(s, col, valid) });
        }
        if let Some(act) = self.layer.activation {
            y = activation(s, act, y);
        }
        // SAFETY: the caller's contract.
        unsafe { out.store(s, col, valid, y) };
    }
}
