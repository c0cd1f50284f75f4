//! Kernel tables: one per instruction set, chosen at run time.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx, Ymm, Zmm};
use super::simd::{Portable, Tiled};
use super::view::{Row, View};
use super::{
    attention, attention_grad, elementwise, linear, loss, matmul, norm, norm_grad, pack, peak,
    squares, sums, update,
};

/// The environment variable that overrides the choice of a table.
const VARIABLE: &str = "LXPOD_ISA";

/// The kernels of one instruction set. One exists only where the CPU can run it.
pub struct Kernels {
    name: &'static str,
    /// See [`Kernels::multiply_adds_a_cycle`].
    rates: [u64; 2],
    /// See [`Tiled::panels`].
    pub(super) panels: fn(usize) -> usize,
    pub(super) linear: unsafe fn(linear::Args<'_>),
    pub(super) matmul: unsafe fn(matmul::Args<'_>) -> Option<f64>,
    pub(super) attention: unsafe fn(attention::Args<'_>),
    pub(super) layer_norm: unsafe fn(norm::Args<'_>),
    pub(super) attention_grad: unsafe fn(attention_grad::Args<'_>),
    pub(super) layer_norm_grad: unsafe fn(norm_grad::Args<'_>),
    pub(super) sum_rows: unsafe fn(sums::Args<'_>),
    pub(super) elementwise: unsafe fn(elementwise::Args<'_>),
    pub(super) refill: unsafe fn(pack::Refill<'_>),
    pub(super) log_sum_exp: unsafe fn(Row, usize) -> loss::LogSum,
    pub(super) sum_squares: unsafe fn(View<'_>) -> f64,
    pub(super) update: unsafe fn(update::Args<'_>),
    pub(super) lamb_squares: unsafe fn(&update::Update<'_>, Range<usize>) -> [f64; 2],
    pub(super) multiply_adds: unsafe fn(u64) -> u64,
    pub(super) read_all: unsafe fn(&[f32]) -> f32,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernels").field(&self.name).finish()
    }
}

/// Why the table that the environment asks for cannot be had.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IsaError {
    /// No table has this name.
    #[error(
        "{VARIABLE}={0}: no such kernels; choose portable, avx2 or avx512, or unset it for the best this CPU has"
    )]
    Unknown(String),
    /// The CPU cannot run this table.
    #[error(
        "{VARIABLE}={0}: this CPU cannot run these kernels (avx2 needs AVX2, FMA and F16C; avx512 also AVX-512 F, BW, DQ, VL \
         and VNNI); choose portable, or unset it"
    )]
    Unsupported(&'static str),
}

impl Kernels {
    /// The best table that this CPU can run, or the one that `LXPOD_ISA` (`portable`, `avx2` or `avx512`) names.
    ///
    /// # Errors
    /// If the variable names no table, or one that this CPU cannot run.
    pub fn select() -> Result<&'static Kernels, IsaError> {
        let wanted = std::env::var_os(VARIABLE).filter(|v| !v.is_empty());
        Self::named(wanted.map(|v| v.to_string_lossy().into_owned()).as_deref())
    }

    /// The table of a name, or the best.
    fn named(name: Option<&str>) -> Result<&'static Kernels, IsaError> {
        let Some(wanted) = name else {
            return Ok(Self::all_supported().last().unwrap_or(&portable::TABLE));
        };
        let known = NAMES.into_iter().find(|&name| name == wanted);
        let name = known.ok_or_else(|| IsaError::Unknown(wanted.to_owned()))?;
        Self::all_supported()
            .find(|table| table.name == name)
            .ok_or(IsaError::Unsupported(name))
    }

    /// Every table that this CPU can run, slower ones first.
    pub fn all_supported() -> impl Iterator<Item = &'static Kernels> {
        std::iter::once(&portable::TABLE).chain(Self::native())
    }

    /// The name: `portable`, `avx2` or `avx512`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Multiply-adds that a core can do in a cycle with weights of f16, in fixed point, and of f32.
    ///
    /// Two units multiply f32 in every cycle on the CPUs at hand; `avx512` has one instruction for a pair of products of
    /// integers and their sum, `avx2` has two, of which CPUs start three (Intel) or four (AMD) a cycle.
    pub fn multiply_adds_a_cycle(&self) -> [u64; 2] {
        self.rates
    }

    #[cfg(target_arch = "x86_64")]
    fn native() -> impl Iterator<Item = &'static Kernels> {
        let narrow = Avx::<Ymm>::detected().then_some(&avx2::TABLE);
        let wide = Avx::<Zmm>::detected().then_some(&avx512::TABLE);
        narrow.into_iter().chain(wide)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn native() -> impl Iterator<Item = &'static Kernels> {
        std::iter::empty()
    }
}

/// Of all tables.
const NAMES: [&str; 3] = ["portable", "avx2", "avx512"];

/// Stamps out a table: every kernel body for one token, in functions that enable its features.
macro_rules! table {
    ($module:ident, $rates:expr, $type:ty, $token:expr $(, $features:literal)?) => {
        mod $module {
            use super::*;

            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn linear(args: linear::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { linear::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn matmul(args: matmul::Args<'_>) -> Option<f64> {
                // SAFETY: the caller's contract.
                unsafe { matmul::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn attention(args: attention::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { attention::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn layer_norm(args: norm::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { norm::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn attention_grad(args: attention_grad::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { attention_grad::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn layer_norm_grad(args: norm_grad::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { norm_grad::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn sum_rows(args: sums::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { sums::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn elementwise(args: elementwise::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { elementwise::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn refill(args: pack::Refill<'_>) {
                // SAFETY: the caller's contract.
                unsafe { pack::refill($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the row exists.
            $(#[target_feature(enable = $features)])?
            unsafe fn log_sum_exp(row: Row, cols: usize) -> loss::LogSum {
                // SAFETY: the caller's contract.
                unsafe { loss::log_sum_exp($token, row, cols) }
            }
            /// # Safety
            /// The CPU has the features and the row exists.
            $(#[target_feature(enable = $features)])?
            unsafe fn sum_squares(x: View<'_>) -> f64 {
                // SAFETY: the caller's contract.
                unsafe { squares::run($token, x) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn update(args: update::Args<'_>) {
                // SAFETY: the caller's contract.
                unsafe { update::run($token, args) }
            }
            /// # Safety
            /// The CPU has the features and the call was checked.
            $(#[target_feature(enable = $features)])?
            unsafe fn lamb_squares(update: &update::Update<'_>, range: Range<usize>) -> [f64; 2] {
                // SAFETY: the caller's contract.
                unsafe { update::squares($token, update, range) }
            }
            /// # Safety
            /// The CPU has the features.
            $(#[target_feature(enable = $features)])?
            unsafe fn multiply_adds(rounds: u64) -> u64 {
                // SAFETY: the caller's contract.
                unsafe { peak::run($token, rounds) }
            }

            /// # Safety
            /// The CPU has the features.
            $(#[target_feature(enable = $features)])?
            unsafe fn read_all(values: &[f32]) -> f32 {
                // SAFETY: the caller's contract.
                unsafe { peak::read($token, values) }
            }

            pub(super) static TABLE: Kernels = Kernels {
                name: stringify!($module),
                rates: $rates,
                panels: <$type as Tiled>::panels,
                linear,
                matmul,
                attention,
                layer_norm,
                attention_grad,
                layer_norm_grad,
                sum_rows,
                elementwise,
                refill,
                log_sum_exp,
                sum_squares,
                update,
                lamb_squares,
                multiply_adds,
                read_all,
            };
        }
    };
}

table!(portable, [4, 4], Portable, Portable);
#[cfg(target_arch = "x86_64")]
table!(
    avx2,
    [28, 16],
    Avx<Ymm>,
    Avx::<Ymm>::assume(),
    "avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
table!(
    avx512,
    [64, 32],
    Avx<Zmm>,
    Avx::<Zmm>::assume(),
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_tables() {
        assert_eq!(
            Kernels::named(Some("portable")).map(Kernels::name),
            Ok("portable")
        );
        let error = Kernels::named(Some("sse9")).expect_err("no such table");
        assert!(
            error.to_string().contains("portable, avx2 or avx512"),
            "{error}"
        );
        let best = Kernels::named(None).expect("one always exists");
        assert_eq!(
            Some(best.name()),
            Kernels::all_supported().last().map(Kernels::name)
        );
    }
}
