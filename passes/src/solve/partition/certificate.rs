//! Certificates: what makes a bound checkable without the search that found it.
//!
//! A certificate states a placement and that no contiguous split has every load at most `B = lower_bound - 1`. Its
//! evidence is a *potential*: for ideals `I` and numbers `h` of hosts, a number `p(I, h)` of devices. `check` accepts
//! it only if it has verified, from the problem alone,
//!
//! 1. *Start*: `p(all items, 0) = 0`.
//! 2. *Device steps*: for every `(I, h)` with `p(I, h) = c < devices` and every ideal `S` below `I` such that a device can
//!    run `I \ S` with load at most `B` within its memory: `p(S, h) <= c + 1`, or the rest does not fit:
//!    `work(S) > (devices - c - 1) B + relief(hosts - h)`.
//! 3. *Host steps*: for every `(I, h)` with `p(I, h) = c <= devices`, `h < hosts`, and every ideal `S` below `I` such that a
//!    host can run `I \ S` in `B`: `p(S, h + 1) <= c`, or `work(S) > (devices - c) B + relief(hosts - h - 1)`.
//! 4. *End*: `p(no items, h) > devices` for all `h`.
//!
//! A pair that is not listed has an infinite potential. `work` sums the cycles of items on devices, and
//! `relief(r) = l r B + sum of max(0, cycles - l host_cycles)` for a rate `l` that the certificate names.
//!
//! *Why this suffices.* First, no set of items that `r` hosts run in `B` each has more than `relief(r)` device cycles,
//! whatever `l`: `sum cycles <= sum (l host_cycles + max(0, cycles - l host_cycles)) <= l r B + sum of max(...)`, the
//! last sum over all items. So if all loads of a split are at most `B`, and `d` devices and `r` hosts run the items of
//! `S`, then `work(S) <= d B + relief(r)`. Second, take such a split in pipeline order, last stage first: it is a path of
//! ideals from all items to none. Suppose `c'` devices and `h` hosts run what lies outside `I` on this path. Then
//! `p(I, h) <= c'`: by 1 at the start; and if it holds at `I` with `c = p(I, h) <= c'`, and the next stage, on a device, goes
//! to `S`, then `c' < devices`, the load of `I \ S` is at most `B`, and its memory fits the copies of the stash at depth `c'`,
//! hence, since copies do not fall with depth, at depth `c`. So 2 applies: either `p(S, h) <= c + 1 <= c' + 1`; or `work(S)`
//! exceeds `(devices - c - 1) B + relief`, hence `(devices - c' - 1) B + relief`, which contradicts the first fact for the
//! stages that are left. A stage on a host is alike. At the end of the path, `p(no items, h) <= c' <= devices` contradicts
//! 4. So there is no such split. (A value that is passed on costs each border of a stage the same wherever the path goes
//! on, and is part of the load.)
//!
//! If some item alone takes longer than `B` wherever it may run there is no evidence to give, and none is asked for.

use super::check::Refusal;
use super::model::{Model, Relief};
use super::reach::{Ground, NONE, Reach, Room, Test};
use super::walk::Walker;
use super::{Limits, Problem, Solution, check};
use crate::solve::Budget;
use crate::solve::lattice::Lattice;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A placement, a bound, and the evidence for it; see the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`Certificate::FORMAT`].
    pub format: String,
    /// [`fingerprint`] of the problem.
    pub problem: String,
    /// The device of each item.
    pub device_of: Vec<usize>,
    /// The largest load of that placement.
    pub objective: u64,
    /// No contiguous split has a smaller largest load.
    pub lower_bound: u64,
    /// The rates `l`, as fractions, by the number of hosts left, from one on.
    pub rates: Vec<(u64, u64)>,
    /// The ideals with a potential.
    pub ideals: Vec<Potential>,
}

/// A certificate together with the problem that it is for, so that it can be checked without another file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certified {
    /// What is to be split.
    pub problem: Problem,
    /// A split and its proof.
    pub certificate: Certificate,
}

