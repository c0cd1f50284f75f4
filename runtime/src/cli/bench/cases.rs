//! The kernels measured, as small graphs at LXMERT's shapes.

use std::str::FromStr;

use lxpod_ir::text::parse;
use lxpod_ir::{DType, Graph};

/// Rows of products: one sample's `[CLS]` row up to a batch's boxes.
const ROWS: [usize; 7] = [1, 12, 20, 36, 56, 160, 512];
/// Outputs and inputs of LXMERT's linear layers: projections, merged queries, keys and values, keys and
/// values, feed-forward, box features, answers.
const LAYERS: [(usize, usize); 7] = [
    (768, 768),
    (2304, 768),
    (1536, 768),
    (3072, 768),
    (768, 3072),
    (768, 2048),
    (1842, 1536),
];
/// Queries and keys of a segment: text to text, boxes to boxes, across, and long texts.
const SEGMENTS: [(usize, usize); 5] = [(20, 20), (36, 36), (20, 36), (36, 20), (512, 512)];
const DTYPES: [DType; 2] = [DType::F16, DType::F32];
/// Features of a row and of a feed-forward block; heads; rows of the word table.
const WIDTH: usize = 768;
const WIDE: usize = 3072;
const HEADS: usize = 12;
const WORDS: usize = 30522;
/// Copies of an op without weights in one graph, and the most of a `linear`.
const COPIES: usize = 8;
const MOST_COPIES: usize = 256;
/// Multiply-adds of a `linear` that its reference may take.
const CHECKED: usize = 1 << 25;
/// The most of each size of `--shape`, and of their products.
const MOST: usize = 1 << 16;
const MOST_PRODUCT: usize = 1 << 26;

/// A kernel and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    kind: Kind,
    dtype: DType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear(Shape),
    Attention { queries: usize, keys: usize },
    LayerNorm { rows: usize },
    Gelu { rows: usize },
    Embedding { rows: usize },
}

/// The sizes of a matrix product: M rows, N outputs, K inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    rows: usize,
    outputs: usize,
    inputs: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Vec<usize> = text
            .split(',')
            .map(|word| {
                word.trim()
                    .parse()
                    .ok()
                    .filter(|size| (1..=MOST).contains(size))
            })
            .collect::<Option<_>>()
            .unwrap_or_default();
        let &[rows, outputs, inputs] = sizes.as_slice() else {
            return Err(format!(
                "must be M,N,K: rows, outputs and inputs, each a whole number from 1 to {MOST}, such as 20,768,3072"
            ));
        };
        if [rows * outputs, rows * inputs, outputs * inputs]
            .into_iter()
            .any(|size| size > MOST_PRODUCT)
        {
            return Err(format!(
                "a matrix of more than {MOST_PRODUCT} elements; lower the sizes"
            ));
        }
        Ok(Shape {
            rows,
            outputs,
            inputs,
        })
    }
}

/// Every case of the default list.
pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (outputs, inputs) in LAYERS {
        for dtype in DTYPES {
            cases.extend(ROWS.map(|rows| {
                Case::linear(
                    Shape {
                        rows,
                        outputs,
                        inputs,
                    },
                    dtype,
                )
            }));
        }
    }
    for dtype in DTYPES {
        let case = |kind| Case { kind, dtype };
        cases.extend(SEGMENTS.map(|(queries, keys)| case(Kind::Attention { queries, keys })));
        for rows in [20, 36, 512] {
            cases.extend(
                [
                    Kind::LayerNorm { rows },
                    Kind::Gelu { rows },
                    Kind::Embedding { rows },
                ]
                .map(case),
            );
        }
    }
    cases
}

impl Case {
    /// A linear layer.
    pub(super) fn linear(shape: Shape, dtype: DType) -> Case {
        Case {
            kind: Kind::Linear(shape),
            dtype,
        }
    }

    /// A product whose operands stay in the second-level caches of that many cores.
    pub(super) fn in_caches(cores: usize, weights: DType) -> Case {
        let shape = Shape {
            rows: 96,
            outputs: (128 * cores).min(1 << 13),
            inputs: 768,
        };
        Case::linear(shape, weights)
    }

    /// The name on the command line and in saved files.
    pub(super) fn name(&self) -> String {
        let dtype = self.dtype;
        match self.kind {
            Kind::Linear(Shape {
                rows,
                outputs,
                inputs,
            }) => {
                format!("linear {outputs}x{inputs} {dtype} m{rows}")
            }
            Kind::Attention { queries, keys } => format!("attention {dtype} q{queries} k{keys}"),
            Kind::LayerNorm { rows } => format!("layer_norm {dtype} m{rows}"),
            Kind::Gelu { rows } => format!("gelu {dtype} m{rows}"),
            Kind::Embedding { rows } => format!("embedding {dtype} m{rows}"),
        }
    }

