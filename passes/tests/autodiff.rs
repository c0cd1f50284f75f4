//! Gradients against central differences: each op, and random graphs of all ops.

mod support;

use std::collections::BTreeSet;

use lxpod_ir::ops::{
    Activate, Activation, Add, Attention, Bce, Cast, Concat, CrossEntropy, Dropout, GatherRows,
    LayerNorm, Linear, Op, Part, Reduction, Scale, Slice, SmoothL1,
};
use lxpod_ir::random::random_loss_graph;
use lxpod_ir::text::{parse, print};
use lxpod_ir::{Builder, DType, Graph, LOSS, Spaces, Value};
use lxpod_passes::{
    LossScale, Manager, Options, PASSES, Pass, Precision, Recompute, TRAINING, find,
};
use proptest::prelude::*;
use support::differences::{Point, compare, differentiated};
use support::{World, same_bits};

const KINDS: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

/// Small graphs over samples with segments `text` and `box`, a union of both, and a loss.
struct Small {
    b: Builder,
    named: usize,
    parts: Vec<Value>,
}

impl Small {
    fn new() -> Self {
        let mut spaces = Spaces::default();
        let sample = spaces.entities("sample", 3);
        let text = spaces.segments("text", sample, 4);
        let boxes = spaces.segments("box", sample, 3);
        spaces.union(&[text, boxes]);
        Small {
            b: Builder::new("small", spaces),
            named: 0,
            parts: Vec::new(),
        }
    }

    fn name(&mut self, kind: &str) -> String {
        self.named += 1;
        format!("{kind}.{}", self.named)
    }

    fn param(&mut self, shape: &[usize]) -> Value {
        let name = self.name("weight");
        self.b.param(&name, shape)
    }

    fn input(&mut self, dtype: DType, space: &str, row: &[usize]) -> Value {
        let name = self.name("input");
        let space = self.b.spaces().find(space).unwrap();
        self.b.input(&name, dtype, space, row)
    }

    /// Rows that depend on a parameter: some of its rows more than once, some never.
    fn rows(&mut self, space: &str, width: usize) -> Value {
        let table = self.param(&[5, width]);
        let index = self.input(DType::I32, space, &[]);
        self.b.op(GatherRows::default(), &[table, index])
    }

    fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Value {
        self.b.op(op, operands)
    }

    /// Lets the loss depend on every element of a value.
    fn read(&mut self, value: Value) {
        let ty = self.b.ty(value).with_dtype(DType::F32);
        let name = self.name("target");
        let target = self.b.typed(lxpod_ir::ops::Input { name }, &[], &[ty]);
        let part = self.op(Bce { factor: 3.0 }, &[value, target]);
        self.parts.push(part);
    }

    fn second(&self, value: Value) -> Value {
        self.b.second(value)
    }

    /// Compares every element of every gradient at several extents.
    fn check(mut self, gradients: usize) {
        let mut total = self.parts[0];
        for &part in &self.parts[1..] {
            total = self.b.op(Add::default(), &[total, part]);
        }
        self.b.output(LOSS, total);
        let graph = self.b.finish().unwrap();
        let after = differentiated(&graph).unwrap();
        assert_eq!(print(&parse(&print(&after)).unwrap()), print(&after));
        for seed in 0..4 {
            assert_eq!(compare(&graph, &after, seed, true), gradients);
        }
    }
}

#[test]
fn linear() {
    let kinds = KINDS.map(Some).into_iter().chain([None]);
    for (activation, bias) in kinds.flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut small = Small::new();
        let mut operands = vec![small.rows("text", 3), small.param(&[2, 3])];
        if bias {
            operands.push(small.param(&[2]));
        }
        let y = small.op(Linear { activation }, &operands);
        small.read(y);
        small.check(operands.len());
    }
}

#[test]
fn one_weight_over_rows_of_two_spaces() {
    let mut small = Small::new();
    let [weight, bias] = [small.param(&[2, 3]), small.param(&[2])];
    for space in ["text", "box"] {
        let x = small.rows(space, 3);
        let y = small.op(Linear::default(), &[x, weight, bias]);
        small.read(y);
    }
    small.check(4);
}

