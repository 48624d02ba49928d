//! One stream: what is read of it and not taken yet.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::way::{Way, Window};
use crate::data::source::{Sequence, ShardError, ShardReader};
use crate::data::{DataError, Field, RawSample, SampleError};

/// Most bytes of samples that wait in all windows of a loader: those of 16,384 samples of 256 KiB, ten times what images of
/// img2dataset take.
const MOST_HELD: u64 = 4 << 30;

/// A sample, or why it cannot be used.
type Read = Result<RawSample, SampleError>;

/// A stream, read as far as it was asked for. Elements may be asked for in any order; those before the first that is held, or
/// that were taken, are read once more.
pub(super) struct Stream {
    way: Way,
    /// The first element that is kept when it is read.
    first: u64,
    reading: Option<Reading>,
    held: HashMap<u64, Read>,
    /// Elements that are lost with the rest of their shards, those of the window in which reading ended among them: sound ones
    /// of it stand between lost ones.
    lost: Vec<Range<u64>>,
}

/// What all streams share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) source: &'a dyn Sequence,
    /// Bytes of all samples that wait.
    pub(super) held: &'a AtomicU64,
}

/// A shard that is being read.
struct Reading {
    visit: u64,
    /// The element with which the visit begins.
    begin: u64,
    /// Samples that were read of the shard.
    read: u64,
    reader: Option<Box<dyn ShardReader>>,
    /// Why the rest of the shard is lost.
    damage: Option<String>,
    /// Why nothing more is read.
    failed: Option<ShardError>,
}

impl Stream {
    /// Of which elements from `first` on will be asked for.
    pub(super) fn new(way: Way, first: u64) -> Stream {
        Stream { way, first, reading: None, held: HashMap::new(), lost: Vec::new() }
    }

    /// Most samples that it mixes at a time.
    pub(super) fn longest(&self) -> u64 {
        self.way.longest()
    }

    /// How many samples wait.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes an element, or copies it.
    pub(super) fn get(&mut self, cx: Shared<'_>, element: u64, copy: bool) -> Result<Read, DataError> {
        if element >= self.first {
            self.read_to(cx, element)?;
            if copy && let Some(read) = self.held.get(&element) {
                return Ok(read.clone());
            }
            if !copy && let Some(read) = self.held.remove(&element) {
                cx.held.fetch_sub(bytes(&read), Ordering::Relaxed);
                return Ok(read);
            }
        }
        let mut again = Stream::new(self.way.clone(), element);
        let read = again.read_to(cx, element).map(|()| again.held.remove(&element));
        let held: u64 = again.held.values().chain(read.iter().flatten()).map(bytes).sum();
        cx.held.fetch_sub(held, Ordering::Relaxed);
        // What was read to is held.
        read?.ok_or(DataError::Stopped)
    }

    /// This element, or the first behind the rest of a shard that is lost; none where all shards of the stream are cut off.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn first_sound(&mut self, cx: Shared<'_>, element: u64) -> Result<Option<u64>, DataError> {
        let mut at = element;
        // Each time a shard is passed over; in two passes, which have two orders, all of them are met.
        for _ in 0..=2 * self.way.shards() {
            self.read_to(cx, at.max(self.first))?;
            match self.lost.iter().find(|lost| lost.contains(&at)) {
                Some(lost) => at = lost.end,
                None => return Ok(Some(at)),
            }
        }
        Ok(None)
    }

    /// What an element is called.
    pub(super) fn name(&self, source: &dyn Sequence, element: u64) -> String {
        let known = |shard| source.size(shard);
        // A shard whose size is not known is the one that is being read.
        let Ok((visit, begin)) = self.way.visit(element, known, |_, _| Ok::<_, Infallible>(None));
        let shard = self.way.shard(visit);
        let window = self.way.window(visit, element - begin);
        let end = known(shard).map_or(window.end, |size| size.min(window.end));
        let place = element - begin - window.start;
        let sample = window.start + self.way.sample(visit, window, end - window.start, place);
        let path = source.path(shard);
        let file = path.file_name().unwrap_or(path.as_os_str());
        format!("sample {sample} of {}", file.to_string_lossy())
    }

    /// Finds out where the first element is, which may take a count.
    pub(super) fn locate(
        &self,
        source: &dyn Sequence,
        count: impl FnMut(usize, u64) -> Result<Option<u64>, DataError>,
    ) -> Result<(u64, u64), DataError> {
        self.way.visit(self.first, |shard| source.size(shard), count)
    }

    /// Reads windows until that of an element was read.
    fn read_to(&mut self, cx: Shared<'_>, element: u64) -> Result<(), DataError> {
        let mut reading = match self.reading.take() {
            Some(reading) => reading,
            None => self.begin(cx.source)?,
        };
        let mut result = Ok(());
        while result.is_ok() && reading.begin + reading.read <= element {
            result = match &reading.failed {
                Some(error) => Err(error.clone()),
                None => self.read_window(cx, &mut reading),
            };
        }
        let path = cx.source.path(self.way.shard(reading.visit));
        reading.failed = result.clone().err();
        self.reading = Some(reading);
        result.map_err(|error| error.of(path))
    }

    /// Stands before the window of the first element.
    fn begin(&self, source: &dyn Sequence) -> Result<Reading, DataError> {
        let (visit, begin) = self.locate(source, |shard, most| count(source, shard, most))?;
        let read = self.way.window(visit, self.first - begin).start;
        let mut reading = Reading { visit, begin, read, reader: None, damage: None, failed: None };
        let shard = self.way.shard(visit);
        let skipped = reader(&mut reading, source, shard).and_then(|reader| reader.skip(read));
        match skipped {
            Ok(skipped) if skipped == read => {}
            Ok(skipped) => reading.failed = Some(shorter(skipped, source.size(shard))),
            Err(ShardError::Damaged(reason)) if source.size(shard).is_some() => reading.damage = Some(reason),
            Err(error) => reading.failed = Some(error),
        }
        Ok(reading)
    }

    /// Reads the next window of a shard, whole, and holds it.
    fn read_window(&mut self, cx: Shared<'_>, reading: &mut Reading) -> Result<(), ShardError> {
        let shard = self.way.shard(reading.visit);
        let size = cx.source.size(shard);
        let window = self.way.window(reading.visit, reading.read);
        let end = size.map_or(window.end, |size| size.min(window.end));
        let mut samples: Vec<Read> = Vec::new();
        let mut waiting = 0;
        while reading.damage.is_none() && reading.read + (samples.len() as u64) < end {
            match reader(reading, cx.source, shard).and_then(|reader| reader.next()) {
                Ok(Some(sample)) => {
                    waiting += bytes(&sample);
                    check_room(cx.held.load(Ordering::Relaxed) + waiting)?;
                    samples.push(sample);
                }
                Ok(None) => break,
                Err(ShardError::Damaged(reason)) if size.is_some() => reading.damage = Some(reason),
                Err(error) => return Err(error),
            }
        }
        let read = reading.read + samples.len() as u64;
        let ended = match (&reading.damage, size) {
            (Some(reason), Some(size)) => {
                let lost = reading.begin + window.start..reading.begin + size;
                if !self.lost.iter().any(|known| known.end == lost.end) {
                    self.lost.push(lost);
                }
                samples.resize((end - window.start) as usize, Err(SampleError(format!("lost: {reason}"))));
                end == size
            }
            (None, Some(size)) if read < end => return Err(shorter(read, Some(size))),
            (None, Some(size)) if read == size => {
                check_end(reader(reading, cx.source, shard)?, size)?;
                true
            }
            (None, None) if read < end => {
                check_any(read)?;
                cx.source.learn(shard, read);
                true
            }
            _ => false,
        };
        self.hold(cx, reading, window, samples);
        if ended {
            let begin = reading.begin + reading.read;
            *reading = Reading { visit: reading.visit + 1, begin, read: 0, reader: None, damage: None, failed: None };
        }
        Ok(())
    }

    /// Holds the samples of a window where they stand in the order.
    fn hold(&mut self, cx: Shared<'_>, reading: &mut Reading, window: Window, samples: Vec<Read>) {
        let length = samples.len() as u64;
        let mut samples: Vec<Option<Read>> = samples.into_iter().map(Some).collect();
        for place in 0..length {
            let element = reading.begin + window.start + place;
            let sample = self.way.sample(reading.visit, window, length, place);
            if let Some(sample) = samples[sample as usize].take().filter(|_| element >= self.first) {
                cx.held.fetch_add(bytes(&sample), Ordering::Relaxed);
                self.held.insert(element, sample);
            }
        }
        reading.read += length;
    }
}

