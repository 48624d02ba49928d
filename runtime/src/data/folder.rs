//! The source `Folder`: a folder of images and a `captions.jsonl`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use alip_plan::philox::{counter, philox4x32, stream_key, uniform};
use alip_plan::pipeline::{Mode, Source};
use serde::Deserialize;

use super::lines::read_text;
use super::order::{Stream, below};
use super::text::{clean, split_words};
use super::{DataError, Field, ListHash, RawSample, SampleError, SampleSource};

/// Name of the file that lists images and captions.
const LIST: &str = "captions.jsonl";

/// Largest image file that is read; the largest photographs in use are a third of it.
const MAX_FILE: u64 = 64 << 20;

/// Images and captions in a folder; see [`Source::Folder`].
///
/// A share of the raw texts belongs to other images, chosen by `swap_seed` and the sample's index alone; the label `raw_wrong`
/// remembers it.
pub struct FolderSource {
    root: PathBuf,
    entries: Vec<Entry>,
    raw: usize,
    caption: usize,
    swap_raw: f64,
    swap_key: [u32; 2],
    /// Words of the training captions, most frequent first.
    words: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    image: String,
    captions: Vec<String>,
    #[serde(default)]
    split: String,
}

struct Entry {
    image: String,
    captions: Vec<String>,
}

impl FolderSource {
    /// Opens a `Source::Folder`: the lines of its training or evaluation split.
    ///
    /// # Errors
    /// The folder or its list cannot be read, a line is not as it should be, an image is missing, the split is empty.
    pub fn open(source: &Source, mode: Mode) -> Result<FolderSource, DataError> {
        let Source::Folder { path, split, eval_split, raw, caption, swap_raw, swap_seed } = source else {
            return Err(DataError::Unsupported {
                what: format!("reading a `{}` source as a folder", source.kind()),
                advice: "use `Folder`".into(),
            });
        };
        let root = PathBuf::from(expand(path)?);
        let list = root.join(LIST);
        let lines = read_list(&root, &list, (*raw).max(*caption) as usize)?;
        let chosen = match mode {
            Mode::Train => split,
            Mode::Eval => eval_split,
        };
        let belongs = |line: &Line, split: &str| split.is_empty() || line.split == split;
        let words = count_words(lines.iter().filter(|line| belongs(line, split)).flat_map(|line| &line.captions));
        let splits: BTreeSet<String> = lines.iter().map(|line| line.split.clone()).collect();
        let entries: Vec<Entry> = lines
            .into_iter()
            .filter(|line| belongs(line, chosen))
            .map(|line| Entry { image: line.image, captions: line.captions })
            .collect();
        if entries.is_empty() {
            let option = if mode == Mode::Train { "split" } else { "eval_split" };
            return Err(no_split(&list, chosen, option, splits));
        }
        let source = FolderSource {
            root,
            entries,
            raw: *raw as usize,
            caption: *caption as usize,
            swap_raw: *swap_raw,
            swap_key: stream_key(*swap_seed, 0, Stream::Swap as u32),
            words,
        };
        source.check_images()?;
        Ok(source)
    }

