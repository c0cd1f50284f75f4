//! What to build of a model: the task, the capacities, the outputs and the losses.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{FrontError, LxmertConfig};
use crate::MAX_ROWS;

/// Which of Transformers' model classes to build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// `LxmertForQuestionAnswering`.
    #[default]
    Qa,
    /// `LxmertModel`.
    Base,
    /// `LxmertForPreTraining`.
    Pretraining,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 3] = [Task::Qa, Task::Base, Task::Pretraining];

    /// The task of a checkpoint, from its first class name; anything unknown answers questions.
    pub fn from_architectures(names: &[String]) -> Task {
        match names.first().map(String::as_str) {
            Some("LxmertModel") => Task::Base,
            Some("LxmertForPreTraining") => Task::Pretraining,
            _ => Task::Qa,
        }
    }

    /// The name on the command line: `qa base pretraining`.
    pub fn name(self) -> &'static str {
        match self {
            Task::Qa => "qa",
            Task::Base => "base",
            Task::Pretraining => "pretraining",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Task::ALL.into_iter().find(|task| task.name() == text);
        found.ok_or_else(|| format!("unknown task `{text}`; expected qa, base or pretraining"))
    }
}

/// The loss of question answering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnswerLoss {
    /// The mean cross-entropy with `labels`, -100 ignored.
    #[default]
    CrossEntropy,
    /// The mean binary cross-entropy with `soft_labels`.
    Bce,
    /// [`AnswerLoss::Bce`] times the number of labels, as the original LXMERT has it.
    BceTimesLabels,
}

/// A part of the pretraining loss, in the order they are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PretrainingLoss {
    /// `loss_mlm`: the words behind masked tokens.
    MaskedLanguage,
    /// `loss_matched`: whether the sentence matches the image.
    Matched,
    /// `loss_visual_obj`: the boxes' classes.
    Objects,
    /// `loss_visual_attr`: the boxes' attributes.
    Attributes,
    /// `loss_visual_feat`: the boxes' features.
    Features,
    /// `loss_qa`: the answer.
    Answer,
}

impl PretrainingLoss {
    /// Every part.
    pub const ALL: [PretrainingLoss; 6] = [
        PretrainingLoss::MaskedLanguage,
        PretrainingLoss::Matched,
        PretrainingLoss::Objects,
        PretrainingLoss::Attributes,
        PretrainingLoss::Features,
        PretrainingLoss::Answer,
    ];

    /// The name of its output.
    pub fn output(self) -> &'static str {
        match self {
            PretrainingLoss::MaskedLanguage => "loss_mlm",
            PretrainingLoss::Matched => "loss_matched",
            PretrainingLoss::Objects => "loss_visual_obj",
            PretrainingLoss::Attributes => "loss_visual_attr",
            PretrainingLoss::Features => "loss_visual_feat",
            PretrainingLoss::Answer => "loss_qa",
        }
    }

    /// The whole loss from its parts. Sums of floats depend on their order: the visual parts are
    /// summed first, as in Transformers.
    pub fn sum<T: Copy>(
        part: impl Fn(PretrainingLoss) -> Option<T>,
        mut add: impl FnMut(T, T) -> T,
    ) -> Option<T> {
        use PretrainingLoss::{Answer, Attributes, Features, MaskedLanguage, Matched, Objects};
        let mut sum = |parts: [Option<T>; 4]| parts.into_iter().flatten().reduce(&mut add);
        let visual = sum([part(Objects), part(Attributes), part(Features), None]);
        sum([part(MaskedLanguage), part(Matched), visual, part(Answer)])
    }

    /// Whether the configuration has this part.
    pub fn is_enabled(self, config: &LxmertConfig) -> bool {
        match self {
            PretrainingLoss::MaskedLanguage => config.task_mask_lm,
            PretrainingLoss::Matched => config.task_matched,
            PretrainingLoss::Objects => config.task_obj_predict && config.visual_obj_loss,
            PretrainingLoss::Attributes => config.task_obj_predict && config.visual_attr_loss,
            PretrainingLoss::Features => config.task_obj_predict && config.visual_feat_loss,
            PretrainingLoss::Answer => config.task_qa,
        }
    }
}

