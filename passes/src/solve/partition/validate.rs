//! Whether a problem means something.

use super::{PartitionError, Problem};

/// Indices in range, sums that cannot overflow, and combinations that the engine knows.
///
/// # Errors
/// What is wrong.
pub(super) fn check(problem: &Problem) -> Result<(), PartitionError> {
    let invalid = |text: String| Err(PartitionError::Invalid(text));
    let len = problem.items.len();
    let devices = problem.devices.saturating_add(problem.hosts);
    if devices == 0 {
        return invalid("devices is 0; at least one is needed".into());
    }
    if len > 1 << 20 || devices > 1 << 16 {
        return invalid(format!(
            "{len} items on {devices} devices: at most 2^20 and 2^16"
        ));
    }
    if problem.hosts == 0
        && let Some(item) = problem.items.iter().position(|i| i.host_only)
    {
        return invalid(format!("item {item} needs a host, and there is none"));
    }
    let plain = problem.values.iter().all(|v| !v.relayed && v.stash == 0);
    if problem.hosts > 0 && !(plain && problem.joint.is_empty()) {
        return invalid("with hosts, no value is relayed or stashed, and no work is joint".into());
    }
    let references = problem
        .values
        .iter()
        .map(|v| ("value", &v.users, v.producer))
        .chain(
            problem
                .shared
                .iter()
                .map(|s| ("shared block", &s.users, None)),
        )
        .chain(
            problem
                .joint
                .iter()
                .map(|work| ("joint work", &work.with, Some(work.item))),
        );
    for (what, users, producer) in references {
        if let Some(bad) = users.iter().chain(&producer).find(|&&u| u >= len) {
            return invalid(format!("a {what} names item {bad}; there are {len} items"));
        }
    }
    if problem
        .values
        .iter()
        .any(|v| v.relayed && v.producer.is_none())
    {
        return invalid("a relayed value comes from outside".into());
    }
    if problem.branches.is_some() && (problem.hosts > 0 || problem.values.iter().any(|v| v.relayed))
    {
        return invalid("with branches, there are no hosts, and no value is relayed".into());
    }
    if problem.in_flight.windows(2).any(|w| w[0] > w[1]) {
        return invalid("in_flight decreases with depth".into());
    }
    let wide = |list: &mut dyn Iterator<Item = u64>| list.map(u128::from).sum::<u128>();
    let time = wide(&mut problem.items.iter().flat_map(|i| [i.cycles, i.host_cycles]))
        + wide(&mut problem.joint.iter().map(|work| work.cycles))
        + wide(&mut problem.values.iter().map(|v| v.cost)) * (2 * problem.devices as u128 + 2);
    let bytes = wide(&mut problem.items.iter().flat_map(|i| [i.resident, i.workspace]))
        + wide(&mut problem.shared.iter().map(|s| s.bytes))
        + wide(&mut problem.values.iter().map(|v| v.stash))
            .saturating_mul(u128::from(problem.in_flight.last().copied().unwrap_or(0)));
    if time > u128::from(u64::MAX / 4) || bytes > u128::from(u64::MAX / 4) {
        return invalid("the sum of all cycles or of all bytes exceeds 2^62".into());
    }
    Ok(())
}
