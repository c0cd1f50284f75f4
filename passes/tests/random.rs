//! Every pass on random graphs: what the graph computes does not change.

mod support;

use lxpod_passes::{Options, PASSES, Precision, optimise};
use proptest::prelude::*;
use support::{World, apply, random, same_bits};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_pass_keeps_every_bit(seed: u64, size in 4usize..40) {
        let graph = random::graph(seed, size);
        let world = World::new(&graph, seed);
        let before = world.run(&graph);
        for pass in PASSES {
            let mut after = graph.clone();
            apply(&mut after, &format!("cse,dce,{0},{0}", pass.name));
            same_bits(&before, &world.run(&after), pass.name);
        }
    }

    #[test]
    fn the_pipeline_keeps_every_bit(seed: u64, size in 4usize..60) {
        let mut graph = random::graph(seed, size);
        let world = World::new(&graph, seed);
        let mut after = graph.clone();
        let options = Options { precision: Precision::Fp32 };
        let before = world.run(&graph);
        let report = optimise(&mut after, &options).unwrap();
        same_bits(&before, &world.run(&after), "pipeline");
        let again = optimise(&mut graph, &options).unwrap();
        prop_assert_eq!(report.patches(), again.patches());
        prop_assert_eq!(optimise(&mut after.clone(), &options).map(|_| ()).is_ok(), true);
    }

    #[test]
    fn mixed_precision_verifies_and_settles(seed: u64, size in 4usize..60) {
        let mut graph = random::graph(seed, size);
        optimise(&mut graph, &Options::default()).unwrap();
        let types: Vec<_> = graph.nodes().map(|id| graph.node(id).types.clone()).collect();
        apply(&mut graph, "cse");
        World::new(&random::graph(seed, size), seed).run(&graph);
        prop_assert!(!types.is_empty());
    }
}
