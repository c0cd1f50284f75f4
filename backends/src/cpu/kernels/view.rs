//! Strided matrices of floats, as the kernels read and write them.

use std::marker::PhantomData;
use std::ops::Range;

use lxpod_ir::DType;

use super::simd::{LANES, Simd, Tiled};
use super::{Kernels, elementwise};

/// A Rust type that is stored like a float dtype.
pub trait Element: bytemuck::Pod {
    /// The dtype stored that way.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

/// The extents of a matrix: columns are contiguous, rows `stride` elements apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    dtype: DType,
    /// Bytes of an element.
    size: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Shape {
    /// Checks that `len` elements hold the matrix.
    fn checked(self, len: usize) -> Self {
        let last = self.rows.saturating_sub(1).checked_mul(self.stride);
        let needed = if self.rows == 0 {
            Some(0)
        } else {
            last.and_then(|n| n.checked_add(self.cols))
        };
        assert!(
            needed.is_some_and(|n| n <= len) && (self.rows <= 1 || self.stride >= self.cols),
            "a {}x{} view of stride {} does not fit {len} elements",
            self.rows,
            self.cols,
            self.stride
        );
        self
    }

    /// The shape of all elements as one row.
    fn flat(self) -> Self {
        assert!(
            self.rows <= 1 || self.stride == self.cols,
            "rows of {} values are {} apart",
            self.cols,
            self.stride
        );
        let cols = self.rows * self.cols;
        Shape {
            rows: 1,
            cols,
            stride: cols,
            ..self
        }
    }

    /// Bytes from the start to element (row, col).
    fn offset(self, row: usize, col: usize) -> usize {
        (row * self.stride + col) * self.size
    }
}

/// A matrix to read. Elements need no alignment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: *const u8,
    shape: Shape,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: a view only reads, and whoever made it promised that reading is sound for its lifetime, from any thread.
unsafe impl Send for View<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// The matrix whose rows lie end to end in `data`.
    ///
    /// # Panics
    /// If `data` is shorter than `rows · cols`.
    pub fn new<T: Element>(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The matrix whose row `r` starts at `data[r · stride]`.
    ///
    /// # Panics
    /// If `data` is too short, or rows would overlap.
    pub fn strided<T: Element>(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let shape = Shape {
            dtype: T::DTYPE,
            size: T::DTYPE.size(),
            rows,
            cols,
            stride,
        }
        .checked(data.len());
        View {
            data: data.as_ptr().cast(),
            shape,
            lifetime: PhantomData,
        }
    }

    /// The matrix of `extent` = \[rows, columns\] at an address, its rows `stride` elements apart.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    ///
    /// # Safety
    /// For the lifetime `'a` each element's bytes are readable and, while a kernel reads them, nobody writes them.
    pub unsafe fn from_raw_parts(
        data: *const u8,
        dtype: DType,
        extent: [usize; 2],
        stride: usize,
    ) -> Self {
        assert!(dtype.is_float(), "a view of {dtype}");
        let [rows, cols] = extent;
        View {
            data,
            shape: Shape {
                dtype,
                size: dtype.size(),
                rows,
                cols,
                stride,
            },
            lifetime: PhantomData,
        }
    }

    /// The dtype of an element.
    pub fn dtype(self) -> DType {
        self.shape.dtype
    }
    /// Number of rows.
    pub fn rows(self) -> usize {
        self.shape.rows
    }
    /// Number of columns.
    pub fn cols(self) -> usize {
        self.shape.cols
    }
    /// Elements from a row to the next.
    pub fn stride(self) -> usize {
        self.shape.stride
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn row_range(self, rows: Range<usize>) -> Self {
        let cols = 0..self.cols();
        self.part(rows, cols)
    }

    /// Some of the columns of every row.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn col_range(self, cols: Range<usize>) -> Self {
        self.part(0..self.rows(), cols)
    }

    /// All elements of a matrix whose rows lie end to end, as one row.
    ///
    /// # Panics
    /// If they do not.
    pub fn flat(self) -> Self {
        let shape = self.shape.flat();
        View { shape, ..self }
    }

    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows(),
            "rows {rows:?} of {}",
            self.rows()
        );
        assert!(
            cols.start <= cols.end && cols.end <= self.cols(),
            "columns {cols:?} of {}",
            self.cols()
        );
        let shape = Shape {
            rows: rows.len(),
            cols: cols.len(),
            ..self.shape
        };
        let data = self
            .data
            .wrapping_add(self.shape.offset(rows.start, cols.start));
        View {
            data,
            shape,
            ..self
        }
    }

    /// Writes the columns `cols` of row `r`, widened to f32, to `out`.
    ///
    /// # Panics
    /// If the view has no such row or columns, or `out` another length.
    pub fn load_row(self, kernels: &Kernels, r: usize, cols: Range<usize>, out: &mut [f32]) {
        let n = cols.len();
        assert_eq!(out.len(), n, "length of the output row");
        elementwise::copy(
            kernels,
            self.part(r..r + 1, cols),
            ViewMut::new(out, 1, n),
            0..1,
        );
    }

    /// Row `r`, which must exist.
    #[inline(always)]
    pub(super) fn row(self, r: usize) -> Row {
        debug_assert!(r < self.rows());
        Row {
            data: self.data.wrapping_add(self.shape.offset(r, 0)),
            dtype: self.shape.dtype,
        }
    }
}

