//! The training loop.
//!
//! Invariants:
//! - The loop holds no state of the training: weights, moments, momenta, counters are in the session, the place in the data
//!   is one number. So a run that is killed at any moment and resumed takes the same steps as one that is not.
//! - Whatever ends a run, the state is saved first where there is a sound one. What does not touch the state (a log that cannot
//!   be written, a checkpoint that cannot be written now) ends no run.
//! - Steps are submitted ahead of those whose metrics have been read, as many as the device asks for. Whatever looks at the state
//!   (a checkpoint, the search for what is not finite) first waits for all of them. A step that was refused for good changes no state,
//!   nor do those after it, so that it is found there; its batch is made again from the cursor.
//! - Nothing here knows a terminal; what people see goes through [`Watch`].

mod failure;
mod on_the_way;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alip_plan::{
    PROGRAM_TRAIN, Plan, STATE_HALTED, STATE_LOSS_SCALE, STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS, TrainInfo,
};

use crate::data::{Batch, DataError, Loader, check_indices};
use crate::exec::{NonFinite, Results, RowTotals, RowsRun, Session};
use crate::run::checkpoint::{self, Header};
use crate::run::evaluations::Evaluations;
use crate::run::log::MetricsLog;
use crate::run::{RunDir, StepRecord, Writer};
use crate::tensor::HostTensor;

pub use failure::{Divergence, TrainError};
pub use on_the_way::{Measures, OnTheWay, Unmeasured};

/// Where batches come from: a [`Loader`], or anything that gives one global batch after the other without end.
pub trait Feed {
    /// The next batch.
    ///
    /// # Errors
    /// The data cannot be delivered.
    fn next(&mut self) -> Result<Batch, DataError>;

    /// The batch that begins at this global sample, once more.
    ///
    /// # Errors
    /// The data cannot be delivered.
    fn again(&mut self, cursor: u64) -> Result<Batch, DataError>;

    /// Takes a batch that is done with; its memory may be used again.
    fn give_back(&mut self, batch: Batch) {
        drop(batch);
    }

    /// Samples of an epoch, where there are epochs.
    fn epoch_len(&self) -> Option<u64>;

    /// What to call the sample with this index of the source.
    fn name(&self, index: u64) -> String {
        format!("sample {index}")
    }
}

impl Feed for Loader {
    fn next(&mut self) -> Result<Batch, DataError> {
        // Training is endless, so a loader that ends has stopped for no reason.
        Loader::next(self)?.ok_or(DataError::Stopped)
    }

    fn again(&mut self, cursor: u64) -> Result<Batch, DataError> {
        Loader::batch_at(self, cursor)
    }

    fn give_back(&mut self, batch: Batch) {
        Loader::give_back(self, batch);
    }

    fn name(&self, index: u64) -> String {
        Loader::name(self, index)
    }

    fn epoch_len(&self) -> Option<u64> {
        Loader::epoch_len(self)
    }
}

/// What happens during a run, for people.
pub trait Watch {
    /// A step was taken.
    fn step(&mut self, record: &StepRecord, of: u64);
    /// Something worth a line: a skipped sample, a checkpoint.
    fn note(&mut self, text: &str);
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
    let Some(header) = run.restore(session)? else {
        if let Some(start) = info.start.first() {
            return Err(TrainError::NeverStarted { path: run.root().to_path_buf(), start: start.to_string() });
        }
        return begin(session, info.seed, info.steps);
    };
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
    /// How the model is measured on the way, if it is.
    pub evaluation: Option<OnTheWay<'a>>,
}

/// What a step yields.
struct Wanted {
    batch: u64,
    loss: String,
    metrics: Vec<String>,
    /// State that says what became of the step.
    state: Vec<&'static str>,
}

impl Wanted {
    fn new(plan: &Plan, train: &TrainInfo) -> Wanted {
        let mut state = vec![STATE_STEP, STATE_HALTED, STATE_LOSS_SCALE];
        state.retain(|path| plan.state(path).is_some());
        Wanted {
            batch: train.batch,
            loss: train.loss.clone(),
            metrics: metrics(plan, &train.loss, &train.metrics),
            state,
        }
    }
}

