//! A sample as it is packed.

use std::collections::{BTreeMap, HashSet};
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use alip_plan::pipeline::{Filter, Mode, Source, ValueKind, shorter_side};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::captions::Captions;
use super::journal::{About, Bits};
use super::only::Only;
use super::texts::{CAPTION, Form, KEY, Text, choose, fits_records, without_caption};
use super::{DataError, Packing};
use crate::data::panics::caught;
use crate::data::source::paths::files as source_files;
use crate::data::source::recordio::{RecordHead, label};
use crate::data::source::webdataset::member_key;
use crate::data::transform::check_fields;
use crate::data::{
    DecodeLimits, Field, RawSample, RecordioSource, RgbImage, SampleError, SampleSource, Skips, Tokenizer, decode,
    decode_rgb, open_source, resize, scratch, upright_size,
};

/// A sample, ready to be written.
pub(super) struct Entry {
    /// The path of its files in a shard, without suffix.
    pub(super) key: String,
    /// Its key in the index, where the source has one; otherwise records are numbered as they are written.
    pub(super) number: Option<u64>,
    /// What stands before the image in a record.
    pub(super) head: RecordHead,
    pub(super) image: Vec<u8>,
    /// The kind of image: `jpg`.
    pub(super) suffix: &'static str,
    /// Its other files in a shard.
    pub(super) files: Vec<(&'static str, Vec<u8>)>,
}

/// What became of a sample.
pub(super) struct Made {
    /// Its line of the captions.
    pub(super) line: Option<usize>,
    /// Its place on the list of those that are packed, behind the lines of the captions.
    pub(super) listed: Option<usize>,
    /// Whether there is a list and it is not on it.
    pub(super) is_left_out: bool,
    pub(super) entry: Result<Entry, SampleError>,
}

/// Makes entries of samples, on any thread.
pub(super) struct Maker {
    pipeline: String,
    declared: Source,
    input: Input,
    /// The field with the image.
    image: String,
    is_records: bool,
    texts: Vec<(Text, Option<Tokenizer>)>,
    captions: Option<Captions>,
    only: Option<Only>,
    resize: Option<(u32, u8)>,
}

enum Input {
    /// Records keep what stands before their image.
    Records(RecordioSource),
    Other(Arc<dyn SampleSource>),
}

impl Maker {
    /// Opens the source and all that is needed for its samples.
    pub(super) fn open(packing: &Packing) -> Result<Maker, DataError> {
        let pipeline = packing.pipeline.name.clone();
        let fail = |reason: String| DataError::Pipeline { pipeline: pipeline.clone(), reason };
        let mut declared = packing.pipeline.source.clone();
        if packing.mode == Mode::Eval && !declared.has_held_out() {
            return Err(fail("its source holds no samples out to evaluate on; leave --eval out".into()));
        }
        if packing.captions.is_some() {
            declared = without_caption(declared);
        }
        let fields = declared.fields();
        let is_image = |kind: &ValueKind| matches!(kind, ValueKind::Encoded | ValueKind::Rgb { .. });
        let image = fields.iter().find(|(_, kind)| is_image(kind)).map(|(name, _)| name.clone());
        let image = image.ok_or_else(|| fail("its source has no images".into()))?;
        let chosen = choose(packing, &fields).map_err(fail)?;
        let captions = packing.captions.as_deref().map(Captions::open).transpose()?;
        let only = packing.only.as_deref().map(Only::open).transpose()?;
        let input = match &declared {
            Source::Recordio { path, labels } => {
                let records = RecordioSource::open(path, labels)?;
                let has_labels = |at| records.record(at).is_ok_and(|(_, head)| !head.labels.is_empty());
                // The first tells it at once, as a rule; where others have labels they are left out and counted.
                if packing.to.is_records() && labels.is_empty() && !chosen.is_empty() && has_labels(0) {
                    let advice = "name them in `labels`, such as `{ \"raw\": 77 }`; --texts says which of them stay";
                    return Err(fail(format!(
                        "its records have labels that it has no names for, which would be lost; {advice}"
                    )));
                }
                Input::Records(records)
            }
            source => {
                let opened = open_source(source, packing.mode)?;
                if opened.sequence().is_some() {
                    let advice =
                        "set `unpack: true` in the source, which gives compressed shards on a disk random access";
                    return Err(DataError::Unsupported {
                        what: "packing shards that are read in sequence".into(),
                        advice: advice.into(),
                    });
                }
                Input::Other(opened)
            }
        };
        let mut texts = Vec::new();
        for text in chosen {
            let tokenizer = match &text.form {
                Form::Tokens { context, vocab } => {
                    let tokenizer = Tokenizer::open(vocab, input.source())?;
                    fits_records(tokenizer.vocab_size()).map_err(fail)?;
                    tokenizer.fits(*context as usize).map_err(|why| fail(format!("'{vocab}': {why}")))?;
                    Some(tokenizer)
                }
                Form::Row | Form::Plain => None,
            };
            texts.push((text, tokenizer));
        }
        let (is_records, resize) = (packing.to.is_records(), packing.resize);
        Ok(Maker { pipeline, declared, input, image, is_records, texts, captions, only, resize })
    }

