//! Hosts and separators against brute force.

use super::*;
use proptest::prelude::*;

/// Whether the devices of a placement can be ordered so that every ordering edge runs forward.
fn is_contiguous(p: &Problem, device_of: &[usize]) -> bool {
    let values = p.values.iter().filter(|v| !v.feedback);
    let implied = values.flat_map(|v| {
        v.producer
            .iter()
            .flat_map(|&a| v.users.iter().map(move |&u| (a, u)))
    });
    let edges = p.edges.iter().map(|e| (e.from, e.to)).chain(implied);
    let between = edges.map(|(a, b)| (device_of[a], device_of[b]));
    Dag::new(p.devices + p.hosts, between.filter(|(a, b)| a != b)).is_ok()
}

/// Load and bytes of each device by the definition, for problems with plain values alone.
fn costs(p: &Problem, device_of: &[usize]) -> Vec<(u64, u64)> {
    let on = |d: usize| (0..p.items.len()).filter(move |&i| device_of[i] == d);
    let device = |d: usize| {
        let bytes = on(d).map(|i| p.items[i].resident).sum();
        if d >= p.devices {
            return (on(d).map(|i| p.items[i].host_cycles).sum(), 0);
        }
        let paid = p.values.iter().filter(|v| {
            let here = |&&i: &&usize| device_of[i] == d;
            let ends = v.users.iter().chain(&v.producer);
            let inside = ends.clone().filter(here).count();
            inside > 0 && (inside < ends.count() || v.producer.is_none())
        });
        let cycles: u64 = on(d).map(|i| p.items[i].cycles).sum();
        (cycles + paid.map(|v| v.cost).sum::<u64>(), bytes)
    };
    (0..p.devices + p.hosts).map(device).collect()
}

/// The least bottleneck over every contiguous placement that fits.
fn brute(p: &Problem) -> Option<u64> {
    let (n, devices) = (p.items.len(), p.devices + p.hosts);
    let mut best = None;
    for code in 0..devices.pow(n as u32) {
        let device_of: Vec<usize> = (0..n)
            .map(|i| code / devices.pow(i as u32) % devices)
            .collect();
        let runs = (0..n).all(|i| device_of[i] >= p.devices || !p.items[i].host_only);
        let costs = costs(p, &device_of);
        let fits = costs
            .iter()
            .all(|c| c.1 <= p.memory_limit.unwrap_or(u64::MAX));
        if runs && fits && is_contiguous(p, &device_of) {
            let load = costs.iter().map(|c| c.0).max().unwrap_or(0);
            best = Some(best.map_or(load, |b: u64| b.min(load)));
        }
    }
    best
}

/// Segments of one or a few items, in a chain: the values join neighbouring segments, forward or as feedback.
pub(super) fn blocks(
    widths: &[usize],
    draws: &[(u64, u64, u64, bool)],
    ends: &[(usize, usize, u64, bool)],
) -> Problem {
    let n: usize = widths.iter().sum();
    let segment: Vec<usize> = widths
        .iter()
        .enumerate()
        .flat_map(|(s, &w)| vec![s; w])
        .collect();
    let item = |&(cycles, resident, host_cycles, host_only): &(u64, u64, u64, bool)| Item {
        cycles,
        resident,
        host_cycles,
        host_only,
        ..Item::default()
    };
    let mut p = Problem {
        items: draws[..n].iter().map(item).collect(),
        ..Problem::default()
    };
    for from in 0..n {
        for to in 0..n {
            if segment[from] + 1 == segment[to]
                && (widths[segment[from]] == 1 || widths[segment[to]] == 1)
            {
                p.edges.push(Edge { from, to });
            }
        }
    }
    for &(a, b, cost, feedback) in ends {
        let (a, b) = (a % n, b % n);
        if segment[a].abs_diff(segment[b]) <= 1 && (feedback || segment[a] < segment[b]) {
            p.values.push(Value {
                producer: Some(a),
                users: vec![b],
                cost,
                feedback,
                ..Value::default()
            });
        }
    }
    p
}

prop_compose! {
    pub(super) fn chain_of_blocks()(
        widths in prop::collection::vec(1usize..3, 1..5),
        draws in prop::collection::vec((0u64..20, 0u64..6, 0u64..40, prop::bool::weighted(0.1)), 8),
        ends in prop::collection::vec((0usize..8, 0usize..8, 0u64..9, prop::bool::weighted(0.3)), 0..10),
        devices in 0usize..3,
        hosts in 0usize..3,
        limit in prop::option::of(4u64..20),
    ) -> Problem {
        let mut widths = widths;
        while widths.iter().sum::<usize>() > 7 {
            widths.pop();
        }
        let mut p = blocks(&widths, &draws, &ends);
        p.devices = devices.max(usize::from(hosts == 0));
        p.hosts = hosts;
        p.memory_limit = limit;
        for item in &mut p.items {
            item.host_only &= hosts > 0;
        }
        p
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn chains_of_blocks_equal_brute_force(p in chain_of_blocks()) {
        match (solve(&p, &Limits::default()), brute(&p)) {
            (Ok(s), Some(least)) => {
                let costs = costs(&p, &s.device_of);
                prop_assert_eq!(s.objective, least);
                prop_assert_eq!(&s.loads, &costs.iter().map(|c| c.0).collect::<Vec<_>>());
                prop_assert!(s.optimal && is_contiguous(&p, &s.device_of));
                let fits = |&(_, bytes): &(u64, u64)| bytes <= p.memory_limit.unwrap_or(u64::MAX);
                prop_assert!(costs.iter().all(fits));
            }
            (Err(PartitionError::Memory { proven: true, .. }), None) => {}
            (got, want) => prop_assert!(false, "{got:?} against {want:?}"),
        }
    }

    #[test]
    fn a_budget_gives_a_legal_answer_with_hosts(mut p in chain_of_blocks(), steps in 0u64..100) {
        p.memory_limit = None;
        let s = solve(&p, &Limits { steps, ..Limits::default() }).unwrap();
        let least = brute(&p).unwrap();
        prop_assert!(s.lower_bound <= least && least <= s.objective);
        prop_assert!(is_contiguous(&p, &s.device_of));
    }
}

#[test]
fn blocks_have_separators() {
    let draw = (3, 1, 9, false);
    let p = blocks(
        &[1, 2, 1, 2, 1],
        &[draw; 7],
        &[(0, 1, 4, false), (3, 4, 5, false), (4, 3, 6, true)],
    );
    let (model, dag) = Model::new(&Problem { devices: 3, ..p }).unwrap();
    let lattice = Lattice::enumerate(&dag, 100).unwrap();
    let found = separators::separators(&model, &lattice);
    let items: Vec<u32> = found.iter().flatten().map(|s| s.item).collect();
    assert_eq!(items, [0, 3, 6]);
    let costs: Vec<_> = found.iter().flatten().map(|s| (s.above, s.below)).collect();
    assert_eq!(costs, [(4, 0), (11, 0), (0, 0)]);
}

#[test]
fn a_stop_ends_the_search_with_a_split() {
    let draw = (3, 1, 9, false);
    let p = Problem {
        devices: 2,
        hosts: 1,
        ..blocks(&[1, 2, 1, 2, 1], &[draw; 7], &[])
    };
    let stop = AtomicBool::new(true);
    let limits = Limits {
        stop: Some(&stop),
        steps: 1 << 20,
        ..Limits::default()
    };
    let s = solve(&p, &limits).unwrap();
    assert!(is_contiguous(&p, &s.device_of) && s.lower_bound <= s.objective && !s.optimal);
}
