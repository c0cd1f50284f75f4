//! Optimisers: `sgd`, `adam` and `lamb`.
//!
//! Every element is computed as the definition of its op computes it in f32, operation by operation, so that its bits
//! are those of the definition, with every table. Multiply-adds would save nothing: memory is the bound, so that operands are asked for
//! ahead, and before it the divider, so that what divides every element of a tensor is inverted once.

use std::ops::Range;

use lxpod_ir::DType;
use lxpod_ir::random_bits::{ROUNDING_ROW, RowState};

use super::simd::{LANES, Simd};
use super::squares::Squares;
use super::view::{Row, RowMut};
use super::{Kernels, View, ViewMut, elementwise};

/// How a parameter steps, and its states change; attributes and scalars of the ops.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// [`lxpod_ir::ops::Sgd`]; the state is the velocity.
    Sgd(SgdRule),
    /// [`lxpod_ir::ops::Adam`]; the states are the moments.
    Adam(AdamRule),
}

/// See [`lxpod_ir::ops::Sgd`].
#[derive(Clone, Copy, Debug)]
pub struct SgdRule {
    /// The share of the velocity that stays.
    pub momentum: f32,
    /// The share of the parameter that is added to the gradient.
    pub decay: f32,
    /// Whether the step looks ahead.
    pub nesterov: bool,
}

/// See [`lxpod_ir::ops::Adam`].
#[derive(Clone, Copy, Debug)]
pub struct AdamRule {
    /// The shares of the moments that stay.
    pub betas: [f32; 2],
    /// The shares of the gradient and its square that are added: 1 − β, rounded once.
    pub rests: [f32; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// The share of the parameter that is added to the direction.
    pub decay: f32,
    /// What the moments are divided by.
    pub corrections: [f32; 2],
}

/// The dtypes of a parameter and of its states.
type Dtypes = [DType; 3];

/// All in f32, weights behind f16 parameters among them.
const FLOAT: Dtypes = [DType::F32; 3];
/// As Graphcore trained LXMERT: an f16 parameter and first moment.
const HALF: Dtypes = [DType::F16, DType::F16, DType::F32];

/// Stochastic rounding of the parameter to f16.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// The parameter's salt.
    pub salt: u64,
    /// The step's key.
    pub key: [u32; 2],
}

/// One step of a parameter, or of some elements of it. All views are one row of as many elements.
#[derive(Clone, Copy)]
pub struct Update<'a> {
    /// What is done.
    pub rule: Rule,
    /// The parameter.
    pub p: View<'a>,
    /// Its gradient.
    pub g: View<'a>,
    /// Its states, as many as the rule has: one or two.
    pub states: &'a [View<'a>],
    /// Multiplies the gradient. Where it is not finite, nothing changes.
    pub factor: f32,
    /// The learning rate.
    pub lr: f32,
    /// How the new parameter is rounded, if not to nearest.
    pub rounding: Option<Rounding>,
    /// The views' first element, in the whole parameter: a multiple of [`ROUNDING_ROW`].
    pub first: usize,
}

