//! Gradients against central differences, in f64.

use std::collections::BTreeMap;

use lxpod_ir::ops::Op;
use lxpod_ir::random::{Feeds, Rng, random_extents, random_feeds};
use lxpod_ir::{
    Extents, Graph, LOSS, Scalar, Shape, Spaces, Tensor, TensorType, gradients_by_tensor, interpret,
};
use lxpod_passes::{Manager, Options, PassError, find};

/// The graph with its gradients.
pub(crate) fn differentiated(graph: &Graph) -> Result<Graph, PassError> {
    let mut after = graph.clone();
    let autodiff = find("autodiff").unwrap();
    Manager::new(Options::default()).run(&[autodiff], &mut after)?;
    Ok(after)
}

/// Values for a graph, off the grid on which functions have corners, and how far one element of one
/// checkpoint tensor or a whole tensor is moved.
pub(crate) struct Point {
    pub(crate) extents: Extents,
    feeds: Feeds,
    seed: u64,
    /// Of tensors that a parameter is as a whole.
    shapes: BTreeMap<String, Shape>,
}

/// A change of one tensor: by element.
pub(crate) type Move<'a> = (&'a str, &'a dyn Fn(usize) -> f64);

impl Point {
    pub(crate) fn new(graph: &Graph, seed: u64) -> Self {
        let extents = random_extents(&graph.spaces, seed);
        let feeds = random_feeds(graph, &extents, seed);
        let whole = graph.nodes().filter_map(|id| match &graph.node(id).op {
            Op::Param(param) => {
                let shape = graph.node(id).types[0].shape.clone();
                Some((param.value.to_string(), shape))
            }
            _ => None,
        });
        Point {
            shapes: whole.collect(),
            extents,
            feeds,
            seed,
        }
    }

    fn jitter(&self, name: &str, at: usize) -> f64 {
        let mut rng = Rng::keyed(self.seed, name).at(at);
        (rng.bits() >> 11) as f64 / (1u64 << 53) as f64 * 0.01 + 0.001
    }

    fn element(&self, tensor: &str, at: usize, moved: Option<Move<'_>>) -> f64 {
        let base = Rng::keyed(self.seed ^ 1, tensor).at(at).unit();
        let by = moved.filter(|(name, _)| *name == tensor);
        base + self.jitter(tensor, at) + by.map_or(0.0, |(_, by)| by(at))
    }

    fn feed<S: Scalar>(
        &self,
        spaces: &Spaces,
        op: &Op,
        ty: &TensorType,
        moved: Option<Move<'_>>,
    ) -> Result<Tensor<S>, String> {
        let Op::Param(param) = op else {
            return self.input(spaces, op, ty);
        };
        let width = ty.shape.row_elements();
        let rows = |name: &str| self.shapes.get(name).map_or(0, |shape| shape.rows());
        let mut values = Vec::with_capacity(ty.shape.elements());
        for piece in param.value.pieces(0, ty.shape.rows(), &rows) {
            let factor = S::from_f64(piece.factor.into());
            let elements = piece.start * width..piece.end * width;
            let element = |at| S::from_f64(self.element(piece.tensor, at, moved));
            values.extend(elements.map(|at| element(at) * factor));
        }
        Ok(Tensor::real(ty.shape.clone(), values))
    }

    /// Masks and weights of rows keep the first row of each segment, so that no segment is masked
    /// whole: there the scores round to a constant.
    fn input<S: Scalar>(
        &self,
        spaces: &Spaces,
        op: &Op,
        ty: &TensorType,
    ) -> Result<Tensor<S>, String> {
        let Op::Input(input) = op else {
            return Err("no input".to_owned());
        };
        let tensor = self.feeds.feed::<S>(op, ty)?;
        if !ty.dtype.is_float() {
            return Ok(tensor);
        }
        let mut values: Vec<f64> = tensor.reals().iter().map(|v| v.to_f64()).collect();
        match ty.rows {
            Some(space) if ty.shape.len() == 1 => {
                values
                    .iter_mut()
                    .for_each(|v| *v = f64::from(u8::from(*v > 0.0)));
                if spaces.owner(space).is_some() {
                    for segment in 0..self.extents.segments(space) {
                        values[self.extents.segment(space, segment).start] = 1.0;
                    }
                }
            }
            _ => {
                let jitter = |(at, v): (usize, &mut f64)| *v += self.jitter(&input.name, at);
                values.iter_mut().enumerate().for_each(jitter);
            }
        }
        let values = values.into_iter().map(S::from_f64).collect();
        Ok(Tensor::real(tensor.shape, values))
    }

