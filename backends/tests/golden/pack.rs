//! Packs the padded tensors of a case into the rows of a graph.

use std::collections::BTreeSet;

use lxpod_ir::front::{Built, Losses, ModelOptions, RowSpaces, build};
use lxpod_ir::{Extents, Graph, Scalar, Shape, SpaceId, Tensor};

use super::{Array, Case, Elements};

/// How a case is run.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// For each sample the row of the case's inputs it takes; equal ones share text and image.
    pub(crate) samples: Vec<usize>,
    /// Whether trailing masked rows are dropped.
    pub(crate) drop_masked: bool,
    /// Whether hidden states and attentions are asked for.
    pub(crate) states: bool,
    /// The losses.
    pub(crate) losses: Losses,
}

/// A built graph and where the rows of its spaces come from.
pub(crate) struct Packed {
    pub(crate) built: Built,
    pub(crate) spaces: RowSpaces,
    pub(crate) extents: Extents,
    /// The row of the case's inputs behind each sample.
    samples: Vec<usize>,
    /// The row of the case's inputs behind each question and image.
    distinct: Vec<usize>,
    lengths: [Vec<usize>; 2],
}

impl Packed {
    pub(crate) fn new(case: &Case, request: &Request) -> Packed {
        let [batch, seq_len, boxes] = case.sizes();
        let options = ModelOptions {
            task: case.task,
            micro_batch: request.samples.len(),
            seq_len,
            boxes,
            hidden_states: request.states,
            attentions: request.states,
            losses: request.losses.clone(),
            dropout: false,
        };
        let built = build(&case.config, &options).expect("a graph");
        lxpod_ir::verify(&built.graph).expect("a valid graph");
        let spaces = RowSpaces::find(&built.graph.spaces).expect("an LXMERT graph");
        let lengths = ["attention_mask", "visual_attention_mask"].map(|mask| {
            let length = |row| match case.inputs.get(mask) {
                Some(mask) if request.drop_masked => kept(mask, row),
                _ => usize::MAX,
            };
            (0..batch).map(length).collect::<Vec<_>>()
        });
        let lengths = [(0, seq_len), (1, boxes)].map(|(side, longest): (usize, usize)| {
            let length = |length: &usize| longest.min(*length);
            lengths[side].iter().map(length).collect::<Vec<_>>()
        });
        let distinct: BTreeSet<usize> = request.samples.iter().copied().collect();
        let mut packed = Packed {
            extents: Extents::full(&built.graph.spaces),
            built,
            spaces,
            samples: request.samples.clone(),
            distinct: distinct.into_iter().collect(),
            lengths,
        };
        packed.extents = packed.measure();
        packed
    }

    /// Changes the graph.
    pub(crate) fn rewrite(&mut self, change: impl FnOnce(&mut Graph)) {
        change(&mut self.built.graph);
        // it may have more unions now
        self.extents = self.measure();
    }

    fn measure(&self) -> Extents {
        let sides = [self.spaces.text, self.spaces.sample_text];
        Extents::new(
            &self.built.graph.spaces,
            |space, _| self.sources(space).len(),
            |space, entity, _| {
                let side = usize::from(!sides.contains(&space));
                self.lengths[side][self.sources(space)[entity]]
            },
        )
        .expect("within capacity")
    }

    /// For each entity of the space's owner, the row of the case's inputs it takes.
    pub(crate) fn sources(&self, space: SpaceId) -> &[usize] {
        if self.built.graph.spaces.owner(space) == Some(self.spaces.sample) {
            &self.samples
        } else {
            &self.distinct
        }
    }

    /// The graph's input of that name.
    pub(crate) fn input<S: Scalar>(&self, case: &Case, name: &str) -> Option<Tensor<S>> {
        let spaces = &self.spaces;
        let given = case.inputs.get(name);
        Some(match name {
            "input_ids" => self.integers(spaces.text, given?),
            "token_type_ids" => match given {
                Some(kinds) => self.integers(spaces.text, kinds),
                None => self.counted(spaces.text, |_, _| 0),
            },
            "position_ids" => self.counted(spaces.text, |_, place| place),
            "attention_mask" => self.mask(spaces.text, given),
            "visual_attention_mask" => self.mask(spaces.boxes, given),
            "visual_feats" | "visual_pos" => self.reals(spaces.boxes, given?),
            "first_token" => self.counted(spaces.sample, |sample, _| {
                self.extents.segment(spaces.sample_text, sample).start
            }),
            "sample_text_rows" => self.rows_of(spaces.sample_text, spaces.text),
            "sample_box_rows" => self.rows_of(spaces.sample_box, spaces.boxes),
            "lm_labels" => self.integers(spaces.sample_text, given?),
            "labels" | "matched_label" | "ans" => self.integers(spaces.sample, given?),
            "soft_labels" => self.reals(spaces.sample, given?),
            "obj_labels" | "attr_labels" => self.integers(spaces.sample_box, given?),
            "obj_conf" | "attr_conf" | "feat_conf" | "feat_labels" => {
                self.reals(spaces.sample_box, given?)
            }
            _ => return None,
        })
    }

