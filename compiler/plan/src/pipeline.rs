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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use ops::{
    Argument, BlockMask, CLIP_MEAN, CLIP_STD, CenterCrop, Choose, ColorJitter, Crop, DecodeRgb, DropWords, Evaluation,
    Filter, GaussianBlur, Grayscale, MaskTokens, Mirror, NormalizeRgb, PatchMask, Pick, PipelineOp, Prefix,
    RandomAreaCrop, RandomResizedCrop, Resize, ResizeShorter, Rotate, SIGNATURES, Sampling, Signature, Solarize,
    SwapWords, Tokenize, TokenizeAll, WholeWindow, constant, shorter_side,
};

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

/// Where samples come from, and which of their parts are raw text and synthetic caption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Source {
    /// A folder with `captions.jsonl`, lines `{"image": "images/a.jpg", "captions": ["...", ...], "split": "train"}`.
    /// Fields: `jpeg`, `raw`, `caption`, and `captions`: all of the image's own. Label: `raw_wrong`.
    Folder {
        /// The folder; `${VAR}` is an environment variable.
        path: String,
        /// Which lines are trained on; empty means all.
        #[serde(default = "defaults::train")]
        split: String,
        /// Which lines are evaluated on; empty means all.
        #[serde(default = "defaults::test")]
        eval_split: String,
        /// Index in `captions` of the raw text.
        #[serde(default)]
        raw: u32,
        /// Index in `captions` of the synthetic caption.
        #[serde(default = "defaults::one")]
        caption: u32,
        /// Share of samples whose raw text is replaced by another image's, to imitate wrong web texts.
        #[serde(default)]
        swap_raw: f64,
        /// Chooses which; belongs to the data set and not to the run, so that runs of several seeds see the same data.
        #[serde(default)]
        swap_seed: u64,
    },
    /// Rendered scenes, each with a true synthetic caption and a web-like raw text, of which some describe another scene.
    /// Fields: `image`, `raw`, `caption`. Labels: `raw_wrong` and more.
    Shapes {
        /// Height and width of the images.
        #[serde(default = "defaults::shapes_size")]
        size: u32,
        /// Number of training scenes.
        #[serde(default = "defaults::shapes_scenes")]
        scenes: u64,
        /// Number of held-out scenes.
        #[serde(default = "defaults::shapes_held_out")]
        held_out: u64,
        /// Seed of the data set; belongs to the data and not to the run.
        #[serde(default)]
        seed: u64,
    },
    /// MXNet RecordIO with its index beside it. Fields: `jpeg` and one token row per label.
    Recordio {
        /// The `.rec` file, or several: `part_{000..015}.rec`, `*.rec`.
        path: String,
        /// Name of each token row to its length, in the order they follow one another in the record.
        labels: Vec<(String, u32)>,
    },
    /// WebDataset shards. Fields: `jpeg` and one text per entry.
    Webdataset {
        /// Shards, with `{000..999}` ranges.
        path: String,
        /// Name of each text field to the file that it is, by its extension (`txt`), or to an entry of it (`json:caption`).
        texts: BTreeMap<String, String>,
        /// Samples of all shards, where they can only be read in sequence and no `sizes.json` says how many; 0 if nobody does.
        #[serde(default)]
        samples: u64,
        /// Most streams that such shards are dealt over.
        #[serde(default = "defaults::streams")]
        streams: u32,
        /// Whether compressed shards are unpacked into the user's cache once, for random access.
        #[serde(default)]
        unpack: bool,
    },
    /// Folders in which the files of a sample have one name, as img2dataset writes them. Fields: `jpeg` and one text per entry.
    Files {
        /// The folder, or several: `FOLDER/*`.
        path: String,
        /// Name of each text field to the file that it is, by its extension (`txt`), or to an entry of it (`json:caption`).
        texts: BTreeMap<String, String>,
    },
    /// A table with a row per image: CSV, TSV, JSON lines or Parquet. Fields: `jpeg` and one text per entry.
    Table {
        /// The table, or several: `{train,more}.csv`, `*.parquet`. Told by their extension.
        path: String,
        /// The held-out table, seen from the folder of `path`; empty means that there is none.
        #[serde(default)]
        eval_path: String,
        /// The column with the image's file.
        #[serde(default = "defaults::filepath")]
        image: String,
        /// Name of each text field to its column.
        texts: BTreeMap<String, String>,
        /// The folder that image files are relative to, seen from that of the table, which it is if this is empty.
        #[serde(default)]
        root: String,
        /// The column with what other lists call a sample; empty means that with its image.
        #[serde(default)]
        key: String,
        /// What stands between the cells of CSV; empty means a tab where the first row has one, and a comma otherwise.
        #[serde(default)]
        separator: String,
    },
    /// Several sources as one. Fields: those that all of them have.
    Mix {
        /// The sources by name.
        sources: BTreeMap<String, Source>,
        /// What share of every batch each of them has, in proportion; without any, samples are mixed as they are.
        #[serde(default)]
        weights: BTreeMap<String, f64>,
        /// Samples of an epoch; 0 means as many as there are in all.
        #[serde(default)]
        samples: u64,
    },
}

