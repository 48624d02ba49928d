//! Shards that can only be read from their beginning.

use std::path::PathBuf;

use super::RawSample;
use crate::data::{DataError, SampleError};

/// The shards of a source that can only be read in sequence. Their order, and that of their samples, is the loader's business.
pub trait Sequence: Send + Sync {
    /// Number of shards, at least 1.
    fn shards(&self) -> usize;

    /// Most streams that the shards are dealt over.
    fn streams(&self) -> u64;

    /// Samples of a shard, where that is stated or was learnt; at least 1.
    fn size(&self, shard: usize) -> Option<u64>;

    /// Keeps how many samples a shard of unknown size turned out to have.
    fn learn(&self, shard: usize, samples: u64);

    /// Begins to read a shard.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, shard: usize) -> Result<Box<dyn ShardReader>, ShardError>;

    /// Where a shard lies, to be shown.
    fn path(&self, shard: usize) -> PathBuf;
}

/// Reads the samples of a shard one after the other. What it gives is a function of the bytes of the shard, whatever was
/// skipped before.
pub trait ShardReader: Send {
    /// The next sample, or why it cannot be used; `None` behind the last.
    ///
    /// # Errors
    /// The shard cannot be read any further.
    fn next(&mut self) -> Result<Option<Result<RawSample, SampleError>>, ShardError>;

    /// Passes over so many samples, or as many as there are; how many.
    ///
    /// # Errors
    /// As [`ShardReader::next`], which would have met the same error at the same sample.
    fn skip(&mut self, samples: u64) -> Result<u64, ShardError>;
}

/// Why a shard cannot be read any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardError {
    /// Its bytes are not those of a shard: whatever follows is lost, whenever it is read. With the byte.
    Damaged(String),
    /// It cannot be reached, or is not one that is read in part: nothing goes on with it.
    Refused {
        /// What is wrong.
        reason: String,
        /// What to do.
        advice: String,
    },
}

impl ShardError {
    /// As an error that ends a run.
    pub(crate) fn of(self, path: PathBuf) -> DataError {
        match self {
            ShardError::Damaged(reason) => {
                let advice = "fetch it again, leave it out, or state how many samples it has in a `sizes.json` beside it: what \
                              is lost of it then counts as bad samples";
                DataError::File { path, reason, advice: advice.into() }
            }
            ShardError::Refused { reason, advice } => DataError::File { path, reason, advice },
        }
    }
}
