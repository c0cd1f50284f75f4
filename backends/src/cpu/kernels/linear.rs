//! `linear`: activation(x · Wᵀ + bias) over packed weights.

use std::ops::Range;

use lxpod_ir::DType;
use lxpod_ir::ops::Activation;

use super::gemm::{BLOCK, Feed, Fixed, LINE_BYTES, Packing, Tile, Tiles, multiply};
use super::math::activation;
use super::pack::{Format, PANEL};
use super::scratch::LINE;
use super::simd::{Half, LANES, MOST_PANELS, Simd, Single, Tiled};
use super::view::Row;
use super::{Kernels, Panels, Scratch, View, ViewMut};

/// The most rows that pass one panel of weights before the next: their inputs stay in the second-level cache.
const ROW_BLOCK: usize = 96;

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

impl Linear<'_> {
    /// The number of units: pieces of work that may be done in any order, by anyone. Unit `u` is panel
    /// `u % panels` (16 columns) of block `u / panels` of the rows.
    pub fn units(&self) -> usize {
        row_blocks(self.x.rows()) * self.weights.panels()
    }

    /// How many units a worker does well to take at a time: rows pass several panels at once.
    pub fn grain(&self, kernels: &Kernels) -> usize {
        (kernels.panels)(self.x.rows())
    }
}

/// How many blocks `m` rows are cut into.
fn row_blocks(m: usize) -> usize {
    m.div_ceil(ROW_BLOCK)
}

/// Rows of each block but the last: nearly equal, in whole tiles.
fn block_rows(m: usize) -> usize {
    m.div_ceil(row_blocks(m).max(1)).next_multiple_of(12)
}

/// f32 values of scratch that [`linear`] needs for up to `m` rows of up to `k` inputs.
pub fn linear_scratch(m: usize, k: usize) -> usize {
    ROW_BLOCK + sums_len(m) + m.min(ROW_BLOCK) * wide_row(k)
}

/// Values of the sums of a block, in whole cache lines.
fn sums_len(m: usize) -> usize {
    let [one, two, three, more] = MOST_PANELS;
    one.max(2 * two).max(3 * three).max(m.min(ROW_BLOCK) * more) * PANEL
}

/// Places from one row of packed inputs to the next. A row of a multiple of 4 KiB would share its cache sets with all
/// others.
fn wide_row(k: usize) -> usize {
    k.next_multiple_of(LINE) + LINE
}

/// Writes the given units of activation(x · Wᵀ + bias) to `out`, \[m, n\].
///
/// Each element is a sum over inputs in ascending order, in f32, whatever m and the units are; bias, activation and one
/// rounding to the dtype of `out` follow. `units` is asked for one range ahead, so that the weights of the next can be
/// fetched in time. `scratch` must have [`linear_scratch`] values.
///
/// # Panics
/// If shapes or lengths disagree, or units are out of range.
pub fn linear(
    kernels: &Kernels,
    layer: &Linear<'_>,
    out: ViewMut<'_>,
    units: &mut dyn Iterator<Item = Range<usize>>,
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
    let work = scratch.take(linear_scratch(m, k));
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.linear)(Args {
            layer,
            out,
            units,
            work,
        })
    };
}

/// A checked call of [`linear`].
pub(super) struct Args<'a> {
    layer: &'a Linear<'a>,
    out: ViewMut<'a>,
    units: &'a mut dyn Iterator<Item = Range<usize>>,
    work: &'a mut [f32],
}

/// The body of [`linear`].
///
/// # Safety
/// The shapes were checked and `work` has [`linear_scratch`] values.
#[inline(always)]
pub(super) unsafe fn run<S: Tiled>(s: S, args: Args<'_>) {
    // The scratch has room for the sums of so many panels.
    const {
        let mut kind = 0;
        while kind < MOST_PANELS.len() {
            assert!(S::PANELS[kind] <= MOST_PANELS[kind]);
            kind += 1;
        }
    }
    // SAFETY: the caller's contract.
    unsafe {
        match args.layer.weights.format() {
            Format::Single => all_units::<S, Single>(s, args),
            Format::Half => all_units::<S, Half>(s, args),
            Format::Fixed => all_units::<S, Fixed>(s, args),
        }
    }
}

