//! The source `Folder`: a folder of images and a `captions.jsonl`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use alip_plan::philox::{counter, philox4x32, stream_key, uniform};
use alip_plan::pipeline::{Mode, Source};
use serde::Deserialize;

use super::list::List;
use super::words::count_words;
use super::{Field, ListHash, RawSample, SampleSource, Texts, hash_sizes, paths};
use crate::data::order::{Stream, below};
use crate::data::{DataError, SampleError, scratch};

/// Name of the file that lists images and captions.
const LIST: &str = "captions.jsonl";

/// A line of it.
const FORM: &str = r#"{"image": "images/a.jpg", "captions": ["first", "second"], "split": "train"}"#;

/// Largest image file that is read; the largest photographs in use are a third of it.
const MAX_FILE: u64 = 64 << 20;

/// Images that are looked for when a folder is opened, evenly over the list. What else is missing is met when it is read, and
/// is a bad sample.
const LOOKED_FOR: usize = 4096;

/// Images and captions in a folder; see [`Source::Folder`].
///
/// A share of the raw texts belongs to other images, chosen by `swap_seed` and the sample's index alone; the label `raw_wrong`
/// remembers it.
pub struct FolderSource {
    root: PathBuf,
    list: List,
    /// Lines of this split are trained on.
    split: String,
    raw: usize,
    caption: usize,
    swap_raw: f64,
    swap_key: [u32; 2],
}

/// A line of the list.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    image: Cow<'a, str>,
    #[serde(borrow)]
    captions: Vec<Caption<'a>>,
    #[serde(borrow, default)]
    split: Cow<'a, str>,
}

/// A caption, not copied unless it has escapes.
#[derive(Deserialize)]
struct Caption<'a>(#[serde(borrow)] Cow<'a, str>);

impl Line<'_> {
    fn parse(text: &str) -> Result<Line<'_>, String> {
        serde_json::from_str(text).map_err(|error| format!("not a line of the form {FORM}: {}", column_only(&error)))
    }

    fn belongs(&self, split: &str) -> bool {
        split.is_empty() || self.split == split
    }

    /// Caption `which`; every line has captions up to the larger index in use, checked when the list was opened.
    fn text(&self, which: usize) -> Field {
        Field::Text(self.captions.get(which).map(|caption| caption.0.to_string()).unwrap_or_default())
    }

    fn texts(self) -> Vec<String> {
        self.captions.into_iter().map(|caption| caption.0.into_owned()).collect()
    }
}

impl FolderSource {
    /// Opens a `Source::Folder`: the lines of its training or evaluation split.
    ///
    /// # Errors
    /// The folder or its list cannot be read, a line is not as it should be, images are missing, the split is empty.
    pub fn open(source: &Source, mode: Mode) -> Result<FolderSource, DataError> {
        let Source::Folder { path, split, eval_split, raw, caption, swap_raw, swap_seed } = source else {
            return Err(DataError::Unsupported {
                what: format!("reading a `{}` source as a folder", source.kind()),
                advice: "use `Folder`".into(),
            });
        };
        let root = paths::folder(path)?;
        let (chosen, option) = match mode {
            Mode::Train => (split, "split"),
            Mode::Eval => (eval_split, "eval_split"),
        };
        let list = open_list(&root, chosen, option, (*raw).max(*caption) as usize)?;
        let source = FolderSource {
            root,
            list,
            split: split.clone(),
            raw: *raw as usize,
            caption: *caption as usize,
            swap_raw: *swap_raw,
            swap_key: stream_key(*swap_seed, 0, Stream::Swap as u32),
        };
        source.check_images()?;
        Ok(source)
    }

    fn check_images(&self) -> Result<(), DataError> {
        let missing = |index: usize| {
            let line = self.list.line(index).ok()?;
            let image = self.root.join(Line::parse(&line).ok()?.image.as_ref());
            (!image.is_file()).then_some(image)
        };
        let step = self.list.len().div_ceil(LOOKED_FOR);
        if !(0..self.list.len()).step_by(step).any(|index| missing(index).is_some()) {
            return Ok(());
        }
        let mut all = (0..self.list.len()).filter_map(missing);
        let Some(first) = all.next() else { return Ok(()) };
        let reason = match all.count() {
            0 => format!("this image of {LIST} is missing"),
            n => format!("this image of {LIST} is missing, and {n} more"),
        };
        let advice = format!("put it there, or remove its line; paths are relative to {}", self.root.display());
        Err(DataError::file(&first, reason, advice))
    }

    /// The sample whose raw text stands in sample `index`: its own, or another's.
    fn raw_owner(&self, index: u64) -> u64 {
        let bits = philox4x32(counter(index, 0), self.swap_key);
        let others = self.len() - 1;
        if others == 0 || f64::from(uniform(bits[0])) >= self.swap_raw {
            return index;
        }
        (index + 1 + below(others, [bits[1], bits[2], 0, 0])) % self.len()
    }

