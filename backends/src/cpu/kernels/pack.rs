//! Weights packed for the matrix kernels.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use lxpod_ir::DType;

use super::gemm::quantise;
use super::huge::Lines;
use super::scratch::{LINE, Line};
use super::simd::{LANES, Portable, Tiled};
use super::{Kernels, View};

/// Output columns of a panel.
pub(super) const PANEL: usize = 16;

/// How the values of a packed weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// As f32.
    Single,
    /// As f16.
    Half,
    /// As 16-bit integers times a power of two of their output, which take the place of f16 that never change.
    Fixed,
}

impl Format {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Format::Single => 4,
            Format::Half | Format::Fixed => 2,
        }
    }

    /// The dtype of the weight.
    pub fn dtype(self) -> DType {
        match self {
            Format::Single => DType::F32,
            Format::Half | Format::Fixed => DType::F16,
        }
    }

    /// Inputs that stand together for each output.
    fn together(self) -> usize {
        match self {
            Format::Single | Format::Half => 1,
            Format::Fixed => 2,
        }
    }
}

/// The weight \[n, k\] of a linear layer (out × in, as `nn.Linear` stores it), packed in panels of 16 outputs.
///
/// Panel `p` holds outputs `16·p ..`, and within it the 16 values for input 0 come first, then those for input 1, and so on;
/// in fixed point the 16 pairs for inputs 0 and 1, then those for 2 and 3. The last panel is padded with zeros. A panel starts
/// on a cache line.
pub struct Panels {
    lines: Lines,
    n: usize,
    k: usize,
    format: Format,
    /// Cache lines of one panel.
    panel_lines: usize,
    /// The scale of each output, in panels, if values are in fixed point.
    scales: Vec<[f32; PANEL]>,
}

// SAFETY: the lines are written through a shared reference only by `refill`, whose callers promise
// that nobody else accesses the panels they write.
unsafe impl Sync for Panels {}

