//! The checker of certificates. It shares the problem's definition and [`evaluate`] with the engine, and nothing of the
//! search: its own order, its own stages, its own enumeration of ideals.
//!
//! It looks at every stage that ends at a listed ideal and has a load within the bound: O(stages x references of an
//! item). A stage is left once the part of its load that no further item can take away exceeds the bound.

mod stage;

use super::certificate::{Certificate, Potential, fingerprint};
use super::{Item, Problem, evaluate, validate};
use crate::solve::Budget;
use rustc_hash::FxHashMap;
use stage::{Allowed, Stage};
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is for another problem.
    #[error("problem: it is for another problem, or for other devices")]
    Problem,
    /// A field has no meaning for the problem.
    #[error("{0}: {1}")]
    Field(&'static str, String),
    /// The evidence does not show the bound.
    #[error("ideals[{0}]: {1}")]
    Evidence(usize, String),
    /// The budget or the time ran out.
    #[error("not checked to the end: the limits do not suffice")]
    Unfinished,
}

/// Verifies that the placement has the objective, and that no split is better than the lower bound.
///
/// # Errors
/// What is wrong.
pub(super) fn check(
    problem: &Problem,
    certificate: &Certificate,
    steps: u64,
    stop: Option<&AtomicBool>,
) -> Result<(), Refusal> {
    if certificate.format != Certificate::FORMAT {
        let known = format!("is not `{}`", Certificate::FORMAT);
        return Err(Refusal::Field("format", known));
    }
    if certificate.problem != fingerprint(problem) {
        return Err(Refusal::Problem);
    }
    validate::check(problem).map_err(|error| Refusal::Field("problem", error.to_string()))?;
    if problem.branches.is_some() {
        let known = "has branches; its bound is that of the problem without them and without a memory limit";
        return Err(Refusal::Field("problem", known.to_owned()));
    }
    let order = Order::of(problem)?;
    check_placement(problem, certificate, &order)?;
    let Some(bound) = certificate.lower_bound.checked_sub(1) else {
        return Ok(());
    };
    if some_item_exceeds(problem, bound) {
        return Ok(());
    }
    let listed = Listed::of(problem, certificate, &order)?;
    let rates_fit = certificate.rates.len() == problem.hosts;
    if !rates_fit || certificate.rates.iter().any(|rate| rate.1 == 0) {
        let want = format!("needs {} fractions", problem.hosts);
        return Err(Refusal::Field("rates", want));
    }
    let mut evidence = Evidence {
        problem,
        bound,
        relief: reliefs(problem, &certificate.rates, bound),
        listed: &listed,
        budget: Budget::new(steps, stop),
    };
    let mut stage = Stage::new(problem, &order);
    for (at, (ideal, _)) in listed.entries.iter().enumerate() {
        evidence.check_steps(&mut stage, at, ideal)?;
    }
    Ok(())
}

/// Whether some item takes longer than `bound` on every device and host that may run it.
pub(super) fn some_item_exceeds(problem: &Problem, bound: u64) -> bool {
    let device = |i: &Item| problem.devices > 0 && !i.host_only && i.cycles <= bound;
    let host = |i: &Item| problem.hosts > 0 && i.host_cycles <= bound;
    problem
        .items
        .iter()
        .any(|item| !device(item) && !host(item))
}

/// Device cycles that no hosts, one, two and so on can take off the devices; see `certificate.rs`.
pub(super) fn reliefs(problem: &Problem, rates: &[(u64, u64)], bound: u64) -> Vec<u128> {
    let relief = |(hosts, &(over, under)): (usize, &(u64, u64))| -> Option<u128> {
        let (over, under) = (u128::from(over), u128::from(under));
        let hosted = |cycles: u128| Some(over.checked_mul(cycles)?.div_ceil(under));
        let excess = problem.items.iter().map(|item| {
            let all = if item.host_only { 0 } else { item.cycles };
            let kept = over.checked_mul(u128::from(item.host_cycles))? / under;
            Some(u128::from(all).saturating_sub(kept))
        });
        let excess = excess.sum::<Option<u128>>()?;
        hosted((hosts as u128 + 1) * u128::from(bound))?.checked_add(excess)
    };
    let some = rates.iter().enumerate().map(relief);
    let all = some.map(|relief| relief.unwrap_or(u128::MAX >> 1));
    std::iter::once(0).chain(all).collect()
}

/// A set of items.
type Set = Box<[u64]>;

fn contains(set: &[u64], item: usize) -> bool {
    set[item / 64] >> (item % 64) & 1 != 0
}

/// Direct predecessors and successors of each item.
struct Order {
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
}