impl Update<'_> {
    fn check(&self, range: &Range<usize>) {
        let shape = (1, self.p.cols());
        let mut views = self.states.iter().chain([&self.p, &self.g]);
        assert!(
            views.all(|view| (view.rows(), view.cols()) == shape),
            "an update of one row"
        );
        assert!(
            range.start <= range.end && range.end <= shape.1,
            "elements {range:?}"
        );
        let states = match self.rule {
            Rule::Sgd(_) => 1,
            Rule::Adam(_) => 2,
        };
        assert_eq!(self.states.len(), states, "states of the rule");
        assert!(
            self.first.is_multiple_of(ROUNDING_ROW),
            "first element {}",
            self.first
        );
    }

    /// Whether operands and results have these dtypes; results those of the operands they replace.
    fn has(&self, dtypes: &Dtypes, out: &[ViewMut<'_>]) -> bool {
        let replaced = std::iter::once(&self.p).chain(self.states);
        let fits = |(view, &dtype): (&View<'_>, &DType)| view.dtype() == dtype;
        let results = out.iter().map(ViewMut::dtype);
        self.g.dtype() == DType::F32
            && replaced.clone().zip(dtypes).all(fits)
            && results.zip(dtypes).all(|(result, &dtype)| result == dtype)
    }
}

/// Writes the given elements of the new parameter and the new states to `out`, in this order. Each result may be the
/// memory of its operand.
///
/// # Panics
/// If shapes or the number of states disagree, elements are out of range, or a parameter to be rounded stochastically
/// is not f16.
pub fn update(
    kernels: &Kernels,
    update: &Update<'_>,
    out: &mut [ViewMut<'_>],
    range: Range<usize>,
) {
    update.check(&range);
    let shape = (1, update.p.cols());
    assert_eq!(out.len(), 1 + update.states.len(), "results of the rule");
    assert!(
        out.iter().all(|out| (out.rows(), out.cols()) == shape),
        "results of one row"
    );
    assert!(
        update.rounding.is_none() || out[0].dtype() == DType::F16,
        "stochastic rounding gives f16"
    );
    if update.factor.is_finite() {
        // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
        return unsafe { (kernels.update)(Args { update, out, range }) };
    }
    let old = std::iter::once(&update.p).chain(update.states);
    for (old, new) in old.zip(out).filter(|(old, new)| !new.is(**old)) {
        let new = new.reborrow().col_range(range.clone());
        elementwise::copy(kernels, old.col_range(range.clone()), new, 0..1);
    }
}

/// Σ p² and Σ d² over the given elements, d being the direction of [`lxpod_ir::ops::Adam`], in f64: element i of the
/// range in lane i mod 8.
///
/// # Panics
/// As [`update`]; or if the rule is another than Adam's.
pub fn lamb_squares(kernels: &Kernels, update: &Update<'_>, range: Range<usize>) -> [f64; 2] {
    update.check(&range);
    // SAFETY: a table exists only for a CPU that can run it, and the shapes were checked.
    unsafe { (kernels.lamb_squares)(update, range) }
}

/// A checked call of [`update`].
pub(super) struct Args<'a> {
    update: &'a Update<'a>,
    out: &'a [ViewMut<'a>],
    range: Range<usize>,
}

/// The body of [`update`].
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, args: Args<'_>) {
    // SAFETY: the caller's contract.
    unsafe {
        let has = |dtypes| args.update.has(dtypes, args.out);
        match args.update.rule {
            Rule::Sgd(rule) if has(&FLOAT) => rows(s, &args, rule, Some(FLOAT)),
            Rule::Sgd(rule) => rows(s, &args, rule, None),
            Rule::Adam(rule) if has(&FLOAT) => rows(s, &args, rule, Some(FLOAT)),
            Rule::Adam(rule) if has(&HALF) => rows(s, &args, rule, Some(HALF)),
            Rule::Adam(rule) => rows(s, &args, rule, None),
        }
    }
}

/// A rule with N states.
trait Step<const N: usize>: Copy {
    /// What p is to become, given p, the gradient times the factor, and the states; and the new states.
    fn step<S: Simd>(self, s: S, lr: S::V, pg: [S::V; 2], states: [S::V; N]) -> (S::V, [S::V; N]);
}

impl Step<1> for SgdRule {
    #[inline(always)]
    fn step<S: Simd>(
        self,
        s: S,
        lr: S::V,
        [p, g]: [S::V; 2],
        [old]: [S::V; 1],
    ) -> (S::V, [S::V; 1]) {
        let momentum = s.splat(self.momentum);
        let g = s.add(g, s.mul(s.splat(self.decay), p));
        let velocity = s.add(s.mul(momentum, old), g);
        let ahead = s.add(g, s.mul(momentum, velocity));
        let step = if self.nesterov { ahead } else { velocity };
        (s.sub(p, s.mul(lr, step)), [velocity])
    }
}

