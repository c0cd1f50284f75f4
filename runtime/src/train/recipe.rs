//! Recipes: how an optimiser is set up, as three code bases trained LXMERT.

use std::fmt;
use std::str::FromStr;

use lxpod_ir::DType;
use lxpod_ir::front::AnswerLoss;
use serde::{Deserialize, Serialize};

use super::loss_scale::LossScaling;
use super::rate::{Decline, WarmUp};
use crate::error::{Error, Result};

/// A named set of hyper-parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipeName {
    /// Transformers' `Trainer`: AdamW with bias correction, the global norm clipped to 1.
    #[default]
    Hf,
    /// optimum-graphcore's `IPUTrainer`: AdamW without bias correction or clipping, f16 weights
    /// rounded stochastically, an f16 first moment, a loss scale of 16384.
    Ipu,
    /// The original LXMERT's BertAdam: no bias correction, decay on every parameter, the global
    /// norm clipped to 5, binary cross-entropy times the number of labels.
    Airsplay,
}

impl RecipeName {
    /// Every name.
    pub const ALL: [RecipeName; 3] = [RecipeName::Hf, RecipeName::Ipu, RecipeName::Airsplay];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            RecipeName::Hf => "hf",
            RecipeName::Ipu => "ipu",
            RecipeName::Airsplay => "airsplay",
        }
    }
}

impl fmt::Display for RecipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RecipeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = RecipeName::ALL.into_iter().find(|name| name.name() == text);
        found.ok_or_else(|| format!("unknown recipe `{text}`; expected hf, ipu or airsplay"))
    }
}

/// Which parameters weight decay shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// All but biases and the weights of layer norms.
    #[default]
    Weights,
    /// Every parameter.
    All,
}

/// The rule by which parameters follow their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// `p ← p·(1 − lr·decay) − lr·m̂/(√v̂ + epsilon)`; see [`lxpod_ir::ops::Adam`].
    #[default]
    AdamW,
    /// Gradient descent with momentum; see [`lxpod_ir::ops::Sgd`].
    Sgd,
    /// AdamW's direction, as long as a share of the tensor's norm; see [`lxpod_ir::ops::Lamb`].
    Lamb,
}

/// The hyper-parameters of a run. Those of other optimisers than its own change nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The rule of an update.
    pub optimizer: OptimizerName,
    /// The share of SGD's velocity that each update keeps.
    pub momentum: f64,
    /// Whether SGD looks ahead by one momentum.
    pub nesterov: bool,
    /// The largest ratio of LAMB's step to its direction.
    pub max_ratio: f64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How the rate falls after warm-up.
    pub lr_schedule: Decline,
    /// How long the rate rises.
    pub warmup: WarmUp,
    /// The share of the first moment that each update keeps.
    pub adam_beta1: f64,
    /// The share of the second moment that each update keeps.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Whether moments are divided by 1 − betaᵗ.
    pub bias_correction: bool,
    /// How much of a parameter a rate of 1 would take away.
    pub weight_decay: f64,
    /// From which parameters.
    pub decay: Decay,
    /// The largest norm of all gradients together; larger ones are scaled down to it.
    pub max_grad_norm: Option<f64>,
    /// What training of question answering minimises.
    pub loss: AnswerLoss,
    /// What multiplies the loss under mixed precision. In fp32 nothing does.
    pub loss_scaling: LossScaling,
    /// Whether a parameter stored in f16 has a copy in f32, which the update changes.
    pub master_weights: bool,
    /// Whether parameters without such a copy are rounded up or down by chance.
    pub stochastic_rounding: bool,
    /// How the first moment is stored under mixed precision.
    pub first_moment: DType,
    /// How the second moment is stored under mixed precision.
    pub second_moment: DType,
    /// How the sum of gradients over micro-batches is stored under mixed precision.
    pub accumulator: DType,
}

impl Recipe {
    /// The hyper-parameters of that name.
    pub fn named(name: RecipeName) -> Recipe {
        let hf = Recipe {
            optimizer: OptimizerName::AdamW,
            momentum: 0.9,
            nesterov: false,
            // You et al., ICLR 2020, clip the norm of weights to 10.
            max_ratio: 10.0,
            learning_rate: 5e-5,
            lr_schedule: Decline::Linear,
            warmup: WarmUp::Ratio(0.1),
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            bias_correction: true,
            weight_decay: 0.01,
            decay: Decay::Weights,
            max_grad_norm: Some(1.0),
            loss: AnswerLoss::CrossEntropy,
            loss_scaling: LossScaling::Backoff,
            master_weights: true,
            stochastic_rounding: false,
            first_moment: DType::F32,
            second_moment: DType::F32,
            accumulator: DType::F32,
        };
        match name {
            RecipeName::Hf => hf,
            RecipeName::Ipu => Recipe {
                learning_rate: 1e-5,
                bias_correction: false,
                max_grad_norm: None,
                loss_scaling: LossScaling::Static(16384.0),
                master_weights: false,
                stochastic_rounding: true,
                first_moment: DType::F16,
                ..hf
            },
            RecipeName::Airsplay => Recipe {
                learning_rate: 1e-5,
                adam_epsilon: 1e-6,
                bias_correction: false,
                decay: Decay::All,
                max_grad_norm: Some(5.0),
                loss: AnswerLoss::BceTimesLabels,
                ..hf
            },
        }
    }