/// [`run`] for one format of weights.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn all_units<S: Tiled, W: Packing>(s: S, args: Args<'_>) {
    let Args {
        layer,
        out,
        units,
        work,
    } = args;
    let (total, panels) = (layer.units(), layer.weights.panels());
    let mut block: Option<Block<'_>> = None;
    let mut ahead = units.next();
    while let Some(range) = ahead {
        assert!(range.end <= total, "units {range:?} of {total}");
        ahead = units.next();
        let after = ahead.as_ref().map(|range| range.start);
        let mut unit = range.start;
        while unit < range.end {
            let (index, panel) = (unit / panels, unit % panels);
            // SAFETY: the caller's contract; the block and the panels exist.
            unsafe {
                if block.as_ref().is_none_or(|block| block.index != index) {
                    block = Some(Block::new::<S, W>(s, layer, &out, index, work));
                }
                let Some(block) = &block else { break };
                let count = S::panels(block.rows)
                    .min(range.end - unit)
                    .min(panels - panel);
                unit += count;
                let next = Some(unit).filter(|&unit| unit < range.end).or(after);
                let next = next.map(|unit| layer.weights.panel(unit % panels).0);
                block.multiply::<S, W>(s, panel, count, next);
                block.finish::<S, W>(s, panel, count);
            }
        }
    }
}

/// Places of results that are written soon, a few columns of some rows; they are asked for a few rows at a time.
struct Places {
    next: *const u8,
    /// Bytes from row to row, and those of the columns.
    step: usize,
    bytes: usize,
    /// Rows that are left, and those of a visit.
    rows: usize,
    each: usize,
}

impl Places {
    /// Asks for the rows of one visit.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S) {
        let rows = self.each.min(self.rows);
        for _ in 0..rows {
            for line in (0..self.bytes).step_by(LINE_BYTES) {
                s.prefetch_to_write(self.next.wrapping_add(line));
            }
            self.next = self.next.wrapping_add(self.step);
        }
        self.rows -= rows;
    }
}

/// Some rows, their inputs packed or, if they can be, left where they are.
struct Block<'a> {
    index: usize,
    layer: &'a Linear<'a>,
    out: &'a ViewMut<'a>,
    first: usize,
    rows: usize,
    inputs: *const f32,
    /// Places from one row of `inputs` to the next.
    stride: usize,
    sums: *mut f32,
    /// What the sums of each row are to be multiplied by.
    scales: *const f32,
}

impl<'a> Block<'a> {
    /// Block `index`; `work` has room for its inputs and sums.
    ///
    /// # Safety
    /// As [`run`]; the block exists.
    #[inline(always)]
    unsafe fn new<S: Tiled, W: Packing>(
        s: S,
        layer: &'a Linear<'a>,
        out: &'a ViewMut<'a>,
        index: usize,
        work: &mut [f32],
    ) -> Self {
        let (m, k) = (layer.x.rows(), layer.weights.k());
        let first = index * block_rows(m);
        let rows = block_rows(m).min(m - first);
        let in_place = Self::in_place::<W>(layer.x);
        let stride = if in_place {
            layer.x.stride()
        } else {
            wide_row(k.div_ceil(W::INPUTS))
        };
        let (scales, work) = work.split_at_mut(ROW_BLOCK);
        let (sums, inputs) = work.split_at_mut(sums_len(m));
        let packed = if in_place { 0 } else { rows };
        for (r, scale) in scales.iter_mut().enumerate().take(packed) {
            let to = inputs.as_mut_ptr().wrapping_add(r * stride);
            // SAFETY: the rows exist, and the scratch has room for as many as a block has.
            *scale = unsafe { W::pack(s, layer.x.row(first + r), k, to) };
        }
        Block {
            index,
            layer,
            out,
            first,
            rows,
            inputs: if in_place {
                layer.x.row(first).at(0).cast()
            } else {
                inputs.as_ptr()
            },
            stride,
            sums: sums.as_mut_ptr(),
            scales: scales.as_ptr(),
        }
    }

