//! Simulated steps as a trace for Chrome's `about:tracing` and Perfetto.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Phase, Simulation, Timed};

/// Writes `steps` steps, one behind the other, in the Trace Event Format: a process per replica, a
/// track per tile, a slice per program with its activities inside, and the activities of the update.
/// Backward programs are named so. Times are simulated microseconds. `labels` names the stages.
///
/// # Errors
/// The writer's.
pub fn write_trace(
    simulation: &Simulation,
    labels: &[String],
    steps: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut events = Events {
        simulation,
        out,
        first: true,
    };
    events.out.write_all(
        b"{\"displayTimeUnit\":\"ms\",\"otherData\":{\"time\":\"simulated\"},\"traceEvents\":[",
    )?;
    for replica in 0..simulation.pod.replicas {
        events.names(replica, labels)?;
        for step in 0..steps {
            events.step(replica, step, labels)?;
        }
    }
    events.out.write_all(b"\n]}\n")
}

struct Events<'a, W> {
    simulation: &'a Simulation,
    out: &'a mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn event(&mut self, event: &Value) -> io::Result<()> {
        let separator = if self.first { "\n" } else { ",\n" };
        self.first = false;
        write!(self.out, "{separator}{event}")
    }

    fn names(&mut self, replica: usize, labels: &[String]) -> io::Result<()> {
        let name = format!("replica {replica}");
        self.event(
            &json!({"ph": "M", "name": "process_name", "pid": replica, "args": {"name": name}}),
        )?;
        let tiles = self.simulation.tile_labels(labels);
        for index in 0..tiles.len() {
            let tile = replica * tiles.len() + index;
            let name = format!("tile {tile}: {}", label(&tiles, index));
            self.event(&json!({
                "ph": "M", "name": "thread_name", "pid": replica, "tid": tile, "args": {"name": name},
            }))?;
        }
        Ok(())
    }

    fn step(&mut self, replica: usize, step: usize, labels: &[String]) -> io::Result<()> {
        let simulation = self.simulation;
        let base = simulation.step_cycles() * step as u64;
        for Timed { slot, start, end } in simulation.slots() {
            let cycles = end - start;
            let args = json!({
                "micro_batch": simulation.members(slot).start, "phase": slot.phase, "step": step, "cycles": cycles,
            });
            let mut name = label(labels, slot.stage);
            if slot.phase == Phase::Backward {
                name += " backward";
            }
            let time = (base + start, cycles);
            self.slice(&name, "program", (replica, slot.tile), time, &args)?;
        }
        for part in simulation.intervals() {
            let micro_batch = part.slot.map(|slot| simulation.members(&slot).start);
            let args = json!({
                "micro_batch": micro_batch, "phase": part.phase(), "cycles": part.cycles,
            });
            let time = (base + part.start, part.cycles);
            let name = part.activity.name();
            self.slice(name, "activity", (replica, part.tile), time, &args)?;
        }
        Ok(())
    }

    /// A slice on the track of (replica, tile) over (first cycle, cycles).
    fn slice(
        &mut self,
        name: &str,
        category: &str,
        (replica, tile): (usize, usize),
        (start, cycles): (u64, u64),
        args: &Value,
    ) -> io::Result<()> {
        let tile = replica * self.simulation.schedule.tiles + tile;
        let micros = |cycles| self.simulation.seconds(cycles) * 1e6;
        let event = json!({
            "ph": "X", "name": name, "cat": category, "pid": replica, "tid": tile,
            "ts": micros(start), "dur": micros(cycles), "args": args,
        });
        self.event(&event)
    }
}

fn label(labels: &[String], stage: usize) -> String {
    match labels.get(stage) {
        Some(label) if !label.is_empty() => label.clone(),
        _ => format!("stage {stage}"),
    }
}
