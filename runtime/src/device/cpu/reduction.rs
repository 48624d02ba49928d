//! Reductions: rows of adjacent elements reduced a tile at a time, or lanes along what is kept.
//!
//! Sums run in sixty-four partial values per tile and a tree, tiles add up in f64, and long rows are cut into parts of a
//! fixed size; along kept dimensions sums have two levels. All of it depends on shapes only.

use std::ops::Range;

use alip_plan::DType;
use alip_plan::check::result_type;
use alip_plan::kernel::{Code, Lanes, ReduceKind, Reduction, ScalarOp, Stage, View};
use rayon::prelude::*;

use super::Threads;
use super::code::{Context, Program, Slots, translate};
use super::fold::{Columns, Folder, LEVEL, Total};
use super::grid::{Access, Affine, Grid};
use super::isa::Loops;
use super::kernel::{Domain, reads_index};
use super::run::{Operands, Runner};

/// Rows up to this length share a tile.
const SHORT_ROW: usize = 256;
/// Elements of the rows that one thread takes through all stages: a quarter of a first-level cache.
const BLOCK: usize = 8192;
/// Rows at least this long are cut into parts when there are fewer than `FEW_ROWS`.
const LONG_ROW: usize = 1 << 16;
const FEW_ROWS: usize = 16;
/// Tiles of a part of a long row.
const PART: usize = 32;
/// Tasks wanted of a reduction along kept dimensions.
const KEPT_TASKS: usize = 32;

/// A reduction ready to run.
pub(super) struct PreparedReduction {
    mode: Mode,
    /// Points of the kept dimensions and of the reduced ones.
    rows: usize,
    length: usize,
    slots: usize,
    /// Tiles of points, and of rows.
    points: Grid,
    kept: Grid,
    stages: Vec<PreparedStage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A tile holds several rows.
    Short,
    /// A row is one tile or several.
    Long,
    /// A tile holds one point of each of many rows.
    Kept,
}

enum PreparedStage {
    Points { program: Program, reduce: Vec<Folder> },
    Row { program: Program, slots: Vec<usize> },
}

/// Where the slots of a block of rows lie: slot `s` of row `i` at `s * stride + i`.
#[derive(Clone, Copy)]
struct SlotTable {
    base: *mut u32,
    stride: usize,
}

// SAFETY: tasks write the slots of their own rows only.
unsafe impl Send for SlotTable {}
// SAFETY: as above.
unsafe impl Sync for SlotTable {}

impl SlotTable {
    fn at(self, slot: usize, row: usize) -> *mut u32 {
        // SAFETY: callers give slots and rows of the table.
        unsafe { self.base.add(slot * self.stride + row) }
    }
}

