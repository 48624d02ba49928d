//! Where samples come from: what a source is, and one file or folder for each kind.

mod files;
pub(super) mod folder;
mod list;
mod mix;
mod parts;
pub(super) mod paths;
pub(super) mod recordio;
mod sequence;
pub mod shapes;
mod table;
pub(super) mod webdataset;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use alip_plan::pipeline::{Mode, Source};

pub use self::files::FilesSource;
pub use self::folder::FolderSource;
pub use self::mix::MixSource;
pub use self::recordio::RecordioSource;
pub use self::sequence::{Sequence, ShardError, ShardReader};
use self::shapes::{Scenes, ShapesSource, Split};
pub use self::table::TableSource;
pub use self::webdataset::{WebdatasetOptions, WebdatasetSource};
use super::order::too_few;
use super::{DataError, Mixture, SampleError};

/// An 8-bit RGB image, rows from the top, three bytes per pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// Bytes of one row.
    pub fn stride(&self) -> usize {
        self.width as usize * 3
    }
}

/// A named part of a sample; its kind is the one that [`Source::fields`] states for the name.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// The bytes of an image file.
    Encoded(Vec<u8>),
    /// An image.
    Rgb(RgbImage),
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// A row of token ids.
    Tokens(Vec<i32>),
}

/// One sample as its source has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawSample {
    /// The fields that [`Source::fields`] promises.
    pub fields: BTreeMap<String, Field>,
    /// What is known about the sample and not shown to the model, e.g. `raw_wrong` (0 or 1) or a class. Every sample of a
    /// source has the same labels.
    pub labels: BTreeMap<String, i64>,
}

/// A hash of a list, entry by entry: FNV-1a, 64 bits.
#[derive(Clone, Copy, Debug)]
pub struct ListHash(u64);

impl Default for ListHash {
    fn default() -> ListHash {
        ListHash(0xCBF2_9CE4_8422_2325)
    }
}

impl ListHash {
    /// Adds an entry; where it ends counts too.
    pub fn add(&mut self, entry: &[u8]) {
        let mut step = |byte: u8| self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        entry.iter().for_each(|&byte| step(byte));
        entry.len().to_le_bytes().into_iter().for_each(step);
    }

    /// The hash so far.
    pub fn value(&self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for ListHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A finite, numbered set of samples with random access, or else a [`Sequence`].
///
/// A source needs three methods: how many samples there are, one of them, and what to call it. `sample(i)` is a function of `i`:
/// it gives the same sample whenever and on whatever thread it is called.
pub trait SampleSource: Send + Sync {
    /// Number of samples, at least 1; but see [`SampleSource::sequence`].
    fn len(&self) -> u64;

    /// Sample `index`, below [`SampleSource::len`].
    ///
    /// # Errors
    /// Why this sample cannot be used; the loader replaces it.
    fn sample(&self, index: u64) -> Result<RawSample, SampleError>;

    /// What to call sample `index` in a log: a file, a record, a scene.
    fn name(&self, index: u64) -> String;

    /// What sample `index` is called in lists of other makers, such as one of synthetic captions: the path of an image as a
    /// folder's list has it, the key of a shard's files, that of a record in its index.
    fn key(&self, index: u64) -> String {
        self.name(index)
    }

    /// Whether there are none, as far as anybody knows; no source that opens is empty but a [`Sequence`] that nobody has counted.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its samples are a mixture of, if they are to be drawn by weights.
    fn mixture(&self) -> Option<&Mixture> {
        None
    }

    /// The shards of a source that can only be read in sequence. Such a one has no samples by number, and its
    /// [`SampleSource::len`] is what somebody says, or 0.
    fn sequence(&self) -> Option<Arc<dyn Sequence>> {
        None
    }

    /// The source's texts, where it can tell them without reading its samples.
    fn texts(&self) -> Option<&dyn Texts> {
        None
    }

    /// The file that the image of sample `index` is, where it is one.
    fn file(&self, _index: u64) -> Option<PathBuf> {
        None
    }

    /// Hash of what samples there are, in their order: two sources with one hash give the same run. That of the names, unless
    /// the source knows better.
    ///
    /// # Errors
    /// The list cannot be read any more.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        (0..self.len()).for_each(|index| hash.add(self.name(index).as_bytes()));
        Ok(hash.to_string())
    }
}

/// The texts of a source, for evaluation and vocabularies.
pub trait Texts: Send + Sync {
    /// Every caption that describes sample `index` truly, for retrieval: any of them counts.
    ///
    /// # Errors
    /// They cannot be read any more.
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError>;

