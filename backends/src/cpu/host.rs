//! What the host writes before a program runs, and reads after it.

use lxpod_ir::Value;
use lxpod_ir::ops::Op;
use lxpod_passes::plan::{Buffer, Place};
use lxpod_passes::schedule::Phase;

use super::operand::Operand;
use super::step::{CpuStep, Resolver};

/// A graph input to write, or a graph output to read, on one stage.
#[derive(Clone, Debug)]
pub(super) struct HostValue {
    /// The name of an input; the index of an output.
    pub name: String,
    /// Which output of the graph it is.
    pub index: usize,
    /// Where it lies.
    pub operand: Operand,
}

impl Resolver<'_> {
    /// The inputs that the host fills before the program runs: those that no program of the stage
    /// before it in the step reads.
    pub(super) fn loads(&self) -> Vec<HostValue> {
        let here = self.graph.nodes().filter(|&id| {
            let stage = self.graph.node(id).stage;
            stage == Some(self.program.stage as u32)
        });
        let mut loads = Vec::new();
        for id in here {
            let value = self.graph.value(id);
            let Op::Input(input) = &self.graph.node(id).op else {
                continue;
            };
            if self.first_reader(value) != (self.program.phase, self.program.round) {
                continue;
            }
            let Some(place) = self.input_place(value) else {
                continue;
            };
            let operand = self.operand(value, &place, self.tile);
            loads.push(HostValue {
                name: input.name.clone(),
                index: 0,
                operand,
            });
        }
        loads
    }

    /// The phase and round of the first program that reads an input of its stage.
    fn first_reader(&self, value: Value) -> (Phase, usize) {
        let mut readers = Vec::new();
        self.readers(value, &mut readers);
        let update = self.program.phase == Phase::Update;
        let none = if update {
            Phase::Update
        } else {
            Phase::Forward
        };
        readers.into_iter().min().unwrap_or((none, 0))
    }

    fn readers(&self, value: Value, found: &mut Vec<(Phase, usize)>) {
        for user in self.graph.users(value) {
            if self.graph.node(user.node).op.is_view() {
                self.readers(self.graph.value(user.node), found);
                continue;
            }
            let programs = self.plan.tiles[self.tile].programs.iter();
            let reading = programs.filter(|program| {
                let same_graph =
                    (program.phase == Phase::Update) == (self.program.phase == Phase::Update);
                same_graph
                    && program
                        .steps
                        .iter()
                        .any(|step| step.node == user.node.index())
            });
            found.extend(reading.map(|program| (program.phase, program.round)));
        }
    }

    /// Where an input lies.
    fn input_place(&self, value: Value) -> Option<Place> {
        let update = self.program.phase == Phase::Update;
        let is_it = |buffer: &Buffer| buffer.node == value.node.index() && buffer.update == update;
        let buffer = self.plan.tiles[self.tile].buffers.iter().position(is_it)?;
        Some(Place {
            buffer,
            column: 0,
            stride: self.graph.ty(value).shape.row_elements(),
            after: Vec::new(),
        })
    }

    pub(super) fn stores(&self, steps: &[CpuStep]) -> Vec<HostValue> {
        let mut stores = Vec::new();
        let outputs = self.graph().outputs().iter().enumerate();
        for (index, output) in outputs.filter(|(_, output)| !output.is_stored()) {
            let root = self.root(output.value);
            let step = steps.iter().position(|step| step.node == root.node);
            let Some(step) =
                step.filter(|_| !matches!(self.graph().node(root.node).op, Op::Transfer(_)))
            else {
                continue;
            };
            let Some(place) = self.place_of(output.value, step) else {
                continue;
            };
            let operand = self.operand(output.value, &place, self.tile);
            stores.push(HostValue {
                name: output.name.clone(),
                index,
                operand,
            });
        }
        stores
    }

    /// Where an output lies: its root's place, and the columns of the slices above it.
    fn place_of(&self, value: Value, step: usize) -> Option<Place> {
        if let Op::Slice(slice) = &self.graph().node(value.node).op {
            let mut place = self.place_of(self.graph().inputs(value.node)[0], step)?;
            place.column += slice.start;
            return Some(place);
        }
        if let Op::Part(part) = &self.graph().node(value.node).op {
            let operand = self.graph().inputs(value.node)[0];
            let mut place = self.place_of(operand, step)?;
            if let Some(lxpod_ir::Layout::Union(parts)) = self
                .graph()
                .ty(operand)
                .rows
                .map(|space| &self.graph().spaces.get(space).layout)
            {
                place.after.extend_from_slice(&parts[..part.index]);
            }
            return Some(place);
        }
        self.program.steps[step]
            .outputs
            .get(usize::from(value.output))
            .cloned()
    }
}
