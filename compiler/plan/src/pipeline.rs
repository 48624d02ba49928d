//! The typed data pipeline: what turns a sample of a source into rows of the graph's inputs.
//!
//! A pipeline is a small host graph in single-assignment form: every value is a field of the source or the result of one
//! [`PipelineNode`], and has one name. The spec layer builds it (from calls, see [`PipelineOp::from_call`]), the compiler
//! checks it against the graph ([`Pipeline::check`]), the runtime interprets it, sample by sample.
//!
//! Invariants:
//! - Everything is per sample; nothing here knows the batch, a worker, a rank or a path of the machine it was compiled on
//!   (`${VAR}` in a source's path is expanded when the data are opened).
//! - Random ops draw from (seed, epoch, sample, position of the op), never from a generator with state: the op of one place draws
//!   the same whatever the others do or are called, and an op that is written twice draws twice.
//! - [`Pipeline::body`] of [`Mode::Eval`] holds no random op.

mod evaluation;
mod ops;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use ops::{
    Argument, BlockMask, CLIP_MEAN, CLIP_STD, CenterCrop, Choose, ColorJitter, Crop, DecodeRgb, DropWords, Evaluation,
    Filter, GaussianBlur, Grayscale, MaskTokens, Mirror, NormalizeRgb, PatchMask, Pick, PipelineOp, Prefix,
    RandomAreaCrop, RandomResizedCrop, Resize, ResizeShorter, Rotate, SIGNATURES, Sampling, Signature, Solarize,
    SwapWords, Tokenize, TokenizeAll, WholeWindow, constant, shorter_side,
};

pub use source::{Source, TABLES};

use crate::DType;

/// A data pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Name of the pipeline spec.
    pub name: String,
    /// Where samples come from.
    pub source: Source,
    /// Whether training visits the samples in a new random order in every epoch; evaluation never shuffles.
    pub shuffle: Option<Shuffle>,
    /// The training body, each node after those it reads.
    pub ops: Vec<PipelineNode>,
    /// The evaluation body, where the spec has its own (`eval_body`); otherwise it is derived, see [`Pipeline::body`].
    pub eval_ops: Option<Vec<PipelineNode>>,
    /// Output name (an input of the graph) to the name of a value.
    pub outputs: BTreeMap<String, String>,
    /// The outputs that are delivered before their `normalize_rgb`, which whoever takes them does: U8 `[height, width, 3]`
    /// instead of F32 `[3, height, width]`. The compiler's choice, and no part of a spec.
    #[serde(default)]
    pub bytes: BTreeSet<String>,
}

/// What makes F32 of the levels of an image: `(x / 255 - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Mean of each channel in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel in [0, 1].
    pub std: [f64; 3],
}

impl Normalization {
    /// The factor of a level.
    pub fn scale(&self) -> [f64; 3] {
        self.std.map(|std| 1.0 / (255.0 * std))
    }

    /// What is added to that.
    pub fn shift(&self) -> [f64; 3] {
        std::array::from_fn(|channel| -self.mean[channel] / self.std[channel])
    }
}

impl fmt::Display for Normalization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mean {:?} and std {:?}", self.mean, self.std)
    }
}

/// One op applied to values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineNode {
    /// Name of the result, unique in the body and not a field of the source.
    pub name: String,
    /// What is done.
    pub op: PipelineOp,
    /// Names of the values it reads, in the order of the op's signature.
    pub inputs: Vec<String>,
}

/// How the order of samples is drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shuffle {
    /// Number of samples that a source which can only be read in sequence mixes. A source with random access is always
    /// shuffled in full, which no buffer can better.
    pub buffer: Option<u64>,
}

/// Which body of a pipeline runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Training split, shuffled, with augmentation.
    Train,
    /// Evaluation split, in order, without randomness.
    Eval,
}

/// What kind of thing a value of a pipeline is, for one sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueKind {
    /// The bytes of an image file: JPEG, PNG or WebP, told by content.
    Encoded,
    /// A rectangle of an image, in pixels of the upright image.
    Crop,
    /// An 8-bit RGB image, with (height, width) where they are known before the data are seen.
    Rgb {
        /// Height and width in pixels.
        size: Option<(u32, u32)>,
    },
    /// A text.
    Text,
    /// Several texts, none or more.
    Texts,
    /// A row of an output: dtype and shape without the batch dimension.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Shape without the batch dimension.
        shape: Vec<u64>,
    },
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueKind::Encoded => f.write_str("an encoded image"),
            ValueKind::Crop => f.write_str("a crop"),
            ValueKind::Rgb { size: Some((height, width)) } => write!(f, "an RGB image {height}x{width}"),
            ValueKind::Rgb { size: None } => f.write_str("an RGB image of any size"),
            ValueKind::Text => f.write_str("a text"),
            ValueKind::Texts => f.write_str("several texts"),
            ValueKind::Tensor { dtype, shape } => write!(f, "a tensor {dtype} {shape:?}"),
        }
    }
}

