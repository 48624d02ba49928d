//! The layout of CLIP_benchmark's data sets; its exporter writes `nshards.txt` beside the shards, and what a set is in
//! `dataset_type.txt`, which is left out where images have one class.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::files::no_words;
use super::{Dataset, check_labels, class_names, class_of, sample_of};
use crate::data::{
    DataError, Field, RawSample, SampleError, SampleSource, Texts, WebdatasetSource, in_folder, read_text,
};

const NAMES: &str = "classnames.txt";
const SHARDS: &str = "nshards.txt";
const TYPE: &str = "dataset_type.txt";

/// More shards than this are a slip of the pen.
const MOST_SHARDS: u64 = 1 << 20;

/// The name of the text field of a sample.
const TEXT: &str = "text";

/// Opens the shards of a split.
pub(super) fn open(path: &Path, split: &str) -> Result<Dataset, DataError> {
    let kind = path.join(TYPE);
    let kind = match kind.is_file() {
        true => read_text(&kind, "write `classification` or `retrieval`")?.trim().to_lowercase(),
        false => "classification".into(),
    };
    let suffix = match kind.as_str() {
        "classification" => "cls",
        "retrieval" => "txt",
        _ => {
            let reason = format!("a data set of the type `{kind}`, which nothing here measures");
            return Err(DataError::file(&path.join(TYPE), reason, "leave it out of the suite"));
        }
    };
    let pattern = shards(&path.join(split))?;
    let texts = BTreeMap::from([(TEXT.to_string(), suffix.to_string())]);
    let shards = WebdatasetSource::open(&pattern, &texts)?;
    if shards.sequence().is_some() {
        let advice = "unpack them: a data set is measured in the order of its samples";
        return Err(DataError::file(&path.join(split), "shards that can only be read in sequence", advice));
    }
    let mut set = Shards { shards, folder: path.to_path_buf(), labels: Vec::new() };
    if suffix == "txt" {
        return Ok(Dataset::of_captions(Arc::new(set)));
    }
    let names = class_names(&path.join(NAMES))?;
    let labels: Vec<Result<u32, DataError>> = (0..set.len()).into_par_iter().map(|index| set.label(index)).collect();
    // Of several that are wrong the first is named.
    set.labels = labels.into_iter().collect::<Result<_, _>>()?;
    let labels = set.labels.clone();
    check_labels(&names, &labels, &path.join(NAMES), |index| set.name(index))?;
    Dataset::of_classes(Arc::new(set), (names, labels), path)
}

/// A pattern for the shards of a folder, `0.tar` to what `nshards.txt` says.
fn shards(folder: &Path) -> Result<String, DataError> {
    let file = folder.join(SHARDS);
    let advice = "write the number of shards into it: `1` if there is `0.tar` alone";
    let text = read_text(&file, advice)?;
    let count = text.trim().parse().ok().filter(|count| (1..=MOST_SHARDS).contains(count));
    let count: u64 =
        count.ok_or_else(|| DataError::file(&file, format!("`{}` is no number of shards", text.trim()), advice))?;
    let one_more = folder.join(format!("{count}.tar"));
    if one_more.exists() {
        let reason = format!("a shard more than the {count} that {SHARDS} counts");
        return Err(DataError::file(&one_more, reason, "remove it, or count it"));
    }
    Ok(in_folder(&folder.to_string_lossy(), &format!("{{0..{}}}.tar", count - 1)))
}

struct Shards {
    shards: WebdatasetSource,
    folder: PathBuf,
    /// Empty of samples with captions.
    labels: Vec<u32>,
}

impl Shards {
    fn label(&self, index: u64) -> Result<u32, DataError> {
        let fail = |reason: String| {
            let reason = format!("{}: {reason}", self.name(index));
            DataError::file(&self.folder, reason, "write its shard anew, with the number of its class in `.cls`")
        };
        let text = self.shards.text(index, TEXT).map_err(|error| fail(error.to_string()))?;
        text.trim().parse().map_err(|_| fail(format!("`{}` is no number of a class", text.trim())))
    }
}

impl SampleSource for Shards {
    fn len(&self) -> u64 {
        self.shards.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        match self.shards.sample(index)?.fields.remove("jpeg") {
            Some(Field::Encoded(image)) => Ok(sample_of(image, class_of(&self.labels, index))),
            _ => Err(SampleError("it has no image".into())),
        }
    }

    fn name(&self, index: u64) -> String {
        self.shards.name(index)
    }

    fn texts(&self) -> Option<&dyn Texts> {
        self.labels.is_empty().then_some(self)
    }

    fn list_hash(&self) -> Result<String, DataError> {
        self.shards.list_hash()
    }
}

impl Texts for Shards {
    /// A line each.
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        let text = self.shards.text(index, TEXT).map_err(|error| {
            DataError::file(&self.folder, format!("{}: {error}", self.name(index)), "write its shard anew")
        })?;
        Ok(text.lines().filter(|line| !line.trim().is_empty()).map(String::from).collect())
    }

    fn words(&self, _: usize) -> Result<Vec<String>, DataError> {
        Err(no_words())
    }
}
