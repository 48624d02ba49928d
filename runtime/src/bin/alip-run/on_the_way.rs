//! What `train: (evaluate: ..)` measures while a model is trained.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use alip_plan::pipeline::Pipeline;
use alip_plan::{Evaluate, Plan};
use alip_runtime::data::{Vocabularies, expand};
use alip_runtime::eval::measures::Logits;
use alip_runtime::eval::protocol::{self, EvalError, Protocol};
use alip_runtime::eval::results::SuiteResults;
use alip_runtime::eval::suite::Suite;
use alip_runtime::eval::{EncodeError, Encoder, Preparation, Programs, Reading};
use alip_runtime::exec::Session;
use alip_runtime::train::measure::{MeasureError, Measuring, held_out, measure};
use alip_runtime::train::summary::Measured;
use alip_runtime::train::{Measures, Unmeasured};

use crate::{Failure, Outcome};

/// What a run trains on, and how that is read.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) vocabularies: &'a Vocabularies,
    pub(crate) workers: usize,
    pub(crate) max_bad: f64,
    pub(crate) stop: &'a AtomicBool,
}

/// How often a model is measured, and on what.
pub(crate) struct Way {
    pub(crate) every: u64,
    pub(crate) best: Option<String>,
    /// In the place of the held-out samples.
    suite: Option<(Suite, PathBuf)>,
}

impl Way {
    /// What a plan asks for.
    ///
    /// # Errors
    /// What cannot be done: of a new run the spec's fault, of one that goes on no reason to stop.
    pub(crate) fn of(
        plan: &Plan,
        (pipeline, vocabularies): (&Pipeline, &Vocabularies),
        epoch_len: Option<u64>,
    ) -> Outcome<Option<Way>> {
        let Some(train) = &plan.train else { return Ok(None) };
        let Some(Evaluate { every, best, suite, data: root }) = &train.evaluate else { return Ok(None) };
        let fail = |why: &str| Failure::message(format!("`evaluate` of graph `{}` {why}", plan.name));
        let uncounted =
            || fail("counts epochs, and nobody knows how many samples there are: write `every: \"500 steps\"`");
        let every = every.steps(train.batch, epoch_len).ok_or_else(uncounted)?;
        let suite = match suite {
            None => {
                held_out(plan, pipeline)?;
                None
            }
            Some(name) => {
                let nowhere = || fail("names a suite and not where its data sets lie: write `data: \"${DATA}/sets\"`");
                let root = PathBuf::from(expand(root.as_deref().ok_or_else(nowhere)?)?);
                let suite = Suite::open(name)?;
                let programs = Programs::of(plan)?;
                Preparation::of(&plan.name, &programs, Some(pipeline))?.tokenizer(&plan.name, vocabularies)?;
                protocol::open(&suite, &root)?;
                Some((suite, root))
            }
        };
        Ok(Some(Way { every, best: best.clone(), suite }))
    }

    /// Measures the model of a session.
    pub(crate) fn measure(&self, session: &mut Session, step: u64, data: Data<'_>) -> Result<Measures, Unmeasured> {
        match &self.suite {
            Some((suite, root)) => on_suite(session, step, data, (suite, root)),
            None => on_held_out(session, step, data),
        }
    }
}

fn on_held_out(session: &mut Session, step: u64, data: Data<'_>) -> Result<Measures, Unmeasured> {
    let Data { pipeline, vocabularies, workers, max_bad, stop } = data;
    let how = Measuring { pipeline, vocabularies, workers, max_bad, step, stop, skipped: &|_| {} };
    match measure(session, &how) {
        Ok(found) => {
            let found = Measured::new(session.plan(), found, false);
            let values = found.measures().into_iter().map(|measure| (measure.name, measure.value));
            Ok(Measures { values: values.collect(), skipped: found.results.skipped })
        }
        Err(MeasureError::Encode(EncodeError::Stopped)) => Err(Unmeasured::Stopped),
        Err(error) => Err(Unmeasured::Failed(error.to_string())),
    }
}

fn on_suite(
    session: &mut Session,
    step: u64,
    data: Data<'_>,
    (suite, root): (&Suite, &Path),
) -> Result<Measures, Unmeasured> {
    let Data { pipeline, vocabularies, workers, max_bad, stop } = data;
    let failed = |error: EvalError| match error {
        EvalError::Encode { source: EncodeError::Stopped, .. } => Unmeasured::Stopped,
        error => Unmeasured::Failed(error.to_string()),
    };
    let unfit = |error: EncodeError| Unmeasured::Failed(error.to_string());
    let name = session.plan().name.clone();
    let mut encoder = Encoder::new(session).map_err(unfit)?;
    let preparation = Preparation::of(&name, encoder.programs(), Some(pipeline)).map_err(unfit)?;
    let tokenizer = preparation.tokenizer(&name, vocabularies).map_err(unfit)?;
    let skipped = Cell::new(0);
    let how = Protocol {
        preparation: &preparation,
        tokenizer: &tokenizer,
        reading: Reading {
            vocabularies,
            workers,
            max_bad,
            stop,
            skipped: &|_| skipped.set(skipped.get() + 1),
            progress: &|_| {},
        },
        logits: Logits::Exact,
        store: None,
        begins: &|_, _| {},
    };
    let sets = protocol::open(suite, root).map_err(failed)?;
    let found = sets.iter().map(|set| protocol::evaluate(&mut encoder, set, &how)).collect::<Result<Vec<_>, _>>();
    let results = SuiteResults::new(suite, found.map_err(failed)?, (&name, step), false, Logits::Exact);
    Ok(Measures { values: results.measures(), skipped: skipped.get() })
}
