//! Random extents, and values for inputs and parameters.

use std::collections::{BTreeMap, HashMap};

use super::Rng;
use crate::ops::Op;
use crate::rows::{Extents, Spaces};
use crate::tensor::{Scalar, Tensor};
use crate::{Binding, DType, Graph, NodeId, TensorType};

/// Extents with at least one entity in every entity space and one row in every segment.
pub fn random_extents(spaces: &Spaces, seed: u64) -> Extents {
    let some = |name: &str, position: usize, most: usize| match most {
        0 => 0,
        most => 1 + Rng::keyed(seed, name).at(position).below(most),
    };
    let entities = Extents::new(
        spaces,
        |_, space| some(&space.name, 0, space.capacity),
        |id, entity, longest| some(&spaces.get(id).name, 1 + entity, longest),
    );
    entities.unwrap_or_else(|_| Extents::full(spaces))
}

/// What the values of an input must be for the graph to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Real,
    Mask,
    /// Below the bound.
    Index(usize),
    /// Below the bound, sometimes the label that does not count.
    Label(usize),
}

/// Values for the inputs, parameters and states of a graph and of every graph that passes make of it. A
/// value depends on the seed, the name of the input, state or checkpoint tensor, and the position in it.
#[derive(Clone, Debug)]
pub struct Feeds {
    seed: u64,
    extents: Extents,
    inputs: BTreeMap<String, Kind>,
    rows: HashMap<String, usize>,
}

/// Feeds for `graph` at `extents`: indices and labels in range, 0 and 1 for attention masks,
/// multiples of 1/64 from −1 to 1 for all else.
pub fn random_feeds(graph: &Graph, extents: &Extents, seed: u64) -> Feeds {
    let mut feeds = Feeds {
        seed,
        extents: extents.clone(),
        inputs: BTreeMap::new(),
        rows: HashMap::new(),
    };
    for id in graph.nodes() {
        match &graph.node(id).op {
            Op::Input(input) => {
                let mut kind = Kind::Real;
                constrain(graph, extents, id, &mut kind);
                let known = feeds.inputs.entry(input.name.clone()).or_insert(kind);
                *known = meet(*known, kind);
            }
            Op::Param(param) => {
                if let Binding::Tensor(name) = &param.value {
                    let rows = graph.node(id).types[0].shape.rows();
                    feeds.rows.insert(name.clone(), rows);
                }
            }
            _ => {}
        }
    }
    feeds
}

/// Narrows `kind` by every use of the node, also behind transfers.
fn constrain(graph: &Graph, extents: &Extents, id: NodeId, kind: &mut Kind) {
    for user in graph.users(graph.value(id)) {
        let types = graph.input_types(user.node);
        let needed = match (&graph.node(user.node).op, user.input) {
            (Op::Transfer(_), _) => {
                constrain(graph, extents, user.node, kind);
                Kind::Real
            }
            (Op::GatherRows(_), 1) => Kind::Index(match types[0].rows {
                Some(space) => extents.rows(space),
                None => types[0].shape.rows(),
            }),
            (Op::CrossEntropy(_), 1) => Kind::Label(types[0].shape.last_axis()),
            (Op::Attention(_), 3) => Kind::Mask,
            _ => Kind::Real,
        };
        *kind = meet(*kind, needed);
    }
}

fn meet(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        (Kind::Label(a), Kind::Label(b)) => Kind::Label(a.min(b)),
        (Kind::Index(a) | Kind::Label(a), Kind::Index(b) | Kind::Label(b)) => Kind::Index(a.min(b)),
        (Kind::Index(_) | Kind::Label(_), _) => a,
        (_, Kind::Index(_) | Kind::Label(_)) => b,
        (Kind::Mask, _) | (_, Kind::Mask) => Kind::Mask,
        (Kind::Real, Kind::Real) => Kind::Real,
    }
}

impl Feeds {
    /// The value of an input, parameter or state, for [`crate::interpret`].
    ///
    /// # Errors
    /// The op is no input of the graph, or its binding does not give the type.
    pub fn feed<S: Scalar>(&self, op: &Op, ty: &TensorType) -> Result<Tensor<S>, String> {
        match op {
            Op::Input(input) => self.input(&input.name, ty),
            Op::Param(param) => self.param(&param.value, ty),
            Op::State(state) => Ok(self.state(&state.name, ty)),
            op => Err(format!("`{}` takes its value from the graph", op.name())),
        }
    }

