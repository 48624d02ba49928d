//! Data sets that models are evaluated on, in the layouts in which people have them: one file for each.
//!
//! A layout is plain data of a suite; [`Layout::open`] reads the lists and gives a [`Dataset`]: images behind the contract of all
//! sources, and what is known of them. Every image comes as the field `jpeg`, the bytes of an image file, so that all sets are
//! prepared by one pipeline.

mod captions;
mod cifar;
mod files;
mod folders;
mod table;
#[cfg(test)]
mod tests;
mod webdataset;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_plan::pipeline::{Mode, Source};
use serde::{Deserialize, Serialize};

use crate::data::{DataError, FolderSource, SampleSource, literal, read_text};

/// Name of the file that some layouts hold their templates in, a line each, and that any may have beside its images.
pub const TEMPLATES: &str = "zeroshot_classification_templates.txt";

/// What stands for the name of a class in a template.
pub const CLASS: &str = "{c}";

/// How a data set lies on a disk. Paths are seen from the folder of all data sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Layout {
    /// The layout of CLIP_benchmark: `SPLIT/0.tar`, ..., `SPLIT/nshards.txt`, `classnames.txt`,
    /// `zeroshot_classification_templates.txt`, `dataset_type.txt`; a sample has its class in `cls`, or captions in `txt`, a line
    /// each.
    Webdataset {
        /// The folder.
        path: String,
        /// The folder of the shards in it.
        #[serde(default = "test")]
        split: String,
    },
    /// A folder of images for each class. Classes are numbered in the order of the folders' names.
    Folders {
        /// The folder of the folders.
        path: String,
        /// Where the names of the classes stand: a text with a line for each folder, in their order, or JSON with a name for
        /// each; empty means that the folders are called by them.
        #[serde(default)]
        names: String,
        /// How many files of each folder are left out, by name the first.
        #[serde(default)]
        skip: usize,
        /// How many of the others are taken; 0 means all.
        #[serde(default)]
        take: usize,
    },
    /// CIFAR-10 or CIFAR-100 in its binary form.
    Cifar {
        /// The folder with `test_batch.bin` or `test.bin`.
        path: String,
        /// `test` or `train`.
        #[serde(default = "test")]
        split: String,
    },
    /// A table with a row for each image, or for each of its captions: CSV, TSV, JSON lines or Parquet.
    Table {
        /// The table.
        path: String,
        /// The folder that image files are relative to; empty means that of the table.
        #[serde(default)]
        root: String,
        /// The column with the image's file.
        #[serde(default = "filepath")]
        image: String,
        /// The column with the class: its number, or its name.
        #[serde(default)]
        class: String,
        /// The column with a caption, or with several as a JSON list.
        #[serde(default)]
        captions: String,
        /// Where the names of the classes stand, a line each; empty means that the column has names, which are numbered in
        /// alphabetical order.
        #[serde(default)]
        names: String,
        /// The column that says which split a row belongs to; empty means that all do.
        #[serde(default)]
        split_column: String,
        /// Which.
        #[serde(default = "test")]
        split: String,
        /// What stands between the cells of CSV; empty means a tab where the first row has one, and a comma otherwise.
        #[serde(default)]
        separator: String,
    },
    /// A file that lists images with their captions: COCO's JSON, Karpathy's, ALBEF's, or lines of text `IMAGE.jpg,caption`,
    /// `IMAGE.jpg#0<tab>caption`, `IMAGE.jpg| 0| caption`.
    Captions {
        /// The list.
        path: String,
        /// The folder of the images.
        images: String,
        /// Which images of Karpathy's JSON; empty means `test`. Other lists have none.
        #[serde(default)]
        split: String,
        /// A text with the images that are meant, a line each; empty means all.
        #[serde(default)]
        only: String,
    },
    /// A folder with `captions.jsonl`, as training reads it.
    Folder {
        /// The folder.
        path: String,
        /// Which lines; empty means all.
        #[serde(default = "test")]
        split: String,
    },
}

fn test() -> String {
    "test".into()
}

fn filepath() -> String {
    "filepath".into()
}

/// A data set that was found.
pub struct Dataset {
    /// Its images, in the field `jpeg`. Captions are those of its texts.
    pub source: Arc<dyn SampleSource>,
    /// What is known of them.
    pub truth: Truth,
    /// What the data set itself says of how classes are to be put into words; a text has [`CLASS`] where the name belongs.
    pub templates: Option<Vec<String>>,
}

/// What is known of the images of a data set.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// Each belongs to one class.
    Classes(Classes),
    /// Each has captions, which its source tells.
    Captions,
}

/// The classes of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// What they are called, by number.
    pub names: Vec<String>,
    /// The class of each image.
    pub labels: Vec<u32>,
}

impl Dataset {
    /// A data set of classes, with the templates that lie beside it.
    fn of_classes(
        source: Arc<dyn SampleSource>,
        (names, labels): (Vec<String>, Vec<u32>),
        folder: &Path,
    ) -> Result<Dataset, DataError> {
        let file = folder.join(TEMPLATES);
        let templates = file.is_file().then(|| templates(&file)).transpose()?;
        Ok(Dataset { source, truth: Truth::Classes(Classes { names, labels }), templates })
    }

