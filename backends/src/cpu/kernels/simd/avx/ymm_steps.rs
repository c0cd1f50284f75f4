//! Eight steps of a matrix tile, scheduled by hand.
//!
//! A tile of six rows needs fifteen of the sixteen registers, and compilers that unroll its loop spill some. Written out,
//! a step is two decoded halves of weights and, per row, one broadcast and two `fma`; addresses are constants
//! off four registers. Fewer instructions per `fma` count where two hardware threads share a core's decoders.

use std::arch::asm;
use std::arch::x86_64::{__m256, __m256i};

use super::super::tiled::{Floats, Half, Left, Right};

/// One row of one step: `acc[r] += a[r][i] · w[i]`.
macro_rules! row {
    ($i:literal, $address:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss {x}, dword ptr [",
            $address,
            " + 4*",
            $i,
            "]\n",
            "vfmadd231ps {",
            $low,
            "}, {x}, {w0}\n",
            "vfmadd231ps {",
            $high,
            "}, {x}, {w1}\n",
        )
    };
}

/// One row of one step of pairs: `acc[r] += a[r][i] · w[i]`.
macro_rules! pair_row {
    ($i:literal, $address:literal, $low:literal, $high:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [",
            $address,
            " + 4*",
            $i,
            "]\n",
            "vpmaddwd {y}, {x}, {w0}\n",
            "vpmaddwd {x}, {x}, {w1}\n",
            "vpaddd {",
            $low,
            "}, {",
            $low,
            "}, {y}\n",
            "vpaddd {",
            $high,
            "}, {",
            $high,
            "}, {x}\n",
        )
    };
}

/// The rows of one step, each by the macro `$row`.
macro_rules! rows {
    ($row:ident, 1, $i:literal) => {
        $row!($i, "{a}", "l0", "h0")
    };
    ($row:ident, 2, $i:literal) => {
        concat!(rows!($row, 1, $i), $row!($i, "{a} + {r}", "l1", "h1"))
    };
    ($row:ident, 3, $i:literal) => {
        concat!(rows!($row, 2, $i), $row!($i, "{a} + 2*{r}", "l2", "h2"))
    };
    ($row:ident, 4, $i:literal) => {
        concat!(rows!($row, 3, $i), $row!($i, "{b}", "l3", "h3"))
    };
    ($row:ident, 5, $i:literal) => {
        concat!(rows!($row, 4, $i), $row!($i, "{b} + {r}", "l4", "h4"))
    };
    ($row:ident, 6, $i:literal) => {
        concat!(rows!($row, 5, $i), $row!($i, "{b} + 2*{r}", "l5", "h5"))
    };
}

/// The weights of one step.
macro_rules! weights {
    (f16, $i:literal) => {
        concat!(
            "vcvtph2ps {w0}, xmmword ptr [{w} + 32*",
            $i,
            "]\n",
            "vcvtph2ps {w1}, xmmword ptr [{w} + 32*",
            $i,
            " + 16]\n",
        )
    };
    (f32, $i:literal) => {
        concat!(
            "vmovups {w0}, ymmword ptr [{w} + 64*",
            $i,
            "]\n",
            "vmovups {w1}, ymmword ptr [{w} + 64*",
            $i,
            " + 32]\n",
        )
    };
}

/// A function of eight steps for some rows, each by the macro `$row`, and a type of weights.
macro_rules! steps {
    ($name:ident, $row:ident, $dtype:tt, $sum:ty, $rows:tt, $($r:literal $low:ident $high:ident),+) => {
        /// # Safety
        /// The CPU has the features; the rows' eight values and the 128 weights may be read.
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(acc: &mut [[$sum; 2]; $rows], a: *const f32, row: usize, w: *const u8) {
            // SAFETY: only memory that the caller vouches for is read, none is written; rows beyond the last are not addressed.
            unsafe {
                asm!(
                    weights!($dtype, 0), rows!($row, $rows, 0),
                    weights!($dtype, 1), rows!($row, $rows, 1),
                    weights!($dtype, 2), rows!($row, $rows, 2),
                    weights!($dtype, 3), rows!($row, $rows, 3),
                    weights!($dtype, 4), rows!($row, $rows, 4),
                    weights!($dtype, 5), rows!($row, $rows, 5),
                    weights!($dtype, 6), rows!($row, $rows, 6),
                    weights!($dtype, 7), rows!($row, $rows, 7),
                    "/* {b} {r} {y} */",
                    a = in(reg) a,
                    b = in(reg) a.wrapping_add(3 * row),
                    r = in(reg) row * size_of::<f32>(),
                    w = in(reg) w,
                    x = out(ymm_reg) _,
                    y = out(ymm_reg) _,
                    w0 = out(ymm_reg) _,
                    w1 = out(ymm_reg) _,
                    $($low = inout(ymm_reg) acc[$r][0], $high = inout(ymm_reg) acc[$r][1],)+
                    options(readonly, nostack, preserves_flags, pure),
                );
            }
        }
    };
}

