//! Which of a micro-batch's samples share questions and images, and how many rows each has.

use std::ops::Range;

use lxpod_ir::SpaceId;
use lxpod_ir::front::RowSpaces;

use crate::samples::{Samples, Values};

/// What the segments of a row space belong to, and what their rows are. A micro-batch of one sample
/// has no spaces of its own for questions, images and what they are gathered into; their kinds are
/// then those of [`Sample`](RowKind::Sample), [`Text`](RowKind::Text) and [`Boxes`](RowKind::Boxes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// One row per sample.
    Sample,
    /// One row per distinct question.
    Question,
    /// One row per distinct image.
    Image,
    /// The tokens of each distinct question.
    Text,
    /// The boxes of each distinct image.
    Boxes,
    /// The tokens of each sample.
    SampleText,
    /// The boxes of each sample.
    SampleBoxes,
}

impl RowKind {
    /// The kind of a space; `None` for a union.
    pub(crate) fn of(space: SpaceId, spaces: &RowSpaces) -> Option<RowKind> {
        let kinds = [
            (spaces.sample, RowKind::Sample),
            (spaces.question, RowKind::Question),
            (spaces.image, RowKind::Image),
            (spaces.text, RowKind::Text),
            (spaces.boxes, RowKind::Boxes),
            (spaces.sample_text, RowKind::SampleText),
            (spaces.sample_box, RowKind::SampleBoxes),
        ];
        let mut found = kinds.into_iter().filter(|&(other, _)| other == space);
        found.next().map(|(_, kind)| kind)
    }

    /// Whether rows are tokens.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, RowKind::Text | RowKind::SampleText)
    }

    /// Whether rows are boxes.
    pub(crate) fn is_boxes(self) -> bool {
        matches!(self, RowKind::Boxes | RowKind::SampleBoxes)
    }
}

/// Which of a micro-batch's samples share what, and how long each text and image is.
pub(crate) struct Sharing {
    /// The samples of the micro-batch.
    pub(crate) samples: Range<usize>,
    /// The question of each sample, numbered within the micro-batch.
    pub(crate) question_of: Vec<usize>,
    /// The first sample that asks each question.
    pub(crate) questions: Vec<usize>,
    /// The image of each sample, numbered within the micro-batch.
    pub(crate) image_of: Vec<usize>,
    /// The user's number of each image.
    pub(crate) images: Vec<usize>,
    /// Rows of each question.
    pub(crate) text_rows: Vec<usize>,
    /// Rows of each image.
    pub(crate) box_rows: Vec<usize>,
}

impl Sharing {
    /// What the samples `range` share; nothing unless `merge`. With `dense` every row is computed,
    /// masked ones too.
    pub(crate) fn find(
        samples: &Samples,
        range: Range<usize>,
        merge: bool,
        dense: bool,
    ) -> Sharing {
        let mut sharing = Sharing {
            question_of: Vec::new(),
            questions: Vec::new(),
            image_of: Vec::new(),
            images: Vec::new(),
            text_rows: Vec::new(),
            box_rows: Vec::new(),
            samples: range.clone(),
        };
        let length = |mask, entity, full| kept_rows(samples, mask, entity, full, dense);
        for sample in range {
            let known = &mut sharing.questions;
            let same = |&other: &usize| merge && same_question(samples, other, sample);
            let question = known.iter().position(same).unwrap_or(known.len());
            if question == known.len() {
                known.push(sample);
                let rows = length("attention_mask", sample, samples.tokens);
                sharing.text_rows.push(rows);
            }
            sharing.question_of.push(question);
            let (number, known) = (samples.images[sample], &mut sharing.images);
            let same = |&other: &usize| merge && other == number;
            let image = known.iter().position(same).unwrap_or(known.len());
            if image == known.len() {
                known.push(number);
                let rows = length("visual_attention_mask", number, samples.boxes);
                sharing.box_rows.push(rows);
            }
            sharing.image_of.push(image);
        }
        sharing
    }

    /// The number of segments of a space of that kind.
    pub(crate) fn segments(&self, kind: RowKind) -> usize {
        match kind {
            RowKind::Sample | RowKind::SampleText | RowKind::SampleBoxes => self.samples.len(),
            RowKind::Question | RowKind::Text => self.questions.len(),
            RowKind::Image | RowKind::Boxes => self.images.len(),
        }
    }

    /// The rows of one segment.
    pub(crate) fn length(&self, kind: RowKind, segment: usize) -> usize {
        match kind {
            RowKind::Sample | RowKind::Question | RowKind::Image => 1,
            RowKind::Text => self.text_rows[segment],
            RowKind::Boxes => self.box_rows[segment],
            RowKind::SampleText => self.text_rows[self.question_of[segment]],
            RowKind::SampleBoxes => self.box_rows[self.image_of[segment]],
        }
    }

    /// The rows of each sample's segment, for each sample of the micro-batch.
    pub(crate) fn sample_rows(&self, kind: RowKind) -> Vec<Range<usize>> {
        let lengths: Vec<usize> = (0..self.segments(kind))
            .map(|segment| self.length(kind, segment))
            .collect();
        let first = first_rows(&lengths);
        let segment_of = |sample: usize| match kind {
            RowKind::Sample | RowKind::SampleText | RowKind::SampleBoxes => sample,
            RowKind::Question | RowKind::Text => self.question_of[sample],
            RowKind::Image | RowKind::Boxes => self.image_of[sample],
        };
        (0..self.samples.len())
            .map(segment_of)
            .map(|segment| first[segment]..first[segment + 1])
            .collect()
    }
}

fn same_question(samples: &Samples, a: usize, b: usize) -> bool {
    let tokens = samples.tokens;
    let row = |sample: usize| sample * tokens..(sample + 1) * tokens;
    ["input_ids", "token_type_ids", "attention_mask"]
        .into_iter()
        .all(|name| match samples.values.get(name) {
            Some(Values::Ints(values)) => values[row(a)] == values[row(b)],
            Some(Values::Floats(values)) => {
                let bits = |sample| values[row(sample)].iter().map(|value| value.to_bits());
                bits(a).eq(bits(b))
            }
            None => true,
        })
}

/// Rows to compute of one text or image: up to the last kept one, or all where the mask is not of
/// zeros and ones, or keeps nothing, or every row is asked for.
fn kept_rows(samples: &Samples, mask: &str, entity: usize, full: usize, dense: bool) -> usize {
    let Some(Values::Floats(mask)) = samples.values.get(mask) else {
        return full;
    };
    let mask = &mask[entity * full..(entity + 1) * full];
    let binary = mask.iter().all(|&value| value == 0.0 || value == 1.0);
    match mask.iter().rposition(|&value| value == 1.0) {
        Some(last) if binary && !dense => last + 1,
        _ => full,
    }
}

/// The first row of each segment, then the number of rows.
pub(crate) fn first_rows(lengths: &[usize]) -> Vec<usize> {
    let mut first = vec![0];
    first.extend(lengths.iter().scan(0, |sum, &length| {
        *sum += length;
        Some(*sum)
    }));
    first
}
