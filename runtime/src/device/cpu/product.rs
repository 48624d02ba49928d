//! Matrix products: blocks of the result from the `gemm` crate, each finished by the epilogue while it is in cache.

use alip_plan::DType;
use alip_plan::kernel::{Product, ScalarOp};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::Threads;
use super::code::{Context, Program, Slots, translate};
use super::grid::Affine;
use super::grid::{Access, Grid};
use super::isa::Loops;
use super::kernel::reads_index;
use super::run::{Operands, Runner};

/// Most columns of a block: one tile of the epilogue.
const BLOCK_COLUMNS: usize = 1024;
/// Most rows of a block with epilogue: with as many columns it fills the second-level cache of a current core.
const BLOCK_ROWS: usize = 256;
/// Most rows of a block that needs no epilogue; taller blocks pack the right operand less often.
const PLAIN_ROWS: usize = 512;
/// Columns of such a block.
const PLAIN_COLUMNS: usize = 2048;
/// Multiply-adds below which a task is not worth a thread of its own.
const TASK: usize = 1 << 18;

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
        if product.a.dtype != DType::F32 || product.b.dtype != DType::F32 {
            return Err("the cpu device multiplies f32 only; compile with --precision f32".into());
        }
        let [m, n, k] = [product.m, product.n, product.k].map(|size| size as usize);
        let batch: Vec<usize> = product.batch.iter().map(|&size| size as usize).collect();
        let even = |size: usize, most: usize| {
            let parts = size.div_ceil(most).max(1);
            size.div_ceil(parts).next_multiple_of(16).min(most).max(1)
        };
        let plain = plain(product);
        let (rows, columns) = match plain {
            Some(_) => (even(m, PLAIN_ROWS), even(n, PLAIN_COLUMNS)),
            None => (even(m, BLOCK_ROWS), even(n, BLOCK_COLUMNS)),
        };
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
        let rows = self.rows.min(self.m - row);
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
            // SAFETY: `check` keeps the view inside its operand.
            unsafe { operands.0[access.operand].cast::<f32>().offset(access.element.at(&at)) }
        };
        let strides = |access: &Access| (access.element.strides[dims], access.element.strides[dims + 1]);
        let (a, b) = (place(&self.a, row, 0), place(&self.b, 0, column));
        let multiply = |to: *mut f32, (row_stride, column_stride): (isize, isize), scale: f32| {
            let ((a_rows, a_columns), (b_rows, b_columns)) = (strides(&self.a), strides(&self.b));
            // SAFETY: all three matrices are inside their memory, and the result apart from the operands, by `check`.
            // Without threads of its own the library sums over k in an order that depends on shapes only.
            unsafe {
                gemm(
                    rows,
                    columns,
                    self.k,
                    to,
                    column_stride,
                    row_stride,
                    false,
                    a,
                    a_columns,
                    a_rows,
                    b,
                    b_columns,
                    b_rows,
                    0.0,
                    scale,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        };
        match &self.finish {
            Finish::Plain { out, scale } => multiply(place(out, row, column), strides(out), *scale),
            Finish::Epilogue { grid, program } => threads.with_scratch(|scratch| {
                let mut block = scratch.take_block(rows * columns);
                multiply(block.as_mut_ptr(), (columns as isize, 1), 1.0);
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