/// The potential of one ideal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Potential(
    /// The ideal: hexadecimal digits of 4 items each, the lowest item in the lowest bit of the first.
    pub String,
    /// The fewest devices outside it by the number of hosts there; `None` is infinite.
    pub Vec<Option<u32>>,
);

impl Certificate {
    /// The format and its version.
    pub const FORMAT: &str = "lxpod partition certificate 1";

    /// Makes a certificate of `solution`: one test of the bound below its lower bound.
    ///
    /// # Errors
    /// The ideals or the steps exceed `limits`, or the bound cannot be shown in this way.
    pub fn new(
        problem: &Problem,
        solution: &Solution,
        limits: &Limits<'_>,
    ) -> Result<Self, CertificateError> {
        let mut certificate = Certificate {
            format: Self::FORMAT.to_owned(),
            problem: fingerprint(problem),
            device_of: solution.device_of.clone(),
            objective: solution.objective,
            lower_bound: solution.lower_bound,
            rates: Vec::new(),
            ideals: Vec::new(),
        };
        let Some(bound) = solution.lower_bound.checked_sub(1) else {
            return Ok(certificate);
        };
        let (model, dag) = Model::new(problem).map_err(|_| CertificateError::NotProven)?;
        let knapsack = Relief::new(&model);
        let time = |hosts: usize| hosts as u128 * u128::from(bound);
        certificate.rates = (1..=model.hosts).map(|h| knapsack.rate(time(h))).collect();
        if check::some_item_exceeds(problem, bound) {
            return Ok(certificate);
        }
        let relief = check::reliefs(problem, &certificate.rates, bound);
        let relief = relief
            .into_iter()
            .map(|r| u64::try_from(r).unwrap_or(u64::MAX));
        let lattice =
            Lattice::enumerate(&dag, limits.ideals).map_err(|_| CertificateError::Unfinished)?;
        let mut walker = Walker::new(&model, &lattice);
        let ground = Ground::of_work(&model, &lattice);
        let memory = model.memory_limit.unwrap_or(u64::MAX);
        let mut budget = Budget::new(limits.steps, limits.stop);
        let relief = relief.collect();
        let room = Room { bound, relief };
        let (test, mut reach) = Reach::test(&mut walker, &ground, room, memory, &mut budget);
        match test {
            Test::Infeasible(_) => {}
            Test::Spent => return Err(CertificateError::Unfinished),
            Test::Feasible(_) => return Err(CertificateError::NotProven),
        }
        for id in 0..lattice.len() {
            reach.settle(id);
            let used = reach.used(id);
            if used.iter().any(|&c| c != NONE) {
                let potential = used.iter().map(|&c| (c != NONE).then_some(c));
                let digits = hex(model.len(), |item| lattice.contains(id, item));
                certificate
                    .ideals
                    .push(Potential(digits, potential.collect()));
            }
        }
        Ok(certificate)
    }

    /// Verifies the certificate against the problem it is for; see the module `check`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, problem: &Problem, limits: &Limits<'_>) -> Result<(), Refusal> {
        check::check(problem, self, limits.steps, limits.stop)
    }
}

/// Why there is no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The limits do not suffice.
    #[error("the ideals or the steps of a certificate exceed the limits")]
    Unfinished,
    /// The bound does not hold.
    #[error("the lower bound does not hold")]
    NotProven,
}

/// A hash of all that a problem says: SHA-256, in hexadecimal digits.
#[must_use]
pub fn fingerprint(problem: &Problem) -> String {
    let text = serde_json::to_vec(problem).expect("a problem has a text form");
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The members among `len` items as hexadecimal digits.
fn hex(len: usize, contains: impl Fn(u32) -> bool) -> String {
    let digit = |at: usize| {
        let bits = (0..4).filter(|bit| at * 4 + bit < len && contains((at * 4 + bit) as u32));
        let digit = bits.fold(0, |digit, bit| digit | 1 << bit);
        char::from_digit(digit, 16).unwrap_or('0')
    };
    (0..len.div_ceil(4)).map(digit).collect()
}
