//! What lasts from step to step: parameters and states in the arenas of their tiles.

use lxpod_ir::ops::Op;
use lxpod_ir::{Binding, DType, Shape, Tensor};
use lxpod_passes::plan::{Buffer, Category};

use super::Cpu;
use super::kernels::{View, ViewMut};
use super::store;
use crate::{BackendError, Fetch};

/// What a state that holds a parameter in full precision is called before the binding's text.
const MASTER: &str = "master:";

/// A parameter or state in the arenas.
struct Persistent<'a> {
    name: String,
    buffer: &'a Buffer,
    tile: usize,
    dtype: DType,
    shape: Shape,
    /// What it is at first; zeros if nothing.
    binding: Option<Binding>,
}

impl Cpu {
    /// Every parameter and every state that lasts; of copies on several stages each.
    fn persistents(&self) -> Vec<Persistent<'_>> {
        let mut found = Vec::new();
        for (tile, planned) in self.plan.tiles.iter().enumerate() {
            let lasting = [Category::Weights, Category::Optimizer];
            let buffers = planned.buffers.iter();
            for buffer in buffers.filter(|buffer| lasting.contains(&buffer.category)) {
                found.extend(self.persistent_in(tile, buffer));
            }
        }
        found
    }

    fn persistent_in<'a>(&'a self, tile: usize, buffer: &'a Buffer) -> Option<Persistent<'a>> {
        let graph = match (&self.plan.update, buffer.update) {
            (Some(update), true) => update,
            _ => &self.plan.graph,
        };
        let node = graph.node(graph.at(buffer.node)?);
        let ty = &node.types[0];
        let (name, binding) = match &node.op {
            Op::Param(param) => (format!("param:{}", param.value), Some(param.value.clone())),
            Op::State(state) => {
                let of = state
                    .name
                    .strip_prefix(MASTER)
                    .map(|text| self.binding(text));
                (format!("state:{}", state.name), of.flatten())
            }
            _ => return None,
        };
        Some(Persistent {
            name,
            buffer,
            tile,
            dtype: ty.dtype,
            shape: ty.shape.clone(),
            binding,
        })
    }

    /// The parameter's binding that reads so.
    fn binding(&self, text: &str) -> Option<Binding> {
        let graph = &self.plan.graph;
        graph.nodes().find_map(|id| match &graph.node(id).op {
            Op::Param(param) if param.value.to_string() == text => Some(param.value.clone()),
            _ => None,
        })
    }

    /// Gives parameters, and states that are parameters in full precision, their first values.
    pub(super) fn load_persistent(
        &mut self,
        rows: &(dyn Fn(&str) -> usize + Sync),
        fetch: Fetch<'_>,
    ) -> Result<(), BackendError> {
        for entry in self.persistents() {
            let Some(binding) = &entry.binding else {
                continue;
            };
            let width = entry.shape.row_elements();
            let mut fill = |first: usize, values: &[f32]| {
                (0..self.plan.replicas)
                    .for_each(|replica| self.write(&entry, replica, first, values));
            };
            store::read(
                binding,
                0..entry.shape.rows(),
                width,
                rows,
                fetch,
                &mut fill,
            )?;
        }
        Ok(())
    }

    fn write(&self, entry: &Persistent<'_>, replica: usize, first: usize, values: &[f32]) {
        let arena = &self.arenas[replica][entry.tile];
        let extent = [entry.shape.rows(), entry.shape.row_elements()];
        let buffer = entry.buffer;
        // SAFETY: no run is in progress, so nobody else accesses the arena.
        let mut out = unsafe {
            let start = arena.at(buffer.offset, buffer.offset + buffer.bytes);
            ViewMut::from_raw_parts(start, entry.dtype, extent, extent[1])
        };
        for (row, values) in (first..).zip(values.chunks_exact(extent[1].max(1))) {
            out.store_row(self.kernels, row, 0, values);
        }
    }

    /// The persistent tensors, each once, widened to f32.
    pub(super) fn read_persistent(&self) -> Vec<(String, Tensor<f32>)> {
        let mut found: Vec<(String, Tensor<f32>)> = Vec::new();
        for entry in self.persistents() {
            if found.iter().any(|(name, _)| *name == entry.name) {
                continue;
            }
            let extent = [entry.shape.rows(), entry.shape.row_elements()];
            let buffer = entry.buffer;
            // SAFETY: no run is in progress, so nobody writes the arena.
            let view = unsafe {
                let arena = &self.arenas[0][entry.tile];
                let start = arena.at(buffer.offset, buffer.offset + buffer.bytes);
                View::from_raw_parts(start, entry.dtype, extent, extent[1])
            };
            let mut values = vec![0.0; extent[0] * extent[1]];
            for (row, values) in values.chunks_exact_mut(extent[1].max(1)).enumerate() {
                view.load_row(self.kernels, row, 0..extent[1], values);
            }
            found.push((entry.name, Tensor::real(entry.shape, values)));
        }
        found
    }

    /// Puts a persistent tensor back, on every stage and replica that has it.
    pub(super) fn write_persistent(
        &mut self,
        name: &str,
        tensor: &Tensor<f32>,
    ) -> Result<(), BackendError> {
        let entries = self.persistents();
        let entries: Vec<_> = entries.iter().filter(|entry| entry.name == name).collect();
        if entries.is_empty() {
            return Err(BackendError::Data(format!("the plan has no `{name}`")));
        }
        for entry in entries {
            if entry.shape != tensor.shape {
                let (shape, given) = (&entry.shape, &tensor.shape);
                let message = format!("`{name}` is {given}, the plan's is {shape}");
                return Err(BackendError::Data(message));
            }
            let replicas = 0..self.plan.replicas;
            replicas.for_each(|replica| self.write(entry, replica, 0, tensor.reals()));
        }
        Ok(())
    }
}
