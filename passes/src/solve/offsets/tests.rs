//! Brute force, published small instances, limits and determinism.

use super::*;
use proptest::prelude::*;

fn buffer(size: u64, start: u32, end: u32) -> Buffer {
    Buffer {
        size,
        start,
        end,
        align: 1,
    }
}

/// The columns `id,lower,upper,size`.
fn parse(text: &str) -> Vec<Buffer> {
    let row = |line: &str| {
        let field: Vec<&str> = line.split(',').collect();
        buffer(
            field[3].parse().unwrap(),
            field[1].parse().unwrap(),
            field[2].parse().unwrap(),
        )
    };
    text.lines().skip(1).map(row).collect()
}

/// Least peak over first fit of every permutation: some permutation reproduces any pushed-down assignment.
fn brute(buffers: &[Buffer]) -> u64 {
    fn permute(buffers: &[Buffer], order: &mut Vec<usize>, at: usize, best: &mut u64) {
        if at == order.len() {
            *best = (*best).min(peak(
                buffers,
                &greedy::place(buffers, order, greedy::Fit::First),
            ));
        }
        for i in at..order.len() {
            order.swap(at, i);
            permute(buffers, order, at + 1, best);
            order.swap(at, i);
        }
    }
    let mut best = u64::MAX;
    permute(buffers, &mut (0..buffers.len()).collect(), 0, &mut best);
    best
}

fn live_at(buffers: &[Buffer], step: u32) -> u64 {
    buffers
        .iter()
        .filter(|b| (b.start..b.end).contains(&step))
        .map(|b| b.size)
        .sum()
}