/// Token ids of a `tokenize` op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vocab {
    /// CLIP's byte-pair vocabulary, 49408 ids.
    Clip,
    /// Whole words: 0 padding, 1 any other word, then the list, `size - 2` start and `size - 1` end of text, so that the
    /// end is the largest id, as in CLIP.
    Words {
        /// Number of ids; what the graph's token embedding needs.
        size: u32,
        /// A file with one word per line; none means the source's own list (`Shapes`), or the most frequent words of its
        /// training texts, ties in alphabetical order (`Folder`).
        file: Option<String>,
    },
    /// What a `tokenizer.json` of Hugging Face's tokenizers says; how many ids it has only who reads it knows.
    File {
        /// The file.
        file: String,
    },
}

impl fmt::Display for Vocab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vocab::Clip => f.write_str("clip"),
            Vocab::Words { size, file: None } => write!(f, "words:{size}"),
            Vocab::Words { size, file: Some(file) } => write!(f, "words:{size}:{file}"),
            Vocab::File { file } => write!(f, "file:{file}"),
        }
    }
}

impl Vocab {
    /// Number of ids, the rows of the token embedding; none of a file, which nobody has read.
    pub fn size(&self) -> Option<u32> {
        match self {
            Vocab::Clip => Some(49_408),
            Vocab::Words { size, .. } => Some(*size),
            Vocab::File { .. } => None,
        }
    }

    /// The file that it is in, if it is in one.
    pub fn file(&self) -> Option<&str> {
        match self {
            Vocab::Clip => None,
            Vocab::Words { file, .. } => file.as_deref(),
            Vocab::File { file } => Some(file),
        }
    }

    /// Reads `clip`, `words:SIZE`, `words:SIZE:FILE` or `file:FILE`.
    pub fn parse(text: &str) -> Result<Vocab, String> {
        let mistaken = || {
            format!(
                "unknown vocabulary '{text}': write 'clip', 'words:SIZE', 'words:SIZE:FILE' or 'file:FILE' for a tokenizer.json"
            )
        };
        if text == "clip" {
            return Ok(Vocab::Clip);
        }
        if let Some(file) = text.strip_prefix("file:").filter(|file| !file.is_empty()) {
            return Ok(Vocab::File { file: file.into() });
        }
        let rest = text.strip_prefix("words:").ok_or_else(mistaken)?;
        let (size, file) = match rest.split_once(':') {
            Some((size, file)) => (size, Some(file.to_string())),
            None => (rest, None),
        };
        let size: u32 = size.trim().parse().map_err(|_| mistaken())?;
        // Padding, unknown, one word, start, end.
        if size < 5 {
            return Err(format!("a word vocabulary has at least 5 ids, not {size}"));
        }
        Ok(Vocab::Words { size, file })
    }
}

/// What a pipeline delivers under one name: a row per sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineOutput {
    /// The value that is delivered.
    pub value: String,
    /// Element type.
    pub dtype: DType,
    /// Shape of one sample's row: the graph's input has the batch dimension before it.
    pub shape: Vec<u64>,
}

/// Which part of a pipeline an error is about; the spec layer maps it to a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipelineSite {
    /// The source.
    Source,
    /// Node `index` of the body of `mode`.
    Node {
        /// Which body.
        mode: Mode,
        /// Index of the node in it.
        index: usize,
    },
    /// The output of this name.
    Output(String),
}

/// A pipeline that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineError {
    /// Where.
    pub site: PipelineSite,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            PipelineSite::Source => write!(f, "source: {}", self.message),
            PipelineSite::Node { .. } => f.write_str(&self.message),
            PipelineSite::Output(name) => write!(f, "output `{name}`: {}", self.message),
        }
    }
}

impl std::error::Error for PipelineError {}

