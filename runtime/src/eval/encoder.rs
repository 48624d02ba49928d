//! Images and texts to unit embeddings, through two programs that a plan has by convention.
//!
//! | program | from | to |
//! | --- | --- | --- |
//! | [`ENCODE_IMAGE`] | one input of images, f32 \[B, 3, S, S\], or u8 \[B, S, S, 3\] of a plan that normalises them | f32 \[B, D\] |
//! | [`ENCODE_TEXT`] | one input of token ids, i32 \[B, T\] | f32 \[B, D\] |
//! | [`WEIGH`] | a batch | the sample weight f32 \[B\] that training gives each pair of texts |
//!
//! The last is for graphs with gates alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alip_plan::pipeline::Pipeline;
use alip_plan::{Buffer, DType, Plan};

use crate::data::{
    Batch, DataError, Loader, LoaderOptions, SampleSource, Skipped, Tokenizer, Vocabularies, check_indices,
};
use crate::exec::{ExecError, Session, Tensors};
use crate::tensor::HostTensor;

/// Name of the program that embeds images.
pub const ENCODE_IMAGE: &str = "encode_image";
/// Name of the program that embeds texts.
pub const ENCODE_TEXT: &str = "encode_text";
/// Name of the program that gives each sample its weight.
pub const WEIGH: &str = "weigh";

/// Why something could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The data cannot be delivered.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The plan lacks a program, or has it in another form.
    #[error(
        "the plan of `{plan}` cannot be evaluated: {why}; give its graph `programs: {{ \"{ENCODE_IMAGE}\": (inputs: [\"image\"], outputs: [\"x\"]), \"{ENCODE_TEXT}\": (inputs: [\"raw\"], outputs: [\"tr\"]) }}`"
    )]
    Program {
        /// Name of the graph.
        plan: String,
        /// What is missing or wrong.
        why: String,
    },
    /// The table of tokens is smaller than the vocabulary.
    #[error(
        "`{plan}` cannot read texts: its table of tokens has {rows} rows, and the vocabulary '{vocab}' {ids} ids; name the vocabulary \
         that it was trained with in the pipeline of its graph (`data`), as in `tokenize(raw, {{T}}, vocab: 'words:512')`"
    )]
    Rows {
        /// Name of the graph.
        plan: String,
        /// Of the table.
        rows: u64,
        /// The vocabulary.
        vocab: String,
        /// Of the vocabulary.
        ids: u64,
    },
    /// The words of a vocabulary belong to a run.
    #[error(
        "the words of '{vocab}', which `{plan}` reads its texts with, were counted in the data that it was trained on: give the \
         directory of a run, which has kept them"
    )]
    Words {
        /// Name of the graph.
        plan: String,
        /// The vocabulary.
        vocab: String,
    },
    /// A model that weighs nothing.
    #[error(
        "`{plan}` cannot weigh samples: {why}; ALIP's graphs can, by `programs: {{ \"{WEIGH}\": (inputs: [\"raw\", \"caption\"], outputs: \
         [\"sample_weight\"]) }}`"
    )]
    NoGates {
        /// Name of the graph.
        plan: String,
        /// What is missing.
        why: String,
    },
    /// Somebody asked to stop.
    #[error("stopped before all was embedded")]
    Stopped,
}

/// The programs of a plan: their inputs, outputs and sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Programs {
    /// Samples of a batch, B.
    pub batch: usize,
    /// Numbers of an embedding, D.
    pub dim: usize,
    /// Name of the program's images.
    pub image_input: String,
    /// Type and shape of the program's images.
    pub image: Buffer,
    /// Token ids of a text, T.
    pub context: usize,
    /// Rows of the table that token ids are looked up in, where the plan knows.
    pub vocab_rows: Option<u64>,
    image_output: String,
    /// Name of the program's token ids.
    pub text_input: String,
    text_output: String,
    weight_output: Option<String>,
}