impl Order {
    fn of(problem: &Problem) -> Result<Self, Refusal> {
        let len = problem.items.len();
        let mut edges: Vec<(usize, usize)> = problem.edges.iter().map(|e| (e.from, e.to)).collect();
        for value in problem.values.iter().filter(|v| !v.feedback || v.relayed) {
            for (&from, &to) in value
                .producer
                .iter()
                .flat_map(|p| value.users.iter().map(move |u| (p, u)))
            {
                edges.push(if value.feedback {
                    (to, from)
                } else {
                    (from, to)
                });
            }
        }
        if edges.iter().any(|&(from, to)| from >= len || to >= len) {
            let text = "an edge names an item that does not exist".to_owned();
            return Err(Refusal::Field("problem", text));
        }
        edges.retain(|(from, to)| from != to);
        edges.sort_unstable();
        edges.dedup();
        let (mut before, mut after) = (vec![Vec::new(); len], vec![Vec::new(); len]);
        for (from, to) in edges {
            before[to].push(from);
            after[from].push(to);
        }
        Ok(Order { before, after })
    }
}

fn check_placement(
    problem: &Problem,
    certificate: &Certificate,
    order: &Order,
) -> Result<(), Refusal> {
    let refused = |text: String| Err(Refusal::Field("device_of", text));
    let (device_of, devices) = (&certificate.device_of, problem.devices + problem.hosts);
    if device_of.len() != problem.items.len() || device_of.iter().any(|&d| d >= devices) {
        let len = problem.items.len();
        return refused(format!(
            "is no placement of {len} items on {devices} devices"
        ));
    }
    let hosted = |(item, &d): (&Item, &usize)| item.host_only && d < problem.devices;
    if problem.items.iter().zip(device_of).any(hosted) {
        return refused("places an item on a device that cannot run it".to_owned());
    }
    let cost = evaluate(problem, device_of);
    let objective = cost.loads.iter().copied().max().unwrap_or(0);
    if objective != certificate.objective {
        let stated = certificate.objective;
        let text = format!("is {stated}, but the largest load of the placement is {objective}");
        return Err(Refusal::Field("objective", text));
    }
    let limit = problem.memory_limit.unwrap_or(u64::MAX);
    if cost.memory[..problem.devices]
        .iter()
        .any(|&bytes| bytes > limit)
    {
        return refused("exceeds the memory of a device".to_owned());
    }
    if certificate.lower_bound > certificate.objective {
        let text = "is above the objective".to_owned();
        return Err(Refusal::Field("lower_bound", text));
    }
    // The stages must be an order of the devices; devices are numbered in it, hosts stand anywhere.
    let mut waits = vec![vec![false; devices]; devices];
    for (to, before) in order.before.iter().enumerate() {
        for &from in before {
            waits[device_of[to]][device_of[from]] |= device_of[from] != device_of[to];
        }
    }
    let mut left: Vec<usize> = (0..devices).collect();
    while let Some(at) = left
        .iter()
        .position(|&d| left.iter().all(|&other| !waits[d][other]))
    {
        left.remove(at);
    }
    if !left.is_empty() {
        return refused("has devices that wait for each other".to_owned());
    }
    let backward =
        |(to, before): (usize, &Vec<usize>)| before.iter().any(|&f| device_of[f] > device_of[to]);
    if problem.hosts == 0 && order.before.iter().enumerate().any(backward) {
        return refused("sends values to an earlier device".to_owned());
    }
    Ok(())
}

/// The listed ideals, by their items.
struct Listed<'a> {
    entries: Vec<(Set, &'a [Option<u32>])>,
    index: FxHashMap<Set, usize>,
}

impl<'a> Listed<'a> {
    fn of(problem: &Problem, certificate: &'a Certificate, order: &Order) -> Result<Self, Refusal> {
        let len = problem.items.len();
        let mut listed = Listed {
            entries: Vec::with_capacity(certificate.ideals.len()),
            index: FxHashMap::default(),
        };
        for (at, Potential(digits, potential)) in certificate.ideals.iter().enumerate() {
            let refused = |text: &str| Err(Refusal::Evidence(at, text.to_owned()));
            let Some(set) = parse(digits, len) else {
                return refused("is no set of the problem's items in hexadecimal digits");
            };
            let member = |&item: &usize| contains(&set, item);
            if (0..len)
                .filter(member)
                .any(|item| !order.before[item].iter().all(member))
            {
                return refused("is no ideal: it lacks an item that another one needs");
            }
            if potential.len() != problem.hosts + 1 {
                return refused("needs one number for each number of hosts");
            }
            if listed.index.insert(set.clone(), at).is_some() {
                return refused("is listed twice");
            }
            if set.iter().all(|&word| word == 0) {
                let short = |p: &Option<u32>| p.is_some_and(|p| p as usize <= problem.devices);
                if potential.iter().any(short) {
                    return refused("says that the devices suffice");
                }
            }
            listed.entries.push((set, potential));
        }
        let all = (0..len).map(|_| true).collect::<Vec<_>>();
        let start = listed
            .index
            .get(&set_of(&all))
            .map(|&at| listed.entries[at].1[0]);
        if len > 0 && start != Some(Some(0)) {
            let text = "lack the set of all items, reached by 0 devices".to_owned();
            return Err(Refusal::Field("ideals", text));
        }
        Ok(listed)
    }

