//! Cost models: orderings that must hold, and figures worked out by hand.

use lxpod_ir::random::{random_extents, random_graph};
use lxpod_ir::text::parse;
use lxpod_ir::{Extents, Graph, Target};
use lxpod_passes::cost;
use proptest::prelude::*;

fn targets() -> [Target; 2] {
    ["pod16", "cpu"].map(|name| Target::named(name).unwrap())
}

/// A linear layer of `rows` rows, with its node as the last.
fn linear(rows: usize, dtype: &str) -> Graph {
    linear_of(rows, dtype, [3072, 768])
}

/// A linear layer with a weight of that shape.
fn linear_of(rows: usize, dtype: &str, [outputs, inputs]: [usize; 2]) -> Graph {
    let text = format!(
        "graph @linear {{
  rows sample = 1
  rows text = {rows} by sample, {rows} each
  %0 = input {{name=x}} : {dtype}[text:{rows},{inputs}]
  %1 = param {{value=w}} : {dtype}[{outputs},{inputs}]
  %2 = linear %0, %1 : {dtype}[text:{rows},{outputs}]
  return %2 as \"y\"
}}
"
    );
    parse(&text).unwrap()
}

fn total(target: &Target, graph: &Graph, extents: Option<&Extents>) -> u64 {
    let model = cost::model(target);
    let nodes = graph.nodes().map(|id| match extents {
        Some(extents) => model.node_at(graph, id, extents).total(),
        None => model.node(graph, id).total(),
    });
    nodes.sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn full_extents_take_what_capacities_take(seed: u64, size in 1usize..60) {
        let graph = random_graph(seed, size);
        let full = Extents::full(&graph.spaces);
        for target in targets() {
            prop_assert_eq!(total(&target, &graph, Some(&full)), total(&target, &graph, None));
        }
    }

    #[test]
    fn fewer_rows_never_take_longer(seed: u64, size in 1usize..60) {
        let graph = random_graph(seed, size);
        let some = random_extents(&graph.spaces, seed);
        for target in targets() {
            prop_assert!(total(&target, &graph, Some(&some)) <= total(&target, &graph, None));
        }
    }
}

#[test]
fn more_rows_or_wider_weights_never_take_fewer_cycles() {
    for target in targets() {
        let mut before = 0;
        for rows in 1..=200 {
            let half = total(&target, &linear(rows, "f16"), None);
            let single = total(&target, &linear(rows, "f32"), None);
            assert!(half <= single, "{rows} rows on {}", target.name);
            assert!(before <= half, "{rows} rows on {}", target.name);
            before = half;
        }
    }
}

/// Tiles of three and four rows take nearly the same cycles, which what is not hidden must not outweigh.
#[test]
fn on_a_cpu_more_rows_never_take_fewer_cycles_whatever_the_weight() {
    let cpu = Target::named("cpu").unwrap();
    for shape in [[12, 12], [16, 300], [3072, 768], [768, 3072]] {
        for dtype in ["f16", "f32"] {
            let of = |rows| total(&cpu, &linear_of(rows, dtype, shape), None);
            for rows in 1..200 {
                let [fewer, more] = [rows, rows + 1].map(of);
                assert!(
                    fewer <= more,
                    "{rows} rows of {shape:?} in {dtype}: {fewer} after {more}"
                );
            }
        }
    }
}

#[test]
fn a_tall_product_nears_the_peak_and_a_flat_one_the_memory() {
    let cpu = Target::named("cpu").unwrap();
    let peak = 2 * cpu.tile.macs_float * cpu.tile.cores;
    let ideal = 2 * 480 * 768 * 3072 / peak;
    let tall = total(&cpu, &linear(480, "f32"), None);
    assert!(
        (0.8..1.0).contains(&(ideal as f64 / tall as f64)),
        "{tall} {ideal}"
    );
    let seconds = total(&cpu, &linear(1, "f32"), None) as f64 / cpu.tile.clock_hz as f64;
    let read = (4 * 768 * 3072) as f64 / cpu.host.bytes_per_second as f64;
    assert!((1.0..1.2).contains(&(seconds / read)), "{seconds} {read}");
    let mut more = cpu;
    more.tile.cores = 4;
    let halved = total(&more, &linear(480, "f32"), None) as f64 / tall as f64;
    assert!((0.5..0.6).contains(&halved), "{halved}");
}
