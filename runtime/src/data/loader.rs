//! Batches, in order, ahead of time.
//!
//! `prefetch + 1` threads each make a batch, or hold one that waits to be taken; a pool of `workers` threads reads the samples
//! of all of them, those of the next batch first, and writes its rows straight into the batch's tensors. So at most
//! `prefetch + 2` batches exist at a time (those and the one the consumer holds; spare tensors are among them), however slow
//! the consumer is, and no result depends on timing. A stand-in for a bad sample is read on the thread of its batch.
//!
//! Dropping the loader stops the threads within one sample's work and joins them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alip_plan::pipeline::{Mode, Pipeline};

use super::maker::{Maker, Place, Recipe, Turn};
use super::samples::Samples;
use super::spares::Spares;
use super::streams::{self, Streams};
use super::work::{Clock, Work};
use super::{DataError, Order, SampleSource, Skipped, Skips, Transform, Vocabularies};
use crate::tensor::HostTensor;

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
    /// The source's index of the sample in each row; of shards that are read in sequence, the global place where it stands.
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
    /// Where the batches will be, in order.
    queue: Option<Receiver<Place>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    recipe: Arc<Recipe>,
    spares: Arc<Spares>,
    waited: Duration,
    delivered: u64,
    skips: Skips,
    epoch_len: Option<u64>,
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
        let sequence = source.sequence();
        if (source.is_empty() && sequence.is_none()) || options.batch == 0 {
            return Err(fail("a batch needs at least one sample".into()));
        }
        if sequence.is_some() && options.passes == Passes::Once {
            return Err(fail("shards that are read in sequence are trained on, and have no pass that ends".into()));
        }
        let transform = Arc::new(Transform::new(pipeline, options.mode, source.as_ref(), &options.vocabularies)?);
        let shuffled = options.mode == Mode::Train && pipeline.shuffle.is_some();
        let order = match source.mixture().filter(|_| shuffled) {
            Some(mixture) => Order::mixed(mixture, options.seed, options.batch as u64).map_err(fail)?,
            None => Order::new(source.len(), options.seed, shuffled, options.batch as u64),
        };
        let epoch_len =
            sequence.as_ref().map_or(Some(order.epoch_len()), |_| Some(source.len()).filter(|len| *len > 0));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.workers.max(1))
            .thread_name(|i| format!("decode-{i}"))
            .build()
            .map_err(|error| fail(format!("cannot start decoding threads: {error}")))?;
        let samples = match sequence {
            None => Samples::Anywhere(source, order.clone()),
            Some(sequence) => {
                let mixed = pipeline.shuffle.as_ref().filter(|_| shuffled);
                let mixed = mixed.map(|shuffle| shuffle.buffer.unwrap_or(streams::MIXED));
                let (seed, start) = (options.seed, options.start_sample);
                let options = streams::Options { seed, mixed, batch: options.batch as u64, start };
                Samples::InSequence(pool.install(|| Streams::new(sequence, &options))?)
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let makers = options.prefetch.max(1) + 1;
        let (places, queue) = channel();
        let spares = Arc::new(Spares::new(options.batch, makers + 1));
        let clock = Clock::new(transform.ops());
        let recipe = Arc::new(Recipe {
            declared: pipeline.source.clone(),
            samples,
            transform,
            order,
            stop: stop.clone(),
            batch: options.batch,
            passes: options.passes,
            pool,
            clock,
        });
        let maker = Arc::new(Maker {
            recipe: recipe.clone(),
            spares: spares.clone(),
            turn: Mutex::new(Turn { first: options.start_sample, places }),
        });
        let mut loader = Loader {
            queue: Some(queue),
            stop,
            threads: Vec::with_capacity(makers),
            recipe,
            spares,
            waited: Duration::ZERO,
            delivered: 0,
            skips: Skips::default(),
            epoch_len,
            max_bad: options.max_bad,
            judge_after: options.judge_after,
        };
        for number in 0..makers {
            let maker = maker.clone();
            let thread = std::thread::Builder::new().name(format!("loader-{number}"));
            let thread = thread.spawn(move || maker.make_all());
            // Those that were started end when the loader is dropped.
            loader.threads.push(thread.map_err(|error| fail(format!("cannot start a loading thread: {error}")))?);
        }
        Ok(loader)
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
        // There are no more places when all threads have ended.
        let Ok(place) = queue.recv() else {
            self.queue = None;
            return Ok(None);
        };
        let received = place.recv();
        let waited = start.elapsed();
        self.waited += waited;
        let mut batch = match received {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Err(self.close_with(error)),
            // Its thread ended by a panic.
            Err(_) => return Err(self.close_with(DataError::Stopped)),
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

    /// The batch that begins at a sample, made now; those that [`Loader::next`] gives are the same whether or not it was asked
    /// for. What it skips is not counted.
    ///
    /// # Errors
    /// A sample cannot be used, nor any that could stand in.
    pub fn batch_at(&mut self, first: u64) -> Result<Batch, DataError> {
        let tensors = self.recipe.transform.allocate(self.recipe.batch)?;
        self.recipe.make(first, tensors, || ()).unwrap_or(Err(DataError::Stopped))
    }

    /// What the sample of a row is called, by what [`Batch::rows`] has.
    pub fn name(&self, index: u64) -> String {
        self.recipe.samples.name(index)
    }

    /// Takes a batch that is done with, so that another can be made in its memory. What is delivered is the same whether or
    /// not batches are given back; a batch of another loader is dropped.
    pub fn give_back(&mut self, batch: Batch) {
        self.spares.give(&self.recipe.transform, batch);
    }

    fn close_with(&mut self, error: DataError) -> DataError {
        self.queue = None;
        error
    }

    /// Samples of an epoch; `None` where nobody has said how many there are.
    pub fn epoch_len(&self) -> Option<u64> {
        self.epoch_len
    }

    /// The body that runs; it has the tokenizer.
    pub fn transform(&self) -> &Transform {
        &self.recipe.transform
    }

    /// How long the consumer has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// What the workers have done so far.
    pub fn work(&self) -> Work {
        self.recipe.clock.read()
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
        // Frees the threads that wait for their batch to be taken.
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A panic of the thread has nothing more to say here.
            let _ = thread.join();
        }
    }
}