    /// What `take` makes of line `index`.
    fn with_line<T>(&self, index: u64, take: impl FnOnce(Line<'_>) -> T) -> Result<T, SampleError> {
        let line = self.list.line(usize::try_from(index).unwrap_or(usize::MAX))?;
        Line::parse(&line).map(take).map_err(SampleError)
    }

    /// An error of a line that could be read when the list was opened.
    fn lost(&self, error: SampleError) -> DataError {
        DataError::file(&self.root.join(LIST), error, "put back what it was")
    }
}

impl SampleSource for FolderSource {
    fn len(&self) -> u64 {
        self.list.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (image, caption, captions) =
            self.with_line(index, |line| (line.image.to_string(), line.text(self.caption), line.texts()))?;
        let owner = self.raw_owner(index);
        let raw = self.with_line(owner, |line| line.text(self.raw))?;
        let jpeg = Field::Encoded(read_image(&self.root.join(image))?);
        let fields = [("jpeg", jpeg), ("raw", raw), ("caption", caption), ("captions", Field::Texts(captions))];
        let fields = fields.map(|(name, field)| (name.to_string(), field)).into();
        let labels = BTreeMap::from([("raw_wrong".to_string(), i64::from(owner != index))]);
        Ok(RawSample { fields, labels })
    }

    fn name(&self, index: u64) -> String {
        self.with_line(index, |line| line.image.to_string()).unwrap_or_else(|_| format!("sample {index} of {LIST}"))
    }

    fn texts(&self) -> Option<&dyn Texts> {
        Some(self)
    }

    fn file(&self, index: u64) -> Option<PathBuf> {
        self.with_line(index, |line| self.root.join(line.image.as_ref())).ok()
    }

    /// Of the lines of the list: images by name, and their texts; and of the sizes of some images.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for index in 0..self.len() {
            let add = |line: Line<'_>| {
                hash.add(line.image.as_bytes());
                line.captions.iter().for_each(|caption| hash.add(caption.0.as_bytes()));
            };
            self.with_line(index, add).map_err(|error| self.lost(error))?;
        }
        hash_sizes(&mut hash, self.len(), |index| self.file(index));
        Ok(hash.to_string())
    }
}

impl Texts for FolderSource {
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        self.with_line(index, |line| line.texts()).map_err(|error| self.lost(error))
    }

    /// Words by falling frequency, equally frequent ones in alphabetical order.
    fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        let list = List::open(&self.root.join(LIST), &advice(), |line| Ok(Line::parse(line)?.belongs(&self.split)))?;
        let captions = |index| {
            let line = list.line(index)?;
            let line = Line::parse(&line).map_err(SampleError)?;
            Ok(line.captions.into_iter().map(|caption| caption.0.into_owned()).collect())
        };
        count_words(list.len(), captions, limit).map_err(|error| self.lost(error))
    }
}

/// The bytes of an image file of bounded size.
pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>, SampleError> {
    let fail = |error: std::io::Error| SampleError(format!("cannot be read: {error}"));
    let about = fs::metadata(path).map_err(fail)?;
    // To read a pipe that nobody writes takes for ever.
    if !about.is_file() {
        return Err(SampleError("is no plain file".into()));
    }
    let size = about.len();
    if size > MAX_FILE {
        return Err(SampleError(format!("a file of {} MiB, more than the allowed {}", size >> 20, MAX_FILE >> 20)));
    }
    let mut bytes = scratch::take(size as usize + 1);
    // No more than was allowed, should the file grow meanwhile.
    fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)).map_err(fail)?;
    Ok(bytes)
}

/// What to write into a list.
fn advice() -> String {
    format!("write one line per image: {FORM}")
}

/// Opens the list of a folder: the lines of the `chosen` split, which is the source's `option`, or of all. Every line has
/// captions up to index `needed`.
fn open_list(root: &Path, chosen: &str, option: &str, needed: usize) -> Result<List, DataError> {
    if !root.is_dir() {
        let reason = if root.exists() { "not a folder" } else { "no such folder" };
        return Err(DataError::file(root, reason, "give a folder of images with its captions, e.g. `--data FOLDER`"));
    }
    let path = root.join(LIST);
    let list = List::open(&path, &advice(), |text| {
        let line = Line::parse(text)?;
        let (has, wants) = (line.captions.len(), needed + 1);
        if has < wants {
            return Err(format!(
                "`{}` has {has} captions, but {wants} are needed: give it more, or set `raw` and `caption` of the source to \
                 ones that it has",
                line.image
            ));
        }
        Ok(line.belongs(chosen))
    })?;
    if list.is_blank() {
        return Err(DataError::file(&path, "no lines in it", advice()));
    }
    if list.len() == 0 {
        return Err(no_split(&path, chosen, option, splits(&path)?));
    }
    Ok(list)
}

/// The splits that the lines of a list name.
fn splits(path: &Path) -> Result<BTreeSet<String>, DataError> {
    let found = Mutex::new(BTreeSet::new());
    List::open(path, &advice(), |text| {
        let split = Line::parse(text)?.split.into_owned();
        found.lock().unwrap_or_else(PoisonError::into_inner).insert(split);
        Ok(false)
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// No line belongs to the `chosen` split, which is the source's `option`; `found` are those that lines name.
fn no_split(list: &Path, chosen: &str, option: &str, mut found: BTreeSet<String>) -> DataError {
    let some_without = found.remove("");
    let all = format!("to take all lines, set `{option}: \"\"` in the source");
    if found.is_empty() {
        let advice = format!("give lines `\"split\": \"{chosen}\"`; {all}");
        return DataError::file(list, format!("no line names a split, but `{chosen}` is asked for"), advice);
    }
    let found = Vec::from_iter(found).join("`, `");
    let without = if some_without { ", and lines without one" } else { "" };
    let advice = format!("it has the splits `{found}`{without}: choose one as `{option}` of the source; {all}");
    DataError::file(list, format!("no line has the split `{chosen}`"), advice)
}

/// The parser's message; each line is parsed alone, so its "at line 1" would mislead.
fn column_only(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}