impl Pipeline {
    /// Types both bodies and states what the pipeline delivers. Both bodies must deliver the same.
    ///
    /// # Errors
    /// The first node or output that is not well formed.
    pub fn check(&self) -> Result<BTreeMap<String, PipelineOutput>, PipelineError> {
        let fail = |message| PipelineError { site: PipelineSite::Source, message };
        self.source.check().map_err(fail)?;
        if let (Source::Mix { weights, .. }, None) = (&self.source, &self.shuffle)
            && !weights.is_empty()
        {
            return Err(fail("`weights` are for samples in random order: write `shuffle: ()`".into()));
        }
        let mut train = self.check_body(Mode::Train)?;
        let eval = self.check_body(Mode::Eval)?;
        for (name, output) in &train {
            if let Some(other) = eval.get(name)
                && (other.dtype, &other.shape) != (output.dtype, &output.shape)
            {
                return Err(PipelineError {
                    site: PipelineSite::Output(name.clone()),
                    message: format!(
                        "{} {:?} in training but {} {:?} in evaluation; both bodies must deliver the same",
                        output.dtype, output.shape, other.dtype, other.shape
                    ),
                });
            }
        }
        for name in &self.bytes {
            let image = train.get_mut(name).filter(|_| self.normalization(name).is_some());
            match image.map(|output| (&mut output.dtype, output.shape.as_mut_slice())) {
                Some((dtype, row @ [3, _, _])) => {
                    *dtype = DType::U8;
                    row.rotate_left(1);
                }
                _ => {
                    let message =
                        "delivered in bytes, but no image that training and evaluation normalise alike".into();
                    return Err(PipelineError { site: PipelineSite::Output(name.clone()), message });
                }
            }
        }
        Ok(train)
    }

    /// What an output does last, where that is `normalize_rgb`, and the same in both bodies.
    fn normalization(&self, output: &str) -> Option<Normalization> {
        let value = self.outputs.get(output)?;
        let [train, eval] = [Mode::Train, Mode::Eval].map(|mode| {
            match self.body(mode).into_iter().find(|node| node.name == *value)?.op {
                PipelineOp::NormalizeRgb(NormalizeRgb { mean, std }) => Some(Normalization { mean, std }),
                _ => None,
            }
        });
        train.filter(|train| eval == Some(*train))
    }

    /// The outputs that are delivered in bytes, and what is left to do with them.
    pub fn in_bytes(&self) -> BTreeMap<String, Normalization> {
        let left = |name: &String| Some((name.clone(), self.normalization(name)?));
        self.bytes.iter().filter_map(left).collect()
    }

    /// The same, with all images delivered in bytes that can be.
    pub fn with_bytes(mut self) -> Pipeline {
        let images = self.outputs.keys().filter(|name| self.normalization(name).is_some());
        self.bytes = images.cloned().collect();
        self
    }

    /// The same, delivering in bytes what `other` does: another pipeline for whoever takes from that one.
    ///
    /// # Errors
    /// It normalises such an image otherwise, which would be done as before.
    pub fn like(mut self, other: &Pipeline) -> Result<Pipeline, String> {
        for (name, then) in other.in_bytes() {
            match self.normalization(&name) {
                Some(now) if now == then => self.bytes.insert(name),
                now => {
                    let now = now.map_or_else(|| "not at all, or not alike".into(), |now| format!("by {now}"));
                    let (own, from) = (&self.name, &other.name);
                    return Err(format!("`{name}` is normalised by {then} in pipeline `{from}`, but {now} in `{own}`"));
                }
            };
        }
        Ok(self)
    }

