//! Brute force, published shapes, limits and ties.

use super::*;
use proptest::prelude::*;

fn items(cycles: &[u64]) -> Vec<Item> {
    cycles
        .iter()
        .map(|&cycles| Item {
            cycles,
            ..Item::default()
        })
        .collect()
}

fn value(producer: usize, users: &[usize], cost: u64) -> Value {
    Value {
        producer: Some(producer),
        users: users.to_vec(),
        cost,
        ..Value::default()
    }
}

fn run(problem: &Problem) -> Solution {
    solve(problem, &Limits::default()).unwrap()
}

/// A second definition of the cost, by sets, used only here.
fn costs(p: &Problem, device_of: &[usize]) -> (Vec<u64>, Vec<u64>) {
    let inside = |d: usize, i: usize| device_of[i] == d;
    let mut loads = Vec::new();
    let mut bytes = Vec::new();
    for d in 0..p.devices {
        let mine: Vec<usize> = (0..p.items.len()).filter(|&i| inside(d, i)).collect();
        let mut load: u64 = mine.iter().map(|&i| p.items[i].cycles).sum();
        let mut stash = 0;
        for v in &p.values {
            let ends: Vec<usize> = v.users.iter().chain(&v.producer).copied().collect();
            let here = ends.iter().filter(|&&i| inside(d, i)).count();
            let outside = v.producer.is_none() || here < ends.len();
            let before = |i: &usize| device_of[*i] < d;
            let after = |i: &usize| device_of[*i] > d;
            load += if v.relayed {
                let produced_before = v.producer.iter().any(before);
                let produced_here = v.producer.iter().any(|&i| inside(d, i));
                let enters = produced_before && !v.users.iter().all(before);
                let leaves = (produced_before || produced_here) && v.users.iter().any(after);
                v.cost * (u64::from(enters) + u64::from(leaves))
            } else if here > 0 && outside {
                v.cost
            } else {
                0
            };
            stash += if here > 0 { v.stash } else { 0 };
        }
        let behind = (d + 1..p.devices)
            .filter(|&e| (0..p.items.len()).any(|i| inside(e, i)))
            .count();
        let copies = p
            .in_flight
            .get(behind)
            .or(p.in_flight.last())
            .copied()
            .unwrap_or(0);
        let shared = p
            .shared
            .iter()
            .filter(|s| s.users.iter().any(|&u| inside(d, u)))
            .map(|s| s.bytes)
            .sum::<u64>();
        let resident: u64 = mine.iter().map(|&i| p.items[i].resident).sum();
        let workspace = mine
            .iter()
            .map(|&i| p.items[i].workspace)
            .max()
            .unwrap_or(0);
        loads.push(load);
        bytes.push(resident + workspace + shared + stash * copies);
    }
    (loads, bytes)
}

/// Least (bottleneck, total) over every assignment that respects the ordering and leaves no gap.
fn brute(p: &Problem) -> Option<(u64, u64)> {
    let n = p.items.len();
    let mut best = None;
    let mut device_of = vec![0; n];
    loop {
        let used = device_of.iter().max().map_or(0, |m| m + 1);
        let ordered = p.edges.iter().all(|e| device_of[e.from] <= device_of[e.to])
            && p.values.iter().filter(|v| !v.feedback).all(|v| {
                v.producer
                    .is_none_or(|a| v.users.iter().all(|&u| device_of[a] <= device_of[u]))
            });
        if ordered && (0..used).all(|d| device_of.contains(&d)) {
            let (loads, bytes) = costs(p, &device_of);
            if bytes
                .iter()
                .all(|&b| b <= p.memory_limit.unwrap_or(u64::MAX))
            {
                let key = (loads.iter().copied().max().unwrap_or(0), loads.iter().sum());
                best = Some(best.map_or(key, |b: (u64, u64)| b.min(key)));
            }
        }
        let Some(at) = (0..n).find(|&i| device_of[i] + 1 < p.devices) else {
            return best;
        };
        device_of[at] += 1;
        device_of[..at].fill(0);
    }
}

prop_compose! {
    pub(super) fn problem()(n in 1usize..7, devices in 1usize..4)(
        cycles in prop::collection::vec((0u64..20, 0u64..6, 0u64..6), n),
        edges in prop::collection::vec((0..n, 0..n), 0..4),
        values in prop::collection::vec((0..=n, prop::collection::vec(0..n, 0..4), 0u64..9, 0u64..3, prop::bool::weighted(0.25), any::<bool>()), 0..8),
        shared in prop::collection::vec((0u64..9, prop::collection::vec(0..n, 0..4)), 0..3),
        in_flight in prop::sample::select(vec![vec![], vec![1], vec![1, 2, 3], vec![0, 2]]),
        limit in prop::option::of(4u64..40),
        relabel in Just((0..n).collect::<Vec<_>>()).prop_shuffle(),
        devices in Just(devices),
    ) -> Problem {
        let n = cycles.len();
        let items = cycles.iter().map(|&(cycles, resident, workspace)| Item { cycles, resident, workspace, ..Item::default() }).collect();
        let edges = edges.into_iter().filter(|(a, b)| a < b)
            .map(|(a, b)| Edge { from: relabel[a], to: relabel[b] }).collect();
        let values = values.into_iter().map(|(p, users, cost, stash, feedback, relayed)| {
            let users = users.into_iter().filter(|&u| p == n || feedback || u > p).map(|u| relabel[u]).collect();
            Value { producer: (p < n).then(|| relabel[p]), users, cost, stash, feedback, relayed: relayed && p < n && !feedback }
        }).collect();
        let shared = shared.into_iter().map(|(bytes, users)| Shared { bytes, users }).collect();
        Problem { items, edges, values, shared, joint: Vec::new(), devices, hosts: 0, memory_limit: limit, in_flight, branches: None }
    }
}

