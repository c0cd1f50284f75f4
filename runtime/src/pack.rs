//! Packing samples into feeds, and outputs back into dense tensors.
//!
//! Rows of all samples lie end to end. Trailing rows that a mask of zeros and ones removes are left
//! out where that is exact: nobody asks for what is computed in them. Questions and images that
//! several samples of a micro-batch share are fed once.

use std::collections::BTreeMap;
use std::ops::Range;

use lxpod_backends::{Feed, Outputs};
use lxpod_ir::front::RowSpaces;
use lxpod_ir::ops::{Op, Reduction};
use lxpod_ir::random_bits::{KEEP_KEY, dropout_key};
use lxpod_ir::{Extents, Graph, Layout, SpaceId, Tensor, TensorType, Value};
use lxpod_passes::autodiff::LOSS_SCALE;

use crate::error::{Error, Result};
use crate::samples::{Axes, Content, FIELDS, IGNORED_LABEL, Samples, Values};
use crate::sharing::{RowKind, Sharing, first_rows};

/// The input that decides what each sample drops; see [`lxpod_ir::front`].
const DROPOUT_KEYS: &str = "dropout_keys";

/// What decides the dropout keys of samples: they are counted from `first` in a step of a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropping {
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) first: usize,
}

/// Packs and unpacks the micro-batches of one plan.
pub(crate) struct Packer<'a> {
    graph: &'a Graph,
    spaces: RowSpaces,
    dense: bool,
    samples: &'a Samples,
    dropping: Option<Dropping>,
}

impl<'a> Packer<'a> {
    /// A packer for these samples, of which nothing is dropped.
    ///
    /// # Errors
    /// The plan's capacities are smaller than the samples.
    pub(crate) fn new(graph: &'a Graph, samples: &'a Samples) -> Result<Self> {
        let spaces = RowSpaces::find(&graph.spaces)
            .ok_or_else(|| Error::internal("a plan of no LXMERT graph"))?;
        let fits = [
            (
                "--seq-len",
                "tokens",
                samples.tokens,
                graph.spaces.longest(spaces.text),
            ),
            (
                "--boxes",
                "boxes",
                samples.boxes,
                graph.spaces.longest(spaces.boxes),
            ),
        ];
        for (flag, what, given, capacity) in fits {
            if given > capacity {
                let message = format!(
                    "the inputs have {given} {what}, the plan holds {capacity}; compile with {flag} {given}"
                );
                return Err(Error::Option { flag, message });
            }
        }
        Ok(Packer {
            graph,
            spaces,
            dense: needs_all_rows(graph),
            samples,
            dropping: None,
        })
    }

    /// The same, with this dropped where the graph drops out; without it nothing is.
    pub(crate) fn dropping(self, dropping: Option<Dropping>) -> Self {
        Packer { dropping, ..self }
    }

    /// The samples of each micro-batch.
    pub(crate) fn micro_batches(&self) -> Vec<Range<usize>> {
        let size = self.graph.spaces.get(self.spaces.sample).capacity;
        (0..self.samples.batch)
            .step_by(size)
            .map(|first| first..(first + size).min(self.samples.batch))
            .collect()
    }

    /// The feed of each micro-batch.
    pub(crate) fn feeds(&self) -> Result<Vec<Feed>> {
        let micro_batches = self.micro_batches().into_iter();
        micro_batches.map(|samples| self.pack(samples)).collect()
    }

    /// The feed of one micro-batch, without [`LOSS_SCALE`], which is no property of samples.
    pub(crate) fn pack(&self, samples: Range<usize>) -> Result<Feed> {
        let sharing = self.share(samples.clone());
        let extents = self.extents(&sharing)?;
        let rows = Rows::new(self, &sharing);
        let keys = self.dropout_keys(samples);
        let mut inputs = BTreeMap::new();
        for id in self.graph.nodes() {
            if let Op::Input(input) = &self.graph.node(id).op
                && input.name != LOSS_SCALE
            {
                let ty = &self.graph.node(id).types[0];
                let value = match &*input.name {
                    DROPOUT_KEYS => keys.clone(),
                    name => self.input(name, ty, &rows)?,
                };
                inputs.insert(input.name.clone(), value);
            }
        }
        Ok(Feed { extents, inputs })
    }

