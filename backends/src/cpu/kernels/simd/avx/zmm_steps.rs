//! Eight steps of a tile of one or two panels in 512-bit registers, scheduled by hand.
//!
//! Twelve rows of two panels need twenty-seven of the thirty-two registers. A step is two loads of weights and, per row, one
//! broadcast and two multiply-adds; addresses are constants off a few registers, since instructions count: the
//! decoders bring four a cycle. With one panel the broadcast is part of the multiply-add. Written out also because compilers
//! take the product of integer pairs apart, into a multiplication and an addition, which takes twice as long.

use std::arch::asm;
use std::arch::x86_64::{__m512, __m512i};

use super::super::tiled::{Floats, Half, Left, Right};

/// One row of one step: `acc[p][r] += a[r][i] · w[p][i]`.
macro_rules! row {
    ($panels:tt, pairs, $i:literal, $address:literal, $r:literal) => {
        row!(@$panels "vpbroadcastd", "vpdpwssd", $i, $address, $r)
    };
    ($panels:tt, $dtype:tt, $i:literal, $address:literal, $r:literal) => {
        row!(@$panels "vbroadcastss", "vfmadd231ps", $i, $address, $r)
    };
    (@2 $broadcast:literal, $add:literal, $i:literal, $address:literal, $r:literal) => {
        concat!(
            $broadcast, " {x:z}, dword ptr [", $address, " + 4*", $i, "]\n",
            $add, " {l", $r, ":z}, {x:z}, {w0:z}\n",
            $add, " {h", $r, ":z}, {x:z}, {w1:z}\n",
        )
    };
    (@1 $broadcast:literal, $add:literal, $i:literal, $address:literal, $r:literal) => {
        concat!($add, " {l", $r, ":z}, {w0:z}, dword ptr [", $address, " + 4*", $i, "]{{1to16}}\n")
    };
}

/// The rows of one step; every third has a register for its address.
macro_rules! rows {
    (1, $panels:tt, $dtype:tt, $i:literal) => {
        row!($panels, $dtype, $i, "{a}", "0")
    };
    (2, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(1, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{a} + {r}", "1")
        )
    };
    (3, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(2, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{a} + 2*{r}", "2")
        )
    };
    (4, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(3, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{b}", "3")
        )
    };
    (5, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(4, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{b} + {r}", "4")
        )
    };
    (6, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(5, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{b} + 2*{r}", "5")
        )
    };
    (7, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(6, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{c}", "6")
        )
    };
    (8, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(7, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{c} + {r}", "7")
        )
    };
    (9, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(8, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{c} + 2*{r}", "8")
        )
    };
    (10, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(9, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{d}", "9")
        )
    };
    (11, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(10, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{d} + {r}", "10")
        )
    };
    (12, $panels:tt, $dtype:tt, $i:literal) => {
        concat!(
            rows!(11, $panels, $dtype, $i),
            row!($panels, $dtype, $i, "{d} + 2*{r}", "11")
        )
    };
}

/// The cache lines that one step asks for, where it asks.
macro_rules! asked {
    (asking, $i:literal) => {
        concat!(
            "prefetcht0 [{n} + 64*",
            $i,
            "]\n",
            "prefetcht0 [{m} + 64*",
            $i,
            "]\n",
        )
    };
    (quiet, $i:literal) => {
        ""
    };
}

/// The weights of one step.
macro_rules! weights {
    (2, $dtype:tt, $i:literal) => {
        concat!(
            weights!(@load $dtype, $i, "w0", "w"),
            weights!(@load $dtype, $i, "w1", "v"),
        )
    };
    (1, $dtype:tt, $i:literal) => {
        weights!(@load $dtype, $i, "w0", "w")
    };
    (@load f16, $i:literal, $to:literal, $from:literal) => {
        concat!("vcvtph2ps {", $to, ":z}, ymmword ptr [{", $from, "} + 32*", $i, "]\n")
    };
    (@load $dtype:tt, $i:literal, $to:literal, $from:literal) => {
        concat!("vmovups {", $to, ":z}, zmmword ptr [{", $from, "} + 64*", $i, "]\n")
    };
}

