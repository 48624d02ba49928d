//! The order of shards that can only be read in sequence, and their reading.
//!
//! Shards are dealt over streams, and place `i` of every global batch is read from stream `i mod S`. A stream goes over its shards
//! again and again, each time in an order of its own, and permutes windows of the samples of a shard ([`Way`]). So what stands at
//! a place is a function of seed, place and what is in the shards: not of workers, ranks or restarts. Whoever wants some places
//! of the batches opens the streams of those places and no others, and a place far ahead is found by the sizes of the shards
//! before it; where a size is not known, by counting.
//!
//! That is no full shuffle: samples that are far apart in a shard, or in shards of one stream, never stand near each other. An
//! epoch is a number of places. Where shards are of different sizes a stream of small ones begins anew before, so a sample may be
//! seen twice in an epoch and another not at all; every pass of a stream has each of its samples once. Streams have no shards in
//! common, so a batch holds a sample twice only where a stream comes back to a shard within it: never with one place a stream,
//! nor with shards of more than two windows and a batch's share.
//!
//! What is read and not taken yet is at most a window of each stream, and of some the next.

mod deal;
mod stream;
mod way;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alip_plan::philox::{counter, philox4x32, stream_key};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use self::deal::Deal;
use self::stream::{Shared, Stream, count};
use self::way::Way;
use super::order::{Stream as Draws, below};
use super::source::Sequence;
use super::{DataError, RawSample, SampleError};

/// Samples that are mixed unless the pipeline says how many: images of img2dataset, 256 pixels wide, then take some 400 MB.
pub(super) const MIXED: u64 = 16_384;

/// How streams are read.
pub(super) struct Options {
    pub(super) seed: u64,
    /// Samples that all streams together mix; `None` keeps shards and samples in order.
    pub(super) mixed: Option<u64>,
    /// Samples of a global batch.
    pub(super) batch: u64,
    /// The first global place that is asked for.
    pub(super) start: u64,
}

/// All streams of a source.
pub(super) struct Streams {
    source: Arc<dyn Sequence>,
    deal: Deal,
    seed: u64,
    streams: Vec<Mutex<Stream>>,
    held: AtomicU64,
}

impl Streams {
    /// Of a source, from a place on. Counts what must be counted to find it.
    ///
    /// # Errors
    /// A shard cannot be counted.
    pub(super) fn new(source: Arc<dyn Sequence>, options: &Options) -> Result<Streams, DataError> {
        let shards = source.shards();
        let deal = Deal::new(source.streams(), shards as u64, options.batch);
        let window = options.mixed.map(|mixed| (mixed / deal.streams).max(1));
        let stream = |number: u64| {
            let own = (number as usize..shards).step_by(deal.streams as usize).collect();
            let way = Way::new(own, number, options.seed, window);
            Mutex::new(Stream::new(way, deal.first_from(number, options.start)))
        };
        let streams = (0..deal.streams).map(stream).collect();
        let all = Streams { source, deal, seed: options.seed, streams, held: AtomicU64::new(0) };
        if options.start > 0 {
            all.locate()?;
        }
        Ok(all)
    }

    /// The sample at a global place, or why it cannot be used; a copy may be had as often as one likes.
    ///
    /// # Errors
    /// Its stream cannot be read any further.
    pub(super) fn get(&self, global: u64, copy: bool) -> Result<Result<RawSample, SampleError>, DataError> {
        let (number, element) = self.deal.element(global);
        self.stream(number)?.get(self.shared(), element, copy)
    }

    /// What the sample at a global place is called.
    pub(super) fn name(&self, global: u64) -> String {
        let (number, element) = self.deal.element(global);
        let named = self.stream(number).map(|stream| stream.name(&*self.source, element));
        named.unwrap_or_else(|_| format!("sample {global}"))
    }

    /// Places whose samples can stand in for that of another: drawn from the next window's worth of its stream behind the batch.
    ///
    /// # Errors
    /// Its stream cannot be read any further.
    pub(super) fn stand_ins(&self, global: u64, attempts: u32) -> Result<Vec<u64>, DataError> {
        let (number, element) = self.deal.element(global);
        let mut stream = self.stream(number)?;
        let behind = self.deal.behind_batch(number, element);
        let from = stream.first_sound(self.shared(), behind)?.unwrap_or(behind);
        let key = stream_key(self.seed, 0, Draws::Reserve as u32);
        // More than one sample, also where nothing is mixed.
        let among = stream.longest().max(u64::from(attempts));
        let draw = |attempt| below(among, philox4x32(counter(global, u64::from(attempt)), key));
        let sound = |attempt| {
            let drawn = from + draw(attempt);
            // Where every shard is cut off, some of the window in which it ends may be sound all the same.
            let element = stream.first_sound(self.shared(), drawn)?.unwrap_or(drawn);
            Ok(self.deal.global(number, element))
        };
        (1..=attempts).map(sound).collect()
    }

    fn shared(&self) -> Shared<'_> {
        Shared { source: &*self.source, held: &self.held }
    }

    fn stream(&self, number: u64) -> Result<MutexGuard<'_, Stream>, DataError> {
        // Whoever panicked while reading has left it between two samples, and with nothing open.
        Ok(self.streams[number as usize].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Finds where every stream begins, before anything is read: what must be counted is shown.
    fn locate(&self) -> Result<(), DataError> {
        let style = ProgressStyle::with_template("counting the samples before: {pos} shards, {elapsed}");
        let bar = ProgressBar::no_length();
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
        let locate = |number: u64| {
            self.stream(number)?.locate(&*self.source, |shard, most| {
                bar.inc(1);
                count(&*self.source, shard, most)
            })
        };
        let located = (0..self.deal.streams).into_par_iter().map(locate).map(|found| found.map(drop)).collect();
        bar.finish_and_clear();
        located
    }

    /// Bytes of all samples that wait.
    #[cfg(test)]
    fn held(&self) -> u64 {
        self.held.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
