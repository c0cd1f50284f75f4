//! Made-up samples: deterministic, of any number, length and sharing of images.

use std::collections::BTreeMap;

use lxpod_ir::front::LxmertConfig;
use lxpod_ir::random::Rng;
use lxpod_runtime::tensors::{HostData, HostTensor};

use super::error::{CliError, Result};

/// The most elements of made-up inputs.
const MOST_ELEMENTS: usize = 1 << 30;
/// Questions of GQA's testdev-balanced split by their number of word pieces, `[CLS]` and `[SEP]` included.
const GQA_LENGTHS: [(usize, usize); 23] = [
    (6, 146),
    (7, 511),
    (8, 1115),
    (9, 1897),
    (10, 1670),
    (11, 1293),
    (12, 1274),
    (13, 1236),
    (14, 1000),
    (15, 704),
    (16, 568),
    (17, 379),
    (18, 266),
    (19, 182),
    (20, 98),
    (21, 91),
    (22, 57),
    (23, 37),
    (24, 22),
    (25, 18),
    (26, 8),
    (27, 5),
    (28, 1),
];

/// How many tokens of each text are real; the others are padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// All.
    #[default]
    Full,
    /// These, sample by sample, again and again.
    Cycle(Vec<usize>),
    /// Evenly spaced quantiles of the questions of GQA, cut where texts end.
    Gqa,
}

impl Lengths {
    /// Parses `gqa` or numbers with commas between.
    pub(crate) fn parse(text: &str) -> Result<Lengths, String> {
        if text == "gqa" {
            return Ok(Lengths::Gqa);
        }
        let length = |word: &str| match word.trim().parse() {
            Ok(length) if length > 0 => Ok(length),
            _ => Err(format!(
                "`{word}` is no length; give whole numbers of at least 1 with commas between, or gqa"
            )),
        };
        text.split(',')
            .map(length)
            .collect::<Result<_, _>>()
            .map(Lengths::Cycle)
    }

    /// The real tokens of each of `batch` texts of `tokens` tokens; none if all are.
    fn of(&self, batch: usize, tokens: usize) -> Result<Option<Vec<usize>>> {
        let lengths: Vec<usize> = match self {
            Lengths::Full => return Ok(None),
            Lengths::Cycle(lengths) => lengths.iter().copied().cycle().take(batch).collect(),
            Lengths::Gqa => (0..batch)
                .map(|at| gqa_quantile(at, batch).min(tokens))
                .collect(),
        };
        match lengths.iter().find(|&&length| length > tokens) {
            Some(length) => Err(CliError::option(
                "--lengths",
                format!("{length} is more than the {tokens} tokens of a text; raise --seq-len"),
            )),
            None => Ok(Some(lengths)),
        }
    }
}

/// The length that a share (at + ½) / batch of the questions do not exceed.
fn gqa_quantile(at: usize, batch: usize) -> usize {
    let all: usize = GQA_LENGTHS.iter().map(|&(_, questions)| questions).sum();
    let rank = (2 * at + 1) as f64 / (2 * batch) as f64 * all as f64;
    let mut below = 0;
    for (length, questions) in GQA_LENGTHS {
        below += questions;
        if rank <= below as f64 {
            return length;
        }
    }
    GQA_LENGTHS[GQA_LENGTHS.len() - 1].0
}

/// What samples to make up.
#[derive(Clone, Debug)]
pub(crate) struct MadeUp {
    /// How many.
    pub(crate) batch: usize,
    /// Real tokens of their texts.
    pub(crate) lengths: Lengths,
    /// Distinct images, which the samples take in turn; one per sample if not given.
    pub(crate) images: Option<usize>,
}

impl MadeUp {
    /// The inputs, for texts of `tokens` tokens and images of `boxes` boxes: words of the vocabulary,
    /// features between 0 and 1.
    ///
    /// # Errors
    /// Lengths beyond `tokens`, more images than samples, or more than memory holds.
    pub(crate) fn tensors(
        &self,
        config: &LxmertConfig,
        (tokens, boxes): (usize, usize),
    ) -> Result<BTreeMap<String, HostTensor>> {
        let batch = self.batch;
        let images = self.images.unwrap_or(batch);
        if images > batch {
            let message =
                format!("{images} images for --batch {batch}; give at most one per sample");
            return Err(CliError::option("--images", message));
        }
        let features = config.visual_feat_dim.saturating_add(config.visual_pos_dim);
        let of_image = boxes.saturating_mul(features);
        let elements = images.saturating_mul(of_image);
        if elements.saturating_add(batch.saturating_mul(tokens)) > MOST_ELEMENTS {
            let message = format!("{batch} samples of that size do not fit memory; lower it");
            return Err(CliError::option("--batch", message));
        }
        let lengths = self.lengths.of(batch, tokens)?;
        let mut random = Rng::new(0x5eed);
        let words = (0..batch * tokens).map(|_| random.below(config.vocab_size.max(1)) as i64);
        let words = HostData::I64(words.collect());
        let index = (0..batch).map(|sample| (sample % images) as i64).collect();
        let mut made = vec![
            ("input_ids", vec![batch, tokens], words),
            ("image_index", vec![batch], HostData::I64(index)),
        ];
        for (name, width) in [
            ("visual_feats", config.visual_feat_dim),
            ("visual_pos", config.visual_pos_dim),
        ] {
            let float = |_| random.below(1024) as f32 / 1024.0;
            let values = (0..images * boxes * width).map(float).collect();
            made.push((name, vec![images, boxes, width], HostData::F32(values)));
        }
        if let Some(lengths) = lengths {
            let real = |length| (0..tokens).map(move |token| f32::from(u8::from(token < length)));
            let mask = lengths.into_iter().flat_map(real).collect();
            made.push(("attention_mask", vec![batch, tokens], HostData::F32(mask)));
        }
        let mut tensors = BTreeMap::new();
        for (name, shape, data) in made {
            tensors.insert(name.to_owned(), HostTensor::new(name, shape, data)?);
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_parse_and_cycle() {
        assert_eq!(Lengths::parse("12"), Ok(Lengths::Cycle(vec![12])));
        for wrong in ["", "0", "-1", "1,,2", "gqa,3", "99999999999999999999"] {
            assert!(Lengths::parse(wrong).is_err(), "{wrong}");
        }
        let cycled = Lengths::parse("7, 8").expect("two lengths").of(5, 20);
        assert_eq!(cycled.expect("they fit"), Some(vec![7, 8, 7, 8, 7]));
        assert!(Lengths::Cycle(vec![21]).of(1, 20).is_err());
    }

    #[test]
    fn quantiles_of_gqa_have_its_median_and_mean() {
        assert_eq!(gqa_quantile(0, 1), 11);
        let octiles = Lengths::Gqa.of(8, 20).expect("they fit");
        assert_eq!(octiles, Some(vec![8, 9, 10, 11, 12, 13, 15, 17]));
        let many = Lengths::Gqa
            .of(1000, 512)
            .expect("they fit")
            .unwrap_or_default();
        let mean = many.iter().sum::<usize>() as f64 / 1000.0;
        assert!((mean - 11.797).abs() < 0.02, "{mean}");
        assert_eq!(
            Lengths::Gqa
                .of(1000, 9)
                .expect("cut")
                .and_then(|all| all.into_iter().max()),
            Some(9)
        );
    }
}
