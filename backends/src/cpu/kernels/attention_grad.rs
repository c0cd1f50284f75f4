//! `attention_grad`: one head of one segment.

use lxpod_ir::DType;

use super::attention::{
    Attention, Layout, MOST_ROWS, ask, fill_bias, pack_keys, pack_values, scores, softmax,
    store_row,
};
use super::gemm::{Feed, Tile, Tiles, multiply, pack_columns, widen};
use super::pack::PANEL;
use super::scratch::LINE;
use super::simd::{LANES, Single, Tiled, sum_each};
use super::{Kernels, Scratch, View, ViewMut};

/// One attention head and the cotangents of its results.
#[derive(Clone, Copy)]
pub struct AttentionGrad<'a> {
    /// The inputs of the head.
    pub forward: Attention<'a>,
    /// The cotangent of y, \[nq, d\].
    pub dy: View<'a>,
    /// The cotangent of P, \[nq, nk\].
    pub dprobs: Option<View<'a>>,
}

/// f32 values of scratch that [`attention_grad_head`] needs for up to `queries` and `keys` of up to `d` columns.
pub fn attention_grad_scratch(queries: usize, keys: usize, d: usize) -> usize {
    Places::new(queries, keys, d).end
}

/// Writes dq, dk and dv to `out`: \[nq, d\], \[nk, d\] and \[nk, d\].
///
/// P is computed as [`super::attention_head`] computes it, bit by bit. With dP = dy · vᵀ + dprobs and
/// dS = P ∘ (dP − Σ P ∘ dP) · scale: dq = dS · k, dk = dSᵀ · q, dv = Pᵀ · dy, products being sums in ascending order in f32,
/// rounded once at the store. With dropout dP is dropped as P was, and dv = drop(P)ᵀ · dy. Trailing masked keys can be left out. `scratch` must have [`attention_grad_scratch`] values.
///
/// # Panics
/// If shapes disagree.
pub fn attention_grad_head(
    kernels: &Kernels,
    grad: &AttentionGrad<'_>,
    out: [ViewMut<'_>; 3],
    scratch: &mut Scratch,
) {
    let Attention { q, k, v, mask, .. } = grad.forward;
    let (nq, nk, d) = (q.rows(), k.rows(), q.cols());
    let shape = |view: View<'_>| (view.rows(), view.cols());
    assert_eq!(
        (shape(k), shape(v)),
        ((nk, d), (nk, d)),
        "shapes of keys and values"
    );
    assert_eq!(mask.len(), nk, "length of the mask");
    assert_eq!(shape(grad.dy), (nq, d), "shape of the cotangent");
    assert!(
        grad.dprobs.is_none_or(|p| shape(p) == (nq, nk)),
        "shape of the probabilities' cotangent"
    );
    let [dq, dk, dv] = out.each_ref().map(|out| shape(out.as_view()));
    assert_eq!((dq, dk, dv), ((nq, d), (nk, d), (nk, d)), "output shapes");
    let work = scratch.take(attention_grad_scratch(nq, nk, d));
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe { (kernels.attention_grad)(Args { grad, out, work }) };
}

/// A checked call of [`attention_grad_head`].
pub(super) struct Args<'a> {
    grad: &'a AttentionGrad<'a>,
    out: [ViewMut<'a>; 3],
    work: &'a mut [f32],
}

/// Where things lie in the scratch, in values: after those of the forward pass, whose values are keys here.
struct Places {
    forward: Layout,
    /// Values as panels of 16 keys, each by column.
    v: usize,
    /// Queries, and cotangents of the result, as panels of 16 columns, each by query.
    q: usize,
    dy: usize,
    /// dP, then dS, of one tile of queries.
    ds: usize,
    /// Pᵀ and dSᵀ, key by key.
    by_key: [usize; 2],
    /// Values from one key of these to the next.
    stride: usize,
    end: usize,
}

impl Places {
    #[inline(always)]
    fn new(nq: usize, nk: usize, d: usize) -> Self {
        let forward = Layout::new(nk, d);
        // A tile is transposed to eight queries, the last of which the next tile overwrites.
        let stride = (nq + LANES).next_multiple_of(LINE) + LINE;
        let v = forward.end;
        let q = v + forward.keys * d;
        let dy = q + nq * forward.cols;
        let ds = dy + nq * forward.cols;
        let p_by_key = ds + MOST_ROWS * forward.keys;
        let ds_by_key = p_by_key + nk * stride;
        Places {
            v,
            q,
            dy,
            ds,
            by_key: [p_by_key, ds_by_key],
            stride,
            end: ds_by_key + nk * stride,
            forward,
        }
    }
}

/// The body of [`attention_grad_head`].
///
/// # Safety
/// The shapes were checked and `work` has [`attention_grad_scratch`] values.
#[inline(always)]
pub(super) unsafe fn run<S: Tiled>(s: S, args: Args<'_>) {
    let forward = &args.grad.forward;
    let (nq, nk) = (forward.q.rows(), forward.k.rows());
    let at = Places::new(nq, nk, forward.q.cols());
    fill_bias(
        forward.mask,
        &mut args.work[at.forward.bias..at.forward.end],
    );
    let head = Head {
        grad: args.grad,
        at,
        work: args.work,
    };
    let [dq, dk, dv] = &args.out;
    // SAFETY: the caller's contract; the places are disjoint.
    unsafe {
        let work = head.work.as_mut_ptr();
        let at = &head.at;
        pack_keys(s, forward.k, work.add(at.forward.k));
        pack_keys(s, forward.v, work.add(at.v));
        pack_values(s, forward.k, work.add(at.forward.v));
        pack_values(s, forward.q, work.add(at.q));
        pack_values(s, args.grad.dy, work.add(at.dy));
        let mut head = head;
        let tiles = Tiles::new(nq, S::MAX_ROWS.min(MOST_ROWS));
        for i in 0..tiles.count() {
            let Attention { q, k, v, .. } = head.grad.forward;
            let inputs = [q, k, v, head.grad.dy];
            ask(s, (i, tiles.count()), &inputs, &[dq, dk, dv]);
            head.queries(s, tiles.tile(i), dq);
        }
        let tiles = Tiles::new(nk, S::MAX_ROWS.min(MOST_ROWS));
        for i in 0..tiles.count() {
            let [p, ds] = head.at.by_key;
            head.keys(s, tiles.tile(i), (ds, head.at.q), dk);
            head.keys(s, tiles.tile(i), (p, head.at.dy), dv);
        }
    }
}

/// A head at work.
struct Head<'a> {
    grad: &'a AttentionGrad<'a>,
    at: Places,
    work: &'a mut [f32],
}

