//! Loss scaling: what multiplies the loss so that gradients stored in f16 neither vanish nor overflow.

use std::fmt;
use std::str::FromStr;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossScaling {
    /// It never moves.
    Static(f32),
    /// It starts at 65536, halves when a gradient is not finite, and doubles after 2000 steps
    /// without that, as torch's `GradScaler`.
    Backoff,
    /// Graphcore's: it starts there too, halves when more than one in 10⁷ elements of the gradients
    /// is at least [`HISTOGRAM_EDGE`], and doubles otherwise, after every step.
    Histogram,
}

/// Where the two bins of a [`Histogram`] meet: an eighth of the largest f16.
pub const HISTOGRAM_EDGE: f32 = 0.125 * 65504.0;

/// The largest share of elements in the upper bin that lets Graphcore's scale grow.
const UPPER_SHARE: f64 = 1e-7;
/// Good steps before [`LossScaling::Backoff`] doubles.
const GROWTH_INTERVAL: u32 = 2000;
/// Where moving scales start.
const INITIAL: f32 = 65536.0;
/// Moving scales stay a power of two from 1 / `LIMIT` to `LIMIT`, far beyond any use.
const LIMIT: f32 = (1u64 << 40) as f32;

impl LossScaling {
    /// # Errors
    /// A scale that is not positive and finite.
    pub(super) fn check(self) -> Result<()> {
        match self {
            LossScaling::Static(scale) if !(scale.is_normal() && scale > 0.0) => {
                Err(Error::Option {
                    flag: "--loss-scaling",
                    message: format!("is {scale}; must be above 0, `auto` or `histogram`"),
                })
            }
            LossScaling::Static(_) | LossScaling::Backoff | LossScaling::Histogram => Ok(()),
        }
    }
}

impl fmt::Display for LossScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LossScaling::Static(scale) => write!(f, "{scale}"),
            LossScaling::Backoff => f.pad("auto"),
            LossScaling::Histogram => f.pad("histogram"),
        }
    }
}

impl FromStr for LossScaling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(LossScaling::Backoff),
            ("histogram", _) => Ok(LossScaling::Histogram),
            (_, Ok(scale)) => Ok(LossScaling::Static(scale)),
            (_, Err(_)) => Err("must be a number, `auto` or `histogram`".to_owned()),
        }
    }
}

/// How many elements of gradients, multiplied by the loss scale, have which size. An update whose
/// scale moves by [`LossScaling::Histogram`] gives, for each parameter, the output
/// [`HISTOGRAM`](lxpod_passes::HISTOGRAM) of its accumulated gradient divided by the number of micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Elements smaller than [`HISTOGRAM_EDGE`].
    pub lower: u64,
    /// All others, those that are not finite included.
    pub upper: u64,
}

impl Histogram {
    /// Adds the counts of another gradient.
    pub fn add(&mut self, [lower, upper]: [f32; 2]) {
        self.lower += lower as u64;
        self.upper += upper as u64;
    }

    /// Whether too many elements are close to overflow.
    ///
    /// The rule is PopART's as its kernel computes it: the comment in its session options states
    /// the opposite.
    fn is_high(self) -> bool {
        let ratio = UPPER_SHARE / (1.0 - UPPER_SHARE);
        self.upper as f64 > ratio * self.lower as f64
    }
}

/// The scale and what moves it. Part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    scaling: LossScaling,
    scale: f32,
    /// Steps without overflow since the scale last moved.
    good_steps: u32,
}

impl LossScaler {
    /// A scaler at its start.
    pub fn new(scaling: LossScaling) -> LossScaler {
        LossScaler {
            scaling,
            scale: match scaling {
                LossScaling::Static(scale) => scale,
                LossScaling::Backoff | LossScaling::Histogram => INITIAL,
            },
            good_steps: 0,
        }
    }

    /// What multiplies the loss of the next step.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether the scale moves.
    pub fn moves(&self) -> bool {
        !matches!(self.scaling, LossScaling::Static(_))
    }

