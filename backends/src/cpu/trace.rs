//! What steps, and the host around them, read and write: the tile ledger, and guard mode, which
//! checks that kernels stay inside what their operands name.
//!
//! The ledger knows addresses and roles, not the plan's buffers: a category's bytes are the union of
//! what was touched in that role, the activations' extent is from their lowest to their highest
//! address, and a value is alive from the step that wrote its bytes to the last that read them.

use std::ops::Range;

use lxpod_passes::plan::{Category, Memory, Tile};

use super::arena::Arena;
use super::members::Moment;
use super::operand::{Operand, Role};
use super::step::{CpuStep, Source};

/// What a poisoned byte holds: a float of such bytes is NaN, an index is -1.
const POISON: u8 = 0xff;

type Span = Range<u64>;

/// The accesses to one tile: those of every run so far that last, and the activations of the program
/// that runs. Their memory is used again.
#[derive(Default)]
struct Accesses {
    host: Spans,
    received: Spans,
    stashed: Spans,
    weights: Spans,
    optimizer: Spans,
    accumulators: Spans,
    written: Vec<Written>,
}

/// A set of addresses.
#[derive(Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn add(&mut self, span: Span) {
        let known = |other: &Span| other.start <= span.start && span.end <= other.end;
        if !self.0.iter().any(known) {
            self.0.push(span);
        }
    }

    /// Bytes in at least one span.
    fn bytes(&mut self) -> u64 {
        union(&mut self.0)
    }
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
    /// The largest figures of any program so far.
    pub memory: Memory,
    /// The addresses of activations so far.
    extent: Option<Span>,
}

impl TileTrace {
    /// Records an access by step `time` of the tile.
    pub(super) fn touch(
        &mut self,
        time: usize,
        operand: &Operand,
        moment: Moment<'_>,
        writes: bool,
    ) {
        let span = operand.span(moment);
        if span.is_empty() {
            return;
        }
        match operand.role {
            Role::HostIo => self.now.host.add(span),
            Role::Received => self.now.received.add(span),
            Role::Stash => self.now.stashed.add(span),
            Role::Weight => self.now.weights.add(span),
            Role::Optimizer => self.now.optimizer.add(span),
            Role::Accumulator => self.now.accumulators.add(span),
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

    /// Records the parameters a step read in a form of their own.
    pub(super) fn read_parameters(&mut self, step: &CpuStep) {
        for span in &step.parameters {
            self.now.weights.add(span.clone());
        }
    }

    /// Folds a program that has run into the ledger.
    pub(super) fn finish(&mut self) {
        let TileTrace {
            now,
            memory,
            extent,
        } = self;
        let live = |time| {
            let alive = now
                .written
                .iter()
                .filter(|w| w.birth <= time && time <= w.last);
            alive.map(|w| w.span.end - w.span.start).sum::<u64>()
        };
        let most = now.written.iter().map(|w| live(w.birth)).max().unwrap_or(0);
        for Written { span, .. } in now.written.drain(..) {
            let so_far = extent.get_or_insert(span.clone());
            *so_far = so_far.start.min(span.start)..so_far.end.max(span.end);
        }
        memory.weights = now.weights.bytes();
        memory.optimizer = now.optimizer.bytes();
        memory.accumulators = now.accumulators.bytes();
        memory.stash = now.stashed.bytes();
        memory.host_io = now.host.bytes();
        memory.transfer = now.received.bytes();
        memory.activations = extent.as_ref().map_or(0, |span| span.end - span.start);
        memory.max_live = memory.max_live.max(most);
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

/// Checks one tile's accesses against the plan's buffers and their lifetimes.
pub(super) struct Guard<'a> {
    /// The planned tile.
    pub plan: &'a Tile,
    /// Its number, for messages.
    pub tile: usize,
}

impl Guard<'_> {
    fn live(&self, time: usize) -> Vec<Span> {
        let alive = self
            .plan
            .buffers
            .iter()
            .filter(|b| (b.birth as usize..b.death as usize).contains(&time));
        let span = |slot: u32, b: &lxpod_passes::plan::Buffer| {
            let start = b.offset + u64::from(slot) * b.slot_stride();
            start..start + b.bytes
        };
        let slots = alive.flat_map(|b| (0..b.slots).map(move |slot| span(slot, b)));
        let mut spans: Vec<Span> = slots.collect();
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
        moment: Moment<'_>,
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
            .filter(|operand| operand.tile == self.tile);
        for operand in inputs.chain(outputs) {
            let buffer = &self.plan.buffers[operand.buffer];
            if !(buffer.birth as usize..buffer.death as usize).contains(&time) {
                return Err(self.message(time, &format!("buffer {} is not alive", operand.buffer)));
            }
            let span = operand.span(moment);
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
    /// last step of a program, at `end`, leaves the outputs to the host.
    pub(super) fn after(&self, arena: &Arena, time: usize, end: usize) -> Result<(), String> {
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
        if time < end {
            self.poison(arena, time + 1);
        }
        Ok(())
    }

    fn message(&self, time: usize, what: &str) -> String {
        format!("guard: tile {} step {time}: {what}", self.tile)
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

/// The addresses a tile's arena spans: everything but parameters that steps read in forms of their own,
/// which are all of them where nothing updates them.
pub(super) fn arena_range(tile: &Tile, updated: bool) -> Span {
    let end_of = |b: &lxpod_passes::plan::Buffer| b.offset + b.slot_stride() * u64::from(b.slots);
    let parameters = tile
        .buffers
        .iter()
        .filter(|b| b.category == Category::Weights);
    let base = parameters.map(end_of).max().unwrap_or(0);
    let end = tile.buffers.iter().map(end_of).max().unwrap_or(0);
    if updated { 0..end } else { base..end.max(base) }
}