/// A step that was submitted, and whose results nobody has looked at.
struct InFlight {
    /// Before its batch was asked for.
    begun: Mark,
    /// Global index of its first sample.
    cursor: u64,
    results: Results,
    rows: Option<RowsRun>,
}

/// What came of a step.
struct Landed {
    /// Where the run stood before.
    at: Position,
    metrics: Vec<(String, f64)>,
    /// Steps taken, if the plan counts them.
    taken: Option<u64>,
    halted: bool,
    loss_scale: Option<f64>,
}

impl Landed {
    fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    /// What became of the step. The state says so; metrics are whatever the spec makes of their names, and count only where a plan
    /// does not count steps.
    fn fate(&self, loss: &str) -> Fate {
        let next = self.at.step + 1;
        match (self.taken, self.loss_scale) {
            _ if self.halted => Fate::Refused,
            (Some(taken), _) if taken == next => Fate::Taken,
            (Some(taken), Some(scale)) if taken == self.at.step => Fate::Skipped(scale),
            (None, _) if self.metric(loss).is_none_or(f64::is_finite) => Fate::Taken,
            _ => Fate::Refused,
        }
    }

    /// Loss or gradient norm, if it is not finite: what people are told of a step that was refused.
    fn nonfinite(&self, loss: &str) -> Option<(String, f64)> {
        [loss, "grad_norm"].into_iter().find_map(|name| {
            let value = self.metric(name)?;
            (!value.is_finite()).then(|| (name.to_string(), value))
        })
    }
}

/// What became of a step.
enum Fate {
    Taken,
    /// Its gradients overflowed; the loss scale is this now.
    Skipped(f64),
    /// Something is not finite for good.
    Refused,
}

/// What a run had done at a moment.
#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    /// Steps whose results were looked at.
    landed: u64,
    /// Time that was spent waiting for data.
    waited: Duration,
}

impl Mark {
    /// Steps per second since an earlier moment, and the share of the time that was spent waiting for data.
    fn since(&self, earlier: &Mark) -> (f64, f64) {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-9);
        ((self.landed - earlier.landed) as f64 / seconds, (self.waited - earlier.waited).as_secs_f64() / seconds)
    }
}

/// A run on its way: what the loop knows beside the session.
struct Progress {
    wanted: Wanted,
    log: MetricsLog,
    evaluations: Evaluations,
    /// The step that was measured last, whatever came of it.
    measured: u64,
    summary: Summary,
    flight: VecDeque<InFlight>,
    landed: u64,
    waited: Duration,
    /// Step of the last checkpoint that was tried, and when the next is due whatever the steps.
    tried: u64,
    next_save: Instant,
}

impl Progress {
    /// Where the run stands once all that was submitted is taken.
    fn ahead(&self) -> Position {
        let Position { step, cursor } = self.summary.position;
        let steps = self.flight.len() as u64;
        Position { step: step + steps, cursor: cursor + steps * self.wanted.batch }
    }

    fn mark(&self) -> Mark {
        Mark { at: Instant::now(), landed: self.landed, waited: self.waited }
    }
}