/// The functions for one type of weights.
macro_rules! table {
    ($module:ident, $row:ident, $dtype:tt, $sum:ty) => {
        mod $module {
            use super::*;
            steps!(one, $row, $dtype, $sum, 1, 0 l0 h0);
            steps!(two, $row, $dtype, $sum, 2, 0 l0 h0, 1 l1 h1);
            steps!(three, $row, $dtype, $sum, 3, 0 l0 h0, 1 l1 h1, 2 l2 h2);
            steps!(four, $row, $dtype, $sum, 4, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3);
            steps!(five, $row, $dtype, $sum, 5, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4);
            steps!(six, $row, $dtype, $sum, 6, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5);

            /// # Safety
            /// As the functions it chooses from.
            #[inline(always)]
            pub(super) unsafe fn steps<const R: usize>(
                acc: &mut [[$sum; 2]; R],
                a: *const f32,
                row: usize,
                w: *const u8,
            ) {
                let sums = acc.as_mut_ptr();
                // SAFETY: the caller's contract; each array is cast to the length it has.
                unsafe {
                    match R {
                        1 => one(&mut *sums.cast(), a, row, w),
                        2 => two(&mut *sums.cast(), a, row, w),
                        3 => three(&mut *sums.cast(), a, row, w),
                        4 => four(&mut *sums.cast(), a, row, w),
                        5 => five(&mut *sums.cast(), a, row, w),
                        6 => six(&mut *sums.cast(), a, row, w),
                        _ => unreachable!("a tile of {R} rows"),
                    }
                }
            }
        }
    };
}

table!(half, row, f16, __m256);
table!(single, row, f32, __m256);
table!(pairs, pair_row, f32, __m256i);

/// Steps of f32 sides that are written out: a block.
pub(super) const WIDE_BLOCK: usize = 4;

/// The functions of f32 sides, block by block of steps.
mod wide {
    use super::*;

    /// The bytes from the left side's values of one block of steps to those of the next.
    macro_rules! block {
        (packed) => {
            "128"
        };
        (rows) => {
            "16"
        };
    }

    /// The right side's values of one step.
    macro_rules! right {
        (packed, $i:literal) => {
            weights!(f32, $i)
        };
        (rows, $i:literal) => {
            concat!(
                "vmovups {w0}, ymmword ptr [{v}]\n",
                "vmovups {w1}, ymmword ptr [{v} + 32]\n",
                "add {v}, {s}\n",
                "vmovups ymmword ptr [{w} + 64*",
                $i,
                "], {w0}\n",
                "vmovups ymmword ptr [{w} + 64*",
                $i,
                " + 32], {w1}\n",
            )
        };
    }

    /// One step.
    macro_rules! step {
        ($left:tt, $right:tt, $i:literal, $($r:tt $low:ident $high:ident),+) => {
            concat!(
                right!($right, $i),
                $(
                    "vbroadcastss {x}, dword ptr [", at!($left, $i, $r), "]\n",
                    "vfmadd231ps {", stringify!($low), "}, {x}, {w0}\n",
                    "vfmadd231ps {", stringify!($high), "}, {x}, {w1}\n",
                )+
            )
        };
    }