    /// Two words for each of some samples.
    fn dropout_keys(&self, samples: Range<usize>) -> Tensor<f32> {
        let count = samples.len();
        let key = |sample: usize| match self.dropping {
            Some(Dropping { seed, step, first }) => {
                dropout_key(seed, step, (first + sample) as u64)
            }
            None => KEEP_KEY,
        };
        let words = samples.flat_map(key).map(u32::cast_signed);
        Tensor::int([count, 2], words.collect())
    }

    /// How many rows one micro-batch computes.
    pub(crate) fn extents_of(&self, samples: Range<usize>) -> Result<Extents> {
        self.extents(&self.share(samples))
    }

    fn share(&self, samples: Range<usize>) -> Sharing {
        Sharing::find(self.samples, samples, self.spaces.are_shared(), self.dense)
    }

    /// What the rows of a space are; `None` for a union.
    pub(crate) fn kind(&self, space: SpaceId) -> Option<RowKind> {
        RowKind::of(space, &self.spaces)
    }

    /// The rows of a space's value that belong to each sample.
    pub(crate) fn sample_rows(&self, kind: RowKind, samples: Range<usize>) -> Vec<Range<usize>> {
        self.share(samples).sample_rows(kind)
    }

    fn extents(&self, sharing: &Sharing) -> Result<Extents> {
        let kind = |space| self.kind(space).unwrap_or(RowKind::Sample);
        Extents::new(
            &self.graph.spaces,
            |space, _| sharing.segments(kind(space)),
            |space, segment, _| sharing.length(kind(space), segment),
        )
        .map_err(Error::internal)
    }

    /// The value of one graph input.
    fn input(&self, name: &str, ty: &TensorType, rows: &Rows) -> Result<Tensor<f32>> {
        let derived = match name {
            "position_ids" => Some(&rows.positions),
            "first_token" => Some(&rows.first_tokens),
            "sample_text_rows" => Some(&rows.sample_text),
            "sample_box_rows" => Some(&rows.sample_box),
            _ => None,
        };
        if let Some(values) = derived {
            return Ok(Tensor::int(
                [values.len()],
                values.iter().map(|&value| value as i32).collect(),
            ));
        }
        let field = FIELDS.iter().find(|field| field.name == name);
        let field = field
            .ok_or_else(|| Error::internal(format!("a graph with the unknown input `{name}`")))?;
        let picked = rows.of(field.axes, ty.rows.and_then(|space| self.kind(space)));
        let shape = ty.shape.with_rows(picked.len());
        let width = shape.row_elements();
        Ok(match (self.samples.values.get(name), field.content) {
            (Some(Values::Ints(values)), _) => {
                Tensor::int(shape, picked.iter().map(|&row| values[row]).collect())
            }
            (Some(Values::Floats(values)), _) => {
                let mut rows = Vec::with_capacity(picked.len() * width);
                for row in picked {
                    rows.extend_from_slice(&values[row * width..(row + 1) * width]);
                }
                Tensor::real(shape, rows)
            }
            (None, Content::Index(_, _, default)) => {
                Tensor::int(shape, vec![default.unwrap_or(0); picked.len()])
            }
            (None, Content::Float(_, default)) => {
                Tensor::real(shape, vec![default.unwrap_or(0.0); picked.len() * width])
            }
        })
    }