    fn input<S: Scalar>(&self, name: &str, ty: &TensorType) -> Result<Tensor<S>, String> {
        let kind = self.inputs.get(name);
        let kind = *kind.ok_or_else(|| format!("no input is named `{name}`"))?;
        let shape = ty.shape_at(&self.extents);
        let base = Rng::keyed(self.seed, name);
        let elements = (0..shape.elements()).map(|at| base.at(at));
        Ok(if ty.dtype.is_float() {
            let values = elements.map(|mut rng| S::from_f64(real(&mut rng, kind)));
            let values = values.collect();
            Tensor::real(shape, values)
        } else {
            let limit = if ty.dtype == DType::Bool { 2 } else { 100 };
            let values = elements.enumerate();
            let values = values.map(|(at, mut rng)| integer(&mut rng, kind, limit, at));
            let values = values.collect();
            Tensor::int(shape, values)
        })
    }

    /// Numbers from 0 to 1, since no second moment is negative.
    fn state<S: Scalar>(&self, name: &str, ty: &TensorType) -> Tensor<S> {
        let shape = ty.shape_at(&self.extents);
        let base = Rng::keyed(self.seed, name);
        let numbers = (0..shape.elements()).map(|at| base.at(at).unit().abs());
        if ty.dtype.is_float() {
            let values = numbers.map(S::from_f64).collect();
            Tensor::real(shape, values)
        } else {
            let values = numbers.map(|number| number as i32).collect();
            Tensor::int(shape, values)
        }
    }

    fn param<S: Scalar>(&self, binding: &Binding, ty: &TensorType) -> Result<Tensor<S>, String> {
        let unknown = binding.part_without_rows(&self.rows);
        if let Some(name) = unknown {
            return Err(format!("the rows of tensor `{name}` are not known"));
        }
        let rows = |name: &str| self.rows.get(name).copied().unwrap_or(0);
        let width = ty.shape.row_elements();
        let mut values = Vec::with_capacity(ty.shape.elements());
        for piece in binding.pieces(0, ty.shape.rows(), &rows) {
            let base = Rng::keyed(self.seed, piece.tensor);
            for at in piece.start * width..piece.end * width {
                let value = base.at(at).unit();
                values.push(S::from_f64(value * f64::from(piece.factor)));
            }
        }
        if values.len() == ty.shape.elements() {
            Ok(Tensor::real(ty.shape.clone(), values))
        } else {
            Err(format!("`{binding}` does not have the shape {}", ty.shape))
        }
    }
}

fn real(rng: &mut Rng, kind: Kind) -> f64 {
    match kind {
        Kind::Mask => f64::from(u8::from(!rng.one_in(4))),
        Kind::Real | Kind::Index(_) | Kind::Label(_) => rng.unit(),
    }
}

/// The first label always counts, so that no mean is over nothing.
fn integer(rng: &mut Rng, kind: Kind, limit: usize, at: usize) -> i32 {
    match kind {
        Kind::Label(_) if at > 0 && rng.one_in(5) => crate::ops::IGNORED,
        Kind::Index(bound) | Kind::Label(bound) => rng.below(bound.max(1)) as i32,
        Kind::Real | Kind::Mask => rng.below(limit) as i32,
    }
}

impl Binding {
    /// A tensor joined to others whose number of rows is not known.
    fn part_without_rows(&self, rows: &HashMap<String, usize>) -> Option<&str> {
        match self {
            Binding::Tensor(_) => None,
            Binding::Rows(_, _, inner) | Binding::Scale(_, inner) => inner.part_without_rows(rows),
            Binding::Concat(parts) => parts.iter().find_map(|part| match part.named_rows() {
                Some(name) if !rows.contains_key(name) => Some(name),
                _ => part.part_without_rows(rows),
            }),
        }
    }

    /// The tensor whose number of rows this value has.
    fn named_rows(&self) -> Option<&str> {
        match self {
            Binding::Tensor(name) => Some(name),
            Binding::Scale(_, inner) => inner.named_rows(),
            Binding::Rows(..) | Binding::Concat(_) => None,
        }
    }
}
