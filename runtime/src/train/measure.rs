//! What a trained model can do, measured on the held-out samples of its pipeline.
//!
//! A model is measured through programs that its plan has by convention; what a plan lacks is not measured:
//!
//! | program | from | to |
//! | --- | --- | --- |
//! | [`ENCODE_IMAGE`] | images | unit embeddings f32 \[B, D\] |
//! | [`ENCODE_TEXT`] | one input of token ids i32 \[B, T\] | unit embeddings f32 \[B, D\] |
//! | [`WEIGH`] | a batch | the sample weight f32 \[B\] that training gives each pair of texts |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alip_plan::pipeline::{Mode, Pipeline, Source};
use alip_plan::{DType, Plan, StateKind};
use serde::{Deserialize, Serialize};

use super::evaluate::{self, EvaluateError, Retrieval, Rows, ZeroShot};
use super::report::{Found, Sample, Weights};
use super::tables::check_indices;
use crate::data::shapes::{Kind, Scenes, ShapesSource, Split, prompts};
use crate::data::{
    Batch, DataError, DecodeLimits, Field, Loader, LoaderOptions, RgbImage, SampleSource, Tokenizer, Vocabularies,
    decode_rgb, open_source, resize,
};
use crate::exec::{ExecError, Session, Tensors};
use crate::tensor::HostTensor;

/// Name of the program that embeds images.
pub const ENCODE_IMAGE: &str = "encode_image";
/// Name of the program that embeds texts.
pub const ENCODE_TEXT: &str = "encode_text";
/// Name of the program that gives each sample its weight.
pub const WEIGH: &str = "weigh";

/// Ranks at which recall is measured.
const KS: [usize; 3] = [1, 5, 10];

/// Samples shown in a report, and the longer side of their pictures in pixels.
const SHOWN: usize = 8;
const SHOWN_SIDE: u32 = 96;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The data cannot be delivered.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The embeddings cannot be compared.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// The plan lacks a program that nothing can be measured without, or has it in another form.
    #[error(
        "the plan of `{plan}` cannot be evaluated: {why}; give its graph `programs: {{ \"{ENCODE_IMAGE}\": (inputs: [\"image\"], outputs: [\"x\"]), \"{ENCODE_TEXT}\": (inputs: [\"raw\"], outputs: [\"tr\"]) }}`"
    )]
    Program {
        /// Name of the graph.
        plan: String,
        /// What is missing or wrong.
        why: String,
    },
    /// All samples are for training, and have no captions to search for.
    #[error("`{kind}` has no held-out samples: a run on it is trained, and measured by none of its data")]
    NotHeldOut {
        /// The kind of source.
        kind: &'static str,
    },
    /// The average of the weights was asked for.
    #[error("the run of `{plan}` keeps no average of its weights: its graph has no `train: (ema: (decay: 0.999))`")]
    NoAverage {
        /// Name of the graph.
        plan: String,
    },
    /// Somebody asked to stop.
    #[error("stopped; nothing was measured")]
    Stopped,
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
    pub note: &'a dyn Fn(&str),
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
    let fail = |why: String| MeasureError::Program { plan: plan.name.clone(), why };
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
    let programs = Programs::of(session.plan())?;
    let mut model = Model { session, programs, how };
    let embedded = model.samples(Arc::clone(&source))?;
    let tokenizer = embedded.tokenizer.clone().ok_or_else(|| model.fail(NO_TEXTS))?;
    let (captions, owner) = captions(source.as_ref(), &embedded.rows)?;
    let texts = model.texts(&tokenizer, &captions)?;
    let dim = model.programs.dim;
    let images = Rows::new("image embeddings", &embedded.images, dim)?;
    let texts = Rows::new("text embeddings", &texts, dim)?;
    let retrieval = evaluate::retrieval(images, texts, &owner, &KS)?;
    let samples = shown(source.as_ref(), &embedded, images, texts, (&captions, &owner))?;
    let zero_shot = match &how.pipeline.source {
        Source::Shapes { size, seed, .. } => Some(model.zero_shot((*size, *seed))?),
        _ => None,
    };
    let results = Results {
        graph: model.session.plan().name.clone(),
        step: how.step,
        samples: embedded.rows.len(),
        skipped: embedded.skipped,
        retrieval,
        zero_shot,
        weights: embedded.weight_results(),
    };
    Ok((results, samples))
}

