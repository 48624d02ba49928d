//! Where the samples of a pipeline come from: the kinds of source, their settings and fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ValueKind;
use crate::DType;

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
    pub(super) fn check(&self) -> Result<(), String> {
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
