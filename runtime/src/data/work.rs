//! How long the workers are at work, and over what.
//!
//! A loader has one stage that takes time, the preparing of samples by its workers, and each sample passes through the source and
//! the ops of the body one after another on one of them. So nothing can be delivered faster than all workers prepare that never
//! wait: what is delivered of that says what the rest of the loader costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Adds up time over threads.
#[derive(Debug, Default)]
struct Spent(AtomicU64);

impl Spent {
    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        // Of a sample's work there are no 2^64 nanoseconds.
        self.0.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// What the threads of a loader have done so far.
#[derive(Debug)]
pub(super) struct Clock {
    samples: AtomicU64,
    busy: Spent,
    /// The source, then the ops of the body.
    stages: Vec<(&'static str, Spent)>,
}

impl Clock {
    pub(super) fn new(ops: impl Iterator<Item = &'static str>) -> Clock {
        let stages = std::iter::once("source").chain(ops).map(|name| (name, Spent::default())).collect();
        Clock { samples: AtomicU64::new(0), busy: Spent::default(), stages }
    }

    /// A worker prepares a sample.
    pub(super) fn sample<T>(&self, work: impl FnOnce() -> T) -> T {
        let result = self.busy.over(work);
        self.samples.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// The source gives a sample.
    pub(super) fn source<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stages[0].1.over(work)
    }

    /// An op of the body runs, counted from 0.
    pub(super) fn op<T>(&self, position: usize, work: impl FnOnce() -> T) -> T {
        self.stages[position + 1].1.over(work)
    }

    pub(super) fn read(&self) -> Work {
        Work {
            samples: self.samples.load(Ordering::Relaxed),
            busy: self.busy.get(),
            stages: self.stages.iter().map(|(name, spent)| (*name, spent.get())).collect(),
        }
    }
}

/// What the workers of a loader have done.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Samples prepared, also those of batches that nobody has taken yet.
    pub samples: u64,
    /// Time that they were at work, of all workers together; with fewer cores than threads, what they waited for a core too.
    pub busy: Duration,
    /// The part of that in each stage: the source, then the ops of the body in their order.
    pub stages: Vec<(&'static str, Duration)>,
}

impl Work {
    /// Samples per second that `workers` of them prepare in a stage that takes this long in all.
    pub fn rate(&self, time: Duration, workers: usize) -> f64 {
        self.samples as f64 * workers as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}
