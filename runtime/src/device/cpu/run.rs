//! Runs register code over tiles.

use alip_plan::DType;
use alip_plan::kernel::View;

use super::code::{Cell, Layout, Op, Place, Program};
use super::grid::{Grid, TILE, Walk};
use crate::tensor::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// First bytes of a step's operands.
#[derive(Clone, Debug)]
pub(super) struct Operands(pub(super) Vec<*mut u8>);

// SAFETY: the tasks of a step write to disjoint elements and read nothing that another writes; `check` proved it of every
// view before the plan was loaded.
unsafe impl Send for Operands {}
// SAFETY: as above.
unsafe impl Sync for Operands {}

impl Operands {
    /// The first element that a dense view walks.
    pub(super) fn start(&self, view: &View) -> *mut u8 {
        let offset = view.offset as isize * view.dtype.bytes() as isize;
        // SAFETY: `check` keeps the view inside its operand.
        unsafe { self.0[view.operand as usize].offset(offset) }
    }
}

/// Lanes of a single value's cell: a cache line, so that vector loops over one lane never touch a neighbour.
const SINGLE: usize = 16;

/// Most dimensions that do not merge; `prepare` refuses kernels with more.
pub(super) const MOST_LOOPS: usize = 16;

/// What one thread needs to run code; grows to the largest program and stays.
pub(super) struct Scratch {
    registers: Vec<Register>,
    singles: Vec<[u32; SINGLE]>,
    pointers: Vec<*mut u32>,
    coordinates: Vec<usize>,
    blocks: Vec<Vec<f32>>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Register([u32; TILE]);

// SAFETY: the pointers are set anew for every task from memory that outlives it.
unsafe impl Send for Scratch {}

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch {
            registers: Vec::new(),
            singles: Vec::new(),
            pointers: Vec::new(),
            coordinates: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(self.registers.as_slice()) + size_of_val(self.singles.as_slice())) as u64
            + self.blocks.iter().map(|block| 4 * block.capacity() as u64).sum::<u64>()
    }

    /// Takes a block of floats of unspecified value out; put it back with [`Scratch::return_block`].
    pub(super) fn take_block(&mut self, elements: usize) -> Vec<f32> {
        let mut block = self.blocks.pop().unwrap_or_default();
        if block.len() < elements {
            block.resize(elements, 0.0);
        }
        block
    }

    /// Keeps a block for the next task. The last one taken is best returned first, so that sizes find each other again.
    pub(super) fn return_block(&mut self, block: Vec<f32>) {
        self.blocks.push(block);
    }
}

/// A program ready to run tiles in one task.
pub(super) struct Runner<'a> {
    program: &'a Program,
    grid: &'a Grid,
    operands: &'a Operands,
    scratch: &'a mut Scratch,
}

