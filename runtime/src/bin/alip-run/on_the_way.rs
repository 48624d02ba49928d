//! What `train: (evaluate: ..)` measures while a model is trained.

use std::sync::atomic::AtomicBool;

use alip_plan::pipeline::Pipeline;
use alip_plan::{Evaluate, Plan};
use alip_runtime::data::Vocabularies;
use alip_runtime::eval::EncodeError;
use alip_runtime::exec::Session;
use alip_runtime::train::Unmeasured;
use alip_runtime::train::measure::{MeasureError, Measuring, held_out, measure};
use alip_runtime::train::summary::Measured;

use crate::{Failure, Outcome};

/// A model's measures by name.
type Measures = Result<Vec<(String, f64)>, Unmeasured>;

/// How often, and on what.
pub(crate) struct Way<'a> {
    pub(crate) every: u64,
    pub(crate) best: Option<String>,
    pipeline: &'a Pipeline,
    vocabularies: &'a Vocabularies,
    workers: usize,
    max_bad: f64,
    stop: &'a AtomicBool,
}

impl<'a> Way<'a> {
    /// What a plan asks for; what cannot be done is told before the first step.
    pub(crate) fn of(
        plan: &Plan,
        (pipeline, vocabularies): (&'a Pipeline, &'a Vocabularies),
        epoch_len: Option<u64>,
        (workers, max_bad): (usize, f64),
        stop: &'a AtomicBool,
    ) -> Outcome<Option<Way<'a>>> {
        let Some(train) = &plan.train else { return Ok(None) };
        let Some(Evaluate { every, best, .. }) = &train.evaluate else { return Ok(None) };
        let uncounted = || {
            let why = "counts epochs, and nobody knows how many samples there are: write `every: \"500 steps\"`";
            Failure::message(format!("`evaluate` of graph `{}` {why}", plan.name))
        };
        let every = every.steps(train.batch, epoch_len).ok_or_else(uncounted)?;
        held_out(plan, pipeline)?;
        Ok(Some(Way { every, best: best.clone(), pipeline, vocabularies, workers, max_bad, stop }))
    }

    /// Measures the model of a session.
    pub(crate) fn measure(&self, session: &mut Session, step: u64) -> Measures {
        let how = Measuring {
            pipeline: self.pipeline,
            vocabularies: self.vocabularies,
            workers: self.workers,
            max_bad: self.max_bad,
            step,
            stop: self.stop,
            skipped: &|_| {},
        };
        match measure(session, &how) {
            Ok(found) => {
                let found = Measured::new(session.plan(), found, false);
                Ok(found.measures().into_iter().map(|measure| (measure.name, measure.value)).collect())
            }
            Err(MeasureError::Encode(EncodeError::Stopped)) => Err(Unmeasured::Stopped),
            Err(error) => Err(Unmeasured::Failed(error.to_string())),
        }
    }
}
