//! No kernel reads or writes beyond its operands: each ends where a page that may not be touched begins.

use lxpod_backends::cpu::kernels::{
    Attention, Chain, Format, Kernels, LayerNorm, Linear, MATMUL_SCRATCH, Matmul, Panels, Scratch,
    Start, View, ViewMut, add, attention_head, attention_scratch, copy, cross_entropy, layer_norm,
    linear, linear_scratch, matmul, sum_rows,
};
use lxpod_ir::DType;

use crate::support::tables;

/// Zeros that end at a forbidden page.
struct Guarded {
    map: *mut libc::c_void,
    size: usize,
    data: *mut u8,
}

impl Guarded {
    fn new(bytes: usize) -> Self {
        const PAGE: usize = 1 << 16;
        let size = bytes.next_multiple_of(PAGE) + PAGE;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping, whose last page is then closed.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let end = map.cast::<u8>().add(size - PAGE);
            assert_eq!(libc::mprotect(end.cast(), PAGE, libc::PROT_NONE), 0);
            Guarded {
                map,
                size,
                data: end.sub(bytes),
            }
        }
    }

    fn view(&self, dtype: DType, rows: usize, cols: usize) -> View<'_> {
        // SAFETY: made for at least as many bytes, and nobody writes while a kernel reads.
        unsafe { View::from_raw_parts(self.data, dtype, [rows, cols], cols) }
    }

    fn view_mut(&mut self, dtype: DType, rows: usize, cols: usize) -> ViewMut<'_> {
        // SAFETY: made for at least as many bytes, and borrowed.
        unsafe { ViewMut::from_raw_parts(self.data, dtype, [rows, cols], cols) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        unsafe { libc::munmap(self.map, self.size) };
    }
}

fn run_all(kernels: &Kernels, dtype: DType, rows: usize, cols: usize) {
    let [a, b] = [(); 2].map(|()| Guarded::new(rows * cols * dtype.size()));
    let mut out = Guarded::new(rows * cols * dtype.size());
    let (x, y) = (a.view(dtype, rows, cols), b.view(dtype, rows, cols));
    add(kernels, x, y, out.view_mut(dtype, rows, cols), 0..rows);
    copy(kernels, x, out.view_mut(dtype, rows, cols), 0..rows);
    let ones = vec![1.0; cols];
    let norm = LayerNorm {
        gamma: &ones,
        beta: &ones,
        eps: 1e-12,
    };
    layer_norm(
        kernels,
        x,
        Some(y),
        &norm,
        out.view_mut(dtype, rows, cols),
        0..rows,
    );
    assert!(cross_entropy(kernels, x, &vec![0; rows], None).is_ok());
    let mut scratch = Scratch::new(linear_scratch(rows, cols).max(attention_scratch(rows, cols)));
    for weights in [Format::Half, Format::Fixed, Format::Single] {
        let weights = Panels::new(cols, cols, weights);
        let layer = Linear {
            x,
            weights: &weights,
            bias: Some(&ones),
            activation: None,
        };
        linear(
            kernels,
            &layer,
            out.view_mut(dtype, rows, cols),
            &mut std::iter::once(0..layer.units()),
            &mut scratch,
        );
    }
    let mask = vec![1.0; rows];
    let mut probs = Guarded::new(rows * rows * dtype.size());
    let inputs = Attention {
        q: x,
        k: y,
        v: y,
        mask: &mask,
        scale: 1.0,
        dropout: None,
    };
    let probs = probs.view_mut(dtype, rows, rows);
    attention_head(
        kernels,
        &inputs,
        out.view_mut(dtype, rows, cols),
        Some(probs),
        &mut scratch,
    );
}

/// Sums over two ranges of the rows, from what was summed before; a weight packed anew.
fn run_gradients(kernels: &Kernels, dtype: DType, rows: usize, cols: usize) {
    let [dy, x] = [(); 2].map(|()| Guarded::new(rows * cols * dtype.size()));
    let start = Guarded::new(cols * cols * dtype.size());
    let mut out = Guarded::new(cols * cols * dtype.size());
    let (dy, x) = (dy.view(dtype, rows, cols), x.view(dtype, rows, cols));
    let square = start.view(dtype, cols, cols);
    let over = [rows / 2..rows, 0..rows / 2];
    let product = Matmul {
        a: dy,
        transposed: true,
        b: x,
        workers: 1,
    };
    let mut scratch = Scratch::new(MATMUL_SCRATCH);
    for start in [Start::Zero, Start::Reset, Start::From(square)] {
        let chain = Chain::new(&over, start, out.view_mut(dtype, cols, cols));
        let mut units = std::iter::once(0..product.units());
        matmul(kernels, &product, &[chain], &mut units, &mut scratch);
    }
    let product = Matmul {
        a: dy,
        transposed: false,
        b: square,
        workers: 1,
    };
    let mut dx = Guarded::new(rows * cols * dtype.size());
    let all = 0..cols;
    let out = dx.view_mut(dtype, rows, cols);
    let chain = Chain::new(std::slice::from_ref(&all), Start::Zero, out);
    let mut units = std::iter::once(0..product.units());
    matmul(kernels, &product, &[chain], &mut units, &mut scratch);

    let (start, mut sums) = (
        Guarded::new(cols * dtype.size()),
        Guarded::new(cols * dtype.size()),
    );
    let start = start.view(dtype, 1, cols);
    sum_rows(
        kernels,
        x,
        &over,
        Some(start),
        sums.view_mut(dtype, 1, cols),
        0..cols,
    );
    for format in [Format::Single, Format::Half] {
        let panels = Panels::new(rows, cols, format);
        // SAFETY: nobody else uses the panels.
        unsafe { panels.refill(kernels, x, 0..panels.panels()) };
    }
}

#[test]
fn operands_may_end_at_a_forbidden_page() {
    for kernels in tables() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for rows in [1, 2, 5, 6, 7, 13, 17] {
                for cols in [1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64] {
                    run_all(kernels, dtype, rows, cols);
                    run_gradients(kernels, dtype, rows, cols);
                }
            }
        }
    }
}