impl<'a> Runner<'a> {
    /// Points the cells and runs the prologue. All operands must be those the program was checked with.
    pub(super) fn new(
        program: &'a Program,
        grid: &'a Grid,
        operands: &'a Operands,
        scratch: &'a mut Scratch,
    ) -> Runner<'a> {
        let cells = program.layout;
        scratch.pointers.clear();
        scratch.pointers.resize(cells.registers + program.registers, std::ptr::null_mut());
        if scratch.registers.len() < program.registers {
            scratch.registers.resize(program.registers, Register([0; TILE]));
        }
        let singles = cells.registers - cells.singles;
        if scratch.singles.len() < singles {
            scratch.singles.resize(singles, [0; SINGLE]);
        }
        if scratch.coordinates.len() < grid.sizes.len() {
            scratch.coordinates.resize(grid.sizes.len(), 0);
        }
        for (pointer, register) in scratch.pointers[cells.registers..].iter_mut().zip(&mut scratch.registers) {
            *pointer = register.0.as_mut_ptr();
        }
        for (pointer, single) in scratch.pointers[cells.singles..cells.registers].iter_mut().zip(&mut scratch.singles) {
            *pointer = single.as_mut_ptr();
        }
        for (pointer, constant) in scratch.pointers[cells.constants..].iter_mut().zip(&program.constants) {
            *pointer = std::ptr::from_ref(constant).cast_mut(); // only ever read
        }
        let mut runner = Runner { program, grid, operands, scratch };
        runner.scratch.coordinates.fill(0);
        runner.point(true);
        runner.ops(&program.prologue, 1);
        runner
    }

    /// Sets the cell of a slot.
    pub(super) fn slot(&mut self, slot: usize, values: *mut u32) {
        self.scratch.pointers[self.program.layout.slots + slot] = values;
    }

    /// Sets the cell of the product.
    pub(super) fn product(&mut self, values: *mut u32) {
        self.scratch.pointers[0] = values;
    }

    /// Runs one tile; its lanes.
    #[inline]
    pub(super) fn tile(&mut self, tile: usize) -> usize {
        let extent = self.grid.locate(tile, &mut self.scratch.coordinates[..self.grid.sizes.len()]);
        let lanes = extent * self.grid.inner;
        self.point(false);
        self.ops(&self.program.body, lanes);
        lanes
    }

    /// The lanes of a result after a tile.
    #[inline]
    pub(super) fn result(&self, index: usize) -> *const u32 {
        self.scratch.pointers[self.program.results[index] as usize]
    }

    /// Points the cells of views to the first element of the tile at hand.
    #[inline]
    fn point(&mut self, fixed: bool) {
        for (view, place) in self.program.places.iter().enumerate() {
            if place.pointed && place.fixed == fixed {
                // SAFETY: `check` keeps every view inside its operand.
                let at = unsafe { self.operands.0[place.access.operand].cast::<u32>().offset(self.element(place)) };
                self.scratch.pointers[self.program.layout.views + view] = at;
            }
        }
    }

    /// First element of the tile at hand.
    #[inline]
    fn element(&self, place: &Place) -> isize {
        let coordinates = &self.scratch.coordinates;
        let element = place.access.element.at(coordinates);
        match &place.access.gather {
            None => element,
            Some(gather) => {
                let at = gather.index.at(coordinates);
                // SAFETY: `check` keeps the index view inside its operand.
                let index = unsafe { *self.operands.0[gather.operand].cast::<i32>().offset(at) };
                element + index.clamp(0, gather.limit - 1) as isize * gather.stride
            }
        }
    }

    #[inline]
    fn at(&self, cell: Cell) -> *mut u32 {
        self.scratch.pointers[cell as usize]
    }

    fn ops(&mut self, ops: &[Op], lanes: usize) {
        for op in ops {
            match *op {
                Op::Lanes { run, d, args: [a, b, c], one } => {
                    // SAFETY: cells point to as many lanes as their values have, destinations are apart from arguments
                    // (see `code`), and the device chose loops for this machine's instruction set.
                    unsafe { run(self.at(d), self.at(a), self.at(b), self.at(c), if one { 1 } else { lanes }) }
                }
                Op::Load { view, d, one } => self.load(view, self.at(d), if one { 1 } else { lanes }),
                Op::Store { view, a } => self.store(view, self.at(a), lanes),
                Op::Fill { d, a } => {
                    // SAFETY: as for `Lanes`.
                    unsafe { std::slice::from_raw_parts_mut(self.at(d), lanes).fill(*self.at(a)) }
                }
                Op::Index { map, d, one } => self.index(map, self.at(d), if one { 1 } else { lanes }),
                Op::Uniform { run, stream, d, args: [seed, step, index], one } => {
                    let lanes = if one { 1 } else { lanes };
                    // SAFETY: as for `Lanes`.
                    let at = |(cell, stride): (Cell, usize), lane: usize| unsafe { self.at(cell).add(lane * stride) };
                    // All at once, but for a seed or step of its own in every lane.
                    let n = if (seed.1, step.1, index.1) == (0, 0, 1) { lanes } else { 1 };
                    for lane in (0..lanes).step_by(n.max(1)) {
                        // SAFETY: as for `Lanes`.
                        unsafe {
                            run(at((d, 1), lane), at(index, lane), [*at(seed, lane), *at(step, lane)], stream, n)
                        };
                    }
                }
                Op::Expand { d, a } => {
                    let row = self.program.row;
                    for i in 0..lanes / row {
                        // SAFETY: as for `Lanes`; slots have one value per row.
                        unsafe {
                            std::slice::from_raw_parts_mut(self.at(d).add(i * row), row).fill(*self.at(a).add(i))
                        };
                    }
                }
            }
        }
    }

    fn load(&self, view: u16, to: *mut u32, lanes: usize) {
        let place = &self.program.places[view as usize];
        let Layout::Walk(walk) = &place.layout else { return };
        let base = self.operands.0[place.access.operand];
        // SAFETY: as in `walk`.
        unsafe {
            match place.access.dtype {
                dtype @ (DType::Bf16 | DType::F16) => self.walk(walk, place, lanes, |lane, element, stride, n| {
                    let to = std::slice::from_raw_parts_mut(to.add(lane).cast(), n);
                    widen(dtype, base.cast::<u16>().offset(element), stride, to);
                }),
                DType::U8 => self.walk(walk, place, lanes, |lane, element, stride, n| {
                    let to = std::slice::from_raw_parts_mut(to.add(lane).cast(), n);
                    widen_by(f32::from, base.offset(element), stride, to);
                }),
                _ => self.walk(walk, place, lanes, |lane, element, stride, n| {
                    let (from, to) = (base.cast::<u32>().offset(element), to.add(lane));
                    match stride {
                        1 => std::ptr::copy_nonoverlapping(from, to, n),
                        0 => std::slice::from_raw_parts_mut(to, n).fill(*from),
                        _ => {
                            for i in 0..n {
                                *to.add(i) = *from.offset(i as isize * stride);
                            }
                        }
                    }
                }),
            }
        }
    }

    fn store(&self, view: u16, from: *const u32, lanes: usize) {
        let place = &self.program.places[view as usize];
        let Layout::Walk(walk) = &place.layout else { return };
        let base = self.operands.0[place.access.operand];
        // SAFETY: as in `walk`.
        unsafe {
            match place.access.dtype {
                dtype @ (DType::Bf16 | DType::F16) => self.walk(walk, place, lanes, |lane, element, stride, n| {
                    let from = std::slice::from_raw_parts(from.add(lane).cast(), n);
                    narrow(dtype, from, base.cast::<u16>().offset(element), stride);
                }),
                _ => self.walk(walk, place, lanes, |lane, element, stride, n| {
                    let (from, to) = (from.add(lane), base.cast::<u32>().offset(element));
                    if stride == 1 {
                        std::ptr::copy_nonoverlapping(from, to, n);
                    } else {
                        for i in 0..n {
                            *to.offset(i as isize * stride) = *from.add(i);
                        }
                    }
                }),
            }
        }
    }

    /// Calls `run(first lane, first element, stride, lanes)` for every run of evenly spaced lanes of a view.
    ///
    /// # Safety
    /// `run` touches only the elements and lanes it is given: those are inside the view, hence inside its operand.
    #[inline(always)]
    unsafe fn walk(&self, walk: &Walk, place: &Place, lanes: usize, mut run: impl FnMut(usize, isize, isize, usize)) {
        let coordinates = &self.scratch.coordinates;
        let element = place.access.element.at(coordinates);
        let Some(gather) = &place.access.gather else {
            walk_lanes(walk, lanes, |lane, offsets, n| run(lane, element + offsets[0].0, offsets[0].1, n));
            return;
        };
        let index = gather.index.at(coordinates);
        let indices = self.operands.0[gather.operand].cast::<i32>();
        let at = |offset: isize| {
            // SAFETY: `check` keeps the index view inside its operand.
            let row = unsafe { *indices.offset(index + offset) };
            row.clamp(0, gather.limit - 1) as isize * gather.stride
        };
        walk_lanes(walk, lanes, |lane, offsets, n| {
            let [(offset, stride), (row, row_stride)] = offsets;
            if row_stride == 0 {
                run(lane, element + offset + at(row), stride, n);
                return;
            }
            for i in 0..n {
                let step = i as isize;
                run(lane + i, element + offset + step * stride + at(row + step * row_stride), 1, 1);
            }
        });
    }

    fn index(&self, map: u16, to: *mut u32, lanes: usize) {
        let (map, walk) = &self.program.indices[map as usize];
        let first = map.at(&self.scratch.coordinates);
        walk_lanes(walk, lanes, |lane, offsets, n| {
            for i in 0..n {
                let value = first + offsets[0].0 + i as isize * offsets[0].1;
                // SAFETY: lanes of the destination.
                unsafe { *to.add(lane + i) = value as i32 as u32 };
            }
        });
    }
}

