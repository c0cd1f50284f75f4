//! Where workers meet: between a step and the next, unless they may be at both at once.
//!
//! A worker that is done with its share of a step need not wait for the others where the steps that follow touch none of the bytes
//! that are still written. What it does there makes up for a core that is slower, and for units that come out uneven.

use std::ops::Range;

use super::operand::Operand;
use super::step::{CpuStep, Source};
use super::team::MOST_ASKED;

/// The buffers that a step reads and writes, as (tile, tile addresses).
#[derive(Clone, Default)]
struct Access {
    reads: Vec<(usize, Range<u64>)>,
    writes: Vec<(usize, Range<u64>)>,
}

impl Access {
    /// That of a step. What it reads elsewhere than in arenas, no step of its program writes.
    fn of(step: &CpuStep) -> Self {
        let buffer = |operand: &Operand| (operand.tile, operand.offset..operand.end);
        let reads = step.inputs.iter().filter_map(|source| match source {
            Source::Arena(operand) => Some(buffer(operand)),
            Source::Resident(_) => None,
        });
        Access {
            reads: reads.collect(),
            writes: step.outputs.iter().map(buffer).collect(),
        }
    }

    /// Whether one of both writes what the other reads or writes.
    fn conflicts(&self, other: &Access) -> bool {
        overlap(&self.writes, &other.writes)
            || overlap(&self.writes, &other.reads)
            || overlap(&self.reads, &other.writes)
    }
}

fn overlap(some: &[(usize, Range<u64>)], others: &[(usize, Range<u64>)]) -> bool {
    some.iter().any(|(tile, own)| {
        let meets = |span: &Range<u64>| own.start < span.end && span.start < own.end;
        others
            .iter()
            .any(|(other, span)| tile == other && meets(span))
    })
}

/// Decides after which steps of a program workers meet: after the last, and wherever the next is in conflict with one since the last
/// meeting, or has no counters left to share its work out.
pub(super) fn plan(steps: &mut [CpuStep]) {
    let accesses: Vec<Access> = steps.iter().map(Access::of).collect();
    for (step, meets) in steps.iter_mut().zip(before_conflicts(&accesses)) {
        step.meets = meets;
    }
}

fn before_conflicts(accesses: &[Access]) -> Vec<bool> {
    let mut meets = vec![true; accesses.len()];
    let mut first = 0;
    for (next, access) in accesses.iter().enumerate().skip(1) {
        let since = &accesses[first..next];
        if since.len() < MOST_ASKED && !since.iter().any(|other| access.conflicts(other)) {
            meets[next - 1] = false;
        } else {
            first = next;
        }
    }
    meets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that reads and writes eight bytes at those addresses of a tile.
    fn access(tile: usize, reads: &[u64], writes: &[u64]) -> Access {
        let buffers = |starts: &[u64]| {
            starts
                .iter()
                .map(|&start| (tile, start..start + 8))
                .collect()
        };
        Access {
            reads: buffers(reads),
            writes: buffers(writes),
        }
    }

    #[test]
    fn workers_meet_before_a_step_in_conflict_with_one_since_the_last_meeting() {
        let first = access(0, &[0], &[8]);
        let other = access(0, &[0], &[16]);
        for (next, meets) in [
            (access(0, &[0, 24], &[32]), false),
            (access(0, &[9], &[32]), true),
            (access(0, &[24], &[7]), true),
            (access(0, &[24], &[15]), true),
            (access(1, &[8], &[8]), false),
        ] {
            let steps = [first.clone(), next.clone()];
            assert_eq!(before_conflicts(&steps), [meets, true]);
            let steps = [first.clone(), other.clone(), next];
            assert_eq!(before_conflicts(&steps), [false, meets, true]);
        }
        let met = [
            first.clone(),
            access(0, &[8], &[24]),
            access(0, &[16], &[8]),
        ];
        assert_eq!(before_conflicts(&met), [true, true, true]);
        let gone = [first, access(0, &[8], &[24]), access(0, &[0], &[32])];
        assert_eq!(before_conflicts(&gone), [true, false, true]);
        assert!(before_conflicts(&[]).is_empty());
    }

    #[test]
    fn workers_meet_where_counters_run_out() {
        let steps = vec![Access::default(); 2 * MOST_ASKED + 1];
        let meets = before_conflicts(&steps);
        let places = (0..steps.len()).filter(|&step| meets[step]);
        let expected = [MOST_ASKED - 1, 2 * MOST_ASKED - 1, 2 * MOST_ASKED];
        assert_eq!(places.collect::<Vec<_>>(), expected);
    }
}
