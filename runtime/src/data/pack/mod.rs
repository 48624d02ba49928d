//! Packing: the samples of any source, in order, into record files or shards that are read faster and need nothing else.
//!
//! Invariants:
//! - What is written is a function of the source, the captions and the options: not of workers, of timing, or of how often it was
//!   killed on the way. Samples stand in the source's order; those that cannot be used are left out and counted by reason.
//! - Whatever is not finished ends in `.part`; a journal beside it says how much of that is sound. Final names appear at the end,
//!   of whole files only.
//! - Memory is bounded by the workers, and does not grow with the samples (with captions: 16 bytes and a bit for each; with a list: 8).

mod captions;
mod entry;
mod journal;
mod only;
mod output;
mod texts;
mod to;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use alip_plan::pipeline::{Mode, Pipeline, Vocab};
use rayon::prelude::*;

use self::entry::{Made, Maker};
use self::output::Output;
pub use self::to::PackTo;
use super::{DataError, Skipped, Skips};

/// Samples that each worker prepares between two deliveries: enough that the last one of them keeps the others waiting for a
/// few percent of the time.
const EACH: u64 = 16;

/// How much work a kill costs at most. What is written is made to reach the disk as often.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Samples to read before the share of bad ones is judged, as in training.
const JUDGE_AFTER: u64 = 1_000;

/// What to pack, and into what.
#[derive(Clone, Debug)]
pub struct Packing {
    /// Its source is packed; how it tokenizes a text is how the text is tokenized in records.
    pub pipeline: Pipeline,
    /// The training split, or the evaluation split.
    pub mode: Mode,
    /// Record file or shards.
    pub to: PackTo,
    /// Names of the texts, in the order they are to have. None means all that the pipeline tokenizes, or the source's token rows.
    pub texts: Option<Vec<String>>,
    /// Length of the token rows in place of the pipeline's.
    pub context: Option<u32>,
    /// Vocabulary of the token rows in place of the pipeline's.
    pub vocab: Option<Vocab>,
    /// A file of lines `{"key": "...", "caption": "..."}`, which gives every sample the text `caption`.
    pub captions: Option<PathBuf>,
    /// A list of the samples that are packed, lines with a `key`; all of them without.
    pub only: Option<PathBuf>,
    /// The shorter side that larger images are scaled down to, in pixels, and the quality (1 to 100) of the JPEG that is made
    /// of them. Without it the bytes of images stay as they are.
    pub resize: Option<(u32, u8)>,
    /// Threads that prepare samples.
    pub workers: usize,
    /// Largest share of samples that may be unusable, judged from the 1,000th on.
    pub max_bad: f64,
    /// Begin anew, whatever is there.
    pub again: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Samples of the source.
    pub samples: u64,
    /// How many of these were seen before, by a process that was stopped.
    pub resumed: u64,
    /// Samples seen.
    pub seen: u64,
    /// Samples written.
    pub written: u64,
    /// Those that were not.
    pub skips: Skips,
    /// Lines of captions that no sample has the key of, and the first key of these.
    pub unused: Option<(u64, String)>,
    /// Keys of the list that no sample has.
    pub not_found: u64,
    /// Names of the packed texts, and what they were made.
    pub texts: Vec<String>,
    /// Bytes written.
    pub bytes: u64,
    /// Whether all is done, and the files have their names.
    pub is_done: bool,
}

