//! Image files that a list names, each with its class or its captions.

use std::path::{Path, PathBuf};

use super::{class_of, sample_of};
use crate::data::{DataError, ListHash, RawSample, SampleError, SampleSource, Texts, hash_sizes, read_image};

/// Images that are looked for when a list is opened, evenly over it; one that is missing among the others is a bad sample.
const LOOKED_FOR: usize = 4096;

/// What is known of each of the images.
pub(super) enum Known {
    Classes(Vec<u32>),
    Captions(Vec<Vec<String>>),
}

/// Image files, by their paths in a folder.
pub(super) struct ListedFiles {
    root: PathBuf,
    names: Vec<String>,
    known: Known,
}

impl ListedFiles {
    /// The images that `list` names, which lie in `root`.
    ///
    /// # Errors
    /// There is none, or one of those looked for is missing.
    pub(super) fn new(list: &Path, root: &Path, names: Vec<String>, known: Known) -> Result<ListedFiles, DataError> {
        if names.is_empty() {
            return Err(DataError::file(list, "no images in it", "give the list of a data set"));
        }
        let files = ListedFiles { root: root.to_path_buf(), names, known };
        let step = files.names.len().div_ceil(LOOKED_FOR);
        let missing = |index: &usize| !files.path(*index as u64).is_file();
        let mut missing = (0..files.names.len()).step_by(step).filter(missing);
        let Some(first) = missing.next() else { return Ok(files) };
        let reason = match missing.count() {
            0 => format!("this image of {} is missing", list.display()),
            more => {
                format!("this image of {} is missing, and {more} of the others that were looked for", list.display())
            }
        };
        Err(DataError::file(&files.path(first as u64), reason, format!("images are looked for in {}", root.display())))
    }

    fn path(&self, index: u64) -> PathBuf {
        self.root.join(&self.names[index as usize])
    }
}

impl SampleSource for ListedFiles {
    fn len(&self) -> u64 {
        self.names.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let class = match &self.known {
            Known::Classes(labels) => class_of(labels, index),
            Known::Captions(_) => None,
        };
        Ok(sample_of(read_image(&self.path(index))?, class))
    }

    fn name(&self, index: u64) -> String {
        self.names[index as usize].clone()
    }

    fn texts(&self) -> Option<&dyn Texts> {
        match self.known {
            Known::Classes(_) => None,
            Known::Captions(_) => Some(self),
        }
    }

    /// Of names, of what is known, and of the sizes of some images.
    fn file(&self, index: u64) -> Option<PathBuf> {
        Some(self.path(index))
    }

    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        self.names.iter().for_each(|name| hash.add(name.as_bytes()));
        match &self.known {
            Known::Classes(labels) => labels.iter().for_each(|label| hash.add(&label.to_le_bytes())),
            Known::Captions(captions) => captions.iter().for_each(|own| {
                hash.add(&own.len().to_le_bytes());
                own.iter().for_each(|caption| hash.add(caption.as_bytes()));
            }),
        }
        hash_sizes(&mut hash, self.len(), |index| self.file(index));
        Ok(hash.to_string())
    }
}

impl Texts for ListedFiles {
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        match &self.known {
            Known::Classes(_) => Ok(Vec::new()),
            Known::Captions(captions) => Ok(captions[index as usize].clone()),
        }
    }

    fn words(&self, _: usize) -> Result<Vec<String>, DataError> {
        Err(no_words())
    }
}

/// What a set that nobody trains on says when it is asked for words.
pub(super) fn no_words() -> DataError {
    let advice = "a vocabulary is made of the data that are trained on";
    DataError::NoTexts { wanted: "words to make a vocabulary of", advice }
}
