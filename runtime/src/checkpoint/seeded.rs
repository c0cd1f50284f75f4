//! Random parameters from a seed, for machines without a checkpoint.

use super::Weights;
use crate::error::{Error, Result};
use crate::tensors::{Dtype, TensorInfo, no_such_tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Standard deviation of all random parts.
const DEVIATION: f32 = 0.02;
/// Standard deviation of the sum of four independent uniform integers of 16 bits: sqrt((2^32 - 1) / 3).
const SUM_DEVIATION: f32 = 37_837.227;
/// Mean of that sum.
const SUM_MEAN: i32 = 2 * 0xffff;
/// The odd constant of the splitmix64 sequence, 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Random parameters: each element is a function of seed, parameter name and element index alone, the same on every
/// machine.
///
/// With n from (nearly) N(0, 0.02): matrices are n, with row 0 of the three embedding tables zero; biases are n;
/// LayerNorm weights are 1 + n.
///
/// Element i is the sum of the four 16-bit parts of the i-th output of splitmix64 started at a hash of seed and name,
/// centred and scaled: symmetric, of the right variance, never beyond 3.47 deviations.
#[derive(Clone, Debug)]
pub struct Seeded {
    seed: u64,
    shapes: BTreeMap<String, TensorInfo>,
}

impl Seeded {
    /// Parameters `parameters` (canonical name, shape) from `seed`.
    ///
    /// # Errors
    /// [`Error::Internal`] when a shape's size overflows.
    pub fn new(
        seed: u64,
        parameters: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self> {
        let sized =
            |(name, shape): (String, Vec<usize>)| match TensorInfo::new(Dtype::F32, shape, 0) {
                Some(info) => Ok((name, info)),
                None => Err(Error::internal(format!("parameter `{name}` overflows"))),
            };
        Ok(Seeded {
            seed,
            shapes: parameters.into_iter().map(sized).collect::<Result<_>>()?,
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.shapes
            .get(name)
            .ok_or_else(|| no_such_tensor(Path::new("(seeded weights)"), name))
    }
}

impl Weights for Seeded {
    fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let info = self.info(name)?;
        let (byte_offset, count) = info.locate(name, &rows)?;
        if count != out.len() {
            return Err(Error::internal(format!(
                "{count} elements of `{name}` read into {}",
                out.len()
            )));
        }
        let is_norm_weight = info.shape.len() == 1 && name.ends_with(".weight");
        let centre = if is_norm_weight { 1.0 } else { 0.0 };
        fill(key(self.seed, name), byte_offset / 4, centre, out);
        if rows.start == 0 && !rows.is_empty() && name.ends_with("_embeddings.weight") {
            out[..info.row_len()].fill(0.0);
        }
        Ok(())
    }
}

/// Elements `first..` of the stream `key`, around `centre`.
fn fill(key: u64, first: u64, centre: f32, out: &mut [f32]) {
    let mut state = key.wrapping_add(first.wrapping_mul(GOLDEN));
    for value in out {
        state = state.wrapping_add(GOLDEN);
        let bits = mix(state);
        let pairs = (bits & 0x0000_ffff_0000_ffff) + ((bits >> 16) & 0x0000_ffff_0000_ffff);
        let sum = (pairs as u32 + (pairs >> 32) as u32) as i32;
        *value = centre + (sum - SUM_MEAN) as f32 * (DEVIATION / SUM_DEVIATION);
    }
}

/// A stream for each seed and name.
fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed ^ GOLDEN), |state, byte| {
        mix(state.wrapping_add(GOLDEN) ^ u64::from(byte))
    })
}

/// The finaliser of splitmix64: a bijection that spreads every bit over all others.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
