//! What steps, and the host around them, read and write: the tile ledger, and guard mode, which
//! checks that kernels stay inside what their operands name.
//!
//! The ledger knows addresses and roles, not the plan's buffers: a category's bytes are the union of
//! what was touched in that role, the activations' extent is from their lowest to their highest
//! address, and a value is alive from the step that wrote its bytes to the last that read them.

use std::ops::Range;

use lxpod_ir::{Extents, NodeId};
use lxpod_passes::plan::{Memory, Program};

use super::arena::Arena;
use super::step::{CpuProgram, CpuStep, Operand, Role, Source};

/// What a poisoned byte holds: a float of such bytes is NaN, an index is -1.
const POISON: u8 = 0xff;

type Span = Range<u64>;

/// The accesses to one tile during one micro-batch. Its memory is used again for the next.
#[derive(Default)]
struct Accesses {
    host: Vec<Span>,
    received: Vec<Span>,
    written: Vec<Written>,
    parameters: Vec<(NodeId, u64)>,
}

/// An activation: its bytes and the steps it lives through.
struct Written {
    span: Span,
    birth: usize,
    last: usize,
}

/// The ledger of one tile.
#[derive(Default)]
pub(super) struct TileTrace {
    now: Accesses,
    /// The largest figures of any micro-batch so far.
    pub memory: Memory,
}

impl TileTrace {
    /// Records an access by step `time`.
    pub(super) fn touch(
        &mut self,
        time: usize,
        operand: &Operand,
        extents: &Extents,
        writes: bool,
    ) {
        let span = operand.span(extents);
        if span.is_empty() {
            return;
        }
        match operand.role {
            Role::HostIo => self.now.host.push(span),
            Role::Received => self.now.received.push(span),
            Role::Activation if writes => self.now.written.push(Written {
                span,
                birth: time,
                last: time,
            }),
            Role::Activation => {
                let alive = self.now.written.iter_mut().rev();
                let mut overlapping =
                    alive.filter(|w| w.span.start < span.end && span.start < w.span.end);
                if let Some(written) = overlapping.next() {
                    written.last = time;
                }
            }
        }
    }

    /// Records the parameters a step read.
    pub(super) fn read_parameters(&mut self, step: &CpuStep) {
        self.now.parameters.extend(step.parameters.iter().copied());
    }

    /// Folds the micro-batch into the ledger.
    pub(super) fn finish(&mut self) {
        let TileTrace { now, memory } = self;
        now.parameters.sort_unstable();
        now.parameters.dedup();
        let weights = now.parameters.iter().map(|&(_, bytes)| bytes).sum();
        let low = now.written.iter().map(|w| w.span.start).min().unwrap_or(0);
        let high = now.written.iter().map(|w| w.span.end).max().unwrap_or(0);
        let live = |time| {
            let alive = now
                .written
                .iter()
                .filter(|w| w.birth <= time && time <= w.last);
            alive.map(|w| w.span.end - w.span.start).sum::<u64>()
        };
        let most = now.written.iter().map(|w| live(w.birth)).max().unwrap_or(0);
        memory.weights = memory.weights.max(weights);
        memory.host_io = memory.host_io.max(union(&mut now.host));
        memory.transfer = memory.transfer.max(union(&mut now.received));
        memory.activations = memory.activations.max(high - low);
        memory.max_live = memory.max_live.max(most);
        now.host.clear();
        now.received.clear();
        now.written.clear();
        now.parameters.clear();
    }
}

/// Bytes in at least one span.
fn union(spans: &mut [Span]) -> u64 {
    spans.sort_unstable_by_key(|span| span.start);
    let mut end = 0;
    let mut bytes = 0;
    for span in spans {
        bytes += span.end.saturating_sub(span.start.max(end));
        end = span.end.max(end);
    }
    bytes
}

/// Checks one stage's accesses against the plan's buffers and their lifetimes.
pub(super) struct Guard<'a> {
    /// The planned program.
    pub program: &'a Program,
    /// The stage, for messages.
    pub stage: usize,
}

