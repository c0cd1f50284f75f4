//! Matrix tiles: a few rows times panels of sixteen columns.

use super::{LANES, Simd};

/// Code that runs on any instruction set.
pub(in super::super) trait Body {
    /// Runs it.
    ///
    /// # Safety
    /// What the implementation asks for.
    unsafe fn run<S: Tiled>(self, s: S);
}

/// The operations of matrix tiles. A step of a float tile is one input of each row times sixteen f32 columns; a step of
/// an integer tile is a pair of i16 inputs, in the place of one f32, times sixteen pairs of i16.
pub(in super::super) trait Tiled: Simd {
    /// Sixteen f32 columns.
    type C: Copy;
    /// Sixteen i32 sums.
    type N: Copy;
    /// Sixteen pairs of i16.
    type P: Copy;

    /// The most rows a tile may have without spilling sums.
    const MAX_ROWS: usize;

    /// How many panels a tile of one row, of two, of three and of more takes at once, so that it has enough independent sums
    /// to hide the latency of a multiply-add, and enough streams to keep the memory busy.
    const PANELS: [usize; 4];

    /// The rows and panels of the f32 tile that loads least for each multiply-add.
    const WIDE: (usize, usize) = (Self::MAX_ROWS, 1);

    /// The steps of such a tile for which the set has something better than one after the other; 0 if it has not.
    const WIDE_BLOCK: usize = 0;

    /// [`Tiled::PANELS`] of a tile of `rows` rows.
    #[inline(always)]
    fn panels(rows: usize) -> usize {
        panels_of::<Self>(rows)
    }

    /// Runs `body`, in a function of its own where it is long code: many kernels have tiles.
    ///
    /// # Safety
    /// As [`Body::run`].
    #[inline(always)]
    unsafe fn apart<B: Body>(self, body: B) {
        // SAFETY: the caller's contract.
        unsafe { body.run(self) }
    }

