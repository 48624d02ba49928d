//! Matrix products: blocks of the result from the `gemm` crate, each finished by the epilogue while it is in cache. The
//! library multiplies f32; operands stored in 16 bits are widened beside it.

use alip_plan::DType;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Product, ScalarOp};
use rayon::prelude::*;

use super::Threads;
use super::code::{Context, Program, Slots, translate};
use super::grid::{Access, Affine, Grid, TILE};
use super::isa::Loops;
use super::kernel::reads_index;
use super::matrix::{Matrix, multiply};
use super::run::{Operands, Runner, Scratch, widen};

/// Most elements of a block: it stays in the caches of a core until the epilogue has read it.
const BLOCK: usize = 1 << 19;
/// Multiply-adds below which a task is not worth a thread of its own.
const TASK: usize = 1 << 18;
/// Most elements along k that are widened at a time: with the largest blocks a few MiB per thread.
const DEPTH: usize = 1024;

/// A product ready to run.
pub(super) struct PreparedProduct {
    batch: Vec<usize>,
    m: usize,
    n: usize,
    k: usize,
    a: Access,
    b: Access,
    rows: usize,
    columns: usize,
    finish: Finish,
}

/// What happens to the product.
enum Finish {
    /// It is stored as it is, perhaps times a constant: the library writes the result.
    Plain { out: Access, scale: f32 },
    /// Anything else, one row of a block at a time.
    Epilogue { grid: Grid, program: Box<Program> },
}

impl PreparedProduct {
    pub(super) fn new(product: &Product, alias: &[usize], loops: &Loops) -> Result<PreparedProduct, String> {
        let [m, n, k] = [product.m, product.n, product.k].map(|size| size as usize);
        let batch: Vec<usize> = product.batch.iter().map(|&size| size as usize).collect();
        let plain = plain(product);
        let most_columns = if plain.is_some() { n.max(1) } else { TILE };
        let (rows, columns) = blocks(batch.iter().product(), m, n, most_columns);
        let finish = match plain {
            Some((view, scale)) => Finish::Plain { out: Access::new(&product.views[view]), scale },
            None => {
                let sizes: Vec<usize> = batch.iter().copied().chain([m, n]).collect();
                let grid = Grid::with_chunk(&sizes, sizes.len() - 1, columns);
                let accesses: Vec<Access> = product.views.iter().map(Access::new).collect();
                let dims = sizes.len();
                let indices: Vec<Affine> = if reads_index(&product.code) {
                    (0..dims).map(|dim| Affine::coordinate(dim, dims)).collect()
                } else {
                    Vec::new()
                };
                let slots = (0, Slots::Single);
                let context = Context { loops, grid: &grid, accesses: &accesses, indices: &indices, slots, alias };
                let program = Box::new(translate(&product.code, &[], &context));
                Finish::Epilogue { grid, program }
            }
        };
        let (a, b) = (Access::new(&product.a), Access::new(&product.b));
        Ok(PreparedProduct { batch, m, n, k, a, b, rows, columns, finish })
    }

    pub(super) fn run(&self, operands: &Operands, threads: &Threads) {
        let (row_blocks, column_blocks) = (self.m.div_ceil(self.rows), self.n.div_ceil(self.columns));
        let tasks = self.batch.iter().product::<usize>() * row_blocks * column_blocks;
        let least = (TASK / (self.rows * self.columns * self.k).max(1)).max(1);
        let run = |task: usize| {
            let (outer, block) = (task / (row_blocks * column_blocks), task % (row_blocks * column_blocks));
            let first = [block / column_blocks * self.rows, block % column_blocks * self.columns];
            self.block(operands, threads, outer, first);
        };
        (0..tasks).into_par_iter().with_min_len(least).for_each(run);
    }