    fn mask<S: Scalar>(&self, space: SpaceId, given: Option<&Array>) -> Tensor<S> {
        match given {
            Some(mask) => self.reals(space, mask),
            None => {
                let rows = self.extents.rows(space);
                Tensor::real([rows], vec![S::from_f64(1.0); rows])
            }
        }
    }

    /// For each row of `space` the row of `tower` with the same content.
    fn rows_of<S: Scalar>(&self, space: SpaceId, tower: SpaceId) -> Tensor<S> {
        self.counted(space, |sample, place| {
            let source = self.samples[sample];
            let entity = self.distinct.binary_search(&source).expect("used");
            self.extents.segment(tower, entity).start + place
        })
    }

    /// One number for each row, from its entity and its place in the segment.
    fn counted<S: Scalar>(
        &self,
        space: SpaceId,
        number: impl Fn(usize, usize) -> usize,
    ) -> Tensor<S> {
        let rows = self.rows(space);
        let numbers = rows.iter().map(|&(entity, place)| number(entity, place));
        let numbers = numbers.map(|number| i32::try_from(number).expect("small"));
        Tensor::int([rows.len()], numbers.collect())
    }

    /// Entity and place in the segment of each row.
    pub(crate) fn rows(&self, space: SpaceId) -> Vec<(usize, usize)> {
        let segments = 0..self.extents.segments(space);
        segments
            .flat_map(|entity| {
                let length = self.extents.segment(space, entity).len();
                (0..length).map(move |place| (entity, place))
            })
            .collect()
    }

    fn integers<S: Scalar>(&self, space: SpaceId, array: &Array) -> Tensor<S> {
        let Elements::Int(values) = &array.elements else {
            panic!("expected integers");
        };
        let (shape, picked) = self.pick(space, array, values);
        Tensor::int(shape, picked)
    }

    fn reals<S: Scalar>(&self, space: SpaceId, array: &Array) -> Tensor<S> {
        let (shape, picked) = self.pick(space, array, &array.reals());
        let wide = picked.into_iter().map(|value| S::from_f64(value.into()));
        Tensor::real(shape, wide.collect())
    }

    /// The rows of a padded [samples, ...] or [samples, places, ...] tensor.
    fn pick<T: Copy>(&self, space: SpaceId, array: &Array, values: &[T]) -> (Shape, Vec<T>) {
        let per_sample = space == self.spaces.sample;
        let axes = if per_sample { 1 } else { 2 };
        let places = if per_sample { 1 } else { array.shape[1] };
        let width: usize = array.shape[axes..].iter().product();
        let sources = self.sources(space);
        let rows = self.rows(space);
        let picked = rows.iter().flat_map(|&(entity, place)| {
            let row = sources[entity] * places + place;
            values[row * width..(row + 1) * width].iter().copied()
        });
        let picked = picked.collect();
        let mut shape = vec![rows.len()];
        shape.extend_from_slice(&array.shape[axes..]);
        (Shape::new(&shape), picked)
    }
}

/// Rows of one sample up to the last that the mask keeps.
fn kept(mask: &Array, row: usize) -> usize {
    let values = mask_row(mask, row);
    values
        .iter()
        .rposition(|&value| value != 0.0)
        .map_or(0, |last| last + 1)
}

fn mask_row(mask: &Array, row: usize) -> Vec<f32> {
    let longest = mask.shape[1];
    mask.reals()[row * longest..(row + 1) * longest].to_vec()
}

/// Whether dropping trailing masked rows is exact: masks hold 0 and 1 and keep a row of every
/// sample.
pub(crate) fn may_drop(case: &Case) -> bool {
    ["attention_mask", "visual_attention_mask"]
        .iter()
        .filter_map(|name| case.inputs.get(*name))
        .all(|mask| {
            (0..mask.shape[0]).all(|row| {
                let values = mask_row(mask, row);
                values.contains(&1.0) && values.iter().all(|value| [0.0, 1.0].contains(value))
            })
        })
}
