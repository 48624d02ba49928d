//! Where shards lie.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::files::GZIP;
use super::remote::Remote;
use super::sizes::{self, Sizes};
use crate::data::source::paths;
use crate::data::{DataError, ShardError};

/// What to do where a shard is not there.
const MISSING: &str = "give the shards that there are";

/// A shard by its place, unopened.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// On a disk.
    Local(PathBuf),
    /// On a server.
    Remote(Remote),
}

/// What is known of a shard without reading it.
pub(super) struct About {
    /// Its place, wherever it is named from.
    pub(super) name: Vec<u8>,
    /// Its size.
    pub(super) bytes: u64,
    /// When it was changed, or what else tells one version of it from another.
    pub(super) version: u128,
}

/// Why bytes cannot be had, where it is not the bytes that are wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Unreachable {
    pub(super) reason: String,
    pub(super) advice: String,
}

impl Place {
    /// The shards that a path stands for.
    pub(super) fn all(path: &str) -> Result<Vec<Place>, DataError> {
        if path.starts_with("pipe:") {
            let advice = "give the shards themselves, on a disk or on a server";
            return Err(DataError::file(Path::new(path), "nothing here runs the commands of a pipe", advice));
        }
        // A variable may hold where they lie.
        if paths::expand(path)?.contains("://") {
            return Ok(Remote::all(path)?.into_iter().map(Place::Remote).collect());
        }
        Ok(paths::files(path)?.into_iter().map(Place::Local).collect())
    }

    /// Its path, to be shown.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Place::Local(path) => path.clone(),
            Place::Remote(remote) => remote.path(),
        }
    }

    /// Its path on a disk.
    pub(super) fn local(&self) -> Option<&Path> {
        match self {
            Place::Local(path) => Some(path),
            Place::Remote(_) => None,
        }
    }

    /// Whether it can only be read from its beginning.
    pub(super) fn is_in_sequence(&self) -> Result<bool, DataError> {
        let Place::Local(path) = self else { return Ok(true) };
        let mut head = Vec::new();
        let opened = File::open(path).and_then(|file| file.take(GZIP.len() as u64).read_to_end(&mut head));
        opened.map_err(|error| DataError::file(path, error, MISSING))?;
        Ok(head == GZIP)
    }

    /// What the file beside it, in its folder, says of shards.
    pub(super) fn sizes(&self, folder: &Path) -> Result<Sizes, DataError> {
        match self {
            Place::Local(_) => sizes::read(folder),
            Place::Remote(remote) => remote.sizes(folder),
        }
    }

    /// What is known of it.
    pub(super) fn about(&self) -> Result<About, DataError> {
        let path = match self {
            Place::Local(path) => path,
            Place::Remote(remote) => return Ok(remote.about()),
        };
        let about = || -> io::Result<About> {
            let about = std::fs::metadata(path)?;
            // Of a clock before 1970, or a system without one, no version is told from another.
            let version = about.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
            let name = path.canonicalize()?.as_os_str().as_encoded_bytes().to_vec();
            Ok(About { name, bytes: about.len(), version })
        };
        about().map_err(|error| DataError::file(path, error, MISSING))
    }

    /// Its bytes. Reading fails with [`Unreachable`] inside the error where they cannot be had.
    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>, ShardError> {
        let path = match self {
            Place::Local(path) => path,
            Place::Remote(remote) => return remote.open(),
        };
        let file = File::open(path)
            .map_err(|error| ShardError::Refused { reason: error.to_string(), advice: MISSING.into() })?;
        Ok(Box::new(Local(file)))
    }
}

/// A file, of which errors are told from wrong bytes.
struct Local(File);

impl Read for Local {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(Unreachable {
                reason: format!("cannot be read: {error}"),
                advice: "see what is wrong with the disk".into(),
            }),
        })
    }
}
