//! The ops of a pipeline: signature, arguments with defaults, kind rule; each stated once.

use serde::{Deserialize, Serialize};

use super::{Filter, ValueKind, Vocab};
use crate::DType;

/// Mean of RGB in [0, 1], CLIP's.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Standard deviation of RGB in [0, 1], CLIP's.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// An op with its compile-time arguments. See [`SIGNATURES`] for what each does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PipelineOp {
    /// `random_area_crop(jpeg, area, aspect, attempts)`.
    RandomAreaCrop {
        /// Smallest and largest share of the image's area.
        area: (f64, f64),
        /// Smallest and largest width / height.
        aspect: (f64, f64),
        /// Draws before falling back to the largest crop of an allowed aspect, at a random place.
        attempts: u32,
    },
    /// `decode_rgb(jpeg)` or `decode_rgb(jpeg, crop)`.
    DecodeRgb,
    /// `resize(rgb, height, width, filter)`.
    Resize {
        /// Height of the result.
        height: u32,
        /// Width of the result.
        width: u32,
        /// Resampling filter.
        filter: Filter,
    },
    /// `resize_shorter(rgb, size, filter)`.
    ResizeShorter {
        /// Length of the shorter side of the result.
        size: u32,
        /// Resampling filter.
        filter: Filter,
    },
    /// `center_crop(rgb, height, width)`.
    CenterCrop {
        /// Height of the result.
        height: u32,
        /// Width of the result.
        width: u32,
    },
    /// `mirror(rgb, p)`.
    Mirror {
        /// Probability.
        p: f64,
    },
    /// `normalize_rgb(rgb, mean, std)`.
    NormalizeRgb {
        /// Mean of each channel in [0, 1].
        mean: [f64; 3],
        /// Standard deviation of each channel in [0, 1].
        std: [f64; 3],
    },
    /// `tokenize(text, context, vocab)`.
    Tokenize {
        /// Length of the row.
        context: u32,
        /// Token ids.
        vocab: Vocab,
    },
}

/// Name, arguments and meaning of an op: what `alipc ops` prints and [`PipelineOp::from_call`] binds by.
#[derive(Debug)]
pub struct Signature {
    /// Name in a spec.
    pub name: &'static str,
    /// Value inputs, which come first; a trailing `?` marks one that may be left out.
    pub inputs: &'static [&'static str],
    /// Compile-time arguments in positional order, each with its default as it would be written; "" is required.
    pub args: &'static [(&'static str, &'static str)],
    /// What it does.
    pub doc: &'static str,
}

/// Every op.
pub const SIGNATURES: &[Signature] = &[
    Signature {
        name: "random_area_crop",
        inputs: &["jpeg"],
        args: &[("area", "(0.7, 1.0)"), ("aspect", "(0.8, 1.25)"), ("attempts", "100")],
        doc: "A random rectangle: its share of the image's area uniform in `area`, width / height log-uniform in `aspect`. \
              After `attempts` draws that do not fit, the largest rectangle of an allowed aspect, at a random place.",
    },
    Signature {
        name: "decode_rgb",
        inputs: &["jpeg", "crop?"],
        args: &[],
        doc: "Decodes JPEG, PNG or WebP (told by content) to 8-bit RGB, upright by its EXIF or XMP orientation, alpha dropped. A file that \
              ends early or lost a scan is skipped.",
    },
    Signature {
        name: "resize",
        inputs: &["rgb"],
        args: &[("height", ""), ("width", ""), ("filter", "'triangle'")],
        doc: "Antialiased resize: 'triangle' or 'bicubic'.",
    },
    Signature {
        name: "resize_shorter",
        inputs: &["rgb"],
        args: &[("size", ""), ("filter", "'bicubic'")],
        doc: "Antialiased resize that keeps the aspect ratio: the shorter side becomes `size`.",
    },
    Signature {
        name: "center_crop",
        inputs: &["rgb"],
        args: &[("height", ""), ("width", "")],
        doc: "The middle of an image; one that is smaller is an error of the sample.",
    },
    Signature {
        name: "mirror",
        inputs: &["rgb"],
        args: &[("p", "0.5")],
        doc: "Swaps left and right with probability `p`.",
    },
    Signature {
        name: "normalize_rgb",
        inputs: &["rgb"],
        args: &[("mean", "clip_mean"), ("std", "clip_std")],
        doc: "(x - 255 mean) / (255 std), as f32 [3, height, width]; where it ends a pipeline, the device computes it of the bytes.",
    },
    Signature {
        name: "tokenize",
        inputs: &["text"],
        args: &[("context", "77"), ("vocab", "'clip'")],
        doc: "Token ids i32 [context]: start, the text's tokens, end, zeros; a longer text is cut and its last id is the end. \
              `vocab` is 'clip', 'words:SIZE' or 'words:SIZE:FILE'.",
    },
];