    /// The first of these files that it reads.
    pub(super) fn read_of(&self, files: &[PathBuf]) -> Option<PathBuf> {
        if files.is_empty() {
            return None;
        }
        let mut declared = self.declared.clone();
        let paths = declared.parts_mut().into_iter().filter_map(|part| part.path_mut().cloned());
        let read = paths.flat_map(|path| source_files(&path).unwrap_or_default());
        let read: HashSet<PathBuf> = read.filter_map(|path| path.canonicalize().ok()).collect();
        files.iter().find(|path| path.canonicalize().is_ok_and(|path| read.contains(&path))).cloned()
    }

    /// What is made of its texts.
    pub(super) fn texts(&self) -> Vec<String> {
        self.texts.iter().map(|(text, _)| text.to_string()).collect()
    }

    /// Samples of the source.
    pub(super) fn len(&self) -> u64 {
        self.input.source().len()
    }

    /// What the source calls a sample.
    pub(super) fn name(&self, index: u64) -> String {
        self.input.source().name(index)
    }

    /// Captions from a file, and keys on a list, each of which is of one sample.
    pub(super) fn lines(&self) -> usize {
        self.captioned() + self.only.as_ref().map_or(0, Only::len)
    }

    fn captioned(&self) -> usize {
        self.captions.as_ref().map_or(0, Captions::len)
    }

    /// Keys on the list that no sample has.
    pub(super) fn not_found(&self, used: &Bits) -> u64 {
        (self.captioned()..self.lines()).filter(|at| !used.has(*at)).count() as u64
    }

    /// A second sample has a key of the list.
    pub(super) fn listed_twice(&self, index: u64) -> DataError {
        let source = self.input.source();
        let (name, key) = (source.name(index), source.key(index));
        self.fail(format!("two samples have the key `{key}`, the second is {name}: which of them is meant by --only?"))
    }

    /// What the bytes of the output depend on.
    pub(super) fn about(&self, packing: &Packing) -> Result<About, DataError> {
        let mut source = self.declared.clone();
        // The same files elsewhere are the same data.
        if let Some(path) = source.path_mut() {
            path.clear();
        }
        let words = self.texts.iter().filter_map(|(_, tokenizer)| tokenizer.as_ref().map(Tokenizer::content));
        let mut hash = crate::data::ListHash::default();
        words.flatten().for_each(|word| hash.add(word.as_bytes()));
        let about = [
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("the source", format!("{source:?}")),
            ("the split", if packing.mode == Mode::Train { "to train on" } else { "to evaluate on" }.to_string()),
            ("the output", packing.to.form()),
            ("--texts", self.texts().join(", ")),
            ("words", hash.to_string()),
            ("--captions", self.captions.as_ref().map_or("none".into(), |captions| captions.hash().to_string())),
            (
                "--resize",
                match self.resize {
                    Some((side, quality)) => format!("{side} at quality {quality}"),
                    None => "none".into(),
                },
            ),
            ("--only", self.only.as_ref().map_or("none".into(), |only| only.hash().to_string())),
            ("data", self.input.source().list_hash()?),
        ];
        Ok(about.map(|(name, value)| (name.to_string(), value)).into())
    }