    /// Whether tiles can read their inputs where they are: as f32, and rows not so far apart that all share their cache sets.
    #[inline(always)]
    fn in_place<W: Packing>(x: View<'_>) -> bool {
        const SETS: usize = 4096;
        let step = x.stride() * size_of::<f32>();
        W::INPUTS == 1 && x.dtype() == DType::F32 && !step.is_multiple_of(SETS)
    }

    /// The sums of `count` panels from `p` on, into `sums`, \[rows, count · 16\]; `next` are the weights needed after.
    ///
    /// # Safety
    /// As [`run`]; the panels exist.
    #[inline(always)]
    unsafe fn multiply<S: Tiled, W: Packing>(
        &self,
        s: S,
        p: usize,
        count: usize,
        next: Option<*const u8>,
    ) {
        let (w, w_panel) = self.layer.weights.panel(p);
        let steps = self.layer.weights.k().div_ceil(W::INPUTS);
        let tiles = Tiles::new(self.rows, S::MAX_ROWS);
        // What a single tile passes is used once, and needs no cutting.
        let share = if tiles.count() > 1 { W::SHARE } else { steps };
        let visits = tiles.count() * steps.div_ceil(share.max(1));
        let mut places = self.places(p, count, visits);
        let mut start = 0;
        loop {
            let depth = share.min(steps - start);
            let w = w.wrapping_add(start * W::STEP);
            let blocks = tiles.count() * depth.div_ceil(BLOCK);
            let last = start + depth == steps;
            let following = if last {
                next
            } else {
                Some(w.wrapping_add(depth * W::STEP))
            };
            let bytes = share.min(if last { steps } else { steps - start - depth }) * W::STEP;
            let mut feed = following.map_or(Feed::none(), |next| {
                Feed::runs(next, count, (bytes, w_panel), blocks)
            });
            for i in 0..tiles.count() {
                let (first, rows) = tiles.tile(i);
                let tile = Tile {
                    a: self.inputs.wrapping_add(first * self.stride + start),
                    a_row: self.stride,
                    w,
                    w_panel,
                    depth,
                    c: self.sums.wrapping_add(first * count * PANEL),
                    c_row: count * PANEL,
                    fresh: start == 0,
                };
                places.ask(s);
                // SAFETY: the caller's contract.
                unsafe { multiply::<S, W>(s, tile, rows, count, &mut feed) };
            }
            start += depth;
            if start >= steps {
                break;
            }
        }
    }

    /// The places of the results of `count` panels from `p` on, to be asked for in `visits` visits.
    #[inline(always)]
    fn places(&self, p: usize, count: usize, visits: usize) -> Places {
        let out = self.out.as_view();
        let columns = (count * PANEL).min(out.cols() - p * PANEL);
        Places {
            next: out.row(self.first).at(p * PANEL),
            step: out.stride() * out.dtype().size(),
            bytes: columns * out.dtype().size(),
            rows: self.rows,
            each: self.rows.div_ceil(visits.max(1)),
        }
    }

    /// Scales, bias, activation and rounding of what [`Block::multiply`] left.
    ///
    /// # Safety
    /// As [`run`]; the panels exist.
    #[inline(always)]
    unsafe fn finish<S: Tiled, W: Packing>(&self, s: S, p: usize, count: usize) {
        for i in 0..count {
            let sums = self.sums.wrapping_add(i * PANEL);
            let sums = (sums.cast_const(), count * PANEL);
            let whole = (p + i + 1) * PANEL <= self.layer.weights.n();
            // SAFETY: the caller's contract.
            unsafe {
                match self.out.dtype() {
                    DType::F16 if whole => {
                        self.finish_panel::<S, W>(s, sums, p + i, Some(DType::F16))
                    }
                    DType::F32 if whole => {
                        self.finish_panel::<S, W>(s, sums, p + i, Some(DType::F32))
                    }
                    _ => self.finish_part::<S, W>(s, sums, p + i),
                }
            }
        }
    }

