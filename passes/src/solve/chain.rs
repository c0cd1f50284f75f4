//! Which layers of a chain to compute again, where the chain lies on a pipeline of devices with memory.
//!
//! # Problem
//! Consecutive layers share a device; every device of the pipeline that is used has at least one. A layer either keeps
//! what its backward half reads, or keeps no more than its border and takes `again` cycles more. Of a device
//!
//! ```text
//! load  = sum of cycles, and of `again` where layers are computed again
//! bytes = sum of resident + in_flight[devices after it] * sum of what its layers keep
//! ```
//!
//! The largest load is minimised, then the sum of `again`, under a limit on the bytes of each device.
//!
//! # Method
//! For every run of consecutive layers, all choices that no other beats in both cycles and kept bytes are listed, layer
//! by layer. The least load of a device is then one look-up, and splitting the chain dynamic programming over its
//! ends: once for the largest load, once more for the least recomputation within it. Both are exact, as long as a
//! run has no more than `MOST_CHOICES` choices; beyond, the cheapest of them are left out last.

/// Choices that are kept for one run of layers.
const MOST_CHOICES: usize = 4096;
/// The most layers; more do not fit the set of a choice.
pub const MOST_LAYERS: usize = 64;

/// One layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Cycles for one micro-batch, forward and backward.
    pub cycles: u64,
    /// Cycles of computing it again.
    pub again: u64,
    /// Bytes that stay on its device.
    pub resident: u64,
    /// Bytes kept for one micro-batch, if it is not computed again.
    pub kept: u64,
    /// Bytes kept for one micro-batch, if it is.
    pub border: u64,
}

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The layers in order, at most [`MOST_LAYERS`].
    pub layers: Vec<Layer>,
    /// Devices, at least 1.
    pub devices: usize,
    /// Bytes of a device.
    pub memory: u64,
    /// Micro-batches that a device keeps values of, by the devices after it; the last entry holds for all greater
    /// numbers. Empty means 1.
    pub in_flight: Vec<u64>,
}

/// A choice for the whole chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The layers computed again, a bit each.
    pub again: u64,
    /// The largest load.
    pub objective: u64,
    /// Cycles of computing again, of all layers.
    pub extra: u64,
}

/// A choice for one run of layers.
#[derive(Clone, Copy, Debug)]
struct Way {
    extra: u64,
    kept: u64,
    again: u64,
}

/// The best choice; none if no choice fits.
///
/// # Panics
/// If there are more than [`MOST_LAYERS`] layers or no device.
pub fn solve(chain: &Chain) -> Option<Choice> {
    assert!(chain.layers.len() <= MOST_LAYERS && chain.devices > 0);
    if chain.layers.is_empty() {
        return Some(Choice::default());
    }
    let runs = Runs::new(chain);
    let largest = |load: u64, _: u64, rest: u64| load.max(rest);
    let (bottleneck, _) = runs.best(u64::MAX, largest)?;
    let total = |_: u64, extra: u64, rest: u64| extra + rest;
    let (extra, again) = runs.best(bottleneck, total)?;
    Some(Choice {
        again,
        objective: bottleneck,
        extra,
    })
}

/// What every run of consecutive layers can be.
struct Runs<'a> {
    chain: &'a Chain,
    /// By first and last layer: the choices, cheapest first, the bytes falling.
    choices: Vec<Vec<Vec<Way>>>,
}

impl<'a> Runs<'a> {
    fn new(chain: &'a Chain) -> Self {
        let from = |first: usize| {
            let mut choices = vec![Way {
                extra: 0,
                kept: 0,
                again: 0,
            }];
            let layers = chain.layers.iter().enumerate().skip(first);
            let extended = layers.map(|(index, layer)| {
                choices = extended(&choices, index, layer);
                choices.clone()
            });
            extended.collect()
        };
        Runs {
            chain,
            choices: (0..chain.layers.len()).map(from).collect(),
        }
    }

    /// The cheapest choice of layers `first..=last` that fits a device with so many behind it, and its load.
    fn device(&self, first: usize, last: usize, behind: usize) -> Option<(u64, Way)> {
        let layers = &self.chain.layers[first..=last];
        let resident: u64 = layers.iter().map(|layer| layer.resident).sum();
        let cycles: u64 = layers.iter().map(|layer| layer.cycles).sum();
        let in_flight = &self.chain.in_flight;
        let copies = in_flight.get(behind).or(in_flight.last());
        let room = self.chain.memory.checked_sub(resident)?;
        let fits = |choice: &&Way| copies.copied().unwrap_or(1) * choice.kept <= room;
        let choice = self.choices[first][last - first].iter().find(fits)?;
        Some((cycles + choice.extra, *choice))
    }

