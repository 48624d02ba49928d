//! How fast a pipeline is when nothing else runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alip_plan::pipeline::Pipeline;

use super::{DataError, Loader, LoaderOptions, SampleSource, Skipped, Work};

/// What a pipeline delivers per second when nothing else runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Throughput {
    /// Samples delivered.
    pub samples: u64,
    /// Wall time, without opening the source.
    pub elapsed: Duration,
    /// Samples that could not be used.
    pub skipped: Vec<Skipped>,
    /// Threads that prepared samples.
    pub workers: usize,
    /// What they did meanwhile.
    pub work: Work,
}

impl Throughput {
    /// Samples per second.
    pub fn rate(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Samples per second that the workers prepare who never wait: what the loader delivers at most.
    pub fn prepared(&self) -> f64 {
        self.work.rate(self.work.busy, self.workers)
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
    let (elapsed, work) = (start.elapsed(), loader.work());
    Ok(Throughput { samples: loader.counts().0, elapsed, skipped, workers: options.workers.max(1), work })
}
