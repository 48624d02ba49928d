//! What a trained model can do, measured on the held-out samples of its pipeline.
//!
//! A model is measured through the programs of [`crate::eval::Encoder`]; what a plan lacks is not measured.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use alip_plan::Plan;
use alip_plan::pipeline::{Mode, Pipeline, Source};
use serde::{Deserialize, Serialize};

use super::report::{Found, Picture, Sample, Weights};
use crate::data::shapes::{Kind, Scenes, ShapesSource, Split, prompts};
use crate::data::{DataError, Field, SampleSource, Skipped, Tokenizer, Transform, Vocabularies, open_source};
use crate::eval::measures::{self, MeasuresError, Retrieval, Rows, ZeroShot};
use crate::eval::{ENCODE_IMAGE, Embedded, EncodeError, Encoder, Programs, Reading, WEIGH};
use crate::exec::{ExecError, Session};

/// Ranks at which recall is measured.
pub(super) const KS: [usize; 3] = [1, 5, 10];

/// Samples shown in a report.
const SHOWN: usize = 8;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The samples cannot be embedded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The embeddings cannot be compared.
    #[error(transparent)]
    Measures(#[from] MeasuresError),
    /// All samples are for training, and have no captions to search for.
    #[error("`{kind}` has no held-out samples: a run on it is trained, and measured by none of its data")]
    NotHeldOut {
        /// The kind of source.
        kind: &'static str,
    },
}

impl From<DataError> for MeasureError {
    fn from(error: DataError) -> MeasureError {
        EncodeError::from(error).into()
    }
}

impl From<ExecError> for MeasureError {
    fn from(error: ExecError) -> MeasureError {
        EncodeError::from(error).into()
    }
}

/// What is measured, and how.
pub struct Measuring<'a> {
    /// Its evaluation split.
    pub pipeline: &'a Pipeline,
    /// The words that the model was trained with.
    pub vocabularies: &'a Vocabularies,
    /// Threads that prepare samples.
    pub workers: usize,
    /// Largest share of samples that may be unusable, as [`LoaderOptions::max_bad`].
    pub max_bad: f64,
    /// Steps the model was trained.
    pub step: u64,
    /// Set from outside to stop after the batch.
    pub stop: &'a AtomicBool,
    /// Told of every sample that cannot be used.
    pub skipped: &'a dyn Fn(&Skipped),
}

/// The held-out samples of a pipeline that a plan can be measured on; without a device and without a trained model.
///
/// # Errors
/// The plan lacks the encoders, or there are no held-out samples or no texts.
pub fn held_out(plan: &Plan, pipeline: &Pipeline) -> Result<Arc<dyn SampleSource>, MeasureError> {
    Programs::of(plan)?;
    if !pipeline.source.has_held_out() {
        return Err(MeasureError::NotHeldOut { kind: pipeline.source.kind() });
    }
    let fail = |why: String| EncodeError::Program { plan: plan.name.clone(), why }.into();
    if !pipeline.body(Mode::Eval).iter().any(|node| node.op.tokenizes().is_some()) {
        return Err(fail(NO_TEXTS.into()));
    }
    for program in [ENCODE_IMAGE, WEIGH] {
        let inputs = plan.programs.get(program).into_iter().flat_map(|program| program.batch_inputs());
        for (name, _) in inputs {
            if !pipeline.outputs.iter().any(|(output, _)| output == name) {
                return Err(fail(format!("`{program}` reads `{name}`, which its pipeline does not deliver")));
            }
        }
    }
    Ok(open_source(&pipeline.source, Mode::Eval)?)
}

const NO_TEXTS: &str = "its pipeline delivers no texts";

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Name of the graph.
    pub graph: String,
    /// Steps the model was trained.
    pub step: u64,
    /// Held-out samples, and those among them that could not be read and were left out.
    pub samples: usize,
    /// Samples left out.
    pub skipped: usize,
    /// Between images and their true captions.
    pub retrieval: Retrieval,
    /// Classification of scenes of one object, where the data have classes.
    pub zero_shot: Option<ZeroShot>,
    /// How the sample weight tells right raw texts from wrong ones, where the model has one and the data know.
    pub weights: Option<WeightResults>,
}

/// Sample weights of held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightResults {
    /// The probability that a right raw text gets a larger weight than a wrong one.
    pub auc: f64,
    /// The weights.
    pub weights: Weights,
}