/// Numbers of 16 bits, `stride` elements apart, as f32.
///
/// # Safety
/// `from` is readable at every step.
#[inline]
pub(super) unsafe fn widen(dtype: DType, from: *const u16, stride: isize, to: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::Bf16 => widen_by(bf16_to_f32, from, stride, to),
            _ => widen_by(f16_to_f32, from, stride, to),
        }
    }
}

/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn widen_by<T: Copy>(number: impl Fn(T) -> f32, from: *const T, stride: isize, to: &mut [f32]) {
    // A loop of its own for neighbours, so that it is done in vectors.
    if stride == 1 {
        // SAFETY: the caller's.
        let from = unsafe { std::slice::from_raw_parts(from, to.len()) };
        return to.iter_mut().zip(from).for_each(|(to, from)| *to = number(*from));
    }
    for (i, to) in to.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *to = number(unsafe { *from.offset(i as isize * stride) });
    }
}

/// The nearest numbers of 16 bits, `stride` elements apart.
///
/// # Safety
/// `to` is writable at every step, and nothing else uses it.
#[inline]
pub(super) unsafe fn narrow(dtype: DType, from: &[f32], to: *mut u16, stride: isize) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            DType::Bf16 => narrow_by(f32_to_bf16, from, to, stride),
            _ => narrow_by(f32_to_f16, from, to, stride),
        }
    }
}