impl Head<'_> {
    /// P, dS and dq of the query rows (first, count).
    ///
    /// # Safety
    /// The rows exist; keys, values and bias are in place.
    #[inline(always)]
    unsafe fn queries<S: Tiled>(&mut self, s: S, rows: (usize, usize), dq: &ViewMut<'_>) {
        let forward = &self.grad.forward;
        let (first, count) = rows;
        let (nk, used) = (
            forward.mask.len(),
            forward.mask.len().next_multiple_of(LANES),
        );
        let (keys, p) = (self.at.forward.keys, self.at.forward.p);
        // SAFETY: the caller's contract; the places have room for a tile.
        unsafe {
            scores(s, forward, rows, self.work, &self.at.forward);
            let (before, bias) = self.work.split_at_mut(self.at.forward.bias);
            let tile = &mut before[p..][..count * keys];
            softmax(s, tile, keys, &bias[..used], forward.scale);
            self.cotangents(s, rows);
            let (before, ds) = self.work.split_at_mut(self.at.ds);
            let (p_tile, ds) = (&mut before[p..][..count * keys], &mut ds[..count * keys]);
            if let Some(dropout) = forward.dropout {
                dropout.apply(s, first, ds, (keys, used));
            }
            through_softmax(s, (p_tile, ds), keys, used, forward.scale);
            if let Some(dropout) = forward.dropout {
                dropout.apply(s, first, p_tile, (keys, used));
            }
            let sums = self.at.forward.y;
            self.multiply(s, (self.at.ds, keys), (self.at.forward.v, nk), count);
            for r in 0..count {
                let from = sums + r * self.at.forward.cols;
                store_row(s, &self.work[from..], dq, first + r);
            }
            for (from, to) in [p, self.at.ds].into_iter().zip(self.at.by_key) {
                let work = self.work.as_mut_ptr();
                let tile =
                    View::from_raw_parts(work.add(from).cast(), DType::F32, [count, nk], keys);
                pack_columns(s, tile, 0, count, work.add(to + first), self.at.stride);
            }
        }
    }

    /// dP of the query rows (first, count).
    ///
    /// # Safety
    /// The rows exist; the values are in place.
    #[inline(always)]
    unsafe fn cotangents<S: Tiled>(&mut self, s: S, (first, count): (usize, usize)) {
        let (d, keys) = (self.grad.dy.cols(), self.at.forward.keys);
        let work = self.work.as_mut_ptr();
        // SAFETY: the caller's contract; the places have room for a tile.
        unsafe {
            for r in 0..count {
                widen(
                    s,
                    self.grad.dy.row(first + r),
                    d,
                    work.add(self.at.forward.q + r * d),
                );
                if let Some(given) = self.grad.dprobs {
                    let to = self.at.ds + r * keys;
                    self.work[to..to + keys].fill(0.0);
                    widen(s, given.row(first + r), given.cols(), work.add(to));
                }
            }
            let tile = Tile {
                a: work.add(self.at.forward.q),
                a_row: d,
                w: work.add(self.at.v).cast(),
                w_panel: d * PANEL * size_of::<f32>(),
                depth: d,
                c: work.add(self.at.ds),
                c_row: keys,
                fresh: self.grad.dprobs.is_none(),
            };
            multiply::<S, Single>(s, tile, count, keys / PANEL, &mut Feed::none());
        }
    }

    /// The product of `count` rows at (place, values from row to row) and panels at (place, rows), to the place of results.
    ///
    /// # Safety
    /// Both sides are in place.
    #[inline(always)]
    unsafe fn multiply<S: Tiled>(
        &mut self,
        s: S,
        (a, a_row): (usize, usize),
        (w, depth): (usize, usize),
        count: usize,
    ) {
        let (work, cols) = (self.work.as_mut_ptr(), self.at.forward.cols);
        // SAFETY: the caller's contract; results have their own place.
        unsafe {
            let tile = Tile {
                a: work.add(a),
                a_row,
                w: work.add(w).cast(),
                w_panel: depth * PANEL * size_of::<f32>(),
                depth,
                c: work.add(self.at.forward.y),
                c_row: cols,
                fresh: true,
            };
            multiply::<S, Single>(s, tile, count, cols / PANEL, &mut Feed::none());
        }
    }

    /// Rows (first, count) of the product of a matrix by key and panels by query.
    ///
    /// # Safety
    /// The rows exist; all queries are done.
    #[inline(always)]
    unsafe fn keys<S: Tiled>(
        &mut self,
        s: S,
        (first, count): (usize, usize),
        (by_key, panels): (usize, usize),
        out: &ViewMut<'_>,
    ) {
        let stride = self.at.stride;
        // SAFETY: the caller's contract.
        unsafe {
            let left = (by_key + first * stride, stride);
            self.multiply(s, left, (panels, self.grad.dy.rows()), count);
            for r in 0..count {
                let from = self.at.forward.y + r * self.at.forward.cols;
                store_row(s, &self.work[from..], out, first + r);
            }
        }
    }
}