/// Measures the session's model. The samples are a few to show.
///
/// # Errors
/// The plan lacks the encoders, the data cannot be delivered, the device fails, the model has diverged, or somebody stopped it.
pub fn measure(session: &mut Session, how: &Measuring<'_>) -> Result<(Results, Vec<Sample>), MeasureError> {
    let source = held_out(session.plan(), how.pipeline)?;
    let graph = session.plan().name.clone();
    let tokenizer = Transform::new(how.pipeline, Mode::Eval, source.as_ref(), how.vocabularies)?.tokenizer().cloned();
    let no_texts = || EncodeError::Program { plan: graph.clone(), why: NO_TEXTS.into() };
    let tokenizer = tokenizer.ok_or_else(no_texts)?;
    let mut encoder = Encoder::new(session)?;
    let dim = encoder.programs().dim;
    let embedded = encoder.samples(how.pipeline, Arc::clone(&source), &how.reading())?;
    let (captions, owner) = captions(source.as_ref(), &embedded.rows)?;
    let texts = encoder.texts(&tokenizer, &captions, &how.reading())?;
    let images = Rows::new("image embeddings", &embedded.images, dim)?;
    let texts = Rows::new("text embeddings", &texts, dim)?;
    let retrieval = measures::retrieval(images, texts, &owner, &KS)?;
    let samples = shown(source.as_ref(), &embedded, images, texts, (&captions, &owner))?;
    let zero_shot = match &how.pipeline.source {
        Source::Shapes { size, seed, .. } => Some(zero_shot(&mut encoder, how, &tokenizer, (*size, *seed))?),
        _ => None,
    };
    let results = Results {
        graph,
        step: how.step,
        samples: embedded.rows.len(),
        skipped: embedded.skipped,
        retrieval,
        zero_shot,
        weights: weight_results(&embedded),
    };
    Ok((results, samples))
}

/// Every true caption of the samples, and the row each belongs to.
fn captions(source: &dyn SampleSource, rows: &[u64]) -> Result<(Vec<String>, Vec<usize>), DataError> {
    let (mut texts, mut owner) = (Vec::new(), Vec::new());
    for (row, &index) in rows.iter().enumerate() {
        texts.extend(source.captions(index)?);
        owner.resize(texts.len(), row);
    }
    Ok((texts, owner))
}

impl Measuring<'_> {
    fn reading(&self) -> Reading<'_> {
        let Measuring { vocabularies, workers, max_bad, stop, skipped, .. } = *self;
        Reading { vocabularies, workers, max_bad, stop, skipped, progress: &|_| {} }
    }
}

/// How the weights of samples tell right raw texts from wrong ones, where both are known.
fn weight_results(embedded: &Embedded) -> Option<WeightResults> {
    let raw_wrong = embedded.labels.get("raw_wrong")?;
    if embedded.weights.is_empty() {
        return None;
    }
    let of = |wrong: bool| -> Vec<f32> {
        let pairs = embedded.weights.iter().zip(raw_wrong);
        pairs.filter(|(_, label)| (**label != 0) == wrong).map(|(weight, _)| *weight).collect()
    };
    let weights = Weights { right: of(false), wrong: of(true) };
    let auc = measures::auc(&weights.right, &weights.wrong)?;
    Some(WeightResults { auc, weights })
}

/// Classifies scenes of one object by its kind, from prompts alone.
fn zero_shot(
    encoder: &mut Encoder<'_>,
    how: &Measuring<'_>,
    tokenizer: &Tokenizer,
    (size, seed): (u32, u64),
) -> Result<ZeroShot, MeasureError> {
    let scenes = Scenes::new(seed, Split::ZeroShot, Split::ZeroShot.default_len()).map_err(DataError::from)?;
    let dim = encoder.programs().dim;
    let embedded = encoder.samples(how.pipeline, Arc::new(ShapesSource::new(scenes, size)), &how.reading())?;
    let of_class = |class| prompts(Kind::from_class(class)).into_iter().map(move |prompt| (prompt, class));
    let (texts, class_of): (Vec<String>, Vec<usize>) = (0..Kind::COUNT).flat_map(of_class).unzip();
    let texts = encoder.texts(tokenizer, &texts, &how.reading())?;
    let prompts = Rows::new("prompt embeddings", &texts, dim)?;
    let classes = measures::class_embeddings(prompts, &class_of, Kind::COUNT)?;
    let images = Rows::new("image embeddings", &embedded.images, dim)?;
    let labels: Vec<usize> = embedded.labels.get("class").into_iter().flatten().map(|&class| class as usize).collect();
    Ok(measures::zero_shot(images, &classes, &labels)?)
}

/// A few samples with what the model finds for them.
fn shown(
    source: &dyn SampleSource,
    embedded: &Embedded,
    images: Rows<'_>,
    texts: Rows<'_>,
    (captions, owner): (&[String], &[usize]),
) -> Result<Vec<Sample>, MeasureError> {
    let mut samples = Vec::new();
    for (row, &index) in embedded.rows.iter().enumerate().take(SHOWN) {
        let Ok(sample) = source.sample(index) else { continue };
        let text = |name: &str| match sample.fields.get(name) {
            Some(Field::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let Some(picture) = sample.fields.values().find_map(Picture::of) else { continue };
        let nearest = measures::nearest(images.row(row), texts, 3)?;
        samples.push(Sample {
            picture,
            raw: text("raw"),
            caption: text("caption"),
            raw_is_wrong: sample.labels.get("raw_wrong").is_some_and(|&label| label != 0),
            weight: embedded.weights.get(row).map(|&weight| f64::from(weight)),
            found: nearest
                .into_iter()
                .map(|(text, _)| Found { text: captions[text].clone(), is_right: owner[text] == row })
                .collect(),
        });
    }
    Ok(samples)
}
