//! Extents of several runs end to end.

use lxpod_ir::{Extents, SpaceId, Spaces};
use proptest::prelude::*;

/// Spaces of every layout: two kinds of segments of samples, their union, and a union of that with entities.
fn spaces() -> (Spaces, Vec<SpaceId>) {
    let mut spaces = Spaces::default();
    let sample = spaces.entities("sample", 4);
    let text = spaces.segments("text", sample, 9);
    let boxes = spaces.segments("box", sample, 5);
    let both = spaces.union(&[text, boxes]);
    let all = spaces.union(&[both, sample]);
    (spaces, vec![sample, text, boxes, both, all])
}

/// A run of so many samples, with the rows of each.
fn run(spaces: &Spaces, lengths: &[[usize; 2]]) -> Extents {
    let length = |id: SpaceId, sample: usize, _| match spaces.get(id).name.as_str() {
        "text" => lengths[sample][0],
        _ => lengths[sample][1],
    };
    Extents::new(spaces, |_, _| lengths.len(), length).expect("extents that fit")
}

proptest! {
    #[test]
    fn runs_end_to_end_are_one_run_of_all_samples(
        lengths in prop::collection::vec(prop::collection::vec([0..=9_usize, 0..=5_usize], 0..=4), 1..6),
    ) {
        let (spaces, ids) = spaces();
        let runs: Vec<Extents> = lengths.iter().map(|lengths| run(&spaces, lengths)).collect();
        let joined = Extents::joined(&spaces, runs.iter());
        for &id in &ids[..3] {
            let alone = runs.iter().flat_map(|run| (0..run.segments(id)).map(|at| run.segment(id, at).len()));
            let found = (0..joined.segments(id)).map(|at| joined.segment(id, at).len());
            prop_assert_eq!(found.collect::<Vec<_>>(), alone.collect::<Vec<_>>());
        }
        for &id in &ids {
            let mut seen = vec![0; joined.rows(id)];
            for (index, alone) in runs.iter().enumerate() {
                let mut own = Vec::new();
                Extents::visit_joined(&spaces, runs.iter(), index, id, &mut |rows| own.extend(rows));
                prop_assert_eq!(own.len(), alone.rows(id));
                prop_assert!(own.is_sorted());
                own.iter().for_each(|&row| seen[row] += 1);
                // A row keeps its kind, and its place among those of its run.
                let mut kinds = Vec::new();
                joined.visit_segments(&spaces, id, &mut |segment| {
                    kinds.extend(segment.rows.map(|_| segment.space));
                });
                let mut expected = Vec::new();
                alone.visit_segments(&spaces, id, &mut |segment| {
                    expected.extend(segment.rows.map(|_| segment.space));
                });
                let found: Vec<SpaceId> = own.iter().map(|&row| kinds[row]).collect();
                prop_assert_eq!(found, expected);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }
    }
}