impl AdamRule {
    /// The direction and the new moments.
    #[inline(always)]
    fn direction<S: Simd>(self, s: S, [p, g]: [S::V; 2], [m, v]: [S::V; 2]) -> (S::V, [S::V; 2]) {
        let [beta1, beta2] = [s.splat(self.betas[0]), s.splat(self.betas[1])];
        let [rest1, rest2] = [s.splat(self.rests[0]), s.splat(self.rests[1])];
        let m = s.add(s.mul(beta1, m), s.mul(rest1, g));
        let v = s.add(s.mul(beta2, v), s.mul(s.mul(rest2, g), g));
        let [c1, c2] = [self.corrections[0], self.corrections[1].sqrt()].map(|c| s.splat(1.0 / c));
        let root = s.add(s.mul(s.sqrt(v), c2), s.splat(self.eps));
        let step = s.div(s.mul(m, c1), root);
        (s.add(step, s.mul(s.splat(self.decay), p)), [m, v])
    }
}

impl Step<2> for AdamRule {
    #[inline(always)]
    fn step<S: Simd>(self, s: S, lr: S::V, pg: [S::V; 2], states: [S::V; 2]) -> (S::V, [S::V; 2]) {
        let (direction, states) = self.direction(s, pg, states);
        (s.sub(pg[0], s.mul(lr, direction)), states)
    }
}

/// The operands of a rule with N states.
struct Operands<const N: usize> {
    p: Row,
    g: Row,
    states: [Row; N],
    factor: f32,
}

impl<const N: usize> Operands<N> {
    /// Those of a checked update; `known` are the dtypes, where there is a loop for them without choices.
    #[inline(always)]
    fn new(update: &Update<'_>, known: Option<Dtypes>) -> Self {
        let mut states = [update.p.row(0); N];
        for (index, (row, state)) in states.iter_mut().zip(update.states).enumerate() {
            *row = state.row(0).known(known.map(|dtypes| dtypes[1 + index]));
        }
        Operands {
            p: update.p.row(0).known(known.map(|dtypes| dtypes[0])),
            g: update.g.row(0).known(known.map(|_| DType::F32)),
            states,
            factor: update.factor,
        }
    }

    /// Asks for what is needed some elements after `c`.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, c: usize) {
        /// How many elements further: half a dozen cache lines of f32.
        const AHEAD: usize = 96;
        let rows = self.states.iter().chain([&self.p, &self.g]);
        rows.for_each(|row| s.prefetch(row.at(c + AHEAD)));
    }

    /// p and the gradient times the factor, and the states, of min(n, 8) elements from `c` on.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, c: usize, n: usize) -> ([S::V; 2], [S::V; N]) {
        // SAFETY: the caller's contract.
        unsafe {
            let g = s.mul(self.g.load_up_to(s, c, n), s.splat(self.factor));
            let mut states = [g; N];
            for (state, row) in states.iter_mut().zip(&self.states) {
                *state = row.load_up_to(s, c, n);
            }
            ([self.p.load_up_to(s, c, n), g], states)
        }
    }
}

/// All elements, row by row of rounding words; `known` are the dtypes, where there is a loop for them without choices.
///
/// # Safety
/// As [`run`]; the rule has N states.
#[inline(always)]
unsafe fn rows<S: Simd, R: Step<N>, const N: usize>(
    s: S,
    args: &Args<'_>,
    rule: R,
    known: Option<Dtypes>,
) {
    let Args { update, out, range } = args;
    let operands = Operands::<N>::new(update, known);
    let mut new = [out[0].row(0); N];
    for (index, (row, out)) in new.iter_mut().zip(&out[1..]).enumerate() {
        *row = out.row(0).known(known.map(|dtypes| dtypes[1 + index]));
    }
    let results = (out[0].row(0).known(known.map(|dtypes| dtypes[0])), new);
    let mut first = range.start;
    while first < range.end {
        let row = first / ROUNDING_ROW;
        let part = first..range.end.min((row + 1) * ROUNDING_ROW);
        first = part.end;
        let of_all = update.first / ROUNDING_ROW + row;
        let words = update.rounding.map(|rounding| rounding.row(of_all));
        // SAFETY: the elements exist.
        unsafe { steps(s, rule, update.lr, &operands, results, words, part) };
    }
}

