//! A trained model, opened for use: its programs alone, compiled for the batch at hand, with its weights.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_plan::DType;
use alip_plan::pipeline::Pipeline;
use alip_runtime::data::{SampleSource, Tokenizer, Vocabularies};
use alip_runtime::device::Device;
use alip_runtime::eval::{Embedded, EncodeError, Encoder, Preparation, Reading, Weighed};
use alip_runtime::exec::Session;
use alip_runtime::run::RunDir;
use alip_runtime::run::tensors::TensorFile;

use crate::model::{DeviceArgs, Feed, Purpose, compile};
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
    /// The directory of a run [default: the run below `runs` that was written last]
    #[arg(long, short, value_name = "RUN")]
    model: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgs,
}

/// Which weights of a model, on which device.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
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
    /// Steps that it was trained.
    pub(crate) step: u64,
    /// What tells its weights from others.
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
    /// Opens the model in a run's directory, for batches of at most [`BATCH`] samples.
    pub(crate) fn open(&self, model: &Path, samples: u64) -> Outcome<Opened> {
        let run = RunDir::open(model)?;
        let device = self.device.open_as(Some(&run.info().device))?;
        let mut session = inference(&run, device.as_ref(), samples.clamp(1, BATCH))?;
        let none = || Failure::message(format!("{} holds no checkpoint yet; train it first", model.display()));
        let found = run.restore_part(self.checkpoint.as_deref(), &mut session, self.average)?.ok_or_else(none)?;
        let name = session.plan().name.clone();
        let programs = Encoder::new(&mut session)?.programs().clone();
        // These programs take images as the graph declares them, unless they are those of a plan.
        let in_bytes = programs.image.dtype == DType::U8;
        let pipeline = run.pipeline().map(|pipeline| match in_bytes {
            true => pipeline,
            false => Pipeline { bytes: BTreeSet::new(), ..pipeline },
        });
        let preparation = Preparation::of(&name, &programs, pipeline.as_ref())?;
        Ok(Opened {
            name,
            step: found.header.step,
            content: if self.average { format!("{} average", found.content) } else { found.content },
            scale: scale(&mut TensorFile::open(&found.path)?)?,
            pipeline,
            vocabularies: run.vocabularies()?,
            preparation,
            session,
        })
    }
}

/// exp(logit_scale), by the name that CLIP gave it.
fn scale(file: &mut TensorFile) -> Outcome<Option<f64>> {
    const LOGIT_SCALE: &str = "logit_scale";
    if file.info(LOGIT_SCALE).is_none() {
        return Ok(None);
    }
    Ok(file.read(LOGIT_SCALE, DType::F32)?.first().map(f64::exp))
}

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
    ) -> Outcome<u64> {
        let Opened { session, vocabularies, .. } = self;
        work.counted("sample", source.len(), vocabularies, |reading| -> Outcome<u64> {
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

/// A run's programs that use its model. Where there is no spec to compile them of, they are those of its plan.
fn inference(run: &RunDir, device: &dyn Device, batch: u64) -> Outcome<Session> {
    let plan = match run.sources()? {
        Some(mut sources) => {
            sources.batch = Some(batch);
            compile(sources, None, device, (Purpose::Inference, Feed::File))?.0
        }
        None => run.plan()?,
    };
    Ok(Session::on(device, Arc::new(plan))?)
}