    /// Checks every hyper-parameter.
    ///
    /// # Errors
    /// [`Error::Option`] with the flag and what it may hold.
    pub fn check(&self) -> Result<()> {
        let wrong = |flag, value: f64, rule: &str| {
            let message = format!("is {value}; must be {rule}");
            Err(Error::Option { flag, message })
        };
        let sizes = [
            ("--learning-rate", self.learning_rate),
            ("--weight-decay", self.weight_decay),
        ];
        for (flag, value) in sizes {
            if !(0.0..=1e6).contains(&value) {
                return wrong(flag, value, "from 0 to 1e6");
            }
        }
        for (flag, value) in [
            ("--adam-beta1", self.adam_beta1),
            ("--adam-beta2", self.adam_beta2),
            ("--momentum", self.momentum),
        ] {
            if !(0.0..1.0).contains(&value) {
                return wrong(flag, value, "from 0 to below 1");
            }
        }
        if self.nesterov && (self.optimizer != OptimizerName::Sgd || self.momentum == 0.0) {
            let message = "needs --optimizer sgd with a momentum".to_owned();
            let flag = "--nesterov";
            return Err(Error::Option { flag, message });
        }
        if !(self.max_ratio > 0.0 && self.max_ratio.is_finite()) {
            return wrong("--max-ratio", self.max_ratio, "above 0");
        }
        // A parameter whose gradient has been 0 so far would step by 0 / 0.
        if !(self.adam_epsilon > 0.0 && self.adam_epsilon <= 1.0) {
            return wrong("--adam-epsilon", self.adam_epsilon, "above 0, at most 1");
        }
        if let Some(norm) = self.max_grad_norm
            && !(norm > 0.0 && norm.is_finite())
        {
            return wrong("--max-grad-norm", norm, "above 0, or 0 to clip nothing");
        }
        self.warmup.check()?;
        self.loss_scaling.check()?;
        self.check_stored()
    }

    fn check_stored(&self) -> Result<()> {
        let stored = [
            ("--first-moment", self.first_moment),
            ("--second-moment", self.second_moment),
            ("--accumulator", self.accumulator),
        ];
        match stored
            .into_iter()
            .find(|(_, dtype)| !matches!(dtype, DType::F16 | DType::F32))
        {
            None => Ok(()),
            Some((flag, dtype)) => Err(Error::Option {
                flag,
                message: format!("is {dtype}; must be f16 or f32"),
            }),
        }
    }

    /// What an update's inputs `correction1` and `correction2` are when `applied` updates were
    /// applied before it.
    pub fn corrections(&self, applied: u64) -> [f32; 2] {
        [self.adam_beta1, self.adam_beta2].map(|beta| match self.bias_correction {
            false => 1.0,
            true => (1.0 - beta.powf(applied as f64 + 1.0)) as f32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_those_of_the_goldens() {
        for name in RecipeName::ALL {
            let path = format!("../tests/golden/train_{name}/meta.json");
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let meta = std::fs::read(&path).expect("a golden");
            let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
            let recipe = Recipe::named(name);
            recipe.check().expect("valid");
            assert_eq!(meta["recipe"], name.name());
            assert_eq!(meta["betas"][0], recipe.adam_beta1);
            assert_eq!(meta["betas"][1], recipe.adam_beta2);
            assert_eq!(meta["eps"], recipe.adam_epsilon);
            assert_eq!(meta["weight_decay"], recipe.weight_decay);
            assert_eq!(meta["clip"].as_f64(), recipe.max_grad_norm);
            assert_eq!(meta["bias_correction"], recipe.bias_correction);
            let none = meta["no_decay"].as_str().expect("text").starts_with("none");
            assert_eq!(none, recipe.decay == Decay::All);
            let rates = meta["log"]["lr"].as_array().expect("rates");
            for (step, want) in rates.iter().enumerate() {
                let rate = recipe.lr_schedule.share(step, rates.len(), recipe.warmup);
                let want = want.as_f64().expect("a number");
                assert!((rate * 1e-3 - want).abs() < 1e-15, "{step}: {rate} {want}");
            }
        }
    }

    #[test]
    fn a_recipe_survives_json() {
        for name in RecipeName::ALL {
            let recipe = Recipe::named(name);
            let text = serde_json::to_string(&recipe).expect("JSON");
            assert_eq!(
                serde_json::from_str::<Recipe>(&text).expect("the recipe"),
                recipe
            );
            assert_eq!(name.name().parse(), Ok(name));
        }
        assert!("adam".parse::<RecipeName>().is_err());
    }

    #[test]
    fn wrong_values_name_their_flag() {
        let hf = || Recipe::named(RecipeName::Hf);
        let wrong = [
            (
                Recipe {
                    learning_rate: f64::NAN,
                    ..hf()
                },
                "--learning-rate",
            ),
            (
                Recipe {
                    weight_decay: -1.0,
                    ..hf()
                },
                "--weight-decay",
            ),
            (
                Recipe {
                    adam_beta2: 1.0,
                    ..hf()
                },
                "--adam-beta2",
            ),
            (
                Recipe {
                    max_grad_norm: Some(0.0),
                    ..hf()
                },
                "--max-grad-norm",
            ),
            (
                Recipe {
                    warmup: WarmUp::Ratio(1.5),
                    ..hf()
                },
                "--warmup-ratio",
            ),
            (
                Recipe {
                    loss_scaling: LossScaling::Static(0.0),
                    ..hf()
                },
                "--loss-scaling",
            ),
            (
                Recipe {
                    first_moment: DType::I32,
                    ..hf()
                },
                "--first-moment",
            ),
        ];
        for (recipe, flag) in wrong {
            let message = recipe.check().expect_err("an error").to_string();
            assert!(message.starts_with(flag), "{message}");
        }
    }

    #[test]
    fn corrections_count_applied_updates() {
        let hf = Recipe::named(RecipeName::Hf);
        assert_eq!(hf.corrections(0), [0.1, 0.001]);
        assert_eq!(hf.corrections(1), [0.19, 0.001999]);
        assert_eq!(Recipe::named(RecipeName::Ipu).corrections(0), [1.0, 1.0]);
    }
}
