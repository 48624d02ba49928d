//! The ops of a pipeline: what whoever writes, checks and runs one must agree on.
//!
//! An op is a type with its arguments, and one [`Rule`]: signature with documentation, how arguments are bound, kinds of its
//! results, what it is in evaluation. They stand by family in the files of this folder, and in `ops!`, which makes
//! [`PipelineOp`] of them. What an op does to a sample stands in the file of the same family of the runtime's
//! `data/transform`. Whatever is missing does not compile, or fails the test of all ops on either side.

mod arguments;
mod colors;
mod images;
mod masks;
mod texts;
mod windows;

use serde::{Deserialize, Serialize};

use arguments::Arguments;
pub use arguments::{Argument, constant};
pub use colors::{ColorJitter, GaussianBlur, Grayscale, Solarize};
pub use images::{
    CLIP_MEAN, CLIP_STD, DecodeRgb, Filter, Mirror, NormalizeRgb, Resize, ResizeShorter, Rotate, Sampling, shorter_side,
};
pub use masks::{BlockMask, PatchMask};
pub use texts::{Choose, DropWords, MaskTokens, Pick, Prefix, SwapWords, Tokenize, TokenizeAll};
pub use windows::{CenterCrop, Crop, RandomAreaCrop, RandomResizedCrop, WholeWindow};

use super::{ValueKind, Vocab};
use crate::DType;

/// Name, arguments and meaning of an op: what `alipc ops` prints and [`PipelineOp::from_call`] binds by.
#[derive(Debug)]
pub struct Signature {
    /// Name in a spec.
    pub name: &'static str,
    /// Value inputs, which come first; a trailing `?` marks one that may be left out.
    pub inputs: &'static [&'static str],
    /// Compile-time arguments in positional order, each with its default as it would be written; "" is required.
    pub args: &'static [(&'static str, &'static str)],
    /// Its results behind the first, which an equation names as further targets: each with what it holds.
    pub further: &'static [(&'static str, &'static str)],
    /// What it does.
    pub doc: &'static str,
}

/// What an op is in a derived evaluation body.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// Itself.
    Same,
    /// Itself, and its image shows what its input shows: one of a random window is of a random window too.
    SameFrame,
    /// Nothing: its first result is its first input. Where further results are read, it is this op, which draws nothing.
    Nothing(PipelineOp),
    /// This op of the same inputs, with the same results, which draws nothing.
    Instead(PipelineOp),
}

/// What is agreed on about an op.
trait Rule: Sized {
    /// Its name, arguments and documentation.
    const SIGNATURE: Signature;

    /// The op with these arguments.
    ///
    /// # Errors
    /// An argument that is missing, of another type, or outside its range.
    fn bind(arguments: &Arguments<'_>) -> Result<Self, String>;

    /// The kinds of its results: one, and one for each of the further ones.
    ///
    /// # Errors
    /// What is wrong with the inputs.
    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String>;

    /// What it is in evaluation. Nothing that draws may be itself.
    fn evaluation(&self) -> Evaluation;
}

/// Makes the sum of all ops. A plan numbers them, so that a new one comes last.
macro_rules! ops {
    ($($first:ident)*; $($later:ident)*) => {
        /// An op with its compile-time arguments; its type says what they are, [`SIGNATURES`] what it does.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "each is described by its type")]
        pub enum PipelineOp {
            $($first($first),)*
            /// Result `index` of the op that made its input, counted from 0: a further target of an equation. It draws
            /// nothing and is no place of its own, so that naming one changes no draw.
            Further {
                /// Which result, from 1 on.
                index: u32,
            },
            $($later($later),)*
        }

        $(impl From<$first> for PipelineOp {
            fn from(op: $first) -> PipelineOp {
                PipelineOp::$first(op)
            }
        })*

        $(impl From<$later> for PipelineOp {
            fn from(op: $later) -> PipelineOp {
                PipelineOp::$later(op)
            }
        })*

        /// Every op that a spec can call.
        pub const SIGNATURES: &[Signature] = &[$($first::SIGNATURE,)* $($later::SIGNATURE,)*];

        fn bind(arguments: &Arguments<'_>) -> Result<PipelineOp, String> {
            match arguments.op() {
                $(name if name == $first::SIGNATURE.name => $first::bind(arguments).map(PipelineOp::from),)*
                $(name if name == $later::SIGNATURE.name => $later::bind(arguments).map(PipelineOp::from),)*
                name => Err(unknown(name)),
            }
        }

        impl PipelineOp {
            /// Name in a spec.
            pub fn name(&self) -> &'static str {
                match self {
                    $(PipelineOp::$first(_) => $first::SIGNATURE.name,)*
                    PipelineOp::Further { .. } => "a further result",
                    $(PipelineOp::$later(_) => $later::SIGNATURE.name,)*
                }
            }

            /// The kinds of the results: the first, then the further ones. [`PipelineOp::Further`] has none of its own.
            ///
            /// # Errors
            /// What is wrong with the inputs.
            pub fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
                match self {
                    $(PipelineOp::$first(op) => op.results(inputs),)*
                    PipelineOp::Further { .. } => Ok(Vec::new()),
                    $(PipelineOp::$later(op) => op.results(inputs),)*
                }
            }

            /// What it is in a derived evaluation body.
            pub fn evaluation(&self) -> Evaluation {
                match self {
                    $(PipelineOp::$first(op) => op.evaluation(),)*
                    PipelineOp::Further { .. } => Evaluation::Same,
                    $(PipelineOp::$later(op) => op.evaluation(),)*
                }
            }
        }
    };
}