    /// The first caption that no sample has the key of, and how many there are.
    pub(super) fn unused(&self, used: &Bits) -> Result<Option<(u64, String)>, DataError> {
        let Some(captions) = &self.captions else { return Ok(None) };
        let unused = || (0..captions.len()).filter(|line| !used.has(*line));
        let Some(first) = unused().min_by_key(|line| captions.place(*line)) else { return Ok(None) };
        Ok(Some((unused().count() as u64, captions.key(first)?)))
    }

    /// An error of the whole.
    pub(super) fn fail(&self, reason: String) -> DataError {
        DataError::Pipeline { pipeline: self.pipeline.clone(), reason }
    }

    /// Nothing was packed.
    pub(super) fn nothing(&self, samples: u64, skips: &Skips) -> DataError {
        match &self.only {
            Some(only) if skips.count() == 0 => {
                let (list, first) = (only.path().display(), self.input.source().key(0));
                self.fail(format!(
                    "none of its {samples} samples is on the list {list}; the key of its first is `{first}`"
                ))
            }
            _ => self.fail(format!("none of its {samples} samples can be packed: {skips}")),
        }
    }

    /// A second sample has the key of a caption.
    pub(super) fn twice(&self, index: u64) -> DataError {
        let source = self.input.source();
        let (name, key) = (source.name(index), source.key(index));
        self.fail(format!("two samples have the key `{key}`, the second is {name}: which of them is the caption of?"))
    }

    /// Makes an entry of a sample.
    pub(super) fn make(&self, index: u64) -> Result<Made, DataError> {
        let listed = match &self.only {
            Some(only) => match only.find(&self.input.source().key(index)) {
                Some(at) => Some(self.captioned() + at),
                None => {
                    let entry = Err(SampleError("it is not listed".into()));
                    return Ok(Made { line: None, listed: None, is_left_out: true, entry });
                }
            },
            None => None,
        };
        let found = match &self.captions {
            Some(captions) => captions.find(&self.input.source().key(index))?,
            None => None,
        };
        let (line, caption) = found.unzip();
        // A decoder that panics on a hostile file loses that sample and nothing else.
        let entry = caught(|| self.entry(index, caption));
        let entry = entry.unwrap_or_else(|words| Err(SampleError(format!("the decoder panicked: {words}"))));
        Ok(Made { line, listed, is_left_out: false, entry })
    }

    fn entry(&self, index: u64, caption: Option<String>) -> Result<Entry, SampleError> {
        let (mut sample, head, number) = self.input.read(index)?;
        check_fields(&self.declared, &sample)?;
        if let Some(captions) = &self.captions {
            let missing = || SampleError(format!("{} has no caption of its key", captions.name()));
            let caption = caption.ok_or_else(missing)?;
            if caption.trim().is_empty() {
                return Err(SampleError(format!("{} has an empty caption", captions.name())));
            }
            sample.fields.insert(CAPTION.into(), Field::Text(caption));
        }
        let (image, suffix) = match sample.fields.remove(&self.image) {
            Some(Field::Encoded(bytes)) => self.encoded(bytes)?,
            Some(Field::Rgb(image)) => self.rendered(image)?,
            _ => return Err(SampleError("it has no image".into())),
        };
        let mut entry = Entry { key: String::new(), number, head, image, suffix, files: Vec::new() };
        if self.is_records {
            // Labels that the pipeline has no names for are no texts, and stay.
            let is_named = !matches!(&self.declared, Source::Recordio { labels, .. } if labels.is_empty());
            if is_named || !self.texts.is_empty() {
                if !is_named && !entry.head.labels.is_empty() {
                    return Err(SampleError("it has labels that its source has no names for".into()));
                }
                entry.head.labels = self.labels(&sample)?;
            }
            return Ok(entry);
        }
        let key = self.input.source().key(index);
        entry.files = self.files(&key, &sample)?;
        entry.key = member_key(&key)?;
        Ok(entry)
    }

    /// The token rows of all texts, one after another.
    fn labels(&self, sample: &RawSample) -> Result<Vec<[u8; 4]>, SampleError> {
        let mut labels = Vec::new();
        for (Text { name, form }, tokenizer) in &self.texts {
            let ids = match (sample.fields.get(name), tokenizer, form) {
                (Some(Field::Text(text)), Some(tokenizer), Form::Tokens { context, .. }) => {
                    &tokenizer.encode(text, *context as usize)
                }
                (Some(Field::Tokens(ids)), ..) => ids,
                _ => return Err(SampleError(format!("it has no text `{name}`"))),
            };
            for id in ids {
                labels.push(label(name, *id)?);
            }
        }
        Ok(labels)
    }