    /// Whether the value depends only on what the user gave.
    pub(crate) fn is_known(&self, value: Value) -> bool {
        let mut stack = vec![value.node];
        let mut seen = vec![false; self.graph.bound()];
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            if let Op::Input(input) = &self.graph.node(id).op
                && is_label(&input.name)
                && !self.samples.has(&input.name)
            {
                return false;
            }
            stack.extend(self.graph.inputs(id).iter().map(|value| value.node));
        }
        true
    }

    /// One output of all micro-batches in Transformers' shape.
    pub(crate) fn unpack(
        &self,
        output: usize,
        results: &[(Range<usize>, &Outputs)],
    ) -> (Vec<usize>, Vec<f32>) {
        let value = self.graph.outputs()[output].value;
        let ty = self.graph.ty(value);
        let Some(kind) = ty.rows.and_then(|space| self.kind(space)) else {
            return (Vec::new(), vec![self.mean(output, results)]);
        };
        let mut values = Vec::new();
        for (samples, outputs) in results {
            for rows in self.sample_rows(kind, samples.clone()) {
                self.unpack_segment(value, &outputs[output], rows, &mut values);
            }
        }
        (self.unpacked_shape(value, ty, kind), values)
    }

    /// A scalar output over all micro-batches: the mean of theirs, each weighing what it averages.
    fn mean(&self, output: usize, results: &[(Range<usize>, &Outputs)]) -> f32 {
        if let [(_, only)] = results {
            return only[output].reals()[0];
        }
        let (mut sum, mut total) = (0.0, 0);
        for (samples, outputs) in results {
            let weight = self.averaged(output, samples);
            if weight > 0 {
                sum += f64::from(outputs[output].reals()[0]) * weight as f64;
                total += weight;
            }
        }
        (sum / total as f64) as f32
    }

    /// What a scalar output averages over in a micro-batch: its kept labels, else its samples.
    fn averaged(&self, output: usize, samples: &Range<usize>) -> usize {
        let node = self.graph.outputs()[output].value.node;
        let labels = match &self.graph.node(node).op {
            Op::CrossEntropy(loss) if loss.reduction == Reduction::Mean => {
                self.graph.inputs(node)[1]
            }
            _ => return samples.len(),
        };
        let Op::Input(input) = &self.graph.node(labels.node).op else {
            return samples.len();
        };
        let Some(Values::Ints(values)) = self.samples.values.get(input.name.as_str()) else {
            return samples.len();
        };
        let width = values.len() / self.samples.batch;
        let values = &values[samples.start * width..samples.end * width];
        values
            .iter()
            .filter(|&&label| label != IGNORED_LABEL)
            .count()
    }

    /// Appends one segment; \[row, head, key\] becomes \[head, row, key\], keys cut to the user's.
    fn unpack_segment(
        &self,
        value: Value,
        tensor: &Tensor<f32>,
        rows: Range<usize>,
        values: &mut Vec<f32>,
    ) {
        let (Some(keys), &[_, heads, capacity]) = (self.keys(value), &*tensor.shape) else {
            return rows.for_each(|row| values.extend_from_slice(tensor.row(row)));
        };
        for head in 0..heads {
            for row in rows.clone() {
                values.extend_from_slice(&tensor.row(row)[head * capacity..head * capacity + keys]);
            }
        }
    }

    /// The user's number of keys, if the value holds attention probabilities.
    pub(crate) fn keys(&self, value: Value) -> Option<usize> {
        if self.graph.ty(value).shape.len() != 3 {
            return None;
        }
        let mut node = value.node;
        while let Op::Transfer(_) | Op::Cast(_) = self.graph.node(node).op {
            node = self.graph.inputs(node)[0].node;
        }
        let Op::Attention(_) = self.graph.node(node).op else {
            return None;
        };
        let kind = self.kind(self.graph.input_types(node)[1].rows?)?;
        self.longest(kind)
    }

    /// The user's rows of each sample, padding included, where a sample has several.
    pub(crate) fn longest(&self, kind: RowKind) -> Option<usize> {
        if kind.is_text() {
            Some(self.samples.tokens)
        } else {
            kind.is_boxes().then_some(self.samples.boxes)
        }
    }

    fn unpacked_shape(&self, value: Value, ty: &TensorType, kind: RowKind) -> Vec<usize> {
        let mut shape = vec![self.samples.batch];
        let rows = self.longest(kind);
        match (self.keys(value), &ty.shape[1..]) {
            (Some(keys), &[heads, _]) => {
                shape.push(heads);
                shape.extend(rows);
                shape.push(keys);
            }
            (_, rest) => {
                shape.extend(rows);
                shape.extend_from_slice(rest);
            }
        }
        shape
    }
}

