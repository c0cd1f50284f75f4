//! Targets: the machine a plan is compiled for, as data.

use serde::{Deserialize, Serialize};

/// A machine. The built-in ones are TOML files in `ir/targets`, which also give the sources of
/// their constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The name it is asked for by.
    pub name: String,
    /// Which cost model describes its tiles.
    pub machine: Machine,
    /// The number of tiles.
    pub tiles: usize,
    /// Each tile.
    pub tile: Tile,
    /// The links between tiles.
    pub link: Link,
    /// The link between a tile and the host.
    pub host: Host,
}

/// The kind of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// Graphcore's second-generation IPU: bulk-synchronous cores with private memories.
    Mk2,
    /// A shared-memory processor.
    Cpu,
}

/// One partition target with private memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Processors in the tile.
    pub cores: u64,
    /// Bytes of memory of one core.
    pub core_memory: u64,
    /// Cycles per second.
    pub clock_hz: u64,
    /// Bytes one core receives per cycle from the others.
    pub exchange_bytes_per_cycle: u64,
    /// Cycles of one synchronisation of all cores.
    pub sync_cycles: u64,
    /// Multiply-accumulates per core and cycle, f16 inputs accumulated in f32.
    pub macs_half: u64,
    /// Multiply-accumulates per core and cycle in f32.
    pub macs_float: u64,
    /// Estimated bytes of code, all cores together.
    pub code: u64,
    /// Bytes set aside for stacks and gaps, all cores together.
    pub reserved: u64,
}

/// A link between two tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bytes per second in each direction.
    pub bytes_per_second: u64,
    /// Seconds before the first byte of a copy arrives.
    pub latency_seconds: f64,
}

/// A link between the host and one tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Bytes per second in each direction.
    pub bytes_per_second: u64,
}

const BUILT_IN: [&str; 5] = [
    include_str!("../targets/pod4.toml"),
    include_str!("../targets/pod16.toml"),
    include_str!("../targets/bow-pod16.toml"),
    include_str!("../targets/pod64.toml"),
    include_str!("../targets/cpu.toml"),
];

/// The slowest link there may be, so that sums of cycles fit 64 bits.
const MOST_CYCLES_PER_BYTE: u64 = 1 << 16;

impl Target {
    /// The built-in targets.
    pub fn built_in() -> Vec<Target> {
        let parse = |text: &&str| toml::from_str(text).expect("built-in targets are well-formed");
        BUILT_IN.iter().map(parse).collect()
    }

    /// The built-in target of that name.
    ///
    /// # Errors
    /// Lists the names there are.
    pub fn named(name: &str) -> Result<Target, String> {
        let all = Target::built_in();
        let names: Vec<String> = all.iter().map(|target| target.name.clone()).collect();
        all.into_iter()
            .find(|target| target.name == name)
            .ok_or_else(|| {
                format!(
                    "unknown target `{name}`; use one of {} or a .toml file",
                    names.join(", ")
                )
            })
    }

    /// A target from the text of a TOML file.
    ///
    /// # Errors
    /// Names the missing, unknown or impossible field.
    pub fn from_toml(text: &str) -> Result<Target, String> {
        let shorten = |line: &str| line.chars().take(120).collect::<String>();
        let target: Target = toml::from_str(text).map_err(|error| {
            error
                .to_string()
                .lines()
                .map(shorten)
                .collect::<Vec<_>>()
                .join("\n")
        })?;
        target.check().map(|()| target)
    }

    /// Checks that every number is possible and that sums of cycles and bytes fit 64 bits.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let rates = [
            ("tiles", self.tiles as u64, 1 << 16),
            ("tile.cores", self.tile.cores, 1 << 24),
            ("tile.core_memory", self.tile.core_memory, 1 << 39),
            ("tile.clock_hz", self.tile.clock_hz, 1 << 40),
            (
                "tile.exchange_bytes_per_cycle",
                self.tile.exchange_bytes_per_cycle,
                1 << 20,
            ),
            ("tile.macs_half", self.tile.macs_half, 1 << 20),
            ("tile.macs_float", self.tile.macs_float, 1 << 20),
            ("link.bytes_per_second", self.link.bytes_per_second, 1 << 50),
            ("host.bytes_per_second", self.host.bytes_per_second, 1 << 50),
        ];
        if let Some((field, value, most)) = rates
            .into_iter()
            .find(|&(_, value, most)| value == 0 || value > most)
        {
            return Err(format!("{field} = {value}; must be in 1..={most}"));
        }
        let links = [
            ("link.bytes_per_second", self.link.bytes_per_second),
            ("host.bytes_per_second", self.host.bytes_per_second),
        ];
        let slowest = self.tile.clock_hz / MOST_CYCLES_PER_BYTE;
        if let Some((field, value)) = links.into_iter().find(|&(_, value)| value < slowest) {
            return Err(format!(
                "{field} = {value}; must be at least tile.clock_hz / {MOST_CYCLES_PER_BYTE}"
            ));
        }
        if self.tile.sync_cycles > 1 << 20 || !(0.0..=1.0).contains(&self.link.latency_seconds) {
            return Err(
                "tile.sync_cycles must be at most 2^20, link.latency_seconds in 0..=1".to_owned(),
            );
        }
        if self.tile.cores * self.tile.core_memory > 1 << 50 {
            return Err("tile.cores times tile.core_memory must be at most 2^50 bytes".to_owned());
        }
        if self.tile.code.saturating_add(self.tile.reserved) > self.capacity() {
            return Err("tile.code and tile.reserved leave no memory".to_owned());
        }
        Ok(())
    }

    /// Bytes of memory of one tile.
    pub fn capacity(&self) -> u64 {
        self.tile.cores * self.tile.core_memory
    }

    /// Cycles to move that many bytes over one link, latency included.
    pub fn link_cycles(&self, bytes: u64) -> u64 {
        let latency = (self.link.latency_seconds * self.tile.clock_hz as f64).ceil() as u64;
        latency + cycles(bytes, self.tile.clock_hz, self.link.bytes_per_second)
    }

    /// Cycles to move that many bytes between the host and one tile that has its link alone.
    pub fn host_cycles(&self, bytes: u64) -> u64 {
        cycles(bytes, self.tile.clock_hz, self.host.bytes_per_second)
    }
}

fn cycles(bytes: u64, clock_hz: u64, bytes_per_second: u64) -> u64 {
    let cycles = (u128::from(bytes) * u128::from(clock_hz)).div_ceil(u128::from(bytes_per_second));
    u64::try_from(cycles).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_targets_pass_their_own_check() {
        for target in Target::built_in() {
            target.check().unwrap();
            assert_eq!(Target::named(&target.name).unwrap(), target);
        }
        assert_eq!(Target::named("pod16").unwrap().capacity(), 940_572_672);
    }

    #[test]
    fn a_zero_rate_is_named() {
        let text = BUILT_IN[1].replace("bytes_per_second = 32000000000", "bytes_per_second = 0");
        assert!(
            Target::from_toml(&text)
                .unwrap_err()
                .starts_with("link.bytes_per_second = 0")
        );
        assert!(Target::named("pod17").unwrap_err().contains("pod16"));
    }
}