/// Packs a source; `watch` learns now and then how many samples are seen, and of how many. When `stop` is set, what is done is
/// kept, to be continued by the same call.
///
/// # Errors
/// The source or the captions cannot be opened, an option does not fit them, files cannot be written or are not those of the
/// same call, too many samples are bad, or none is good.
pub fn pack(packing: &Packing, stop: &AtomicBool, mut watch: impl FnMut(u64, u64)) -> Result<Packed, DataError> {
    let maker = Maker::open(packing)?;
    let samples = maker.len();
    if let Some(path) = maker.read_of(&packing.to.finished()?) {
        return Err(DataError::file(&path, "the source reads it, and it would be replaced", "give another --to"));
    }
    let mut output = Output::begin(&packing.to, &maker.about(packing)?, packing.again, maker.lines())?;
    let resumed = output.seen();
    // Given again and again, it would otherwise get some samples further each time.
    judge(&mut output, packing.max_bad)?;
    let workers = packing.workers.max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).thread_name(|i| format!("pack-{i}")).build();
    let pool = pool.map_err(|error| maker.fail(format!("cannot start {workers} threads: {error}")))?;
    let (send, chunks) = sync_channel(1);
    std::thread::scope(|scope| {
        let (maker, left) = (&maker, resumed..samples);
        scope.spawn(move || prepare(maker, &pool, left, workers as u64 * EACH, &send));
        let mut committed = Instant::now();
        // Returning drops `chunks`, which ends the thread that fills it.
        for chunk in chunks {
            for made in chunk {
                let index = output.seen();
                if !take(&mut output, maker, index, made?)? {
                    judge(&mut output, packing.max_bad)?;
                }
            }
            watch(output.seen(), samples);
            let stopped = stop.load(Ordering::Relaxed);
            if stopped || committed.elapsed() >= COMMIT_EVERY {
                output.commit()?;
                committed = Instant::now();
            }
            if stopped {
                break;
            }
        }
        Ok::<(), DataError>(())
    })?;
    judge(&mut output, packing.max_bad)?;
    let is_done = output.seen() == samples;
    let unused = if is_done { maker.unused(output.used())? } else { None };
    let not_found = if is_done { maker.not_found(output.used()) } else { 0 };
    let (seen, written, skips) = (output.seen(), output.written(), output.skips().clone());
    if is_done && written == 0 {
        output.discard()?;
        return Err(maker.nothing(samples, &skips));
    }
    let bytes = if is_done { output.finish()? } else { output.bytes() };
    Ok(Packed { samples, resumed, seen, written, skips, unused, not_found, texts: maker.texts(), bytes, is_done })
}

/// Prepares samples in parallel and gives them on in order, until nobody takes them any more.
fn prepare(
    maker: &Maker,
    pool: &rayon::ThreadPool,
    left: std::ops::Range<u64>,
    chunk: u64,
    send: &SyncSender<Vec<Result<Made, DataError>>>,
) {
    for from in left.clone().step_by(chunk as usize) {
        let to = (from + chunk).min(left.end);
        let made = pool.install(|| (from..to).into_par_iter().map(|index| maker.make(index)).collect());
        if send.send(made).is_err() {
            return;
        }
    }
}

/// Writes what was made of a sample, or counts why nothing was; whether it is as it should be.
fn take(output: &mut Output, maker: &Maker, index: u64, made: Made) -> Result<bool, DataError> {
    if let Some(line) = made.line
        && !output.uses(line)
    {
        return Err(maker.twice(index));
    }
    if made.is_left_out {
        output.pass();
        return Ok(true);
    }
    if let Some(at) = made.listed
        && !output.uses(at)
    {
        return Err(maker.listed_twice(index));
    }
    let written = match made.entry {
        Ok(entry) => output.write(entry)?,
        Err(why) => Err(why),
    };
    let skipped = written.err().map(|why| Skipped {
        sample: index,
        row: 0,
        index,
        name: maker.name(index),
        reason: why.to_string(),
    });
    let is_written = skipped.is_none();
    output.count(skipped);
    Ok(is_written)
}

/// Too many bad samples end it; what is done is kept.
fn judge(output: &mut Output, allowed: f64) -> Result<(), DataError> {
    let (seen, bad) = (output.seen(), output.skips().count());
    if seen < JUDGE_AFTER || bad as f64 <= allowed * seen as f64 {
        return Ok(());
    }
    let error = DataError::TooManyBad { bad, seen, allowed, from: JUDGE_AFTER, last: output.last_skipped().into() };
    output.commit()?;
    Err(error)
}

#[cfg(test)]
mod tests;