/// A function of eight steps of some rows, panels and a type of weights.
macro_rules! steps {
    ($name:ident, $asks:tt, $panels:tt, $dtype:tt, $sum:ty, $rows:tt, $acc:ident, $($place:ident = $value:expr),+) => {
        /// # Safety
        /// The CPU has the features; the rows' eight values and the panels' 128 weights may be read.
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        pub(super) unsafe fn $name(
            $acc: &mut [[$sum; $rows]; $panels],
            (a, row): (*const f32, usize),
            (w, panel): (*const u8, usize),
            next: [*const u8; 2],
        ) {
            // Named, since a register without a type is taken for a shorter one.
            let (x, w0, w1): (__m512, __m512, __m512);
            // SAFETY: only memory that the caller vouches for is read, none is written; rows beyond the last are not addressed.
            unsafe {
                asm!(
                    weights!($panels, $dtype, 0), asked!($asks, 0), rows!($rows, $panels, $dtype, 0),
                    weights!($panels, $dtype, 1), asked!($asks, 1), rows!($rows, $panels, $dtype, 1),
                    weights!($panels, $dtype, 2), asked!($asks, 2), rows!($rows, $panels, $dtype, 2),
                    weights!($panels, $dtype, 3), asked!($asks, 3), rows!($rows, $panels, $dtype, 3),
                    weights!($panels, $dtype, 4), asked!($asks, 4), rows!($rows, $panels, $dtype, 4),
                    weights!($panels, $dtype, 5), asked!($asks, 5), rows!($rows, $panels, $dtype, 5),
                    weights!($panels, $dtype, 6), asked!($asks, 6), rows!($rows, $panels, $dtype, 6),
                    weights!($panels, $dtype, 7), asked!($asks, 7), rows!($rows, $panels, $dtype, 7),
                    "/* {b} {c} {d} {r} {v} {n} {m} {x:z} {w1:z} */",
                    a = in(reg) a,
                    b = in(reg) a.wrapping_add(3 * row),
                    c = in(reg) a.wrapping_add(6 * row),
                    d = in(reg) a.wrapping_add(9 * row),
                    r = in(reg) row * size_of::<f32>(),
                    w = in(reg) w,
                    v = in(reg) w.wrapping_add(panel),
                    n = in(reg) next[0],
                    m = in(reg) next[1],
                    x = out(zmm_reg) x,
                    w0 = out(zmm_reg) w0,
                    w1 = out(zmm_reg) w1,
                    $($place = inout(zmm_reg) $value,)+
                    options(readonly, nostack, preserves_flags, pure),
                );
            }
            let _ = (x, w0, w1);
        }
    };
}

/// The functions of some rows.
macro_rules! rows_of {
    ($module:ident, $rows:tt, $($r:literal $low:ident $high:ident),+) => {
        mod $module {
            use super::*;
            steps!(half, asking, 2, f16, __m512, $rows, acc, $($low = acc[0][$r], $high = acc[1][$r]),+);
            steps!(single, asking, 2, f32, __m512, $rows, acc, $($low = acc[0][$r], $high = acc[1][$r]),+);
            steps!(pairs, asking, 2, pairs, __m512i, $rows, acc, $($low = acc[0][$r], $high = acc[1][$r]),+);
            steps!(half_panel, quiet, 1, f16, __m512, $rows, acc, $($low = acc[0][$r]),+);
            steps!(single_panel, quiet, 1, f32, __m512, $rows, acc, $($low = acc[0][$r]),+);
            steps!(pairs_panel, quiet, 1, pairs, __m512i, $rows, acc, $($low = acc[0][$r]),+);
        }
    };
}

