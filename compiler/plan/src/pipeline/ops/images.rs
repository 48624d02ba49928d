//! Decoding, sizes, turning, and the way to floats.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::{Evaluation, Rule, Signature, mismatch, row, same_size};
use crate::DType;
use crate::pipeline::ValueKind;

/// Mean of RGB in [0, 1], CLIP's.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Standard deviation of RGB in [0, 1], CLIP's.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Antialiased resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// Linear; support 1 in output pixels.
    Triangle,
    /// Keys' cubic with a = -0.5; support 2 in output pixels.
    Bicubic,
}

/// How an image is read between its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sampling {
    /// The pixel that a place lies in.
    Nearest,
    /// Linear between the four pixels around it.
    Bilinear,
}

/// `decode_rgb(jpeg)` or `decode_rgb(jpeg, crop)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeRgb;

impl Rule for DecodeRgb {
    const SIGNATURE: Signature = Signature {
        name: "decode_rgb",
        inputs: &["jpeg", "crop?"],
        args: &[],
        further: &[],
        doc: "Decodes JPEG, PNG or WebP (told by content) to 8-bit RGB, upright by its EXIF or XMP orientation, alpha dropped. A file that \
              ends early or lost a scan is skipped.",
    };

    fn bind(_: &Arguments<'_>) -> Result<Self, String> {
        Ok(DecodeRgb)
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Encoded] | [ValueKind::Encoded, ValueKind::Crop] => Ok(vec![ValueKind::Rgb { size: None }]),
            _ => mismatch(Self::SIGNATURE.name, "an encoded image, and perhaps a crop", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `resize(rgb, height, width, filter)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Height of the result.
    pub height: u32,
    /// Width of the result.
    pub width: u32,
    /// Resampling filter.
    pub filter: Filter,
}

impl Rule for Resize {
    const SIGNATURE: Signature = Signature {
        name: "resize",
        inputs: &["rgb"],
        args: &[("height", ""), ("width", ""), ("filter", "'triangle'")],
        further: &[],
        doc: "Antialiased resize: 'triangle' or 'bicubic'.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let (height, width) = (arguments.integer("height")?, arguments.integer("width")?);
        Ok(Resize { height, width, filter: arguments.filter()? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Rgb { .. }] => Ok(vec![ValueKind::Rgb { size: Some((self.height, self.width)) }]),
            _ => mismatch(Self::SIGNATURE.name, "one RGB image", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `resize_shorter(rgb, size, filter)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeShorter {
    /// Length of the shorter side of the result.
    pub size: u32,
    /// Resampling filter.
    pub filter: Filter,
}

impl Rule for ResizeShorter {
    const SIGNATURE: Signature = Signature {
        name: "resize_shorter",
        inputs: &["rgb"],
        args: &[("size", ""), ("filter", "'bicubic'")],
        further: &[],
        doc: "Antialiased resize that keeps the aspect ratio: the shorter side becomes `size`.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(ResizeShorter { size: arguments.integer("size")?, filter: arguments.filter()? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Rgb { size }] => {
                let size = size.map(|(height, width)| shorter_side(height, width, self.size));
                Ok(vec![ValueKind::Rgb { size }])
            }
            _ => mismatch(Self::SIGNATURE.name, "one RGB image", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// (height, width) after scaling so that the shorter side is `size`; the longer one is rounded down, as PyTorch's
/// `Resize(size)` does.
pub fn shorter_side(height: u32, width: u32, size: u32) -> (u32, u32) {
    let longer = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short.max(1))) as u32;
    if height <= width { (size, longer(width, height)) } else { (longer(height, width), size) }
}

/// `mirror(rgb, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirror {
    /// Probability.
    pub p: f64,
}

impl Rule for Mirror {
    const SIGNATURE: Signature = Signature {
        name: "mirror",
        inputs: &["rgb"],
        args: &[("p", "0.5")],
        further: &[("drawn", "f32 [1]: 1 if it was mirrored")],
        doc: "Swaps left and right with probability `p`.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Mirror { p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 1)])
    }

    fn evaluation(&self) -> Evaluation {
        if self.p == 1.0 { Evaluation::SameFrame } else { Evaluation::Nothing(Mirror { p: 0.0 }.into()) }
    }
}

/// `rotate(rgb, degrees, p, filter, fill)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotate {
    /// Smallest and largest angle, counter-clockwise.
    pub degrees: (f64, f64),
    /// Probability.
    pub p: f64,
    /// How the image is read between its pixels.
    pub filter: Sampling,
    /// Level of what lies outside of it.
    pub fill: u8,
}

impl Rule for Rotate {
    const SIGNATURE: Signature = Signature {
        name: "rotate",
        inputs: &["rgb"],
        args: &[("degrees", ""), ("p", "1"), ("filter", "'nearest'"), ("fill", "0")],
        further: &[("drawn", "f32 [1]: degrees, 0 if it was not turned")],
        doc: "Turns an image about its centre with probability `p`, counter-clockwise by an angle uniform in `degrees`; its size \
              stays, and what comes from outside has the level `fill`. As torchvision's RandomRotation of Pillow's images: \
              'nearest' or 'bilinear'.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Rotate {
            degrees: arguments.span("degrees", 360.0)?,
            p: arguments.probability("p")?,
            filter: arguments.sampling()?,
            fill: arguments.index("fill", 255)? as u8,
        })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 1)])
    }

    fn evaluation(&self) -> Evaluation {
        if self.p == 1.0 && self.degrees.0 == self.degrees.1 {
            return Evaluation::SameFrame;
        }
        Evaluation::Nothing(Rotate { p: 0.0, ..*self }.into())
    }
}

/// `normalize_rgb(rgb, mean, std)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormalizeRgb {
    /// Mean of each channel in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel in [0, 1].
    pub std: [f64; 3],
}

impl Rule for NormalizeRgb {
    const SIGNATURE: Signature = Signature {
        name: "normalize_rgb",
        inputs: &["rgb"],
        args: &[("mean", "clip_mean"), ("std", "clip_std")],
        further: &[],
        doc: "(x - 255 mean) / (255 std), as f32 [3, height, width]; where it ends a pipeline, the device computes it of the bytes.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let (mean, std) = (arguments.triple("mean")?, arguments.triple("std")?);
        if !std.iter().all(|s| *s > 0.0) {
            return Err(format!("`std` must be positive, not {std:?}"));
        }
        Ok(NormalizeRgb { mean, std })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Rgb { size: Some((height, width)) }] => {
                let shape = vec![3, u64::from(*height), u64::from(*width)];
                Ok(vec![ValueKind::Tensor { dtype: DType::F32, shape }])
            }
            [ValueKind::Rgb { size: None }] => {
                Err("`normalize_rgb` needs an image of known size; `resize` or `center_crop` it first".into())
            }
            _ => mismatch(Self::SIGNATURE.name, "one RGB image", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}
