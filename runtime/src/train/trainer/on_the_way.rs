//! A model that is measured while it is trained.
//!
//! Measuring runs other programs of the plan, which read the state and change none of it, between steps and with none in flight:
//! the run takes the same steps with or without. What fails is told, and ends no run.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Progress, Trainer};
use crate::exec::Session;
use crate::run::evaluations::Evaluation;

/// How a model is measured on the way.
pub struct OnTheWay<'a> {
    /// Steps from one time to the next; the last step is measured too.
    pub every: u64,
    /// Name of the measure whose best checkpoint is kept; the first of all without.
    pub best: Option<String>,
    /// Measures the model of a session after so many steps: values by name, of which higher ones are better.
    pub measure: &'a mut dyn FnMut(&mut Session, u64) -> Result<Vec<(String, f64)>, Unmeasured>,
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
        let found = match (how.measure)(self.session, at.step) {
            Ok(found) => found,
            Err(Unmeasured::Stopped) => return,
            Err(Unmeasured::Failed(why)) => {
                self.watch.note(&format!("warning: not measured at step {}: {why}; training goes on", at.step));
                return;
            }
        };
        let best = match &how.best {
            Some(name) => found.iter().find(|(own, _)| own == name),
            None => found.first(),
        };
        let shown = best.map_or_else(String::new, |(name, value)| format!(", {name} {value:.4}"));
        self.watch.note(&format!("measured at step {}{shown}", at.step));
        let best = best.cloned();
        if let Some(name) = how.best.as_ref().filter(|_| best.is_none()) {
            let known: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            let known = known.join(", ");
            self.watch.note(&format!(
                "warning: no measure is called `{name}`, so no best checkpoint is kept; there are {known}"
            ));
        }
        let is_best = best.is_some_and(|(name, value)| {
            value.is_finite() && progress.evaluations.best(&name).is_none_or(|before| value > before)
        });
        if is_best {
            match self.run.save_best(self.session, &self.header(at)) {
                Ok(_) => {}
                Err(error) => self.watch.note(&format!("warning: the best checkpoint is not kept: {error}")),
            }
        }
        let measures: BTreeMap<String, f64> = found.into_iter().filter(|(_, value)| value.is_finite()).collect();
        let named = measures.iter().map(|(name, value)| (name.as_str(), *value));
        let logged = progress.log.measured(at.step, named);
        let epoch = self.feed.epoch_len().map(|len| at.cursor as f64 / len.max(1) as f64);
        let logged = logged.and(progress.evaluations.add(Evaluation { step: at.step, epoch, measures }));
        if let Err(error) = logged {
            self.watch.note(&format!("warning: {error}; what was measured is not logged"));
        }
    }
}