impl Programs {
    /// Those of a plan.
    ///
    /// # Errors
    /// It lacks one, or has it in another form.
    pub fn of(plan: &Plan) -> Result<Programs, EncodeError> {
        let fail = |why: String| EncodeError::Program { plan: plan.name.clone(), why };
        let port = |program: &str, rank: usize| {
            let found = plan.programs.get(program).ok_or_else(|| fail(format!("it has no program `{program}`")))?;
            let [port] = found.outputs.as_slice() else {
                return Err(fail(format!("`{program}` has {} outputs instead of one", found.outputs.len())));
            };
            let shape = found.output(&port.name).map(|buffer| buffer.shape.clone()).unwrap_or_default();
            if shape.len() != rank {
                let found = shape.len();
                return Err(fail(format!("the output of `{program}` has {found} dimensions instead of {rank}")));
            }
            Ok((port.name.clone(), shape))
        };
        let (image_output, images) = port(ENCODE_IMAGE, 2)?;
        let (text_output, texts) = port(ENCODE_TEXT, 2)?;
        if images != texts {
            return Err(fail(format!("`{ENCODE_IMAGE}` gives {images:?} and `{ENCODE_TEXT}` gives {texts:?}")));
        }
        let first = |program: &str| {
            let found = plan.programs[program].batch_inputs().next();
            found.map(|(name, buffer)| (name.to_string(), buffer.clone()))
        };
        let (text_input, context) = match first(ENCODE_TEXT) {
            Some((name, buffer)) if buffer.dtype == DType::I32 && buffer.shape.len() == 2 => (name, buffer.shape[1]),
            _ => return Err(fail(format!("`{ENCODE_TEXT}` does not read token ids of shape [B, T]"))),
        };
        let (image_input, image) = match first(ENCODE_IMAGE) {
            Some((name, buffer)) if buffer.shape.len() == 4 => (name, buffer),
            _ => return Err(fail(format!("`{ENCODE_IMAGE}` does not read images of shape [B, 3, S, S]"))),
        };
        let ids = plan.programs[ENCODE_TEXT].inputs.iter().find(|port| port.name == text_input);
        let weight_output = plan.programs.contains_key(WEIGH).then(|| port(WEIGH, 1)).transpose()?;
        Ok(Programs {
            batch: images[0] as usize,
            dim: images[1] as usize,
            image_input,
            image,
            context: context as usize,
            vocab_rows: ids.and_then(|port| port.rows),
            image_output,
            text_input,
            text_output,
            weight_output: weight_output.map(|(name, _)| name),
        })
    }
}

/// How samples are read, and what is told meanwhile.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    /// Words of the pipeline's tokenizers.
    pub vocabularies: &'a Vocabularies,
    /// Threads that prepare samples.
    pub workers: usize,
    /// Largest share of samples that may be unusable, as [`LoaderOptions::max_bad`].
    pub max_bad: f64,
    /// Set from outside to stop after the batch.
    pub stop: &'a AtomicBool,
    /// Told of every sample that cannot be used.
    pub skipped: &'a dyn Fn(&Skipped),
    /// Told how many samples or texts have been embedded.
    pub progress: &'a dyn Fn(usize),
}

/// Samples after the towers; all lists have an entry for each that could be read, in the source's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// Image embeddings, row-major \[samples, D\].
    pub images: Vec<f32>,
    /// Index of each in the source.
    pub rows: Vec<u64>,
    /// The sample weights of a model with gates, where the pipeline delivers both texts.
    pub weights: Vec<f32>,
    /// The source's labels by name.
    pub labels: BTreeMap<String, Vec<i64>>,
    /// Samples that could not be read and were left out.
    pub skipped: usize,
}

/// What a model with gates thinks of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighed {
    /// Index of the sample in the source.
    pub row: u64,
    /// The sample weight, 0 to 1.
    pub weight: f32,
    /// Cosine of raw text and synthetic caption.
    pub text_similarity: f32,
    /// Cosine of image and raw text.
    pub raw_similarity: f32,
    /// Cosine of image and synthetic caption.
    pub caption_similarity: f32,
}

/// A model that embeds.
pub struct Encoder<'a> {
    session: &'a mut Session,
    programs: Programs,
}

