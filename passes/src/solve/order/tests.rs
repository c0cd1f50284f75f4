//! Brute force over all orders, caps and errors.

use super::*;
use proptest::prelude::*;

fn value(producer: Option<usize>, users: &[usize], bytes: u64) -> OrderValue {
    OrderValue {
        producer,
        users: users.to_vec(),
        bytes,
        kept: false,
    }
}

/// The steps in which a value is live.
fn interval(v: &OrderValue, order: &[usize]) -> (usize, usize) {
    let at = |i: usize| order.iter().position(|&o| o == i).unwrap();
    let start = v.producer.map(at);
    let last = v.users.iter().map(|&u| at(u)).max().or(start);
    let end = if v.kept {
        Some(order.len())
    } else {
        last.map(|e| e + 1)
    };
    (start.unwrap_or(0), end.unwrap_or(0))
}

/// After each step, the bytes that are live in the next, and which item ran.
fn left(p: &OrderProblem, order: &[usize]) -> Vec<(u64, usize)> {
    let next = |v: &&OrderValue, t: usize| {
        let (start, end) = interval(v, order);
        start <= t && t + 1 < end
    };
    let left = |t: usize| {
        p.values
            .iter()
            .filter(|v| next(v, t))
            .map(|v| v.bytes)
            .sum()
    };
    order
        .iter()
        .enumerate()
        .map(|(t, &item)| (left(t), item))
        .collect()
}

/// Live bytes step by step, from lifetimes as intervals.
fn naive_peak(p: &OrderProblem, order: &[usize]) -> u64 {
    let interval = |v| interval(v, order);
    let before = p
        .values
        .iter()
        .filter(|v| v.producer.is_none() && interval(v).1 > 0 || v.producer.is_none() && v.kept);
    let step = |t: usize| {
        let live = p
            .values
            .iter()
            .filter(|v| (interval(v).0..interval(v).1).contains(&t));
        live.map(|v| v.bytes).sum::<u64>() + p.workspace[order[t]]
    };
    (0..order.len())
        .map(step)
        .max()
        .unwrap_or(0)
        .max(before.map(|v| v.bytes).sum())
}

fn orders(p: &OrderProblem) -> Vec<Vec<usize>> {
    fn extend(dag: &Dag, prefix: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
        if prefix.len() == dag.len() {
            out.push(prefix.clone());
        }
        for v in 0..dag.len() {
            if !prefix.contains(&v) && dag.preds(v).iter().all(|&q| prefix.contains(&(q as usize)))
            {
                prefix.push(v);
                extend(dag, prefix, out);
                prefix.pop();
            }
        }
    }
    let mut out = Vec::new();
    extend(&Model::new(p).unwrap().1, &mut Vec::new(), &mut out);
    out
}

prop_compose! {
    fn problem()(n in 1usize..7)(
        workspace in prop::collection::vec(0u64..5, n),
        edges in prop::collection::vec((0..n, 0..n), 0..3),
        values in prop::collection::vec((0..=n, prop::collection::vec(0..n, 0..4), 0u64..20, prop::bool::weighted(0.2)), 0..9),
        label in Just((0..n).collect::<Vec<_>>()).prop_shuffle(),
    ) -> OrderProblem {
        let edges = edges.into_iter().filter(|(a, b)| a < b).map(|(a, b)| (label[a], label[b])).collect();
        let values = values.into_iter().map(|(p, users, bytes, kept)| OrderValue {
            producer: label.get(p).copied(),
            users: users.into_iter().filter(|&u| p >= workspace.len() || u > p).map(|u| label[u]).collect(),
            bytes,
            kept,
        }).collect();
        OrderProblem { workspace, edges, values }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn equals_brute_force(p in problem()) {
        let all = orders(&p);
        let best = all.iter().map(|o| naive_peak(&p, o)).min().unwrap();
        let got = minimum_peak_order(&p, 1 << 16).unwrap();
        prop_assert_eq!(got.peak, best);
        prop_assert!(got.optimal && got.lower_bound == best);
        let optimal = all.iter().filter(|o| naive_peak(&p, o) == best);
        let first = optimal.min_by_key(|o| left(&p, o)).unwrap();
        prop_assert_eq!(&got.order, first);
        prop_assert_eq!(peak_of(&p, first).unwrap(), best);
    }

    #[test]
    fn a_small_cap_still_gives_a_legal_order(p in problem(), cap in 0usize..6) {
        let got = minimum_peak_order(&p, cap).unwrap();
        let best = orders(&p).iter().map(|o| naive_peak(&p, o)).min().unwrap();
        prop_assert_eq!(naive_peak(&p, &got.order), got.peak);
        prop_assert_eq!(peak_of(&p, &got.order), Ok(got.peak));
        prop_assert!(got.lower_bound <= best && best <= got.peak);
    }
}

#[test]
fn two_branches_run_one_after_the_other() {
    // Each branch widens 1 -> 9 -> 1; interleaving them would hold both wide tensors.
    let p = OrderProblem {
        workspace: vec![0; 5],
        edges: vec![],
        values: vec![
            value(Some(0), &[2], 9),
            value(Some(1), &[3], 9),
            value(Some(2), &[4], 1),
            value(Some(3), &[4], 1),
            value(Some(4), &[], 1),
        ],
    };
    let got = minimum_peak_order(&p, 1000).unwrap();
    assert_eq!(
        got,
        Ordered {
            order: vec![0, 2, 1, 3, 4],
            peak: 11,
            lower_bound: 11,
            optimal: true
        }
    );
    assert_eq!(peak_of(&p, &[0, 1, 2, 3, 4]), Ok(19));
}

#[test]
fn malformed_problems_are_errors() {
    let p = OrderProblem {
        workspace: vec![0; 2],
        edges: vec![(0, 1), (1, 0)],
        values: vec![],
    };
    assert!(matches!(
        minimum_peak_order(&p, 9),
        Err(OrderError::Graph(LatticeError::Cycle { .. }))
    ));
    let p = OrderProblem {
        workspace: vec![0; 2],
        edges: vec![],
        values: vec![value(None, &[2], 1)],
    };
    assert_eq!(
        minimum_peak_order(&p, 9),
        Err(OrderError::Range {
            value: 0,
            item: 2,
            len: 2
        })
    );
    let p = OrderProblem {
        workspace: vec![u64::MAX; 2],
        ..OrderProblem::default()
    };
    assert_eq!(minimum_peak_order(&p, 9), Err(OrderError::Overflow));
    let p = OrderProblem {
        workspace: vec![0; 2],
        edges: vec![(0, 1)],
        values: vec![],
    };
    assert!(
        peak_of(&p, &[1, 0]).is_err()
            && peak_of(&p, &[0]).is_err()
            && peak_of(&p, &[0, 0]).is_err()
    );
    assert_eq!(
        minimum_peak_order(&OrderProblem::default(), 9)
            .unwrap()
            .peak,
        0
    );
}