mod defaults {
    pub(super) fn train() -> String {
        "train".into()
    }
    pub(super) fn test() -> String {
        "test".into()
    }
    pub(super) fn one() -> u32 {
        1
    }
    pub(super) fn filepath() -> String {
        "filepath".into()
    }
    pub(super) fn shapes_size() -> u32 {
        64
    }
    pub(super) fn shapes_scenes() -> u64 {
        32_768
    }
    pub(super) fn shapes_held_out() -> u64 {
        1_024
    }
    pub(super) fn streams() -> u32 {
        256
    }
}

/// Extensions of tables.
pub const TABLES: [&str; 6] = ["csv", "tsv", "txt", "jsonl", "ndjson", "parquet"];

/// Most streams: each has a file open, of which a process may have some thousand.
const MOST_STREAMS: u32 = 4096;

/// Most labels of a row of a record: the longest contexts in use are a sixteenth of it.
const LONGEST_ROW: u32 = 1 << 16;

impl Source {
    /// Name of the kind of source, as in a spec.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Folder { .. } => "Folder",
            Source::Shapes { .. } => "Shapes",
            Source::Recordio { .. } => "Recordio",
            Source::Webdataset { .. } => "Webdataset",
            Source::Files { .. } => "Files",
            Source::Table { .. } => "Table",
            Source::Mix { .. } => "Mix",
        }
    }

    /// Where its data lie, if it reads any: a folder, or files by a pattern.
    pub fn path_mut(&mut self) -> Option<&mut String> {
        match self {
            Source::Folder { path, .. }
            | Source::Recordio { path, .. }
            | Source::Webdataset { path, .. }
            | Source::Files { path, .. }
            | Source::Table { path, .. } => Some(path),
            Source::Shapes { .. } | Source::Mix { .. } => None,
        }
    }

    /// The sources that it consists of, in their order: itself, unless it is a mixture.
    pub fn parts_mut(&mut self) -> Vec<&mut Source> {
        match self {
            Source::Mix { sources, .. } => sources.values_mut().collect(),
            source => vec![source],
        }
    }

    /// The extensions of the files that its path may name, if it names files rather than a folder; the first is that of a folder
    /// of them.
    pub fn extensions(&self) -> &'static [&'static str] {
        match self {
            Source::Recordio { .. } => &["rec"],
            Source::Webdataset { .. } => &["tar"],
            Source::Table { .. } => &TABLES,
            Source::Folder { .. } | Source::Shapes { .. } | Source::Files { .. } | Source::Mix { .. } => &[],
        }
    }

    /// Whether its path may be a pattern, rather than one folder.
    pub fn takes_patterns(&self) -> bool {
        matches!(self, Source::Files { .. }) || !self.extensions().is_empty()
    }

    /// Whether it has samples apart from those that are trained on.
    pub fn has_held_out(&self) -> bool {
        match self {
            Source::Folder { .. } | Source::Shapes { .. } => true,
            Source::Recordio { .. } | Source::Webdataset { .. } | Source::Files { .. } => false,
            Source::Table { eval_path, .. } => !eval_path.is_empty(),
            Source::Mix { sources, .. } => sources.values().any(Source::has_held_out),
        }
    }

    /// The fields of a sample and their kinds.
    pub fn fields(&self) -> BTreeMap<String, ValueKind> {
        let named = |entries: &[(&str, ValueKind)]| {
            entries.iter().map(|(name, kind)| (name.to_string(), kind.clone())).collect::<BTreeMap<_, _>>()
        };
        match self {
            Source::Folder { .. } => named(&[
                ("jpeg", ValueKind::Encoded),
                ("raw", ValueKind::Text),
                ("caption", ValueKind::Text),
                ("captions", ValueKind::Texts),
            ]),
            Source::Shapes { size, .. } => named(&[
                ("image", ValueKind::Rgb { size: Some((*size, *size)) }),
                ("raw", ValueKind::Text),
                ("caption", ValueKind::Text),
            ]),
            Source::Recordio { labels, .. } => {
                let mut fields = named(&[("jpeg", ValueKind::Encoded)]);
                for (name, length) in labels {
                    let row = ValueKind::Tensor { dtype: DType::I32, shape: vec![u64::from(*length)] };
                    fields.insert(name.clone(), row);
                }
                fields
            }
            Source::Webdataset { texts, .. } | Source::Files { texts, .. } | Source::Table { texts, .. } => {
                let mut fields = named(&[("jpeg", ValueKind::Encoded)]);
                fields.extend(texts.keys().map(|name| (name.clone(), ValueKind::Text)));
                fields
            }
            Source::Mix { sources, .. } => {
                let mut all = sources.values().map(Source::fields);
                let mut fields = all.next().unwrap_or_default();
                all.for_each(|others| fields.retain(|name, kind| others.get(name) == Some(kind)));
                fields
            }
        }
    }

    /// The options that have a range are in it.
    fn check(&self) -> Result<(), String> {
        let share = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("`{name}` is a share of samples between 0 and 1, not {value}")),
        };
        match self {
            Source::Webdataset { texts, .. } | Source::Files { texts, .. } | Source::Table { texts, .. }
                if texts.contains_key("jpeg") =>
            {
                Err("`jpeg` is the image: call the text otherwise".into())
            }
            Source::Folder { swap_raw, .. } => share("swap_raw", *swap_raw),
            Source::Recordio { labels, .. } if labels.iter().any(|(name, _)| name == "jpeg") => {
                Err("`jpeg` is the image: call the labels otherwise".into())
            }
            Source::Recordio { labels, .. } => match labels.iter().find(|(_, length)| *length > LONGEST_ROW) {
                Some((name, length)) => Err(format!("`{name}` of {length} labels: a row has at most {LONGEST_ROW}")),
                None => Ok(()),
            },
            Source::Shapes { size, scenes, held_out, .. } if *size == 0 || *scenes == 0 || *held_out == 0 => {
                Err("`size`, `scenes` and `held_out` must be at least 1".into())
            }
            Source::Table { separator, .. } if separator.len() > 1 || separator == "\n" || separator == "\"" => {
                Err(format!("`separator` is one character, such as `,` or `;`, not {separator:?}"))
            }
            Source::Mix { weights, samples, .. } if weights.is_empty() && *samples > 0 => {
                Err("`samples` says how long an epoch of a weighted mixture is: give `weights` too".into())
            }
            Source::Mix { sources, weights, .. } => check_mixture(sources, weights),
            Source::Webdataset { streams, .. } if !(1..=MOST_STREAMS).contains(streams) => {
                Err(format!("`streams` is a number from 1 to {MOST_STREAMS}, not {streams}"))
            }
            _ => Ok(()),
        }
    }
}

