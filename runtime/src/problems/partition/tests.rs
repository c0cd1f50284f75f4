//! The format, the contraction, and both with the engine against brute force.

use super::*;
use lxpod_passes::solve::partition::{Limits, Solution, solve};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parsed(text: &str) -> Result<Instance> {
    Instance::parse(Path::new("x.json"), text)
}

/// A file with one accelerator, and nodes `(colour, time, backward)` whose ids are 10 times their positions.
fn file(nodes: &[(Option<i64>, f64, bool)], edges: &[(usize, usize)]) -> Value {
    let node = |(at, &(colour, time, backward)): (usize, &(Option<i64>, f64, bool))| {
        json!({
            "id": at * 10,
            "supportedOnFpga": 1,
            "cpuLatency": time * 10.0,
            "fpgaLatency": time,
            "isBackwardNode": backward,
            "colorClass": colour,
            "size": 1.0,
        })
    };
    let edge =
        |&(a, b): &(usize, usize)| json!({"sourceId": a * 10, "destId": b * 10, "cost": 0.5});
    json!({
        "maxSizePerFPGA": 100.0,
        "maxFPGAs": 1,
        "maxCPUs": 0,
        "nodes": nodes.iter().enumerate().map(node).collect::<Vec<_>>(),
        "edges": edges.iter().map(edge).collect::<Vec<_>>(),
    })
}

fn instance(nodes: &[(Option<i64>, f64, bool)], edges: &[(usize, usize)]) -> Instance {
    parsed(&file(nodes, edges).to_string()).unwrap()
}

fn items(nodes: &[(Option<i64>, f64, bool)], edges: &[(usize, usize)]) -> Vec<usize> {
    let contracted = instance(nodes, edges).contract(Path::new("x.json"));
    contracted.unwrap().item_of
}

fn solved(instance: &Instance) -> (Solution, f64) {
    let contracted = instance.contract(Path::new("x.json")).unwrap();
    let solution = solve(&contracted.problem, &Limits::default()).unwrap();
    let loads = instance.evaluate(&contracted.assignment(&solution.device_of));
    (solution, loads.objective())
}

#[test]
fn published_instances_have_the_published_optimum() {
    let cases = [
        (
            include_str!("../../../tests/data/partition/bert24_inference.json"),
            17.789_906_25,
        ),
        (
            include_str!("../../../tests/data/partition/bert24_training.json"),
            41.745_812_5,
        ),
        (
            include_str!("../../../tests/data/partition/bert24_inference_tight.json"),
            22.035_125,
        ),
    ];
    for (text, optimum) in cases {
        let (solution, objective) = solved(&parsed(text).unwrap());
        assert!(solution.optimal && solution.ideals == 30);
        assert!(
            (objective - optimum).abs() < 1e-9 * optimum,
            "{objective} for {optimum}"
        );
    }
}

#[test]
fn an_experts_split_serves_inference_and_training() {
    let split = include_str!("../../../tests/data/partition/bert24_inference_expert.json");
    let cases = [
        (
            include_str!("../../../tests/data/partition/bert24_inference.json"),
            20.083_953_125,
        ),
        (
            include_str!("../../../tests/data/partition/bert24_training.json"),
            49.404_906_25,
        ),
    ];
    for (text, load) in cases {
        let instance = parsed(text).unwrap();
        let split = Split::parse(Path::new("expert.json"), split, &instance).unwrap();
        let objective = instance.evaluate(&split.device_of).objective();
        assert!((objective - load).abs() < 1e-6, "{objective} for {load}");
    }
}

#[test]
fn loads_count_each_result_once_for_each_device() {
    let mut i = instance(&[(None, 1.0, false); 4], &[(0, 1), (0, 2), (1, 3), (2, 3)]);
    (i.accelerators, i.hosts) = (2, 1);
    let loads = i.evaluate(&[0, 1, 1, 2]);
    // Node 0 leaves device 0 once; device 1 receives it once and sends nodes 1 and 2; the CPU pays nothing.
    assert_eq!(loads.time, [1.5, 3.5, 10.0]);
    assert_eq!(loads.bytes, [1.0, 2.0, 1.0]);
}

