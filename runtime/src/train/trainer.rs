//! The training loop.
//!
//! Invariants:
//! - The loop holds no state of the training: weights, moments, momenta, counters are in the session, the place in the data
//!   is one number. So a run that is killed at any moment and resumed takes the same steps as one that is not.
//! - Nothing here knows a terminal; what people see goes through [`Watch`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use alip_plan::{PROGRAM_TRAIN, Plan, STATE_LOSS_SCALE, STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS};

use super::checkpoint::{self, CheckpointError, Checkpoints, Header};
use super::file::FileError;
use super::metrics::{MetricsLog, StepRecord};
use super::run_dir::{RunDir, RunInfo};
use crate::data::{Batch, DataError, Loader};
use crate::exec::{ExecError, NonFinite, RowTotals, Session};
use crate::tensor::HostTensor;

/// Where batches come from: a [`Loader`], or anything that gives one global batch after the other without end.
pub trait Feed {
    /// The next batch.
    ///
    /// # Errors
    /// The data cannot be delivered.
    fn next(&mut self) -> Result<Batch, DataError>;

    /// Samples of an epoch, where there are epochs.
    fn epoch_len(&self) -> Option<u64>;
}

impl Feed for Loader {
    fn next(&mut self) -> Result<Batch, DataError> {
        // Training is endless, so a loader that ends has stopped for no reason.
        Loader::next(self)?.ok_or(DataError::Stopped)
    }

    fn epoch_len(&self) -> Option<u64> {
        Some(self.order().epoch_len())
    }
}

/// What happens during a run, for people.
pub trait Watch {
    /// A step was taken.
    fn step(&mut self, record: &StepRecord, of: u64);
    /// Something worth a line: a skipped sample, a checkpoint.
    fn note(&mut self, text: &str);
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The plan cannot train.
    #[error("the plan of `{0}` has no program `train`: its spec has no `train` section")]
    NoTraining(String),
    /// The program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The data cannot be delivered.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A count that the plan's 32-bit counters cannot hold.
    #[error("{what} {value} is too large: at most {}", i32::MAX)]
    TooLarge {
        /// `--steps`, `--seed`.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// A loss or gradient is not a number.
    #[error("{0}")]
    Diverged(Box<Divergence>),
}

/// A loss scale below this cannot be what made gradients overflow: the run has diverged.
const LEAST_SCALE: f64 = 1.0;

/// A step whose loss or gradient is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The step that failed, counted from 1.
    pub step: u64,
    /// The metric that showed it; `None` when only the state did not move.
    pub metric: Option<(String, f64)>,
    /// The first value of the step that is not finite, and the number of launches of the program.
    pub first: Option<(NonFinite, usize)>,
    /// Global indices of the first sample of the batch and of the one after the last.
    pub samples: (u64, u64),
    /// Where the state before the step is.
    pub saved: Option<std::path::PathBuf>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}: ", self.step)?;
        match &self.metric {
            Some((name, value)) => write!(f, "metric `{name}` is {value}.")?,
            None => write!(f, "the gradient is not finite, so the step was not taken.")?,
        }
        match &self.first {
            Some((first, launches)) => {
                let place = if first.origin.is_empty() { "the top of the graph" } else { &first.origin };
                let (step, element, value) = (first.step + 1, first.element, first.value);
                write!(f, " The first value that is not finite was made by `{place}`")?;
                write!(f, " ({value} at element {element}, launch {step} of {launches}).")?;
            }
            None => write!(f, " No single operation of the step gave NaN or infinity when it was run again.")?,
        }
        write!(f, " The batch was samples {} to {}.", self.samples.0, self.samples.1.saturating_sub(1))?;
        match &self.saved {
            Some(path) => write!(f, " The state before the step is saved in {}.", path.display())?,
            None => write!(f, " The last checkpoint is the newest state that is sound.")?,
        }
        write!(f, " A lower learning rate or a longer warm-up is the usual cure")
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Steps taken.
    pub step: u64,
    /// Global index of the next sample.
    pub cursor: u64,
}

