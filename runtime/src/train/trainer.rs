//! The training loop.
//!
//! Invariants:
//! - The loop holds no state of the training: weights, moments, momenta, counters are in the session, the place in the data
//!   is one number. So a run that is killed at any moment and resumed takes the same steps as one that is not.
//! - Whatever ends a run, the state is saved first where there is a sound one. What does not touch the state (a log that cannot
//!   be written, a checkpoint that cannot be written now) ends no run.
//! - Nothing here knows a terminal; what people see goes through [`Watch`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alip_plan::{PROGRAM_TRAIN, Plan, STATE_HALTED, STATE_LOSS_SCALE, STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS};

use crate::data::{Batch, DataError, Loader};
use crate::exec::{ExecError, NonFinite, RowTotals, Session};
use crate::run::checkpoint::{self, CheckpointError, Header};
use crate::run::file::FileError;
use crate::run::log::MetricsLog;
use crate::run::{RunDir, StepRecord, Writer};
use crate::tensor::HostTensor;

/// Where batches come from: a [`Loader`], or anything that gives one global batch after the other without end.
pub trait Feed {
    /// The next batch.
    ///
    /// # Errors
    /// The data cannot be delivered.
    fn next(&mut self) -> Result<Batch, DataError>;

    /// Takes a batch that is done with; its memory may be used again.
    fn give_back(&mut self, batch: Batch) {
        drop(batch);
    }

    /// Samples of an epoch, where there are epochs.
    fn epoch_len(&self) -> Option<u64>;
}

impl Feed for Loader {
    fn next(&mut self) -> Result<Batch, DataError> {
        // Training is endless, so a loader that ends has stopped for no reason.
        Loader::next(self)?.ok_or(DataError::Stopped)
    }

    fn give_back(&mut self, batch: Batch) {
        Loader::give_back(self, batch);
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
    /// Training cannot go on, and the state is on disk.
    #[error("{why}. The state after step {step} is saved in {}; --resume continues from there", path.display())]
    Saved {
        /// What ended the run.
        why: Box<TrainError>,
        /// Steps taken.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
    },
    /// Training cannot go on, and its state cannot be saved.
    #[error("{why}. The state after step {step} could not be saved: {unsaved}. {}", newest(*step, saved.as_ref()))]
    Unsaved {
        /// What ended the run.
        why: Box<TrainError>,
        /// Steps taken.
        step: u64,
        /// Why the state is not on disk.
        unsaved: Box<TrainError>,
        /// Step and file of the newest checkpoint.
        saved: Option<(u64, PathBuf)>,
    },
    /// A step failed half way: what the device holds is the state of no step.
    #[error("step {step}: {why}. {}", newest(step.saturating_sub(1), saved.as_ref()))]
    Lost {
        /// What the device said.
        why: Box<ExecError>,
        /// The step that failed, counted from 1.
        step: u64,
        /// Step and file of the newest checkpoint.
        saved: Option<(u64, PathBuf)>,
    },
}

/// Where a run that has taken `step` steps can go on from.
fn newest(step: u64, saved: Option<&(u64, PathBuf)>) -> String {
    match saved {
        Some((at, path)) => {
            let lost = step.saturating_sub(*at);
            let lost = if lost == 0 { String::new() } else { format!(", {lost} steps before") };
            format!("The newest checkpoint is {}{lost}; --resume continues from there", path.display())
        }
        None => "There is no checkpoint yet; --resume begins anew".into(),
    }
}

/// A step whose loss or gradient is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The step that failed, counted from 1.
    pub step: u64,
    /// The metric that showed it; `None` when only the state did not move.
    pub metric: Option<(String, f64)>,
    /// The first value of the step that is not finite, and the number of launches of the program; or why there was no search.
    pub first: Result<Option<(NonFinite, usize)>, ExecError>,
    /// Global indices of the first sample of the batch and of the one after the last.
    pub samples: (u64, u64),
    /// Where the state before the step is.
    pub saved: Option<PathBuf>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}: ", self.step)?;
        match &self.metric {
            Some((name, value)) => write!(f, "metric `{name}` is {value}.")?,
            None => write!(f, "the gradient is not finite, so the step was not taken.")?,
        }
        match &self.first {
            Ok(Some((first, launches))) => {
                let place = if first.origin.is_empty() { "the top of the graph" } else { &first.origin };
                let (step, element, value) = (first.step + 1, first.element, first.value);
                write!(f, " The first value that is not finite was made by `{place}`")?;
                write!(f, " ({value} at element {element}, launch {step} of {launches}).")?;
            }
            Ok(None) => write!(f, " No single operation of the step gave NaN or infinity when it was run again.")?,
            Err(error) => write!(f, " The step could not be run again to find out where that came from ({error}).")?,
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
/// The checkpoint is damaged or not of this run, or the device fails.
pub fn resume(session: &mut Session, run: &RunDir) -> Result<Position, TrainError> {
    let info = run.info();
    let Some(header) = run.restore(session)? else { return begin(session, info.seed, info.steps) };
    if session.plan().state(STATE_TOTAL_STEPS).is_some() {
        // Another number than that of the checkpoint where the run was extended.
        session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(narrow("--steps", info.steps)?))?;
    }
    Ok(Position { step: header.step, cursor: header.cursor })
}

