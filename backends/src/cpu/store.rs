//! Resident parameters, as the kernels want them: packed panels, tables, vectors.
//!
//! Bindings are evaluated tensor by tensor, in bounded pieces, straight into place. One binding in
//! one form is stored once, however many stages and replicas of the plan use it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::zeroed_vec;
use half::{bf16, f16};
use lxpod_ir::binding::Piece;
use lxpod_ir::ops::Op;
use lxpod_ir::{Binding, DType, Graph, NodeId, TensorType};
use rayon::prelude::*;

use super::kernels::{Format, Panels, View, huge_pages};
use crate::{BackendError, Fetch};

/// Elements read at once.
const CHUNK: usize = 1 << 18;

/// A parameter in the form its users want.
#[derive(Clone)]
pub(super) enum Resident {
    /// The weight of a `linear`.
    Panels(Arc<Panels>),
    /// A vector that epilogues and norms read as f32, rounded to the parameter's dtype.
    Vector(Arc<Vec<f32>>),
    /// A row-major matrix in the parameter's dtype.
    Table(Arc<Table>),
}

impl Resident {
    /// Bytes of its elements stored as `dtype`, without padding.
    pub(super) fn logical_bytes(&self, dtype: DType) -> u64 {
        let elements = match self {
            Resident::Panels(panels) => panels.n() * panels.k(),
            Resident::Vector(values) => values.len(),
            Resident::Table(table) => table.rows * table.columns,
        };
        (elements * dtype.size()) as u64
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Resident::Panels(panels) => panels.bytes() as u64,
            Resident::Vector(values) => size_of_val(values.as_slice()) as u64,
            Resident::Table(table) => size_of_val(table.lines.as_slice()) as u64,
        }
    }
}

/// A row-major matrix of floats.
pub(super) struct Table {
    lines: Vec<[u64; 8]>,
    dtype: DType,
    rows: usize,
    columns: usize,
}

impl Table {
    fn new(dtype: DType, rows: usize, columns: usize) -> Self {
        let lines = (rows * columns * dtype.size()).div_ceil(64);
        Table {
            lines: lines_of_zeros(lines),
            dtype,
            rows,
            columns,
        }
    }

    fn fill(&mut self, first: usize, values: &[f32]) {
        let range = first * self.columns..first * self.columns + values.len();
        match self.dtype {
            DType::F16 => store(
                &mut bytemuck::cast_slice_mut(&mut self.lines)[range],
                values,
                f16::from_f32,
            ),
            DType::BF16 => store(
                &mut bytemuck::cast_slice_mut(&mut self.lines)[range],
                values,
                bf16::from_f32,
            ),
            DType::F32 | DType::I32 | DType::Bool => {
                bytemuck::cast_slice_mut(&mut self.lines)[range].copy_from_slice(values);
            }
        }
    }

    /// The matrix.
    pub(super) fn view(&self) -> View<'_> {
        let (rows, columns) = (self.rows, self.columns);
        match self.dtype {
            DType::F16 => View::new::<f16>(bytemuck::cast_slice(&self.lines), rows, columns),
            DType::BF16 => View::new::<bf16>(bytemuck::cast_slice(&self.lines), rows, columns),
            DType::F32 | DType::I32 | DType::Bool => {
                View::new::<f32>(bytemuck::cast_slice(&self.lines), rows, columns)
            }
        }
    }
}

/// Memory in large pages, since tables and panels are most of it.
fn lines_of_zeros(count: usize) -> Vec<[u64; 8]> {
    let lines = zeroed_vec(count);
    huge_pages(&lines);
    lines
}

fn store<T>(out: &mut [T], values: &[f32], round: impl Fn(f32) -> T) {
    out.iter_mut()
        .zip(values)
        .for_each(|(out, &value)| *out = round(value));
}

/// How a user wants a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// See [`Resident::Panels`].
    Panels {
        /// Whether f16 are in fixed point, for they never change.
        fixed: bool,
    },
    /// See [`Resident::Vector`].
    Vector,
    /// See [`Resident::Table`].
    Table,
}

impl Form {
    /// The form in which operand `input` of `op` wants a parameter, in a graph with gradients or without.
    pub(super) fn of(op: &Op, input: usize, gradients: bool) -> Form {
        match (op, input) {
            (Op::Linear(_), 1) => Form::Panels { fixed: !gradients },
            (Op::Linear(_), 2)
            | (Op::LayerNorm(_), 1 | 2)
            | (Op::Attention(_), 3)
            | (Op::CrossEntropy(_) | Op::SmoothL1(_) | Op::LayerNormGrad(_), 2)
            | (Op::CrossEntropyGrad(_) | Op::SmoothL1Grad(_), 3)
            | (Op::AttentionGrad(_), 4) => Form::Vector,
            _ => Form::Table,
        }
    }
}

/// Whether a graph has a backward half.
pub(super) fn has_gradients(graph: &Graph) -> bool {
    graph.nodes().any(|id| graph.node(id).forward.is_some())
}

/// A binding, and what it is stored as.
type Key = (String, TensorType, Form);

/// The packed parameters of one checkpoint, for all plans that run with it: what two plans want in the same
/// form is read and held once. Cloning shares.
#[derive(Clone, Default)]
pub struct PackedWeights(Arc<Mutex<HashMap<Key, Resident>>>);

impl PackedWeights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Resident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every parameter a graph's steps read.
pub(super) struct Store {
    entries: HashMap<Key, Resident>,
}