rows_of!(one, 1, 0 l0 h0);
rows_of!(two, 2, 0 l0 h0, 1 l1 h1);
rows_of!(three, 3, 0 l0 h0, 1 l1 h1, 2 l2 h2);
rows_of!(four, 4, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3);
rows_of!(five, 5, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4);
rows_of!(six, 6, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5);
rows_of!(seven, 7, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6);
rows_of!(eight, 8, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6, 7 l7 h7);
rows_of!(nine, 9, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6, 7 l7 h7, 8 l8 h8);
rows_of!(ten, 10, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6, 7 l7 h7, 8 l8 h8, 9 l9 h9);
rows_of!(eleven, 11, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6, 7 l7 h7, 8 l8 h8, 9 l9 h9, 10 l10 h10);
rows_of!(twelve, 12, 0 l0 h0, 1 l1 h1, 2 l2 h2, 3 l3 h3, 4 l4 h4, 5 l5 h5, 6 l6 h6, 7 l7 h7, 8 l8 h8, 9 l9 h9, 10 l10 h10, 11 l11 h11);

/// Steps of f32 sides that are written out: a block.
pub(super) const WIDE_BLOCK: usize = 8;

/// The functions of three panels of f32, block by block of steps.
mod wide {
    use super::*;

    /// The bytes from the left side's values of one block of steps to those of the next.
    macro_rules! block {
        (packed) => {
            "256"
        };
        (rows) => {
            "32"
        };
    }

    /// The right side's values of one step.
    macro_rules! right {
        (packed, $i:literal) => {
            concat!(
                "vmovups {w0:z}, zmmword ptr [{w} + 192*",
                $i,
                "]\n",
                "vmovups {w1:z}, zmmword ptr [{w} + 192*",
                $i,
                " + 64]\n",
                "vmovups {w2:z}, zmmword ptr [{w} + 192*",
                $i,
                " + 128]\n",
            )
        };
        (rows, $i:literal) => {
            concat!(
                "vmovups {w0:z}, zmmword ptr [{v}]\n",
                "vmovups {w1:z}, zmmword ptr [{v} + 64]\n",
                "vmovups {w2:z}, zmmword ptr [{v} + 128]\n",
                "add {v}, {s}\n",
                "vmovups zmmword ptr [{w} + 192*",
                $i,
                "], {w0:z}\n",
                "vmovups zmmword ptr [{w} + 192*",
                $i,
                " + 64], {w1:z}\n",
                "vmovups zmmword ptr [{w} + 192*",
                $i,
                " + 128], {w2:z}\n",
            )
        };
    }

    /// One step.
    macro_rules! step {
        ($left:tt, $right:tt, $i:literal, $($r:tt),+) => {
            concat!(
                right!($right, $i),
                $(
                    "vbroadcastss {x:z}, dword ptr [", at!($left, $i, $r), "]\n",
                    "vfmadd231ps {l", $r, ":z}, {x:z}, {w0:z}\n",
                    "vfmadd231ps {h", $r, ":z}, {x:z}, {w1:z}\n",
                    "vfmadd231ps {t", $r, ":z}, {x:z}, {w2:z}\n",
                )+
            )
        };
    }

