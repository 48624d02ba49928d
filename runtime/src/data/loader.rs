//! Batches, in order, ahead of time.
//!
//! One thread makes batch after batch, each on a pool of `workers` threads that write their rows straight into the batch's
//! tensors, and puts them into a queue of `prefetch` places. So at most `prefetch + 2` batches exist at a time (those in the
//! queue, the one being made, the one the consumer holds), however slow the consumer is, and no result depends on timing.
//!
//! Dropping the loader stops the thread within one sample's work and joins it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alip_plan::pipeline::{Mode, Pipeline, Source};
use rayon::prelude::*;

use super::panics::caught;
use super::spares::Spares;
use super::transform::{Row, check_fields};
use super::{DataError, Order, SampleError, SampleSource, Skipped, Skips, Transform, Vocabularies};
use crate::tensor::{Data, HostTensor};

/// Stand-ins tried for one sample before the data set is called unreadable.
const MAX_ATTEMPTS: usize = 31;

/// A global batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The pipeline's outputs by name, shape `[batch, ...]`.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Global index of the first row: the cursor of this batch. Row `r` is global sample `first_sample + r`; the cursor after
    /// the batch is `first_sample + batch`.
    pub first_sample: u64,
    /// Rows that count. All of them when training; the last batch of [`Passes::Once`] is filled up with samples from the
    /// start, which do not.
    pub valid: usize,
    /// The source's index of the sample in each row.
    pub rows: Vec<u64>,
    /// The source's labels by name, one per row.
    pub labels: BTreeMap<String, Vec<i64>>,
    /// Samples of this batch that could not be used; their rows hold others.
    pub skipped: Vec<Skipped>,
    /// How long the consumer waited for this batch.
    pub waited: Duration,
}

/// How far a loader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Epoch after epoch, without end and without a gap.
    Endless,
    /// Every sample once.
    Once,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Training or evaluation body; only training shuffles.
    pub mode: Mode,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Where to begin: 0, or the cursor of a checkpoint.
    pub start_sample: u64,
    /// Samples of a global batch.
    pub batch: usize,
    /// Threads that decode.
    pub workers: usize,
    /// Batches made ahead.
    pub prefetch: usize,
    /// How far to go.
    pub passes: Passes,
    /// Largest share of samples that may be unusable, judged over what this loader has delivered.
    pub max_bad: f64,
    /// The word lists that take the place of those of the source.
    pub vocabularies: Vocabularies,
    /// Samples to deliver before the share is judged, so that one bad file among the first few stops nothing.
    pub judge_after: u64,
}

impl LoaderOptions {
    /// Training from the start: endless, one worker per processor, two batches ahead, 1 % bad samples after 1,000.
    pub fn train(seed: u64, batch: usize) -> LoaderOptions {
        LoaderOptions {
            mode: Mode::Train,
            seed,
            start_sample: 0,
            batch,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 2,
            passes: Passes::Endless,
            max_bad: 0.01,
            vocabularies: Vocabularies::default(),
            judge_after: 1_000,
        }
    }

    /// Evaluation: every sample once, in order, without randomness.
    pub fn eval(batch: usize) -> LoaderOptions {
        LoaderOptions { mode: Mode::Eval, passes: Passes::Once, ..LoaderOptions::train(0, batch) }
    }
}

/// Delivers batches in order.
pub struct Loader {
    queue: Option<Receiver<Result<Batch, DataError>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    transform: Arc<Transform>,
    spares: Arc<Spares>,
    order: Order,
    waited: Duration,
    delivered: u64,
    skips: Skips,
    max_bad: f64,
    judge_after: u64,
}

