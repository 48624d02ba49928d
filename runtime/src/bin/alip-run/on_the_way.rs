//! What `train: (evaluate: ..)` measures while a model is trained.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use alip_plan::pipeline::Pipeline;
use alip_plan::{Evaluate, Plan};
use alip_runtime::data::{Skipped, Vocabularies, expand};
use alip_runtime::eval::measures::Logits;
use alip_runtime::eval::protocol::{self, EvalError, Protocol};
use alip_runtime::eval::results::SuiteResults;
use alip_runtime::eval::suite::Suite;
use alip_runtime::eval::{EncodeError, Encoder, Preparation, Programs, Reading};
use alip_runtime::exec::Session;
use alip_runtime::run::checkpoint::{CheckpointError, with_average};
use alip_runtime::run::{SuiteIdentity, fingerprint};
use alip_runtime::train::measure::{MeasureError, Measuring, held_out, measure};
use alip_runtime::train::summary::{Measured, measures_of};
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
    /// Steps of the whole run. What is measured after the last is what is shown of the run.
    pub(crate) steps: u64,
}

/// How often a model is measured, and on what.
pub(crate) struct Way {
    pub(crate) every: u64,
    pub(crate) best: Option<String>,
    /// Whether the averages of the weights are measured in their place.
    average: bool,
    /// In the place of the held-out samples.
    suite: Option<OnSuite>,
    /// What was found last on held-out samples.
    found: RefCell<Option<Measured>>,
}

/// A suite, and where its data sets lie.
struct OnSuite {
    suite: Suite,
    root: String,
    identity: SuiteIdentity,
}

impl OnSuite {
    /// The folder of the data sets.
    fn root(&self) -> Outcome<PathBuf> {
        Ok(PathBuf::from(expand(&self.root)?))
    }
}

impl Way {
    /// What a plan asks for.
    ///
    /// # Errors
    /// What cannot be done wherever the data lie.
    pub(crate) fn of(
        plan: &Plan,
        (pipeline, vocabularies): (&Pipeline, &Vocabularies),
        epoch_len: Option<u64>,
    ) -> Outcome<Option<Way>> {
        let Some(train) = &plan.train else { return Ok(None) };
        let Some(Evaluate { every, best, suite, data: root, average }) = &train.evaluate else { return Ok(None) };
        let fail = |why: &str| Failure::message(format!("`evaluate` of graph `{}` {why}", plan.name));
        let uncounted =
            || fail("counts epochs, and nobody knows how many samples there are: write `every: \"500 steps\"`");
        let every = every.steps(train.batch, epoch_len).ok_or_else(uncounted)?;
        let suite = match suite {
            None => None,
            Some(name) => {
                let nowhere = || fail("names a suite and not where its data sets lie: write `data: \"${DATA}/sets\"`");
                let root = root.clone().ok_or_else(nowhere)?;
                let (suite, text) = Suite::read(name)?;
                let programs = Programs::of(plan)?;
                Preparation::of(&plan.name, &programs, Some(pipeline))?.tokenizer(&plan.name, vocabularies)?;
                let identity = SuiteIdentity { name: name.clone(), hash: fingerprint(text.as_bytes()) };
                Some(OnSuite { suite, root, identity })
            }
        };
        let known = match &suite {
            Some(on) => on.suite.measures(),
            None => measures_of(plan, pipeline),
        };
        if let Some(best) = best.as_ref().filter(|best| !known.contains(best)) {
            let known = known.join(", ");
            return Err(fail(&format!("keeps the best by `{best}`, which is no measure; there are {known}")));
        }
        Ok(Some(Way { every, best: best.clone(), average: *average, suite, found: RefCell::new(None) }))
    }

