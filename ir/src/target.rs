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

/// From a number to the field it stands for and that field's value.
type Derive = fn(&Target, f64) -> (String, String);

/// Fields that stand for others.
const DERIVED: [(&str, Derive); 3] = [
    ("link.gbps", |_, rate| rate_field("link", rate)),
    ("host.gbps", |_, rate| rate_field("host", rate)),
    ("tile.memory", |target, bytes| {
        let share = (bytes / target.tile.cores as f64).ceil();
        ("tile.core_memory".to_owned(), format!("{share:.0}"))
    }),
];

fn rate_field(link: &str, gigabytes: f64) -> (String, String) {
    let field = format!("{link}.bytes_per_second");
    (field, format!("{:.0}", gigabytes * 1e9))
}

/// A number, with a decimal or binary prefix behind it.
fn number(text: &str) -> Option<f64> {
    let prefixes = [
        ("Ki", 1024.0),
        ("Mi", 1024.0 * 1024.0),
        ("Gi", 1024.0 * 1024.0 * 1024.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
    ];
    let prefix = prefixes.iter().find(|(name, _)| text.ends_with(name));
    let (digits, factor) = prefix.map_or((text, 1.0), |(name, factor)| {
        (&text[..text.len() - name.len()], *factor)
    });
    digits.trim().parse::<f64>().ok().map(|n| n * factor)
}

/// A value of the kind of `old`.
fn parsed(old: &toml::Value, text: &str) -> Option<toml::Value> {
    let whole =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    match old {
        toml::Value::String(_) => Some(text.into()),
        toml::Value::Integer(_) => number(text).and_then(whole).map(toml::Value::Integer),
        toml::Value::Float(_) => number(text).map(toml::Value::Float),
        _ => None,
    }
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

    /// The names of all fields, as their tables in a TOML file give them, and the names derived from them; see
    /// [`Target::set`].
    pub fn fields(&self) -> Vec<String> {
        fn collect(prefix: &str, table: &toml::Table, names: &mut Vec<String>) {
            for (key, value) in table {
                let name = format!("{prefix}{key}");
                match value {
                    toml::Value::Table(inner) => collect(&format!("{name}."), inner, names),
                    _ => names.push(name),
                }
            }
        }
        let mut names = Vec::new();
        collect("", &self.table(), &mut names);
        names.extend(DERIVED.iter().map(|(name, _)| (*name).to_owned()));
        names
    }

    fn table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("a target is a TOML table")
    }

    /// Gives one field another value: a what-if. `field` is a path in the TOML file, such as `tile.sync_cycles`,
    /// or one of three derived ones: `link.gbps` and `host.gbps`, 10^9 bytes a second each way, and `tile.memory`,
    /// bytes of a whole tile, rounded up to whole bytes of a core. Numbers may end in k, M, G, or Ki, Mi, Gi. The
    /// target's name says what was changed.
    ///
    /// # Errors
    /// There is no such field (the message lists all), or it cannot have that value.
    pub fn set(&mut self, field: &str, value: &str) -> Result<(), String> {
        if !self.fields().iter().any(|name| name == field) {
            let known = self.fields().join(", ");
            return Err(format!("no field `{field}`; the fields are {known}"));
        }
        let derived = DERIVED.iter().find(|(name, _)| *name == field);
        let (path, text) = match derived {
            None => (field.to_owned(), value.to_owned()),
            Some((_, derive)) => {
                let number = number(value).filter(|number| *number > 0.0 && number.is_finite());
                let number =
                    number.ok_or_else(|| format!("{field} = {value}: is no number above 0"))?;
                derive(self, number)
            }
        };
        let mut table = self.table();
        let (parents, key) = path.rsplit_once('.').unwrap_or(("", &path));
        let mut inner = &mut table;
        for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
            let found = inner.get_mut(parent).and_then(toml::Value::as_table_mut);
            inner = found.expect("a listed field has its parents");
        }
        let old = inner.get_mut(key).expect("a listed field is there");
        *old = parsed(old, &text)
            .ok_or_else(|| format!("{field} = {value}: must be a {}, as {old}", old.type_str()))?;
        let mut changed = Target::deserialize(table)
            .map_err(|error| format!("{field} = {value}: {}", error.message()))?;
        changed.check()?;
        if field != "name" {
            changed.name = format!("{} {field}={value}", self.name);
        }
        *self = changed;
        Ok(())
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
    fn every_field_can_be_set_and_the_name_says_so() {
        let pod = Target::named("pod16").unwrap();
        for field in pod.fields() {
            let value = match field.as_str() {
                "name" => "other",
                "machine" => "cpu",
                "tile.memory" => "1Gi",
                "link.latency_seconds" => "0.5",
                "link.gbps" | "host.gbps" => "48.5",
                _ => "1M",
            };
            let mut changed = pod.clone();
            let result = changed.set(&field, value);
            if let Err(message) = &result {
                assert!(message.contains(&field), "{field}: {message}");
                assert_eq!(changed, pod, "{field}");
                continue;
            }
            assert_ne!(changed, pod, "{field}");
            assert!(field == "name" || changed.name.ends_with(&format!("{field}={value}")));
        }
        let mut pod = pod;
        pod.set("link.gbps", "64").unwrap();
        pod.set("tile.memory", "1Gi").unwrap();
        assert_eq!(pod.link.bytes_per_second, 64_000_000_000);
        assert!((0..1472).contains(&(pod.capacity() - (1 << 30))));
        assert_eq!(pod.name, "pod16 link.gbps=64 tile.memory=1Gi");
    }

    #[test]
    fn a_field_that_is_not_there_is_told_with_all_that_are() {
        let mut pod = Target::named("pod16").unwrap();
        let error = pod.set("link.speed", "3").unwrap_err();
        for name in [
            "link.speed",
            "link.bytes_per_second",
            "tile.memory",
            "tiles",
        ] {
            assert!(error.contains(name), "{error}");
        }
        for (field, value) in [
            ("tiles", "0"),
            ("tiles", "1.5"),
            ("tiles", "-1"),
            ("tiles", "many"),
            ("link.gbps", "NaN"),
            ("link.gbps", "1e300"),
            ("tile.memory", "0"),
            ("machine", "gpu"),
            ("link.latency_seconds", "2"),
        ] {
            let error = pod.set(field, value).unwrap_err();
            assert!(error.len() < 300, "{error}");
        }
        assert_eq!(pod, Target::named("pod16").unwrap());
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