/// Puts the state at the beginning of a run: initial weights from the seed, and the number of steps that the schedule needs.
///
/// # Errors
/// A number beyond 32 bits, or the device fails.
pub fn begin(session: &mut Session, seed: u64, steps: u64) -> Result<Position, TrainError> {
    let narrow = |what, value: u64| i32::try_from(value).map_err(|_| TrainError::TooLarge { what, value });
    let (seed, steps) = (narrow("--seed", seed)?, narrow("--steps", steps)?);
    session.init(seed)?;
    for (path, value) in [(STATE_SEED, seed), (STATE_TOTAL_STEPS, steps)] {
        if session.plan().state(path).is_some() {
            session.write_state(path, &HostTensor::scalar_i32(value))?;
        }
    }
    Ok(Position { step: 0, cursor: 0 })
}

/// Puts the state at the newest checkpoint of a run, or at its beginning if it was killed before the first.
///
/// # Errors
/// The checkpoint is damaged or not of this plan, or the device fails.
pub fn resume(session: &mut Session, info: &RunInfo, checkpoints: &Checkpoints) -> Result<Position, TrainError> {
    match checkpoints.latest() {
        None => begin(session, info.seed, info.steps),
        Some(path) => {
            let header = checkpoint::restore(&path, session)?;
            Ok(Position { step: header.step, cursor: header.cursor })
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Whether all steps were taken; otherwise somebody asked to stop.
    pub finished: bool,
    /// Where it stands.
    pub position: Position,
    /// The last checkpoint.
    pub checkpoint: Option<std::path::PathBuf>,
    /// The last step.
    pub last: Option<StepRecord>,
    /// Rows of the steps taken, where the plan's step is packed.
    pub rows: RowTotals,
}

/// A run in progress.
pub struct Trainer<'a> {
    /// State and programs.
    pub session: &'a mut Session,
    /// Batches, from the position on.
    pub feed: &'a mut dyn Feed,
    /// Where files go.
    pub run: &'a RunDir,
    /// What was asked for.
    pub info: &'a RunInfo,
    /// Checkpoints; the newest ones are kept.
    pub checkpoints: Checkpoints,
    /// Steps between checkpoints; there is always one at the end.
    pub checkpoint_every: u64,
    /// Set from outside to finish the step, save and return.
    pub stop: &'a AtomicBool,
    /// What people see.
    pub watch: &'a mut dyn Watch,
}

impl Trainer<'_> {
    /// Trains from `position` to the last step.
    ///
    /// # Errors
    /// The data, the device or the disk fails, or the loss is no number. After an error the newest checkpoint holds.
    pub fn train(&mut self, position: Position) -> Result<Summary, TrainError> {
        let plan = self.session.plan().clone();
        let train = plan.train.clone().ok_or_else(|| TrainError::NoTraining(plan.name.clone()))?;
        let metrics = metrics(&plan, &train.loss, &train.metrics);
        let wanted: Vec<&str> = metrics.iter().map(String::as_str).collect();
        let mut log = MetricsLog::open(self.run.root(), position.step)?;
        let (checkpoint, rows) = (self.checkpoints.latest(), RowTotals::default());
        let mut summary = Summary { finished: false, position, checkpoint, last: None, rows };
        let mut at = position;
        while at.step < self.info.steps && !self.stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let batch = self.feed.next()?;
            for skipped in &batch.skipped {
                self.watch.note(&format!("skipped {skipped}"));
            }
            let outputs = self.session.run_for(PROGRAM_TRAIN, &batch.tensors, &wanted)?;
            if let Some(run) = self.session.rows_run(PROGRAM_TRAIN) {
                summary.rows.add(run);
            }
            let values = wanted.iter().filter_map(|&name| Some((name.to_string(), outputs.get(name)?.first()?)));
            let seconds = started.elapsed().as_secs_f64().max(1e-9);
            let after = at.cursor + train.batch;
            let record = StepRecord {
                step: at.step + 1,
                epoch: self.feed.epoch_len().map(|len| after as f64 / len.max(1) as f64),
                metrics: values.collect(),
                samples_per_s: train.batch as f64 / seconds,
                data_wait: batch.waited.as_secs_f64() / seconds,
            };
            if !self.check(&record, &train.loss, at, &batch)? {
                at.cursor = after;
                summary.position = at;
                continue;
            }
            log.write(&record)?;
            self.watch.step(&record, self.info.steps);
            at = Position { step: record.step, cursor: after };
            summary.last = Some(record);
            let due = at.step.is_multiple_of(self.checkpoint_every.max(1)) || at.step == self.info.steps;
            summary.position = at;
            if due {
                summary.checkpoint = Some(self.save(at)?);
            }
        }
        summary.finished = at.step >= self.info.steps;
        let saved = self.checkpoints.list().last().map(|(step, _)| *step);
        if saved != Some(at.step) {
            summary.checkpoint = Some(self.save(at)?);
        }
        Ok(summary)
    }

    fn save(&mut self, at: Position) -> Result<std::path::PathBuf, TrainError> {
        let header = Header {
            format: checkpoint::FORMAT,
            spec: self.info.spec.clone(),
            step: at.step,
            cursor: at.cursor,
            seed: self.info.seed,
            plan: self.info.plan.clone(),
        };
        Ok(self.checkpoints.save(self.session, &header)?)
    }

    /// Whether the step was taken: one whose gradients overflowed under a loss scale was not. Stops any other run whose loss or
    /// gradient is not finite, and finds out where that came from.
    fn check(&mut self, record: &StepRecord, loss: &str, at: Position, batch: &Batch) -> Result<bool, TrainError> {
        let watched = [loss, "grad_norm"];
        let metric = watched.into_iter().find_map(|name| {
            let value = record.metric(name)?;
            (!value.is_finite()).then(|| (name.to_string(), value))
        });
        let taken = self.steps_taken()?;
        if metric.is_none() && taken.is_none_or(|taken| taken == record.step) {
            return Ok(true);
        }
        let loss_is_finite = record.metric(loss).is_none_or(f64::is_finite);
        if taken == Some(at.step)
            && loss_is_finite
            && let Some(scale) = self.loss_scale()?
            && scale >= LEAST_SCALE
        {
            let step = record.step;
            self.watch.note(&format!("step {step}: gradients overflowed, the batch is skipped; loss scale {scale}"));
            return Ok(false);
        }
        // The update is guarded: a step that is not finite leaves the state as it was. Only then is it worth saving.
        let saved = if taken == Some(at.step) { Some(self.save(at)?) } else { None };
        let first = self.session.first_nonfinite(PROGRAM_TRAIN, &batch.tensors)?;
        let launches = self.session.ran(PROGRAM_TRAIN)?.steps.len();
        let first = first.map(|first| (first, launches));
        let samples = (at.cursor, at.cursor + batch.rows.len() as u64);
        Err(TrainError::Diverged(Box::new(Divergence { step: record.step, metric, first, samples, saved })))
    }

    fn loss_scale(&mut self) -> Result<Option<f64>, TrainError> {
        if self.session.plan().state(STATE_LOSS_SCALE).is_none() {
            return Ok(None);
        }
        Ok(self.session.read_state(STATE_LOSS_SCALE)?.first())
    }

    fn steps_taken(&mut self) -> Result<Option<u64>, TrainError> {
        if self.session.plan().state(STATE_STEP).is_none() {
            return Ok(None);
        }
        Ok(self.session.read_state(STATE_STEP)?.first().map(|step| step as u64))
    }
}

/// The metrics that `train` outputs, the loss among them.
fn metrics(plan: &Plan, loss: &str, metrics: &[String]) -> Vec<String> {
    let exists = |name: &String| plan.programs.get(PROGRAM_TRAIN).is_some_and(|train| train.output(name).is_some());
    let mut names: Vec<String> = metrics.to_vec();
    if !metrics.iter().any(|name| name == loss) {
        names.insert(0, loss.to_string());
    }
    names.retain(exists);
    names
}
