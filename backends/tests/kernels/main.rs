//! Every kernel table that this CPU can run, against plain loops in f64 and against itself: the bits of a row must not
//! depend on what else a call computes.

mod attention;
#[cfg(unix)]
mod bounds;
mod gradients;
mod linear;
mod losses;
mod rowwise;
mod support;
mod updates;
