//! A trained model, opened for use: its programs alone, compiled for the batch at hand, with its weights.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_plan::pipeline::Pipeline;
use alip_plan::{DType, Plan};
use alip_runtime::data::{SampleSource, Tokenizer, Vocabularies};
use alip_runtime::device::Device;
use alip_runtime::eval::{Embedded, EncodeError, Encoder, Preparation, Reading, Weighed};
use alip_runtime::exec::Session;
use alip_runtime::run::{RunDir, SpecSources, fingerprint};
use alip_runtime::weights::{Weights, assign};

use crate::model::{DeviceArgs, Feed, Purpose, compile_all};
use crate::progress::Counter;
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Samples of a batch where there are many: what two cores and a card's memory take at any size of model.
pub(crate) const BATCH: u64 = 64;

/// Folder in which `train` puts runs, where the newest is looked for.
const RUNS: &str = "runs";

/// Which model, for commands whose arguments are something else.
#[derive(clap::Args)]
pub(crate) struct ModelOption {
    /// The directory of a run, or a graph spec for the weights of --weights [default: the run below `runs` that was written last]
    #[arg(long, short, value_name = "RUN|SPEC")]
    model: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgs,
}

/// Which weights of a model, on which device.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
    /// Weights for a graph spec: what `alip-run import` wrote, or any file that it reads
    #[arg(long, value_name = "FILE", conflicts_with_all = ["checkpoint", "average"])]
    pub(crate) weights: Option<PathBuf>,
    /// Change one thing of the graph spec
    #[arg(long, value_name = "KEY=VALUE", requires = "weights")]
    set: Vec<String>,
    /// A checkpoint of the run other than its newest
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Use the average of the weights that the run keeps (`ema`)
    #[arg(long)]
    pub(crate) average: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// A model, ready to embed.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// Name of the graph.
    pub(crate) name: String,
    /// Steps that it was trained; 0 of weights of a file.
    pub(crate) step: u64,
    /// What tells the model from others: its weights, what is computed with them, and how images and texts are prepared.
    pub(crate) content: String,
    /// What cosines are multiplied with in its loss, exp(logit_scale), where it has such a parameter.
    pub(crate) scale: Option<f64>,
    /// What it was trained on.
    pub(crate) pipeline: Option<Pipeline>,
    pub(crate) vocabularies: Vocabularies,
    /// How images and texts from anywhere are made fit for it.
    pub(crate) preparation: Preparation,
}

impl ModelOption {
    /// Opens the model, for batches of at most [`BATCH`] samples.
    pub(crate) fn open(&self, samples: u64) -> Outcome<Opened> {
        let model = match &self.model {
            Some(model) => model.clone(),
            None => {
                let newest = newest_run(Path::new(RUNS)).ok_or_else(|| {
                    Failure::message(format!("there is no run below `{RUNS}` here; name one with --model RUN"))
                })?;
                note!("model: {}", newest.display());
                newest
            }
        };
        self.weights.open(&model, samples)
    }
}

/// The run in a folder whose newest checkpoint was written last.
fn newest_run(folder: &Path) -> Option<PathBuf> {
    let runs = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| {
        let run = RunDir::open(&entry.path()).ok()?;
        let (_, checkpoint) = run.checkpoints().pop()?;
        Some((std::fs::metadata(checkpoint).ok()?.modified().ok()?, entry.path()))
    });
    runs.max().map(|(_, path)| path)
}

impl WeightsArgs {
    /// Opens a model, that of a run or a graph with weights of a file, for batches of at most [`BATCH`] samples.
    pub(crate) fn open(&self, model: &Path, samples: u64) -> Outcome<Opened> {
        let batch = samples.clamp(1, BATCH);
        match &self.weights {
            Some(_) if RunDir::holds_run(model) => {
                let why = "is a run, which has its own weights; --weights is for a graph spec";
                Err(Failure::message(format!("{} {why}", model.display())))
            }
            Some(weights) => self.of_spec(&model.to_string_lossy(), weights, batch),
            None if !model.is_dir() => {
                let why = "is no directory of a run; a graph spec needs weights, with --weights FILE";
                Err(Failure::message(format!("{} {why}", model.display())))
            }
            None => self.of_run(model, batch),
        }
    }

