//! What lasts from step to step: parameters and states in the arenas of their tiles.

use std::ops::Range;

use lxpod_ir::ops::Op;
use lxpod_ir::{Binding, DType, Shape, Tensor, sharding};
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
    /// How many replicas share it out; 1 if each has all of it.
    shards: usize,
    /// What it is at first; zeros if nothing.
    binding: Option<Binding>,
}

impl Persistent<'_> {
    /// The elements that a replica has.
    fn share(&self, replica: usize) -> Range<usize> {
        let elements = self.shape.elements();
        match self.shards {
            1 => 0..elements,
            shards => sharding::shard(elements, shards, replica),
        }
    }
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
        let (name, shards, binding) = match &node.op {
            Op::Param(param) => {
                let binding = param.value.clone();
                (format!("param:{binding}"), 1, Some(binding))
            }
            Op::State(state) => {
                let of = state
                    .name
                    .strip_prefix(MASTER)
                    .map(|text| self.binding(text));
                let name = format!("state:{}", state.name);
                (name, state.shards, of.flatten())
            }
            _ => return None,
        };
        Some(Persistent {
            name,
            buffer,
            tile,
            dtype: ty.dtype,
            shape: ty.shape.clone(),
            shards,
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

    /// Writes what a replica has of these values, the first of which begins row `first`.
    fn write(&self, entry: &Persistent<'_>, replica: usize, first: usize, values: &[f32]) {
        let first = first * entry.shape.row_elements();
        let share = entry.share(replica);
        let inside = |at: usize| at.clamp(share.start, share.end);
        let (start, end) = (inside(first), inside(first + values.len()));
        if start == end {
            return;
        }
        let (place, length) = (self.place(entry, replica), share.len());
        // SAFETY: no run is in progress, so nobody else accesses the arena.
        let mut out = unsafe { ViewMut::from_raw_parts(place, entry.dtype, [1, length], length) };
        let values = &values[start - first..end - first];
        out.store_row(self.kernels, 0, start - share.start, values);
    }

    /// Where a replica has its share.
    fn place(&self, entry: &Persistent<'_>, replica: usize) -> *mut u8 {
        let buffer = entry.buffer;
        // SAFETY: the arena checks the range.
        unsafe { self.arenas[replica][entry.tile].at(buffer.offset, buffer.offset + buffer.bytes) }
    }

    /// The persistent tensors, each once, widened to f32.
    pub(super) fn read_persistent(&self) -> Vec<(String, Tensor<f32>)> {
        let mut found: Vec<(String, Tensor<f32>)> = Vec::new();
        for entry in self.persistents() {
            if found.iter().any(|(name, _)| *name == entry.name) {
                continue;
            }
            let mut values = vec![0.0; entry.shape.elements()];
            for replica in 0..entry.shards {
                let (share, place) = (entry.share(replica), self.place(&entry, replica));
                let length = share.len();
                // SAFETY: no run is in progress, so nobody writes the arena.
                let view = unsafe { View::from_raw_parts(place, entry.dtype, [1, length], length) };
                view.load_row(self.kernels, 0, 0..length, &mut values[share]);
            }
            found.push((entry.name, Tensor::real(entry.shape, values)));
        }
        found
    }

    /// Puts a persistent tensor back, on every stage and replica that has it. Returns where that is, as (tile, tile address).
    pub(super) fn write_persistent(
        &mut self,
        name: &str,
        tensor: &Tensor<f32>,
    ) -> Result<Vec<(usize, u64)>, BackendError> {
        let entries = self.persistents();
        let entries: Vec<_> = entries.iter().filter(|entry| entry.name == name).collect();
        if entries.is_empty() {
            return Err(BackendError::Data(format!("the plan has no `{name}`")));
        }
        for entry in &entries {
            if entry.shape != tensor.shape {
                let (shape, given) = (&entry.shape, &tensor.shape);
                let message = format!("`{name}` is {given}, the plan's is {shape}");
                return Err(BackendError::Data(message));
            }
            let replicas = 0..self.plan.replicas;
            replicas.for_each(|replica| self.write(entry, replica, 0, tensor.reals()));
        }
        let place = |entry: &&Persistent<'_>| (entry.tile, entry.buffer.offset);
        Ok(entries.iter().map(place).collect())
    }
}