#[test]
fn classes_orphans_cycles_and_idle_items_are_contracted() {
    let f = |colour: i64, time| (Some(colour), time, false);
    let b = |colour: i64| (Some(colour), 1.0, true);
    // A class of two nodes, and one node without a class.
    assert_eq!(
        items(
            &[f(1, 1.0), f(2, 1.0), f(1, 1.0), (None, 1.0, false)],
            &[(0, 2)]
        ),
        [0, 1, 0, 2]
    );
    // Class 1 lies on both sides of class 2.
    assert_eq!(
        items(&[f(1, 1.0), f(2, 1.0), f(1, 1.0)], &[(0, 1), (1, 2)]),
        [0, 0, 0]
    );
    // The backward class 3 has no forward part: it mirrors into 1 -> 3 -> 2, beside the forward edge 1 -> 2.
    let orphan = [f(1, 1.0), f(2, 1.0), b(2), b(3), b(1)];
    assert_eq!(
        items(&orphan, &[(0, 1), (1, 2), (2, 3), (3, 4)]),
        [0, 1, 1, 2, 0]
    );
    let contracted = instance(&orphan, &[(0, 1), (1, 2), (2, 3), (3, 4)]).contract(Path::new("x"));
    let edges: Vec<_> = contracted
        .unwrap()
        .problem
        .edges
        .iter()
        .map(|e| (e.from, e.to))
        .collect();
    assert_eq!(edges, [(0, 1), (0, 2), (2, 1)]);
    // A mirrored edge against the forward edges closes a cycle.
    assert_eq!(items(&orphan, &[(0, 1), (4, 3), (3, 2)]), [0, 0, 0, 0, 0]);
    // A weight joins its only reader, and what that leaves with one neighbour joins that; one read twice stays.
    let weights = [f(1, 0.0), f(2, 0.0), f(3, 1.0), f(4, 0.0), f(5, 1.0)];
    assert_eq!(
        items(&weights, &[(0, 1), (1, 2), (3, 2), (3, 4), (2, 4)]),
        [0, 0, 0, 1, 2]
    );
    // Not one that a backward node reads, and not one whose class has backward work.
    assert_eq!(
        items(&[f(1, 0.0), f(2, 1.0), b(2)], &[(0, 1), (0, 2)]),
        [0, 1, 1]
    );
    assert_eq!(items(&[f(1, 0.0), f(2, 1.0), b(1)], &[(0, 1)]), [0, 1, 0]);
}

#[test]
fn wrong_files_name_the_field() {
    let nodes = [(None, 1.0, false), (None, 1.0, true)];
    let changed = |pointer: &str, value: Value| {
        let mut document = file(&nodes, &[(0, 1)]);
        *document.pointer_mut(pointer).expect(pointer) = value;
        document.to_string()
    };
    let cases = [
        (String::new(), "contents: is not JSON"),
        (changed("/maxCPUs", json!(1))[..99].to_owned(), "cut short"),
        ("[]".to_owned(), "contents: is a list, not an object"),
        (
            changed("/nodes", json!({})),
            "nodes: is an object, not a list",
        ),
        (changed("/nodes/1", json!(null)), "nodes[1]: is null"),
        (changed("/maxFPGAs", json!(-1)), "maxFPGAs: is -1"),
        (changed("/maxFPGAs", json!(1e9)), "maxFPGAs"),
        (changed("/maxCPUs", json!(null)), "has no `maxCPUs`"),
        (
            changed("/nodes/0/fpgaLatency", json!(-2.0)),
            "nodes[0].fpgaLatency: is -2",
        ),
        (
            changed("/nodes/0/fpgaLatency", json!("NaN")),
            "nodes[0].fpgaLatency: is text",
        ),
        (changed("/nodes/1/size", json!(-1)), "nodes[1].size"),
        (
            changed("/nodes/1/id", json!(0)),
            "nodes[1]: has the id 0 of an earlier node",
        ),
        (changed("/nodes/1/id", json!(1.5)), "nodes[1].id: is 1.5"),
        (
            changed("/nodes/1/supportedOnFpga", json!(2)),
            "nodes[1].supportedOnFpga: is 2",
        ),
        (
            changed("/edges/0/destId", json!(77)),
            "edges[0].destId: is 77, which is no node's id",
        ),
        (
            changed("/edges/0/cost", json!(null)),
            "edges[0]: has no `cost`",
        ),
    ];
    for (text, want) in &cases {
        let message = parsed(text).unwrap_err().to_string();
        assert!(message.contains(want), "{want}: {message}");
        assert!(
            message.contains("x.json") && message.contains("help: "),
            "{message}"
        );
    }
    let edges = |edges: &[(usize, usize)]| parsed(&file(&nodes, edges).to_string());
    let message = |edges_of: &[(usize, usize)]| edges(edges_of).unwrap_err().to_string();
    assert!(message(&[(1, 0)]).contains("edges[0]: goes from a backward node to a forward node"));
    assert!(message(&[(0, 0)]).contains("edges: form a cycle; the node with id 0"));
    let mut costs = file(&[(None, 1.0, false); 3], &[(0, 1), (0, 2)]);
    costs["edges"][1]["cost"] = json!(0.75);
    let message = parsed(&costs.to_string()).unwrap_err().to_string();
    assert!(
        message.contains("edges[1].cost: is 0.75, but 0.5 on an earlier edge"),
        "{message}"
    );
}