impl Panels {
    /// A weight of zeros.
    pub fn new(n: usize, k: usize, format: Format) -> Self {
        let inputs = k.next_multiple_of(format.together());
        let panel_lines = (PANEL * inputs * format.size()).div_ceil(size_of::<Line>());
        let lines = Lines::new(n.div_ceil(PANEL) * panel_lines);
        let scaled = format == Format::Fixed;
        Panels {
            lines,
            n,
            k,
            format,
            panel_lines,
            scales: vec![[0.0; PANEL]; if scaled { n.div_ceil(PANEL) } else { 0 }],
        }
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.n
    }
    /// Number of inputs.
    pub fn k(&self) -> usize {
        self.k
    }
    /// How values are stored.
    pub fn format(&self) -> Format {
        self.format
    }
    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
    /// The weight's elements, row by row, that panel `p` holds.
    pub fn elements(&self, p: usize) -> Range<usize> {
        let row = |panel: usize| self.n.min(panel * PANEL) * self.k;
        row(p)..row(p + 1)
    }
    /// Bytes allocated, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.cells()) + size_of_val(self.scales.as_slice())
    }

    /// Stores the rows (outputs) from `first_row` on, each of k values, end to end in `rows`; rounds to nearest even.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows, or too many.
    pub fn fill_rows(&mut self, first_row: usize, rows: &[f32]) {
        if self.k == 0 || rows.is_empty() {
            return;
        }
        assert!(
            rows.len().is_multiple_of(self.k),
            "{} values are no rows of {}",
            rows.len(),
            self.k
        );
        let count = rows.len() / self.k;
        assert!(
            first_row + count <= self.n,
            "rows {first_row}..{} of {}",
            first_row + count,
            self.n
        );
        let (mut n, mut rows) = (first_row, rows);
        if self.format == Format::Fixed {
            self.fill_fixed(first_row, rows);
            return;
        }
        let (format, k, panel_lines) = (self.format, self.k, self.panel_lines);
        while !rows.is_empty() {
            let panel = &mut self.lines_mut()[n / PANEL * panel_lines..][..panel_lines];
            let whole = n.is_multiple_of(PANEL) && rows.len() >= PANEL * k;
            let (now, later) = rows.split_at(if whole { PANEL * k } else { k });
            match format {
                Format::Half if whole => fill_panel(bytemuck::cast_slice_mut(panel), now, round),
                Format::Half => fill_f16(bytemuck::cast_slice_mut(panel), n % PANEL, now),
                _ if whole => fill_panel(bytemuck::cast_slice_mut(panel), now, copy),
                _ => fill_f32(bytemuck::cast_slice_mut(panel), n % PANEL, now),
            }
            n += now.len() / k;
            rows = later;
        }
    }

    /// Stores rows (outputs) from `first_row` on in fixed point.
    fn fill_fixed(&mut self, first_row: usize, rows: &[f32]) {
        let (k, panel_lines) = (self.k, self.panel_lines);
        // Whole vectors are written.
        let mut integers = vec![0.0_f32; k.next_multiple_of(LANES) / 2];
        for (row, n) in rows.chunks_exact(k).zip(first_row..) {
            let row = View::new(row, 1, k).row(0);
            // SAFETY: the row has k values, and there is room for them rounded up to eight.
            let scale = unsafe { quantise(Portable, row, k, integers.as_mut_ptr()) };
            let (panel, lane) = (n / PANEL, n % PANEL);
            self.scales[panel][lane] = scale;
            let lines = &mut self.lines_mut()[panel * panel_lines..][..panel_lines];
            let pairs: &mut [[[i16; 2]; PANEL]] = bytemuck::cast_slice_mut(lines);
            let integers: &[[i16; 2]] = bytemuck::cast_slice(&integers);
            for (to, pair) in pairs.iter_mut().zip(integers) {
                to[lane] = *pair;
            }
        }
    }

    /// The scales of the outputs of panel `p`, of a weight in fixed point.
    pub(super) fn scales(&self, p: usize) -> &[f32; PANEL] {
        &self.scales[p]
    }

    /// Stores the weight anew in some panels: the rows of `weight` that they hold.
    ///
    /// # Panics
    /// If `weight` is not of this weight's extents, there are no such panels, or values are in fixed point.
    ///
    /// # Safety
    /// Nobody else reads or writes these panels meanwhile.
    pub unsafe fn refill(&self, kernels: &Kernels, weight: View<'_>, panels: Range<usize>) {
        assert!((weight.rows(), weight.cols()) == (self.n, self.k) && panels.end <= self.panels());
        assert_ne!(self.format, Format::Fixed, "packed anew");
        // SAFETY: a table exists only for a CPU that can run it; the rest was checked or is the caller's contract.
        unsafe {
            (kernels.refill)(Refill {
                to: self,
                weight,
                panels,
            })
        };
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        self.lines.get_mut()
    }

    /// Stores the columns (inputs) from `first_column` on, each of n values, end to end in `columns`; rounds to nearest even.
    /// Given the rows of a matrix as columns, this packs its transpose.
    ///
    /// # Panics
    /// If `columns` is not a whole number of columns, or too many, or values are in fixed point.
    pub fn fill_columns(&mut self, first_column: usize, columns: &[f32]) {
        assert_ne!(self.format, Format::Fixed, "packed by columns");
        if self.n == 0 || columns.is_empty() {
            return;
        }
        assert!(
            columns.len().is_multiple_of(self.n),
            "{} values are no columns of {}",
            columns.len(),
            self.n
        );
        let (n, format, panel_lines) = (self.n, self.format, self.panel_lines);
        let count = columns.len() / n;
        assert!(
            first_column + count <= self.k,
            "columns {first_column}..{} of {}",
            first_column + count,
            self.k
        );
        let lines = self.lines_mut();
        for (column, k) in columns.chunks_exact(n).zip(first_column..) {
            let panels = lines.chunks_exact_mut(panel_lines);
            for (values, panel) in column.chunks(PANEL).zip(panels) {
                let place = k * PANEL..k * PANEL + values.len();
                match format {
                    Format::Half => {
                        let panel: &mut [f16] = bytemuck::cast_slice_mut(panel);
                        panel[place].convert_from_f32_slice(values);
                    }
                    _ => bytemuck::cast_slice_mut(panel)[place].copy_from_slice(values),
                }
            }
        }
    }

    /// Reads row (output) `n` back: its values from input `first` on, as many as `out` holds.
    ///
    /// # Panics
    /// If the weight has no such row or inputs.
    pub fn read_row(&self, n: usize, first: usize, out: &mut [f32]) {
        assert!(n < self.n, "row {n} of {}", self.n);
        assert!(
            first + out.len() <= self.k,
            "inputs {first}..{} of {}",
            first + out.len(),
            self.k
        );
        let panel = &self.lines.cells()[n / PANEL * self.panel_lines..][..self.panel_lines];
        // SAFETY: a cell is stored like its content, and nobody refills panels that are read.
        let panel: &[Line] =
            unsafe { std::slice::from_raw_parts(panel.as_ptr().cast(), panel.len()) };
        if out.is_empty() {
            return;
        }
        let start = first * PANEL + n % PANEL;
        match self.format {
            Format::Half => {
                let halves: &[f16] = bytemuck::cast_slice(panel);
                let column = halves[start..].iter().step_by(PANEL);
                let values = out.iter_mut().zip(column);
                values.for_each(|(to, from)| *to = from.to_f32());
            }
            Format::Single => {
                let floats: &[f32] = bytemuck::cast_slice(panel);
                let column = floats[start..].iter().step_by(PANEL);
                out.iter_mut()
                    .zip(column)
                    .for_each(|(to, from)| *to = *from);
            }
            Format::Fixed => {
                let (scale, lane) = (self.scales[n / PANEL][n % PANEL], n % PANEL);
                let pairs: &[[[i16; 2]; PANEL]] = bytemuck::cast_slice(panel);
                for (to, k) in out.iter_mut().zip(first..) {
                    *to = f32::from(pairs[k / 2][lane][k % 2]) * scale;
                }
            }
        }
    }

    /// The start of panel `p` (one after the last is allowed), and the bytes from one panel to the next.
    pub(super) fn panel(&self, p: usize) -> (*const u8, usize) {
        let bytes = self.panel_lines * LINE * size_of::<f32>();
        (
            self.lines
                .cells()
                .as_ptr()
                .cast::<u8>()
                .wrapping_add(p * bytes),
            bytes,
        )
    }
}

