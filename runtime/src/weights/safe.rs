//! Where the safetensors files of a model are: one file, or the shards that an index of Hugging Face's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::WeightsError;
use crate::file::FileError;

/// Files of weights that folders have, in the order in which they are looked for.
pub(super) const IN_FOLDERS: [&str; 7] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "weights.safetensors",
];

/// Largest index: that of a model with a million tensors.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The file of weights in a folder.
///
/// # Errors
/// There is none.
pub(super) fn in_folder(folder: &Path) -> Result<PathBuf, WeightsError> {
    let found = IN_FOLDERS.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let why = format!("the folder has no file of weights: none of {}; give the file", IN_FOLDERS.join(", "));
        WeightsError::Refused { path: folder.to_path_buf(), why }
    })
}

/// The shards of an index, and which of them has which tensor.
///
/// # Errors
/// It cannot be read, is no index, or names files outside of its folder.
pub(super) fn shards(index: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, usize>), WeightsError> {
    let refused = |why: String| WeightsError::Refused { path: index.to_path_buf(), why };
    let length = index.metadata().map_err(FileError::io(index, "read"))?.len();
    if length > MAX_BYTES {
        return Err(refused("the index is too large".into()));
    }
    let text = std::fs::read_to_string(index).map_err(FileError::io(index, "read"))?;
    let read: Index = serde_json::from_str(&text)
        .map_err(|error| refused(format!("it is no index of weights, with a `weight_map` ({error})")))?;
    let names: BTreeSet<&String> = read.weight_map.values().collect();
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name().is_none_or(|file| file != name.as_str())) {
        return Err(refused(format!("it names a file `{name}`, which is none beside it")));
    }
    let names: Vec<&String> = names.into_iter().collect();
    let folder = index.parent().unwrap_or(Path::new(""));
    let paths = names.iter().map(|name| folder.join(name)).collect();
    let place = |shard: &String| names.binary_search(&shard).unwrap_or_default();
    let places = read.weight_map.iter().map(|(tensor, shard)| (tensor.clone(), place(shard)));
    Ok((paths, places.collect()))
}