    /// The op that is measured.
    pub(super) fn op(&self) -> &'static str {
        match self.kind {
            Kind::Linear(_) => "linear",
            Kind::Attention { .. } => "attention",
            Kind::LayerNorm { .. } => "layer_norm",
            Kind::Gelu { .. } => "activate",
            Kind::Embedding { .. } => "gather_rows",
        }
    }

    /// The graph to measure: the op several times over; those of a `linear` have that many bytes
    /// of weights together, unless they are too many.
    ///
    /// # Errors
    /// A defect: the graph is none.
    pub(super) fn graph(&self, cold_bytes: usize) -> Result<Graph, String> {
        match self.kind {
            Kind::Linear(shape) => {
                let weight = shape.outputs * shape.inputs * self.dtype.size();
                self.build(cold_bytes.div_ceil(weight).min(MOST_COPIES), shape.outputs)
            }
            _ => self.build(COPIES, WIDTH),
        }
    }

    /// The graph that the reference runs: the first op alone, and of a `linear` as many outputs as
    /// plain loops compute in reasonable time. Its results are the beginning of the output `first`.
    ///
    /// # Errors
    /// As [`Case::graph`].
    pub(super) fn reference(&self) -> Result<Graph, String> {
        match self.kind {
            Kind::Linear(shape) => {
                let outputs = CHECKED / (shape.rows * shape.inputs);
                self.build(1, outputs.clamp(1, shape.outputs))
            }
            _ => self.build(1, WIDTH),
        }
    }

    /// The graph with so many ops. Results that are no operand of the next op are summed, so that
    /// all take one place in memory, as those of a model's layers do.
    fn build(&self, copies: usize, outputs: usize) -> Result<Graph, String> {
        let mut text = Text::new(self.kind);
        let leaves = self.leaves(&mut text);
        let mut last = String::new();
        for copy in 0..copies {
            let made = self.op_node(&mut text, &leaves, &last, copy, outputs);
            if copy == 0 {
                text.output(&made, "first");
            }
            let summed = matches!(self.kind, Kind::Linear(_) | Kind::Embedding { .. });
            last = if copy > 0 && summed {
                text.node(&format!("add {last}, {made}"), &self.rows_of("m", outputs))
            } else {
                made
            };
        }
        if copies > 1 {
            text.output(&last, "last");
        }
        parse(&text.finish()).map_err(|error| error.to_string())
    }

    /// `f16[m:20,768]`: rows of this case's dtype.
    fn rows_of(&self, space: &str, width: usize) -> String {
        let rows = match self.kind {
            Kind::Attention { keys, .. } if space == "k" => keys,
            kind => kind.rows(),
        };
        format!("{}[{space}:{rows},{width}]", self.dtype)
    }

    /// The inputs, and the parameters that all ops share.
    fn leaves(&self, text: &mut Text) -> Vec<String> {
        let input = |text: &mut Text, name: &str, ty: &str| {
            text.node(&format!("input {{name={name}}}"), ty)
        };
        let width = match self.kind {
            Kind::Linear(shape) => shape.inputs,
            Kind::Gelu { .. } => WIDE,
            _ => WIDTH,
        };
        match self.kind {
            Kind::Linear(_) | Kind::Gelu { .. } => {
                vec![input(text, "x", &self.rows_of("m", width))]
            }
            Kind::LayerNorm { .. } => {
                let x = input(text, "x", &self.rows_of("m", width));
                let residual = input(text, "residual", &self.rows_of("m", width));
                let vector = format!("f32[{WIDTH}]");
                let gain = text.node("param {value=gain}", &vector);
                let bias = text.node("param {value=bias}", &vector);
                vec![x, gain, bias, residual]
            }
            Kind::Attention { keys, .. } => {
                let q = input(text, "q", &self.rows_of("m", width));
                let k = input(text, "k", &self.rows_of("k", width));
                let v = input(text, "v", &self.rows_of("k", width));
                let mask = input(text, "mask", &format!("f32[k:{keys}]"));
                vec![q, k, v, mask]
            }
            Kind::Embedding { rows } => {
                let table = format!("{}[{WORDS},{WIDTH}]", self.dtype);
                let table = text.node("param {value=table}", &table);
                let index = |copy| input(text, &format!("index{copy}"), &format!("i32[m:{rows}]"));
                std::iter::once(table)
                    .chain((0..COPIES).map(index))
                    .collect()
            }
        }
    }

    /// The op of that number; `last` is the one before, if there is one.
    fn op_node(
        &self,
        text: &mut Text,
        leaves: &[String],
        last: &str,
        copy: usize,
        outputs: usize,
    ) -> String {
        let x = if copy > 0 { last } else { leaves[0].as_str() };
        match self.kind {
            Kind::Linear(shape) => {
                let weight = format!("{}[{outputs},{}]", self.dtype, shape.inputs);
                let weight = text.node(&format!("param {{value=weight{copy}}}"), &weight);
                let bias = text.node(
                    &format!("param {{value=bias{copy}}}"),
                    &format!("f32[{outputs}]"),
                );
                let linear = format!("linear {}, {weight}, {bias}", leaves[0]);
                text.node(&linear, &self.rows_of("m", outputs))
            }
            Kind::Attention { .. } => {
                let [_, k, v, mask] = leaves else {
                    return String::new();
                };
                let attention =
                    format!("attention {x}, {k}, {v}, {mask} {{heads={HEADS}, scale=0.125}}");
                text.node(&attention, &self.rows_of("m", WIDTH))
            }
            Kind::LayerNorm { .. } => {
                let [_, gain, bias, residual] = leaves else {
                    return String::new();
                };
                let norm = format!("layer_norm {x}, {gain}, {bias}, {residual} {{eps=1e-12}}");
                text.node(&norm, &self.rows_of("m", WIDTH))
            }
            Kind::Gelu { .. } => text.node(
                &format!("activate {x} {{kind=gelu}}"),
                &self.rows_of("m", WIDE),
            ),
            Kind::Embedding { .. } => {
                let gather = format!("gather_rows {}, {}", leaves[0], leaves[1 + copy]);
                text.node(&gather, &self.rows_of("m", WIDTH))
            }
        }
    }
}

