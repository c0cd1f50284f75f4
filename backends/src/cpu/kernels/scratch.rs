//! Working memory of one worker.

use bytemuck::{Pod, Zeroable};

/// One cache line of f32, aligned like one.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// f32 values in one [`Line`].
pub(super) const LINE: usize = 16;

/// Reusable working memory: allocated once, handed to one kernel after another.
///
/// The functions `linear_scratch` and `attention_scratch` give the length that a call needs; a scratch of
/// the largest of them serves all.
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// Room for `len` f32 values.
    pub fn new(len: usize) -> Self {
        Scratch(vec![Line::zeroed(); len.div_ceil(LINE)])
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    /// The first `len` values, whatever they hold, on a cache line boundary.
    ///
    /// # Panics
    /// If the scratch is smaller.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let all: &mut [f32] = bytemuck::cast_slice_mut(&mut self.0);
        assert!(
            len <= all.len(),
            "a kernel needs {len} values of scratch and has {}",
            all.len()
        );
        &mut all[..len]
    }
}