impl Guard<'_> {
    fn live(&self, time: usize) -> Vec<Span> {
        let alive = self
            .program
            .buffers
            .iter()
            .filter(|b| (b.birth as usize..b.death as usize).contains(&time));
        let mut spans: Vec<Span> = alive.map(|b| b.offset..b.offset + b.bytes).collect();
        spans.sort_by_key(|span| (span.start, span.end));
        spans
    }

    /// Poisons every byte of the arena that no buffer alive at `time` owns.
    pub(super) fn poison(&self, arena: &Arena, time: usize) {
        for gap in gaps(&self.live(time), arena.range()) {
            // SAFETY: guard mode runs one worker, between steps.
            unsafe {
                arena
                    .at(gap.start, gap.end)
                    .write_bytes(POISON, (gap.end - gap.start) as usize)
            };
        }
    }

    /// Checks a step before it runs: its operands lie inside buffers that are alive, and its
    /// buffers do not overlap others.
    pub(super) fn before(
        &self,
        time: usize,
        step: &CpuStep,
        extents: &Extents,
    ) -> Result<(), String> {
        let live = self.live(time);
        if let Some(pair) = live
            .windows(2)
            .find(|pair| pair[1].start < pair[0].end && !pair[0].is_empty())
        {
            return Err(self.message(
                time,
                &format!("live buffers {:?} and {:?} overlap", pair[0], pair[1]),
            ));
        }
        let inputs = step.inputs.iter().filter_map(|source| match source {
            Source::Arena(operand) => Some(operand),
            Source::Resident(_) => None,
        });
        let outputs = step
            .outputs
            .iter()
            .filter(|operand| operand.stage == self.stage);
        for operand in inputs.chain(outputs) {
            let buffer = &self.program.buffers[operand.buffer];
            if !(buffer.birth as usize..buffer.death as usize).contains(&time) {
                return Err(self.message(time, &format!("buffer {} is not alive", operand.buffer)));
            }
            let span = operand.span(extents);
            if span.start < operand.offset || span.end > operand.end {
                let buffer = operand.offset..operand.end;
                return Err(
                    self.message(time, &format!("access {span:?} leaves buffer {buffer:?}"))
                );
            }
        }
        Ok(())
    }

    /// Checks after a step that no byte outside the live buffers changed, then poisons what died; the
    /// last step leaves the outputs to the host.
    pub(super) fn after(&self, arena: &Arena, time: usize) -> Result<(), String> {
        for gap in gaps(&self.live(time), arena.range()) {
            let length = (gap.end - gap.start) as usize;
            // SAFETY: guard mode runs one worker, between steps; the arena checks the range.
            let bytes = unsafe { std::slice::from_raw_parts(arena.at(gap.start, gap.end), length) };
            if let Some(at) = bytes.iter().position(|&byte| byte != POISON) {
                return Err(self.message(
                    time,
                    &format!(
                        "byte {} outside the live buffers was written",
                        gap.start + at as u64
                    ),
                ));
            }
        }
        if time + 1 < self.program.steps.len() {
            self.poison(arena, time + 1);
        }
        Ok(())
    }

    fn message(&self, time: usize, what: &str) -> String {
        format!("guard: stage {} step {time}: {what}", self.stage)
    }
}

fn gaps(live: &[Span], arena: Span) -> Vec<Span> {
    let mut gaps = Vec::new();
    let mut end = arena.start;
    for span in live.iter().filter(|span| span.end > arena.start) {
        if span.start > end {
            gaps.push(end..span.start);
        }
        end = end.max(span.end);
    }
    if end < arena.end {
        gaps.push(end..arena.end);
    }
    gaps
}

/// The addresses a program's arena spans: everything but resident parameters.
pub(super) fn arena_range(program: &Program, resolved: &CpuProgram) -> Span {
    let operands = resolved.loads.iter().map(|load| load.operand.offset);
    let parameters = program
        .buffers
        .iter()
        .filter(|b| b.category == lxpod_passes::plan::Category::Weights);
    let base = parameters.map(|b| b.offset + b.bytes).max().unwrap_or(0);
    let end = program
        .buffers
        .iter()
        .map(|b| b.offset + b.bytes)
        .max()
        .unwrap_or(base);
    let base = base
        .next_multiple_of(64)
        .min(operands.min().unwrap_or(u64::MAX));
    base..end.max(base)
}
