//! `attention`: one head of one segment.

use lxpod_ir::random_bits::RowState;

use super::elementwise::Drop;
use super::gemm::{Feed, LINE_BYTES, Tile, Tiles, multiply, pack_columns, widen};
use super::math::exp;
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{LANES, Simd, Single, Tiled, max_each, sum_each};
use super::{Kernels, Scratch, View, ViewMut};

/// The inputs of one attention head: the columns that belong to the head, of the rows that belong to the segment.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, \[nq, d\].
    pub q: View<'a>,
    /// Keys, \[nk, d\].
    pub k: View<'a>,
    /// Values, \[nk, d\].
    pub v: View<'a>,
    /// One per key: 1 keeps it, 0 masks it, anything else is extrapolated.
    pub mask: &'a [f32],
    /// Multiplies q·k; 1/√d, or 1 where that is folded into the query's weights.
    pub scale: f32,
    /// Which probabilities are dropped, if any.
    pub dropout: Option<HeadDropout>,
}

/// The dropout of one head of one segment; query i of the head is row i of the words, key j column j.
#[derive(Clone, Copy, Debug)]
pub struct HeadDropout {
    /// The probability of being dropped, in 0..1.
    pub rate: f32,
    /// The key of the entity that owns the segment.
    pub key: [u32; 2],
    /// The salt of the head's part.
    pub salt: u64,
}

impl HeadDropout {
    /// Drops elements of a tile of queries from `first` on, rows `stride` apart and `used` long, a multiple of 8.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(
        self,
        s: S,
        first: usize,
        tile: &mut [f32],
        (stride, used): (usize, usize),
    ) {
        let drop = Drop::new(self.rate);
        for (r, row) in tile.chunks_exact_mut(stride.max(1)).enumerate() {
            let state = RowState::new(self.key, self.salt, (first + r) as u32);
            for (i, p) in row[..used]
                .as_chunks_mut::<LANES>()
                .0
                .iter_mut()
                .enumerate()
            {
                *p = s.unpack(drop.apply(s, state, i * LANES, s.pack(*p)));
            }
        }
    }
}

/// The most rows of a tile.
pub(super) const MOST_ROWS: usize = 6;

/// f32 values of scratch that [`attention_head`] needs for up to `keys` keys of up to `d` columns.
pub fn attention_scratch(keys: usize, d: usize) -> usize {
    Layout::new(keys, d).end
}

/// Writes y = P·v to `out`, \[nq, d\], where P = softmax((q·k)·scale + (1 − mask)·f32::MIN) over the keys, less what is dropped; and P to `probs`, \[nq, nk\], if asked.
///
/// All in f32, rounded once at the store. Where all keys are masked, P is uniform. The bits of a row of the result depend on its query,
/// and on the keys up to the last whose probability is not zero: trailing masked keys can be left out.
/// (q·k and P·v are sums in ascending order; the denominator sums key i in lane i mod 8.) `out` may be the memory of `q`.
/// `scratch` must have [`attention_scratch`] values.
///
/// # Panics
/// If shapes disagree.
pub fn attention_head(
    kernels: &Kernels,
    inputs: &Attention<'_>,
    out: ViewMut<'_>,
    probs: Option<ViewMut<'_>>,
    scratch: &mut Scratch,
) {
    let Attention { q, k, v, mask, .. } = *inputs;
    let (nq, nk, d) = (q.rows(), k.rows(), q.cols());
    assert_eq!(k.cols(), d, "columns of the keys");
    assert_eq!((v.rows(), v.cols()), (nk, d), "shape of the values");
    assert_eq!(mask.len(), nk, "length of the mask");
    assert_eq!(
        (out.rows(), out.cols()),
        (nq, d),
        "output shape of attention"
    );
    if let Some(probs) = &probs {
        assert_eq!(
            (probs.rows(), probs.cols()),
            (nq, nk),
            "shape of the probabilities"
        );
    }
    let work = scratch.take(attention_scratch(nk, d));
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe {
        (kernels.attention)(Args {
            inputs,
            out,
            probs,
            work,
        })
    };
}

/// A checked call of [`attention_head`].
pub(super) struct Args<'a> {
    inputs: &'a Attention<'a>,
    out: ViewMut<'a>,
    probs: Option<ViewMut<'a>>,
    work: &'a mut [f32],
}

/// Where things lie in the scratch, in values.
pub(super) struct Layout {
    /// Keys and columns rounded up to whole panels.
    pub(super) keys: usize,
    pub(super) cols: usize,
    /// Keys as panels of 16 keys, each by column.
    pub(super) k: usize,
    /// Values as panels of 16 columns, each by key.
    pub(super) v: usize,
    /// One tile of queries, as f32.
    pub(super) q: usize,
    /// Scores, then probabilities, of one tile.
    pub(super) p: usize,
    /// Results of one tile.
    pub(super) y: usize,
    /// What is added to the scores of each key.
    pub(super) bias: usize,
    pub(super) end: usize,
}