/// The user's rows behind the rows of each space.
struct Rows {
    text: Vec<usize>,
    sample_text_user: Vec<usize>,
    image: Vec<usize>,
    sample_box_user: Vec<usize>,
    sample: Vec<usize>,
    positions: Vec<usize>,
    first_tokens: Vec<usize>,
    sample_text: Vec<usize>,
    sample_box: Vec<usize>,
}

impl Rows {
    fn new(packer: &Packer<'_>, sharing: &Sharing) -> Rows {
        let (tokens, boxes) = (packer.samples.tokens, packer.samples.boxes);
        let text_first = first_rows(&sharing.text_rows);
        let box_first = first_rows(&sharing.box_rows);
        let mut rows = Rows {
            text: segments(
                sharing.questions.iter().map(|&sample| sample * tokens),
                &sharing.text_rows,
            ),
            image: segments(
                sharing.images.iter().map(|&image| image * boxes),
                &sharing.box_rows,
            ),
            positions: segments(sharing.questions.iter().map(|_| 0), &sharing.text_rows),
            sample: sharing.samples.clone().collect(),
            sample_text_user: Vec::new(),
            sample_box_user: Vec::new(),
            first_tokens: Vec::new(),
            sample_text: Vec::new(),
            sample_box: Vec::new(),
        };
        for (index, sample) in sharing.samples.clone().enumerate() {
            let (question, image) = (sharing.question_of[index], sharing.image_of[index]);
            let (text_rows, box_rows) = (sharing.text_rows[question], sharing.box_rows[image]);
            rows.first_tokens.push(rows.sample_text.len());
            rows.sample_text
                .extend(text_first[question]..text_first[question] + text_rows);
            rows.sample_box
                .extend(box_first[image]..box_first[image] + box_rows);
            rows.sample_text_user
                .extend(sample * tokens..sample * tokens + text_rows);
            rows.sample_box_user
                .extend(sample * boxes..sample * boxes + box_rows);
        }
        rows
    }

    /// The user's rows for an input counted by `axes` in a space of that kind.
    fn of(&self, axes: Axes, kind: Option<RowKind>) -> &[usize] {
        match axes {
            Axes::Sample => &self.sample,
            Axes::Image => &self.image,
            Axes::Box => &self.sample_box_user,
            Axes::Text if kind == Some(RowKind::Text) => &self.text,
            Axes::Text => &self.sample_text_user,
        }
    }
}

/// `start..start + length` of each segment, end to end.
fn segments(starts: impl Iterator<Item = usize>, lengths: &[usize]) -> Vec<usize> {
    starts
        .zip(lengths)
        .flat_map(|(start, &length)| start..start + length)
        .collect()
}

/// Whether an input is a label, without which only losses cannot be computed.
fn is_label(name: &str) -> bool {
    let field = FIELDS.iter().find(|field| field.name == name);
    let optional = ["token_type_ids", "attention_mask", "visual_attention_mask"];
    field.is_some_and(|field| {
        matches!(
            field.content,
            Content::Index(_, _, Some(_)) | Content::Float(_, Some(_))
        ) && !optional.contains(&field.name)
    })
}

/// Whether something outside attention depends on every row: an output with one row per token or
/// box, or a loss over them.
fn needs_all_rows(graph: &Graph) -> bool {
    let segmented = |ty: &TensorType| {
        ty.rows
            .is_some_and(|space| !matches!(graph.spaces.get(space).layout, Layout::Entities))
    };
    let outputs = graph
        .outputs()
        .iter()
        .any(|output| segmented(graph.ty(output.value)));
    let losses = graph.nodes().any(|id| {
        let loss = matches!(
            graph.node(id).op,
            Op::CrossEntropy(_) | Op::Bce(_) | Op::SmoothL1(_)
        );
        loss && graph.input_types(id).iter().any(segmented)
    });
    outputs || losses
}