/// Every source of a mixture is well formed and has a weight, or none has.
fn check_mixture(sources: &BTreeMap<String, Source>, weights: &BTreeMap<String, f64>) -> Result<(), String> {
    for (name, source) in sources {
        if let Source::Mix { .. } = source {
            return Err(format!("`{name}` is a `Mix` in a `Mix`: name all sources in one"));
        }
        source.check().map_err(|why| format!("`{name}`: {why}"))?;
        match weights.get(name) {
            None if !weights.is_empty() => {
                return Err(format!("`weights` says nothing of `{name}`: give every source one"));
            }
            Some(weight) if !(*weight > 0.0 && weight.is_finite()) => {
                return Err(format!("the weight of `{name}` is a positive number, not {weight}"));
            }
            _ => {}
        }
    }
    match weights.keys().find(|name| !sources.contains_key(*name)) {
        Some(name) => Err(format!("`weights` names `{name}`, which is no source")),
        None if sources.is_empty() => Err("`sources` names none".into()),
        None => Ok(()),
    }
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
}

impl fmt::Display for Vocab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vocab::Clip => f.write_str("clip"),
            Vocab::Words { size, file: None } => write!(f, "words:{size}"),
            Vocab::Words { size, file: Some(file) } => write!(f, "words:{size}:{file}"),
        }
    }
}

impl Vocab {
    /// Number of ids, the rows of the token embedding.
    pub fn size(&self) -> u32 {
        match self {
            Vocab::Clip => 49_408,
            Vocab::Words { size, .. } => *size,
        }
    }

    /// Reads `clip`, `words:SIZE` or `words:SIZE:FILE`.
    pub fn parse(text: &str) -> Result<Vocab, String> {
        let mistaken = || format!("unknown vocabulary '{text}': write 'clip', 'words:SIZE' or 'words:SIZE:FILE'");
        if text == "clip" {
            return Ok(Vocab::Clip);
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

    /// How many ids a training value has rows of, where an op makes token ids: all are below.
    pub fn ids(&self, value: &str) -> Option<u32> {
        let made = |name: &str| self.ops.iter().find(|node| node.name == name);
        let mut node = made(value)?;
        if let (PipelineOp::Further { .. }, [maker]) = (&node.op, node.inputs.as_slice()) {
            node = made(maker)?;
        }
        // What is drawn are ids of the same vocabulary, see `check_vocabulary`; of rows that a source holds nobody knows it.
        if let (PipelineOp::MaskTokens { .. }, [masked]) = (&node.op, node.inputs.as_slice()) {
            node = made(masked)?;
        }
        node.op.tokenizes().map(Vocab::size)
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
