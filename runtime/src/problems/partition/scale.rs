//! Times and sizes as integers.

use std::collections::BTreeSet;

use lxpod_passes::solve::partition::{Edge, Item, Problem, Value};

use super::{Contracted, Instance};

/// Field, problem and way out.
type Refusal = (&'static str, String, &'static str);

/// Scaled sums stay below 2^TIME_BITS and 2^SIZE_BITS, so that the engine's sums cannot overflow.
const TIME_BITS: i32 = 56;
const SIZE_BITS: i32 = 60;

/// The engine's problem over `count` items with these ordering edges.
pub(super) fn problem(
    instance: &Instance,
    item_of: Vec<usize>,
    count: usize,
    edges: &BTreeSet<(usize, usize)>,
) -> Result<Contracted, Refusal> {
    if instance.accelerators + instance.hosts == 0 && count > 0 {
        let problem = "and maxCPUs are 0: there is no device".to_owned();
        return Err((
            "maxFPGAs",
            problem,
            "name at least one device, or --devices K",
        ));
    }
    let times = |f: &dyn Fn(&super::Node) -> f64| instance.nodes.iter().map(f).sum::<f64>();
    let host_time = |node: &super::Node| match instance.hosts {
        0 => 0.0,
        _ => node.host_time,
    };
    let devices = instance.accelerators.max(1) as f64;
    let time = times(&|n| n.time) + times(&host_time) + times(&|n| n.cost) * devices;
    let beyond = |field, sum: f64| {
        let problem = format!("sum up to {sum}");
        (field, problem, "use a larger unit; sums are below 1e300")
    };
    let time_scale = power(time, TIME_BITS).ok_or_else(|| beyond("nodes", time))?;
    let size = times(&|n| n.size);
    let size_scale = power(size, SIZE_BITS).ok_or_else(|| beyond("nodes", size))?;
    let mut problem = Problem {
        items: vec![Item::default(); count],
        devices: instance.accelerators,
        hosts: instance.hosts,
        ..Problem::default()
    };
    let mut sizes = vec![0.0; count];
    for (node, &item) in instance.nodes.iter().zip(&item_of) {
        let item_size = &mut sizes[item];
        *item_size += node.size;
        let item = &mut problem.items[item];
        item.cycles += rounded(node.time, time_scale);
        item.host_cycles += rounded(host_time(node), time_scale);
        item.host_only |= !node.accelerated;
    }
    for (item, size) in problem.items.iter_mut().zip(sizes) {
        item.resident = (size * size_scale).ceil() as u64;
    }
    if size > instance.memory_limit {
        problem.memory_limit = Some((instance.memory_limit * size_scale).floor() as u64);
    }
    if instance.hosts == 0 && problem.items.iter().any(|item| item.host_only) {
        let node = instance.nodes.iter().position(|node| !node.accelerated);
        let id = instance.nodes[node.unwrap_or(0)].id;
        let problem = format!("is 0, but node {id} is not supported on accelerators");
        return Err((
            "maxCPUs",
            problem,
            "leave out --devices, or give the file a CPU",
        ));
    }
    let to_edge = |&(from, to): &(usize, usize)| Edge { from, to };
    problem.edges = edges.iter().map(to_edge).collect();
    problem.values = values(instance, &item_of, time_scale);
    Ok(Contracted {
        problem,
        item_of,
        time_scale,
        size_scale,
    })
}

/// One value for each node whose result leaves its item and costs something.
fn values(instance: &Instance, item_of: &[usize], scale: f64) -> Vec<Value> {
    let mut users = vec![Vec::new(); instance.nodes.len()];
    let mut is_feedback = vec![false; instance.nodes.len()];
    for &(from, to) in &instance.edges {
        if item_of[from] != item_of[to] {
            users[from].push(item_of[to]);
            is_feedback[from] |= instance.nodes[to].backward;
        }
    }
    let value = |(from, mut users): (usize, Vec<usize>)| {
        users.sort_unstable();
        users.dedup();
        let cost = rounded(instance.nodes[from].cost, scale);
        (!users.is_empty() && cost > 0).then(|| Value {
            producer: Some(item_of[from]),
            users,
            cost,
            feedback: is_feedback[from],
            ..Value::default()
        })
    };
    users.into_iter().enumerate().filter_map(value).collect()
}

/// The largest power of two that keeps `sum` below 2^bits; `None` where that is none.
fn power(sum: f64, bits: i32) -> Option<f64> {
    if sum == 0.0 {
        return Some(1.0);
    }
    if !(sum.is_finite() && sum < 1e300) {
        return None;
    }
    let exponent = bits - 1 - sum.log2().ceil() as i32;
    Some(2f64.powi(exponent.clamp(-1000, 1000)))
}

fn rounded(amount: f64, scale: f64) -> u64 {
    (amount * scale).round() as u64
}
