//! Every pass on random graphs: what the graph computes does not change.

mod support;

use lxpod_ir::ops::Op;
use lxpod_ir::random::{random_extents, random_feeds, random_graph};
use lxpod_ir::text::print;
use lxpod_ir::{Graph, interpret};
use lxpod_passes::{Manager, Options, PASSES, PIPELINE, Pass, Precision, find, optimise};
use proptest::prelude::*;
use support::{World, apply, extended, random, same_bits};

/// Whether an index of entities picks rows of segments that they own. It must name a row of its own
/// for each entity, and feeds that know nothing of this may give any row.
fn picks_own_rows(graph: &Graph) -> bool {
    graph.nodes().any(|id| {
        let types = graph.input_types(id);
        match (&graph.node(id).op, types.first().and_then(|ty| ty.rows)) {
            (Op::GatherRows(_), Some(rows)) => types[1].rows == graph.spaces.owner(rows),
            _ => false,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

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
        let options = Options { precision: Precision::Fp32, ..Options::default() };
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
        optimise(&mut full, &Options { precision: Precision::Fp32, ..Options::default() }).unwrap();
        optimise(&mut mixed, &Options { precision: Precision::Mixed, ..Options::default() }).unwrap();
        prop_assert_eq!(print(&mixed).replace("f16[", "f32["), print(&full));
    }
    #[test]
    fn all_dtypes_and_all_ops(seed: u64, size in 10usize..60) {
        let graph = random_graph(seed, size);
        let extents = random_extents(&graph.spaces, seed);
        let feeds = random_feeds(&graph, &extents, seed);
        // feeds do not know the rows of a tensor that no parameter of the graph is as a whole
        let run = |graph: &Graph| {
            let extents = extended(&extents, &graph.spaces);
            match interpret::<f32>(graph, &extents, |op, ty| feeds.feed(op, ty)) {
                Err(error) if error.contains("are not known") => None,
                outputs => Some(outputs.unwrap()),
            }
        };
        let same = |after: &Graph, place: &str| {
            if let (Some(before), Some(after)) = (run(&graph), run(after)) {
                same_bits(&before, &after, place);
            }
        };
        let passes: Vec<&Pass> = PIPELINE.iter().copied()
            .filter(|pass| pass.name != "narrow" || !picks_own_rows(&graph))
            .collect();
        let mut manager = Manager::new(Options { precision: Precision::Fp32, ..Options::default() });
        for pass in &passes {
            let mut after = graph.clone();
            manager.run(&[find("cse").unwrap(), pass], &mut after).unwrap();
            same(&after, pass.name);
        }
        let mut after = graph.clone();
        manager.run(&passes, &mut after).unwrap();
        same(&after, "pipeline");
        optimise(&mut after, &Options::default()).unwrap();
    }
}

/// A norm over the rows themselves: no row of it may be computed alone.
#[test]
fn a_norm_over_rows_is_not_narrowed() {
    let mut graph = random_graph(16709451904225733701, 35);
    optimise(&mut graph, &Options::default()).unwrap();
}