#[test]
fn a_table_that_is_also_a_weight() {
    let mut small = Small::new();
    let table = small.param(&[5, 3]);
    let index = small.input(DType::I32, "text", &[]);
    let x = small.op(GatherRows::default(), &[table, index]);
    let y = small.op(Linear::default(), &[x, table]);
    small.read(y);
    small.check(1);
}

#[test]
fn attention() {
    for (keys, probabilities) in [("text", false), ("box", false), ("box", true)] {
        let mut small = Small::new();
        let operands = [
            small.rows("text", 4),
            small.rows(keys, 4),
            small.rows(keys, 4),
            small.input(DType::F32, keys, &[]),
        ];
        let op = Attention {
            heads: 2,
            scale: 0.7,
            probabilities,
            dropout: None,
        };
        let context = small.op(op, &operands);
        small.read(context);
        if probabilities {
            small.read(small.second(context));
        }
        small.check(3);
    }
}

#[test]
fn attention_whose_probabilities_alone_are_read() {
    let mut small = Small::new();
    let [query, key] = [small.rows("sample", 4), small.rows("text", 4)];
    let mask = small.input(DType::F32, "text", &[]);
    let op = Attention {
        heads: 1,
        scale: 0.5,
        probabilities: true,
        dropout: None,
    };
    let context = small.op(op, &[query, key, key, mask]);
    small.read(small.second(context));
    small.check(2);
}

#[test]
fn dropout() {
    for space in ["sample", "text", "box"] {
        let mut small = Small::new();
        let keys = small.input(DType::I32, "sample", &[2]);
        let x = small.rows(space, 4);
        let y = small.op(dropping(0.5, 3), &[x, keys]);
        let z = small.op(dropping(0.25, 4), &[y, keys]);
        small.read(z);
        small.check(1);
    }
}

#[test]
fn attention_that_drops_probabilities() {
    for read in [[true, false], [false, true], [true, true]] {
        let mut small = Small::new();
        let operands = [
            small.rows("text", 4),
            small.rows("box", 4),
            small.rows("box", 4),
            small.input(DType::F32, "box", &[]),
            small.input(DType::I32, "sample", &[2]),
        ];
        let op = Attention {
            heads: 2,
            scale: 0.7,
            probabilities: read[1],
            dropout: Some(dropping(0.4, 5)),
        };
        let context = small.op(op, &operands);
        if read[0] {
            small.read(context);
        }
        if read[1] {
            small.read(small.second(context));
        }
        small.check(3);
    }
}

fn dropping(rate: f32, salt: u64) -> Dropout {
    Dropout { rate, salt }
}

#[test]
fn self_attention_of_one_value() {
    let mut small = Small::new();
    let x = small.rows("box", 4);
    let mask = small.input(DType::F32, "box", &[]);
    let op = Attention {
        heads: 2,
        scale: 0.5,
        probabilities: false,
        dropout: None,
    };
    let context = small.op(op, &[x, x, x, mask]);
    let sum = small.op(Add::default(), &[context, x]);
    small.read(sum);
    small.check(1);
}

#[test]
fn layer_norm() {
    for (residual, same) in [(false, false), (true, false), (true, true)] {
        let mut small = Small::new();
        let mut operands = vec![small.rows("text", 4), small.param(&[4]), small.param(&[4])];
        if residual {
            let other = if same {
                operands[0]
            } else {
                small.rows("text", 4)
            };
            operands.push(other);
        }
        let y = small.op(LayerNorm { eps: 1e-3 }, &operands);
        small.read(y);
        small.check(operands.len() - usize::from(same));
    }
}

#[test]
fn elementwise() {
    for kind in KINDS {
        let mut small = Small::new();
        let x = small.rows("box", 3);
        let y = small.op(Activate { kind }, &[x]);
        let z = small.op(Scale { factor: -0.3 }, &[y]);
        let w = small.op(Add::default(), &[z, x]);
        let v = small.op(Add::default(), &[w, w]);
        let u = small.op(Cast { to: DType::F16 }, &[v]);
        small.read(u);
        small.check(1);
    }
}

#[test]
fn columns() {
    let mut small = Small::new();
    let (a, b) = (small.rows("text", 3), small.rows("text", 2));
    let whole = small.op(Concat { axis: 1 }, &[a, b, a]);
    for (start, end) in [(0, 2), (1, 6), (5, 8)] {
        let slice = Slice {
            axis: 1,
            start,
            end,
        };
        let y = small.op(slice, &[whole]);
        small.read(y);
    }
    small.check(2);
}

