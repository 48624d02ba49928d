//! The source `Recordio`: image records as MXNet writes them, with their index beside them.

mod index;
mod records;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use self::index::Index;
use self::records::ImageRecord;
pub(in crate::data) use self::write::{LARGEST_ID, RecordHead, RecordWriter, label, layout};
use super::parts::Parts;
use super::{Field, ListHash, RawSample, SampleSource, paths};
use crate::data::{DataError, SampleError, scratch};

/// Records that tell what is in the files, evenly over all, and how much of each: its labels and the head of its image.
const HASHED: u64 = 1024;
const HASHED_BYTES: u64 = 4096;

/// Records of one or several files; see [`alip_plan::pipeline::Source::Recordio`].
///
/// Of every record only its place is kept, 8 bytes, and 8 more where keys do not count up. A record is read when its sample is
/// asked for, by whatever thread.
pub struct RecordioSource {
    parts: Parts<Part>,
    /// Names and lengths of the token rows.
    rows: Vec<(String, usize)>,
}

/// A file of records.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    index: Index,
}

impl RecordioSource {
    /// Opens the files that a path stands for; `labels` are names and lengths of the token rows. An index that is missing is
    /// made and left beside its file.
    ///
    /// # Errors
    /// A file cannot be read, an index is not as it should be or that of another file.
    pub fn open(path: &str, labels: &[(String, u32)]) -> Result<RecordioSource, DataError> {
        let open = |path: PathBuf| {
            let cannot = |error: std::io::Error| DataError::file(&path, error, "give a `.rec` file");
            let file = File::open(&path).map_err(cannot)?;
            let bytes = file.metadata().map_err(cannot)?.len();
            let index = Index::open(&path, &file, bytes)?;
            Ok(Part { path, file, bytes, index })
        };
        let parts = paths::files(path)?.into_iter().map(open).collect::<Result<_, DataError>>()?;
        let rows = labels.iter().map(|(name, length)| (name.clone(), *length as usize)).collect();
        Ok(RecordioSource { parts: Parts::new(parts, |part| part.index.len()), rows })
    }

    /// Sample `index`, and what stands before the image in its record.
    ///
    /// # Errors
    /// As [`SampleSource::sample`].
    pub(in crate::data) fn record(&self, index: u64) -> Result<(RawSample, RecordHead), SampleError> {
        let (part, at) = self.parts.place(index);
        let mut bytes = scratch::take(0);
        records::read(&part.file, part.index.offsets[at], part.bytes, &mut bytes)?;
        let record = ImageRecord::parse(&bytes)?;
        let mut fields: BTreeMap<String, Field> = self.token_rows(&record)?.into_iter().collect();
        let head = RecordHead::of(&record);
        let before = bytes.len() - record.image.len();
        bytes.drain(..before);
        fields.insert("jpeg".to_string(), Field::Encoded(bytes));
        Ok((RawSample { fields, ..RawSample::default() }, head))
    }

    /// The key of sample `index` in its file's index, where it is the only file: those of several may be the same.
    pub(in crate::data) fn only_key(&self, index: u64) -> Option<u64> {
        let (part, at) = self.parts.place(index);
        (self.parts.iter().count() == 1).then(|| part.index.key(at))
    }

    /// Labels as rows of token ids, one after another in the order of the pipeline.
    fn token_rows(&self, record: &ImageRecord<'_>) -> Result<Vec<(String, Field)>, SampleError> {
        let (has, wanted) = (record.labels.len(), self.rows.iter().map(|(_, length)| length).sum::<usize>());
        if has != wanted && !self.rows.is_empty() {
            return Err(SampleError(format!("{has} labels, where the pipeline's `labels` are {wanted}")));
        }
        let mut labels = record.labels.iter().map(|label| f32::from_le_bytes(*label));
        let mut rows = Vec::with_capacity(self.rows.len());
        for (name, length) in &self.rows {
            let ids = labels.by_ref().take(*length).map(|label| {
                let is_id = label.fract() == 0.0 && (0.0..=LARGEST_ID as f32).contains(&label);
                is_id
                    .then_some(label as i32)
                    .ok_or_else(|| SampleError(format!("`{name}` holds {label}, which is no token id")))
            });
            rows.push((name.clone(), Field::Tokens(ids.collect::<Result<_, _>>()?)));
        }
        Ok(rows)
    }
}

impl SampleSource for RecordioSource {
    fn len(&self) -> u64 {
        self.parts.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        Ok(self.record(index)?.0)
    }

    fn key(&self, index: u64) -> String {
        let (part, at) = self.parts.place(index);
        part.index.key(at).to_string()
    }

    fn name(&self, index: u64) -> String {
        let (part, at) = self.parts.place(index);
        let file = paths::name(&part.path);
        format!("record {} of {file}, at byte {}", part.index.key(at), part.index.offsets[at])
    }

    /// Of keys and places, and of what some of the records begin with, their labels among it: records whose texts were made
    /// anew lie where they lay.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for part in self.parts.iter() {
            hash.add(&part.bytes.to_le_bytes());
            for at in 0..part.index.len() {
                hash.add(&part.index.key(at).to_le_bytes());
                hash.add(&part.index.offsets[at].to_le_bytes());
            }
        }
        let step = self.len().div_ceil(HASHED);
        let mut bytes = [0; HASHED_BYTES as usize];
        for index in (0..self.len()).step_by(step as usize).chain([self.len() - 1]) {
            let (part, at) = self.parts.place(index);
            let from = part.index.offsets[at];
            let bytes = &mut bytes[..HASHED_BYTES.min(part.bytes - from) as usize];
            let read = paths::read_at(&part.file, bytes, from);
            read.map_err(|error| DataError::file(&part.path, error, "put back what it was"))?;
            hash.add(bytes);
        }
        Ok(hash.to_string())
    }
}

#[cfg(test)]
mod tests;
