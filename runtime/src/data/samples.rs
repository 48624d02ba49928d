//! The samples of a run: which one stands where, and how it is read.

use std::collections::HashSet;
use std::sync::Arc;

use super::streams::Streams;
use super::{DataError, Order, RawSample, SampleError, SampleSource};

/// Stand-ins tried for one sample before the data set is called unreadable.
pub(super) const MAX_ATTEMPTS: u32 = 31;

/// Where samples come from, and their order.
pub(super) enum Samples {
    /// From a source with random access. A sample is known by its epoch and its index in the source.
    Anywhere(Arc<dyn SampleSource>, Order),
    /// From shards that are read in sequence. A sample is known by the global place where it stands, and the epoch is 0.
    InSequence(Streams),
}

/// Why a row was not filled.
pub(super) enum Unusable {
    /// Another sample can stand in.
    Bad(SampleError),
    /// Nothing more can be read.
    Ends(DataError),
}

impl From<SampleError> for Unusable {
    fn from(error: SampleError) -> Unusable {
        Unusable::Bad(error)
    }
}

impl Samples {
    /// Epoch and index of `count` samples from global sample `first` on.
    pub(super) fn at(&self, first: u64, count: u64) -> Vec<(u64, u64)> {
        match self {
            Samples::Anywhere(_, order) => order.samples(first, count),
            Samples::InSequence(_) => (first..first + count).map(|global| (0, global)).collect(),
        }
    }

    /// A sample in its own place, or a copy that stands in elsewhere.
    pub(super) fn read(&self, index: u64, stands_in: bool) -> Result<RawSample, Unusable> {
        match self {
            Samples::Anywhere(source, _) => Ok(source.sample(index)?),
            Samples::InSequence(streams) => Ok(streams.get(index, stands_in).map_err(Unusable::Ends)??),
        }
    }

    /// What a sample is called in a log.
    pub(super) fn name(&self, index: u64) -> String {
        match self {
            Samples::Anywhere(source, _) => source.name(index),
            Samples::InSequence(streams) => streams.name(index),
        }
    }

    /// Stand-ins for a global sample, the best first: drawn ones that are not in the batch, whatever else is not, and drawn ones
    /// that are.
    pub(super) fn stand_ins<'s>(
        &self,
        global: u64,
        present: &'s HashSet<u64>,
    ) -> Result<impl Iterator<Item = u64> + use<'s>, DataError> {
        let (drawn, len): (Vec<u64>, u64) = match self {
            Samples::Anywhere(_, order) => {
                ((1..=MAX_ATTEMPTS).map(|attempt| order.reserve(global, attempt)).collect(), order.source_len())
            }
            // A stream has no others than those that were drawn.
            Samples::InSequence(streams) => (streams.stand_ins(global, MAX_ATTEMPTS)?, 0),
        };
        let begin = drawn[0];
        let is_free = |index: &u64| !present.contains(index);
        let (free, taken): (Vec<u64>, Vec<u64>) = drawn.into_iter().partition(is_free);
        let others = (1..len).map(move |step| (begin + step) % len).filter(is_free);
        Ok(free.into_iter().chain(others).chain(taken))
    }
}