#[test]
fn rows_of_parameters() {
    let mut small = Small::new();
    let (a, b) = (small.param(&[3, 2]), small.param(&[2, 2]));
    let whole = small.op(Concat { axis: 0 }, &[a, b, a]);
    let rows = Slice {
        axis: 0,
        start: 1,
        end: 6,
    };
    let rows = small.op(rows, &[whole]);
    small.read(rows);
    small.check(2);
}

#[test]
fn a_union_of_which_parts_are_read() {
    for read in [&[0][..], &[1], &[0, 1], &[0, 1, 2]] {
        let mut small = Small::new();
        let parts = [small.rows("text", 3), small.rows("box", 3)];
        let union = small.op(Concat { axis: 0 }, &parts);
        for &index in read {
            let y = match index {
                2 => union,
                index => small.op(Part { index }, &[union]),
            };
            small.read(y);
        }
        small.check(2);
    }
}

#[test]
fn rows_picked_from_rows() {
    let mut small = Small::new();
    let x = small.rows("text", 3);
    let index = small.input(DType::I32, "sample", &[]);
    let picked = small.op(GatherRows::default(), &[x, index]);
    small.read(picked);
    let index = small.input(DType::I32, "box", &[]);
    let repeated = small.op(GatherRows::default(), &[x, index]);
    small.read(repeated);
    small.check(1);
}

#[test]
fn losses() {
    for reduction in [Reduction::Mean, Reduction::Weighted] {
        let mut small = Small::new();
        let mut operands = vec![small.rows("text", 4), small.input(DType::I32, "text", &[])];
        if reduction == Reduction::Weighted {
            operands.push(small.input(DType::F32, "text", &[]));
        }
        let loss = small.op(CrossEntropy { reduction }, &operands);
        small.parts.push(loss);
        small.check(1);
    }
    let mut small = Small::new();
    let [x, target] = [small.rows("box", 4), small.rows("box", 4)];
    let weights = small.input(DType::F32, "box", &[]);
    let wide = small.op(Scale { factor: 3.0 }, &[x]);
    let loss = small.op(SmoothL1::default(), &[wide, target, weights]);
    let scaled = small.op(Scale { factor: 6.67 }, &[loss]);
    small.parts.push(scaled);
    small.check(2);
}

#[test]
fn padding_takes_no_gradient() {
    let mut small = Small::new();
    let table = small.param(&[5, 2]);
    let index = small.input(DType::I32, "text", &[]);
    let padding = Some(2);
    let padded = small.op(GatherRows { padding }, &[table, index]);
    small.read(padded);
    let mut plain = Small::new();
    let table = plain.param(&[5, 2]);
    let index = plain.input(DType::I32, "text", &[]);
    let rows = plain.op(GatherRows::default(), &[table, index]);
    plain.read(rows);
    let [padded, plain] = [small, plain].map(|small| {
        let mut b = small.b;
        b.output(LOSS, small.parts[0]);
        let after = differentiated(&b.finish().unwrap()).unwrap();
        let outputs = Point::new(&after, 1).run::<f64>(&after, None);
        outputs["grad:weight.1"].clone()
    });
    for row in 0..5 {
        let expected = if row == 2 { &[0.0; 2] } else { plain.row(row) };
        assert_eq!(padded.row(row), expected);
    }
    assert_ne!(plain.row(2), [0.0; 2], "row 2 is looked up");
}

#[test]
fn what_the_loss_does_not_depend_on_has_no_gradient() {
    let mut small = Small::new();
    let x = small.rows("text", 3);
    let weight = small.param(&[2, 3]);
    small.read(x);
    let unread = small.op(Linear::default(), &[x, weight]);
    small.b.output("unread", unread);
    small.check(1);
}

#[test]
fn a_target_that_depends_on_a_parameter_is_refused() {
    let mut small = Small::new();
    let [x, target] = [small.rows("box", 4), small.rows("box", 4)];
    let loss = small.op(Bce { factor: 1.0 }, &[x, target]);
    small.b.output(LOSS, loss);
    let error = differentiated(&small.b.finish().unwrap()).unwrap_err();
    assert!(error.to_string().contains("operand 1 of `bce`"), "{error}");
}

