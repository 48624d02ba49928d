//! Shards on servers, in a program that was built without them.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::place::About;
use super::sizes::Sizes;
use crate::data::{DataError, ShardError};

/// A shard on a server, of which there is none here.
#[derive(Clone, Debug)]
pub(super) enum Remote {}

impl Remote {
    pub(super) fn all(url: &str) -> Result<Vec<Remote>, DataError> {
        let reason = "this program was built without what reads shards on servers";
        let advice = "build it with `--features remote`, or copy the shards to a disk and give their path";
        Err(DataError::file(Path::new(url), reason, advice))
    }

    pub(super) fn path(&self) -> PathBuf {
        match *self {}
    }

    pub(super) fn about(&self) -> About {
        match *self {}
    }

    pub(super) fn sizes(&self, _: &Path) -> Result<Sizes, DataError> {
        match *self {}
    }

    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>, ShardError> {
        match *self {}
    }
}
