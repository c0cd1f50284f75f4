//! Random bits that are a function of coordinates, for dropout masks and stochastic rounding.
//!
//! There is no state: whoever knows the key and the coordinates of an element knows its 32 bits, in
//! whatever order, on whatever machine, however rows are packed or padded. A row is mixed once, in
//! 64 bits; a word of it takes three 32-bit multiplications and neither branches nor tables, so that
//! a kernel computes one word per SIMD lane.
//!
//! The 64-bit mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, in Stafford's
//! variant 13), the 32-bit rounds are those of `triple32` (C. Wellons, hash-prospector), into which
//! the row enters twice: added before the first round and xored in before the second.

/// 2⁶⁴ / φ, added so that not even zeros mix to zeros.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a word is multiplied by in its three rounds.
pub const MULTIPLIERS: [u32; 3] = [0xed5a_d4bb, 0xac4c_1b51, 0x3184_8bab];

/// The elements that share a row of words in [`rounding_word`].
pub const ROUNDING_ROW: usize = 4096;

/// FNV-1a of a name, in 64 bits: the salt of a module's path, the part of a salt that a row space is.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A bijection of 64-bit words whose every output bit depends on every input bit.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The salt of one of several parts of what has `salt`: a head, a row space of a union.
pub const fn part_salt(salt: u64, part: u64) -> u64 {
    mix(salt ^ mix(part.wrapping_add(GOLDEN)))
}

/// The key that decides what one sample drops in one step: two words of a 64-bit hash of the run's
/// seed, the step and the sample's number among all samples of the step. How a step's samples are
/// grouped into micro-batches and replicas changes nothing. It is never [`KEEP_KEY`].
pub const fn dropout_key(seed: u64, step: u64, sample: u64) -> [u32; 2] {
    let key = mix(mix(mix(seed.wrapping_add(GOLDEN)) ^ step) ^ sample);
    let key = if key == 0 { GOLDEN } else { key };
    [key as u32, (key >> 32) as u32]
}

/// The key under which dropout keeps every element as it is: a graph that drops out evaluates with it.
pub const KEEP_KEY: [u32; 2] = [0, 0];

/// What all words of one row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowState {
    /// Added to the column before the first round.
    pub add: u32,
    /// Xored in before the second round.
    pub xor: u32,
}

impl RowState {
    /// Row `row` of what has this key and salt.
    pub const fn new(key: [u32; 2], salt: u64, row: u32) -> Self {
        let key = key[0] as u64 | (key[1] as u64) << 32;
        let state = mix(mix(mix(key.wrapping_add(GOLDEN)) ^ salt) ^ row as u64);
        RowState {
            add: state as u32,
            xor: (state >> 32) as u32,
        }
    }

    /// The word of a column.
    #[inline]
    pub const fn word(self, column: u32) -> u32 {
        let mut x = column.wrapping_add(self.add);
        x = (x ^ (x >> 17)).wrapping_mul(MULTIPLIERS[0]);
        x = (x ^ (x >> 11) ^ self.xor).wrapping_mul(MULTIPLIERS[1]);
        x = (x ^ (x >> 15)).wrapping_mul(MULTIPLIERS[2]);
        x ^ (x >> 14)
    }
}

/// The word that decides whether dropout keeps an element: of the sample's key, the op's salt, the
/// row inside the sample and the column. It is kept if the word is not below [`drop_threshold`].
pub const fn keep_word(key: [u32; 2], salt: u64, row: u32, column: u32) -> u32 {
    RowState::new(key, salt, row).word(column)
}

/// Words below this are dropped: `rate` · 2³², rounded down. `rate` is in 0..1.
pub fn drop_threshold(rate: f32) -> u32 {
    (f64::from(rate) * 4_294_967_296.0) as u32
}

/// The key that decides how one step rounds stored values: two words of a 64-bit hash of the run's
/// seed and the step.
pub const fn rounding_key(seed: u64, step: u64) -> [u32; 2] {
    let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ step);
    [key as u32, (key >> 32) as u32]
}

/// The word that rounds element `element` of a tensor in the step that has this key, where `salt` is
/// the tensor's. [`ROUNDING_ROW`] elements are one row.
pub const fn rounding_word(salt: u64, key: [u32; 2], element: usize) -> u32 {
    let (row, column) = (element / ROUNDING_ROW, element % ROUNDING_ROW);
    RowState::new(key, salt, row as u32).word(column as u32)
}