impl Loader {
    /// Starts to load. Resuming is starting with `start_sample`: the batches are those of the unbroken run.
    ///
    /// # Errors
    /// The pipeline is not well formed, a word list cannot be had, or threads cannot be started.
    pub fn new(
        pipeline: &Pipeline,
        source: Arc<dyn SampleSource>,
        options: &LoaderOptions,
    ) -> Result<Loader, DataError> {
        let fail = |reason: String| DataError::Pipeline { pipeline: pipeline.name.clone(), reason };
        if source.is_empty() || options.batch == 0 {
            return Err(fail("a batch needs at least one sample".into()));
        }
        let transform = Arc::new(Transform::new(pipeline, options.mode, source.as_ref(), &options.vocabularies)?);
        let shuffled = options.mode == Mode::Train && pipeline.shuffle.is_some();
        let order = Order::new(source.len(), options.seed, shuffled, options.batch as u64);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.workers.max(1))
            .thread_name(|i| format!("decode-{i}"))
            .build()
            .map_err(|error| fail(format!("cannot start decoding threads: {error}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let prefetch = options.prefetch.max(1);
        let (send, queue) = sync_channel(prefetch);
        let spares = Arc::new(Spares::new(options.batch, prefetch + 2));
        let maker = Maker {
            declared: pipeline.source.clone(),
            source,
            transform: transform.clone(),
            spares: spares.clone(),
            order,
            stop: stop.clone(),
            batch: options.batch,
        };
        let (start, passes) = (options.start_sample, options.passes);
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(move || pool.install(|| maker.make_all(start, passes, &send)))
            .map_err(|error| fail(format!("cannot start the loading thread: {error}")))?;
        Ok(Loader {
            queue: Some(queue),
            stop,
            thread: Some(thread),
            transform,
            spares,
            order,
            waited: Duration::ZERO,
            delivered: 0,
            skips: Skips::default(),
            max_bad: options.max_bad,
            judge_after: options.judge_after,
        })
    }

    /// The next batch; `None` after the last of [`Passes::Once`].
    ///
    /// # Errors
    /// Too many samples cannot be used.
    // Not an iterator: an error must not be passed over.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Batch>, DataError> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let start = Instant::now();
        let received = queue.recv();
        let waited = start.elapsed();
        self.waited += waited;
        let mut batch = match received {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Err(self.close_with(error)),
            // The thread has ended: done, unless it ended by a panic.
            Err(_) => {
                self.queue = None;
                return match self.thread.take().map(JoinHandle::join) {
                    Some(Err(_)) => Err(DataError::Stopped),
                    _ => Ok(None),
                };
            }
        };
        batch.waited = waited;
        self.delivered += batch.valid as u64;
        batch.skipped.iter().for_each(|skipped| self.skips.add(skipped));
        if let Some(last) = batch.skipped.last()
            && self.delivered >= self.judge_after
            && self.skips.count() as f64 > self.max_bad * self.delivered as f64
        {
            let error = DataError::TooManyBad {
                bad: self.skips.count(),
                seen: self.delivered,
                allowed: self.max_bad,
                from: self.judge_after,
                last: last.to_string(),
            };
            return Err(self.close_with(error));
        }
        Ok(Some(batch))
    }

    /// Takes a batch that is done with, so that another can be made in its memory. What is delivered is the same whether or
    /// not batches are given back; a batch of another loader is dropped.
    pub fn give_back(&mut self, batch: Batch) {
        self.spares.give(&self.transform, batch);
    }

    fn close_with(&mut self, error: DataError) -> DataError {
        self.queue = None;
        error
    }

    /// The order of the samples: epoch length, steps.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The body that runs; it has the tokenizer.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// How long the consumer has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Samples delivered, and how many of them could not be used and were replaced.
    pub fn counts(&self) -> (u64, u64) {
        (self.delivered, self.skips.count())
    }

    /// Samples that could not be used, by reason.
    pub fn skips(&self) -> &Skips {
        &self.skips
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Frees the thread where it waits for a place in the queue.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has nothing more to say here.
            let _ = thread.join();
        }
    }
}

/// What makes batches.
struct Maker {
    declared: Source,
    source: Arc<dyn SampleSource>,
    transform: Arc<Transform>,
    spares: Arc<Spares>,
    order: Order,
    stop: Arc<AtomicBool>,
    batch: usize,
}