#[test]
fn the_loss_scale_multiplies_every_gradient() {
    let graph = random_loss_graph(3, 30);
    let mut scaled = graph.clone();
    let options = Options {
        loss_scale: LossScale::Input,
        ..Options::default()
    };
    let autodiff = find("autodiff").unwrap();
    Manager::new(options).run(&[autodiff], &mut scaled).unwrap();
    let plain = differentiated(&graph).unwrap();
    let point = Point::new(&scaled, 5);
    let [plain, scaled] = [plain, scaled].map(|graph| point.run::<f64>(&graph, None));
    let scale = scaled.iter().zip(&plain).find_map(|((name, a), (_, b))| {
        let at = b.reals().iter().position(|&b| b != 0.0)?;
        name.starts_with("grad:")
            .then(|| a.reals()[at] / b.reals()[at])
    });
    let scale = scale.expect("a gradient");
    assert_ne!(scale, 1.0);
    for (name, plain) in plain.iter().filter(|(name, _)| name.starts_with("grad:")) {
        for (&a, &b) in scaled[name].reals().iter().zip(plain.reals()) {
            assert!((a - scale * b).abs() <= 1e-9 * a.abs() + 1e-12, "{name}");
        }
    }
}

/// The graph with its gradients; `None` where a value that has no derivative depends on a parameter.
fn gradients(graph: &Graph) -> Option<Graph> {
    match differentiated(graph) {
        Err(error) if error.to_string().contains("has no derivative") => None,
        after => Some(after.unwrap()),
    }
}

#[test]
fn all_ops_appear() {
    let mut seen = BTreeSet::from(["transfer"]);
    for after in (0..200).filter_map(|seed| gradients(&random_loss_graph(seed, 40))) {
        seen.extend(after.nodes().map(|id| after.node(id).op.name()));
    }
    let of_steps = Op::NAMES.iter().position(|name| *name == "state");
    let all = Op::NAMES[..of_steps.unwrap()].iter().copied();
    assert_eq!(seen, all.collect::<BTreeSet<&str>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_gradients_are_right(seed: u64, size in 5usize..40) {
        let graph = random_loss_graph(seed, size);
        if let Some(after) = gradients(&graph) {
            prop_assert_eq!(print(&parse(&print(&after)).unwrap()), print(&after));
            compare(&graph, &after, seed, false);
        }
    }

    #[test]
    fn passes_keep_every_bit_of_gradients(seed: u64, size in 5usize..40) {
        let graph = random_loss_graph(seed, size);
        let Some(after) = gradients(&graph) else { return Ok(()) };
        let point = Point::new(&graph, seed);
        let before = point.bits(&after);
        let mut manager = Manager::new(Options {
            precision: Precision::Fp32,
            recompute: Recompute::Layer,
            ..Options::default()
        });
        // indices of these graphs pick any rows, which `narrow` may not assume
        let other = |pass: &&&Pass| !["narrow", "accumulate"].contains(&pass.name);
        for pass in PASSES.iter().filter(other) {
            let mut rewritten = after.clone();
            manager.run(&[find("cse").unwrap(), pass], &mut rewritten).unwrap();
            same_bits(&before, &point.bits(&rewritten), pass.name);
        }
        let passes: Vec<&Pass> = TRAINING.iter().copied()
            .filter(|pass| pass.name != "narrow")
            .collect();
        let mut rewritten = after;
        manager.run(&passes, &mut rewritten).unwrap();
        same_bits(&before, &point.bits(&rewritten), "training");
        Manager::new(Options::default()).run(&passes, &mut rewritten).unwrap();
    }

    #[test]
    fn narrowing_keeps_every_bit_of_gradients(seed: u64, size in 4usize..40) {
        let mut graph = support::random::graph(seed, size);
        let last = graph.outputs()[0].value;
        support::add_loss(&mut graph, last);
        let after = differentiated(&graph).unwrap();
        let world = World::new(&after, seed);
        for passes in ["cse,dce,narrow", "cse,dce,fuse-epilogue,merge-linear,fuse-norm,fold,cse,dce"] {
            let mut rewritten = after.clone();
            support::apply(&mut rewritten, passes);
            same_bits(&world.run(&after), &world.run(&rewritten), passes);
        }
    }
}
