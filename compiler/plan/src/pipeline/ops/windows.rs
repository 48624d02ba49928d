//! Rectangles of an image: drawn, cut out, in the middle.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::{Evaluation, Rule, Signature, mismatch, row};
use crate::DType;
use crate::pipeline::ValueKind;

/// What a window's further result holds.
const SHARES: &str = "f32 [4]: left, top, width and height of the window, as shares of the image's width and height";

/// A window of an image, and its row of numbers.
fn window(op: &str, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
    match inputs {
        [ValueKind::Encoded | ValueKind::Rgb { .. }] => Ok(vec![ValueKind::Crop, row(DType::F32, 4)]),
        _ => mismatch(op, "an image, encoded or RGB", inputs),
    }
}

/// `random_area_crop(image, area, aspect, attempts)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RandomAreaCrop {
    /// Smallest and largest share of the image's area.
    pub area: (f64, f64),
    /// Smallest and largest width / height.
    pub aspect: (f64, f64),
    /// Draws before falling back to the largest crop of an allowed aspect, at a random place.
    pub attempts: u32,
}

impl Rule for RandomAreaCrop {
    const SIGNATURE: Signature = Signature {
        name: "random_area_crop",
        inputs: &["image"],
        args: &[("area", "(0.7, 1.0)"), ("aspect", "(0.8, 1.25)"), ("attempts", "100")],
        further: &[("drawn", SHARES)],
        doc: "A random rectangle of an image, encoded or RGB, as DALI draws it: its share of the image's area uniform in `area`, \
              width / height log-uniform in `aspect`. After `attempts` draws that do not fit, the largest rectangle of an allowed \
              aspect, at a random place.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(RandomAreaCrop {
            area: arguments.range("area", 1.0)?,
            aspect: arguments.range("aspect", f64::INFINITY)?,
            attempts: arguments.integer("attempts")?,
        })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        window(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(WholeWindow.into())
    }
}

/// `random_resized_crop(image, area, aspect)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RandomResizedCrop {
    /// Smallest and largest share of the image's area.
    pub area: (f64, f64),
    /// Smallest and largest width / height.
    pub aspect: (f64, f64),
}

impl Rule for RandomResizedCrop {
    const SIGNATURE: Signature = Signature {
        name: "random_resized_crop",
        inputs: &["image"],
        args: &[("area", "(0.08, 1.0)"), ("aspect", "(0.75, 1.3333333333333333)")],
        further: &[("drawn", SHARES)],
        doc: "The window of torchvision's RandomResizedCrop, which `resize` then makes one size of. It differs from \
              `random_area_crop` in three ways: it tries 10 times, also for images in which no allowed rectangle has the least \
              area; whole pixels may have another aspect than allowed; and it falls back to the middle of the image, cut to an \
              allowed aspect whatever the area.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let (area, aspect) = (arguments.range("area", 1.0)?, arguments.range("aspect", f64::INFINITY)?);
        Ok(RandomResizedCrop { area, aspect })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        window(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(WholeWindow.into())
    }
}

/// `whole_window(image)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeWindow;

impl Rule for WholeWindow {
    const SIGNATURE: Signature = Signature {
        name: "whole_window",
        inputs: &["image"],
        args: &[],
        further: &[("drawn", SHARES)],
        doc: "All of an image, encoded or RGB: what random windows are in evaluation.",
    };

    fn bind(_: &Arguments<'_>) -> Result<Self, String> {
        Ok(WholeWindow)
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        window(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `crop(rgb, window)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crop;

impl Rule for Crop {
    const SIGNATURE: Signature = Signature {
        name: "crop",
        inputs: &["rgb", "window"],
        args: &[],
        further: &[],
        doc: "The part of an RGB image in a window of it. `decode_rgb` does the same for a file.",
    };

    fn bind(_: &Arguments<'_>) -> Result<Self, String> {
        Ok(Crop)
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Rgb { .. }, ValueKind::Crop] => Ok(vec![ValueKind::Rgb { size: None }]),
            _ => mismatch(Self::SIGNATURE.name, "an RGB image and a crop", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `center_crop(rgb, height, width)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CenterCrop {
    /// Height of the result.
    pub height: u32,
    /// Width of the result.
    pub width: u32,
}

impl Rule for CenterCrop {
    const SIGNATURE: Signature = Signature {
        name: "center_crop",
        inputs: &["rgb"],
        args: &[("height", ""), ("width", "")],
        further: &[],
        doc: "The middle of an image; one that is smaller is an error of the sample.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(CenterCrop { height: arguments.integer("height")?, width: arguments.integer("width")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let CenterCrop { height, width } = self;
        match inputs {
            [ValueKind::Rgb { size: Some((h, w)) }] if h < height || w < width => {
                Err(format!("`center_crop` to {height}x{width} of an image that is only {h}x{w}"))
            }
            [ValueKind::Rgb { .. }] => Ok(vec![ValueKind::Rgb { size: Some((*height, *width)) }]),
            _ => mismatch(Self::SIGNATURE.name, "one RGB image", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}
