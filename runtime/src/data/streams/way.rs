//! The way of a stream through its shards: which one it reads when, and in which order the samples.

use alip_plan::philox::{counter, philox4x32, stream_key};

use crate::data::order::{Bijection, Stream, below};

/// The order of one stream, without end: passes over its shards, each shard in windows of samples that are permuted. A visit is
/// the reading of one shard; visits are numbered through all passes. A window ends with its shard.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The shards of the stream, at least one.
    shards: Vec<usize>,
    stream: u64,
    seed: u64,
    /// Most samples that are permuted at a time; 1 keeps everything in order.
    window: u64,
    shuffled: bool,
}

/// A window of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Its number in the visit.
    number: u64,
    /// Its first sample.
    pub(super) start: u64,
    /// The sample behind its last, unless the shard ends before.
    pub(super) end: u64,
}

impl Way {
    /// Of a stream that has these shards.
    pub(super) fn new(shards: Vec<usize>, stream: u64, seed: u64, window: Option<u64>) -> Way {
        Way { shards, stream, seed, window: window.unwrap_or(1).max(1), shuffled: window.is_some() }
    }

    /// Samples of the longest window.
    pub(super) fn longest(&self) -> u64 {
        self.window
    }

    /// How many shards it has.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The shard of a visit.
    pub(super) fn shard(&self, visit: u64) -> usize {
        let all = self.shards.len() as u64;
        let (pass, place) = (visit / all, visit % all);
        if !self.shuffled {
            return self.shards[place as usize];
        }
        self.shards[Bijection::new(all).at((self.seed, pass, self.stream << 32), place) as usize]
    }

    /// The window of a visit that has a sample. The first is of a drawn length, so that streams do not all read their next
    /// windows for the same batch.
    pub(super) fn window(&self, visit: u64, sample: u64) -> Window {
        let key = stream_key(self.seed, visit, Stream::Windows as u32);
        let first = 1 + below(self.window, philox4x32(counter(self.stream, 0), key));
        match sample.checked_sub(first) {
            None => Window { number: 0, start: 0, end: first },
            Some(behind) => {
                let number = behind / self.window;
                let start = first + number * self.window;
                Window { number: number + 1, start, end: start + self.window }
            }
        }
    }

    /// Which sample of a window of so many is read at a place of it; both counted from its beginning.
    pub(super) fn sample(&self, visit: u64, window: Window, samples: u64, place: u64) -> u64 {
        let which = self.stream << 32 | (window.number + 1);
        if self.shuffled { Bijection::new(samples).at((self.seed, visit, which), place) } else { place }
    }

    /// The visit that has an element of the stream, and the element with which it begins. Sizes that are not known are asked
    /// for, with how many samples matter: the answer is `None` where there are as many.
    pub(super) fn visit<E>(
        &self,
        element: u64,
        known: impl Fn(usize) -> Option<u64>,
        mut count: impl FnMut(usize, u64) -> Result<Option<u64>, E>,
    ) -> Result<(u64, u64), E> {
        let pass: Option<u64> = self.shards.iter().map(|shard| known(*shard)).sum();
        let passes = pass.map_or(0, |pass| element / pass);
        let (mut visit, mut begin) = (passes * self.shards.len() as u64, passes * pass.unwrap_or(0));
        // Every shard has a sample, so the first element of a visit needs no size.
        while begin < element {
            let shard = self.shard(visit);
            let size = match known(shard) {
                Some(size) => Some(size),
                None => count(shard, element - begin + 1)?,
            };
            match size {
                Some(size) if begin + size <= element => (visit, begin) = (visit + 1, begin + size),
                _ => break,
            }
        }
        Ok((visit, begin))
    }
}