/// Puts the averages of the weights, which the training step keeps beside them, in their place.
///
/// # Errors
/// The plan keeps none, or the device fails.
pub fn use_average(session: &mut Session) -> Result<(), MeasureError> {
    let plan = Arc::clone(session.plan());
    let averages = plan.state.iter().filter(|state| state.kind == StateKind::Average);
    let mut found = false;
    for average in averages {
        let Some(path) = average.path.strip_prefix("average.") else { continue };
        let value = session.read_state(&average.path)?;
        session.write_state(path, &value)?;
        found = true;
    }
    if found { Ok(()) } else { Err(MeasureError::NoAverage { plan: plan.name.clone() }) }
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

/// Held-out samples after the towers.
struct Embedded {
    /// Row-major \[samples, D\].
    images: Vec<f32>,
    /// Index of each in the source.
    rows: Vec<u64>,
    weights: Vec<f32>,
    raw_wrong: Vec<i64>,
    class: Vec<i64>,
    skipped: usize,
    tokenizer: Option<Tokenizer>,
}

impl Embedded {
    fn weight_results(&self) -> Option<WeightResults> {
        if self.weights.is_empty() || self.raw_wrong.len() != self.weights.len() {
            return None;
        }
        let of = |wrong: bool| -> Vec<f32> {
            let pairs = self.weights.iter().zip(&self.raw_wrong);
            pairs.filter(|(_, label)| (**label != 0) == wrong).map(|(weight, _)| *weight).collect()
        };
        let weights = Weights { right: of(false), wrong: of(true) };
        let auc = evaluate::auc(&weights.right, &weights.wrong)?;
        Some(WeightResults { auc, weights })
    }
}

/// What is measured through, of a plan.
struct Programs {
    batch: usize,
    dim: usize,
    image_output: String,
    text_input: String,
    text_output: String,
    context: usize,
    weight_output: Option<String>,
}

impl Programs {
    fn of(plan: &Plan) -> Result<Programs, MeasureError> {
        let fail = |why: String| MeasureError::Program { plan: plan.name.clone(), why };
        let port = |program: &str, rank: usize| {
            let found = plan.programs.get(program).ok_or_else(|| fail(format!("it has no program `{program}`")))?;
            let [port] = found.outputs.as_slice() else {
                return Err(fail(format!("`{program}` has {} outputs instead of one", found.outputs.len())));
            };
            let shape = found.output(&port.name).map(|buffer| buffer.shape.clone()).unwrap_or_default();
            if shape.len() != rank {
                return Err(fail(format!(
                    "the output of `{program}` has {} dimensions instead of {rank}",
                    shape.len()
                )));
            }
            Ok((port.name.clone(), shape))
        };
        let (image_output, images) = port(ENCODE_IMAGE, 2)?;
        let (text_output, texts) = port(ENCODE_TEXT, 2)?;
        if images != texts {
            return Err(fail(format!("`{ENCODE_IMAGE}` gives {images:?} and `{ENCODE_TEXT}` gives {texts:?}")));
        }
        let encode_text = &plan.programs[ENCODE_TEXT];
        let (text_input, context) = match encode_text.batch_inputs().next() {
            Some((name, buffer)) if buffer.dtype == DType::I32 && buffer.shape.len() == 2 => {
                (name.to_string(), buffer.shape[1])
            }
            _ => return Err(fail(format!("`{ENCODE_TEXT}` does not read token ids of shape [B, T]"))),
        };
        let weight_output = plan.programs.contains_key(WEIGH).then(|| port(WEIGH, 1)).transpose()?;
        Ok(Programs {
            batch: images[0] as usize,
            dim: images[1] as usize,
            image_output,
            text_input,
            text_output,
            context: context as usize,
            weight_output: weight_output.map(|(name, _)| name),
        })
    }
}

/// A model under measurement.
struct Model<'a> {
    session: &'a mut Session,
    programs: Programs,
    how: &'a Measuring<'a>,
}