    /// Half `half` of the sums of row `r` at `sums`, times the scales of that row and, where weights have them, of their columns.
    ///
    /// # Safety
    /// The sums were written.
    #[inline(always)]
    unsafe fn scaled<S: Tiled, W: Packing>(
        &self,
        s: S,
        sums: *const f32,
        r: usize,
        (columns, half): (&[f32], usize),
    ) -> S::V {
        // SAFETY: the caller's contract; there is a scale for each row, and, where weights are scaled, 16 for columns.
        unsafe {
            let y = s.load_f32(sums.add(half * LANES));
            if !W::SCALED {
                return y;
            }
            let y = s.mul(y, s.splat(*self.scales.add(r)));
            s.mul(y, s.load_f32(columns.as_ptr().add(half * LANES)))
        }
    }

    /// [`Block::finish`] for the 16 columns of panel `p`, of a `known` dtype. Sums are (address, values from row to row).
    ///
    /// # Safety
    /// The sums were written; the columns exist.
    #[inline(always)]
    unsafe fn finish_panel<S: Tiled, W: Packing>(
        &self,
        s: S,
        (sums, stride): (*const f32, usize),
        p: usize,
        known: Option<DType>,
    ) {
        let (col, columns) = (p * PANEL, self.columns::<W>(p));
        let mut bias = [s.splat(0.0); 2];
        if let Some(values) = self.layer.bias {
            let values = Row::of(values);
            // SAFETY: the bias has as many values as there are columns.
            bias = unsafe { [values.load(s, col), values.load(s, col + LANES)] };
        }
        for r in 0..self.rows {
            let out = self.out.row(self.first + r).known(known);
            let sums = sums.wrapping_add(r * stride);
            // SAFETY: the caller's contract.
            unsafe {
                let mut y = [
                    self.scaled::<S, W>(s, sums, r, (columns, 0)),
                    self.scaled::<S, W>(s, sums, r, (columns, 1)),
                ];
                if self.layer.bias.is_some() {
                    y = [s.add(y[0], bias[0]), s.add(y[1], bias[1])];
                }
                if let Some(act) = self.layer.activation {
                    y = [activation(s, act, y[0]), activation(s, act, y[1])];
                }
                out.store(s, col, LANES, y[0]);
                out.store(s, col + LANES, LANES, y[1]);
            }
        }
    }

    /// [`Block::finish`] for the columns of panel `p`, at most 16, of any dtype.
    ///
    /// # Safety
    /// The sums were written.
    #[inline(always)]
    unsafe fn finish_part<S: Tiled, W: Packing>(
        &self,
        s: S,
        (sums, stride): (*const f32, usize),
        p: usize,
    ) {
        let (first, columns) = (p * PANEL, self.columns::<W>(p));
        let n = self.layer.weights.n().min(first + PANEL);
        for r in 0..self.rows {
            let out = self.out.row(self.first + r);
            let sums = sums.wrapping_add(r * stride);
            for (half, col) in (first..n).step_by(LANES).enumerate() {
                // SAFETY: the sums were written, and so many columns exist.
                unsafe {
                    let mut y = self.scaled::<S, W>(s, sums, r, (columns, half));
                    if let Some(bias) = self.layer.bias {
                        y = s.add(y, Row::of(bias).load_up_to(s, col, n - col));
                    }
                    if let Some(act) = self.layer.activation {
                        y = activation(s, act, y);
                    }
                    out.store(s, col, n - col, y);
                }
            }
        }
    }

    /// The scales of the columns of panel `p`; none where weights are not scaled.
    #[inline(always)]
    fn columns<W: Packing>(&self, p: usize) -> &[f32] {
        if W::SCALED {
            self.layer.weights.scales(p)
        } else {
            &[]
        }
    }
}
