//! Sums of squares that products leave for `sum_squares`, so that gradients need not be read for it.
//!
//! The kernel that finishes a gradient in a step's only visit sums the squares of its results on their way to the memory. That sum is
//! in the order in which workers claimed units, the definition's in another; both are in f64, and the result is an f32. It is taken
//! from that sum where no order rounds to another f32, which is nearly always; else the gradient is read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lxpod_ir::ops::SumSquares;

use super::exec_grad::Gradient;
use super::operand::{Operand, Role};
use super::step::{CpuProgram, CpuStep, Kernel, Source};

/// A sum of values that are not negative: each element takes part in one addition for eight elements, at most, and in so many more.
const ADDITIONS: (usize, usize) = (8, 2 * SumSquares::BLOCK);

/// What workers leave of each gradient.
pub(super) struct Squares {
    workers: usize,
    /// The bits of an f64 for each gradient and worker: NaN where there is no sum.
    sums: Box<[AtomicU64]>,
}

impl Squares {
    /// Of the gradients that one step writes, a `weight_grad`, unless several replicas add theirs up. That step and those of the update
    /// that read the gradient first are told its number.
    pub(super) fn link(programs: &mut [Vec<CpuProgram>], replicas: usize, workers: usize) -> Self {
        let gradients = match replicas {
            1 => gradients(programs),
            _ => BTreeMap::new(),
        };
        let all = programs.iter_mut().flatten();
        for step in all.flat_map(|program| &mut program.steps) {
            let gradient = match (&step.kernel, step.inputs.first()) {
                (Kernel::Gradient(Gradient::Weight), _) => step.outputs.first(),
                (Kernel::Updating(_), Some(Source::Arena(gradient))) => Some(gradient),
                _ => None,
            };
            let number = gradient.and_then(|gradient| gradients.get(&place(gradient)));
            step.gradient = number.copied();
        }
        let none = |_| AtomicU64::new(f64::NAN.to_bits());
        Squares {
            workers,
            sums: (0..gradients.len() * workers).map(none).collect(),
        }
    }

    /// Takes back all sums. No step may run.
    pub(super) fn forget(&self) {
        let sums = self.sums.iter();
        sums.for_each(|sum| sum.store(f64::NAN.to_bits(), Ordering::Relaxed));
    }

    /// Leaves the sum of what a worker did of a gradient, if it has one.
    pub(super) fn leave(&self, gradient: usize, worker: usize, sum: Option<f64>) {
        let bits = sum.unwrap_or(f64::NAN).to_bits();
        self.sums[gradient * self.workers + worker].store(bits, Ordering::Relaxed);
    }

    /// The sum of a gradient of so many elements, as any order of additions rounds it to f32; none if orders differ, or it was not left.
    /// Workers met since it was.
    pub(super) fn of(&self, gradient: usize, elements: usize) -> Option<f32> {
        let own = &self.sums[gradient * self.workers..][..self.workers];
        let left = own
            .iter()
            .map(|sum| f64::from_bits(sum.load(Ordering::Relaxed)));
        rounded(left.sum(), elements)
    }
}

/// What all sums in f64 of so many squares, of which this is one, are as f32; none if that is not known.
fn rounded(sum: f64, elements: usize) -> Option<f32> {
    let additions = elements / ADDITIONS.0 + ADDITIONS.1;
    // Each of two sums is off by half an epsilon of it for each addition; as much again for what that neglects.
    let slack = 2.0 * additions as f64 * f64::EPSILON * sum;
    let [low, high] = [sum - slack, sum + slack].map(|bound| bound as f32);
    (low == high).then_some(low)
}

/// The accumulators that one step writes, a `weight_grad`, with a number for each.
fn gradients(programs: &[Vec<CpuProgram>]) -> BTreeMap<(usize, u64), usize> {
    let mut writers: BTreeMap<(usize, u64), Vec<&CpuStep>> = BTreeMap::new();
    let all = programs.iter().flatten();
    for step in all.flat_map(|program| &program.steps) {
        for output in step
            .outputs
            .iter()
            .filter(|output| output.role == Role::Accumulator)
        {
            writers.entry(place(output)).or_default().push(step);
        }
    }
    let is_product = |step: &CpuStep| matches!(step.kernel, Kernel::Gradient(Gradient::Weight));
    let alone = |steps: &[&CpuStep]| matches!(steps, [step] if is_product(step));
    let gradients = writers.iter().filter(|(_, steps)| alone(steps));
    gradients
        .enumerate()
        .map(|(number, (&place, _))| (place, number))
        .collect()
}

fn place(operand: &Operand) -> (usize, u64) {
    (operand.tile, operand.offset)
}

#[cfg(test)]
mod tests {
    use lxpod_ir::ops::State;
    use lxpod_ir::{DType, Graph, Spaces, TensorType};
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::exec_update::Updating;
    use crate::cpu::members::Turns;

