//! The machine that measurements are taken on.

use std::fs;

use lxpod_backends::cpu::kernels::Kernels;
use serde_json::{Value, json};

/// What every measurement says of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) cpu: String,
    /// CPUs this process may use.
    pub(crate) cpus: usize,
    /// The kernel table in use.
    pub(crate) kernels: &'static str,
    /// How lxpod was built.
    pub(crate) build: &'static str,
}

impl Machine {
    /// This machine.
    pub(crate) fn this() -> Machine {
        Machine {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernels: Kernels::select().map_or("none", Kernels::name),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        }
    }

    /// For JSON documents.
    pub(crate) fn document(&self) -> Value {
        json!({"cpu": self.cpu, "cpus": self.cpus, "kernels": self.kernels, "build": self.build})
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}, {} usable, {} kernels, {} build",
            self.cpu, self.cpus, self.kernels, self.build
        )
    }
}

fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The most memory this process has had resident, if the system says.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}