    fn of_run(&self, model: &Path, batch: u64) -> Outcome<Opened> {
        let run = RunDir::open(model)?;
        let device = self.device.open_as(Some(&run.info().device))?;
        let (mut session, code) = inference(&run, device.as_ref(), batch)?;
        let none = || Failure::message(format!("{} holds no checkpoint yet; train it first", model.display()));
        let found = run.restore_part(self.checkpoint.as_deref(), &mut session, self.average)?.ok_or_else(none)?;
        let average = if self.average { "average" } else { "weights" };
        let content = format!("{code} {average} {}", found.content);
        opened(session, content, found.header.step, (run.pipeline(), run.vocabularies()?))
    }

    fn of_spec(&self, spec: &str, weights: &Path, batch: u64) -> Outcome<Opened> {
        let device = self.device.open()?;
        let folder = std::env::current_dir().unwrap_or_default();
        let (set, batch) = (self.set.clone(), Some(batch));
        let from = SpecSources { spec: spec.into(), folder, batch, set, ..SpecSources::default() };
        let (plan, pipeline, code) = used(from.clone(), device.as_ref())?;
        let mut session = Session::on(device.as_ref(), Arc::new(plan))?;
        let mut weights = Weights::open_as_ours(weights, None)?;
        weights.notes().iter().for_each(|said| note!("{said}"));
        crate::import::warn(&from, &weights, [true; 2])?;
        // What no weights of others have, such as gates, begins as in training.
        session.init(0)?;
        let assigned = assign(&mut session, &mut weights, None)?;
        if !assigned.kept.is_empty() {
            note!("not in the file, and left at their first values: {}", assigned.kept.join(", "));
        }
        crate::import::say_gates(&assigned.gates);
        let content = format!("{code} {}", weights.fingerprint()?);
        opened(session, content, 0, (pipeline, Vocabularies::default()))
    }
}

/// A model whose weights are in the session.
fn opened(
    mut session: Session,
    content: String,
    step: u64,
    (pipeline, vocabularies): (Option<Pipeline>, Vocabularies),
) -> Outcome<Opened> {
    let name = session.plan().name.clone();
    let programs = Encoder::new(&mut session)?.programs().clone();
    // These programs take images as the graph declares them, unless they are those of a plan.
    let in_bytes = programs.image.dtype == DType::U8;
    let pipeline = pipeline.map(|pipeline| match in_bytes {
        true => pipeline,
        false => Pipeline { bytes: BTreeSet::new(), ..pipeline },
    });
    let preparation = Preparation::of(&name, &programs, pipeline.as_ref())?;
    let scale = match session.plan().state(LOGIT_SCALE) {
        Some(_) => session.read_state(LOGIT_SCALE)?.first().map(f64::exp),
        None => None,
    };
    let tokenizer = preparation.tokenizer(&name, &vocabularies).ok();
    let words = tokenizer.as_ref().map(Tokenizer::content).unwrap_or_default();
    let content = fingerprint(format!("{content} {preparation:?} {words:?}").as_bytes());
    Ok(Opened { session, name, step, content, scale, pipeline, vocabularies, preparation })
}

/// The parameter of what cosines are multiplied with, by the name that CLIP gave it.
const LOGIT_SCALE: &str = "logit_scale";

impl Opened {
    /// The tokenizer that the model was trained with.
    pub(crate) fn tokenizer(&self) -> Outcome<Tokenizer> {
        Ok(self.preparation.tokenizer(&self.name, &self.vocabularies)?)
    }

    /// Embeds all images of a source, with a bar.
    pub(crate) fn images(&mut self, source: Arc<dyn SampleSource>, work: &Work<'_>) -> Outcome<Embedded> {
        let (pipeline, of) = (self.preparation.pipeline(), source.len());
        let Opened { session, vocabularies, .. } = self;
        work.counted("image", of, vocabularies, |reading| -> Result<_, EncodeError> {
            Encoder::new(session)?.samples(&pipeline, source, reading)
        })
    }