/// A checked call of [`Panels::refill`].
pub(super) struct Refill<'a> {
    to: &'a Panels,
    weight: View<'a>,
    panels: Range<usize>,
}

/// The body of [`Panels::refill`]: blocks of eight inputs are transposed in registers and stored past the caches.
///
/// # Safety
/// The extents agree, the panels exist, and nobody else accesses them.
#[inline(always)]
pub(super) unsafe fn refill<S: Tiled>(s: S, Refill { to, weight, panels }: Refill<'_>) {
    /// How many inputs further the weight is asked for.
    const AHEAD: usize = 64;
    let known = (weight.dtype() == DType::F32).then_some(DType::F32);
    let floats = known.is_some() && to.format == Format::Single;
    for panel in panels {
        let start = to.panel(panel).0.cast_mut();
        let whole = if floats && (panel + 1) * PANEL <= to.n {
            to.k / PANEL * PANEL
        } else {
            0
        };
        let rows = weight.row(panel * PANEL).at(0);
        // SAFETY: these are sixteen rows of f32, and the panel has sixteen f32 for each input; else the caller's contract.
        unsafe { transpose(s, (rows.cast(), weight.stride()), whole, start.cast()) };
        let row = |lane: usize| {
            let row = panel * PANEL + lane;
            (row < to.n).then(|| weight.row(row).known(known))
        };
        for first in (whole..to.k).step_by(LANES) {
            let count = LANES.min(to.k - first);
            if first % PANEL == 0 {
                let rows = (0..PANEL).filter_map(row);
                rows.for_each(|row| s.prefetch(row.at(first + AHEAD)));
            }
            let mut block = [[s.splat(0.0); LANES]; 2];
            for (lane, x) in block.as_flattened_mut().iter_mut().enumerate() {
                if let Some(row) = row(lane) {
                    // SAFETY: so many columns of the row exist.
                    *x = unsafe { row.load_up_to(s, first, count) };
                }
            }
            let [low, high] = &mut block;
            s.transpose(low);
            s.transpose(high);
            for (input, halves) in (first..first + count).zip(low.iter().zip(high.iter())) {
                for (half, &x) in [halves.0, halves.1].into_iter().enumerate() {
                    let at = input * PANEL + half * LANES;
                    // SAFETY: the panel has 16 values for each input, in whole cache lines if they are f32.
                    unsafe {
                        match to.format {
                            Format::Half => start
                                .cast::<u16>()
                                .add(at)
                                .cast::<[u16; LANES]>()
                                .write(s.to_f16(x)),
                            _ => s.stream_f32(start.cast::<f32>().add(at), x),
                        }
                    }
                }
            }
        }
    }
    s.fence();
}

