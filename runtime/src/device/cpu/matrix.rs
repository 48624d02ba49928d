//! Matrices in memory, and their products by the `gemm` crate: the one place that calls it.

use gemm::{Parallelism, gemm};

/// A matrix of f32 in memory: its first element, and the strides from row to row and from column to column.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) data: *mut f32,
    pub(super) row: isize,
    pub(super) column: isize,
}

impl Matrix {
    pub(super) fn block(data: &mut [f32], columns: usize) -> Matrix {
        Matrix { data: data.as_mut_ptr(), row: columns as isize, column: 1 }
    }

    pub(super) fn transposed(self) -> Matrix {
        Matrix { data: self.data, row: self.column, column: self.row }
    }

    /// # Safety
    /// The element is inside the memory, which this task owns or nobody writes.
    pub(super) unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.data.offset(row as isize * self.row + column as isize * self.column) }
    }

    /// Multiplies a row by a factor; with zero it is set to zero, whatever it held.
    ///
    /// # Safety
    /// As for [`Matrix::at`], of the whole row; the task owns it.
    pub(super) unsafe fn scale_row(self, row: usize, columns: usize, factor: f32) {
        for column in 0..columns {
            // SAFETY: the caller's.
            unsafe {
                let at = self.at(row, column);
                *at = if factor == 0.0 { 0.0 } else { *at * factor };
            }
        }
    }

    /// # Safety
    /// As for [`Matrix::scale_row`], of all rows.
    pub(super) unsafe fn clear(self, rows: usize, columns: usize) {
        for row in 0..rows {
            // SAFETY: the caller's.
            unsafe { self.scale_row(row, columns, 0.0) };
        }
    }
}

/// `to [m, n] (+)= scale * a [m, k] * b [k, n]`, by the calling thread alone: sums over k then run in an order that depends
/// on shapes only.
///
/// # Safety
/// All three are inside their memory; the task owns `to`, which is apart from the factors.
pub(super) unsafe fn multiply([m, n, k]: [usize; 3], to: Matrix, add: bool, a: Matrix, b: Matrix, scale: f32) {
    let none = Parallelism::None;
    // SAFETY: the caller's.
    unsafe {
        gemm(
            m, n, k, to.data, to.column, to.row, add, a.data, a.column, a.row, b.data, b.column, b.row, 1.0, scale,
            false, false, false, none,
        );
    }
}