    /// The potential of a set by hosts, if it is listed.
    fn find(&self, set: &[u64]) -> Option<&'a [Option<u32>]> {
        self.index.get(set).map(|&at| self.entries[at].1)
    }
}

fn set_of(members: &[bool]) -> Set {
    let mut set = vec![0; members.len().div_ceil(64)];
    for (item, _) in members.iter().enumerate().filter(|(_, is_in)| **is_in) {
        set[item / 64] |= 1 << (item % 64);
    }
    set.into()
}

fn parse(digits: &str, len: usize) -> Option<Set> {
    if digits.len() != len.div_ceil(4) {
        return None;
    }
    let mut members = vec![false; digits.len() * 4];
    for (at, digit) in digits.chars().enumerate() {
        let digit = digit.to_digit(16)?;
        (0..4).for_each(|bit| members[at * 4 + bit] = digit >> bit & 1 != 0);
    }
    let beyond = members.split_off(len);
    (!beyond.contains(&true)).then(|| set_of(&members))
}

struct Evidence<'a> {
    problem: &'a Problem,
    bound: u64,
    relief: Vec<u128>,
    listed: &'a Listed<'a>,
    budget: Budget<'a>,
}

impl Evidence<'_> {
    /// Conditions 2 and 3 for the states of one ideal.
    fn check_steps(
        &mut self,
        stage: &mut Stage<'_>,
        at: usize,
        ideal: &Set,
    ) -> Result<(), Refusal> {
        let (devices, hosts) = (self.problem.devices as u64, self.problem.hosts);
        let potential = self.listed.entries[at].1.iter().enumerate();
        let states = potential.filter_map(|(h, p)| Some((h, u64::from((*p)?))));
        let states: Vec<(usize, u64)> = states.collect();
        let on_device = states.iter().filter(|(_, c)| *c < devices);
        let on_device: Vec<_> = on_device.map(|&(h, c)| (h, c, h, c + 1)).collect();
        let on_host = states.iter().filter(|&&(h, c)| h < hosts && c <= devices);
        let on_host: Vec<_> = on_host.map(|&(h, c)| (h, c, h + 1, c)).collect();
        for (is_host, steps) in [(false, on_device), (true, on_host)] {
            if !steps.is_empty() {
                self.check_stages(stage, at, ideal, is_host, &steps)?;
            }
        }
        Ok(())
    }

    /// `steps` are (hosts, potential) before, and (hosts, most potential) after a stage.
    fn check_stages(
        &mut self,
        stage: &mut Stage<'_>,
        at: usize,
        ideal: &Set,
        is_host: bool,
        steps: &[(usize, u64, usize, u64)],
    ) -> Result<(), Refusal> {
        let least = steps.iter().map(|step| step.1).min().unwrap_or(0);
        let memory = match is_host {
            true => u64::MAX,
            false => self.problem.memory_limit.unwrap_or(u64::MAX),
        };
        let allowed = Allowed {
            bound: self.bound,
            memory,
            copies: copies(self.problem, least),
        };
        let Self {
            problem,
            bound,
            relief,
            listed,
            budget,
        } = self;
        stage.each(ideal, is_host, allowed, budget, |rest, work| {
            let potential = listed.find(rest);
            for &(before, from, hosts, most) in steps {
                let reached = potential.and_then(|p| p[hosts]);
                if reached.is_some_and(|p| u64::from(p) <= most) {
                    continue;
                }
                let devices = u128::from(problem.devices as u64 - most);
                let room = devices * u128::from(*bound) + relief[problem.hosts - hosts];
                if u128::from(work) <= room {
                    let text = format!(
                        "{from} devices and {before} hosts outside it, and one more stage, reach an ideal of {} items, \
                         whose potential is larger",
                        rest.iter().map(|word| word.count_ones()).sum::<u32>()
                    );
                    return Err(Refusal::Evidence(at, text));
                }
            }
            Ok(())
        })
    }
}

/// Copies of the stash with so many devices behind.
fn copies(problem: &Problem, behind: u64) -> u64 {
    let at = usize::try_from(behind).unwrap_or(usize::MAX);
    let last = problem.in_flight.last();
    problem.in_flight.get(at).or(last).copied().unwrap_or(0)
}
