//! Which patches of an image are masked.

use alip_plan::philox::uniform_f64;
use alip_plan::pipeline::{BlockMask, PatchMask};

use super::step::{Apply, Draws, Inputs, Made, Value};
use crate::data::SampleError;
use crate::data::order::below;

/// A mask of which `true` is masked, and the patches in the order kept, masked.
fn masked(mask: &[bool]) -> Made {
    let all = |which: bool| (0i32..).zip(mask).filter(move |(_, masked)| **masked == which).map(|(patch, _)| patch);
    let order: Vec<i32> = all(false).chain(all(true)).collect();
    let first = Value::Floats(mask.iter().map(|masked| f32::from(*masked)).collect());
    Made { first, further: vec![order.into()] }
}

impl Apply for PatchMask {
    fn apply(&self, _: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let patches = self.height as usize * self.width as usize;
        let mut order: Vec<usize> = (0..patches).collect();
        let mut mask = vec![false; patches];
        // The masked ones are the end of a random order.
        for last in (self.kept() as usize..patches).rev() {
            order.swap(last, draws.below(1 + last as u64, last + 1));
            mask[order[last]] = true;
        }
        Ok(masked(&mask))
    }
}

/// Blocks tried in turn before a mask ends with less.
const ATTEMPTS: u64 = 10;

impl Apply for BlockMask {
    fn apply(&self, _: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let (height, width) = (self.height as usize, self.width as usize);
        let mut mask = vec![false; height * width];
        let mut left = ((height * width) as f64 * self.ratio) as usize;
        let (mut tries, mut failed) = (0, 0);
        while left > 0 && failed < ATTEMPTS {
            let drawn = block(self, left, [draws.block(1 + 2 * tries), draws.block(2 + 2 * tries)]);
            let added = drawn.map_or(0, |block| cover(&mut mask, width, block, left));
            left -= added;
            (tries, failed) = (tries + 1, if added > 0 { 0 } else { failed + 1 });
        }
        Ok(masked(&mask))
    }
}

/// Top, left, height, width.
type Block = [usize; 4];

/// A random block where `left` patches are left to be masked; none where it is as high or as wide as the grid, as BEiT has it.
fn block(op: &BlockMask, left: usize, [shape, place]: [[u32; 4]; 2]) -> Option<Block> {
    let (grid_height, grid_width) = (op.height as usize, op.width as usize);
    let least = f64::from(op.least);
    let area = least + (left as f64 - least) * uniform_f64(shape[0], shape[1]);
    let (low, high) = (libm::log(op.aspect.0), libm::log(op.aspect.1));
    let aspect = libm::exp(low + (high - low) * uniform_f64(shape[2], shape[3]));
    let height = libm::sqrt(area * aspect).round_ties_even() as usize;
    let width = libm::sqrt(area / aspect).round_ties_even() as usize;
    if width >= grid_width || height >= grid_height {
        return None;
    }
    let top = below((grid_height - height + 1) as u64, [place[0], place[1], 0, 0]) as usize;
    let left = below((grid_width - width + 1) as u64, [place[2], place[3], 0, 0]) as usize;
    Some([top, left, height, width])
}

/// Masks what is not masked of a block, if that is at most `left` patches; says how many they were.
fn cover(mask: &mut [bool], grid_width: usize, [top, column, height, width]: Block, left: usize) -> usize {
    let rows = |top: usize, height: usize| (top..top + height).map(move |row| row * grid_width + column);
    let new = rows(top, height).flat_map(|start| &mask[start..start + width]).filter(|masked| !**masked).count();
    if new > left {
        return 0;
    }
    rows(top, height).for_each(|start| mask[start..start + width].fill(true));
    new
}