    /// Sixteen columns of twice eight.
    fn columns(self, halves: [Self::V; 2]) -> Self::C;
    /// Twice eight columns.
    fn halves(self, c: Self::C) -> [Self::V; 2];
    /// `x · w + sums`, each rounded as [`Simd::fma`] does.
    fn fma_columns(self, x: f32, w: Self::C, sums: Self::C) -> Self::C;
    /// Sixteen f32, no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn load_columns(self, p: *const f32) -> Self::C {
        // SAFETY: the caller's contract.
        self.columns(unsafe { [self.load_f32(p), self.load_f32(p.add(LANES))] })
    }
    /// Sixteen f16, widened exactly; no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    #[inline(always)]
    unsafe fn load_half_columns(self, p: *const u16) -> Self::C {
        // SAFETY: the caller's contract.
        self.columns(unsafe { [self.load_f16(p), self.load_f16(p.add(LANES))] })
    }
    /// Stores sixteen f32, no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for writing 64 bytes.
    #[inline(always)]
    unsafe fn store_columns(self, p: *mut f32, c: Self::C) {
        let [low, high] = self.halves(c);
        // SAFETY: the caller's contract.
        unsafe {
            self.store_f32(p, low);
            self.store_f32(p.add(LANES), high);
        }
    }
    /// Stores sixteen f32 past the caches, as [`Simd::stream_f32`].
    ///
    /// # Safety
    /// `p` is valid for writing 64 bytes, and a multiple of 64.
    #[inline(always)]
    unsafe fn stream_columns(self, p: *mut f32, c: Self::C) {
        let [low, high] = self.halves(c);
        // SAFETY: the caller's contract.
        unsafe {
            self.stream_f32(p, low);
            self.stream_f32(p.add(LANES), high);
        }
    }
    /// `a + b`.
    #[inline(always)]
    fn add_columns(self, a: Self::C, b: Self::C) -> Self::C {
        let (a, b) = (self.halves(a), self.halves(b));
        self.columns([self.add(a[0], b[0]), self.add(a[1], b[1])])
    }

    /// `x · x + sums`, each rounded as [`Simd::fma`] does.
    #[inline(always)]
    fn add_squares(self, x: Self::C, sums: Self::C) -> Self::C {
        let (x, sums) = (self.halves(x), self.halves(sums));
        self.columns([self.fma(x[0], x[0], sums[0]), self.fma(x[1], x[1], sums[1])])
    }
    /// Adds the squares of `count` times sixteen values to sixteen sums; an f64 holds the square of an f32 exactly.
    ///
    /// # Safety
    /// `x` is valid for reading them.
    #[inline(always)]
    unsafe fn add_exact_squares(self, x: *const f32, count: usize, sums: &mut [f64; 2 * LANES]) {
        for i in 0..count {
            // SAFETY: the caller's contract.
            let values = unsafe { x.cast::<[f32; 2 * LANES]>().add(i).read() };
            for (sum, x) in sums.iter_mut().zip(values) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
    }
    /// The larger of |x| and `most`, which is not negative; `most` where x is NaN.
    #[inline(always)]
    fn largest(self, x: Self::C, most: Self::C) -> Self::C {
        let (x, most) = (self.halves(x), self.halves(most));
        self.columns([
            self.max(self.abs(x[0]), most[0]),
            self.max(self.abs(x[1]), most[1]),
        ])
    }
    /// Stores x · factor as sixteen integers, as [`Simd::to_i16`] rounds; no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for writing 32 bytes.
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut i16, x: Self::C, factor: f32) {
        let ([low, high], factor) = (self.halves(x), self.splat(factor));
        let words = [
            self.to_i16(self.mul(low, factor)),
            self.to_i16(self.mul(high, factor)),
        ];
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[[i16; LANES]; 2]>().write_unaligned(words) }
    }

    /// Sums of nothing.
    fn zero_sums(self) -> Self::N;
    /// Sixteen pairs of i16, no alignment needed.
    ///
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load_pairs(self, p: *const u8) -> Self::P;
    /// `sums + x₀ · w₀ + x₁ · w₁`, modulo 2³², for the pair of i16 at `x`. No more than three of the four are -32768.
    ///
    /// # Safety
    /// `x` is valid for reading 4 bytes.
    unsafe fn add_pairs(self, x: *const f32, w: Self::P, sums: Self::N) -> Self::N;
    /// The sums, rounded to nearest even.
    fn to_columns(self, sums: Self::N) -> Self::C;

    /// Whether eight steps of that many panels can ask for cache lines.
    #[inline(always)]
    fn asks(_panels: usize) -> bool {
        false
    }

    /// Eight steps of a float tile: `acc[p][r] += a[r][i] · w[p][i]` for i in 0..8, in that order, each product and
    /// sum one [`Simd::fma`]. `a` and `w` are (address, places from row to row or bytes from panel to panel); the steps of a
    /// panel of type W lie end to end. The eight cache lines from each of `next` on are asked for, one by one, since the
    /// memory's queue is short; any address is allowed, but none unless [`Tiled::asks`].
    ///
    /// # Safety
    /// R ≤ [`Tiled::MAX_ROWS`]; the eight values of each row and the 128 weights of each panel may be read.
    #[inline(always)]
    unsafe fn eight_steps<const R: usize, const P: usize, W: Floats>(
        self,
        acc: &mut [[Self::C; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        _next: Option<[*const u8; 2]>,
    ) {
        for i in 0..8 {
            let w = w.wrapping_add(i * 2 * LANES * W::SIZE);
            // SAFETY: the caller's contract.
            unsafe { step::<Self, W, R, P>(self, acc, (a.add(i), row), (w, panel)) };
        }
    }
    /// Some blocks of [`Tiled::WIDE_BLOCK`] steps, as [`wide_steps`]. Only a left side given by rows has a right one that is.
    ///
    /// # Safety
    /// As there; P is that of [`Tiled::WIDE`], and there is a block.
    #[inline(always)]
    unsafe fn wide_blocks<const R: usize, const P: usize>(
        self,
        _acc: &mut [[Self::C; R]; P],
        _a: Left,
        _b: Right,
        _blocks: usize,
    ) {
        unreachable!("no blocks of steps");
    }
    /// Eight steps of an integer tile: `acc[p][r] += a[r][i] · w[p][i]` for pairs i in 0..8; else as [`Tiled::eight_steps`].
    ///
    /// # Safety
    /// As [`Tiled::eight_steps`].
    #[inline(always)]
    unsafe fn eight_pairs<const R: usize, const P: usize>(
        self,
        acc: &mut [[Self::N; R]; P],
        (a, row): (*const f32, usize),
        (w, panel): (*const u8, usize),
        _next: Option<[*const u8; 2]>,
    ) {
        for i in 0..8 {
            let w = w.wrapping_add(i * 2 * LANES * size_of::<f32>());
            // SAFETY: the caller's contract.
            unsafe { pair_step::<Self, R, P>(self, acc, (a.add(i), row), (w, panel)) };
        }
    }
}

/// Values of one step of a packed left side.
pub(in super::super) const WIDE_ROWS: usize = 8;

/// The left side of a tile: its next step, with those to follow.
#[derive(Clone, Copy)]
pub(in super::super) enum Left {
    /// Packed: [`WIDE_ROWS`] values for each step, of which the first ones count.
    Packed(*const f32),
    /// Row by row, so many values from one to the next.
    Rows(*const f32, usize),
}

impl Left {
    /// Some steps later.
    #[inline(always)]
    pub(in super::super) fn later(self, steps: usize) -> Self {
        match self {
            Left::Packed(a) => Left::Packed(a.wrapping_add(steps * WIDE_ROWS)),
            Left::Rows(a, row) => Left::Rows(a.wrapping_add(steps), row),
        }
    }

    /// What lies so many values behind, if it is packed.
    #[inline(always)]
    pub(in super::super) fn behind(self, values: usize) -> Self {
        match self {
            Left::Packed(a) => Left::Packed(a.wrapping_add(values)),
            rows @ Left::Rows(..) => rows,
        }
    }

    /// The first row's value for the next step, and the values from row to row.
    #[inline(always)]
    pub(super) fn step(self) -> (*const f32, usize) {
        match self {
            Left::Packed(a) => (a, 1),
            Left::Rows(a, row) => (a, row),
        }
    }
}

/// The right side of a tile of P panels: its next step, with those to follow.
#[derive(Clone, Copy)]
pub(in super::super) enum Right {
    /// Packed: P times sixteen values for each step.
    Packed(*const f32),
    /// Row by row, so many values from one to the next. The tile packs them by the way, in the third place.
    Rows(*const f32, usize, *mut f32),
}

impl Right {
    /// Some steps later, of so many panels.
    #[inline(always)]
    pub(in super::super) fn later(self, steps: usize, panels: usize) -> Self {
        let values = steps * panels * PANEL;
        match self {
            Right::Packed(b) => Right::Packed(b.wrapping_add(values)),
            Right::Rows(b, row, to) => {
                Right::Rows(b.wrapping_add(steps * row), row, to.wrapping_add(values))
            }
        }
    }

    /// Where the next step's values lie if they are given by rows, the values from row to row, and where they are, or are to be, packed.
    #[inline(always)]
    pub(super) fn places(self) -> (*const f32, usize, *mut f32) {
        match self {
            Right::Packed(b) => (b, 0, b.cast_mut()),
            Right::Rows(b, row, to) => (b, row, to),
        }
    }

    /// The P times sixteen values of the next step, packed.
    ///
    /// # Safety
    /// They may be read, and their place, if they are to be packed, may be written.
    #[inline(always)]
    unsafe fn step<S: Tiled, const P: usize>(self, s: S) -> *const f32 {
        match self {
            Right::Packed(b) => b,
            Right::Rows(b, _, to) => {
                for column in (0..P * PANEL).step_by(PANEL) {
                    // SAFETY: the caller's contract.
                    unsafe { s.store_columns(to.add(column), s.load_columns(b.add(column))) };
                }
                to
            }
        }
    }
}

/// Columns of a panel.
const PANEL: usize = 2 * LANES;

/// Some steps of both sides, of which the right one is packed if the left one is.
///
/// # Safety
/// R and P are those of [`Tiled::WIDE`] or fewer; the values may be read, and those of the right side packed.
#[inline(always)]
pub(in super::super) unsafe fn wide_steps<S: Tiled, const R: usize, const P: usize>(
    s: S,
    acc: &mut [[S::C; R]; P],
    a: Left,
    b: Right,
    steps: usize,
) {
    let blocks = steps.checked_div(S::WIDE_BLOCK).unwrap_or(0);
    let mut whole = 0;
    if P == S::WIDE.1 && blocks > 0 {
        // SAFETY: the caller's contract.
        unsafe { s.wide_blocks::<R, P>(acc, a, b, blocks) };
        whole = blocks * S::WIDE_BLOCK;
    }
    for i in whole..steps {
        // SAFETY: the caller's contract.
        unsafe {
            let b = b.later(i, P).step::<S, P>(s).cast();
            step::<S, Single, R, P>(s, acc, a.later(i).step(), (b, PANEL * size_of::<f32>()));
        }
    }
}

/// One step of the summed index: `acc[p][r] += a[r] · w[p]`. Both sides are (address, distance to the next row or panel).
///
/// # Safety
/// The R left values and P panels' 16 values may be read.
#[inline(always)]
pub(in super::super) unsafe fn step<S: Tiled, W: Floats, const R: usize, const P: usize>(
    s: S,
    acc: &mut [[S::C; R]; P],
    (a, row): (*const f32, usize),
    (w, panel): (*const u8, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut weights = [W::load(s, w); P];
        for (p, to) in weights.iter_mut().enumerate().skip(1) {
            *to = W::load(s, w.add(p * panel));
        }
        for r in 0..R {
            let x = *a.add(r * row);
            for (acc, w) in acc.iter_mut().zip(weights) {
                acc[r] = s.fma_columns(x, w, acc[r]);
            }
        }
    }
}

/// [`step`] of an integer tile.
///
/// # Safety
/// As there.
#[inline(always)]
pub(in super::super) unsafe fn pair_step<S: Tiled, const R: usize, const P: usize>(
    s: S,
    acc: &mut [[S::N; R]; P],
    (a, row): (*const f32, usize),
    (w, panel): (*const u8, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut weights = [s.load_pairs(w); P];
        for (p, to) in weights.iter_mut().enumerate().skip(1) {
            *to = s.load_pairs(w.add(p * panel));
        }
        for r in 0..R {
            for (acc, w) in acc.iter_mut().zip(weights) {
                acc[r] = s.add_pairs(a.add(r * row), w, acc[r]);
            }
        }
    }
}

/// The most panels at once in any table, as [`Tiled::PANELS`].
pub(in super::super) const MOST_PANELS: [usize; 4] = [8, 4, 4, 2];

/// Panels at once where a tile has registers for six rows of one panel.
pub(super) const FEW_PANELS: [usize; 4] = [4, 2, 1, 1];

const fn panels_of<S: Tiled>(rows: usize) -> usize {
    let kind = if rows == 0 { 0 } else { rows - 1 };
    S::PANELS[if kind < 3 { kind } else { 3 }]
}

/// Whether tiles of the set have so many rows and panels: as many panels as they take at once, or one that is left.
pub(in super::super) const fn has_tile<S: Tiled>(rows: usize, panels: usize) -> bool {
    rows <= S::MAX_ROWS && (panels == 1 || panels == panels_of::<S>(rows))
}

/// How float weights are stored.
pub(in super::super) trait Floats {
    /// Bytes of one value.
    const SIZE: usize;

    /// Sixteen values, widened.
    ///
    /// # Safety
    /// `p` is valid for reading sixteen values.
    unsafe fn load<S: Tiled>(s: S, p: *const u8) -> S::C;
}

/// Weights of f16.
pub(in super::super) struct Half;
/// Weights of f32.
pub(in super::super) struct Single;

impl Floats for Half {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Tiled>(s: S, p: *const u8) -> S::C {
        // SAFETY: the caller's contract.
        unsafe { s.load_half_columns(p.cast()) }
    }
}

impl Floats for Single {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Tiled>(s: S, p: *const u8) -> S::C {
        // SAFETY: the caller's contract.
        unsafe { s.load_columns(p.cast()) }
    }
}