/// Whether the learning rate or anything else of a step depends on how many steps there will be.
pub fn needs_total_steps(plan: &Plan) -> bool {
    let Some(total) = plan.state(STATE_TOTAL_STEPS).map(|state| &state.buffer) else { return false };
    let end = |buffer: &alip_plan::Buffer| buffer.offset + buffer.bytes();
    let reads = |program: &alip_plan::Program| {
        let operands = program.steps.iter().flat_map(|step| &step.operands);
        operands
            .filter_map(|&operand| program.buffers.get(operand as usize))
            .any(|buffer| buffer.segment == total.segment && buffer.offset < end(total) && total.offset < end(buffer))
    };
    let of_train = |name: &&String| name.as_str() == PROGRAM_TRAIN || name.starts_with("train@");
    plan.programs.iter().filter(|(name, _)| of_train(name)).any(|(_, program)| reads(program))
}

fn narrow(what: &'static str, value: u64) -> Result<i32, TrainError> {
    i32::try_from(value).map_err(|_| TrainError::TooLarge { what, value })
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Whether all steps were taken; otherwise somebody asked to stop.
    pub finished: bool,
    /// Where it stands.
    pub position: Position,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The last step.
    pub last: Option<StepRecord>,
    /// Rows of the steps taken, where the plan's step is packed.
    pub rows: RowTotals,
}

/// When checkpoints are written, beside the one at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    /// After so many steps.
    pub steps: u64,
    /// After so much time.
    pub time: Duration,
}

/// After a checkpoint that could not be written, the next is tried no later than this.
const RETRY: Duration = Duration::from_secs(60);

/// A run in progress.
pub struct Trainer<'a> {
    /// State and programs.
    pub session: &'a mut Session,
    /// Batches, from the position on.
    pub feed: &'a mut dyn Feed,
    /// Where files go, and what was asked for.
    pub run: &'a Writer,
    /// When to write checkpoints.
    pub cadence: Cadence,
    /// Set from outside to finish the step, save and return.
    pub stop: &'a AtomicBool,
    /// What people see.
    pub watch: &'a mut dyn Watch,
}

/// What a step yields.
struct Wanted {
    batch: u64,
    loss: String,
    metrics: Vec<String>,
}

