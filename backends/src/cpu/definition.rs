//! Ops without a kernel: they run by their definition, on one worker.

use lxpod_ir::ops::{Eval, Op};
use lxpod_ir::{Data, Graph, NodeId, Spaces, Tensor, TensorType};

use super::exec::Machine;
use super::operand::Operand;
use super::step::{CpuStep, Source};
use super::store::Resident;

/// An op and all that its `eval` asks for beside its operands.
#[derive(Debug)]
pub(super) struct Definition {
    op: Op,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
    spaces: Spaces,
}

impl Definition {
    /// That of a node.
    pub(super) fn of(graph: &Graph, node: NodeId) -> Self {
        Definition {
            op: graph.node(node).op.clone(),
            inputs: graph.input_types(node).to_vec(),
            outputs: graph.node(node).types.to_vec(),
            spaces: graph.spaces.clone(),
        }
    }
}

impl Machine<'_> {
    /// Runs a step by the definition of its op. One worker calls this.
    ///
    /// # Errors
    /// The op rejects a value.
    pub(super) fn define(&self, step: &CpuStep, definition: &Definition) -> Result<(), String> {
        let types = definition.inputs.iter().enumerate();
        let operands = types.map(|(index, ty)| self.tensor(step, index, ty));
        let operands: Vec<Tensor<f32>> = operands.collect();
        let results = definition.op.eval(&Eval {
            inputs: &operands.iter().collect::<Vec<_>>(),
            types: &definition.inputs,
            outputs: &definition.outputs,
            extents: self.extents(),
            spaces: &definition.spaces,
        })?;
        for (index, result) in results.iter().enumerate() {
            self.keep(step, index, result);
        }
        Ok(())
    }

    fn tensor(&self, step: &CpuStep, index: usize, ty: &TensorType) -> Tensor<f32> {
        let shape = ty.shape_at(self.extents());
        if !ty.dtype.is_float() {
            return Tensor::int(shape, self.ints(step, index).to_vec());
        }
        if let Source::Resident(Resident::Panels(panels)) = &step.inputs[index] {
            let mut values = vec![0.0; panels.n() * panels.k()];
            for (row, values) in values.chunks_exact_mut(panels.k().max(1)).enumerate() {
                panels.read_row(row, 0, values);
            }
            return Tensor::real(shape, values);
        }
        let view = self.read(step, index);
        let (rows, columns) = (view.rows(), view.cols());
        let mut values = vec![0.0; rows * columns];
        for (row, values) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            view.load_row(self.kernels, row, 0..columns, values);
        }
        Tensor::real(shape, values)
    }

    fn keep(&self, step: &CpuStep, index: usize, result: &Tensor<f32>) {
        let operand: &Operand = &step.outputs[index];
        match &result.data {
            Data::Real(values) => {
                let mut out = self.write(step, index);
                let columns = out.cols().max(1);
                for (row, values) in values.chunks_exact(columns).enumerate() {
                    out.store_row(self.kernels, row, 0, values);
                }
            }
            Data::Int(values) => {
                // SAFETY: one worker runs the step, and its operands were copied.
                let out = unsafe { operand.ints_mut(self.arenas, self.moment()) };
                out.copy_from_slice(values);
            }
        }
    }
}