    /// Weighs all samples of a source as a pipeline prepares them, with a bar; how many could not be read.
    pub(crate) fn weigh(
        &mut self,
        pipeline: &Pipeline,
        source: &Arc<dyn SampleSource>,
        work: &Work<'_>,
        each: impl FnMut(Weighed) -> Outcome<()>,
    ) -> Outcome<usize> {
        let Opened { session, vocabularies, .. } = self;
        work.counted("sample", source.len(), vocabularies, |reading| -> Outcome<usize> {
            Encoder::new(session)?.weigh(pipeline, Arc::clone(source), reading, each)
        })
    }

    /// A pipeline that delivers images as this model's programs read them.
    pub(crate) fn fit(&self, pipeline: Pipeline) -> Outcome<Pipeline> {
        let shape = |pipeline: &Pipeline, name: &String| {
            let delivered = pipeline.check().map_err(Failure::message)?;
            Ok::<_, Failure>(delivered.get(name).map(|output| format!("{} {:?}", output.dtype, output.shape)))
        };
        let own = self.pipeline.as_ref();
        let pipeline = Pipeline { bytes: own.map(|own| own.bytes.clone()).unwrap_or_default(), ..pipeline };
        for name in own.into_iter().flat_map(|own| own.outputs.keys()) {
            let (wanted, found) = (own.map(|own| shape(own, name)).transpose()?.flatten(), shape(&pipeline, name)?);
            if wanted != found {
                let (wanted, found) = (wanted.unwrap_or_default(), found.unwrap_or_else(|| "nothing".into()));
                let what = format!("pipeline `{}` delivers {found} as `{name}`", pipeline.name);
                return Err(Failure::message(format!("{what}, but `{}` was trained on {wanted}", self.name)));
            }
        }
        Ok(pipeline)
    }

    /// Embeds texts, with a bar.
    pub(crate) fn texts(&mut self, texts: &[String], work: &Work<'_>) -> Outcome<Vec<f32>> {
        if texts.is_empty() {
            // A model may read texts by words that nobody has here.
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer()?;
        let Opened { session, vocabularies, .. } = self;
        let of = texts.len() as u64;
        work.counted("text", of, vocabularies, |reading| -> Result<_, EncodeError> {
            Encoder::new(session)?.texts(&tokenizer, texts, reading)
        })
    }
}

/// How much work is done and shown.
pub(crate) struct Work<'a> {
    pub(crate) stop: &'a Stop,
    /// Largest share of images that may be unreadable.
    pub(crate) max_bad: f64,
}

impl Work<'_> {
    fn counted<T, E>(
        &self,
        what: &'static str,
        of: u64,
        vocabularies: &Vocabularies,
        embed: impl FnOnce(&Reading<'_>) -> Result<T, E>,
    ) -> Outcome<T>
    where
        Failure: From<E>,
    {
        let counter = RefCell::new(Counter::of(what));
        counter.borrow_mut().at(0, of);
        let found = embed(&Reading {
            vocabularies,
            workers: crate::train::default_workers() as usize,
            max_bad: self.max_bad,
            stop: self.stop.flag(),
            skipped: &|skipped| counter.borrow().note(&format!("left out {skipped}")),
            progress: &|done| counter.borrow_mut().at(done as u64, of),
        });
        counter.borrow().finish();
        Ok(found?)
    }
}

/// The programs of a spec that use a model, its pipeline, and what tells what they compute from what others do: the texts that it was
/// made from, wherever they lie, and what was changed of them.
fn used(from: SpecSources, device: &dyn Device) -> Outcome<(Plan, Option<Pipeline>, String)> {
    let (plan, pipeline, sources) = compile_all(from, None, device, (Purpose::Inference, Feed::File))?;
    let mut texts: Vec<&String> = sources.files.values().collect();
    texts.sort();
    let code = fingerprint(format!("{texts:?} {:?}", sources.set).as_bytes());
    Ok((plan, pipeline, code))
}

/// A run's programs that use its model. Where there is no spec to compile them of, they are those of its plan.
fn inference(run: &RunDir, device: &dyn Device, batch: u64) -> Outcome<(Session, String)> {
    let (plan, code) = match run.sources()? {
        Some(mut sources) => {
            sources.batch = Some(batch);
            let (plan, _, code) = used(sources, device)?;
            (plan, code)
        }
        None => (run.plan()?, run.info().plan.clone()),
    };
    Ok((Session::on(device, Arc::new(plan))?, code))
}