/// Which losses to build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Losses {
    /// None.
    #[default]
    None,
    /// Those of [`Task::Qa`].
    Answer {
        /// What the output `loss` is, if anything.
        loss: Option<AnswerLoss>,
        /// Whether [`AnswerLoss::Bce`] is the output `loss_bce`.
        bce: bool,
    },
    /// Those of [`Task::Pretraining`], and their sum as the output `loss`. Parts that the
    /// configuration switches off are left out, as in Transformers.
    Pretraining(BTreeSet<PretrainingLoss>),
}

impl Losses {
    /// Every part of the pretraining loss.
    pub fn all_pretraining() -> Self {
        Losses::Pretraining(PretrainingLoss::ALL.into())
    }

    fn fit(&self, task: Task) -> bool {
        match self {
            Losses::None => true,
            Losses::Answer { .. } => task == Task::Qa,
            Losses::Pretraining(_) => task == Task::Pretraining,
        }
    }
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// The model class.
    pub task: Task,
    /// The most samples of one run.
    pub micro_batch: usize,
    /// The most tokens of one text, T.
    pub seq_len: usize,
    /// The most boxes of one image, V.
    pub boxes: usize,
    /// Whether embeddings and the output of each layer are outputs.
    pub hidden_states: bool,
    /// Whether attention probabilities are outputs.
    pub attentions: bool,
    /// The losses.
    pub losses: Losses,
    /// Whether activations and attention probabilities are dropped at the rates of the configuration,
    /// as in training. Samples then share no questions and images.
    pub dropout: bool,
}

impl Default for ModelOptions {
    /// One sample of 20 tokens and 36 boxes, and only the task's own outputs.
    fn default() -> Self {
        ModelOptions {
            task: Task::Qa,
            micro_batch: 1,
            seq_len: 20,
            boxes: 36,
            hidden_states: false,
            attentions: false,
            losses: Losses::None,
            dropout: false,
        }
    }
}

/// Operations and bytes of a run are counted in 64 bits, with room to spare.
const MAX_WORK: u128 = 1 << 61;

impl ModelOptions {
    /// Whether anything of the model is dropped.
    pub(super) fn drops(&self, config: &LxmertConfig) -> bool {
        let rates = [
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        ];
        self.dropout && rates.iter().any(|&rate| rate > 0.0)
    }

    /// Checks the options against each other and against a valid configuration.
    pub(super) fn check(&self, config: &LxmertConfig) -> Result<(), FrontError> {
        let sizes = [
            ("--micro-batch", self.micro_batch),
            ("--seq-len", self.seq_len),
            ("--boxes", self.boxes),
        ];
        if let Some((flag, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(option(flag, "must be at least 1".to_owned()));
        }
        let positions = config.max_position_embeddings;
        if self.seq_len > positions {
            let asked = self.seq_len;
            return Err(option(
                "--seq-len",
                format!("is {asked}; the model has positions for at most {positions} tokens"),
            ));
        }
        if !self.losses.fit(self.task) {
            let task = self.task;
            return Err(option(
                "--loss",
                format!("the task {task} has no such loss; choose another --task"),
            ));
        }
        self.check_work(config)
    }

    /// Bounds the rows and, generously, the work of the whole model.
    fn check_work(&self, config: &LxmertConfig) -> Result<(), FrontError> {
        let wide = |size: usize| size as u128;
        let longest = wide(self.seq_len.max(self.boxes));
        let both = wide(self.seq_len).saturating_add(wide(self.boxes));
        let rows = wide(self.micro_batch).saturating_mul(both);
        if rows > wide(MAX_ROWS) {
            return Err(option(
                "--micro-batch",
                format!("gives {rows} rows of tokens and boxes; at most {MAX_ROWS} are supported"),
            ));
        }
        let parameters = u128::from(config.parameter_count(Task::Pretraining))
            .max(u128::from(config.parameter_count(Task::Qa)));
        let per_row = wide(16 * config.hidden_size + 16 * config.num_attention_heads);
        let attentions = wide(4 * (config.l_layers + config.r_layers + config.x_layers));
        let scores = rows
            .saturating_mul(longest)
            .saturating_mul(per_row * attentions);
        let work = scores.saturating_add(rows * parameters * 16);
        if work > MAX_WORK {
            return Err(option(
                "--micro-batch",
                "is too large together with --seq-len and --boxes: the work of one run does not \
                 fit 64-bit counters; lower one of them"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

fn option(flag: &'static str, message: String) -> FrontError {
    FrontError::Option { flag, message }
}