impl Model<'_> {
    fn fail(&self, why: &str) -> MeasureError {
        MeasureError::Program { plan: self.session.plan().name.clone(), why: why.to_string() }
    }

    /// Between batches.
    fn go_on(&self) -> Result<(), MeasureError> {
        if self.how.stop.load(Ordering::Relaxed) { Err(MeasureError::Stopped) } else { Ok(()) }
    }

    /// Runs a program on a batch and keeps the rows wanted of its only output.
    fn rows(&mut self, program: &str, output: &str, inputs: &Tensors, keep: &[usize]) -> Result<Vec<f32>, ExecError> {
        let outputs = self.session.run_for(program, inputs, &[output])?;
        let Some(tensor) = outputs.get(output) else { return Ok(Vec::new()) };
        let values = tensor.to_f32();
        let width = values.len() / self.programs.batch.max(1);
        Ok(keep.iter().flat_map(|row| values[row * width..(row + 1) * width].iter().copied()).collect())
    }

    /// Embeds every sample of a source; samples that cannot be read are left out.
    fn samples(&mut self, source: Arc<dyn SampleSource>) -> Result<Embedded, MeasureError> {
        let Measuring { pipeline, vocabularies, workers, max_bad, note, .. } = *self.how;
        let vocabularies = vocabularies.clone();
        let options = LoaderOptions { workers, max_bad, vocabularies, ..LoaderOptions::eval(self.programs.batch) };
        let mut loader = Loader::new(pipeline, source, &options)?;
        let tokenizer = loader.transform().tokenizer().cloned();
        let mut all = Embedded {
            images: Vec::new(),
            rows: Vec::new(),
            weights: Vec::new(),
            raw_wrong: Vec::new(),
            class: Vec::new(),
            skipped: 0,
            tokenizer,
        };
        while let Some(batch) = loader.next()? {
            self.go_on()?;
            batch.skipped.iter().for_each(|skipped| note(&format!("left out {skipped}")));
            for program in [ENCODE_IMAGE, WEIGH] {
                check_indices(self.session.plan(), program, &batch, |index| loader.name(index))?;
            }
            let keep = usable(&batch);
            all.skipped += batch.valid - keep.len();
            let output = self.programs.image_output.clone();
            all.images.extend(self.rows(ENCODE_IMAGE, &output, &batch.tensors, &keep)?);
            if let Some(output) = self.programs.weight_output.clone() {
                all.weights.extend(self.rows(WEIGH, &output, &batch.tensors, &keep)?);
            }
            all.rows.extend(keep.iter().map(|&row| batch.rows[row]));
            for (name, into) in [("raw_wrong", &mut all.raw_wrong), ("class", &mut all.class)] {
                let labels = batch.labels.get(name).into_iter();
                into.extend(labels.flat_map(|labels| keep.iter().map(|&row| labels[row])));
            }
            loader.give_back(batch);
        }
        Ok(all)
    }

    /// Embeds texts.
    fn texts(&mut self, tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<f32>, MeasureError> {
        let Programs { batch, dim, context, .. } = self.programs;
        let mut embeddings = Vec::with_capacity(texts.len() * dim);
        let (input, output) = (self.programs.text_input.clone(), self.programs.text_output.clone());
        for chunk in texts.chunks(batch) {
            self.go_on()?;
            let mut ids = vec![0; batch * context];
            for (text, row) in chunk.iter().zip(ids.chunks_exact_mut(context)) {
                tokenizer.encode_into(text, row);
            }
            let shape = [batch as u64, context as u64];
            let ids = HostTensor::i32(&shape, ids).map_err(DataError::from)?;
            let keep: Vec<usize> = (0..chunk.len()).collect();
            embeddings.extend(self.rows(ENCODE_TEXT, &output, &Tensors::from([(input.clone(), ids)]), &keep)?);
        }
        Ok(embeddings)
    }

    /// Classifies scenes of one object by its kind, from prompts alone.
    fn zero_shot(&mut self, (size, seed): (u32, u64)) -> Result<ZeroShot, MeasureError> {
        let scenes = Scenes::new(seed, Split::ZeroShot, Split::ZeroShot.default_len()).map_err(DataError::from)?;
        let embedded = self.samples(Arc::new(ShapesSource::new(scenes, size)))?;
        let tokenizer = embedded.tokenizer.clone().ok_or_else(|| self.fail(NO_TEXTS))?;
        let of_class = |class| prompts(Kind::from_class(class)).into_iter().map(move |prompt| (prompt, class));
        let (texts, class_of): (Vec<String>, Vec<usize>) = (0..Kind::COUNT).flat_map(of_class).unzip();
        let texts = self.texts(&tokenizer, &texts)?;
        let prompts = Rows::new("prompt embeddings", &texts, self.programs.dim)?;
        let classes = evaluate::class_embeddings(prompts, &class_of, Kind::COUNT)?;
        let classes = Rows::new("class embeddings", &classes, self.programs.dim)?;
        let images = Rows::new("image embeddings", &embedded.images, self.programs.dim)?;
        let labels: Vec<usize> = embedded.class.iter().map(|&class| class as usize).collect();
        Ok(evaluate::zero_shot(images, classes, &labels)?)
    }
}

/// Rows of a batch that count and hold their own sample.
fn usable(batch: &Batch) -> Vec<usize> {
    (0..batch.valid).filter(|row| batch.skipped.iter().all(|skipped| skipped.row != *row)).collect()
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
        let Some(picture) = sample.fields.values().find_map(picture) else { continue };
        let nearest = evaluate::nearest(images.row(row), texts, 3)?;
        samples.push(Sample {
            picture: picture.into(),
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

/// The image of a sample, small enough to show.
fn picture(field: &Field) -> Option<RgbImage> {
    let image = match field {
        Field::Rgb(image) => image.clone(),
        Field::Encoded(bytes) => decode_rgb(bytes, DecodeLimits::default()).ok()?,
        Field::Text(_) | Field::Texts(_) | Field::Tokens(_) => return None,
    };
    let longest = image.width.max(image.height);
    if longest <= SHOWN_SIDE {
        return Some(image);
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(SHOWN_SIDE) / u64::from(longest)).max(1) as u32;
    let filter = alip_plan::pipeline::Filter::Triangle;
    Some(resize(&image, scaled(image.height), scaled(image.width), filter))
}