/// # Safety
/// As [`narrow`].
#[inline(always)]
unsafe fn narrow_by(round: impl Fn(f32) -> u16, from: &[f32], to: *mut u16, stride: isize) {
    for (i, from) in from.iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { *to.offset(i as isize * stride) = round(*from) };
    }
}

/// Walks lanes as runs of the innermost loop: `run(first lane, (offset, stride) of up to two maps, lanes of the run)`.
#[inline(always)]
fn walk_lanes(walk: &Walk, lanes: usize, mut run: impl FnMut(usize, [(isize, isize); 2], usize)) {
    let Some(((length, strides), outer)) = walk.loops.split_last() else { return };
    let pair = |strides: &[isize]| [strides[0], strides.get(1).copied().unwrap_or(0)];
    let strides = pair(strides);
    match outer {
        [] => run(0, [(0, strides[0]), (0, strides[1])], lanes),
        [(_, outer)] => {
            let outer = pair(outer);
            for i in 0..lanes.div_ceil(*length) {
                let step = i as isize;
                let n = (*length).min(lanes - i * length);
                run(i * length, [(step * outer[0], strides[0]), (step * outer[1], strides[1])], n);
            }
        }
        _ => {
            // An odometer over the outer loops; the first has no end of its own, the lanes run out.
            let mut at = [0usize; MOST_LOOPS];
            let mut offset = [0isize; 2];
            let mut lane = 0;
            while lane < lanes {
                let n = (*length).min(lanes - lane);
                run(lane, [(offset[0], strides[0]), (offset[1], strides[1])], n);
                lane += length;
                for (dim, (size, steps)) in outer.iter().enumerate().rev() {
                    let steps = pair(steps);
                    at[dim] += 1;
                    offset = [offset[0] + steps[0], offset[1] + steps[1]];
                    if at[dim] < *size || dim == 0 {
                        break;
                    }
                    let back = at[dim] as isize;
                    offset = [offset[0] - back * steps[0], offset[1] - back * steps[1]];
                    at[dim] = 0;
                }
            }
        }
    }
}