/// A matrix to write. Elements need no alignment.
pub struct ViewMut<'a> {
    data: *mut u8,
    shape: Shape,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: whoever made the view promised that nobody else touches the elements written through it, from whatever thread that happens.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// The matrix whose rows lie end to end in `data`.
    ///
    /// # Panics
    /// If `data` is shorter than `rows · cols`.
    pub fn new<T: Element>(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The matrix whose row `r` starts at `data[r · stride]`.
    ///
    /// # Panics
    /// If `data` is too short, or rows would overlap.
    pub fn strided<T: Element>(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        let shape = Shape {
            dtype: T::DTYPE,
            size: T::DTYPE.size(),
            rows,
            cols,
            stride,
        }
        .checked(data.len());
        ViewMut {
            data: data.as_mut_ptr().cast(),
            shape,
            lifetime: PhantomData,
        }
    }

    /// The matrix of `extent` = \[rows, columns\] at an address, its rows `stride` elements apart.
    /// Several workers may each hold one of the same matrix.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    ///
    /// # Safety
    /// For the lifetime `'a` each element's bytes are writable, and while a kernel works on rows and columns of
    /// this view, nobody else reads or writes these. The kernel may read its own inputs from the same elements only where
    /// its documentation allows work in place.
    pub unsafe fn from_raw_parts(
        data: *mut u8,
        dtype: DType,
        extent: [usize; 2],
        stride: usize,
    ) -> Self {
        assert!(dtype.is_float(), "a view of {dtype}");
        let [rows, cols] = extent;
        ViewMut {
            data,
            shape: Shape {
                dtype,
                size: dtype.size(),
                rows,
                cols,
                stride,
            },
            lifetime: PhantomData,
        }
    }

    /// The dtype of an element.
    pub fn dtype(&self) -> DType {
        self.shape.dtype
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }
    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }
    /// Elements from a row to the next.
    pub fn stride(&self) -> usize {
        self.shape.stride
    }

    /// The same matrix for a shorter time, to give to one kernel.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut {
            data: self.data,
            shape: self.shape,
            lifetime: PhantomData,
        }
    }

    /// The matrix as an input.
    pub fn as_view(&self) -> View<'_> {
        View {
            data: self.data,
            shape: self.shape,
            lifetime: PhantomData,
        }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn row_range(self, rows: Range<usize>) -> Self {
        let part = self.as_view().row_range(rows);
        ViewMut {
            data: part.data.cast_mut(),
            shape: part.shape,
            lifetime: PhantomData,
        }
    }

    /// Some of the columns of every row.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn col_range(self, cols: Range<usize>) -> Self {
        let part = self.as_view().col_range(cols);
        ViewMut {
            data: part.data.cast_mut(),
            shape: part.shape,
            lifetime: PhantomData,
        }
    }

    /// All elements of a matrix whose rows lie end to end, as one row.
    ///
    /// # Panics
    /// If they do not.
    pub fn flat(self) -> Self {
        let shape = self.shape.flat();
        ViewMut { shape, ..self }
    }

    /// The same matrix to read while it is written.
    ///
    /// # Safety
    /// As [`View::from_raw_parts`], but for a kernel that works in place.
    pub(super) unsafe fn shared(&self) -> View<'a> {
        View {
            data: self.data,
            shape: self.shape,
            lifetime: PhantomData,
        }
    }

    /// Whether this is the memory of `x`, in the same shape.
    pub fn is(&self, x: View<'_>) -> bool {
        self.data.cast_const() == x.data && self.shape == x.shape
    }

    /// Writes `values`, rounded to the dtype, to the columns of row `r` from `first` on.
    ///
    /// # Panics
    /// If the view has no such row or columns.
    pub fn store_row(&mut self, kernels: &Kernels, r: usize, first: usize, values: &[f32]) {
        let n = values.len();
        let out = self
            .reborrow()
            .row_range(r..r + 1)
            .col_range(first..first + n);
        elementwise::copy(kernels, View::new(values, 1, n), out, 0..1);
    }

    /// Row `r`, which must exist.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> RowMut {
        debug_assert!(r < self.rows());
        RowMut {
            data: self.data.wrapping_add(self.shape.offset(r, 0)),
            dtype: self.shape.dtype,
        }
    }
}

/// The start of a row to read.
#[derive(Clone, Copy)]
pub(super) struct Row {
    data: *const u8,
    dtype: DType,
}