    /// Every output by name.
    pub(crate) fn run<S: Scalar>(
        &self,
        graph: &Graph,
        moved: Option<Move<'_>>,
    ) -> BTreeMap<String, Tensor<S>> {
        let feed = |op: &Op, ty: &TensorType| self.feed(&graph.spaces, op, ty, moved);
        let extents = super::extended(&self.extents, &graph.spaces);
        let outputs = interpret::<S>(graph, &extents, feed).unwrap();
        let names = graph.outputs().iter().map(|output| output.name.clone());
        names.zip(outputs).collect()
    }

    /// Every output in f32, ordered by name.
    pub(crate) fn bits(&self, graph: &Graph) -> Vec<Tensor<f32>> {
        self.run(graph, None).into_values().collect()
    }

    /// The gradients among the outputs of [`Point::run`], by checkpoint tensor.
    fn gradients(
        &self,
        graph: &Graph,
        outputs: &BTreeMap<String, Tensor<f64>>,
    ) -> BTreeMap<String, Tensor<f64>> {
        let of_parameters = graph.outputs().iter();
        let given = of_parameters
            .filter_map(|output| Some((output.gradient_of()?, &outputs[&output.name])));
        gradients_by_tensor(given, |name| self.shapes.get(name).cloned()).unwrap()
    }

    fn loss(&self, graph: &Graph, moved: Move<'_>) -> f64 {
        self.run::<f64>(graph, Some(moved))[LOSS].reals()[0]
    }

    /// How far the derivative along a direction is from the nearest of three central differences, in
    /// units of what is allowed: 1e-6 of the derivative, and of the loss, whose digits differences lose.
    fn excess(&self, graph: &Graph, loss: f64, slope: f64, moved: Move<'_>) -> f64 {
        let (name, direction) = moved;
        let steps = [1e-4, 1e-5, 1e-6].into_iter();
        let errors = steps.map(|step| {
            let ahead = self.loss(graph, (name, &|at| step * direction(at)));
            let behind = self.loss(graph, (name, &|at| -step * direction(at)));
            ((ahead - behind) / (2.0 * step) - slope).abs()
        });
        errors.fold(f64::INFINITY, f64::min) / (1e-6 * (slope.abs() + loss.abs()) + 1e-8)
    }
}

/// Compares every gradient, element by element or along one random direction for each tensor, and
/// returns how many were compared.
pub(crate) fn compare(graph: &Graph, after: &Graph, seed: u64, each: bool) -> usize {
    let point = Point::new(graph, seed);
    let outputs = point.run::<f64>(after, None);
    let loss = outputs.get(LOSS).map_or(0.0, |loss| loss.reals()[0]);
    let mut compared = 0;
    for (name, gradient) in &point.gradients(after, &outputs) {
        let gradient = gradient.reals();
        if each {
            for (index, &slope) in gradient.iter().enumerate() {
                let only = |at: usize| f64::from(u8::from(at == index));
                let excess = point.excess(graph, loss, slope, (name, &only));
                assert!(excess < 1.0, "{name}[{index}] = {slope}: off by {excess}");
            }
        } else {
            let direction = |at: usize| Rng::keyed(seed ^ 2, name).at(at).unit();
            let slope = gradient.iter().enumerate();
            let slope: f64 = slope.map(|(at, &value)| value * direction(at)).sum();
            let excess = point.excess(graph, loss, slope, (name, &direction));
            assert!(excess < 1.0, "{name}: {slope}: off by {excess}");
        }
        compared += 1;
    }
    compared
}
