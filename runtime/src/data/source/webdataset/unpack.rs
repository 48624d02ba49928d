//! Compressed shards, unpacked once into the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::Place;
use crate::data::DataError;
use crate::data::source::{ListHash, paths};
use crate::file::{FileError, write_beside};

/// How long the form of another time is kept: no longer than anybody would go on reading it.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The unpacked form of a shard: made now, unless there is one of its size and time. Those of other times are removed a day later:
/// a run may read them still.
pub(super) fn unpacked(path: &Path, cache: Option<&Path>) -> Result<PathBuf, DataError> {
    let advice = "unpack it yourself (`gunzip`), or leave `unpack` out";
    let fail = |reason: String| DataError::file(path, reason, advice);
    let cache = cache.ok_or_else(|| fail("there is no cache folder to unpack it to".into()))?;
    let about = Place::Local(path.to_path_buf()).about()?;
    let mut hash = ListHash::default();
    hash.add(&about.name);
    let name = paths::name(path);
    let stem = name.strip_suffix(".gz").or(name.strip_suffix(".tgz")).unwrap_or(&name);
    let folder = cache.join(format!("unpacked-{hash}"));
    let version = folder.join(format!("{}-{}", about.bytes, about.version));
    let unpacked = version.join(if stem.ends_with(".tar") { stem.into() } else { format!("{stem}.tar") });
    if unpacked.is_file() {
        return Ok(unpacked);
    }
    fs::create_dir_all(&version)
        .map_err(|error| fail(format!("cannot be unpacked to {}: {error}", version.display())))?;
    write_beside(&unpacked, |file| {
        let mut shard = flate2::bufread::MultiGzDecoder::new(io::BufReader::new(
            File::open(path).map_err(FileError::io(path, "read"))?,
        ));
        io::copy(&mut shard, file).map_err(FileError::io(path, "unpack")).map(drop)
    })
    .map_err(|error: FileError| fail(error.to_string()))?;
    remove_old(&folder, &version);
    Ok(unpacked)
}

/// Removes what was unpacked of other versions, some time ago.
fn remove_old(folder: &Path, version: &Path) {
    for other in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = other.metadata().and_then(|about| about.modified()).ok().and_then(|time| time.elapsed().ok());
        if other.path() != version && age.is_some_and(|age| age > KEPT) {
            // What cannot be removed only takes room.
            let _ = fs::remove_dir_all(other.path());
        }
    }
}