impl<'a> Encoder<'a> {
    /// The model of a session.
    ///
    /// # Errors
    /// Its plan lacks the programs.
    pub fn new(session: &'a mut Session) -> Result<Encoder<'a>, EncodeError> {
        let programs = Programs::of(session.plan())?;
        Ok(Encoder { session, programs })
    }

    /// The programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Embeds every sample of a source as the pipeline's evaluation body prepares it, and weighs it where the model has gates and
    /// the pipeline delivers what they read. Samples that cannot be read are left out, counted and told. Memory holds a few
    /// batches besides the embeddings.
    ///
    /// # Errors
    /// The data cannot be delivered, the device fails, or somebody stopped it.
    pub fn samples(
        &mut self,
        pipeline: &Pipeline,
        source: Arc<dyn SampleSource>,
        reading: &Reading<'_>,
    ) -> Result<Embedded, EncodeError> {
        let weight_output = self.programs.weight_output.clone().filter(|_| {
            let inputs = self.session.plan().programs[WEIGH].batch_inputs();
            inputs.into_iter().all(|(name, _)| pipeline.outputs.contains_key(name))
        });
        let output = self.programs.image_output.clone();
        let mut all = Embedded::default();
        all.skipped =
            self.each_batch(pipeline, source, reading, |encoder, batch, keep| -> Result<(), EncodeError> {
                all.images.extend(encoder.run(ENCODE_IMAGE, &output, &batch.tensors, keep)?);
                if let Some(output) = &weight_output {
                    all.weights.extend(encoder.run(WEIGH, output, &batch.tensors, keep)?);
                }
                all.rows.extend(keep.iter().map(|&row| batch.rows[row]));
                for (name, labels) in &batch.labels {
                    all.labels.entry(name.clone()).or_default().extend(keep.iter().map(|&row| labels[row]));
                }
                Ok(())
            })?;
        Ok(all)
    }

    /// Weighs every sample of a source as the pipeline's evaluation body prepares it, and gives them to `each` in the source's
    /// order. Samples that cannot be read are left out, counted and told; how many they are is returned. Memory holds a few batches.
    ///
    /// # Errors
    /// The model has no gates, the pipeline does not deliver what it reads, the data cannot be delivered, the device fails, `each`
    /// does, or somebody stopped it.
    pub fn weigh<E: From<EncodeError>>(
        &mut self,
        pipeline: &Pipeline,
        source: Arc<dyn SampleSource>,
        reading: &Reading<'_>,
        mut each: impl FnMut(Weighed) -> Result<(), E>,
    ) -> Result<usize, E> {
        let (weight_output, caption_input) = self.gates(pipeline)?;
        let Programs { image_output, text_input, text_output, .. } = self.programs.clone();
        self.each_batch(pipeline, source, reading, |encoder, batch, keep| {
            let captions = batch.tensors.get(&caption_input).cloned();
            let captions = captions.into_iter().map(|ids| (text_input.clone(), ids)).collect();
            let weights = encoder.run(WEIGH, &weight_output, &batch.tensors, keep).map_err(EncodeError::from)?;
            let images = encoder.run(ENCODE_IMAGE, &image_output, &batch.tensors, keep).map_err(EncodeError::from)?;
            let raw = encoder.run(ENCODE_TEXT, &text_output, &batch.tensors, keep).map_err(EncodeError::from)?;
            let captions = encoder.run(ENCODE_TEXT, &text_output, &captions, keep).map_err(EncodeError::from)?;
            let rows = [&images, &raw, &captions].map(|of| of.chunks_exact(encoder.programs.dim));
            let [images, raw, captions] = rows;
            let samples = keep.iter().zip(weights).zip(images.zip(raw).zip(captions));
            for ((&place, weight), ((image, raw), caption)) in samples {
                each(Weighed {
                    row: batch.rows[place],
                    weight,
                    text_similarity: inner(raw, caption),
                    raw_similarity: inner(image, raw),
                    caption_similarity: inner(image, caption),
                })?;
            }
            Ok(())
        })
    }

    /// Goes over a source once, as the pipeline's evaluation body prepares it, a batch at a time, with the rows of each that hold their
    /// own sample; samples that cannot be read are told, and how many they are is returned.
    fn each_batch<E: From<EncodeError>>(
        &mut self,
        pipeline: &Pipeline,
        source: Arc<dyn SampleSource>,
        reading: &Reading<'_>,
        mut visit: impl FnMut(&mut Encoder<'a>, &Batch, &[usize]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let vocabularies = reading.vocabularies.clone();
        let Reading { workers, max_bad, .. } = *reading;
        let options = LoaderOptions { workers, max_bad, vocabularies, ..LoaderOptions::eval(self.programs.batch) };
        let mut loader = Loader::new(pipeline, source, &options).map_err(EncodeError::from)?;
        let (mut seen, mut left_out) = (0, 0);
        while let Some(batch) = loader.next().map_err(EncodeError::from)? {
            go_on(reading)?;
            batch.skipped.iter().for_each(reading.skipped);
            for program in [ENCODE_IMAGE, WEIGH] {
                let checked = check_indices(self.session.plan(), program, &batch, |index| loader.name(index));
                checked.map_err(EncodeError::from)?;
            }
            let keep = usable(&batch);
            visit(self, &batch, &keep)?;
            seen += batch.valid;
            left_out += batch.valid - keep.len();
            (reading.progress)(seen);
            loader.give_back(batch);
        }
        Ok(left_out)
    }

    /// The output of [`WEIGH`] and its input of captions: that which is not the text of [`ENCODE_TEXT`].
    fn gates(&self, pipeline: &Pipeline) -> Result<(String, String), EncodeError> {
        let plan = self.session.plan();
        let fail = |why: String| EncodeError::NoGates { plan: plan.name.clone(), why };
        let output = self.programs.weight_output.clone();
        let output = output.ok_or_else(|| fail(format!("its graph has no program `{WEIGH}`")))?;
        let inputs: Vec<&str> = plan.programs[WEIGH].batch_inputs().map(|(name, _)| name).collect();
        let raw = self.programs.text_input.as_str();
        let caption = match inputs.as_slice() {
            [first, second] if *first == raw => *second,
            [first, second] if *second == raw => *first,
            _ => return Err(fail(format!("`{WEIGH}` reads {} instead of `{raw}` and captions", inputs.join(", ")))),
        };
        for name in [&self.programs.image_input, raw, caption] {
            if !pipeline.outputs.contains_key(name) {
                return Err(fail(format!("pipeline `{}` delivers no `{name}`", pipeline.name)));
            }
        }
        Ok((output, caption.to_string()))
    }

    /// Embeds texts, row-major \[texts, D\].
    ///
    /// # Errors
    /// The device fails, or somebody stopped it.
    pub fn texts(
        &mut self,
        tokenizer: &Tokenizer,
        texts: &[String],
        reading: &Reading<'_>,
    ) -> Result<Vec<f32>, EncodeError> {
        let Programs { batch, dim, context, .. } = self.programs;
        let mut embeddings = Vec::with_capacity(texts.len() * dim);
        let (input, output) = (self.programs.text_input.clone(), self.programs.text_output.clone());
        for chunk in texts.chunks(batch) {
            go_on(reading)?;
            let mut ids = vec![0; batch * context];
            for (text, row) in chunk.iter().zip(ids.chunks_exact_mut(context)) {
                tokenizer.encode_into(text, row);
            }
            let shape = [batch as u64, context as u64];
            let ids = HostTensor::i32(&shape, ids).map_err(DataError::from)?;
            let keep: Vec<usize> = (0..chunk.len()).collect();
            embeddings.extend(self.run(ENCODE_TEXT, &output, &Tensors::from([(input.clone(), ids)]), &keep)?);
            (reading.progress)(embeddings.len() / dim.max(1));
        }
        Ok(embeddings)
    }

    /// Runs a program on a batch and keeps the rows wanted of its only output.
    fn run(&mut self, program: &str, output: &str, inputs: &Tensors, keep: &[usize]) -> Result<Vec<f32>, ExecError> {
        let outputs = self.session.run_for(program, inputs, &[output])?;
        let Some(tensor) = outputs.get(output) else { return Ok(Vec::new()) };
        let values = tensor.to_f32();
        let width = values.len() / self.programs.batch.max(1);
        Ok(keep.iter().flat_map(|row| values[row * width..(row + 1) * width].iter().copied()).collect())
    }
}

fn inner(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// Between batches.
fn go_on(reading: &Reading<'_>) -> Result<(), EncodeError> {
    if reading.stop.load(Ordering::Relaxed) { Err(EncodeError::Stopped) } else { Ok(()) }
}

/// Rows of a batch that count and hold their own sample.
fn usable(batch: &Batch) -> Vec<usize> {
    (0..batch.valid).filter(|row| batch.skipped.iter().all(|skipped| skipped.row != *row)).collect()
}