    fn block(&self, operands: &Operands, threads: &Threads, outer: usize, [row, column]: [usize; 2]) {
        let mut rows = self.rows.min(self.m - row);
        if rows > 1 && row + rows == self.m && planted(Fault::LastRowMissing) {
            rows -= 1;
        }
        let columns = self.columns.min(self.n - column);
        let dims = self.batch.len();
        let mut at = vec![0; dims + 2];
        let mut rest = outer;
        for dim in (0..dims).rev() {
            at[dim] = rest % self.batch[dim];
            rest /= self.batch[dim];
        }
        let place = |access: &Access, i: usize, j: usize| {
            let mut at = at.clone();
            (at[dims], at[dims + 1]) = (i, j);
            let offset = access.element.at(&at) * access.dtype.bytes() as isize;
            // SAFETY: `check` keeps the view inside its operand.
            unsafe { operands.0[access.operand].cast::<u8>().offset(offset) }
        };
        let strides = |access: &Access| (access.element.strides[dims], access.element.strides[dims + 1]);
        let factor = |access: &Access, i: usize, j: usize| Factor {
            start: place(access, i, j),
            dtype: access.dtype,
            strides: strides(access),
        };
        let (a, b) = (factor(&self.a, row, 0), factor(&self.b, 0, column));
        let sizes = [rows, columns, self.k];
        match &self.finish {
            Finish::Plain { out, scale } => {
                let (row_stride, column_stride) = strides(out);
                let to = Matrix { data: place(out, row, column).cast(), row: row_stride, column: column_stride };
                match (a.floats(), b.floats()) {
                    // SAFETY: all are inside their operands, and the result apart from the factors, by `check`.
                    (Some(a), Some(b)) => unsafe { multiply(sizes, to, false, a, b, *scale) },
                    _ => threads.with_scratch(|scratch| multiply_wide(sizes, to, (&a, &b), *scale, scratch)),
                }
            }
            Finish::Epilogue { grid, program } => threads.with_scratch(|scratch| {
                let mut block = scratch.take_block(rows * columns);
                multiply_wide(sizes, Matrix::block(&mut block, columns), (&a, &b), 1.0, scratch);
                let mut runner = Runner::new(program, grid, operands, scratch);
                for i in 0..rows {
                    runner.product(block[i * columns..].as_mut_ptr().cast());
                    runner.tile((outer * self.m + row + i) * grid.chunks + column / self.columns);
                }
                scratch.return_block(block);
            }),
        }
    }
}

/// A factor in memory: the strides are those from row to row and from column to column, in elements.
struct Factor {
    start: *mut u8,
    dtype: DType,
    strides: (isize, isize),
}

impl Factor {
    /// As it is, if it is of f32.
    fn floats(&self) -> Option<Matrix> {
        let (row, column) = self.strides;
        (self.dtype == DType::F32).then_some(Matrix { data: self.start.cast(), row, column })
    }
}

/// `to = scale a b` for operands of any float type: those of 16 bits are widened, [`DEPTH`] elements of every row and column
/// at a time.
fn multiply_wide([m, n, k]: [usize; 3], to: Matrix, (a, b): (&Factor, &Factor), scale: f32, scratch: &mut Scratch) {
    if let (Some(a), Some(b)) = (a.floats(), b.floats()) {
        // SAFETY: all are inside their memory, and the result apart from the factors, by `check`.
        return unsafe { multiply([m, n, k], to, false, a, b, scale) };
    }
    let depth = DEPTH.min(k);
    let (mut wide_a, mut wide_b) = (scratch.take_block(m * depth), scratch.take_block(depth * n));
    for first in (0..k).step_by(depth.max(1)) {
        let depth = depth.min(k - first);
        let (a, b) = (widened(a, [m, depth], [0, first], &mut wide_a), widened(b, [depth, n], [first, 0], &mut wide_b));
        // SAFETY: as above.
        unsafe { multiply([m, n, depth], to, first > 0, a, b, scale) };
    }
    scratch.return_block(wide_b);
    scratch.return_block(wide_a);
}

/// A part of a matrix in f32: where it is, or copied to `to` with its elements in the order that they have in memory.
fn widened(from: &Factor, [rows, columns]: [usize; 2], [row, column]: [usize; 2], to: &mut [f32]) -> Matrix {
    let (row_stride, column_stride) = from.strides;
    let offset = row as isize * row_stride + column as isize * column_stride;
    // SAFETY: inside the factor.
    let start = unsafe { from.start.offset(offset * from.dtype.bytes() as isize) };
    let part = Factor { start, ..*from };
    if let Some(floats) = part.floats() {
        return floats;
    }
    let by_rows = column_stride.abs() <= row_stride.abs();
    let (outer, inner) = if by_rows { (rows, columns) } else { (columns, rows) };
    let (outer_stride, inner_stride) = if by_rows { (row_stride, column_stride) } else { (column_stride, row_stride) };
    for (i, line) in to.chunks_exact_mut(inner.max(1)).take(outer).enumerate() {
        // SAFETY: a row or column of the part.
        unsafe { widen(from.dtype, start.cast::<u16>().offset(i as isize * outer_stride), inner_stride, line) };
    }
    let block = Matrix::block(to, inner);
    if by_rows { block } else { block.transposed() }
}