/// How many samples a shard has, or `None` if at least `most`; what is found out is kept.
pub(super) fn count(source: &dyn Sequence, shard: usize, most: u64) -> Result<Option<u64>, DataError> {
    let counted = source.open(shard).and_then(|mut reader| reader.skip(most));
    let counted =
        counted.and_then(|found| if found < most { check_any(found).map(|()| Some(found)) } else { Ok(None) });
    let size = counted.map_err(|error| error.of(source.path(shard)))?;
    if let Some(size) = size {
        source.learn(shard, size);
    }
    Ok(size)
}

fn reader<'r>(
    reading: &'r mut Reading,
    source: &dyn Sequence,
    shard: usize,
) -> Result<&'r mut Box<dyn ShardReader>, ShardError> {
    match &mut reading.reader {
        Some(reader) => Ok(reader),
        closed => Ok(closed.insert(source.open(shard)?)),
    }
}

fn refused(reason: String, advice: &str) -> ShardError {
    ShardError::Refused { reason, advice: advice.into() }
}

const SIZES: &str = "give the shard that was counted, or count anew";

fn shorter(read: u64, stated: Option<u64>) -> ShardError {
    let stated = stated.map_or("more".into(), |size| size.to_string());
    refused(format!("it has {read} samples, but is known to have {stated}"), SIZES)
}

fn check_end(reader: &mut Box<dyn ShardReader>, size: u64) -> Result<(), ShardError> {
    match reader.next() {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(refused(format!("it has more than the {size} samples that it is known to have"), SIZES)),
        // Every sample was read, but what says that they are right is wrong.
        Err(ShardError::Damaged(reason)) => {
            Err(refused(reason, "write it anew, or leave it out of the source's `path`"))
        }
        Err(error) => Err(error),
    }
}

fn check_any(samples: u64) -> Result<(), ShardError> {
    let none = || refused("no samples in it".into(), "write it anew, or leave it out of the source's `path`");
    if samples == 0 { Err(none()) } else { Ok(()) }
}

fn check_room(held: u64) -> Result<(), ShardError> {
    if held <= MOST_HELD {
        return Ok(());
    }
    let reason = format!("the samples that are mixed take more than {} GiB", MOST_HELD >> 30);
    Err(refused(reason, "mix fewer at a time: give the pipeline `shuffle: (buffer: 2048)`, or less"))
}

/// What a sample takes in memory.
fn bytes(read: &Read) -> u64 {
    let field = |field: &Field| match field {
        Field::Encoded(bytes) => bytes.len(),
        Field::Rgb(image) => image.pixels.len(),
        Field::Text(text) => text.len(),
        Field::Texts(texts) => texts.iter().map(String::len).sum(),
        Field::Tokens(ids) => 4 * ids.len(),
    };
    read.as_ref().map_or(0, |sample| sample.fields.values().map(field).sum::<usize>() as u64)
}