    fn check_images(&self) -> Result<(), DataError> {
        let missing: Vec<&Entry> =
            self.entries.iter().filter(|entry| !self.root.join(&entry.image).is_file()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let reason = match missing.len() {
            1 => format!("this image of {LIST} is missing"),
            n => format!("this image of {LIST} is missing, and {} more", n - 1),
        };
        let advice = format!("put it there, or remove its line; paths are relative to {}", self.root.display());
        Err(DataError::file(&self.root.join(&first.image), reason, advice))
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

    fn entry(&self, index: u64) -> Result<&Entry, SampleError> {
        self.entries.get(index as usize).ok_or_else(|| SampleError(format!("there is no sample {index}")))
    }
}

impl SampleSource for FolderSource {
    fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    fn read(&self, index: u64) -> Result<RawSample, SampleError> {
        let (entry, owner) = (self.entry(index)?, self.entry(self.raw_owner(index))?);
        let bytes = read_image(&self.root.join(&entry.image))?;
        // Every line has captions up to the larger index, checked when the list was read.
        let text = |entry: &Entry, which: usize| Field::Text(entry.captions.get(which).cloned().unwrap_or_default());
        let fields =
            [("jpeg", Field::Encoded(bytes)), ("raw", text(owner, self.raw)), ("caption", text(entry, self.caption))];
        let fields = fields.map(|(name, field)| (name.to_string(), field)).into();
        Ok(RawSample { fields, labels: self.labels(index) })
    }

    fn name(&self, index: u64) -> String {
        self.entry(index).map_or_else(|error| error.to_string(), |entry| entry.image.clone())
    }

    fn labels(&self, index: u64) -> BTreeMap<String, i64> {
        BTreeMap::from([("raw_wrong".to_string(), i64::from(self.raw_owner(index) != index))])
    }

    fn captions(&self, index: u64) -> Vec<String> {
        self.entry(index).map(|entry| entry.captions.clone()).unwrap_or_default()
    }

    /// Of the lines of the list: images by name, and their texts.
    fn list_hash(&self) -> String {
        let mut hash = ListHash::default();
        for entry in &self.entries {
            hash.add(entry.image.as_bytes());
            entry.captions.iter().for_each(|caption| hash.add(caption.as_bytes()));
        }
        hash.to_string()
    }

    fn words(&self, limit: usize) -> Vec<String> {
        self.words.iter().take(limit).cloned().collect()
    }
}

fn read_image(path: &Path) -> Result<Vec<u8>, SampleError> {
    let fail = |error: std::io::Error| SampleError(format!("cannot be read: {error}"));
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(SampleError(format!("a file of {} MiB, more than the allowed {}", size >> 20, MAX_FILE >> 20)));
    }
    fs::read(path).map_err(fail)
}

/// Reads the list; every line has captions up to index `needed`.
fn read_list(root: &Path, list: &Path, needed: usize) -> Result<Vec<Line>, DataError> {
    const FORM: &str = r#"{"image": "images/a.jpg", "captions": ["first", "second"], "split": "train"}"#;
    if !root.is_dir() {
        let reason = if root.exists() { "not a folder" } else { "no such folder" };
        return Err(DataError::file(root, reason, "give a folder of images with its captions, e.g. `--data FOLDER`"));
    }
    let text = read_text(list, &format!("write one line per image: {FORM}"))?;
    let mut lines = Vec::new();
    for (number, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let fail = |reason| DataError::Line { path: list.to_path_buf(), line: number + 1, reason };
        let line: Line = serde_json::from_str(text)
            .map_err(|error| fail(format!("not a line of the form {FORM}: {}", column_only(&error))))?;
        if line.captions.len() <= needed {
            let (has, wants) = (line.captions.len(), needed + 1);
            return Err(fail(format!(
                "`{}` has {has} captions, but {wants} are needed: give it more, or set `raw` and `caption` of the source to \
                 ones that it has",
                line.image
            )));
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(DataError::file(list, "no lines in it", format!("write one line per image: {FORM}")));
    }
    Ok(lines)
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

/// Expands `${VAR}`.
fn expand(path: &str) -> Result<String, DataError> {
    let fail = |reason: String| DataError::file(Path::new(path), reason, "set it, or write the path itself");
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, tail)) = after.split_once('}') else {
            return Err(fail("`${` without a closing brace".into()));
        };
        let value = std::env::var(name).map_err(|_| fail(format!("the environment variable `{name}` is not set")))?;
        out.push_str(before);
        out.push_str(&value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// Words by falling frequency, equally frequent ones in alphabetical order.
fn count_words<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for word in texts.flat_map(|text| split_words(&clean(text))) {
        *counts.entry(word).or_default() += 1;
    }
    let mut words: Vec<(String, u64)> = counts.into_iter().collect();
    words.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    words.into_iter().map(|(word, _)| word).collect()
}