impl Layout {
    #[inline(always)]
    pub(super) fn new(nk: usize, d: usize) -> Self {
        let keys = nk.next_multiple_of(PANEL);
        let cols = d.next_multiple_of(PANEL);
        let k = 0;
        let v = k + keys * d;
        let q = v + nk * cols;
        let p = q + (MOST_ROWS * d + LANES).next_multiple_of(LINE);
        let y = p + MOST_ROWS * keys;
        let bias = y + MOST_ROWS * cols;
        Layout {
            keys,
            cols,
            k,
            v,
            q,
            p,
            y,
            bias,
            end: bias + keys,
        }
    }
}

/// The body of [`attention_head`].
///
/// # Safety
/// The shapes were checked and `work` has [`attention_scratch`] values.
#[inline(always)]
pub(super) unsafe fn run<S: Tiled>(s: S, args: Args<'_>) {
    let inputs = args.inputs;
    let at = Layout::new(inputs.k.rows(), inputs.k.cols());
    fill_bias(inputs.mask, &mut args.work[at.bias..at.end]);
    // SAFETY: the caller's contract.
    unsafe {
        pack_keys(s, inputs.k, args.work[at.k..at.v].as_mut_ptr());
        pack_values(s, inputs.v, args.work[at.v..at.q].as_mut_ptr());
    }
    let used = inputs.mask.len().next_multiple_of(LANES);
    let tiles = Tiles::new(inputs.q.rows(), S::MAX_ROWS.min(MOST_ROWS));
    for i in 0..tiles.count() {
        let (first, rows) = tiles.tile(i);
        let Attention { q, k, v, .. } = *inputs;
        ask(s, (i, tiles.count()), &[q, k, v], &[&args.out]);
        // SAFETY: the caller's contract; the query rows exist.
        unsafe {
            scores(s, inputs, (first, rows), args.work, &at);
            let (before, bias) = args.work.split_at_mut(at.bias);
            let tile = &mut before[at.p..][..rows * at.keys];
            softmax(s, tile, at.keys, &bias[..used], inputs.scale);
            if let Some(dropout) = inputs.dropout {
                dropout.apply(s, first, tile, (at.keys, used));
            }
            weigh(s, inputs.v, rows, args.work, &at);
            for r in 0..rows {
                if let Some(probs) = &args.probs {
                    store_row(s, &args.work[at.p + r * at.keys..], probs, first + r);
                }
                store_row(s, &args.work[at.y + r * at.cols..], &args.out, first + r);
            }
        }
    }
}

