//! `sizes.json` beside shards: how many samples each has, as the tools of WebDataset write it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use super::sequence::MOST_SAMPLES;
use crate::data::DataError;

/// Its name.
pub(super) const FILE: &str = "sizes.json";

/// Samples of the shards of a folder, by their names.
pub(super) type Sizes = BTreeMap<String, u64>;

/// What a folder's file says; nothing if there is none.
pub(super) fn read(folder: &Path) -> Result<Sizes, DataError> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(text) => parse(&path, &text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Sizes::new()),
        Err(error) => Err(DataError::file(&path, error, "make it readable, or remove it")),
    }
}

/// What the file says.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Sizes, DataError> {
    let advice = "write it as `{\"00000.tar\": 1000, ...}`, or remove it";
    let sizes: Sizes = serde_json::from_slice(text).map_err(|error| DataError::file(path, error, advice))?;
    match sizes.iter().find(|(_, size)| !(1..=MOST_SAMPLES as u64).contains(*size)) {
        Some((shard, 0)) => Err(DataError::file(path, format!("`{shard}` has no samples"), advice)),
        Some((shard, size)) => {
            let reason = format!("`{shard}` has {size} samples, more than the {MOST_SAMPLES} that a shard may have");
            Err(DataError::file(path, reason, advice))
        }
        None => Ok(sizes),
    }
}
