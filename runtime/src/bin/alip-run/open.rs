//! A trained model, opened for use: its programs alone, compiled for the batch at hand, with its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_plan::pipeline::Pipeline;
use alip_runtime::data::{Tokenizer, Vocabularies};
use alip_runtime::device::Device;
use alip_runtime::eval::{Encoder, Preparation};
use alip_runtime::exec::Session;
use alip_runtime::run::RunDir;

use crate::model::{DeviceArgs, Feed, Purpose, compile};
use crate::{Failure, Outcome};

/// Samples of a batch where there are many: what two cores and a card's memory take at any size of model.
pub(crate) const BATCH: u64 = 64;

/// Which weights of a model, on which device.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
    /// A checkpoint of the run other than its newest
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Use the average of the weights that the run keeps (`ema`)
    #[arg(long)]
    pub(crate) average: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A model, ready to embed.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// Name of the graph.
    pub(crate) name: String,
    /// Steps that it was trained.
    pub(crate) step: u64,
    /// What it was trained on.
    pub(crate) pipeline: Option<Pipeline>,
    pub(crate) vocabularies: Vocabularies,
    /// How images and texts from anywhere are made fit for it.
    pub(crate) preparation: Preparation,
}

impl WeightsArgs {
    /// Opens the model in a run's directory, for batches of at most [`BATCH`] samples.
    pub(crate) fn open(&self, model: &Path, samples: u64) -> Outcome<Opened> {
        let run = RunDir::open(model)?;
        let device = self.device.open_as(Some(&run.info().device))?;
        let mut session = inference(&run, device.as_ref(), samples.clamp(1, BATCH))?;
        let none = || Failure::message(format!("{} holds no checkpoint yet; train it first", model.display()));
        let header = run.restore_part(self.checkpoint.as_deref(), &mut session, self.average)?.ok_or_else(none)?;
        let (name, pipeline) = (session.plan().name.clone(), run.pipeline());
        let programs = Encoder::new(&mut session)?.programs().clone();
        let preparation = Preparation::of(&name, &programs, pipeline.as_ref())?;
        let vocabularies = run.vocabularies()?;
        Ok(Opened { session, name, step: header.step, pipeline, vocabularies, preparation })
    }
}

impl Opened {
    /// The tokenizer that the model was trained with.
    pub(crate) fn tokenizer(&self) -> Outcome<Tokenizer> {
        Ok(self.preparation.tokenizer(&self.name, &self.vocabularies)?)
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