    /// The function of some rows.
    macro_rules! steps {
        ($left:tt, $right:tt, $name:ident, $rows:tt, $($r:tt $low:ident $high:ident $third:ident),+) => {
            /// # Safety
            /// The CPU has the features; `count` is not 0; the values of both sides may be read, and those of the right one packed.
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) unsafe fn $name(
                acc: &mut [[__m512; $rows]; 3],
                (a, row): (*const f32, usize),
                (b, step, packed): (*const f32, usize, *mut f32),
                count: usize,
            ) {
                // Named, since a register without a type is taken for a shorter one.
                let (x, w0, w1, w2): (__m512, __m512, __m512, __m512);
                // SAFETY: only memory that the caller vouches for is accessed; rows beyond the last are not addressed.
                unsafe {
                    asm!(
                        "2:",
                        step!($left, $right, 0, $($r),+), step!($left, $right, 1, $($r),+),
                        step!($left, $right, 2, $($r),+), step!($left, $right, 3, $($r),+),
                        step!($left, $right, 4, $($r),+), step!($left, $right, 5, $($r),+),
                        step!($left, $right, 6, $($r),+), step!($left, $right, 7, $($r),+),
                        concat!("add {a}, ", block!($left)),
                        concat!("add {b}, ", block!($left)),
                        concat!("add {c}, ", block!($left)),
                        "add {w}, 1536",
                        "dec {count}",
                        "jnz 2b",
                        "/* {r} {v} {s} */",
                        a = inout(reg) a => _,
                        b = inout(reg) a.wrapping_add(3 * row) => _,
                        c = inout(reg) a.wrapping_add(6 * row) => _,
                        r = in(reg) row * size_of::<f32>(),
                        v = inout(reg) b => _,
                        s = in(reg) step * size_of::<f32>(),
                        w = inout(reg) packed => _,
                        count = inout(reg) count => _,
                        x = out(zmm_reg) x,
                        w0 = out(zmm_reg) w0,
                        w1 = out(zmm_reg) w1,
                        w2 = out(zmm_reg) w2,
                        $($low = inout(zmm_reg) acc[0][$r], $high = inout(zmm_reg) acc[1][$r], $third = inout(zmm_reg) acc[2][$r],)+
                        options(nostack),
                    );
                }
                let _ = (x, w0, w1, w2);
            }
        };
    }

    /// The functions of a kind of left and of right side.
    macro_rules! table {
        ($name:ident, $left:tt, $right:tt) => {
            pub(super) mod $name {
                use super::*;
                steps!($left, $right, one, 1, 0 l0 h0 t0);
                steps!($left, $right, two, 2, 0 l0 h0 t0, 1 l1 h1 t1);
                steps!($left, $right, three, 3, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2);
                steps!($left, $right, four, 4, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2, 3 l3 h3 t3);
                steps!($left, $right, five, 5, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2, 3 l3 h3 t3, 4 l4 h4 t4);
                steps!($left, $right, six, 6, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2, 3 l3 h3 t3, 4 l4 h4 t4, 5 l5 h5 t5);
                steps!($left, $right, seven, 7, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2, 3 l3 h3 t3, 4 l4 h4 t4, 5 l5 h5 t5, 6 l6 h6 t6);
                steps!($left, $right, eight, 8, 0 l0 h0 t0, 1 l1 h1 t1, 2 l2 h2 t2, 3 l3 h3 t3, 4 l4 h4 t4, 5 l5 h5 t5, 6 l6 h6 t6, 7 l7 h7 t7);

                /// # Safety
                /// As the functions it chooses from; P is 3.
                #[inline(always)]
                pub(in super::super) unsafe fn steps<const R: usize, const P: usize>(
                    acc: &mut [[__m512; R]; P],
                    a: (*const f32, usize),
                    b: (*const f32, usize, *mut f32),
                    count: usize,
                ) {
                    let sums = acc.as_mut_ptr();
                    // SAFETY: the caller's contract; each array is cast to the length it has.
                    unsafe {
                        match (R, P) {
                            (1, 3) => one(&mut *sums.cast(), a, b, count),
                            (2, 3) => two(&mut *sums.cast(), a, b, count),
                            (3, 3) => three(&mut *sums.cast(), a, b, count),
                            (4, 3) => four(&mut *sums.cast(), a, b, count),
                            (5, 3) => five(&mut *sums.cast(), a, b, count),
                            (6, 3) => six(&mut *sums.cast(), a, b, count),
                            (7, 3) => seven(&mut *sums.cast(), a, b, count),
                            (8, 3) => eight(&mut *sums.cast(), a, b, count),
                            _ => unreachable!("a tile of {R} rows and {P} panels"),
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

/// Calls the function of R rows and one or two panels.
macro_rules! call {
    ($acc:ident, $two:ident, $one:ident, $($given:ident),+) => {{
        let sums = $acc.as_mut_ptr();
        // SAFETY: the caller's contract; each array is cast to the length it has.
        unsafe {
            match (R, P) {
                (1, 2) => one::$two(&mut *sums.cast(), $($given),+),
                (1, 1) => one::$one(&mut *sums.cast(), $($given),+),
                (2, 2) => two::$two(&mut *sums.cast(), $($given),+),
                (2, 1) => two::$one(&mut *sums.cast(), $($given),+),
                (3, 2) => three::$two(&mut *sums.cast(), $($given),+),
                (3, 1) => three::$one(&mut *sums.cast(), $($given),+),
                (4, 2) => four::$two(&mut *sums.cast(), $($given),+),
                (4, 1) => four::$one(&mut *sums.cast(), $($given),+),
                (5, 2) => five::$two(&mut *sums.cast(), $($given),+),
                (5, 1) => five::$one(&mut *sums.cast(), $($given),+),
                (6, 2) => six::$two(&mut *sums.cast(), $($given),+),
                (6, 1) => six::$one(&mut *sums.cast(), $($given),+),
                (7, 2) => seven::$two(&mut *sums.cast(), $($given),+),
                (7, 1) => seven::$one(&mut *sums.cast(), $($given),+),
                (8, 2) => eight::$two(&mut *sums.cast(), $($given),+),
                (8, 1) => eight::$one(&mut *sums.cast(), $($given),+),
                (9, 2) => nine::$two(&mut *sums.cast(), $($given),+),
                (9, 1) => nine::$one(&mut *sums.cast(), $($given),+),
                (10, 2) => ten::$two(&mut *sums.cast(), $($given),+),
                (10, 1) => ten::$one(&mut *sums.cast(), $($given),+),
                (11, 2) => eleven::$two(&mut *sums.cast(), $($given),+),
                (11, 1) => eleven::$one(&mut *sums.cast(), $($given),+),
                (12, 2) => twelve::$two(&mut *sums.cast(), $($given),+),
                (12, 1) => twelve::$one(&mut *sums.cast(), $($given),+),
                _ => unreachable!("a tile of {R} rows and {P} panels"),
            }
        }
    }};
}

/// See `Tiled::add_pairs`.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn add_pairs(x: __m512i, w: __m512i, mut sums: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        asm!(
            "vpdpwssd {sums:z}, {x:z}, {w:z}",
            sums = inout(zmm_reg) sums,
            x = in(zmm_reg) x,
            w = in(zmm_reg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// See `Tiled::eight_steps`; P is 1 or 2. Lines are asked for where it is 2.
///
/// # Safety
/// The CPU has the features; the rows' eight values and the panels' 128 weights may be read.
#[inline(always)]
pub(super) unsafe fn eight<const R: usize, const P: usize, W: Floats>(
    acc: &mut [[__m512; R]; P],
    a: (*const f32, usize),
    w: (*const u8, usize),
    next: Option<[*const u8; 2]>,
) {
    let next = next.unwrap_or([w.0; 2]);
    if W::SIZE == Half::SIZE {
        call!(acc, half, half_panel, a, w, next)
    } else {
        call!(acc, single, single_panel, a, w, next)
    }
}

/// See `Tiled::wide_blocks`; P is 3.
///
/// # Safety
/// The CPU has the features; `count` is not 0; the values of both sides may be read, and those of the right one packed.
#[inline(always)]
pub(super) unsafe fn wide<const R: usize, const P: usize>(
    acc: &mut [[__m512; R]; P],
    a: Left,
    b: Right,
    count: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { by_sides!(acc, a, b, count) }
}

/// See `Tiled::eight_pairs`; P is 1 or 2. Lines are asked for where it is 2.
///
/// # Safety
/// The CPU has the features; the rows' eight pairs and the panels' 128 pairs of weights may be read.
#[inline(always)]
pub(super) unsafe fn eight_pairs<const R: usize, const P: usize>(
    acc: &mut [[__m512i; R]; P],
    a: (*const f32, usize),
    w: (*const u8, usize),
    next: Option<[*const u8; 2]>,
) {
    let next = next.unwrap_or([w.0; 2]);
    call!(acc, pairs, pairs_panel, a, w, next)
}