/// An argument of a call, as the expression parser sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// A name: a value, or a constant such as `clip_mean`.
    Name(String),
    /// A number.
    Number(f64),
    /// A tuple of numbers.
    Tuple(Vec<f64>),
    /// A string.
    Text(String),
}

/// The constants that a body may name.
pub fn constant(name: &str) -> Option<Argument> {
    match name {
        "clip_mean" => Some(Argument::Tuple(CLIP_MEAN.to_vec())),
        "clip_std" => Some(Argument::Tuple(CLIP_STD.to_vec())),
        _ => None,
    }
}

impl PipelineOp {
    /// Name in a spec.
    pub fn name(&self) -> &'static str {
        match self {
            PipelineOp::RandomAreaCrop { .. } => "random_area_crop",
            PipelineOp::DecodeRgb => "decode_rgb",
            PipelineOp::Resize { .. } => "resize",
            PipelineOp::ResizeShorter { .. } => "resize_shorter",
            PipelineOp::CenterCrop { .. } => "center_crop",
            PipelineOp::Mirror { .. } => "mirror",
            PipelineOp::NormalizeRgb { .. } => "normalize_rgb",
            PipelineOp::Tokenize { .. } => "tokenize",
        }
    }

    /// Binds a call's arguments by the op's signature. Value inputs come first and are names; the caller has already given
    /// names to nested calls.
    ///
    /// # Errors
    /// Unknown op or argument, one given twice or missing, one of the wrong type or outside its range.
    pub fn from_call(
        op: &str,
        positional: &[Argument],
        named: &[(String, Argument)],
    ) -> Result<(PipelineOp, Vec<String>), String> {
        let signature = SIGNATURES.iter().find(|signature| signature.name == op).ok_or_else(|| {
            let known: Vec<&str> = SIGNATURES.iter().map(|signature| signature.name).collect();
            format!("unknown pipeline op `{op}`; known: {}", known.join(", "))
        })?;
        let mut inputs = Vec::new();
        let mut rest = positional;
        for input in signature.inputs {
            match rest.split_first() {
                Some((Argument::Name(name), tail)) if constant(name).is_none() => {
                    inputs.push(name.clone());
                    rest = tail;
                }
                _ if input.ends_with('?') => {}
                _ => return Err(format!("`{op}` needs a value `{input}` as its first argument")),
            }
        }
        let mut bound = Bound { op, values: Vec::new() };
        for argument in rest {
            let (name, _) = signature.args.get(bound.values.len()).ok_or_else(|| {
                format!("`{op}` takes at most {} arguments", signature.inputs.len() + signature.args.len())
            })?;
            bound.values.push((name.to_string(), argument.clone()));
        }
        for (name, argument) in named {
            if !signature.args.iter().any(|(known, _)| known == name) {
                let known: Vec<&str> = signature.args.iter().map(|(name, _)| *name).collect();
                return Err(format!("`{op}` has no argument `{name}`; it has: {}", known.join(", ")));
            }
            if bound.values.iter().any(|(known, _)| known == name) {
                return Err(format!("argument `{name}` of `{op}` is given twice"));
            }
            bound.values.push((name.clone(), argument.clone()));
        }
        let op = bound.build()?;
        op.check_ranges()?;
        Ok((op, inputs))
    }

    fn check_ranges(&self) -> Result<(), String> {
        let range = |name: &str, (low, high): (f64, f64), limit: f64| {
            if low > 0.0 && low <= high && high <= limit {
                return Ok(());
            }
            let bound = if limit.is_finite() { format!(" <= {limit}") } else { String::new() };
            Err(format!("`{name}` is a range (low, high) with 0 < low <= high{bound}, not ({low}, {high})"))
        };
        match self {
            PipelineOp::RandomAreaCrop { area, aspect, .. } => {
                range("area", *area, 1.0)?;
                range("aspect", *aspect, f64::INFINITY)
            }
            PipelineOp::Mirror { p } if !(0.0..=1.0).contains(p) => {
                Err(format!("`p` is a probability between 0 and 1, not {p}"))
            }
            PipelineOp::NormalizeRgb { std, .. } if !std.iter().all(|s| *s > 0.0) => {
                Err(format!("`std` must be positive, not {std:?}"))
            }
            // Start, one token, end.
            PipelineOp::Tokenize { context, .. } if *context < 3 => {
                Err(format!("`context` must be at least 3, not {context}"))
            }
            _ => Ok(()),
        }
    }

    /// The kind of the result.
    ///
    /// # Errors
    /// What is wrong with the inputs.
    pub fn output(&self, inputs: &[ValueKind]) -> Result<ValueKind, String> {
        let expected = |wanted: &str| {
            let given: Vec<String> = inputs.iter().map(ValueKind::to_string).collect();
            let given = if given.is_empty() { "nothing".into() } else { given.join(" and ") };
            Err(format!("`{}` needs {wanted}, but is given {given}", self.name()))
        };
        let rgb = |size| Ok(ValueKind::Rgb { size });
        match (self, inputs) {
            (PipelineOp::RandomAreaCrop { .. }, [ValueKind::Encoded]) => Ok(ValueKind::Crop),
            (PipelineOp::RandomAreaCrop { .. }, _) => expected("an encoded image"),
            (PipelineOp::DecodeRgb, [ValueKind::Encoded] | [ValueKind::Encoded, ValueKind::Crop]) => rgb(None),
            (PipelineOp::DecodeRgb, _) => expected("an encoded image, and perhaps a crop"),
            (PipelineOp::Resize { height, width, .. }, [ValueKind::Rgb { .. }]) => rgb(Some((*height, *width))),
            (PipelineOp::ResizeShorter { size, .. }, [ValueKind::Rgb { size: known }]) => {
                rgb(known.map(|(height, width)| shorter_side(height, width, *size)))
            }
            (PipelineOp::CenterCrop { height, width }, [ValueKind::Rgb { size }]) => match size {
                Some((h, w)) if h < height || w < width => {
                    Err(format!("`center_crop` to {height}x{width} of an image that is only {h}x{w}"))
                }
                _ => rgb(Some((*height, *width))),
            },
            (PipelineOp::Mirror { .. }, [ValueKind::Rgb { size }]) => rgb(*size),
            (PipelineOp::NormalizeRgb { .. }, [ValueKind::Rgb { size: Some((height, width)) }]) => {
                Ok(ValueKind::Tensor { dtype: DType::F32, shape: vec![3, u64::from(*height), u64::from(*width)] })
            }
            (PipelineOp::NormalizeRgb { .. }, [ValueKind::Rgb { size: None }]) => {
                Err("`normalize_rgb` needs an image of known size; `resize` or `center_crop` it first".into())
            }
            (PipelineOp::Tokenize { context, .. }, [ValueKind::Text]) => {
                Ok(ValueKind::Tensor { dtype: DType::I32, shape: vec![u64::from(*context)] })
            }
            (PipelineOp::Tokenize { .. }, _) => expected("a text"),
            _ => expected("one RGB image"),
        }
    }
}

