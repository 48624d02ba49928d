//! Images that the prologue of a convolution makes, plane by plane.

use std::ops::Range;

use alip_plan::DType;
use alip_plan::kernel::{Conv2d, ConvKind, Instr, ScalarOp, View};

use super::code::{Context, Program, Slots, translate};
use super::grid::{Access, Affine, Grid, TILE, merge};
use super::isa::Loops;
use super::run::{Operands, Runner, Scratch};

/// A prologue ready to run.
pub(super) struct Pixels {
    /// Over images, channels and pixels; no tile reaches beyond its plane.
    grid: Grid,
    program: Program,
    /// Tiles of a plane, a channel of an image.
    tiles: usize,
    /// Elements of what is made at a time.
    elements: usize,
}

impl Pixels {
    /// Prepares what makes a whole image at a time for a forward product, for a weight's gradient a plane.
    pub(super) fn new(conv: &Conv2d, alias: &[usize], loops: &Loops) -> Pixels {
        let Conv2d { n, c, h, w, .. } = *conv;
        let whole = conv.kind == ConvKind::Forward;
        // What is made is one operand more, in memory of its own.
        let made = alias.len() as u16;
        let alias: Vec<usize> = alias.iter().copied().chain([alias.len()]).collect();
        let plane = (h * w) as i64;
        let strides = vec![0, if whole { plane } else { 0 }, w as i64, 1];
        let out = View { operand: made, dtype: DType::F32, offset: 0, strides, gather: None };
        let mut code = conv.prologue.clone();
        let last = code.instrs.len().saturating_sub(1) as u16;
        code.instrs.push(Instr { op: ScalarOp::Store(1), dtype: DType::F32, args: [last, 0, 0] });

        let mut accesses = [&conv.a, &out].map(Access::new);
        let read = |dim: usize| code.instrs.iter().any(|instr| instr.op == ScalarOp::Index(dim as u8));
        // A coordinate that nothing reads keeps no dimensions apart.
        let still = || Affine { offset: 0, strides: vec![0; 4] };
        let index = |dim: usize| if read(dim) { Affine::coordinate(dim, 4) } else { still() };
        let mut indices: Vec<Affine> = (0..4).map(index).collect();
        let mut maps: Vec<&mut Affine> = accesses.iter_mut().flat_map(Access::maps).chain(&mut indices).collect();
        let mut groups = merge(&[&[n], &[c], &[h, w]], &mut maps);
        if groups[2].is_empty() {
            groups[2].push(1);
            maps.iter_mut().for_each(|map| map.strides.push(0));
        }
        let sizes = groups.concat();
        // As many whole rows as fit a tile, or a part of one.
        let (split, chunk) = match groups[2].as_slice() {
            [_, row] if *row <= TILE => (sizes.len() - 2, TILE / row),
            _ => (sizes.len() - 1, TILE),
        };
        let grid = Grid::with_chunk(&sizes, split, chunk.min(sizes[split]));
        let slots = (0, Slots::Single);
        let context = Context { loops, grid: &grid, accesses: &accesses, indices: &indices, slots, alias: &alias };
        let program = translate(&code, &[], &context);
        let (planes, channels) = ((n * c) as usize, if whole { c as usize } else { 1 });
        Pixels { tiles: grid.tiles / planes.max(1), elements: channels * plane as usize, grid, program }
    }

    /// Makes these planes, numbered over images and channels, in a block of `scratch`: `[channels, height, width]`.
    pub(super) fn make(&self, operands: &Operands, planes: Range<usize>, scratch: &mut Scratch) -> Vec<f32> {
        let mut block = scratch.take_block(self.elements);
        let operands = Operands(operands.0.iter().copied().chain([block.as_mut_ptr().cast()]).collect());
        let mut runner = Runner::new(&self.program, &self.grid, &operands, scratch);
        for tile in planes.start * self.tiles..planes.end * self.tiles {
            runner.tile(tile);
        }
        block
    }
}
