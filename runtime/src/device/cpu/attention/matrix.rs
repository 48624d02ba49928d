//! The tensors of an attention as matrices of f32: rows of a head where they lie, or, of tensors of 16 bits, a copy that a
//! task makes of its head's rows and rounds back when a result is finished.

use std::ops::Range;

use alip_plan::DType;
use alip_plan::kernel::View;

use super::Scope;
use crate::device::cpu::matrix::Matrix;
use crate::device::cpu::run::{Operands, narrow, widen};

/// Whose rows a tensor has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Queries,
    Keys,
}

/// Where a tensor over (sample, row, head, width) lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) operand: usize,
    pub(super) offset: isize,
    pub(super) strides: [isize; 4],
    side: Side,
    width: usize,
    dtype: DType,
    /// Which of a task's copies is of this tensor, if it has 16 bits.
    copy: Option<usize>,
}

impl Place {
    pub(super) fn new(view: &View, side: Side, width: usize) -> Place {
        let mut strides = [0; 4];
        for (to, stride) in strides.iter_mut().zip(&view.strides) {
            *to = *stride as isize;
        }
        let (operand, offset) = (view.operand as usize, view.offset as isize);
        Place { operand, offset, strides, side, width, dtype: view.dtype, copy: None }
    }

    /// Gives tensors of 16 bits their copies.
    pub(super) fn number<'a>(places: impl Iterator<Item = &'a mut Place>) {
        let narrow = places.filter(|place| matches!(place.dtype, DType::Bf16 | DType::F16));
        narrow.enumerate().for_each(|(index, place)| place.copy = Some(index));
    }

    fn rows(&self, scope: &Scope) -> Range<usize> {
        if self.side == Side::Queries { scope.queries.clone() } else { scope.keys.clone() }
    }

    /// The element at which a row of the scope's head begins.
    fn start(&self, scope: &Scope, row: usize) -> isize {
        let [sample, rows, head, _] = self.strides;
        self.offset + scope.sample as isize * sample + scope.head as isize * head + row as isize * rows
    }

    /// The rows from `row` on of a head. Every row used must be one of the view's domain, and of the scope.
    pub(super) fn matrix(&self, operands: &Operands, scope: &Scope, row: usize) -> Matrix {
        if let Some(copy) = self.copy {
            let first = self.rows(scope).start;
            let data = scope.copies[copy].wrapping_add((row - first) * self.width);
            return Matrix { data, row: self.width as isize, column: 1 };
        }
        let [_, rows, _, column] = self.strides;
        let at = self.start(scope, row);
        // SAFETY: `check` keeps the view inside its operand.
        Matrix { data: unsafe { operands.0[self.operand].cast::<f32>().offset(at) }, row: rows, column }
    }

    /// Elements of the copy that a task makes.
    pub(super) fn copied(&self, scope: &Scope) -> usize {
        if self.copy.is_some() { self.rows(scope).len() * self.width } else { 0 }
    }

    /// Gives the tensor's copy its memory, the first of `memory`; yields the rest.
    pub(super) fn take<'m>(&self, scope: &mut Scope, memory: &'m mut [f32]) -> &'m mut [f32] {
        let (copy, rest) = memory.split_at_mut(self.copied(scope));
        if let Some(index) = self.copy {
            scope.copies[index] = copy.as_mut_ptr();
        }
        rest
    }

    /// Fills the copy.
    pub(super) fn read(&self, operands: &Operands, scope: &Scope) {
        let Some(copy) = self.copy else { return };
        for (index, row) in self.rows(scope).enumerate() {
            let from = operands.0[self.operand].cast::<u16>().cast_const().wrapping_offset(self.start(scope, row));
            // SAFETY: memory of `take`; `check` keeps the view inside its operand.
            unsafe {
                let to = std::slice::from_raw_parts_mut(scope.copies[copy].add(index * self.width), self.width);
                widen(self.dtype, from, self.strides[3], to);
            }
        }
    }

    /// Rounds finished rows of the copy into the result.
    pub(super) fn settle(&self, operands: &Operands, scope: &Scope, rows: Range<usize>) {
        let Some(copy) = self.copy else { return };
        let first = self.rows(scope).start;
        for row in rows {
            // SAFETY: memory of `take`; rows of the task's result.
            unsafe {
                let from = scope.copies[copy].add((row - first) * self.width);
                let from = std::slice::from_raw_parts(from, self.width);
                narrow(self.dtype, from, self.narrow(operands, scope, row, 0), self.strides[3]);
            }
        }
    }

    /// Sets rows of a result to zero that belong to no scope.
    ///
    /// # Safety
    /// Rows of the view, which nothing else uses.
    pub(super) unsafe fn clear(&self, operands: &Operands, scope: &Scope, rows: Range<usize>) {
        if self.copy.is_none() {
            // SAFETY: the caller's.
            return unsafe { self.matrix(operands, scope, rows.start).clear(rows.len(), self.width) };
        }
        for row in rows {
            for column in 0..self.width {
                // SAFETY: the caller's; zero is the same in all types.
                unsafe { *self.narrow(operands, scope, row, column) = 0 };
            }
        }
    }

    fn narrow(&self, operands: &Operands, scope: &Scope, row: usize, column: usize) -> *mut u16 {
        let at = self.start(scope, row) + column as isize * self.strides[3];
        operands.0[self.operand].cast::<u16>().wrapping_offset(at)
    }
}