impl Trainer<'_> {
    /// Trains from `position` to the last step.
    ///
    /// # Errors
    /// The data, the device or the disk fails, or the loss is no number. The error says where the newest state is.
    pub fn train(&mut self, position: Position) -> Result<Summary, TrainError> {
        let plan = self.session.plan().clone();
        let train = plan.train.clone().ok_or_else(|| TrainError::NoTraining(plan.name.clone()))?;
        let metrics = metrics(&plan, &train.loss, &train.metrics);
        let wanted = Wanted { batch: train.batch, loss: train.loss, metrics };
        let mut log = self.run.log(position.step)?;
        let checkpoint = self.run.checkpoints().pop().map(|(_, path)| path);
        let rows = RowTotals::default();
        let mut summary = Summary { finished: false, position, checkpoint, last: None, rows };
        let trained = self.steps(&wanted, &mut log, &mut summary);
        let at = summary.position;
        match trained {
            Ok(()) => {
                summary.finished = at.step >= self.run.info().steps;
                let saved = self.run.checkpoints().last().map(|(step, _)| *step);
                if saved != Some(at.step) {
                    log.synchronize();
                    summary.checkpoint = Some(self.save(at)?);
                }
                Ok(summary)
            }
            Err(TrainError::Exec(why)) => {
                let saved = self.run.checkpoints().pop();
                Err(TrainError::Lost { why: Box::new(why), step: at.step + 1, saved })
            }
            Err(why @ TrainError::Data(_)) => {
                let (why, step) = (Box::new(why), at.step);
                Err(match self.save(at) {
                    Ok(path) => TrainError::Saved { why, step, path },
                    Err(unsaved) => {
                        let (unsaved, saved) = (Box::new(unsaved), self.run.checkpoints().pop());
                        TrainError::Unsaved { why, step, unsaved, saved }
                    }
                })
            }
            Err(error) => Err(error),
        }
    }

    fn steps(&mut self, wanted: &Wanted, log: &mut MetricsLog, summary: &mut Summary) -> Result<(), TrainError> {
        let steps = self.run.info().steps;
        let names: Vec<&str> = wanted.metrics.iter().map(String::as_str).collect();
        let mut next_save = Instant::now() + self.cadence.time;
        while summary.position.step < steps && !self.stop.load(Ordering::Relaxed) {
            let (started, at) = (Instant::now(), summary.position);
            let batch = self.feed.next()?;
            for skipped in &batch.skipped {
                self.watch.note(&format!("skipped {skipped}"));
            }
            let outputs = self.session.run_for(PROGRAM_TRAIN, &batch.tensors, &names)?;
            if let Some(run) = self.session.rows_run(PROGRAM_TRAIN) {
                summary.rows.add(run);
            }
            let values = names.iter().filter_map(|&name| Some((name.to_string(), outputs.get(name)?.first()?)));
            let seconds = started.elapsed().as_secs_f64().max(1e-9);
            let after = at.cursor + wanted.batch;
            let record = StepRecord {
                step: at.step + 1,
                epoch: self.feed.epoch_len().map(|len| after as f64 / len.max(1) as f64),
                metrics: values.collect(),
                samples_per_s: wanted.batch as f64 / seconds,
                data_wait: batch.waited.as_secs_f64() / seconds,
            };
            let is_taken = self.check(&record, &wanted.loss, at, &batch)?;
            self.feed.give_back(batch);
            if !is_taken {
                summary.position.cursor = after;
                continue;
            }
            if let Some(warning) = log.record(&record) {
                self.watch.note(&warning);
            }
            self.watch.step(&record, steps);
            summary.position = Position { step: record.step, cursor: after };
            summary.last = Some(record);
            let is_due = summary.position.step.is_multiple_of(self.cadence.steps.max(1));
            // The last one is written after the loop.
            if summary.position.step < steps && (is_due || Instant::now() >= next_save) {
                log.synchronize();
                let saved = self.save_or_warn(summary.position);
                next_save =
                    Instant::now() + if saved.is_some() { self.cadence.time } else { RETRY.min(self.cadence.time) };
                summary.checkpoint = saved.or(summary.checkpoint.take());
            }
        }
        Ok(())
    }

    /// A checkpoint on the way: one that cannot be written now can be later, and ending the run would lose what it would hold.
    fn save_or_warn(&mut self, at: Position) -> Option<PathBuf> {
        match self.save(at) {
            Ok(path) => Some(path),
            Err(error) => {
                let step = at.step;
                self.watch
                    .note(&format!("warning: no checkpoint of step {step}: {error}; training goes on and tries again"));
                None
            }
        }
    }

    fn save(&mut self, at: Position) -> Result<PathBuf, TrainError> {
        let info = self.run.info();
        let header = Header {
            format: checkpoint::FORMAT,
            spec: info.spec.clone(),
            step: at.step,
            cursor: at.cursor,
            seed: info.seed,
            plan: info.plan.clone(),
        };
        let saved = self.run.save(self.session, &header)?;
        if let Some(left) = saved.left {
            self.watch.note(&format!("warning: {left}; the new one is good"));
        }
        Ok(saved.path)
    }

    /// Whether the step was taken: one whose gradients overflowed under a loss scale was not. Stops any other run whose loss or
    /// gradient is not finite, and finds out where that came from.
    fn check(&mut self, record: &StepRecord, loss: &str, at: Position, batch: &Batch) -> Result<bool, TrainError> {
        let watched = [loss, "grad_norm"];
        let metric = watched.into_iter().find_map(|name| {
            let value = record.metric(name)?;
            (!value.is_finite()).then(|| (name.to_string(), value))
        });
        let taken = self.state(STATE_STEP)?.map(|step| step as u64);
        if metric.is_none() && taken.is_none_or(|taken| taken == record.step) {
            return Ok(true);
        }
        let halted = self.state(STATE_HALTED)?.is_some_and(|halted| halted != 0.0);
        if !halted && let Some(scale) = self.state(STATE_LOSS_SCALE)? {
            let step = record.step;
            self.watch.note(&format!("step {step}: gradients overflowed, the batch is skipped; loss scale {scale}"));
            return Ok(false);
        }
        if halted {
            // What is saved goes on from before the step.
            self.session.write_state(STATE_HALTED, &HostTensor::scalar_i32(0))?;
        }
        // The update is guarded: a step that is not finite leaves the state as it was. Only then is it worth saving.
        let saved = if taken == Some(at.step) { self.save(at).ok() } else { None };
        let first = self.first_nonfinite(batch);
        let samples = (at.cursor, at.cursor + batch.rows.len() as u64);
        Err(TrainError::Diverged(Box::new(Divergence { step: record.step, metric, first, samples, saved })))
    }

    /// The first value of a step that is not finite, and the number of its launches.
    fn first_nonfinite(&mut self, batch: &Batch) -> Result<Option<(NonFinite, usize)>, ExecError> {
        let first = self.session.first_nonfinite(PROGRAM_TRAIN, &batch.tensors)?;
        let launches = self.session.ran(PROGRAM_TRAIN)?.steps.len();
        Ok(first.map(|first| (first, launches)))
    }

    /// A scalar of the state, if the plan has it.
    fn state(&mut self, path: &str) -> Result<Option<f64>, ExecError> {
        match self.session.plan().state(path) {
            Some(_) => Ok(self.session.read_state(path)?.first()),
            None => Ok(None),
        }
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

#[cfg(test)]
mod tests;
