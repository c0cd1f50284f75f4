//! Schedules: which tile works on which micro-batch, in which order.

use serde::{Deserialize, Serialize};

/// The rule that orders programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// In cycle c, stage s works on micro-batch c − s. For inference every rule does this.
    #[default]
    #[serde(rename = "gpipe")]
    GPipe,
}

/// The order of programs on the tiles of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// The rule.
    pub rule: Rule,
    /// Pipeline stages.
    pub stages: usize,
}

/// One program on one tile for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bulk-synchronous cycle: slots of one cycle run at the same time on their tiles, and what
    /// they send arrives at its end.
    pub cycle: usize,
    /// The stage, which is also the tile within the replica.
    pub stage: usize,
    /// The micro-batch.
    pub micro_batch: usize,
}

impl Schedule {
    /// The slots of `micro_batches` micro-batches. Within a cycle later stages come first, so that
    /// playing the list one slot at a time never overwrites a receive slot before it is read.
    pub fn slots(&self, micro_batches: usize) -> impl Iterator<Item = Slot> + use<> {
        let Schedule {
            rule: Rule::GPipe,
            stages,
        } = *self;
        let cycles = if micro_batches == 0 {
            0
        } else {
            micro_batches + stages - 1
        };
        (0..cycles).flat_map(move |cycle| {
            let working = (0..stages)
                .rev()
                .filter(move |stage| (*stage..stage + micro_batches).contains(&cycle));
            working.map(move |stage| Slot {
                cycle,
                stage,
                micro_batch: cycle - stage,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_sees_each_micro_batch_once_and_in_order() {
        let slots: Vec<Slot> = Schedule {
            rule: Rule::GPipe,
            stages: 3,
        }
        .slots(4)
        .collect();
        assert_eq!(slots.len(), 12);
        for stage in 0..3 {
            let seen: Vec<usize> = slots
                .iter()
                .filter(|s| s.stage == stage)
                .map(|s| s.micro_batch)
                .collect();
            assert_eq!(seen, [0, 1, 2, 3]);
        }
        assert_eq!(slots.last().map(|slot| slot.cycle), Some(5));
        assert_eq!(
            Schedule {
                rule: Rule::GPipe,
                stages: 3
            }
            .slots(0)
            .count(),
            0
        );
    }
}