    /// Whether the data are where they are looked for.
    ///
    /// # Errors
    /// They are not: of a new run the spec's fault, of one that goes on no reason to stop.
    pub(crate) fn finds_data(&self, plan: &Plan, pipeline: &Pipeline) -> Outcome<()> {
        let Some(on) = &self.suite else {
            held_out(plan, pipeline)?;
            return Ok(());
        };
        let root = on.root()?;
        let sets = protocol::open(&on.suite, &root)?;
        let absent: Vec<&str> = sets.iter().filter(|set| set.source().is_none()).map(|set| set.name()).collect();
        let needs = |best: &String| {
            let mean = on.suite.means.iter().find(|mean| mean.name == *best);
            let of = |set: &&&str| match mean {
                Some(mean) => mean.of.iter().any(|name| name == **set),
                None => best.strip_prefix(**set).is_some_and(|figure| figure.starts_with(' ')),
            };
            absent.iter().find(of).copied()
        };
        match self.best.as_ref().and_then(|best| Some((best, needs(best)?))) {
            Some((best, set)) => Err(Failure::message(format!(
                "`evaluate` of graph `{}` keeps the best by `{best}`, and the set `{set}` is not in {}",
                plan.name,
                root.display()
            ))),
            None => Ok(()),
        }
    }

    /// The suite, if the model is measured on one.
    pub(crate) fn suite(&self) -> Option<&SuiteIdentity> {
        self.suite.as_ref().map(|on| &on.identity)
    }

    /// What the model with its own weights was found to be on held-out samples after a step, if that was measured last.
    pub(crate) fn found_at(&self, step: u64) -> Option<Measured> {
        self.found.borrow_mut().take().filter(|found| found.results.step == step && !found.average)
    }

    /// Measures the model of a session.
    pub(crate) fn measure(&self, session: &mut Session, step: u64, data: Data<'_>) -> Result<Measures, Unmeasured> {
        if !self.average {
            return self.measured(session, step, data);
        }
        let failed = |error: CheckpointError| Unmeasured::Failed(error.to_string());
        with_average(session, |session| self.measured(session, step, data)).map_err(failed)?
    }

    fn measured(&self, session: &mut Session, step: u64, data: Data<'_>) -> Result<Measures, Unmeasured> {
        match &self.suite {
            Some(on) => on_suite(session, step, data, (on, self.average)),
            None => {
                let found = on_held_out(session, step, data, self.average)?;
                let values = found.measures().into_iter().map(|measure| (measure.name, measure.value));
                let measures = Measures { values: values.collect(), skipped: found.results.skipped };
                self.found.replace(Some(found));
                Ok(measures)
            }
        }
    }
}

fn on_held_out(session: &mut Session, step: u64, data: Data<'_>, average: bool) -> Result<Measured, Unmeasured> {
    let Data { pipeline, vocabularies, workers, max_bad, stop, steps } = data;
    // Nobody measures again what is shown of the run, so here its samples are named.
    let skipped = |skipped: &Skipped| {
        if step == steps {
            note!("left out {skipped}");
        }
    };
    let how = Measuring { pipeline, vocabularies, workers, max_bad, step, stop, skipped: &skipped };
    match measure(session, &how) {
        Ok(found) => Ok(Measured::new(session.plan(), found, average)),
        Err(MeasureError::Encode(EncodeError::Stopped)) => Err(Unmeasured::Stopped),
        Err(error) => Err(Unmeasured::Failed(error.to_string())),
    }
}

fn on_suite(
    session: &mut Session,
    step: u64,
    data: Data<'_>,
    (on, average): (&OnSuite, bool),
) -> Result<Measures, Unmeasured> {
    let Data { pipeline, vocabularies, workers, max_bad, stop, .. } = data;
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
    let suite = &on.suite;
    let root = on.root().map_err(|why| Unmeasured::Failed(why.to_string()))?;
    let sets = protocol::open(suite, &root).map_err(failed)?;
    let found = sets.iter().map(|set| protocol::evaluate(&mut encoder, set, &how)).collect::<Result<Vec<_>, _>>();
    let results = SuiteResults::new(suite, found.map_err(failed)?, (&name, step), average, Logits::Exact);
    Ok(Measures { values: results.measures(), skipped: skipped.get() })
}