    /// Files beside the image: `txt` with the first text, `json` with all of them by name, and the source's key.
    fn files(&self, key: &str, sample: &RawSample) -> Result<Vec<(&'static str, Vec<u8>)>, SampleError> {
        let mut texts = BTreeMap::from([(KEY, key)]);
        let mut first = None;
        for (Text { name, .. }, _) in &self.texts {
            let Some(Field::Text(text)) = sample.fields.get(name) else {
                return Err(SampleError(format!("it has no text `{name}`")));
            };
            first.get_or_insert(text);
            texts.insert(name, text);
        }
        let json = serde_json::to_vec(&texts).map_err(|error| SampleError(error.to_string()))?;
        let txt = first.map(|text| ("txt", text.as_bytes().to_vec()));
        Ok(txt.into_iter().chain([("json", json)]).collect())
    }

    /// An image file: as it is, or scaled down.
    fn encoded(&self, bytes: Vec<u8>) -> Result<(Vec<u8>, &'static str), SampleError> {
        let limits = DecodeLimits::default();
        let (width, height) = upright_size(&bytes, limits)?;
        match self.resize {
            Some((side, quality)) if width.min(height) > side => {
                let image = decode_rgb(&bytes, limits)?;
                let small = scaled(&image, side);
                scratch::give(bytes);
                scratch::give(image.pixels);
                Ok((jpeg(&small, quality)?, "jpg"))
            }
            _ => {
                let suffix = decode::suffix(&bytes)?;
                Ok((exact(bytes), suffix))
            }
        }
    }

    /// An image that was no file: scaled down, or a PNG of its pixels.
    fn rendered(&self, image: RgbImage) -> Result<(Vec<u8>, &'static str), SampleError> {
        match self.resize {
            Some((side, quality)) if image.width.min(image.height) > side => {
                Ok((jpeg(&scaled(&image, side), quality)?, "jpg"))
            }
            _ => {
                let mut bytes = Vec::new();
                let encoder = PngEncoder::new(Cursor::new(&mut bytes));
                let done = encoder.write_image(&image.pixels, image.width, image.height, ExtendedColorType::Rgb8);
                done.map_err(|error| SampleError(format!("it cannot be encoded: {error}")))?;
                Ok((bytes, "png"))
            }
        }
    }
}

impl Input {
    fn source(&self) -> &dyn SampleSource {
        match self {
            Input::Records(source) => source,
            Input::Other(source) => source.as_ref(),
        }
    }

    /// A sample, what stands before its image where it is a record, and its key where that is a number and its own.
    fn read(&self, index: u64) -> Result<(RawSample, RecordHead, Option<u64>), SampleError> {
        match self {
            Input::Records(source) => {
                let (sample, head) = source.record(index)?;
                Ok((sample, head, source.only_key(index)))
            }
            Input::Other(source) => Ok((source.sample(index)?, RecordHead::default(), None)),
        }
    }
}

/// Bytes in a buffer of at most twice their length: entries wait for each other, and buffers that threads keep may be huge.
fn exact(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.capacity() <= 2 * bytes.len() {
        return bytes;
    }
    let copy = bytes.as_slice().to_vec();
    scratch::give(bytes);
    copy
}

fn scaled(image: &RgbImage, side: u32) -> RgbImage {
    let (height, width) = shorter_side(image.height, image.width, side);
    // The filter that ALIP's own images are resized with.
    resize(image, height, width, Filter::Triangle)
}

fn jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>, SampleError> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    let done = encoder.encode(&image.pixels, image.width, image.height, ExtendedColorType::Rgb8);
    done.map_err(|error| SampleError(format!("it cannot be encoded: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_no_huge_buffers() {
        let check = |capacity: usize, expected: usize| {
            let mut bytes = Vec::with_capacity(capacity);
            bytes.extend([7; 100]);
            let bytes = exact(bytes);
            assert_eq!((bytes.len(), bytes.capacity()), (100, expected));
        };
        check(200, 200);
        check(201, 100);
        assert_eq!(scratch::take(201).capacity(), 201, "it was given back");
    }
}
