//! A model that is measured while it is trained.
//!
//! Measuring runs other programs of the plan, which read the state and change none of it, between steps and with none in flight:
//! the run takes the same steps with or without. What fails is told, and ends no run.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Position, Progress, Trainer};
use crate::exec::Session;
use crate::run::evaluations::Evaluation;

/// How a model is measured on the way.
pub struct OnTheWay<'a> {
    /// Steps from one time to the next; the last step is measured too.
    pub every: u64,
    /// Name of the measure whose best checkpoint is kept; the first of all without.
    pub best: Option<String>,
    /// Measures the model of a session after so many steps.
    pub measure: &'a mut dyn FnMut(&mut Session, u64) -> Result<Measures, Unmeasured>,
}

/// What a model was measured to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measures {
    /// Values by name, of which higher ones are better.
    pub values: Vec<(String, f64)>,
    /// Images that could not be read.
    pub skipped: usize,
}

/// Why there are no measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmeasured {
    /// Somebody asked to stop.
    Stopped,
    /// What failed.
    Failed(String),
}

impl Trainer<'_> {
    /// Whether the model is to be measured after this step, before the next is submitted.
    pub(super) fn is_to_measure(&self, progress: &Progress, step: u64) -> bool {
        let Some(how) = &self.evaluation else { return false };
        let due = step.is_multiple_of(how.every.max(1)) || step >= self.run.info().steps;
        due && step > progress.measured && !self.stop.load(Ordering::Relaxed)
    }

    /// Measures the model as it is, with nothing in flight, and keeps it if it is the best so far.
    pub(super) fn measure(&mut self, progress: &mut Progress) {
        let at = progress.summary.position;
        progress.measured = at.step;
        let Some(how) = &mut self.evaluation else { return };
        let Measures { values, skipped } = match (how.measure)(self.session, at.step) {
            Ok(found) => found,
            Err(Unmeasured::Stopped) => return,
            Err(Unmeasured::Failed(why)) => {
                self.watch.note(&format!("warning: not measured at step {}: {why}; training goes on", at.step));
                return;
            }
        };
        // A run keeps to the measure that it began with, also where another comes first later.
        let wanted = how.best.clone().or_else(|| progress.evaluations.best().map(|(_, name, _)| name.to_string()));
        let found = match &wanted {
            Some(name) => values.iter().find(|(own, _)| own == name),
            None => values.first(),
        };
        let shown = found.map_or_else(String::new, |(name, value)| format!(", {name} {value:.4}"));
        let left_out = if skipped > 0 { format!("; {skipped} images could not be read") } else { String::new() };
        self.watch.note(&format!("measured at step {}{shown}{left_out}", at.step));
        if let Some(name) = wanted.as_ref().filter(|_| found.is_none()) {
            let known = values.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            let why = format!("no measure is called `{name}`, so no best checkpoint is kept; there are {known}");
            self.watch.note(&format!("warning: {why}"));
        }
        let best = found.cloned().filter(|found| self.keep_best(progress, at, found)).map(|(name, _)| name);
        let measures: BTreeMap<String, f64> = values.into_iter().filter(|(_, value)| value.is_finite()).collect();
        let named = measures.iter().map(|(name, value)| (name.as_str(), *value));
        let logged = progress.log.measured(at.step, named);
        let epoch = self.feed.epoch_len().map(|len| at.cursor as f64 / len.max(1) as f64);
        let evaluation = Evaluation { step: at.step, epoch, measures, skipped, best, suite: None };
        if let Err(error) = logged.and(progress.evaluations.add(evaluation)) {
            self.watch.note(&format!("warning: {error}; what was measured is not logged"));
        }
    }

    /// Keeps the state if the value is above that of the best so far; whether it was kept.
    fn keep_best(&mut self, progress: &Progress, at: Position, (name, value): &(String, f64)) -> bool {
        // What is kept may be of steps after a checkpoint that this run went on from, which it may take otherwise.
        let kept = self.run.best_step().filter(|step| *step <= at.step);
        let before = progress.evaluations.best().filter(|(step, own, _)| Some(*step) == kept && own == name);
        if !value.is_finite() || before.is_some_and(|(_, _, before)| *value <= before) {
            return false;
        }
        match self.run.save_best(self.session, &self.header(at)) {
            Ok(_) => true,
            Err(error) => {
                self.watch.note(&format!("warning: the best checkpoint is not kept: {error}"));
                false
            }
        }
    }
}
