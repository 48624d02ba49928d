//! Which patches of an image are masked: rows over the grid of patches, drawn without looking at the image.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::{Evaluation, Rule, Signature, mismatch, row};
use crate::DType;
use crate::pipeline::ValueKind;

/// Patches of a grid, at most: those of the largest images in use are a fourth of it.
const MOST_PATCHES: u32 = 1 << 16;

/// What a mask's further result holds.
const ORDER: &str =
    "i32 [height * width]: the patches in the order kept, masked, each in its own: `order[:n]` are n that are kept";

fn grid(arguments: &Arguments<'_>) -> Result<(u32, u32), String> {
    let (height, width) = (arguments.integer("height")?, arguments.integer("width")?);
    // No overflow: both have 16 bits.
    if height * width > MOST_PATCHES {
        return Err(format!("a grid of {height}x{width} patches: it has at most {MOST_PATCHES}"));
    }
    Ok((height, width))
}

fn mask(op: &str, (height, width): (u32, u32), inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
    match inputs {
        [] => {
            let patches = height.saturating_mul(width);
            Ok(vec![row(DType::F32, patches), row(DType::I32, patches)])
        }
        _ => mismatch(op, "no values", inputs),
    }
}

/// `patch_mask(height, width, ratio)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PatchMask {
    /// Patches from top to bottom.
    pub height: u32,
    /// Patches from left to right.
    pub width: u32,
    /// Share of the patches that is masked.
    pub ratio: f64,
}

impl PatchMask {
    /// How many patches are kept, as MAE and FLIP round.
    pub fn kept(&self) -> u32 {
        (f64::from(self.height.saturating_mul(self.width)) * (1.0 - self.ratio)) as u32
    }
}

impl Rule for PatchMask {
    const SIGNATURE: Signature = Signature {
        name: "patch_mask",
        inputs: &[],
        args: &[("height", ""), ("width", ""), ("ratio", "0.5")],
        further: &[("order", ORDER)],
        doc: "A random mask over a grid of patches, f32 [height * width], row by row, 1 where masked, as MAE and FLIP draw it: \
              all sets of n (1 - ratio), rounded down, of the n patches are kept with the same probability. In evaluation nothing \
              is masked.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let (height, width) = grid(arguments)?;
        Ok(PatchMask { height, width, ratio: arguments.probability("ratio")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        mask(Self::SIGNATURE.name, (self.height, self.width), inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(PatchMask { ratio: 0.0, ..*self }.into())
    }
}

/// `block_mask(height, width, ratio, least, aspect)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockMask {
    /// Patches from top to bottom.
    pub height: u32,
    /// Patches from left to right.
    pub width: u32,
    /// Share of the patches that is masked at most.
    pub ratio: f64,
    /// Patches of a block, at least.
    pub least: u32,
    /// Smallest and largest height / width of a block.
    pub aspect: (f64, f64),
}

impl Rule for BlockMask {
    const SIGNATURE: Signature = Signature {
        name: "block_mask",
        inputs: &[],
        args: &[
            ("height", ""),
            ("width", ""),
            ("ratio", "0.4"),
            ("least", "16"),
            ("aspect", "(0.3, 3.3333333333333335)"),
        ],
        further: &[("order", ORDER)],
        doc: "A mask of blocks over a grid of patches, f32 [height * width], row by row, 1 where masked, as BEiT draws it: blocks \
              of an area uniform from `least` to what is left of n ratio, rounded down, height / width log-uniform in `aspect`, \
              where they fit and mask no more than is left; it ends with less where ten in turn do not. In evaluation nothing is \
              masked.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let (height, width) = grid(arguments)?;
        let (ratio, least) = (arguments.probability("ratio")?, arguments.integer("least")?);
        let most = (f64::from(height) * f64::from(width) * ratio) as u64;
        if ratio > 0.0 && u64::from(least) > most {
            return Err(format!(
                "`least` of {least} patches: no block fits, since at most {most} of {height} x {width} are masked"
            ));
        }
        Ok(BlockMask { height, width, ratio, least, aspect: arguments.range("aspect", f64::INFINITY)? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        mask(Self::SIGNATURE.name, (self.height, self.width), inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(BlockMask { ratio: 0.0, ..*self }.into())
    }
}