impl Row {
    /// A row of f32.
    pub(super) fn of(data: &[f32]) -> Self {
        Row {
            data: data.as_ptr().cast(),
            dtype: DType::F32,
        }
    }

    /// The dtype of an element.
    #[inline(always)]
    pub(super) fn dtype(self) -> DType {
        self.dtype
    }

    /// The same row, with the dtype it has as a constant for the compiler.
    #[inline(always)]
    pub(super) fn known(self, dtype: Option<DType>) -> Self {
        debug_assert!(dtype.is_none_or(|d| d == self.dtype));
        Row {
            dtype: dtype.unwrap_or(self.dtype),
            ..self
        }
    }

    /// The address of column `c`.
    #[inline(always)]
    pub(super) fn at(self, c: usize) -> *const u8 {
        self.data.wrapping_add(c * self.dtype.size())
    }

    /// The eight elements from column `c` on, widened.
    ///
    /// # Safety
    /// The row has them, and they may be read.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(self, s: S, c: usize) -> S::V {
        // SAFETY: the caller's contract, the sizes being those of the dtype.
        unsafe {
            match self.dtype {
                DType::F16 => s.load_f16(self.data.cast::<u16>().add(c)),
                DType::BF16 => s.load_bf16(self.data.cast::<u16>().add(c)),
                DType::F32 | DType::I32 | DType::Bool => s.load_f32(self.data.cast::<f32>().add(c)),
            }
        }
    }

    /// The sixteen elements from column `c` on, widened.
    ///
    /// # Safety
    /// The row has them, and they may be read.
    #[inline(always)]
    pub(super) unsafe fn load_columns<S: Tiled>(self, s: S, c: usize) -> S::C {
        // SAFETY: the caller's contract, the sizes being those of the dtype.
        unsafe {
            match self.dtype {
                DType::F16 => s.load_half_columns(self.data.cast::<u16>().add(c)),
                DType::F32 => s.load_columns(self.data.cast::<f32>().add(c)),
                _ => s.columns([self.load(s, c), self.load(s, c + LANES)]),
            }
        }
    }

    /// The `n` < 8 elements from column `c` on, widened, and zeros after them.
    ///
    /// # Safety
    /// The row has them, and they may be read.
    #[inline(always)]
    pub(super) unsafe fn load_part<S: Simd>(self, s: S, c: usize, n: usize) -> S::V {
        let mut bytes = [0_u32; LANES];
        let size = self.dtype.size();
        // SAFETY: the caller's contract for the source; the array is larger than n elements.
        unsafe {
            self.data
                .add(c * size)
                .copy_to_nonoverlapping(bytes.as_mut_ptr().cast(), n * size);
            Row {
                data: bytes.as_ptr().cast(),
                dtype: self.dtype,
            }
            .load(s, 0)
        }
    }

    /// [`Row::load`] for `n` ≥ 8, else [`Row::load_part`].
    ///
    /// # Safety
    /// The row has min(n, 8) elements from column `c` on, and they may be read.
    #[inline(always)]
    pub(super) unsafe fn load_up_to<S: Simd>(self, s: S, c: usize, n: usize) -> S::V {
        // SAFETY: the caller's contract.
        unsafe {
            if n >= LANES {
                self.load(s, c)
            } else {
                self.load_part(s, c, n)
            }
        }
    }
}

/// The start of a row to write.
#[derive(Clone, Copy)]
pub(super) struct RowMut {
    data: *mut u8,
    dtype: DType,
}

impl RowMut {
    /// The same row, with the dtype it has as a constant for the compiler.
    #[inline(always)]
    pub(super) fn known(self, dtype: Option<DType>) -> Self {
        debug_assert!(dtype.is_none_or(|d| d == self.dtype));
        RowMut {
            dtype: dtype.unwrap_or(self.dtype),
            ..self
        }
    }

    /// Rounds `v` and stores its first min(n, 8) lanes from column `c` on.
    ///
    /// # Safety
    /// The row has these elements, and they may be written.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(self, s: S, c: usize, n: usize, v: S::V) {
        let n = n.min(LANES);
        let size = self.dtype.size();
        // SAFETY: the caller's contract for the destination; the arrays hold eight elements.
        unsafe {
            let to = self.data.add(c * size);
            if self.dtype == DType::F32 {
                if n == LANES {
                    s.store_f32(to.cast(), v);
                } else {
                    to.copy_from_nonoverlapping(s.unpack(v).as_ptr().cast(), n * size);
                }
            } else {
                let bits = if self.dtype == DType::F16 {
                    s.to_f16(v)
                } else {
                    s.to_bf16(v)
                };
                if n == LANES {
                    to.cast::<[u16; LANES]>().write_unaligned(bits);
                } else {
                    to.copy_from_nonoverlapping(bits.as_ptr().cast(), n * size);
                }
            }
        }
    }
}
