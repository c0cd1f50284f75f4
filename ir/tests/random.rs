//! Random graphs: well-typed, runnable, and the same after a trip through the text form.

use std::collections::BTreeSet;

use lxpod_ir::random::{Rng, random_extents, random_feeds, random_graph, random_placed_graph};
use lxpod_ir::text::{parse, parse_with_lines, print, render_verify_errors};
use lxpod_ir::{Extents, Graph, Tensor, interpret, ops::Op, verify};
use proptest::prelude::*;

fn run(graph: &Graph, seed: u64) -> Vec<Tensor<f32>> {
    let extents = random_extents(&graph.spaces, seed);
    let feeds = random_feeds(graph, &extents, seed);
    interpret(graph, &extents, |op, ty| feeds.feed(op, ty)).unwrap()
}

/// The bits of all elements, so that NaN equals itself.
fn bits(outputs: &[Tensor<f32>]) -> Vec<Vec<u32>> {
    let elements = outputs.iter().map(|tensor| tensor.reals().iter());
    elements
        .map(|elements| elements.map(|value| value.to_bits()).collect())
        .collect()
}

/// The text with a few bytes changed, dropped, doubled or swapped for pieces of itself.
fn mutate(text: &str, seed: u64) -> String {
    let mut rng = Rng::new(seed);
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len());
        let length = (1 + rng.below(12)).min(bytes.len() - at);
        let from = rng.below(bytes.len() - length);
        let piece = bytes[from..from + length].to_vec();
        match rng.below(5) {
            0 => bytes[at] = b" %{}[]:,=\"9;@\n"[rng.below(14)],
            1 => drop(bytes.splice(at..at + length, [])),
            2 => drop(bytes.splice(at..at, piece)),
            3 => drop(bytes.splice(at..at + length, piece)),
            _ => drop(bytes.splice(at..at, *b"99999999999")),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads hostile text as far as it goes; nothing may panic.
fn try_all(text: &str) {
    match parse_with_lines(text) {
        Err(error) => {
            error.render("x.lx", text);
        }
        Ok((graph, lines)) => {
            let printed = print(&graph);
            assert_eq!(print(&parse(&printed).unwrap()), printed);
            match verify(&graph) {
                Ok(()) => {
                    for id in graph.nodes() {
                        graph.cost(id);
                    }
                }
                Err(errors) => {
                    render_verify_errors("x.lx", text, &lines, &errors);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn graphs_verify_print_and_run(seed: u64, size in 1usize..60) {
        let graph = random_graph(seed, size);
        verify(&graph).unwrap();
        let printed = print(&graph);
        let parsed = parse(&printed).unwrap();
        verify(&parsed).unwrap();
        prop_assert_eq!(&print(&parsed), &printed);
        let outputs = run(&graph, seed);
        prop_assert_eq!(bits(&outputs), bits(&run(&parsed, seed)));
        let finite = outputs.iter().all(|tensor| tensor.reals().iter().all(|x| x.is_finite()));
        prop_assert!(finite, "{}", printed);
    }

    #[test]
    fn full_extents_cost_what_the_capacities_cost(seed: u64, size in 1usize..60) {
        let graph = random_graph(seed, size);
        let full = Extents::full(&graph.spaces);
        let some = random_extents(&graph.spaces, seed);
        for id in graph.nodes() {
            let cost = graph.cost(id);
            prop_assert_eq!(graph.cost_at(id, &full), cost);
            let less = graph.cost_at(id, &some);
            prop_assert!(less.flops <= cost.flops && less.read <= cost.read && less.written <= cost.written);
        }
    }

    #[test]
    fn placing_changes_no_bit(seed: u64, size in 1usize..40, stages in 1u32..6) {
        let graph = random_graph(seed, size);
        let placed = random_placed_graph(seed, size, stages);
        verify(&placed).unwrap();
        prop_assert_eq!(print(&parse(&print(&placed)).unwrap()), print(&placed));
        prop_assert_eq!(bits(&run(&graph, seed)), bits(&run(&placed, seed)));
    }

    #[test]
    fn mutated_text_never_panics(seed: u64) {
        for round in 0..24 {
            let text = print(&random_placed_graph(seed, 12, 2));
            try_all(&mutate(&text, seed ^ round));
        }
    }

    #[test]
    fn any_text_never_panics(text in "\\PC*", tokens in "(graph|@|\\{|\\}|rows|[a-z%0-9]{0,3}|=|by|of|,|:|f32|\\[|\\]|input|\"|;|\n| |é|\u{1F600}){0,40}") {
        try_all(&text);
        try_all(&tokens);
        try_all(&format!("graph @g {{\n{tokens}"));
    }
}

#[test]
fn all_ops_appear() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let graph = random_placed_graph(seed, 60, 3);
        seen.extend(graph.nodes().map(|id| graph.node(id).op.name()));
    }
    // The ops that only gradients are made of appear where random graphs are differentiated.
    let of_gradients = Op::NAMES.iter().position(|name| *name == "zeros");
    let all = Op::NAMES[..of_gradients.unwrap()].iter().copied();
    assert_eq!(seen, all.collect::<BTreeSet<&str>>());
}

#[test]
fn seeds_decide_everything() {
    assert_eq!(print(&random_graph(5, 40)), print(&random_graph(5, 40)));
    assert_ne!(print(&random_graph(5, 40)), print(&random_graph(6, 40)));
}