    proptest! {
        #[test]
        fn what_is_known_of_a_sum_is_what_the_definition_gives(
            values in prop::collection::vec(-2.0_f32..2.0, 0..20_000), exponent in -30..30_i32, workers in 1..5_usize, seed: u64,
        ) {
            let scale = 2.0_f32.powi(exponent);
            let values: Vec<f32> = values.into_iter().map(|value| value * scale).collect();
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by_key(|&index| (index as u64).wrapping_mul(seed | 1));
            let none = |_| AtomicU64::new(f64::NAN.to_bits());
            let squares = Squares { workers, sums: (0..2 * workers).map(none).collect() };
            for worker in 0..workers {
                prop_assert_eq!(squares.of(1, values.len()), None);
                let own = order.iter().skip(worker).step_by(workers);
                let sum = own.map(|&index| f64::from(values[index]).powi(2)).sum();
                squares.leave(1, worker, Some(sum));
            }
            let known = squares.of(1, values.len());
            prop_assert!(known.is_none_or(|known| known == SumSquares::of(&values) as f32));
            squares.leave(1, 0, None);
            prop_assert_eq!(squares.of(1, values.len()), None);
            prop_assert_eq!(squares.of(0, values.len()), None);
        }
    }

    /// An accumulator at that address.
    fn accumulator(offset: u64) -> Operand {
        Operand {
            tile: 0,
            offset,
            end: offset + 16,
            slots: (1, 16),
            buffer: 0,
            role: Role::Accumulator,
            dtype: DType::F32,
            rows: None,
            capacity: 4,
            columns: 1,
            column: 0,
            stride: 1,
            after: Vec::new(),
            copy: 0,
        }
    }

    #[test]
    fn gradients_of_one_product_are_linked() {
        let mut graph = Graph::new("", Spaces::default());
        let state = State {
            name: "x".to_owned(),
            reset: false,
            shards: 1,
        };
        let scope = "".into();
        let ty = TensorType::fixed(DType::F32, [4]);
        let x = graph.add(state.into(), &[], &[ty], &scope).expect("x");
        let operands = [graph.value(x)];
        let node = graph.add(SumSquares {}.into(), &operands, &[], &scope);
        let node = node.expect("a sum");
        let sum = Updating::of(&graph, node).expect("a step of the update");
        let step = |kernel: Kernel, inputs: &[u64], outputs: &[u64]| CpuStep {
            node,
            kernel,
            turns: Turns::Together,
            inputs: inputs
                .iter()
                .map(|&at| Source::Arena(accumulator(at)))
                .collect(),
            parameters: Vec::new(),
            outputs: outputs.iter().map(|&at| accumulator(at)).collect(),
            reset: None,
            shards: 1,
            packs: None,
            meets: true,
            gradient: None,
        };
        let product = |to| step(Kernel::Gradient(Gradient::Weight), &[], &[to]);
        let sum = |of| step(Kernel::Updating(sum.clone()), &[of], &[]);
        let program = |steps| CpuProgram {
            first: 0,
            loads: Vec::new(),
            steps,
            stores: Vec::new(),
        };
        // The first has another product as well, the second nothing else, the third is no product's.
        let micro = vec![
            product(0),
            product(64),
            product(0),
            step(Kernel::Add, &[], &[128]),
        ];
        let mut programs = vec![vec![
            program(micro),
            program(vec![sum(0), sum(64), sum(128)]),
        ]];
        for (replicas, linked) in [(1, Some(0)), (2, None)] {
            Squares::link(&mut programs, replicas, 2);
            let steps = programs[0].iter().flat_map(|program| &program.steps);
            let numbers: Vec<Option<usize>> = steps.map(|step| step.gradient).collect();
            assert_eq!(numbers, [None, linked, None, None, None, linked, None]);
        }
    }

    #[test]
    fn what_all_workers_left_is_known() {
        let sums = (0..6).map(|_| AtomicU64::default()).collect();
        let squares = Squares { workers: 3, sums };
        for (worker, sum) in [1.0, 2.0, 4.5].into_iter().enumerate() {
            squares.leave(1, worker, Some(sum));
        }
        assert_eq!(squares.of(1, 1_000_000), Some(7.5));
        squares.forget();
        assert_eq!(squares.of(1, 1_000_000), None);
    }

    #[test]
    fn sums_between_two_floats_are_not_known() {
        let half = f64::from(f32::EPSILON) / 2.0;
        assert_eq!(rounded(1.0 + half, 1), None);
        assert_eq!(rounded(1.0 + half * (1.0 + 1e-11), 1_000_000), None);
        assert_eq!(rounded(1.0 + half * 0.99, 1_000_000), Some(1.0));
        assert_eq!(
            rounded(1.0 + half * 1.01, 1_000_000),
            Some(1.0 + f32::EPSILON)
        );
        assert_eq!(rounded(0.0, 7), Some(0.0));
        assert_eq!(rounded(1e39, 7), Some(f32::INFINITY));
        assert_eq!(rounded(f64::NAN, 7), None);
        assert_eq!(rounded(f64::INFINITY, 7), None);
    }
}