/// What is known about a sample, by name.
type Labels = BTreeMap<String, i64>;

/// What became of one row.
struct Made {
    index: u64,
    labels: Labels,
    skipped: Option<Skipped>,
}

impl Maker {
    fn make_all(&self, start: u64, passes: Passes, send: &SyncSender<Result<Batch, DataError>>) {
        let mut first = start;
        while !self.stop.load(Ordering::Relaxed) {
            let valid = match passes {
                Passes::Endless => self.batch,
                Passes::Once => self.order.epoch_len().saturating_sub(first).min(self.batch as u64) as usize,
            };
            if valid == 0 {
                return;
            }
            let Some(made) = self.make(first, valid) else { return };
            let failed = made.is_err();
            if send.send(made).is_err() || failed {
                return;
            }
            first += self.batch as u64;
        }
    }

    /// One batch; `None` when told to stop.
    fn make(&self, first: u64, valid: usize) -> Option<Result<Batch, DataError>> {
        let mut tensors = match self.spares.take(&self.transform) {
            Ok(tensors) => tensors,
            Err(error) => return Some(Err(error.into())),
        };
        let samples = self.order.samples(first, self.batch as u64);
        let mut rows = rows_of(&mut tensors, self.batch);
        let read: Option<Vec<Result<Labels, SampleError>>> = rows
            .par_iter_mut()
            .zip(&samples)
            .map(|(slots, &(epoch, index))| {
                let stopped = self.stop.load(Ordering::Relaxed);
                if stopped { None } else { Some(self.read(epoch, index, slots)) }
            })
            .collect();
        let replaced = self.replace((first, &samples), read?, &mut rows);
        drop(rows);
        let made = match replaced {
            Ok(made) => made,
            Err(error) => return Some(Err(error)),
        };
        let mut batch = Batch {
            tensors: BTreeMap::new(),
            first_sample: first,
            valid,
            rows: Vec::with_capacity(self.batch),
            labels: BTreeMap::new(),
            skipped: Vec::new(),
            waited: Duration::ZERO,
        };
        for made in made {
            batch.rows.push(made.index);
            batch.skipped.extend(made.skipped);
            for (name, label) in made.labels {
                batch.labels.entry(name).or_default().push(label);
            }
        }
        // Rows beyond the end of a pass were counted in their own place.
        batch.skipped.retain(|skipped| skipped.row < valid);
        let names = self.transform.outputs().map(|(name, _)| name.to_string());
        batch.tensors = names.zip(tensors).collect();
        Some(Ok(batch))
    }