impl Kind {
    fn rows(self) -> usize {
        match self {
            Kind::Linear(Shape { rows, .. })
            | Kind::LayerNorm { rows }
            | Kind::Gelu { rows }
            | Kind::Embedding { rows } => rows,
            Kind::Attention { queries, .. } => queries,
        }
    }
}

/// The text form of a graph in the making.
struct Text {
    lines: String,
    outputs: String,
    nodes: usize,
}

impl Text {
    /// One segment of rows `m`, and for attention one of rows `k`.
    fn new(kind: Kind) -> Text {
        let rows = kind.rows();
        let mut lines = format!(
            "graph @bench {{\n  rows sample = 1\n  rows m = {rows} by sample, {rows} each\n"
        );
        if let Kind::Attention { keys, .. } = kind {
            lines += &format!("  rows k = {keys} by sample, {keys} each\n");
        }
        Text {
            lines,
            outputs: String::new(),
            nodes: 0,
        }
    }

    /// Adds a node of that type and returns its name.
    fn node(&mut self, definition: &str, ty: &str) -> String {
        let name = format!("%{}", self.nodes);
        self.nodes += 1;
        self.lines += &format!("  {name} = {definition} : {ty}\n");
        name
    }

    fn output(&mut self, node: &str, name: &str) {
        self.outputs += &format!("  return {node} as \"{name}\"\n");
    }

    fn finish(self) -> String {
        format!("{}{}}}\n", self.lines, self.outputs)
    }
}

#[cfg(test)]
mod tests {
    use lxpod_ir::verify;

    use super::*;

    #[test]
    fn every_case_is_two_graphs_of_its_op() {
        let mut names: Vec<String> = all().iter().map(Case::name).collect();
        for case in all().iter().filter(|case| case.kind.rows() <= 20) {
            for graph in [case.graph(1 << 20), case.reference()] {
                let graph = graph.unwrap_or_else(|error| panic!("{}: {error}", case.name()));
                verify(&graph).expect("a valid graph");
                let ops = graph
                    .nodes()
                    .filter(|&id| graph.node(id).op.name() == case.op());
                assert!(ops.count() >= 1, "{}", case.name());
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn shapes_parse() {
        let shape = Shape {
            rows: 20,
            outputs: 768,
            inputs: 3072,
        };
        assert_eq!("20,768, 3072".parse(), Ok(shape));
        for wrong in [
            "",
            "1,2",
            "0,5,x",
            "1,2,0",
            "1,2,3,4",
            "65537,1,1",
            "65536,65536,1",
        ] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
