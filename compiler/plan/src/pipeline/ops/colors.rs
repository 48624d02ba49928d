//! Colours, and how sharp they are: torchvision's augmentation of Pillow's images, level for level.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::{Evaluation, Rule, Signature, row, same_size};
use crate::DType;
use crate::pipeline::ValueKind;

/// `color_jitter(rgb, brightness, contrast, saturation, hue, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColorJitter {
    /// Largest change of the factor of brightness.
    pub brightness: f64,
    /// Largest change of the factor of contrast.
    pub contrast: f64,
    /// Largest change of the factor of saturation.
    pub saturation: f64,
    /// Largest turn of the hue, of whose circle 1 is all.
    pub hue: f64,
    /// Probability.
    pub p: f64,
}

impl Rule for ColorJitter {
    const SIGNATURE: Signature = Signature {
        name: "color_jitter",
        inputs: &["rgb"],
        args: &[("brightness", "0"), ("contrast", "0"), ("saturation", "0"), ("hue", "0"), ("p", "1")],
        further: &[(
            "drawn",
            "f32 [4]: factors of brightness, contrast and saturation, and the turn of the hue; 1, 1, 1, 0 do nothing",
        )],
        doc: "With probability `p`, torchvision's ColorJitter of Pillow's images: brightness, contrast, saturation and hue in a \
              random order, each by a factor uniform in (max(0, 1 - x), 1 + x), the hue by a share of its circle uniform in \
              (-hue, hue). One that is 0 is left out.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let factor = |name| arguments.within(name, 0.0, 100.0);
        Ok(ColorJitter {
            brightness: factor("brightness")?,
            contrast: factor("contrast")?,
            saturation: factor("saturation")?,
            hue: arguments.within("hue", 0.0, 0.5)?,
            p: arguments.probability("p")?,
        })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 4)])
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Nothing(ColorJitter { p: 0.0, ..*self }.into())
    }
}

/// `grayscale(rgb, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grayscale {
    /// Probability.
    pub p: f64,
}

impl Rule for Grayscale {
    const SIGNATURE: Signature = Signature {
        name: "grayscale",
        inputs: &["rgb"],
        args: &[("p", "0.1")],
        further: &[("drawn", "f32 [1]: 1 if its colours are gone")],
        doc: "All channels the luminance with probability `p`: torchvision's RandomGrayscale of Pillow's images, which is \
              (19595 red + 38470 green + 7471 blue + 32768) / 65536, rounded down.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Grayscale { p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 1)])
    }

    fn evaluation(&self) -> Evaluation {
        if self.p == 1.0 { Evaluation::SameFrame } else { Evaluation::Nothing(Grayscale { p: 0.0 }.into()) }
    }
}

/// `solarize(rgb, threshold, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Solarize {
    /// The least level that is inverted.
    pub threshold: u32,
    /// Probability.
    pub p: f64,
}

impl Rule for Solarize {
    const SIGNATURE: Signature = Signature {
        name: "solarize",
        inputs: &["rgb"],
        args: &[("threshold", "128"), ("p", "0.5")],
        further: &[("drawn", "f32 [1]: 1 if it was solarized")],
        doc: "Levels x from `threshold` on become 255 - x with probability `p`: torchvision's RandomSolarize.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Solarize { threshold: arguments.index("threshold", 256)?, p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 1)])
    }

    fn evaluation(&self) -> Evaluation {
        if self.p == 1.0 { Evaluation::SameFrame } else { Evaluation::Nothing(Solarize { p: 0.0, ..*self }.into()) }
    }
}

/// `gaussian_blur(rgb, sigma, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GaussianBlur {
    /// Smallest and largest standard deviation in pixels.
    pub sigma: (f64, f64),
    /// Probability.
    pub p: f64,
}

impl Rule for GaussianBlur {
    const SIGNATURE: Signature = Signature {
        name: "gaussian_blur",
        inputs: &["rgb"],
        args: &[("sigma", "(0.1, 2.0)"), ("p", "0.5")],
        further: &[("drawn", "f32 [1]: sigma in pixels, 0 if it was not blurred")],
        doc: "With probability `p`, Pillow's ImageFilter.GaussianBlur with a radius uniform in `sigma`, as MoCo, SLIP and DeCLIP \
              blur: three box filters an axis, whose width has a fraction, beyond the border the last pixel. (torchvision's \
              GaussianBlur is the true kernel, cut to a size, and mirrors at the border.)",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        // 1000: beyond that, nothing is left of images in use.
        Ok(GaussianBlur { sigma: arguments.range("sigma", 1000.0)?, p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        let image = same_size(Self::SIGNATURE.name, inputs)?;
        Ok(vec![image, row(DType::F32, 1)])
    }

    fn evaluation(&self) -> Evaluation {
        if self.p == 1.0 && self.sigma.0 == self.sigma.1 {
            return Evaluation::SameFrame;
        }
        Evaluation::Nothing(GaussianBlur { p: 0.0, ..*self }.into())
    }
}