impl Store {
    /// Every parameter of the graph in the forms that `wanted` names: those in `packed`, and the others
    /// read and put there. `rows` gives the rows of each checkpoint tensor.
    ///
    /// # Errors
    /// The source fails.
    pub(super) fn load(
        graph: &Graph,
        wanted: &dyn Fn(Form) -> bool,
        rows: &(dyn Fn(&str) -> usize + Sync),
        fetch: Fetch<'_>,
        packed: &PackedWeights,
    ) -> Result<Self, BackendError> {
        let mut entries = HashMap::new();
        let mut jobs: HashMap<Key, &Binding> = HashMap::new();
        let known = packed.lock().clone();
        let gradients = has_gradients(graph);
        for id in graph.nodes() {
            for (input, value) in graph.inputs(id).into_iter().enumerate() {
                if let Op::Param(param) = &graph.node(value.node).op {
                    let form = Form::of(&graph.node(id).op, input, gradients);
                    if !wanted(form) {
                        continue;
                    }
                    let key = key(graph, value.node, &param.value, form);
                    match known.get(&key) {
                        Some(resident) => {
                            entries.insert(key, resident.clone());
                        }
                        None => {
                            jobs.insert(key, &param.value);
                        }
                    }
                }
            }
        }
        let mut jobs: Vec<_> = jobs.into_iter().collect();
        jobs.sort_by_key(|((_, ty, _), _)| std::cmp::Reverse(ty.bytes()));
        let load = |(key, binding): (Key, &Binding)| {
            let (_, ty, form) = &key;
            let resident = build(ty, *form, &mut |range, sink| {
                read(binding, range, ty.shape.row_elements(), rows, fetch, sink)
            })?;
            Ok((key, resident))
        };
        let loaded: Result<Vec<_>, BackendError> =
            jobs.into_par_iter().with_max_len(1).map(load).collect();
        let loaded = loaded?;
        packed.lock().extend(loaded.iter().cloned());
        entries.extend(loaded);
        Ok(Store { entries })
    }

    /// The parameter `node`, in that form.
    pub(super) fn get(
        &self,
        graph: &Graph,
        node: NodeId,
        form: Form,
    ) -> Result<Resident, BackendError> {
        let found = match &graph.node(node).op {
            Op::Param(param) => self
                .entries
                .get(&key(graph, node, &param.value, form))
                .cloned(),
            Op::Constant(constant) => {
                Some(literal(&constant.data, &graph.node(node).types[0], form)?)
            }
            _ => None,
        };
        found.ok_or_else(|| {
            BackendError::Internal("a step reads a parameter that was not loaded".to_owned())
        })
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.values().map(Resident::bytes).sum()
    }
}

fn key(graph: &Graph, node: NodeId, binding: &Binding, form: Form) -> Key {
    (binding.to_string(), graph.node(node).types[0].clone(), form)
}

/// Takes rows of f32 values, from the given row on.
pub(super) type Sink<'a> = &'a mut dyn FnMut(usize, &[f32]);
/// Delivers a range of rows to a sink.
type Deliver<'a> = &'a mut dyn FnMut(Range<usize>, Sink<'_>) -> Result<(), BackendError>;

/// Makes the resident form of a value whose rows `read` delivers.
fn build(ty: &TensorType, form: Form, read: Deliver<'_>) -> Result<Resident, BackendError> {
    let (rows, columns) = (ty.shape.rows(), ty.shape.row_elements());
    Ok(match form {
        Form::Panels { fixed } => {
            let format = match ty.dtype {
                DType::F16 if fixed => Format::Fixed,
                DType::F16 => Format::Half,
                _ => Format::Single,
            };
            let mut panels = Panels::new(rows, columns, format);
            read(0..rows, &mut |first, values| {
                panels.fill_rows(first, values)
            })?;
            Resident::Panels(Arc::new(panels))
        }
        Form::Vector => {
            let mut vector = vec![0.0; rows];
            read(0..rows, &mut |first, values| {
                vector[first..first + values.len()].copy_from_slice(values)
            })?;
            let dtype = ty.dtype;
            vector
                .iter_mut()
                .for_each(|value| *value = lxpod_ir::Scalar::round_to(*value, dtype));
            Resident::Vector(Arc::new(vector))
        }
        Form::Table => {
            let mut table = Table::new(ty.dtype, rows, columns);
            read(0..rows, &mut |first, values| table.fill(first, values))?;
            Resident::Table(Arc::new(table))
        }
    })
}

fn literal(data: &[f64], ty: &TensorType, form: Form) -> Result<Resident, BackendError> {
    if !ty.dtype.is_float() {
        return Err(BackendError::Unsupported(
            "an integer constant as an operand of a step".to_owned(),
        ));
    }
    let values: Vec<f32> = data.iter().map(|&value| value as f32).collect();
    build(ty, form, &mut |_, sink| {
        sink(0, &values);
        Ok(())
    })
}

/// Delivers rows of a binding to `sink`, piece by piece.
pub(super) fn read(
    binding: &Binding,
    range: Range<usize>,
    width: usize,
    rows: &(dyn Fn(&str) -> usize + Sync),
    fetch: Fetch<'_>,
    sink: Sink<'_>,
) -> Result<(), BackendError> {
    // Whole panels at a time pack fastest.
    let step = (CHUNK / width.max(1) / 16 * 16).max(1);
    let mut buffer = Vec::new();
    let mut row = range.start;
    for Piece {
        tensor,
        start,
        end,
        factor,
    } in binding.pieces(range.start, range.end, &|name| rows(name))
    {
        for first in (start..end).step_by(step) {
            let last = (first + step).min(end);
            buffer.resize((last - first) * width, 0.0);
            fetch(tensor, first..last, &mut buffer)?;
            if factor != 1.0 {
                buffer.iter_mut().for_each(|value| *value *= factor);
            }
            sink(row, &buffer);
            row += last - first;
        }
    }
    Ok(())
}