    fn check_body(&self, mode: Mode) -> Result<BTreeMap<String, PipelineOutput>, PipelineError> {
        let mut values = self.source.fields();
        // The results of each op, the further ones among them.
        let mut results: BTreeMap<String, Vec<ValueKind>> = BTreeMap::new();
        for (index, node) in self.body(mode).iter().enumerate() {
            let fail = |message| PipelineError { site: PipelineSite::Node { mode, index }, message };
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for name in &node.inputs {
                inputs.push(values.get(name).cloned().ok_or_else(|| fail(unknown_value(name, &values)))?);
            }
            let kind = match &node.op {
                PipelineOp::Further { index } => {
                    let made = node.inputs.first().and_then(|maker| results.get(maker)?.get(*index as usize));
                    made.cloned().ok_or_else(|| fail(format!("`{}` is no further result of an op", node.name)))?
                }
                op => {
                    let made = op.results(&inputs).map_err(&fail)?;
                    let first = made.first().cloned();
                    results.insert(node.name.clone(), made);
                    first.ok_or_else(|| fail(format!("`{}` has no result", op.name())))?
                }
            };
            self.check_vocabulary(mode, node).map_err(&fail)?;
            if mode == Mode::Eval && node.op.draws() {
                return Err(fail(format!("`{}` draws, but evaluation is without randomness", node.op.name())));
            }
            if values.insert(node.name.clone(), kind).is_some() {
                return Err(fail(format!("`{}` is already the name of a value; give this one another", node.name)));
            }
        }
        let mut outputs = BTreeMap::new();
        for (name, value) in &self.outputs {
            let fail = |message| PipelineError { site: PipelineSite::Output(name.clone()), message };
            let output = match values.get(value) {
                Some(ValueKind::Tensor { dtype, shape }) => {
                    PipelineOutput { value: value.clone(), dtype: *dtype, shape: shape.clone() }
                }
                Some(kind @ (ValueKind::Text | ValueKind::Texts | ValueKind::Rgb { .. })) => {
                    let op = match kind {
                        ValueKind::Text => "tokenize",
                        ValueKind::Texts => "tokenize_all",
                        _ => "normalize_rgb",
                    };
                    return Err(fail(format!("`{value}` is {kind}, not a tensor; apply `{op}` to it")));
                }
                Some(kind) => return Err(fail(format!("`{value}` is {kind}, not a tensor"))),
                None => return Err(fail(unknown_value(value, &values))),
            };
            outputs.insert(name.clone(), output);
        }
        Ok(outputs)
    }

    /// The nodes of a mode's body.
    ///
    /// Without a body of its own, evaluation is derived from training as ALIP evaluates: random windows are the whole image,
    /// a `resize` of what was cut out by one becomes `resize_shorter` (bicubic, antialiased) and `center_crop` to the same size,
    /// and every other op that draws does nothing, as each says ([`PipelineOp::evaluation`]); what it would have drawn is then
    /// what does nothing. Every other op keeps its meaning.
    pub fn body(&self, mode: Mode) -> Vec<PipelineNode> {
        match (mode, &self.eval_ops) {
            (Mode::Train, _) => self.ops.clone(),
            (Mode::Eval, Some(nodes)) => nodes.clone(),
            (Mode::Eval, None) => evaluation::derived(&self.ops),
        }
    }

    /// Tokens are masked by the vocabulary that made them: by another, none of them would be inside a text.
    fn check_vocabulary(&self, mode: Mode, node: &PipelineNode) -> Result<(), String> {
        let (PipelineOp::MaskTokens(MaskTokens { vocab, .. }), [ids]) = (&node.op, node.inputs.as_slice()) else {
            return Ok(());
        };
        let body = self.body(mode);
        let made = body.iter().find(|node| node.name == *ids).and_then(|node| node.op.tokenizes());
        match made.filter(|made| *made != vocab) {
            Some(made) => {
                Err(format!("`{ids}` are ids of '{made}', and masked as those of '{vocab}': write `vocab: '{made}'`"))
            }
            None => Ok(()),
        }
    }

    /// How many ids a training value has rows of, where an op makes token ids and it is known: all are below.
    pub fn ids(&self, value: &str) -> Option<u32> {
        self.vocabulary_of(value).and_then(Vocab::size)
    }

    /// The vocabulary of a training value, where an op makes token ids.
    pub fn vocabulary_of(&self, value: &str) -> Option<&Vocab> {
        let made = |name: &str| self.ops.iter().find(|node| node.name == name);
        let mut node = made(value)?;
        if let (PipelineOp::Further { .. }, [maker]) = (&node.op, node.inputs.as_slice()) {
            node = made(maker)?;
        }
        // What is drawn are ids of the same vocabulary, see `check_vocabulary`; of rows that a source holds nobody knows it.
        if let (PipelineOp::MaskTokens { .. }, [masked]) = (&node.op, node.inputs.as_slice()) {
            node = made(masked)?;
        }
        node.op.tokenizes()
    }

    /// The vocabularies that the pipeline tokenises with, each once, in order of use.
    pub fn vocabularies(&self) -> Vec<&Vocab> {
        let mut found: Vec<&Vocab> = Vec::new();
        for node in self.ops.iter().chain(self.eval_ops.iter().flatten()) {
            if let Some(vocab) = node.op.tokenizes()
                && !found.contains(&vocab)
            {
                found.push(vocab);
            }
        }
        found
    }
}

fn unknown_value(name: &str, values: &BTreeMap<String, ValueKind>) -> String {
    let known: Vec<&str> = values.keys().map(String::as_str).collect();
    format!("unknown value `{name}`; known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests;