impl PreparedReduction {
    pub(super) fn new(reduction: &Reduction, alias: &[usize], loops: &Loops) -> Result<PreparedReduction, String> {
        let product = |sizes: &[u64]| sizes.iter().product::<u64>() as usize;
        let (rows, length) = (product(&reduction.kept), product(&reduction.reduced));
        let indexed = reduction.stages.iter().any(|stage| reads_index(stage.code()));
        let (kept, reduced) = (reduction.kept.as_slice(), reduction.reduced.as_slice());
        let mode = match reduction.lanes {
            Lanes::Kept if rows > 1 => Mode::Kept,
            _ if length <= SHORT_ROW && rows > 1 => Mode::Short,
            _ => Mode::Long,
        };
        let (points, kept_grid, domain, row_domain);
        if mode == Mode::Kept {
            let views: Vec<View> = reduction.views.iter().map(|view| rotate(view, kept.len())).collect();
            let mut found = Domain::new(&[reduced, kept], &views, indexed)?;
            // Coordinates in the plan's order: kept dimensions first.
            if indexed {
                found.indices.rotate_left(reduced.len());
            }
            let (outer, inner) = (found.groups[0].clone(), found.groups[1].clone());
            kept_grid = Grid::new(&inner, inner.len());
            let sizes = [outer.as_slice(), &kept_grid.sizes].concat();
            points = Grid::with_chunk(&sizes, outer.len() + kept_grid.split, kept_grid.chunk);
            row_domain = found.slice(outer.len()..sizes.len());
            domain = found;
        } else {
            let found = Domain::new(&[kept, reduced], &reduction.views, indexed)?;
            let (outer, inner) = (found.groups[0].clone(), found.groups[1].clone());
            let sizes = [outer.as_slice(), &inner].concat();
            if mode == Mode::Short {
                points = Grid::new(&sizes, outer.len());
                kept_grid = Grid::with_chunk(&outer, points.split, points.chunk);
            } else {
                points = Grid::new(&sizes, sizes.len());
                kept_grid = match outer.len() {
                    0 => Grid::new(&[], 0),
                    dims => Grid::with_chunk(&outer, dims - 1, (BLOCK / length.max(1)).clamp(1, 16)),
                };
            }
            row_domain = found.slice(0..outer.len());
            domain = found;
        }
        let slot_count = reduction.slots;
        let translate_for = |code: &Code, results: &[u16], of_rows: bool| {
            let (grid, domain) = if of_rows { (&kept_grid, &row_domain) } else { (&points, &domain) };
            let slots = match mode {
                _ if of_rows => Slots::Lanes,
                Mode::Kept => Slots::Lanes,
                Mode::Short => Slots::Rows(length),
                Mode::Long => Slots::Single,
            };
            let (accesses, indices) = (&domain.accesses, &domain.indices);
            translate(code, results, &Context { loops, grid, accesses, indices, slots: (slot_count, slots), alias })
        };
        let stage = |stage: &Stage| match stage {
            Stage::Row { code, slots } => {
                let values: Vec<u16> = slots.iter().map(|&(value, _)| value).collect();
                let slots = slots.iter().map(|&(_, slot)| slot as usize).collect();
                PreparedStage::Row { program: translate_for(code, &values, true), slots }
            }
            Stage::Points { code, reduce } => {
                let values: Vec<u16> = reduce.iter().map(|reduce| reduce.value).collect();
                let prepared = reduce.iter().map(|reduce| Folder::new(reduce, type_of(code, reduce.value), loops));
                PreparedStage::Points { reduce: prepared.collect(), program: translate_for(code, &values, false) }
            }
        };
        let stages = reduction.stages.iter().map(stage).collect();
        Ok(PreparedReduction { mode, rows, length, slots: slot_count as usize, points, kept: kept_grid, stages })
    }

    pub(super) fn run(&self, operands: &Operands, threads: &Threads) {
        if self.rows == 0 {
            return;
        }
        if self.mode == Mode::Kept || self.mode == Mode::Long && self.rows < FEW_ROWS && self.length >= LONG_ROW {
            return self.run_stages(operands, threads);
        }
        let ops: usize = self.stages.iter().map(|stage| stage.program().body.len() + 1).sum();
        let weight = self.kept.lanes() * self.length * ops;
        threads.ranges(self.kept.tiles, weight, |blocks| {
            let most = self.kept.lanes();
            let mut slots = vec![0u32; self.slots * most];
            let table = SlotTable { base: slots.as_mut_ptr(), stride: most };
            for block in blocks {
                for stage in &self.stages {
                    match stage {
                        PreparedStage::Row { program, slots } => {
                            self.row_stage(program, slots, block, table, operands, threads);
                        }
                        PreparedStage::Points { program, reduce } if self.mode == Mode::Short => {
                            self.short_rows(program, reduce, block, table, operands, threads);
                        }
                        PreparedStage::Points { program, reduce } => {
                            self.long_rows(program, reduce, block, table, operands, threads);
                        }
                    }
                }
            }
        });
    }

    /// Points the cells of all slots to those of a row and what follows it in the table.
    fn set_slots(&self, runner: &mut Runner<'_>, table: SlotTable, row: usize) {
        for slot in 0..self.slots {
            runner.slot(slot, table.at(slot, row));
        }
    }

    /// Runs a row stage for the rows of a tile; `table` starts at its first row.
    fn row_stage(
        &self,
        program: &Program,
        slots: &[usize],
        block: usize,
        table: SlotTable,
        operands: &Operands,
        threads: &Threads,
    ) {
        threads.with_scratch(|scratch| {
            let mut runner = Runner::new(program, &self.kept, operands, scratch);
            self.set_slots(&mut runner, table, 0);
            let lanes = runner.tile(block);
            // All results are read before any slot is set, as the stage computes from the slots it found.
            let values: Vec<Vec<u32>> = (0..slots.len())
                // SAFETY: a result has as many lanes as the tile.
                .map(|index| unsafe { std::slice::from_raw_parts(runner.result(index), lanes) }.to_vec())
                .collect();
            for (&slot, values) in slots.iter().zip(&values) {
                // SAFETY: the table has a place for every row of the tile.
                unsafe { std::slice::from_raw_parts_mut(table.at(slot, 0), lanes) }.copy_from_slice(values);
            }
        });
    }