/// Stores the first `count` columns, a multiple of 16, of sixteen rows of f32, given as (address, values from row to row), past the
/// caches, one after the other. Written out for f32: a choice of dtypes at every load costs as much as all the rest.
///
/// # Safety
/// The CPU has the token's instruction set; the columns may be read, and `to` is valid for writing them, on the boundary of a cache line.
#[inline(always)]
unsafe fn transpose<S: Tiled>(
    s: S,
    (rows, stride): (*const f32, usize),
    count: usize,
    to: *mut f32,
) {
    for first in (0..count).step_by(PANEL) {
        let mut blocks = [[[s.splat(0.0); LANES]; 2]; 2];
        for lane in 0..PANEL {
            for (part, [low, high]) in blocks.iter_mut().enumerate() {
                let half = if lane < LANES { &mut *low } else { &mut *high };
                // SAFETY: the caller's contract.
                half[lane % LANES] =
                    unsafe { s.load_f32(rows.add(lane * stride + first + part * LANES)) };
            }
        }
        for (part, [low, high]) in blocks.iter_mut().enumerate() {
            s.transpose(low);
            s.transpose(high);
            for (i, halves) in low.iter().zip(high.iter()).enumerate() {
                let at = (first + part * LANES + i) * PANEL;
                // SAFETY: the caller's contract.
                unsafe { s.stream_columns(to.add(at), s.columns([*halves.0, *halves.1])) };
            }
        }
    }
}

fn round(to: &mut [f16], from: &[f32]) {
    to.convert_from_f32_slice(from);
}

fn copy(to: &mut [f32], from: &[f32]) {
    to.copy_from_slice(from);
}

/// Stores all 16 rows of a panel, transposing a few columns at a time where they stay in the first-level cache.
fn fill_panel<T>(panel: &mut [T], rows: &[f32], store: impl Fn(&mut [T], &[f32])) {
    const COLUMNS: usize = 64;
    let k = rows.len() / PANEL;
    let mut block = [0.0; COLUMNS * PANEL];
    for first in (0..k).step_by(COLUMNS) {
        let columns = COLUMNS.min(k - first);
        for (lane, row) in rows.chunks_exact(k).enumerate() {
            let lanes = block[lane..].iter_mut().step_by(PANEL);
            for (to, &x) in lanes.zip(&row[first..first + columns]) {
                *to = x;
            }
        }
        let values = columns * PANEL;
        store(&mut panel[first * PANEL..][..values], &block[..values]);
    }
}

fn fill_f32(panel: &mut [f32], lane: usize, row: &[f32]) {
    for (to, &x) in panel[lane..].iter_mut().step_by(PANEL).zip(row) {
        *to = x;
    }
}

fn fill_f16(panel: &mut [f16], lane: usize, row: &[f32]) {
    const CHUNK: usize = 256;
    let mut rounded = [f16::ZERO; CHUNK];
    for (i, chunk) in row.chunks(CHUNK).enumerate() {
        let rounded = &mut rounded[..chunk.len()];
        rounded.convert_from_f32_slice(chunk);
        let column = panel[i * CHUNK * PANEL + lane..].iter_mut().step_by(PANEL);
        column.zip(rounded).for_each(|(to, x)| *to = *x);
    }
}