    /// Words for a vocabulary of whole words, most important first and without repetition, at most `limit`; always taken
    /// from the training split, whatever is open. Where they are counted this takes a while.
    ///
    /// # Errors
    /// The texts cannot be read.
    fn words(&self, limit: usize) -> Result<Vec<String>, DataError>;
}

/// Images whose sizes are looked at to know data again: as many as can be asked for within a second of a slow disk.
const SIZED: u64 = 1_000;

/// Adds the sizes of a thousand files, evenly over all, to a hash; one that is missing has none.
pub(crate) fn hash_sizes(hash: &mut ListHash, len: u64, file: impl Fn(u64) -> Option<PathBuf>) {
    for index in (0..len).step_by(len.div_ceil(SIZED).max(1) as usize) {
        let size = file(index).and_then(|file| Some(std::fs::metadata(file).ok()?.len()));
        hash.add(&size.unwrap_or(u64::MAX).to_le_bytes());
    }
}

/// What is asked of any source, whatever it can tell.
impl dyn SampleSource + '_ {
    /// Samples of an epoch of training: all, unless it is a mixture that says otherwise.
    pub fn epoch_len(&self) -> u64 {
        self.mixture().map_or(self.len(), |mixture| mixture.samples)
    }

    /// What to tell who trains in batches that need more samples than there are.
    pub fn too_few(&self, batch: u64) -> Option<String> {
        too_few(self.len(), batch).or_else(|| self.mixture()?.too_few(batch))
    }

    /// As [`Texts::captions`].
    ///
    /// # Errors
    /// They cannot be read any more, or the source has no texts of its own.
    pub fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        let advice = "evaluate on a source that has, such as `Folder`";
        let none = || DataError::NoTexts { wanted: "captions to search for", advice };
        self.texts().ok_or_else(none)?.captions(index)
    }

    /// As [`Texts::words`].
    ///
    /// # Errors
    /// The texts cannot be read, or the source has none of its own.
    pub fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        let advice = "give the vocabulary a file of words, or use 'clip'";
        let none = || DataError::NoTexts { wanted: "words to make a vocabulary of", advice };
        self.texts().ok_or_else(none)?.words(limit)
    }
}

/// Opens the samples of a pipeline's source: its training split, or its evaluation split.
///
/// # Errors
/// What is wrong with the source's files.
pub fn open_source(source: &Source, mode: Mode) -> Result<Arc<dyn SampleSource>, DataError> {
    match source {
        Source::Folder { .. } => Ok(Arc::new(FolderSource::open(source, mode)?)),
        Source::Shapes { size, scenes, held_out, seed } => {
            let (split, len) = match mode {
                Mode::Train => (Split::Train, *scenes),
                Mode::Eval => (Split::HeldOut, *held_out),
            };
            Ok(Arc::new(ShapesSource::new(Scenes::new(*seed, split, len)?, *size)))
        }
        Source::Recordio { path, labels } => Ok(Arc::new(RecordioSource::open(path, labels)?)),
        Source::Files { path, texts } => Ok(Arc::new(FilesSource::open(path, texts)?)),
        Source::Mix { sources, weights, samples } => Ok(Arc::new(MixSource::open(sources, weights, *samples, mode)?)),
        Source::Table { .. } => Ok(Arc::new(TableSource::open(source, mode)?)),
        Source::Webdataset { path, texts, samples, streams, unpack } => {
            let options = WebdatasetOptions { samples: *samples, streams: u64::from(*streams), unpack: *unpack };
            Ok(Arc::new(WebdatasetSource::open_as(path, texts, &options)?))
        }
    }
}
