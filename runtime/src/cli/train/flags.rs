//! The hyper-parameters on the command line.

use clap::{Args, ValueEnum};
use lxpod_ir::DType;
use lxpod_runtime::train::{
    Decay, Decline, LossScaling, OptimizerName, Recipe, RecipeName, WarmUp,
};

/// What a recipe leaves open. Whatever is absent is as the recipe has it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Hyper-parameters")]
pub(crate) struct Flags {
    /// Where the hyper-parameters come from: hf (Transformers' Trainer), ipu (optimum-graphcore) or
    /// airsplay (the original LXMERT)
    #[arg(long, default_value = "hf")]
    pub(crate) recipe: RecipeName,

    /// Leave the parameters whose names begin so as they are; may be given several times
    #[arg(long, value_name = "PREFIX")]
    pub(crate) freeze: Vec<String>,

    /// The rule of an update: adamw, sgd or lamb [default: adamw]
    #[arg(long, value_enum)]
    optimizer: Option<Rule>,

    /// The share of sgd's velocity that each update keeps [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    momentum: Option<f64>,

    /// Let sgd look ahead by one momentum
    #[arg(long)]
    nesterov: bool,

    /// The largest ratio of lamb's step to its direction [default: 10]
    #[arg(long, value_name = "RATIO")]
    max_ratio: Option<f64>,

    /// The highest learning rate [default: hf 5e-5, others 1e-5]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,

    /// How the rate falls after warm-up [default: linear]
    #[arg(long, value_enum)]
    lr_schedule: Option<Schedule>,

    /// The share of all steps in which the rate rises from 0 [default: 0.1]
    #[arg(long, value_name = "SHARE", conflicts_with = "warmup_steps")]
    warmup_ratio: Option<f64>,

    /// The number of steps in which the rate rises from 0
    #[arg(long, value_name = "N")]
    warmup_steps: Option<usize>,

    /// The share of the first moment that each update keeps [default: 0.9]
    #[arg(long, value_name = "BETA")]
    adam_beta1: Option<f64>,

    /// The share of the second moment that each update keeps [default: 0.999]
    #[arg(long, value_name = "BETA")]
    adam_beta2: Option<f64>,

    /// Added to the root of the second moment [default: 1e-8, airsplay 1e-6]
    #[arg(long, value_name = "EPSILON")]
    adam_epsilon: Option<f64>,

    /// Divide moments by 1 - beta^t [default: hf true, others false]
    #[arg(long, value_name = "true|false")]
    bias_correction: Option<bool>,

    /// How much of a parameter a rate of 1 would take away [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    weight_decay: Option<f64>,

    /// Which parameters decay: weights (no biases, no layer norms) or all [default: weights,
    /// airsplay all]
    #[arg(long, value_enum)]
    decay: Option<DecayName>,

    /// Scale gradients down to this norm; 0 leaves them [default: hf 1, ipu 0, airsplay 5]
    #[arg(long, value_name = "NORM")]
    max_grad_norm: Option<f64>,

    /// What multiplies the loss under mixed precision: a number, auto (torch's rule) or histogram
    /// (Graphcore's) [default: auto, ipu 16384]
    #[arg(long, value_name = "N|auto|histogram")]
    loss_scaling: Option<LossScaling>,

    /// Keep an f32 copy of parameters stored in f16 [default: true, ipu false]
    #[arg(long, value_name = "true|false")]
    master_weights: Option<bool>,

    /// Round updates of parameters without such a copy up or down by chance [default: false, ipu
    /// true]
    #[arg(long, value_name = "true|false")]
    stochastic_rounding: Option<bool>,

    /// How the first moment is stored under mixed precision: f16 or f32 [default: f32, ipu f16]
    #[arg(long, value_name = "DTYPE")]
    first_moment: Option<DType>,

    /// How the second moment is stored under mixed precision: f16 or f32 [default: f32]
    #[arg(long, value_name = "DTYPE")]
    second_moment: Option<DType>,

    /// How sums of gradients over micro-batches are stored under mixed precision: f16 or f32
    /// [default: f32]
    #[arg(long, value_name = "DTYPE")]
    accumulator: Option<DType>,
}

/// The rule of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rule {
    Adamw,
    Sgd,
    Lamb,
}

/// How the rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Schedule {
    Linear,
    Constant,
    Cosine,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DecayName {
    Weights,
    All,
}