    fn short_rows(
        &self,
        program: &Program,
        reduce: &[Folder],
        block: usize,
        table: SlotTable,
        operands: &Operands,
        threads: &Threads,
    ) {
        threads.with_scratch(|scratch| {
            let mut runner = Runner::new(program, &self.points, operands, scratch);
            self.set_slots(&mut runner, table, 0);
            let lanes = runner.tile(block);
            for (index, reduce) in reduce.iter().enumerate() {
                let values = runner.result(index);
                for row in 0..lanes.checked_div(self.length).unwrap_or(self.kept.lanes()) {
                    // SAFETY: the row's lanes of the result; the row's place in the table.
                    unsafe {
                        *table.at(reduce.slot, row) = reduce.fold_row(values.add(row * self.length), self.length)
                    };
                }
            }
        });
    }

    fn long_rows(
        &self,
        program: &Program,
        reduce: &[Folder],
        block: usize,
        table: SlotTable,
        operands: &Operands,
        threads: &Threads,
    ) {
        let tiles = self.points.tiles / self.rows;
        let (first, rows) = (self.kept.first_lane(block), self.kept.lanes_of(block));
        threads.with_scratch(|scratch| {
            let mut runner = Runner::new(program, &self.points, operands, scratch);
            let mut totals: Vec<Total> = Vec::with_capacity(reduce.len());
            for row in 0..rows {
                self.set_slots(&mut runner, table, row);
                totals.clear();
                totals.extend(reduce.iter().map(Total::new));
                self.row_tiles(&mut runner, reduce, &mut totals, first + row, 0..tiles);
                for (reduce, total) in reduce.iter().zip(&totals) {
                    // SAFETY: the row's place in the table.
                    unsafe { *table.at(reduce.slot, row) = total.bits(reduce) };
                }
            }
        });
    }

    /// Runs tiles of a row and adds their values to totals.
    fn row_tiles(
        &self,
        runner: &mut Runner<'_>,
        reduce: &[Folder],
        totals: &mut [Total],
        row: usize,
        tiles: Range<usize>,
    ) {
        let per_row = self.points.tiles / self.rows;
        for tile in tiles {
            let at = row * per_row + tile;
            let lanes = runner.tile(at);
            let position = self.points.first_lane(at) - row * self.length;
            for (index, (reduce, total)) in reduce.iter().zip(totals.iter_mut()).enumerate() {
                // SAFETY: a result has as many lanes as the tile.
                unsafe { total.add(reduce, runner.result(index), lanes, position) };
            }
        }
    }

    /// Stage by stage over all rows, each in parallel over parts of the rows.
    fn run_stages(&self, operands: &Operands, threads: &Threads) {
        let mut slots = vec![0u32; self.slots * self.rows];
        let table = SlotTable { base: slots.as_mut_ptr(), stride: self.rows };
        for stage in &self.stages {
            match stage {
                PreparedStage::Row { program, slots } => {
                    threads.ranges(self.kept.tiles, self.kept.lanes() * program.body.len(), |blocks| {
                        for block in blocks {
                            let first = self.kept.first_lane(block);
                            let table = SlotTable { base: table.at(0, first), stride: self.rows };
                            self.row_stage(program, slots, block, table, operands, threads);
                        }
                    });
                }
                PreparedStage::Points { program, reduce } if self.mode == Mode::Kept => {
                    self.kept_points(program, reduce, table, operands, threads);
                }
                PreparedStage::Points { program, reduce } => {
                    self.parted_rows(program, reduce, table, operands, threads);
                }
            }
        }
    }