impl Trainer<'_> {
    /// Trains from `position` to the last step.
    ///
    /// # Errors
    /// The data, the device or the disk fails, or the loss is no number. The error says where the newest state is.
    pub fn train(&mut self, position: Position) -> Result<Summary, TrainError> {
        let plan = self.session.plan().clone();
        let train = plan.train.as_ref().ok_or_else(|| TrainError::NoTraining(plan.name.clone()))?;
        let checkpoint = self.run.checkpoints().pop().map(|(_, path)| path);
        let rows = RowTotals::default();
        let suite = self.run.info().suite.as_ref().map(|suite| suite.hash.clone());
        let evaluations = Evaluations::open(self.run.root(), position.step, suite.as_deref())?;
        let mut progress = Progress {
            wanted: Wanted::new(&plan, train),
            log: self.run.log(position.step)?,
            measured: evaluations.last(),
            evaluations,
            summary: Summary { finished: false, position, checkpoint, last: None, rows },
            flight: VecDeque::new(),
            landed: 0,
            waited: Duration::ZERO,
            tried: position.step,
            next_save: Instant::now() + self.cadence.time,
        };
        let trained = self.steps(&mut progress);
        let Progress { mut log, mut summary, .. } = progress;
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

    /// Submits steps and looks at what came of them, the oldest first, until all are taken, somebody asks to stop, or the data end.
    fn steps(&mut self, progress: &mut Progress) -> Result<(), TrainError> {
        let steps = self.run.info().steps;
        let mut no_data = None;
        loop {
            let ahead = progress.ahead();
            let is_over = ahead.step >= steps || no_data.is_some() || self.stop.load(Ordering::Relaxed);
            let measures = no_data.is_none() && self.is_to_measure(progress, ahead.step);
            // The last one is written after the loop.
            let saves = !is_over && self.is_due(progress, ahead.step);
            // People hear of what is done before the data may keep us waiting.
            let is_done = progress.flight.front_mut().is_some_and(|step| step.results.poll());
            if !is_over && !saves && !measures && !is_done && progress.flight.len() <= self.session.ahead() {
                match self.submit(progress, ahead.cursor) {
                    Ok(step) => progress.flight.push_back(step),
                    // Those in flight are still taken.
                    Err(error @ TrainError::Data(_)) => no_data = Some(error),
                    Err(error) => return Err(error),
                }
            } else if let Some(step) = progress.flight.pop_front() {
                self.land(progress, step)?;
            } else if saves {
                // Before it is measured, which may take long and come to an end of its own.
                self.save_on_the_way(progress);
            } else if measures {
                if is_over {
                    self.save_on_the_way(progress);
                }
                self.measure(progress);
            } else {
                return no_data.map_or(Ok(()), Err);
            }
        }
    }

    /// Whether there is to be a checkpoint of this step before the next is submitted.
    fn is_due(&self, progress: &Progress, step: u64) -> bool {
        let by_steps = step.is_multiple_of(self.cadence.steps.max(1));
        step > progress.tried && (by_steps || Instant::now() >= progress.next_save)
    }

    /// Submits the next step, whose batch begins at `cursor`.
    fn submit(&mut self, progress: &mut Progress, cursor: u64) -> Result<InFlight, TrainError> {
        let begun = progress.mark();
        let batch = self.feed.next()?;
        progress.waited += batch.waited;
        for skipped in &batch.skipped {
            self.watch.note(&format!("skipped {skipped}"));
        }
        check_indices(self.session.plan(), PROGRAM_TRAIN, &batch, |index| self.feed.name(index))?;
        self.session.submit(PROGRAM_TRAIN, &batch.tensors)?;
        self.feed.give_back(batch);
        let metrics: Vec<&str> = progress.wanted.metrics.iter().map(String::as_str).collect();
        let results = self.session.download(PROGRAM_TRAIN, &metrics, &progress.wanted.state)?;
        Ok(InFlight { begun, cursor, results, rows: self.session.rows_run(PROGRAM_TRAIN).cloned() })
    }

    /// Waits for the oldest step in flight and tells people of it.
    fn land(&mut self, progress: &mut Progress, step: InFlight) -> Result<(), TrainError> {
        let found = step.results.wait()?;
        progress.landed += 1;
        let (steps_per_s, data_wait) = progress.mark().since(&step.begun);
        let Progress { wanted, log, summary, .. } = progress;
        if let Some(rows) = &step.rows {
            summary.rows.add(rows);
        }
        let state = |path: &str| found.state.get(path).and_then(HostTensor::first);
        let value = |name: &String| Some((name.clone(), found.outputs.get(name)?.first()?));
        let landed = Landed {
            at: Position { cursor: step.cursor, ..summary.position },
            metrics: wanted.metrics.iter().filter_map(value).collect(),
            taken: state(STATE_STEP).map(|step| step as u64),
            halted: state(STATE_HALTED).is_some_and(|halted| halted != 0.0),
            loss_scale: state(STATE_LOSS_SCALE),
        };
        let is_taken = self.is_taken(wanted, &landed)?;
        summary.position.cursor = step.cursor + wanted.batch;
        if !is_taken {
            return Ok(());
        }
        summary.position.step += 1;
        let cursor = summary.position.cursor;
        let record = StepRecord {
            step: summary.position.step,
            epoch: self.feed.epoch_len().map(|len| cursor as f64 / len.max(1) as f64),
            metrics: landed.metrics,
            samples_per_s: wanted.batch as f64 * steps_per_s,
            data_wait,
        };
        if let Some(warning) = log.record(&record) {
            self.watch.note(&warning);
        }
        self.watch.step(&record, self.run.info().steps);
        summary.last = Some(record);
        Ok(())
    }

    /// A checkpoint on the way, with nothing in flight: one that cannot be written now can be later, and ending the run would lose what
    /// it would hold.
    fn save_on_the_way(&mut self, progress: &mut Progress) {
        let at = progress.summary.position;
        progress.log.synchronize();
        progress.tried = at.step;
        let pause = match self.save(at) {
            Ok(path) => {
                progress.summary.checkpoint = Some(path);
                self.cadence.time
            }
            Err(error) => {
                let step = at.step;
                self.watch
                    .note(&format!("warning: no checkpoint of step {step}: {error}; training goes on and tries again"));
                RETRY.min(self.cadence.time)
            }
        };
        progress.next_save = Instant::now() + pause;
    }

    /// What a checkpoint knows of itself.
    fn header(&self, at: Position) -> Header {
        let info = self.run.info();
        let (spec, plan) = (info.spec.clone(), info.plan.clone());
        Header { format: checkpoint::FORMAT, spec, step: at.step, cursor: at.cursor, seed: info.seed, plan }
    }

    fn save(&mut self, at: Position) -> Result<PathBuf, TrainError> {
        let saved = self.run.save(self.session, &self.header(at))?;
        if let Some(left) = saved.left {
            self.watch.note(&format!("warning: {left}; the new one is good"));
        }
        Ok(saved.path)
    }

    /// Whether a step was taken: one whose gradients overflowed under a loss scale was not. Stops any other run whose step was
    /// refused, and finds out where that came from.
    fn is_taken(&mut self, wanted: &Wanted, landed: &Landed) -> Result<bool, TrainError> {
        let Landed { at, taken, halted, .. } = *landed;
        let step = at.step + 1;
        let metric = landed.nonfinite(&wanted.loss);
        match landed.fate(&wanted.loss) {
            Fate::Taken => return Ok(true),
            Fate::Skipped(scale) => {
                let what = "gradients overflowed, the batch is skipped";
                self.watch.note(&format!("step {step}: {what}; loss scale {scale}"));
                return Ok(false);
            }
            Fate::Refused => {}
        }
        if halted {
            // The state is that before the step, whatever was submitted since, and what is saved goes on from there.
            self.session.write_state(STATE_HALTED, &HostTensor::scalar_i32(0))?;
        }
        let saved = if taken == Some(at.step) { self.save(at).ok() } else { None };
        let first = self.first_nonfinite(at.cursor);
        let samples = (at.cursor, at.cursor + wanted.batch);
        Err(TrainError::Diverged(Box::new(Divergence { step, metric, first, samples, saved })))
    }

    /// The first value that is not finite of a step from the state as it is, and the number of its launches; or why that cannot be
    /// known.
    fn first_nonfinite(&mut self, cursor: u64) -> Result<Option<(NonFinite, usize)>, String> {
        let batch = self.feed.again(cursor).map_err(|error| error.to_string())?;
        let first = self.session.first_nonfinite(PROGRAM_TRAIN, &batch.tensors).map_err(|error| error.to_string())?;
        let launches = self.session.ran(PROGRAM_TRAIN).map_err(|error| error.to_string())?.steps.len();
        Ok(first.map(|first| (first, launches)))
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