/// Turns dP of a tile, rows `stride` apart, into dS; P gives the probabilities. The sum Σ P ∘ dP has key i in lane i mod 8.
#[inline(always)]
fn through_softmax<S: Tiled>(
    s: S,
    (p, ds): (&[f32], &mut [f32]),
    stride: usize,
    used: usize,
    scale: f32,
) {
    let stride = stride.max(1);
    let mut totals = [s.splat(0.0); LANES];
    for ((p, ds), total) in p
        .chunks_exact(stride)
        .zip(ds.chunks_exact(stride))
        .zip(&mut totals)
    {
        let pairs = p[..used]
            .as_chunks::<LANES>()
            .0
            .iter()
            .zip(ds.as_chunks::<LANES>().0);
        for (p, dp) in pairs {
            *total = s.fma(s.pack(*p), s.pack(*dp), *total);
        }
    }
    let totals = sum_each(s, totals);
    for ((p, ds), total) in p
        .chunks_exact(stride)
        .zip(ds.chunks_exact_mut(stride))
        .zip(totals)
    {
        let total = s.splat(total);
        let pairs = p[..used]
            .as_chunks::<LANES>()
            .0
            .iter()
            .zip(ds.as_chunks_mut::<LANES>().0);
        for (p, ds) in pairs {
            let centred = s.sub(s.pack(*ds), total);
            *ds = s.unpack(s.mul(s.mul(s.pack(*p), centred), s.splat(scale)));
        }
    }
}
