//! What the tests of passes share: running a graph on made-up data, and looking at it.
#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod differences;
pub(crate) mod lxmert;
pub(crate) mod random;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use lxpod_ir::ops::{Activate, Bce, Input, LayerNorm, Linear, Op};
use lxpod_ir::{
    Binding, Builder, DType, Extents, Graph, LOSS, Layout, NodeId, Shape, Spaces, Tensor,
    TensorType, Value, interpret, verify,
};
use lxpod_passes::{Manager, Options, Pass, Precision, Recompute, Report, find};
use rustc_hash::FxHasher;

/// A small generator of numbers that look random.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: impl Hash) -> Self {
        let mut hasher = FxHasher::default();
        seed.hash(&mut hasher);
        let mut rng = Rng(hasher.finish() | 1);
        (0..4).for_each(|_| {
            rng.next();
        });
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number between -1 and 1.
    pub(crate) fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// One set of extents and of values for whatever a graph asks for.
pub(crate) struct World {
    pub(crate) extents: Extents,
    pub(crate) seed: u64,
    /// Shapes of the checkpoint's tensors.
    pub(crate) tensors: BTreeMap<String, Shape>,
}

impl World {
    /// A world for `graph`, whose parameters are still plain tensors. Segments are not empty.
    pub(crate) fn new(graph: &Graph, seed: u64) -> Self {
        let entities = |id: lxpod_ir::SpaceId, capacity: usize| {
            1 + Rng::new((seed, id.index())).below(capacity)
        };
        let extents = Extents::new(
            &graph.spaces,
            |id, space| entities(id, space.capacity),
            |id, entity, longest| 1 + Rng::new((seed, id.index(), entity)).below(longest),
        );
        let tensors = graph.nodes().filter_map(|id| match &graph.node(id).op {
            Op::Param(param) => Some((
                param.value.to_string(),
                graph.node(id).types[0].shape.clone(),
            )),
            _ => None,
        });
        World {
            extents: extents.unwrap(),
            seed,
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn run(&self, graph: &Graph) -> Vec<Tensor<f32>> {
        let extents = extended(&self.extents, &graph.spaces);
        interpret(graph, &extents, |op, ty| match op {
            Op::Input(input) => Ok(self.input(&graph.spaces, &extents, &input.name, ty)),
            Op::Param(param) => Ok(self.bound(&param.value)),
            Op::State(state) if state.reset => {
                let zeros = vec![0.0; ty.shape.elements()];
                Ok(Tensor::real(ty.shape.clone(), zeros))
            }
            other => Err(format!("fed {}", other.name())),
        })
        .unwrap()
    }

    /// Inputs by name: `pick.SPACE.k` holds a row of the own segment for each entity, `any.SPACE.k`
    /// any row, `ids` a number below 5, `mask..` zeros and ones.
    fn input(
        &self,
        spaces: &Spaces,
        extents: &Extents,
        name: &str,
        ty: &TensorType,
    ) -> Tensor<f32> {
        let mut rng = Rng::new((self.seed, name));
        let rows = ty.rows.map_or(ty.shape.rows(), |space| extents.rows(space));
        let shape = ty.shape.with_rows(rows);
        let words: Vec<&str> = name.split('.').collect();
        let from = words.get(1).and_then(|space| spaces.find(space));
        match (words[0], from) {
            ("pick", Some(from)) => Tensor::int(
                shape,
                (0..rows)
                    .map(|entity| {
                        let segment = extents.segment(from, entity);
                        (segment.start + rng.below(segment.len())) as i32
                    })
                    .collect(),
            ),
            ("any", Some(from)) => {
                let limit = extents.rows(from);
                Tensor::int(shape, (0..rows).map(|_| rng.below(limit) as i32).collect())
            }
            ("ids", _) => Tensor::int(shape, (0..rows).map(|_| rng.below(5) as i32).collect()),
            ("mask", _) => Tensor::real(shape, (0..rows).map(|_| rng.below(2) as f32).collect()),
            _ => model_input(&mut rng, name, extents, spaces, shape),
        }
    }

    /// A binding's value.
    fn bound(&self, binding: &Binding) -> Tensor<f32> {
        match binding {
            Binding::Tensor(name) => {
                reals(&mut Rng::new((self.seed, name)), self.tensors[name].clone())
            }
            Binding::Scale(factor, inner) => {
                let inner = self.bound(inner);
                let scaled = inner.reals().iter().map(|x| x * factor).collect();
                Tensor::real(inner.shape, scaled)
            }
            Binding::Rows(start, end, inner) => {
                let rows: Vec<i32> = (*start as i32..*end as i32).collect();
                self.bound(inner).take_rows(&rows).unwrap()
            }
            Binding::Concat(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.bound(part)).collect();
                let rows = parts.iter().map(|part| part.shape.rows()).sum();
                let data = parts
                    .iter()
                    .flat_map(|part| part.reals())
                    .copied()
                    .collect();
                Tensor::real(parts[0].shape.with_rows(rows), data)
            }
            #[allow(unreachable_patterns, reason = "the list of bindings may grow")]
            other => panic!("{other} is not known here"),
        }
    }
}

/// The same extents in the spaces of another version of the graph, which may have more unions.
pub(crate) fn extended(extents: &Extents, spaces: &Spaces) -> Extents {
    Extents::new(
        spaces,
        |id, _| extents.rows(id),
        |id, entity, _| extents.segment(id, entity).len(),
    )
    .unwrap()
}

/// The inputs of the front end's models.
fn model_input(
    rng: &mut Rng,
    name: &str,
    extents: &Extents,
    spaces: &Spaces,
    shape: Shape,
) -> Tensor<f32> {
    let rows_of = |names: [&str; 2]| names.iter().find_map(|name| spaces.find(name)).unwrap();
    let rows = shape.rows();
    let mut below = |limit: usize| (0..rows).map(|_| rng.below(limit) as i32).collect();
    match name {
        "first_token" => {
            let text = rows_of(["sample_text", "text"]);
            let first = |sample| extents.segment(text, sample).start as i32;
            Tensor::int(shape, (0..rows).map(first).collect())
        }
        "sample_text_rows" => Tensor::int(shape, below(extents.rows(rows_of(["text", "text"])))),
        "sample_box_rows" => Tensor::int(shape, below(extents.rows(rows_of(["box", "box"])))),
        "dropout_keys" => {
            let words = (0..shape.elements()).map(|_| rng.below(1 << 30) as i32);
            Tensor::int(shape, words.collect())
        }
        "input_ids" => Tensor::int(shape, below(5)),
        "position_ids" => Tensor::int(shape, below(3)),
        _ if name.ends_with("labels") && shape.len() == 1 => Tensor::int(shape, below(2)),
        "token_type_ids" | "matched_label" | "ans" => Tensor::int(shape, below(2)),
        _ => reals(rng, shape),
    }
}

fn reals(rng: &mut Rng, shape: Shape) -> Tensor<f32> {
    let data = (0..shape.elements()).map(|_| rng.real()).collect();
    Tensor::real(shape, data)
}

/// Runs passes by name, in fp32.
pub(crate) fn apply(graph: &mut Graph, passes: &str) -> Report {
    let passes: Vec<&Pass> = passes.split(',').map(|name| find(name).unwrap()).collect();
    let options = Options {
        precision: Precision::Fp32,
        recompute: Recompute::Layer,
        ..Options::default()
    };
    Manager::new(options)
        .run(&passes, graph)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The graph after passes, having checked that it computes the same, bit by bit.
pub(crate) fn exact(graph: &Graph, passes: &str) -> Graph {
    verify(graph).unwrap();
    let mut after = graph.clone();
    apply(&mut after, passes);
    for seed in 0..4 {
        let world = World::new(graph, seed);
        let place = format!("{}: {passes}", graph.name);
        let (before, after) = (world.run(graph), world.run(&after));
        // A pass may let more values leave.
        same_bits(&before, &after[..before.len()], &place);
    }
    after
}

pub(crate) fn same_bits(before: &[Tensor<f32>], after: &[Tensor<f32>], place: &str) {
    assert_eq!(before.len(), after.len());
    for (index, (a, b)) in before.iter().zip(after).enumerate() {
        assert_eq!(a.shape, b.shape, "{place}: output {index}");
        for (x, y) in a.reals().iter().zip(b.reals()) {
            let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
            assert!(same, "{place}: output {index}: {x} became {y}");
        }
    }
}

/// Adds the output `loss`, which reads every element of `value`.
pub(crate) fn add_loss(graph: &mut Graph, value: Value) {
    let scope = "".into();
    let name = "target".to_owned();
    let target = graph.ty(value).clone();
    let target = graph.add(Input { name }.into(), &[], &[target], &scope);
    let operands = [value, graph.value(target.unwrap())];
    let loss = graph.add(Bce { factor: 1.0 }.into(), &operands, &[], &scope);
    graph.add_output(LOSS, graph.value(loss.unwrap()));
}

/// How many nodes of that op there are.
pub(crate) fn count(graph: &Graph, op: &str) -> usize {
    named(graph, op).len()
}

/// The nodes of that op, operands before users.
pub(crate) fn named(graph: &Graph, op: &str) -> Vec<NodeId> {
    let mut nodes = graph.topo();
    nodes.retain(|&id| graph.node(id).op.name() == op);
    nodes
}

/// The type of a node's first output in text form.
pub(crate) fn ty(graph: &Graph, id: NodeId) -> String {
    graph.ty(graph.value(id)).display(&graph.spaces)
}

/// The binding of the parameter behind an operand of a node.
pub(crate) fn binding(graph: &Graph, id: NodeId, operand: usize) -> String {
    match &graph.node(graph.inputs(id)[operand].node).op {
        Op::Param(param) => param.value.to_string(),
        other => panic!("operand {operand} is a {}", other.name()),
    }
}

/// The node that computes an output of the graph.
pub(crate) fn output(graph: &Graph, index: usize) -> NodeId {
    graph.outputs()[index].value.node
}

/// Spaces: 3 samples of at most 4 text rows and 3 box rows; 2 questions of at most 4 rows.
pub(crate) fn spaces() -> Spaces {
    let mut spaces = Spaces::default();
    let sample = spaces.entities("sample", 3);
    let question = spaces.entities("question", 2);
    spaces.segments("text", sample, 4);
    spaces.segments("box", sample, 3);
    spaces.segments("qtext", question, 4);
    spaces
}

/// A builder over [`spaces`], in f32.
pub(crate) struct Make(pub(crate) Builder);

impl Make {
    pub(crate) fn new() -> Self {
        Make(Builder::new("test", spaces()))
    }

    pub(crate) fn input(&mut self, name: &str, space: &str, width: usize) -> Value {
        let space = self.0.spaces().find(space).unwrap();
        self.0.input(name, DType::F32, space, &[width])
    }

    pub(crate) fn mask(&mut self, space: &str) -> Value {
        let id = self.0.spaces().find(space).unwrap();
        self.0.input(&format!("mask.{space}"), DType::F32, id, &[])
    }

    /// An index into `from` for each row of `to`; see [`World`] for names.
    pub(crate) fn index(&mut self, name: &str, to: &str) -> Value {
        let to = self.0.spaces().find(to).unwrap();
        self.0.input(name, DType::I32, to, &[])
    }

    pub(crate) fn param(&mut self, name: &str, shape: &[usize]) -> Value {
        self.0.param(name, shape)
    }

    pub(crate) fn linear(&mut self, x: Value, name: &str, width: usize) -> Value {
        let inner = self.0.ty(x).shape.last_axis();
        let w = self.param(&format!("{name}.weight"), &[width, inner]);
        let b = self.param(&format!("{name}.bias"), &[width]);
        self.op(Linear::default(), &[x, w, b])
    }

    pub(crate) fn norm(&mut self, x: Value, name: &str) -> Value {
        let width = self.0.ty(x).shape.last_axis();
        let g = self.param(&format!("{name}.gain"), &[width]);
        let b = self.param(&format!("{name}.bias"), &[width]);
        self.op(LayerNorm { eps: 1e-12 }, &[x, g, b])
    }

    pub(crate) fn activate(&mut self, x: Value, kind: lxpod_ir::ops::Activation) -> Value {
        self.op(Activate { kind }, &[x])
    }

    pub(crate) fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.0.op(op, inputs)
    }

    pub(crate) fn finish(mut self, outputs: &[Value]) -> Graph {
        for (index, &value) in outputs.iter().enumerate() {
            self.0.output(&format!("y{index}"), value);
        }
        let graph = self.0.finish().unwrap();
        assert!(
            graph
                .spaces
                .iter()
                .all(|(_, space)| space.layout != Layout::Union(vec![]))
        );
        graph
    }
}