    fn parted_rows(
        &self,
        program: &Program,
        reduce: &[Folder],
        table: SlotTable,
        operands: &Operands,
        threads: &Threads,
    ) {
        let tiles = self.points.tiles / self.rows;
        let parts = tiles.div_ceil(PART);
        let part = |task: usize| {
            let (row, part) = (task / parts, task % parts);
            let mut totals: Vec<Total> = reduce.iter().map(Total::new).collect();
            threads.with_scratch(|scratch| {
                let mut runner = Runner::new(program, &self.points, operands, scratch);
                self.set_slots(&mut runner, table, row);
                self.row_tiles(&mut runner, reduce, &mut totals, row, part * PART..((part + 1) * PART).min(tiles));
            });
            totals
        };
        let totals: Vec<Vec<Total>> = (0..self.rows * parts).into_par_iter().map(part).collect();
        for (row, parts) in totals.chunks(parts).enumerate() {
            for (index, reduce) in reduce.iter().enumerate() {
                let mut total = Total::new(reduce);
                parts.iter().for_each(|part| total.join(reduce, &part[index]));
                // SAFETY: the row's place in the table.
                unsafe { *table.at(reduce.slot, row) = total.bits(reduce) };
            }
        }
    }

    fn kept_points(
        &self,
        program: &Program,
        reduce: &[Folder],
        table: SlotTable,
        operands: &Operands,
        threads: &Threads,
    ) {
        let tiles = self.kept.tiles;
        let parts = (KEPT_TASKS / tiles.max(1)).min(self.length / (2 * LEVEL)).max(1);
        let task = |task: usize| {
            let (tile, part) = (task / parts, task % parts);
            let points = part * self.length / parts..(part + 1) * self.length / parts;
            let first = self.kept.first_lane(tile);
            let mut columns: Vec<Columns> = reduce.iter().map(|r| Columns::new(r, self.kept.lanes_of(tile))).collect();
            threads.with_scratch(|scratch| {
                let mut runner = Runner::new(program, &self.points, operands, scratch);
                self.set_slots(&mut runner, table, first);
                for point in points {
                    runner.tile(point * tiles + tile);
                    for (index, (reduce, columns)) in reduce.iter().zip(&mut columns).enumerate() {
                        // SAFETY: a result has as many lanes as the tile.
                        unsafe { columns.add(reduce, runner.result(index), point) };
                    }
                }
            });
            columns
        };
        let mut found: Vec<Vec<Columns>> = (0..tiles * parts).into_par_iter().map(task).collect();
        for (tile, parts) in found.chunks_mut(parts).enumerate() {
            let first = self.kept.first_lane(tile);
            let Some((total, rest)) = parts.split_first_mut() else { continue };
            for (index, reduce) in reduce.iter().enumerate() {
                let total = &mut total[index];
                total.flush(reduce);
                for part in rest.iter_mut() {
                    part[index].flush(reduce);
                    total.join(reduce, &part[index]);
                }
                let values = if reduce.kind == ReduceKind::ArgMax { &total.index } else { &total.total };
                // SAFETY: the places of the tile's rows in the table.
                unsafe { std::slice::from_raw_parts_mut(table.at(reduce.slot, first), values.len()) }
                    .copy_from_slice(values);
            }
        }
    }
}

impl PreparedStage {
    fn program(&self) -> &Program {
        match self {
            PreparedStage::Points { program, .. } | PreparedStage::Row { program, .. } => program,
        }
    }
}

/// A view with the reduced dimensions before the kept ones.
fn rotate(view: &View, kept: usize) -> View {
    let mut view = view.clone();
    view.strides.rotate_left(kept);
    if let Some(gather) = &mut view.gather {
        gather.strides.rotate_left(kept);
    }
    view
}

/// Type of a value in registers; a store yields its argument.
fn type_of(code: &Code, value: u16) -> DType {
    match code.instrs.get(value as usize) {
        Some(instr) if matches!(instr.op, ScalarOp::Store(_)) => type_of(code, instr.args[0]),
        Some(instr) => result_type(instr),
        None => DType::F32,
    }
}

impl Domain {
    /// The part of all views along some dimensions, the others at their first point.
    fn slice(&self, dims: Range<usize>) -> Domain {
        let cut = |map: &mut Affine| map.strides = map.strides.get(dims.clone()).unwrap_or_default().to_vec();
        let mut accesses: Vec<Access> = self.accesses.clone();
        accesses.iter_mut().flat_map(Access::maps).for_each(cut);
        let mut indices = self.indices.clone();
        indices.iter_mut().for_each(cut);
        Domain { groups: Vec::new(), accesses, indices }
    }
}