impl Flags {
    /// The recipe with what the flags change; `first_moment` is how it is stored if no flag says so.
    pub(crate) fn recipe_storing(&self, first_moment: Option<DType>) -> Recipe {
        let stored = self.first_moment.or(first_moment);
        Recipe {
            first_moment: stored.unwrap_or(Recipe::named(self.recipe).first_moment),
            ..self.recipe()
        }
    }

    /// The recipe with what the flags change.
    pub(crate) fn recipe(&self) -> Recipe {
        let base = Recipe::named(self.recipe);
        let ratio = self.warmup_ratio.map(WarmUp::Ratio);
        let clip = |norm: f64| (norm != 0.0).then_some(norm);
        Recipe {
            optimizer: self.optimizer.map_or(base.optimizer, Rule::name),
            momentum: self.momentum.unwrap_or(base.momentum),
            nesterov: self.nesterov || base.nesterov,
            max_ratio: self.max_ratio.unwrap_or(base.max_ratio),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            lr_schedule: self.lr_schedule.map_or(base.lr_schedule, Schedule::decline),
            warmup: ratio
                .or(self.warmup_steps.map(WarmUp::Steps))
                .unwrap_or(base.warmup),
            adam_beta1: self.adam_beta1.unwrap_or(base.adam_beta1),
            adam_beta2: self.adam_beta2.unwrap_or(base.adam_beta2),
            adam_epsilon: self.adam_epsilon.unwrap_or(base.adam_epsilon),
            bias_correction: self.bias_correction.unwrap_or(base.bias_correction),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            decay: self.decay.map_or(base.decay, DecayName::decay),
            max_grad_norm: self.max_grad_norm.map_or(base.max_grad_norm, clip),
            loss: base.loss,
            loss_scaling: self.loss_scaling.unwrap_or(base.loss_scaling),
            master_weights: self.master_weights.unwrap_or(base.master_weights),
            stochastic_rounding: self.stochastic_rounding.unwrap_or(base.stochastic_rounding),
            first_moment: self.first_moment.unwrap_or(base.first_moment),
            second_moment: self.second_moment.unwrap_or(base.second_moment),
            accumulator: self.accumulator.unwrap_or(base.accumulator),
        }
    }
}

impl Rule {
    fn name(self) -> OptimizerName {
        match self {
            Rule::Adamw => OptimizerName::AdamW,
            Rule::Sgd => OptimizerName::Sgd,
            Rule::Lamb => OptimizerName::Lamb,
        }
    }
}

impl Schedule {
    fn decline(self) -> Decline {
        match self {
            Schedule::Linear => Decline::Linear,
            Schedule::Constant => Decline::Constant,
            Schedule::Cosine => Decline::Cosine,
        }
    }
}

impl DecayName {
    fn decay(self) -> Decay {
        match self {
            DecayName::Weights => Decay::Weights,
            DecayName::All => Decay::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn recipe(words: &[&str]) -> Recipe {
        let line = ["train"].iter().chain(words);
        Line::try_parse_from(line).expect("flags").flags.recipe()
    }

    #[test]
    fn without_flags_a_recipe_is_as_it_is_named() {
        assert_eq!(recipe(&[]), Recipe::named(RecipeName::Hf));
        for name in RecipeName::ALL {
            assert_eq!(recipe(&["--recipe", name.name()]), Recipe::named(name));
        }
    }

    #[test]
    fn every_field_has_a_flag() {
        let given = [
            "--optimizer=sgd",
            "--momentum=0.5",
            "--nesterov",
            "--max-ratio=2",
            "--learning-rate=0.5",
            "--lr-schedule=cosine",
            "--warmup-steps=3",
            "--adam-beta1=0.5",
            "--adam-beta2=0.25",
            "--adam-epsilon=0.125",
            "--bias-correction=false",
            "--weight-decay=0",
            "--decay=all",
            "--max-grad-norm=0",
            "--loss-scaling=histogram",
            "--master-weights=false",
            "--stochastic-rounding=true",
            "--first-moment=f16",
            "--second-moment=f16",
            "--accumulator=f16",
        ];
        let fields = |recipe| serde_json::to_value::<Recipe>(recipe).expect("JSON");
        let (changed, base) = (fields(recipe(&given)), fields(recipe(&[])));
        for (name, value) in base.as_object().expect("fields") {
            // The loss is a plan option.
            assert_eq!(name == "loss", changed[name] == *value, "{name}");
        }
        assert_eq!(
            recipe(&["--warmup-ratio", "0.5"]).warmup,
            WarmUp::Ratio(0.5)
        );
    }
}