fn buffers(most: usize, steps: u32) -> impl Strategy<Value = Vec<Buffer>> {
    let one = (
        0u64..9,
        0..steps,
        0..steps,
        prop::sample::select(vec![1u64, 1, 1, 2, 4]),
    );
    let one = one.prop_map(|(size, start, length, align)| Buffer {
        size,
        start,
        end: start + length,
        align,
    });
    prop::collection::vec(one, 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn tiny_instances_equal_brute_force(buffers in buffers(7, 6)) {
        let got = assign(&buffers, &Limits::default()).unwrap();
        prop_assert_eq!(conflict(&buffers, &got.offsets), None);
        prop_assert_eq!(got.peak, brute(&buffers));
        prop_assert_eq!(got.peak, peak(&buffers, &got.offsets));
        prop_assert!(got.optimal && got.lower_bound == got.peak);
    }

    #[test]
    fn the_search_alone_decides_feasibility(buffers in buffers(7, 6), slack in 0u64..8) {
        let best = brute(&buffers);
        let capacity = (best + 3).saturating_sub(slack);
        match exact::Exact::new(&buffers, None).fit(capacity, 1 << 20) {
            Outcome::Fits(offsets) => {
                prop_assert_eq!(conflict(&buffers, &offsets), None);
                prop_assert!(peak(&buffers, &offsets) <= capacity && best <= capacity);
            }
            Outcome::Impossible => prop_assert!(best > capacity),
            Outcome::Spent => prop_assert!(false),
        }
    }

    #[test]
    fn large_instances_are_legal_and_repeatable(buffers in buffers(60, 40), nodes in 0u64..3000) {
        let limits = Limits { nodes, ..Limits::default() };
        let got = assign(&buffers, &limits).unwrap();
        prop_assert_eq!(conflict(&buffers, &got.offsets), None);
        prop_assert_eq!(max_live(&buffers), (0..80).map(|t| live_at(&buffers, t)).max().unwrap());
        prop_assert!(max_live(&buffers) <= got.lower_bound && got.lower_bound <= got.peak);
        prop_assert_eq!(got.optimal, got.lower_bound == got.peak);
        prop_assert_eq!(assign(&buffers, &limits).unwrap(), got);
    }
}

#[test]
fn published_small_instances_are_solved() {
    let files = [
        (include_str!("../../../tests/data/a.6.csv"), 6),
        (include_str!("../../../tests/data/b.6.csv"), 6),
        (include_str!("../../../tests/data/c.8.csv"), 8),
        (include_str!("../../../tests/data/d.9.csv"), 9),
        (include_str!("../../../tests/data/e.12.csv"), 12),
        (include_str!("../../../tests/data/f.14.csv"), 14),
        (include_str!("../../../tests/data/g.7.csv"), 7),
        (include_str!("../../../tests/data/input.12.csv"), 12),
    ];
    for (text, capacity) in files {
        let buffers = parse(text);
        let got = assign(&buffers, &Limits::default()).unwrap();
        assert_eq!((got.peak, got.optimal), (capacity, true), "{text}");
        assert_eq!(conflict(&buffers, &got.offsets), None);
        let fit = assign(
            &buffers,
            &Limits {
                capacity: Some(capacity),
                ..Limits::default()
            },
        )
        .unwrap();
        assert!(fit.peak <= capacity);
        let none = assign(
            &buffers,
            &Limits {
                capacity: Some(capacity - 1),
                ..Limits::default()
            },
        )
        .unwrap();
        assert!(none.peak > capacity - 1 && none.lower_bound > capacity - 1);
    }
}

#[test]
fn published_hard_instances_fit() {
    let files = [
        include_str!("../../../tests/data/B.1048576.csv"),
        include_str!("../../../tests/data/E.1048576.csv"),
    ];
    for text in files {
        let buffers = parse(text);
        let greedy = Limits {
            capacity: None,
            nodes: 0,
            stop: None,
        };
        assert!(!assign(&buffers, &greedy).unwrap().optimal);
        let got = assign(&buffers, &Limits::default()).unwrap();
        assert_eq!((got.peak, got.optimal), (1_048_576, true));
        assert_eq!(conflict(&buffers, &got.offsets), None);
    }
}

#[test]
fn the_bound_is_not_always_reached() {
    // Live bytes never exceed 4, yet no assignment ends below 5: the middle buffers block each other.
    let buffers =
        parse("id,lower,upper,size\n0,0,4,1\n1,0,2,2\n2,1,3,1\n3,3,6,2\n4,2,5,1\n5,5,7,2\n6,4,7,1");
    let got = assign(&buffers, &Limits::default()).unwrap();
    assert!(got.optimal && got.peak == brute(&buffers));
}

#[test]
fn alignment_is_kept_and_counted() {
    let mut buffers = vec![buffer(3, 0, 2), buffer(5, 0, 2)];
    buffers[1].align = 4;
    let got = assign(&buffers, &Limits::default()).unwrap();
    assert_eq!((got.peak, got.optimal), (8, true));
    buffers[0].align = 4;
    let got = assign(&buffers, &Limits::default()).unwrap();
    assert_eq!((got.peak, got.lower_bound), (9, 9));
    buffers[0].align = 0;
    assert_eq!(
        assign(&buffers, &Limits::default()),
        Err(OffsetError::Alignment(0))
    );
    assert_eq!(
        assign(&[buffer(u64::MAX, 0, 1)], &Limits::default()),
        Err(OffsetError::Overflow)
    );
}

#[test]
fn nothing_to_place() {
    let dead = [buffer(5, 3, 3), buffer(0, 0, 9)];
    let got = assign(&dead, &Limits::default()).unwrap();
    assert_eq!((got.offsets, got.peak, got.optimal), (vec![0, 0], 0, true));
    assert_eq!(assign(&[], &Limits::default()).unwrap().peak, 0);
}

#[test]
fn a_huge_component_does_not_exhaust_the_stack() {
    let ring = |i: u32| [buffer(3, i, i + 2), buffer(2, i, i + 3)];
    let buffers: Vec<Buffer> = (0..1100).flat_map(ring).collect();
    let found = exact::Exact::new(&buffers, None).fit(max_live(&buffers), 2_200);
    if let Outcome::Fits(offsets) = found {
        assert_eq!(conflict(&buffers, &offsets), None);
    }
}