    /// The captions of every image, the first `most` of them unless that is 0. An image may have none.
    ///
    /// # Errors
    /// They cannot be read; no image has one.
    pub fn captions(&self, most: usize) -> Result<Vec<Vec<String>>, DataError> {
        let most = if most == 0 { usize::MAX } else { most };
        let captions = |index: u64| {
            let mut own = self.source.captions(index)?;
            own.truncate(most);
            Ok(own)
        };
        let all: Vec<Vec<String>> = (0..self.source.len()).map(captions).collect::<Result<_, DataError>>()?;
        match all.iter().all(Vec::is_empty) {
            true => {
                Err(DataError::file(Path::new(&self.source.name(0)), "no caption, as all others", "give them some"))
            }
            false => Ok(all),
        }
    }

    /// A data set of images with captions.
    fn of_captions(source: Arc<dyn SampleSource>) -> Dataset {
        Dataset { source, truth: Truth::Captions, templates: None }
    }
}

/// The templates of a file, a line each.
fn templates(file: &Path) -> Result<Vec<String>, DataError> {
    let text = read_text(file, "write a line for each template")?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    check_templates(&lines)
        .map_err(|why| DataError::file(file, why, "write a line for each, such as `a photo of a {c}.`"))?;
    Ok(lines)
}

/// That there are templates, and the name of a class has its place in each.
pub(super) fn check_templates(templates: &[String]) -> Result<(), String> {
    match templates.iter().find(|template| !template.contains(CLASS)) {
        Some(without) => Err(format!("the template `{without}` has no `{CLASS}` where the name of the class belongs")),
        None if templates.is_empty() => Err("no templates in it".into()),
        None => Ok(()),
    }
}

/// The names of classes in a file, a line each.
fn class_names(file: &Path) -> Result<Vec<String>, DataError> {
    let text = read_text(file, "write a line with the name of each class")?;
    let names: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_string()).collect();
    match names.iter().position(String::is_empty) {
        Some(at) => {
            let reason = "no name of a class; write one in every line".into();
            Err(DataError::Line { path: file.to_path_buf(), line: at + 1, reason })
        }
        None => Ok(names),
    }
}

/// The first two classes that are called the same. Where classes are told by their names that is an error; where they are numbered
/// it is not: the names of ImageNet that everybody measures with have two that are called `sunglasses`.
pub(super) fn twice(names: &[String]) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    names.iter().enumerate().find_map(|(class, name)| Some((seen.insert(name, class)?, class)))
}

/// That there are names for the classes of all samples, of which the first without one is named.
fn check_labels(names: &[String], labels: &[u32], file: &Path, name: impl Fn(u64) -> String) -> Result<(), DataError> {
    let Some(at) = labels.iter().position(|&label| label as usize >= names.len()) else { return Ok(()) };
    let reason =
        format!("{} is of class {}, and it names {} classes, from 0 on", name(at as u64), labels[at], names.len());
    Err(DataError::file(file, reason, "give it a line for every class"))
}

impl Layout {
    /// What is there if the data set is.
    pub fn place(&self, root: &Path) -> PathBuf {
        match self {
            Layout::Webdataset { split, .. } => self.path(root).join(split),
            _ => self.path(root),
        }
    }

    fn path(&self, root: &Path) -> PathBuf {
        match self {
            Layout::Webdataset { path, .. }
            | Layout::Folders { path, .. }
            | Layout::Cifar { path, .. }
            | Layout::Table { path, .. }
            | Layout::Captions { path, .. }
            | Layout::Folder { path, .. } => root.join(path),
        }
    }

    /// Opens the data set in a folder of data sets.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub fn open(&self, root: &Path) -> Result<Dataset, DataError> {
        let place = self.path(root);
        match self {
            Layout::Webdataset { split, .. } => webdataset::open(&place, split),
            Layout::Folders { names, skip, take, .. } => {
                let names = Some(names).filter(|names| !names.is_empty()).map(|names| root.join(names));
                folders::open(&place, names.as_deref(), *skip, *take)
            }
            Layout::Cifar { split, .. } => cifar::open(&place, split),
            Layout::Table { .. } => table::open(self, root),
            Layout::Captions { images, split, only, .. } => {
                let only = Some(only).filter(|only| !only.is_empty()).map(|only| root.join(only));
                captions::open(&place, &root.join(images), split, only.as_deref())
            }
            Layout::Folder { split, .. } => {
                let path = literal(&place.to_string_lossy());
                let (eval_split, split) = (split.clone(), String::new());
                let (raw, caption, swap_raw, swap_seed) = (0, 0, 0.0, 0);
                let source = Source::Folder { path, split, eval_split, raw, caption, swap_raw, swap_seed };
                Ok(Dataset::of_captions(Arc::new(FolderSource::open(&source, Mode::Eval)?)))
            }
        }
    }
}

/// A sample with nothing but its image.
pub(super) fn sample_of(image: Vec<u8>, class: Option<u32>) -> crate::data::RawSample {
    let fields = BTreeMap::from([("jpeg".to_string(), crate::data::Field::Encoded(image))]);
    let labels = class.map(|class| ("class".to_string(), i64::from(class))).into_iter().collect();
    crate::data::RawSample { fields, labels }
}

/// The labels of a source have been read for all samples or for none.
fn class_of(labels: &[u32], index: u64) -> Option<u32> {
    labels.get(usize::try_from(index).ok()?).copied()
}