/// The exponent of the smallest normal f16, in the place of an f32's exponent.
const SMALLEST_NORMAL: u32 = 113 << 23;
const EXPONENT: u32 = 0x7f80_0000;
const MAX_F16: f32 = 65504.0;

/// One of the two f16 values next to `value`, as f32: the one further from zero with the
/// probability (to 2⁻²⁴) of the distance from the other, in units of their distance, when `word` is
/// uniform. A value that is an f16 stays; finite values beyond the largest f16 become the largest,
/// infinities and NaN stay.
pub fn round_stochastically(value: f32, word: u32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    // The unit, the distance of the neighbours, is a power of two from 2⁻²⁴ to 2⁵, so that neither
    // product rounds.
    let magnitude = value.abs().min(MAX_F16);
    let exponent = (magnitude.to_bits() & EXPONENT).max(SMALLEST_NORMAL);
    let unit = f32::from_bits(exponent - (10 << 23));
    let inverse = f32::from_bits((254 << 23) - unit.to_bits());
    let units = magnitude * inverse;
    let whole = units.floor();
    let drawn = (word >> 8) as f32 * (1.0 / 16_777_216.0);
    let up = f32::from(u8::from(drawn < units - whole));
    ((whole + up) * unit).copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    const KEY: [u32; 2] = [0x1234_5678, 0x9abc_def0];

    /// The share of positions where both words are below half their range.
    fn agreement(count: u32, pair: impl Fn(u32) -> [u32; 2]) -> f64 {
        let both = (0..count).filter(|&at| pair(at).iter().all(|&word| word < 1 << 31));
        both.count() as f64 / f64::from(count)
    }

    #[test]
    fn words_are_fixed() {
        assert_eq!(name_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_hash("a"), 0xaf63_dc4c_8601_ec8c);
        let words = [0, 1, 2].map(|column| keep_word(KEY, 7, 3, column));
        assert_eq!(words, RECORDED);
    }

    /// Computed by another implementation. Masks must not change between versions, or runs are not
    /// repeatable.
    const RECORDED: [u32; 3] = [0xb1e1_0c19, 0x3df6_802e, 0xbce5_3b0b];

    #[test]
    fn every_sample_of_every_step_has_its_own_dropout_key() {
        let key = |seed, step, sample| dropout_key(seed, step, sample);
        let mut keys = std::collections::BTreeSet::new();
        for seed in 0..4 {
            for step in 0..16 {
                keys.extend((0..16).map(|sample| key(seed, step, sample)));
            }
        }
        assert_eq!(keys.len(), 4 * 16 * 16);
        assert_ne!(key(0, 0, 0), [0, 0]);
        assert_ne!(key(0, 1, 2), key(0, 2, 1));
    }

    #[test]
    fn every_bit_is_set_half_of_the_time() {
        let count = 1 << 16;
        let mut ones = [0u32; 32];
        for at in 0..count {
            let word = keep_word(KEY, 7, at >> 8, at & 255);
            (0..32).for_each(|bit| ones[bit] += word >> bit & 1);
        }
        // Five standard deviations of a fair coin.
        let bound = 2.5 * f64::from(count).sqrt();
        for (bit, &ones) in ones.iter().enumerate() {
            let excess = f64::from(ones) - f64::from(count) / 2.0;
            assert!(excess.abs() < bound, "bit {bit}: {excess}");
        }
    }

    #[test]
    fn neighbours_are_independent() {
        let count = 1 << 16;
        let word = |key, salt, row, column| keep_word(key, salt, row, column);
        let base = |at: u32| word(KEY, 7, at >> 8, at & 255);
        let next = [KEY[0] + 1, KEY[1]];
        let upper = [KEY[0], KEY[1] + 1];
        let others: [(&str, &dyn Fn(u32) -> u32); 7] = [
            ("column", &|at| word(KEY, 7, at >> 8, (at & 255) + 1)),
            ("row", &|at| word(KEY, 7, (at >> 8) + 1, at & 255)),
            ("salt", &|at| word(KEY, 8, at >> 8, at & 255)),
            ("key", &|at| word(next, 7, at >> 8, at & 255)),
            ("upper key", &|at| word(upper, 7, at >> 8, at & 255)),
            ("diagonal", &|at| {
                word(KEY, 7, (at >> 8) + 1, (at & 255) + 1)
            }),
            ("part", &|at| word(KEY, part_salt(7, 0), at >> 8, at & 255)),
        ];
        // Five standard deviations of a coin that falls so one time in four.
        let bound = 5.0 * (3.0 / 16.0 / f64::from(count)).sqrt();
        for (name, other) in others {
            let share = agreement(count, |at| [base(at), other(at)]);
            assert!((share - 0.25).abs() < bound, "{name}: {share}");
        }
    }

    #[test]
    fn as_many_are_dropped_as_the_rate_says() {
        let count = 1 << 18;
        for rate in [0.0, 0.1, 0.5, 0.9] {
            let threshold = drop_threshold(rate);
            let dropped = (0..count).filter(|&at| keep_word(KEY, 9, at >> 9, at & 511) < threshold);
            let share = dropped.count() as f64 / f64::from(count);
            let rate = f64::from(rate);
            let bound = 5.0 * (rate * (1.0 - rate) / f64::from(count)).sqrt();
            assert!((share - rate).abs() <= bound, "{rate}: {share}");
        }
        assert_eq!(drop_threshold(0.5), 1 << 31);
        assert_eq!(drop_threshold(1.0 - f32::EPSILON / 2.0), u32::MAX - 255);
    }

    #[test]
    fn an_f16_is_not_rounded() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits).to_f32();
            for word in [0, 1 << 31, u32::MAX] {
                let rounded = round_stochastically(value, word);
                assert!(
                    rounded.to_bits() == value.to_bits() || value.is_nan() && rounded.is_nan(),
                    "{value} became {rounded}"
                );
            }
        }
    }

    #[test]
    fn a_finite_value_stays_finite() {
        for word in [0, u32::MAX] {
            for value in [65504.1, 65519.9, 65520.0, 1e9, f32::MAX] {
                assert_eq!(round_stochastically(value, word), 65504.0);
                assert_eq!(round_stochastically(-value, word), -65504.0);
            }
            assert_eq!(round_stochastically(f32::INFINITY, word), f32::INFINITY);
            assert!(round_stochastically(f32::NAN, word).is_nan());
        }
    }

    /// Over all that a word decides, the mean is the value; over the words of a step, nearly.
    #[test]
    fn rounding_is_unbiased() {
        let smallest = 2f32.powi(-24);
        for value in [
            1.000_3,
            -2.7,
            1e-3,
            1234.567,
            0.3 * smallest,
            -1000.7 * smallest,
            3e-5,
        ] {
            let (low, high) = (
                round_stochastically(value, u32::MAX),
                round_stochastically(value, 0),
            );
            assert!(
                low.abs() <= value.abs() && value.abs() < high.abs(),
                "{low} {value} {high}"
            );
            for end in [low, high] {
                assert_eq!(f16::from_f32(end).to_f32(), end);
            }
            let steps = 1 << 17;
            let rounded =
                (0..steps).map(|step| round_stochastically(value, rounding_word(5, [step, 0], 77)));
            let mean = rounded.map(f64::from).sum::<f64>() / f64::from(steps);
            let [low, high, exact] = [low, high, value].map(f64::from);
            let share = (exact - low) / (high - low);
            let bound =
                5.0 * (high - low).abs() * (share * (1.0 - share) / f64::from(steps)).sqrt();
            assert!((mean - exact).abs() < bound, "{value}: {mean}");
        }
    }

    #[test]
    fn the_distance_is_the_probability() {
        let value = 1.0 + 0.25 / 1024.0;
        let up = (0..1024u32).filter(|part| round_stochastically(value, part << 22) > 1.0);
        assert_eq!(up.count(), 256);
    }

    #[test]
    fn rounding_words_differ_by_element_step_and_seed() {
        let word = |seed, step, element| rounding_word(3, rounding_key(seed, step), element);
        let near = [
            word(0, 0, 0),
            word(1, 0, 0),
            word(0, 1, 0),
            word(0, 0, 1),
            word(0, 0, ROUNDING_ROW),
            word(0, 0, ROUNDING_ROW + 1),
        ];
        for (at, first) in near.iter().enumerate() {
            assert!(near[at + 1..].iter().all(|second| second != first));
        }
    }
}
