//! The layout of a tile's memory: regions by category, offsets inside them, the ledger.

use lxpod_ir::Target;

use super::{Buffer, Category, Memory, PlanError, Tile};
use crate::solve::offsets;

/// Where a buffer may begin: a cache line, and a whole number of every machine's vectors.
pub(super) const ALIGNMENT: u64 = 64;
/// Nodes of the exact search for offsets: some tens of milliseconds on each tile, which is what a
/// compilation may spend on the last per cent of a region.
const MOST_NODES: u64 = 20_000;
/// What a core's share of a buffer is rounded up to: one 64-bit load.
const GRAIN: u64 = 8;

/// Gives each buffer its offset and the tile its ledger. What lives for the whole step lies one behind
/// the other; activations share a region.
///
/// # Errors
/// The tile's memory is too small; names the tile, the largest category and by how much.
pub(super) fn lay_out(
    tile: &mut Tile,
    target: &Target,
    best_max_live: u64,
    index: usize,
) -> Result<(), PlanError> {
    let buffers = &mut tile.buffers;
    let mut end = 0;
    let whole = |category: &Category| *category != Category::Activations;
    for category in Category::ALL.into_iter().filter(whole) {
        for buffer in buffers
            .iter_mut()
            .filter(|buffer| buffer.category == category)
        {
            buffer.offset = end;
            end += buffer.slot_stride() * u64::from(buffer.slots);
        }
    }
    let activations = pack_activations(buffers, end);
    let held = |category| {
        let members = buffers.iter().filter(|buffer| buffer.category == category);
        members.map(Buffer::held).sum::<u64>()
    };
    let mut memory = Memory {
        weights: held(Category::Weights),
        optimizer: held(Category::Optimizer),
        accumulators: held(Category::Accumulators),
        stash: held(Category::Stash),
        transfer: held(Category::Transfer),
        host_io: held(Category::HostIo),
        activations,
        code: target.tile.code,
        reserved: target.tile.reserved,
        total: end + activations + target.tile.code + target.tile.reserved,
        capacity: target.capacity(),
        core_capacity: target.tile.core_memory,
        max_live: max_live(buffers),
        ..Memory::default()
    };
    memory.best_max_live = best_max_live.min(memory.max_live);
    memory.core_max = core_max(buffers, &memory, target);
    tile.memory = memory;
    check(&tile.memory, index)
}

/// Offsets of the activations' region, which begins at `base`; returns its extent.
fn pack_activations(buffers: &mut [Buffer], base: u64) -> u64 {
    let mut packed: Vec<&mut Buffer> = buffers
        .iter_mut()
        .filter(|buffer| buffer.category == Category::Activations)
        .collect();
    let problem: Vec<offsets::Buffer> = packed
        .iter()
        .map(|buffer| offsets::Buffer {
            size: buffer.bytes,
            start: buffer.birth,
            end: buffer.death,
            align: ALIGNMENT,
        })
        .collect();
    let limits = offsets::Limits {
        nodes: MOST_NODES,
        ..offsets::Limits::default()
    };
    let assignment = offsets::assign(&problem, &limits)
        .expect("lifetimes are not empty and sizes fit the address space");
    for (buffer, &offset) in packed.iter_mut().zip(&assignment.offsets) {
        buffer.offset = base + offset;
    }
    assignment.peak
}

/// The most unpadded bytes of activations alive at once.
fn max_live(buffers: &[Buffer]) -> u64 {
    let active = || {
        buffers
            .iter()
            .filter(|buffer| buffer.category == Category::Activations)
    };
    let live = |time| {
        active()
            .filter(|b| b.birth <= time && time < b.death)
            .map(|b| b.bytes)
            .sum()
    };
    active().map(|buffer| live(buffer.birth)).max().unwrap_or(0)
}

/// Bytes of the fullest core: its share of everything resident, of the activations at their
/// extent, and of code.
fn core_max(buffers: &[Buffer], memory: &Memory, target: &Target) -> u64 {
    let share = |bytes: u64| bytes.div_ceil(target.tile.cores).next_multiple_of(GRAIN);
    let resident = buffers
        .iter()
        .filter(|buffer| buffer.category != Category::Activations);
    let resident: u64 = resident.map(|buffer| share(buffer.held())).sum();
    resident + share(memory.activations) + share(memory.code) + share(memory.reserved)
}

fn check(memory: &Memory, tile: usize) -> Result<(), PlanError> {
    if memory.total <= memory.capacity {
        return Ok(());
    }
    let largest = memory
        .executed()
        .into_iter()
        .max_by_key(|&(_, bytes)| bytes);
    let (category, bytes) = largest.unwrap_or(("weights", 0));
    Err(PlanError::OutOfMemory {
        tile,
        category,
        bytes,
        total: memory.total,
        capacity: memory.capacity,
    })
}