    /// The function of some rows.
    macro_rules! steps {
        ($left:tt, $right:tt, $name:ident, $rows:tt, $($r:tt $low:ident $high:ident),+) => {
            /// # Safety
            /// The CPU has the features; `count` is not 0; the values of both sides may be read, and those of the right one packed.
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn $name(
                acc: &mut [[__m256; 2]; $rows],
                (a, row): (*const f32, usize),
                (b, step, packed): (*const f32, usize, *mut f32),
                count: usize,
            ) {
                // SAFETY: only memory that the caller vouches for is accessed; rows beyond the last are not addressed.
                unsafe {
                    asm!(
                        "2:",
                        step!($left, $right, 0, $($r $low $high),+), step!($left, $right, 1, $($r $low $high),+),
                        step!($left, $right, 2, $($r $low $high),+), step!($left, $right, 3, $($r $low $high),+),
                        concat!("add {a}, ", block!($left)),
                        concat!("add {b}, ", block!($left)),
                        "add {w}, 256",
                        "dec {count}",
                        "jnz 2b",
                        "/* {r} {v} {s} */",
                        a = inout(reg) a => _,
                        b = inout(reg) a.wrapping_add(3 * row) => _,
                        r = in(reg) row * size_of::<f32>(),
                        v = inout(reg) b => _,
                        s = in(reg) step * size_of::<f32>(),
                        w = inout(reg) packed => _,
                        count = inout(reg) count => _,
                        x = out(ymm_reg) _,
                        w0 = out(ymm_reg) _,
                        w1 = out(ymm_reg) _,
                        $($low = inout(ymm_reg) acc[$r][0], $high = inout(ymm_reg) acc[$r][1],)+
                        options(nostack),
                    );
                }
            }
        };
    }

    /// The functions of a kind of left and of right side.
    macro_rules! table {
        ($name:ident, $left:tt, $right:tt) => {
            pub(super) mod $name {
                use super::*;
                steps!($left, $right, one, 1, 0 l0 h0);
                steps!($left, $right, two, 2, 0 l0 h0, 1 l1 h1);
                steps!($left, $right, three, 3, 0 l0 h0, 1 l1 h1, 2 l2 h2);
                steps!($left, $right, four, 4, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3);
                steps!($left, $right, five, 5, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4);
                steps!($left, $right, six, 6, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5);

                /// # Safety
                /// As the functions it chooses from.
                #[inline(always)]
                pub(in super::super) unsafe fn steps<const R: usize>(
                    acc: &mut [[__m256; 2]; R],
                    a: (*const f32, usize),
                    b: (*const f32, usize, *mut f32),
                    count: usize,
                ) {
                    let sums = acc.as_mut_ptr();
                    // SAFETY: the caller's contract; each array is cast to the length it has.
                    unsafe {
                        match R {
                            1 => one(&mut *sums.cast(), a, b, count),
                            2 => two(&mut *sums.cast(), a, b, count),
                            3 => three(&mut *sums.cast(), a, b, count),
                            4 => four(&mut *sums.cast(), a, b, count),
                            5 => five(&mut *sums.cast(), a, b, count),
                            6 => six(&mut *sums.cast(), a, b, count),
                            _ => unreachable!("a tile of {R} rows"),
                        }
                    }
                }
            }
        };
    }
    table!(packed, packed, packed);
    table!(rows, rows, packed);
    table!(packing, rows, rows);
}

/// See `Tiled::eight_steps`.
///
/// # Safety
/// The CPU has the features; the rows' eight values and the 128 weights may be read.
#[inline(always)]
pub(super) unsafe fn eight<const R: usize, W: Floats>(
    acc: &mut [[__m256; 2]; R],
    a: *const f32,
    row: usize,
    w: *const u8,
) {
    // SAFETY: the caller's contract.
    unsafe {
        if W::SIZE == Half::SIZE {
            half::steps(acc, a, row, w);
        } else {
            single::steps(acc, a, row, w);
        }
    }
}

/// See `Tiled::wide_blocks`.
///
/// # Safety
/// The CPU has the features; `count` is not 0; the values of both sides may be read, and those of the right one packed.
#[inline(always)]
pub(super) unsafe fn wide<const R: usize>(
    acc: &mut [[__m256; 2]; R],
    a: Left,
    b: Right,
    count: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { by_sides!(acc, a, b, count) }
}

/// See `Tiled::eight_pairs`.
///
/// # Safety
/// The CPU has the features; the rows' eight pairs and the 128 pairs of weights may be read.
#[inline(always)]
pub(super) unsafe fn eight_pairs<const R: usize>(
    acc: &mut [[__m256i; 2]; R],
    a: *const f32,
    row: usize,
    w: *const u8,
) {
    // SAFETY: the caller's contract.
    unsafe { pairs::steps(acc, a, row, w) }
}
