//! Kernels made ready when a plan is loaded: dimensions merged, domains cut, code translated.

use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Loop, Map, ScalarOp, ScatterAdd, View};

use super::Threads;
use super::attention::PreparedAttention;
use super::code::{Context, Program, Slots, translate};
use super::conv::PreparedConv;
use super::grid::{Access, Affine, Grid, TILE, merge};
use super::isa::Loops;
use super::product::PreparedProduct;
use super::reduction::PreparedReduction;
use super::run::{MOST_LOOPS, Operands, Runner};

/// A kernel ready to run.
pub(super) enum Prepared {
    Map(PreparedMap),
    Reduction(Box<PreparedReduction>),
    Product(Box<PreparedProduct>),
    Conv2d(Box<PreparedConv>),
    ScatterAdd(ScatterAdd),
    Attention(Box<PreparedAttention>),
}

impl Prepared {
    /// Prepares a loop; `alias` names for each operand the first one that shares memory with it.
    pub(super) fn new(kernel: &Loop, alias: &[usize], loops: &Loops) -> Result<Prepared, String> {
        Ok(match kernel {
            Loop::Map(map) => Prepared::Map(PreparedMap::new(map, alias, loops)?),
            Loop::Reduction(reduction) => {
                Prepared::Reduction(Box::new(PreparedReduction::new(reduction, alias, loops)?))
            }
            Loop::Product(product) => Prepared::Product(Box::new(PreparedProduct::new(product, alias, loops)?)),
            Loop::Conv2d(conv) => Prepared::Conv2d(Box::new(PreparedConv::new(conv, alias, loops))),
            Loop::ScatterAdd(scatter) => Prepared::ScatterAdd(scatter.clone()),
            Loop::Attention(attention) => Prepared::Attention(Box::new(PreparedAttention::new(attention, loops))),
        })
    }

    pub(super) fn run(&self, operands: &Operands, threads: &Threads) {
        match self {
            Prepared::Map(map) => map.run(operands, threads),
            Prepared::Reduction(reduction) => reduction.run(operands, threads),
            Prepared::Product(product) => product.run(operands, threads),
            Prepared::Conv2d(conv) => conv.run(operands, threads),
            Prepared::ScatterAdd(scatter) => scatter_add(scatter, operands, threads),
            Prepared::Attention(attention) => attention.run(operands, threads),
        }
    }
}

/// A domain with its views and coordinates over merged dimensions.
pub(super) struct Domain {
    /// Sizes by group.
    pub(super) groups: Vec<Vec<usize>>,
    pub(super) accesses: Vec<Access>,
    pub(super) indices: Vec<Affine>,
}

impl Domain {
    /// Merges the dimensions of a domain; `indexed` says whether code reads coordinates, which keeps dimensions apart.
    pub(super) fn new(groups: &[&[u64]], views: &[View], indexed: bool) -> Result<Domain, String> {
        let dims = groups.iter().map(|group| group.len()).sum();
        let mut accesses: Vec<Access> = views.iter().map(Access::new).collect();
        let mut indices: Vec<Affine> =
            if indexed { (0..dims).map(|dim| Affine::coordinate(dim, dims)).collect() } else { Vec::new() };
        let mut maps: Vec<&mut Affine> = accesses.iter_mut().flat_map(Access::maps).chain(&mut indices).collect();
        let groups = merge(groups, &mut maps);
        if groups.iter().map(Vec::len).sum::<usize>() > MOST_LOOPS {
            return Err(format!("the cpu device runs loops of at most {MOST_LOOPS} dimensions"));
        }
        Ok(Domain { groups, accesses, indices })
    }
}

/// Whether code reads coordinates.
pub(super) fn reads_index(code: &alip_plan::kernel::Code) -> bool {
    code.instrs.iter().any(|instr| matches!(instr.op, ScalarOp::Index(_)))
}

/// A pointwise kernel.
pub(super) struct PreparedMap {
    grid: Grid,
    program: Program,
}

impl PreparedMap {
    fn new(map: &Map, alias: &[usize], loops: &Loops) -> Result<PreparedMap, String> {
        let mut domain = Domain::new(&[&map.domain], &map.views, reads_index(&map.code))?;
        let empty = map.domain.contains(&0);
        let sizes = domain.groups.remove(0);
        let mut grid = Grid::new(&sizes, sizes.len());
        if empty {
            grid.tiles = 0;
        }
        let context = Context {
            loops,
            grid: &grid,
            accesses: &domain.accesses,
            indices: &domain.indices,
            slots: (0, Slots::Single),
            alias,
        };
        let program = translate(&map.code, &[], &context);
        Ok(PreparedMap { grid, program })
    }

    fn run(&self, operands: &Operands, threads: &Threads) {
        let weight = self.grid.lanes() * self.program.body.len();
        threads.ranges(self.grid.tiles, weight, |tiles| {
            if tiles.is_empty() {
                return;
            }
            threads.with_scratch(|scratch| {
                let mut runner = Runner::new(&self.program, &self.grid, operands, scratch);
                for tile in tiles {
                    runner.tile(tile);
                }
            });
        });
    }
}

/// Adds rows into a zeroed table, in the order of the rows; in parallel over tables and blocks of columns.
fn scatter_add(scatter: &ScatterAdd, operands: &Operands, threads: &Threads) {
    let ScatterAdd { batch, count, rows, inner, .. } = *scatter;
    let [batch, count, rows, inner] = [batch, count, rows, inner].map(|size| size as usize);
    let views = [&scatter.index, &scatter.updates, &scatter.out];
    let [index, updates, out] = views.map(|view| operands.start(view) as usize);
    let elements = batch * rows * inner;
    if elements == 0 {
        return;
    }
    threads.ranges(elements.div_ceil(TILE), TILE, |tiles| {
        let (first, last) = (tiles.start * TILE, (tiles.end * TILE).min(elements));
        // SAFETY: ranges are disjoint and inside the table, which `check` sized.
        unsafe { std::slice::from_raw_parts_mut((out as *mut f32).add(first), last - first) }.fill(0.0);
    });
    /// Columns added by one task: enough for whole cache lines, few enough to share a row.
    const COLUMNS: usize = 128;
    let blocks = inner.div_ceil(COLUMNS);
    threads.ranges(batch * blocks, count * COLUMNS, |tasks| {
        for task in tasks {
            let (table, block) = (task / blocks, task % blocks);
            let first = block * COLUMNS;
            let columns = COLUMNS.min(inner - first);
            for row in 0..count {
                let update = table * count + row;
                // SAFETY: `check` sized all three operands; a task's columns are its own.
                unsafe {
                    let at = (*(index as *const i32).add(update)).clamp(0, rows as i32 - 1) as usize;
                    let from = (updates as *const f32).add(update * inner + first);
                    let to = (out as *mut f32).add((table * rows + at) * inner + first);
                    let to = std::slice::from_raw_parts_mut(to, columns);
                    for (to, &from) in to.iter_mut().zip(std::slice::from_raw_parts(from, columns)) {
                        *to = if planted(Fault::ScatterOverwrites) { from } else { *to + from };
                    }
                }
            }
        }
    });
}