/// Asks for the share of tile `index` of what is read of each of `inputs` for the next head, the columns behind those of this one,
/// and of the places of `results`.
///
/// Heads are taken in turn. Their rows are a few cache lines each, which no hardware asks for ahead of time.
#[inline(always)]
pub(super) fn ask<S: Simd>(
    s: S,
    (index, tiles): (usize, usize),
    inputs: &[View<'_>],
    results: &[&ViewMut<'_>],
) {
    let share = |rows: usize| index * rows / tiles..(index + 1) * rows / tiles;
    let lines = |x: View<'_>| (0..x.cols() * x.dtype().size()).step_by(LINE_BYTES);
    for &x in inputs {
        for r in share(x.rows()) {
            let end = x.row(r).at(x.cols());
            lines(x).for_each(|line| s.prefetch(end.wrapping_add(line)));
        }
    }
    for x in results.iter().map(|result| result.as_view()) {
        for r in share(x.rows()) {
            let start = x.row(r).at(0);
            lines(x).for_each(|line| s.prefetch_to_write(start.wrapping_add(line)));
        }
    }
}

/// What is added to the score of each key.
pub(super) fn fill_bias(mask: &[f32], bias: &mut [f32]) {
    for (bias, &mask) in bias.iter_mut().zip(mask) {
        *bias = (1.0 - mask) * f32::MIN;
    }
    // Keys that pad the last panel: probability zero.
    bias[mask.len()..].fill(f32::NEG_INFINITY);
}

/// Packs keys as panels of 16 keys, column after column, missing keys as zeros.
///
/// # Safety
/// `to` is valid for writing the keys, rounded up to 16, times the columns.
#[inline(always)]
pub(super) unsafe fn pack_keys<S: Simd>(s: S, k: View<'_>, to: *mut f32) {
    let mut first = 0;
    while first < k.rows().next_multiple_of(PANEL) {
        let start = first / PANEL * PANEL * k.cols() + first % PANEL;
        let count = k.rows().saturating_sub(first).min(LANES);
        // SAFETY: the caller's contract; the rows exist.
        unsafe {
            if count > 0 {
                pack_columns(s, k, first, count, to.add(start), PANEL);
            } else {
                for c in 0..k.cols() {
                    s.store_f32(to.add(start + c * PANEL), s.splat(0.0));
                }
            }
        }
        first += LANES;
    }
}

/// Packs values as panels of 16 columns, row after row, missing columns as zeros.
///
/// # Safety
/// `to` is valid for writing the rows times the columns, rounded up to 16.
#[inline(always)]
pub(super) unsafe fn pack_values<S: Simd>(s: S, v: View<'_>, to: *mut f32) {
    for r in 0..v.rows() {
        let row = v.row(r);
        let mut c = 0;
        while c < v.cols().next_multiple_of(PANEL) {
            let place = c / PANEL * PANEL * v.rows() + r * PANEL + c % PANEL;
            // SAFETY: the caller's contract; only columns that exist are read.
            unsafe {
                let x = if c < v.cols() {
                    row.load_up_to(s, c, v.cols() - c)
                } else {
                    s.splat(0.0)
                };
                s.store_f32(to.add(place), x);
            }
            c += LANES;
        }
    }
}

/// q·k for the query rows (first, count) and all keys.
///
/// # Safety
/// The rows exist and the keys are packed.
#[inline(always)]
pub(super) unsafe fn scores<S: Tiled>(
    s: S,
    inputs: &Attention<'_>,
    (first, rows): (usize, usize),
    work: &mut [f32],
    at: &Layout,
) {
    let d = inputs.q.cols();
    let work = work.as_mut_ptr();
    // SAFETY: the layout has room for the queries and the scores.
    unsafe {
        for r in 0..rows {
            widen(s, inputs.q.row(first + r), d, work.add(at.q + r * d));
        }
        let tile = Tile {
            a: work.add(at.q),
            a_row: d,
            w: work.add(at.k).cast(),
            w_panel: d * PANEL * size_of::<f32>(),
            depth: d,
            c: work.add(at.p),
            c_row: at.keys,
            fresh: true,
        };
        multiply::<S, Single>(s, tile, rows, at.keys / PANEL, &mut Feed::none());
    }
}

/// Turns the sums q·k of a tile, one row per query, rows `stride` apart and as long as `bias`, into probabilities.
#[inline(always)]
pub(super) fn softmax<S: Simd>(s: S, p: &mut [f32], stride: usize, bias: &[f32], scale: f32) {
    let (stride, n) = (stride.max(1), bias.len());
    let factor = s.splat(scale);
    let mut largest = [s.splat(f32::NEG_INFINITY); LANES];
    let mut totals = [s.splat(0.0); LANES];
    for (row, most) in p.chunks_exact_mut(stride).zip(&mut largest) {
        for (p, bias) in row
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(bias.as_chunks::<LANES>().0)
        {
            let score = s.add(s.mul(s.pack(*p), factor), s.pack(*bias));
            *most = s.max(score, *most);
            *p = s.unpack(score);
        }
    }
    let largest = max_each(s, largest);
    for ((row, most), total) in p.chunks_exact_mut(stride).zip(largest).zip(&mut totals) {
        let most = s.splat(most);
        for p in row[..n].as_chunks_mut::<LANES>().0 {
            let e = exp(s, s.sub(s.pack(*p), most));
            *total = s.add(*total, e);
            *p = s.unpack(e);
        }
    }
    let totals = sum_each(s, totals);
    for (row, total) in p.chunks_exact_mut(stride).zip(totals) {
        let total = s.splat(total);
        for p in row[..n].as_chunks_mut::<LANES>().0 {
            *p = s.unpack(s.div(s.pack(*p), total));
        }
    }
}

/// P·v for a tile of rows.
///
/// # Safety
/// The probabilities are in place and the values are packed.
#[inline(always)]
unsafe fn weigh<S: Tiled>(s: S, v: View<'_>, rows: usize, work: &mut [f32], at: &Layout) {
    let work = work.as_mut_ptr();
    // SAFETY: the layout has room for the results.
    unsafe {
        let tile = Tile {
            a: work.add(at.p),
            a_row: at.keys,
            w: work.add(at.v).cast(),
            w_panel: v.rows() * PANEL * size_of::<f32>(),
            depth: v.rows(),
            c: work.add(at.y),
            c_row: at.cols,
            fresh: true,
        };
        multiply::<S, Single>(s, tile, rows, at.cols / PANEL, &mut Feed::none());
    }
}

/// Stores as many of `values` as `out` has columns in its row `r`. A negative zero becomes positive: whether a sum that underflowed ends as one
/// would depend on masked keys after it.
///
/// # Safety
/// The row exists.
#[inline(always)]
pub(super) unsafe fn store_row<S: Simd>(s: S, values: &[f32], out: &ViewMut<'_>, r: usize) {
    let row = out.row(r);
    let cols = out.cols();
    for (i, values) in values
        .as_chunks::<LANES>()
        .0
        .iter()
        .take(cols.div_ceil(LANES))
        .enumerate()
    {
        let c = i * LANES;
        // SAFETY: the caller's contract; only columns that exist are written.
        unsafe { row.store(s, c, cols - c, s.add(s.pack(*values), s.splat(0.0))) };
    }
}