/// Least bottleneck by dynamic programming over pairs of item sets given as masks; `memory_limit` is ignored.
fn by_masks(p: &Problem) -> u64 {
    let n = p.items.len();
    let ideal = |m: usize| {
        let has = |i: usize| m >> i & 1 != 0;
        p.edges.iter().all(|e| has(e.from) || !has(e.to))
            && p.values.iter().filter(|v| !v.feedback).all(|v| {
                v.producer
                    .is_none_or(|a| has(a) || v.users.iter().all(|&u| !has(u)))
            })
    };
    let ideals: Vec<usize> = (0..1 << n).filter(|&m| ideal(m)).collect();
    let load = |low: usize, high: usize| {
        let device = |i: usize| 2 - (low >> i & 1) - (high >> i & 1);
        let device_of: Vec<usize> = (0..n).map(device).collect();
        costs(
            &Problem {
                devices: 3,
                ..p.clone()
            },
            &device_of,
        )
        .0[1]
    };
    let mut best = vec![u64::MAX; 1 << n];
    best[0] = 0;
    for _ in 0..p.devices {
        let mut next = best.clone();
        for &low in ideals.iter().filter(|&&m| best[m] < u64::MAX) {
            for &high in ideals.iter().filter(|&&m| m & low == low && m != low) {
                next[high] = next[high].min(best[low].max(load(low, high)));
            }
        }
        best = next;
    }
    best[(1 << n) - 1]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn many_devices_equal_a_second_method(mut p in problem(), devices in 4usize..7) {
        p.memory_limit = None;
        p.devices = devices;
        prop_assert_eq!(run(&p).objective, by_masks(&p));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn equals_brute_force(p in problem()) {
        match (solve(&p, &Limits::default()), brute(&p)) {
            (Ok(s), Some((bottleneck, total))) => {
                let (loads, memory) = costs(&p, &s.device_of);
                prop_assert_eq!(&loads, &s.loads);
                prop_assert_eq!(&memory, &s.memory);
                prop_assert_eq!(s.objective, bottleneck);
                prop_assert_eq!(loads.iter().copied().max().unwrap_or(0), bottleneck);
                prop_assert_eq!(loads.iter().sum::<u64>(), total);
                prop_assert!(s.optimal && s.lower_bound == s.objective && s.ideals > 0);
                prop_assert_eq!(run(&p), s);
            }
            (Err(PartitionError::Memory { needed, proven, limit, .. }), None) => {
                prop_assert!(proven && needed > limit);
                let fits = |bytes| brute(&Problem { memory_limit: Some(bytes), ..p.clone() }).is_some();
                prop_assert!(fits(needed) && !fits(needed - 1));
            }
            (got, want) => prop_assert!(false, "{got:?} against {want:?}"),
        }
    }

    #[test]
    fn one_test_refutes_exactly_what_no_split_keeps(p in problem(), bound in 0u64..200) {
        let refuted = refute(&p, bound, &Limits::default()).unwrap();
        match brute(&p) {
            None => prop_assert!(refuted.is_some_and(|least| least > bound)),
            Some((best, _)) if best <= bound => prop_assert_eq!(refuted, None),
            Some((best, _)) => {
                prop_assert!(refuted.is_some_and(|least| bound < least && least <= best));
                prop_assert_eq!(refute(&p, best - 1, &Limits::default()).unwrap(), Some(best));
            }
        }
        let hopeless = refute(&p, u64::MAX, &Limits::default()).unwrap();
        prop_assert_eq!(hopeless, brute(&p).is_none().then_some(u64::MAX));
    }

    #[test]
    fn chain_fallback_is_legal_and_bounded(mut p in problem()) {
        p.memory_limit = None;
        let s = solve(&p, &Limits { ideals: 1, ..Limits::default() }).unwrap();
        let (best, _) = brute(&p).unwrap();
        prop_assert_eq!(s.ideals, 0);
        prop_assert!(s.lower_bound <= best && best <= s.objective);
        prop_assert_eq!(s.optimal, s.lower_bound == s.objective);
        prop_assert_eq!(&costs(&p, &s.device_of).0, &s.loads);
    }

    #[test]
    fn any_step_budget_gives_a_legal_answer(p in problem(), steps in 0u64..200) {
        if let Ok(s) = solve(&p, &Limits { steps, ..Limits::default() }) {
            let (best, _) = brute(&p).unwrap();
            prop_assert!(s.lower_bound <= best && best <= s.objective);
            prop_assert_eq!(&costs(&p, &s.device_of).0, &s.loads);
        }
    }
}

/// Two chains of `a` and `b` items, then `blocks` pairs of chains of `length` that exchange data at their ends.
fn two_towers(a: usize, b: usize, blocks: usize, length: usize, devices: usize) -> Problem {
    let mut p = Problem {
        devices,
        ..Problem::default()
    };
    let mut ends = [None, None];
    let mut seed = 7u64;
    let mut chain = |p: &mut Problem, from: &[usize], length: usize| {
        let mut inputs = from.to_vec();
        for _ in 0..length {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let item = p.items.len();
            p.items.push(Item {
                cycles: 1000 + (seed >> 50),
                resident: seed >> 40,
                ..Item::default()
            });
            for &i in &inputs {
                match p.values.iter_mut().find(|v| v.producer == Some(i)) {
                    Some(v) => v.users.push(item),
                    None => p.values.push(value(i, &[item], 50 + (seed >> 57))),
                }
            }
            inputs = vec![item];
        }
        inputs[0]
    };
    for (end, length) in ends.iter_mut().zip([a, b]) {
        *end = Some(chain(&mut p, &[], length));
    }
    for _ in 0..blocks {
        let from: Vec<usize> = ends.iter().flatten().copied().collect();
        for end in &mut ends {
            *end = Some(chain(&mut p, &from, length));
        }
    }
    p
}

#[test]
fn two_towers_are_split_exactly() {
    let p = two_towers(65, 40, 5, 9, 16);
    let s = run(&p);
    assert!(s.optimal && s.ideals > 3000, "{} ideals", s.ideals);
    assert_eq!(costs(&p, &s.device_of).0, s.loads);
    let limits = Limits {
        ideals: 1000,
        ..Limits::default()
    };
    let chain = solve(&p, &limits).unwrap();
    assert!(chain.lower_bound <= s.objective && s.objective <= chain.objective);
}

#[test]
fn fewer_items_than_devices_leave_the_last_ones_empty() {
    let p = Problem {
        items: items(&[5, 7]),
        values: vec![value(0, &[1], 1)],
        devices: 4,
        ..Problem::default()
    };
    let s = run(&p);
    assert_eq!(
        (s.device_of, s.loads, s.objective),
        (vec![0, 1], vec![6, 8, 0, 0], 8)
    );
}

#[test]
fn no_items() {
    let s = run(&Problem {
        devices: 3,
        ..Problem::default()
    });
    assert_eq!((s.objective, s.loads, s.optimal), (0, vec![0, 0, 0], true));
}

#[test]
fn communication_can_make_one_device_best() {
    let p = Problem {
        items: items(&[4, 4]),
        values: vec![value(0, &[1], 9)],
        devices: 2,
        ..Problem::default()
    };
    assert_eq!(run(&p).device_of, [0, 0]);
}

#[test]
fn memory_forces_a_worse_bottleneck() {
    let mut p = Problem {
        items: items(&[4, 4, 8]),
        devices: 2,
        memory_limit: Some(10),
        ..Problem::default()
    };
    p.edges = vec![Edge { from: 0, to: 1 }, Edge { from: 1, to: 2 }];
    assert_eq!(run(&p).objective, 8);
    p.items
        .iter_mut()
        .zip([5, 6, 4])
        .for_each(|(i, r)| i.resident = r);
    assert_eq!(run(&p).device_of, [0, 1, 1]);
    p.memory_limit = Some(9);
    let error = solve(&p, &Limits::default()).unwrap_err();
    assert_eq!(
        error,
        PartitionError::Memory {
            devices: 2,
            limit: 9,
            needed: 10,
            proven: true
        }
    );
    assert!(
        error
            .to_string()
            .contains("every split needs at least 10 bytes")
    );
}

#[test]
fn malformed_problems_are_errors() {
    let base = Problem {
        items: items(&[1, 1]),
        devices: 1,
        ..Problem::default()
    };
    let bad = [
        Problem {
            devices: 0,
            ..base.clone()
        },
        Problem {
            values: vec![value(0, &[2], 1)],
            ..base.clone()
        },
        Problem {
            shared: vec![Shared {
                bytes: 1,
                users: vec![9],
            }],
            ..base.clone()
        },
        Problem {
            edges: vec![Edge { from: 0, to: 1 }, Edge { from: 1, to: 0 }],
            ..base.clone()
        },
        Problem {
            edges: vec![Edge { from: 0, to: 7 }],
            ..base.clone()
        },
        Problem {
            items: items(&[u64::MAX, u64::MAX]),
            ..base.clone()
        },
        Problem {
            in_flight: vec![2, 1],
            ..base
        },
    ];
    for p in bad {
        assert!(solve(&p, &Limits::default()).is_err(), "{p:?}");
    }
}