/// (height, width) after scaling so that the shorter side is `size`; the longer one is rounded down, as PyTorch's
/// `Resize(size)` does.
pub fn shorter_side(height: u32, width: u32, size: u32) -> (u32, u32) {
    let longer = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short.max(1))) as u32;
    if height <= width { (size, longer(width, height)) } else { (longer(height, width), size) }
}

/// Arguments of a call by name.
struct Bound<'a> {
    op: &'a str,
    values: Vec<(String, Argument)>,
}

impl Bound<'_> {
    fn build(&self) -> Result<PipelineOp, String> {
        Ok(match self.op {
            "random_area_crop" => PipelineOp::RandomAreaCrop {
                area: self.pair("area", (0.7, 1.0))?,
                aspect: self.pair("aspect", (0.8, 1.25))?,
                attempts: self.integer("attempts", Some(100))?,
            },
            "decode_rgb" => PipelineOp::DecodeRgb,
            "resize" => PipelineOp::Resize {
                height: self.integer("height", None)?,
                width: self.integer("width", None)?,
                filter: self.filter(Filter::Triangle)?,
            },
            "resize_shorter" => {
                PipelineOp::ResizeShorter { size: self.integer("size", None)?, filter: self.filter(Filter::Bicubic)? }
            }
            "center_crop" => {
                PipelineOp::CenterCrop { height: self.integer("height", None)?, width: self.integer("width", None)? }
            }
            "mirror" => PipelineOp::Mirror { p: self.number("p", 0.5)? },
            "normalize_rgb" => {
                PipelineOp::NormalizeRgb { mean: self.triple("mean", CLIP_MEAN)?, std: self.triple("std", CLIP_STD)? }
            }
            _ => PipelineOp::Tokenize { context: self.integer("context", Some(77))?, vocab: self.vocab()? },
        })
    }

    fn get(&self, name: &str) -> Option<Argument> {
        let (_, argument) = self.values.iter().find(|(known, _)| known == name)?;
        match argument {
            Argument::Name(name) => Some(constant(name).unwrap_or_else(|| argument.clone())),
            _ => Some(argument.clone()),
        }
    }

    fn wrong<T>(&self, name: &str, wanted: &str, given: &Argument) -> Result<T, String> {
        let given = match given {
            Argument::Name(name) => format!("the name `{name}`"),
            Argument::Number(number) => format!("{number}"),
            Argument::Tuple(items) => format!("a tuple of {} numbers", items.len()),
            Argument::Text(text) => format!("'{text}'"),
        };
        Err(format!("argument `{name}` of `{}` is {wanted}, not {given}", self.op))
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, String> {
        match self.get(name) {
            None => Ok(default),
            Some(Argument::Number(number)) => Ok(number),
            Some(other) => self.wrong(name, "a number", &other),
        }
    }

    fn integer(&self, name: &str, default: Option<u32>) -> Result<u32, String> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("`{}` needs an argument `{name}`", self.op)),
            // 65535: no image format in use goes beyond, and sizes multiply without overflow.
            (Some(Argument::Number(number)), _) if number.fract() == 0.0 && (1.0..=65535.0).contains(&number) => {
                Ok(number as u32)
            }
            (Some(other), _) => self.wrong(name, "a whole number from 1 to 65535", &other),
        }
    }

    fn pair(&self, name: &str, default: (f64, f64)) -> Result<(f64, f64), String> {
        match self.get(name) {
            None => Ok(default),
            Some(Argument::Tuple(items)) if items.len() == 2 => Ok((items[0], items[1])),
            Some(other) => self.wrong(name, "a pair (low, high)", &other),
        }
    }

    fn triple(&self, name: &str, default: [f64; 3]) -> Result<[f64; 3], String> {
        match self.get(name) {
            None => Ok(default),
            Some(Argument::Number(number)) => Ok([number; 3]),
            Some(Argument::Tuple(items)) if items.len() == 3 => Ok([items[0], items[1], items[2]]),
            Some(other) => self.wrong(name, "three numbers (red, green, blue)", &other),
        }
    }

    fn filter(&self, default: Filter) -> Result<Filter, String> {
        match self.get("filter") {
            None => Ok(default),
            Some(Argument::Text(text)) if text == "triangle" => Ok(Filter::Triangle),
            Some(Argument::Text(text)) if text == "bicubic" => Ok(Filter::Bicubic),
            Some(other) => self.wrong("filter", "'triangle' or 'bicubic'", &other),
        }
    }

    fn vocab(&self) -> Result<Vocab, String> {
        match self.get("vocab") {
            None => Ok(Vocab::Clip),
            Some(Argument::Text(text)) => Vocab::parse(&text),
            Some(other) => self.wrong("vocab", "a string such as 'clip' or 'words:512'", &other),
        }
    }
}
