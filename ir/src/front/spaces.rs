//! The row spaces of a model.

use super::ModelOptions;
use crate::{SpaceId, Spaces};

/// The row spaces of an LXMERT graph, found by name.
///
/// With room for several samples, texts and images are entities of their own, so that samples may
/// share them: the language tower works on `text` (segments of `question`), the vision tower on
/// `box` (segments of `image`), and the cross layers on `sample_text` and `sample_box` (segments of
/// `sample`). With room for one sample there is nothing to share, and where samples drop out at
/// random no two are alike: `question` and `image` are then `sample`, `sample_text` is `text` and
/// `sample_box` is `box`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpaces {
    /// One row per sample.
    pub sample: SpaceId,
    /// One entity per distinct question.
    pub question: SpaceId,
    /// One entity per distinct image.
    pub image: SpaceId,
    /// The tokens of each question.
    pub text: SpaceId,
    /// The boxes of each image.
    pub boxes: SpaceId,
    /// The tokens of each sample.
    pub sample_text: SpaceId,
    /// The boxes of each sample.
    pub sample_box: SpaceId,
}

impl RowSpaces {
    /// Declares the spaces of a model with these capacities, which must have been checked. `shared`
    /// says whether samples may share questions and images.
    pub(super) fn declare(options: &ModelOptions, shared: bool) -> (Spaces, RowSpaces) {
        let mut spaces = Spaces::default();
        let (batch, tokens, boxes) = (options.micro_batch, options.seq_len, options.boxes);
        let sample = spaces.entities("sample", batch);
        if shared {
            let question = spaces.entities("question", batch);
            let image = spaces.entities("image", batch);
            spaces.segments("text", question, tokens);
            spaces.segments("box", image, boxes);
            spaces.segments("sample_text", sample, tokens);
            spaces.segments("sample_box", sample, boxes);
        } else {
            spaces.segments("text", sample, tokens);
            spaces.segments("box", sample, boxes);
        }
        let found = RowSpaces::find(&spaces).expect("just declared");
        (spaces, found)
    }

    /// The spaces of a graph; `None` if it is no LXMERT graph.
    pub fn find(spaces: &Spaces) -> Option<RowSpaces> {
        let sample = spaces.find("sample")?;
        let (text, boxes) = (spaces.find("text")?, spaces.find("box")?);
        Some(RowSpaces {
            sample,
            question: spaces.owner(text)?,
            image: spaces.owner(boxes)?,
            text,
            boxes,
            sample_text: spaces.find("sample_text").unwrap_or(text),
            sample_box: spaces.find("sample_box").unwrap_or(boxes),
        })
    }

    /// Whether samples may share questions and images, so that rows are gathered.
    pub fn are_shared(&self) -> bool {
        self.sample_text != self.text
    }
}