/// The elements of a range inside one row of rounding words.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn steps<S: Simd, R: Step<N>, const N: usize>(
    s: S,
    rule: R,
    lr: f32,
    operands: &Operands<N>,
    results: (RowMut, [RowMut; N]),
    words: Option<RowState>,
    range: Range<usize>,
) {
    // One constant for the compiler, so that whole vectors are stored without a choice.
    let whole = range.start + range.len() / LANES * LANES;
    for c in (range.start..whole).step_by(LANES) {
        if c % (2 * LANES) == 0 {
            operands.ask(s, c);
        }
        // SAFETY: the caller's contract.
        unsafe { step(s, rule, lr, operands, results, words, (c, LANES)) };
    }
    if whole < range.end {
        let rest = (whole, range.end - whole);
        // SAFETY: the caller's contract.
        unsafe { step(s, rule, lr, operands, results, words, rest) };
    }
}

/// min(n, 8) elements from `c` on.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn step<S: Simd, R: Step<N>, const N: usize>(
    s: S,
    rule: R,
    lr: f32,
    operands: &Operands<N>,
    (p, states): (RowMut, [RowMut; N]),
    words: Option<RowState>,
    (c, n): (usize, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        let (pg, old) = operands.load(s, c, n);
        let (mut value, new) = rule.step(s, s.splat(lr), pg, old);
        if let Some(row) = words {
            let words = s.words(row, (c % ROUNDING_ROW) as u32);
            value = round_stochastically(s, value, words);
        }
        p.store(s, c, n, value);
        for (row, new) in states.iter().zip(new) {
            row.store(s, c, n, new);
        }
    }
}

impl Rounding {
    /// What the words of a row of [`ROUNDING_ROW`] elements have in common; see
    /// [`lxpod_ir::random_bits::rounding_word`].
    fn row(self, row: usize) -> RowState {
        RowState::new(self.key, self.salt, row as u32)
    }
}

/// [`lxpod_ir::random_bits::round_stochastically`] of eight lanes.
#[inline(always)]
fn round_stochastically<S: Simd>(s: S, value: S::V, words: S::W) -> S::V {
    const MAX_F16: f32 = 65504.0;
    let magnitude = s.abs(value);
    let cut = s.min(magnitude, s.splat(MAX_F16));
    // 2⁻¹⁴, the smallest normal f16, has the unit 2⁻²⁴.
    let binade = s.binade(s.max(cut, s.splat(1.0 / 16_384.0)));
    let unit = s.mul(binade, s.splat(1.0 / 1024.0));
    let units = s.div(cut, unit);
    let whole = s.floor(units);
    let drawn = s.mul(s.upper(words), s.splat(1.0 / 16_777_216.0));
    let one = s.splat(1.0);
    let up = s.select_lt(drawn, s.sub(units, whole), one, s.splat(0.0));
    let rounded = s.with_sign(s.mul(s.add(whole, up), unit), value);
    s.select_lt(magnitude, s.splat(f32::INFINITY), rounded, value)
}

/// The body of [`lamb_squares`].
///
/// # Safety
/// The shapes were checked.
#[inline(always)]
pub(super) unsafe fn squares<S: Simd>(s: S, update: &Update<'_>, range: Range<usize>) -> [f64; 2] {
    let Rule::Adam(rule) = update.rule else {
        panic!("the norms of a step of Adam");
    };
    let operands = Operands::<2>::new(update, None);
    let mut sums = [Squares::default(); 2];
    let whole = range.start + range.len() / LANES * LANES;
    for c in (range.start..whole).step_by(LANES) {
        // SAFETY: the elements exist.
        unsafe { add_squares(s, rule, &operands, &mut sums, (c, LANES)) };
    }
    if whole < range.end {
        let rest = (whole, range.end - whole);
        // SAFETY: the elements exist.
        unsafe { add_squares(s, rule, &operands, &mut sums, rest) };
    }
    sums.map(Squares::total)
}

/// Adds p² and d² of min(n, 8) elements from `c` on.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn add_squares<S: Simd>(
    s: S,
    rule: AdamRule,
    operands: &Operands<2>,
    sums: &mut [Squares; 2],
    (c, n): (usize, usize),
) {
    // SAFETY: the caller's contract.
    let (pg, states) = unsafe { operands.load(s, c, n) };
    let (direction, _) = rule.direction(s, pg, states);
    sums[0].add(s.unpack(pg[0]), n);
    sums[1].add(s.unpack(direction), n);
}