    /// Rows with what was read into them, or with a stand-in for what could not be. One row after the other, so that the same
    /// samples stand in whatever was read first, and no sample stands in twice.
    fn replace(
        &self,
        (first, samples): (u64, &[(u64, u64)]),
        read: Vec<Result<Labels, SampleError>>,
        rows: &mut [Vec<Row<'_>>],
    ) -> Result<Vec<Made>, DataError> {
        let mut present: HashSet<u64> = samples.iter().map(|&(_, index)| index).collect();
        let mut all = Vec::with_capacity(read.len());
        for (row, (read, slots)) in read.into_iter().zip(rows).enumerate() {
            let (sample, (epoch, index)) = (first + row as u64, samples[row]);
            let made = match read {
                Ok(labels) => Made { index, labels, skipped: None },
                Err(reason) => {
                    let (name, reason) = (self.source.name(index), reason.to_string());
                    self.stand_in(Skipped { sample, row, index, name, reason }, epoch, &present, slots)?
                }
            };
            present.insert(made.index);
            all.push(made);
        }
        Ok(all)
    }

    /// Fills a row with the first usable stand-in: a sample that is in the batch already only if there is no other.
    fn stand_in(
        &self,
        skipped: Skipped,
        epoch: u64,
        present: &HashSet<u64>,
        slots: &mut [Row<'_>],
    ) -> Result<Made, DataError> {
        let mut tried = HashSet::from([skipped.index]);
        let candidates = self.candidates(skipped.sample, present).filter(|&index| tried.insert(index));
        let mut attempts = 0;
        for index in candidates.take(MAX_ATTEMPTS) {
            if self.stop.load(Ordering::Relaxed) {
                // Nobody is there to be told.
                return Err(DataError::Stopped);
            }
            attempts += 1;
            // A stand-in that is bad too is not counted: it will be in its own place.
            if let Ok(labels) = self.read(epoch, index, slots) {
                return Ok(Made { index, labels, skipped: Some(skipped) });
            }
        }
        Err(DataError::NoReplacement { first: skipped.to_string(), attempts })
    }

    /// Stand-ins for a sample, the best first: drawn ones that are not in the batch, whatever else is not, and drawn ones
    /// that are.
    fn candidates(&self, sample: u64, present: &HashSet<u64>) -> impl Iterator<Item = u64> {
        let drawn: Vec<u64> = (1..=MAX_ATTEMPTS as u32).map(|attempt| self.order.reserve(sample, attempt)).collect();
        let (len, begin) = (self.order.epoch_len(), drawn[0]);
        let is_free = |index: &u64| !present.contains(index);
        let (free, taken): (Vec<u64>, Vec<u64>) = drawn.into_iter().partition(is_free);
        let others = (1..len).map(move |step| (begin + step) % len).filter(is_free);
        free.into_iter().chain(others).chain(taken)
    }

    fn read(&self, epoch: u64, index: u64, slots: &mut [Row<'_>]) -> Result<Labels, SampleError> {
        // A decoder that panics on a hostile file loses that sample and nothing else; rows are overwritten by the next try.
        let read = caught(|| {
            let sample = self.source.read(index)?;
            check_fields(&self.declared, &sample)?;
            let labels = sample.labels.clone();
            self.transform.run(sample, (&self.order, epoch, index), slots)?;
            Ok(labels)
        });
        read.unwrap_or_else(|words| Err(SampleError(format!("the decoder panicked: {words}"))))
    }
}

/// Cuts the tensors into the rows of each sample.
fn rows_of(tensors: &mut [HostTensor], batch: usize) -> Vec<Vec<Row<'_>>> {
    let mut rows: Vec<Vec<Row<'_>>> = (0..batch).map(|_| Vec::with_capacity(tensors.len())).collect();
    for tensor in tensors {
        match tensor.data_mut() {
            Data::F32(data) => {
                let length = (data.len() / batch).max(1);
                data.chunks_exact_mut(length).zip(&mut rows).for_each(|(chunk, row)| row.push(Row::F32(chunk)));
            }
            Data::I32(data) => {
                let length = (data.len() / batch).max(1);
                data.chunks_exact_mut(length).zip(&mut rows).for_each(|(chunk, row)| row.push(Row::I32(chunk)));
            }
            // `Transform::allocate` makes no others.
            Data::Bf16(_) | Data::F16(_) | Data::Bool(_) => {}
        }
    }
    rows
}

/// What a pipeline delivers per second when nothing else runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Throughput {
    /// Samples delivered.
    pub samples: u64,
    /// Wall time, without opening the source.
    pub elapsed: Duration,
    /// Samples that could not be used.
    pub skipped: Vec<Skipped>,
}

impl Throughput {
    /// Samples per second.
    pub fn rate(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Runs `batches` batches of a pipeline and throws them away.
///
/// # Errors
/// As [`Loader::new`] and [`Loader::next`].
pub fn measure(
    pipeline: &Pipeline,
    source: Arc<dyn SampleSource>,
    options: &LoaderOptions,
    batches: usize,
) -> Result<Throughput, DataError> {
    let mut loader = Loader::new(pipeline, source, options)?;
    let start = Instant::now();
    let mut skipped = Vec::new();
    for _ in 0..batches {
        let Some(batch) = loader.next()? else { break };
        skipped.extend_from_slice(&batch.skipped);
        loader.give_back(batch);
    }
    Ok(Throughput { samples: loader.counts().0, elapsed: start.elapsed(), skipped })
}