/// Rows and columns of the blocks that a result of `batch` matrices is cut into; by shapes only, so that results do not depend
/// on the machine's threads. Weighs what packing costs more in small blocks against threads that wait for the last block.
fn blocks(batch: usize, m: usize, n: usize, most_columns: usize) -> (usize, usize) {
    // The library's kernel computes 16 columns of 6 rows at a time.
    let cut = |size: usize, parts: usize, unit: usize| size.div_ceil(parts).next_multiple_of(unit).min(size).max(1);
    // Measured on products of transformer layers: a block of r rows and c columns takes this much longer than a large one.
    let packing = |rows: usize, columns: usize| 30.0 / rows as f64 + 15.0 / columns as f64;
    // How much longer than their share some usual numbers of threads take, on average.
    let waiting = |rows: usize, columns: usize| {
        let tasks = batch * m.div_ceil(rows) * n.div_ceil(columns);
        let share = |threads: usize| tasks.div_ceil(threads) * threads * rows * columns;
        (share(2) + share(4) + share(8)) as f64 / (3 * batch * m * n).max(1) as f64
    };
    let mut best = (f64::INFINITY, (1, 1));
    for row_parts in 1..=m.div_ceil(48).max(1) {
        for column_parts in n.div_ceil(most_columns)..=n.div_ceil(128).max(n.div_ceil(most_columns)) {
            let (rows, columns) = (cut(m, row_parts, 6), cut(n, column_parts.max(1), 16));
            let cost = (1.0 + packing(rows, columns)) * waiting(rows, columns);
            if cost < best.0 && rows * columns <= BLOCK && columns <= most_columns {
                best = (cost, (rows, columns));
            }
        }
    }
    best.1
}

/// The view and factor of an epilogue that only stores, or scales by a constant and stores.
fn plain(product: &Product) -> Option<(usize, f32)> {
    let instrs = &product.code.instrs;
    let last = instrs.last()?;
    let ScalarOp::Store(view) = last.op else { return None };
    let found = product.views.get(view as usize)?;
    if found.dtype != DType::F32 {
        return None;
    }
    let op = |index: u16| instrs.get(index as usize).map(|instr| instr.op);
    let stored = instrs.get(last.args[0] as usize)?;
    let scale = match (stored.op, instrs.len()) {
        (ScalarOp::Product, 2) => 1.0,
        (ScalarOp::Mul, 4) => match (op(stored.args[0])?, op(stored.args[1])?) {
            (ScalarOp::Product, ScalarOp::Const(scale)) | (ScalarOp::Const(scale), ScalarOp::Product) => scale.0 as f32,
            _ => return None,
        },
        _ => return None,
    };
    Some((view as usize, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_result_and_leave_work_for_all_threads() {
        for (batch, m, n, most) in [(1, 0, 5, 1024), (1, 1, 1, 1024), (3, 7, 5000, 1024), (1, 5000, 49408, 1024)] {
            let (rows, columns) = blocks(batch, m, n, most);
            assert!(
                rows >= 1 && columns >= 1 && columns <= most && rows * columns <= BLOCK,
                "{m} x {n}: {rows} x {columns}"
            );
        }
        // Layers of the published models at a batch of 16.
        for (m, n) in [(1232, 2048), (1232, 512), (800, 768), (800, 3072), (768, 3072), (512, 512), (768, 768)] {
            let (rows, columns) = blocks(1, m, n, 1024);
            let tasks = m.div_ceil(rows) * n.div_ceil(columns);
            let longest = tasks.div_ceil(2) * rows * columns;
            assert!(longest * 2 * 10 <= m * n * 11, "{m} x {n}: {tasks} blocks of {rows} x {columns}");
        }
    }
}
