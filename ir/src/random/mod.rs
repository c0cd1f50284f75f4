//! Random well-typed graphs and values for them: an aid for tests of passes and backends.
//!
//! Everything follows from the seed alone, on every machine.
//!
//! ```
//! use lxpod_ir::random::{random_extents, random_feeds, random_graph};
//! let graph = random_graph(7, 30);
//! let extents = random_extents(&graph.spaces, 7);
//! let feeds = random_feeds(&graph, &extents, 7);
//! let outputs = lxpod_ir::interpret::<f32>(&graph, &extents, |op, ty| feeds.feed(op, ty)).unwrap();
//! assert_eq!(outputs.len(), graph.outputs().len());
//! ```

mod feeds;
mod graph;
mod loss;
mod place;

pub use feeds::{Feeds, random_extents, random_feeds};
pub use graph::random_graph;
pub use loss::random_loss_graph;
pub use place::random_placed_graph;

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// A generator of its own for each name.
    pub fn keyed(seed: u64, name: &str) -> Self {
        let step = |state: u64, byte: u8| Rng(state ^ u64::from(byte)).bits();
        Rng(name.bytes().fold(step(seed, 1), step))
    }

    /// A generator of its own for each position.
    pub fn at(&self, position: usize) -> Self {
        Rng(Rng(self.0 ^ position as u64).bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0; slightly uneven for huge bounds.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Whether something of probability 1/`odds` happens.
    pub fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    /// One of the items, unless there are none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        (!items.is_empty()).then(|| items[self.below(items.len())])
    }

    /// A multiple of 1/64 from −1 to 1, which every float dtype holds exactly.
    pub fn unit(&mut self) -> f64 {
        (self.below(129) as f64 - 64.0) / 64.0
    }
}