    /// The split with the least value whose loads keep a bound, and the layers it computes again. The value of a
    /// split is `joined` from the first device's load and extra cycles and the value of the rest, which begins at 0.
    fn best(&self, bound: u64, joined: impl Fn(u64, u64, u64) -> u64) -> Option<(u64, u64)> {
        let len = self.chain.layers.len();
        // By first layer: the best of the layers from there on so many devices.
        let mut rest: Vec<Option<(u64, u64)>> = vec![None; len + 1];
        rest[len] = Some((0, 0));
        let mut best: Option<(u64, u64)> = None;
        for behind in 0..self.chain.devices.min(len) {
            let from = |first: usize| {
                let to = |last: usize| {
                    let (value, again) = rest[last + 1]?;
                    let (load, choice) = self.device(first, last, behind)?;
                    let value = joined(load, choice.extra, value);
                    (load <= bound).then_some((value, choice.again | again))
                };
                (first..len).filter_map(to).min()
            };
            rest = (0..len).map(from).chain([None]).collect();
            best = best.into_iter().chain(rest[0]).min();
        }
        best
    }
}

/// The choices of a run with one more layer.
fn extended(choices: &[Way], index: usize, layer: &Layer) -> Vec<Way> {
    let kept = choices.iter().map(|choice| Way {
        kept: choice.kept + layer.kept,
        ..*choice
    });
    let again = choices.iter().map(|choice| Way {
        extra: choice.extra + layer.again,
        kept: choice.kept + layer.border,
        again: choice.again | 1 << index,
    });
    let mut all: Vec<Way> = kept.chain(again).collect();
    all.sort_by_key(|choice| (choice.extra, choice.kept, choice.again));
    let mut least = u64::MAX;
    all.retain(|choice| {
        let better = choice.kept < least;
        least = least.min(choice.kept);
        better
    });
    if all.len() > MOST_CHOICES {
        let (len, last) = (all.len(), all.len() - 1);
        let thinned = (0..MOST_CHOICES).map(|at| all[(at * last / (MOST_CHOICES - 1)).min(len)]);
        all = thinned.collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every way to cut a chain and to choose layers.
    fn brute_force(chain: &Chain) -> Option<(u64, u64)> {
        let len = chain.layers.len();
        let mut best: Option<(u64, u64)> = None;
        for cuts in 0_u32..1 << (len - 1) {
            let devices = cuts.count_ones() as usize + 1;
            if devices > chain.devices {
                continue;
            }
            for again in 0_u64..1 << len {
                let (mut loads, mut bytes) = (vec![0; devices], vec![0; devices]);
                let mut device = 0;
                let mut extra = 0;
                for (index, layer) in chain.layers.iter().enumerate() {
                    device += usize::from(index > 0 && cuts >> (index - 1) & 1 == 1);
                    let behind = devices - 1 - device;
                    let copies = chain.in_flight.get(behind).or(chain.in_flight.last());
                    let chosen = again >> index & 1 == 1;
                    let kept = if chosen { layer.border } else { layer.kept };
                    let more = if chosen { layer.again } else { 0 };
                    loads[device] += layer.cycles + more;
                    bytes[device] += layer.resident + copies.unwrap_or(&1) * kept;
                    extra += more;
                }
                if bytes.iter().all(|&bytes| bytes <= chain.memory) {
                    let found = (*loads.iter().max().unwrap(), extra);
                    best = best.into_iter().chain([found]).min();
                }
            }
        }
        best
    }

    fn chains() -> impl Strategy<Value = Chain> {
        let layer = (1_u64..30, 0_u64..10, 0_u64..20, 0_u64..12, 0_u64..12);
        let layer = layer.prop_map(|(cycles, again, resident, kept, border)| Layer {
            cycles,
            again,
            resident,
            kept,
            border: border.min(kept),
        });
        let layers = prop::collection::vec(layer, 1..7);
        let in_flight = prop::collection::vec(1_u64..5, 0..4);
        (layers, 1_usize..5, 0_u64..120, in_flight).prop_map(
            |(layers, devices, memory, mut in_flight)| {
                in_flight.sort_unstable();
                Chain {
                    layers,
                    devices,
                    memory,
                    in_flight,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn the_choice_is_that_of_brute_force(chain in chains()) {
            let found = solve(&chain);
            let values = found.map(|choice| (choice.objective, choice.extra));
            prop_assert_eq!(values, brute_force(&chain));
            if let Some(choice) = found {
                let chosen = |index: &usize| choice.again >> index & 1 == 1;
                let extra = (0..chain.layers.len()).filter(chosen);
                let extra: u64 = extra.map(|index| chain.layers[index].again).sum();
                prop_assert_eq!(extra, choice.extra);
            }
        }
    }

    #[test]
    fn early_devices_compute_again_since_they_keep_more_micro_batches() {
        let layer = Layer {
            cycles: 10,
            again: 3,
            resident: 0,
            kept: 10,
            border: 1,
        };
        let chain = Chain {
            layers: vec![layer; 4],
            devices: 4,
            memory: 20,
            in_flight: vec![1, 2, 3, 4],
        };
        let choice = solve(&chain).unwrap();
        assert_eq!(
            (choice.again, choice.objective, choice.extra),
            (0b0011, 13, 6)
        );
    }
}