    /// Whether the scaler is one a run of this scaling can have reached.
    pub(super) fn is_sound(&self, scaling: LossScaling) -> bool {
        let moving = (1.0 / LIMIT..=LIMIT).contains(&self.scale);
        self.scaling == scaling
            && match scaling {
                LossScaling::Static(scale) => scale == self.scale,
                LossScaling::Backoff | LossScaling::Histogram => moving,
            }
    }

    /// Moves the scale after a step: whether it was skipped because a gradient was not finite, and
    /// the histogram of all tracked gradients, where the update gives one.
    ///
    /// # Errors
    /// [`Error::Internal`] when the scale moves by a histogram and there is none.
    pub fn moved(&mut self, skipped: bool, histogram: Option<Histogram>) -> Result<()> {
        match (self.scaling, histogram) {
            (LossScaling::Static(_), _) => {}
            (LossScaling::Backoff, _) if skipped => self.set(self.scale * 0.5),
            (LossScaling::Backoff, _) => {
                self.good_steps += 1;
                if self.good_steps >= GROWTH_INTERVAL {
                    self.set(self.scale * 2.0);
                }
            }
            (LossScaling::Histogram, Some(histogram)) => {
                let high = skipped || histogram.is_high();
                self.set(self.scale * if high { 0.5 } else { 2.0 });
            }
            (LossScaling::Histogram, None) => {
                return Err(Error::internal("an update that gives no histogram"));
            }
        }
        Ok(())
    }

    fn set(&mut self, scale: f32) {
        self.scale = scale.clamp(1.0 / LIMIT, LIMIT);
        self.good_steps = 0;
    }
}

const _: () = assert!(HISTOGRAM_EDGE * 8.0 == f16::MAX.to_f32_const());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_scale_stays() {
        let mut scaler = LossScaler::new(LossScaling::Static(16384.0));
        scaler.moved(true, None).expect("no histogram needed");
        assert_eq!(scaler.scale(), 16384.0);
        assert!(!scaler.moves());
    }

    #[test]
    fn backoff_halves_at_once_and_doubles_after_2000_good_steps() {
        let mut scaler = LossScaler::new(LossScaling::Backoff);
        let mut step = |skipped| {
            scaler.moved(skipped, None).expect("no histogram needed");
            scaler.scale()
        };
        assert_eq!(step(true), 32768.0);
        for _ in 0..1999 {
            assert_eq!(step(false), 32768.0);
        }
        assert_eq!(step(false), 65536.0);
        for _ in 0..1999 {
            step(false);
        }
        assert_eq!(step(true), 32768.0, "an overflow starts the count again");
        assert_eq!(step(false), 32768.0);
        (0..200).for_each(|_| assert!(step(true) > 0.0));
    }

    #[test]
    fn the_histogram_rule_is_the_kernels() {
        let step = |lower, upper, skipped| {
            let mut scaler = LossScaler::new(LossScaling::Histogram);
            let histogram = Some(Histogram { lower, upper });
            scaler.moved(skipped, histogram).expect("a histogram");
            scaler.scale() / INITIAL
        };
        assert_eq!(step(1000, 0, false), 2.0);
        assert_eq!(step(1000, 1, false), 0.5);
        assert_eq!(step(20_000_000, 1, false), 2.0);
        assert_eq!(step(20_000_000, 3, false), 0.5);
        assert_eq!(step(1000, 0, true), 0.5);
        let mut scaler = LossScaler::new(LossScaling::Histogram);
        assert!(scaler.moved(false, None).is_err());
    }

    #[test]
    fn counts_of_gradients_add_up() {
        let mut histogram = Histogram { lower: 2, upper: 4 };
        histogram.add([3.0, 1.0]);
        assert_eq!(histogram, Histogram { lower: 5, upper: 5 });
    }

    #[test]
    fn the_command_lines_words() {
        for (text, scaling) in [
            ("auto", LossScaling::Backoff),
            ("histogram", LossScaling::Histogram),
            ("128", LossScaling::Static(128.0)),
        ] {
            assert_eq!(text.parse(), Ok(scaling));
            assert_eq!(scaling.to_string(), text);
        }
        assert!("much".parse::<LossScaling>().is_err());
        for scale in ["0", "-1", "inf", "nan", "1e-40"] {
            let scaling: LossScaling = scale.parse().expect("a number");
            assert!(scaling.check().is_err(), "{scale}");
        }
    }
}