ops! {
    RandomAreaCrop DecodeRgb Resize ResizeShorter CenterCrop Mirror NormalizeRgb Tokenize;
    RandomResizedCrop WholeWindow Crop
    ColorJitter Grayscale Solarize GaussianBlur Rotate
    PatchMask BlockMask
    Prefix Pick Choose DropWords SwapWords TokenizeAll MaskTokens
}

impl PipelineOp {
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
        let signature = SIGNATURES.iter().find(|signature| signature.name == op).ok_or_else(|| unknown(op))?;
        let mut inputs = Vec::new();
        let mut rest = positional;
        for input in signature.inputs {
            match rest.split_first() {
                Some((Argument::Name(name), tail)) if constant(name).is_none() => {
                    inputs.push(name.clone());
                    rest = tail;
                }
                _ if input.ends_with('?') => {}
                _ => {
                    let place = ["first", "second"].get(inputs.len()).unwrap_or(&"next");
                    return Err(format!("`{op}` needs a value `{input}` as its {place} argument"));
                }
            }
        }
        Ok((bind(&Arguments::new(signature, rest, named)?)?, inputs))
    }

    /// Whether it takes random numbers, or would with other arguments than those that let it do nothing.
    pub fn draws(&self) -> bool {
        match self.evaluation() {
            Evaluation::Same | Evaluation::SameFrame => false,
            Evaluation::Nothing(neutral) | Evaluation::Instead(neutral) => neutral != *self,
        }
    }

    /// The vocabulary that it tokenises with.
    pub fn tokenizes(&self) -> Option<&Vocab> {
        match self {
            PipelineOp::Tokenize(Tokenize { vocab, .. }) | PipelineOp::TokenizeAll(TokenizeAll { vocab, .. }) => {
                Some(vocab)
            }
            _ => None,
        }
    }
}

fn unknown(op: &str) -> String {
    let known: Vec<&str> = SIGNATURES.iter().map(|signature| signature.name).collect();
    format!("unknown pipeline op `{op}`; known: {}", known.join(", "))
}

/// A row of numbers.
fn row(dtype: DType, length: u32) -> ValueKind {
    ValueKind::Tensor { dtype, shape: vec![u64::from(length)] }
}

/// An op was given other kinds of values than it `wanted`.
fn mismatch<T>(op: &str, wanted: &str, inputs: &[ValueKind]) -> Result<T, String> {
    let given: Vec<String> = inputs.iter().map(ValueKind::to_string).collect();
    let given = if given.is_empty() { "nothing".into() } else { given.join(" and ") };
    Err(format!("`{op}` needs {wanted}, but is given {given}"))
}

/// An image like that which is given.
fn same_size(op: &str, inputs: &[ValueKind]) -> Result<ValueKind, String> {
    match inputs {
        [ValueKind::Rgb { size }] => Ok(ValueKind::Rgb { size: *size }),
        _ => mismatch(op, "one RGB image", inputs),
    }
}