#[test]
fn numbers_of_any_size_are_scaled() {
    for scale in [1e-300, 1e-9, 1.0, 1e200] {
        let mut i = instance(&[(None, 1.0, false), (None, 3.0, false)], &[(0, 1)]);
        i.accelerators = 2;
        for node in &mut i.nodes {
            (node.time, node.cost) = (node.time * scale, node.cost * scale);
        }
        let (solution, objective) = solved(&i);
        assert!(
            solution.optimal && (objective / scale - 3.5).abs() < 1e-9,
            "{scale}: {objective}"
        );
    }
    let mut i = instance(&[(None, 1.0, false); 2], &[]);
    i.nodes[1].time = 1.7e308;
    let message = i.contract(Path::new("x.json")).unwrap_err().to_string();
    assert!(message.contains("use a larger unit"), "{message}");
    i.nodes[1].time = 1.0;
    i.nodes[1].accelerated = false;
    let message = i.contract(Path::new("x.json")).unwrap_err().to_string();
    assert!(message.contains("maxCPUs: is 0, but node 10"), "{message}");
}

/// The least objective over every placement of colour classes that is contiguous: the devices can be ordered so that
/// forward edges, and mirrored ones where a class has backward nodes alone, run from earlier to later.
fn brute(i: &Instance) -> Option<f64> {
    let colours: Vec<i64> = i.nodes.iter().map(|n| n.colour.unwrap()).collect();
    let classes: Vec<i64> = {
        let mut all = colours.clone();
        all.sort_unstable();
        all.dedup();
        all
    };
    let is_orphan = |c: i64| {
        i.nodes
            .iter()
            .filter(|n| n.colour == Some(c))
            .all(|n| n.backward)
    };
    let devices = i.accelerators + i.hosts;
    let mut best: Option<f64> = None;
    for code in 0..devices.pow(classes.len() as u32) {
        let device = |c: i64| {
            let at = classes.iter().position(|&k| k == c).unwrap();
            code / devices.pow(at as u32) % devices
        };
        let device_of: Vec<usize> = colours.iter().map(|&c| device(c)).collect();
        let mut before = vec![vec![false; devices]; devices];
        for &(a, b) in &i.edges {
            if !i.nodes[b].backward {
                before[device_of[a]][device_of[b]] = true;
            } else if i.nodes[a].backward && (is_orphan(colours[a]) || is_orphan(colours[b])) {
                before[device_of[b]][device_of[a]] = true;
            }
        }
        for k in 0..devices {
            for a in 0..devices {
                for b in 0..devices {
                    before[a][b] |= a != k && b != k && before[a][k] && before[k][b];
                }
            }
        }
        let cyclic =
            (0..devices).any(|a| (0..devices).any(|b| a != b && before[a][b] && before[b][a]));
        let loads = i.evaluate(&device_of);
        let fits = loads.bytes[..i.accelerators]
            .iter()
            .all(|&bytes| bytes <= i.memory_limit);
        if !cyclic && fits {
            best = Some(best.map_or(loads.objective(), |least| least.min(loads.objective())));
        }
    }
    best
}

prop_compose! {
    fn small()(
        nodes in prop::collection::vec((0i64..5, 1u32..9, any::<bool>(), 1u32..5), 1..8),
        edges in prop::collection::vec((0usize..8, 0usize..8), 0..10),
        costs in prop::collection::vec(0u32..5, 8),
        accelerators in 1usize..3,
        hosts in 0usize..2,
        limit in 6u32..20,
    ) -> Instance {
        let of = |&(colour, time, backward, size): &(i64, u32, bool, u32)| (Some(colour), f64::from(time), backward, size);
        // Forward nodes come first, so that no edge leads back to them.
        let mut drawn: Vec<_> = nodes.iter().map(of).collect();
        drawn.sort_by_key(|node| node.2);
        let n = drawn.len();
        let edges: Vec<_> = edges.into_iter().map(|(a, b)| (a % n, b % n)).filter(|(a, b)| a < b).collect();
        let plain: Vec<_> = drawn.iter().map(|&(c, t, b, _)| (c, t, b)).collect();
        let mut i = instance(&plain, &edges);
        for ((node, cost), (.., size)) in i.nodes.iter_mut().zip(costs).zip(drawn) {
            node.cost = f64::from(cost) * 0.25;
            node.size = f64::from(size);
        }
        (i.accelerators, i.hosts, i.memory_limit) = (accelerators, hosts, f64::from(limit));
        i
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn small_instances_equal_brute_force(i in small()) {
        let contracted = i.contract(Path::new("x.json")).unwrap();
        match (solve(&contracted.problem, &Limits::default()), brute(&i)) {
            (Ok(solution), Some(least)) => {
                let loads = i.evaluate(&contracted.assignment(&solution.device_of));
                prop_assert!((loads.objective() - least).abs() < 1e-9, "{} against {least}", loads.objective());
                prop_assert!(solution.optimal);
                let cycles = solution.objective as f64 / contracted.time_scale;
                prop_assert!((loads.objective() - cycles).abs() < 1e-9);
            }
            (Err(_), None) => {}
            (got, want) => prop_assert!(false, "{got:?} against {want:?}"),
        }
    }
}
