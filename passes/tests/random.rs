//! Every pass on random graphs: what the graph computes does not change.

mod support;

use lxpod_ir::text::print;
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
        let graph = random::graph(seed, size);
        let world = World::new(&graph, seed);
        let options = Options { precision: Precision::Fp32 };
        let [mut once, mut again] = [graph.clone(), graph.clone()];
        optimise(&mut once, &options).unwrap();
        optimise(&mut again, &options).unwrap();
        prop_assert_eq!(print(&once), print(&again));
        same_bits(&world.run(&graph), &world.run(&once), "pipeline");
        optimise(&mut once, &options).unwrap();
        same_bits(&world.run(&graph), &world.run(&once), "pipeline twice");
    }

    #[test]
    fn mixed_precision_only_changes_dtypes(seed: u64, size in 4usize..60) {
        let mut full = random::graph(seed, size);
        let mut mixed = full.clone();
        optimise(&mut full, &Options { precision: Precision::Fp32 }).unwrap();
        optimise(&mut mixed, &Options { precision: Precision::Mixed }).unwrap();
        prop_assert_eq!(print(&mixed).replace("f16[", "f32["), print(&full));
    }
}
