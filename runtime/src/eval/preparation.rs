//! How images and texts from anywhere come to a trained model.

use std::collections::{BTreeMap, BTreeSet};

use alip_plan::DType;
use alip_plan::pipeline::{
    CLIP_MEAN, CLIP_STD, CenterCrop, DecodeRgb, Filter, Mode, Normalization, NormalizeRgb, Pipeline, PipelineNode,
    PipelineOp, ResizeShorter, Source, Vocab,
};

use super::encoder::{EncodeError, Programs};
use crate::data::{Tokenizer, Vocabularies};

/// The field of every source of image files.
const JPEG: &str = "jpeg";

/// How images and texts that are not of a model's own pipeline are prepared for it, as the papers on CLIP do: the shorter side
/// becomes the model's by bicubic interpolation with antialiasing, the middle is cut out and normalised as in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// Side of the model's images in pixels.
    pub side: u32,
    /// How their levels become numbers.
    pub normalization: Normalization,
    /// The tokenizer of the model's texts.
    pub vocab: Vocab,
    /// Rows of the table that ids are looked up in, where it is known.
    rows: Option<u64>,
    image_input: String,
    in_bytes: bool,
}

/// How a pipeline normalises the images that it delivers by this name, where it does so last.
pub fn normalization(pipeline: &Pipeline, images: &str) -> Option<Normalization> {
    let value = pipeline.outputs.get(images)?;
    match pipeline.body(Mode::Eval).iter().find(|node| node.name == *value).map(|node| &node.op) {
        Some(PipelineOp::NormalizeRgb(NormalizeRgb { mean, std })) => Some(Normalization { mean: *mean, std: *std }),
        _ => None,
    }
}

/// The vocabulary of the texts that a pipeline delivers by this name, or of the first texts that it has.
pub fn vocabulary(pipeline: &Pipeline, texts: &str) -> Option<Vocab> {
    let body = pipeline.body(Mode::Eval);
    let value = pipeline.outputs.get(texts);
    let own = body.iter().find(|node| Some(&node.name) == value).and_then(|node| node.op.tokenizes());
    own.or_else(|| body.iter().find_map(|node| node.op.tokenizes())).cloned()
}

impl Preparation {
    /// What a plan's programs need, with normalisation and vocabulary of the pipeline that the model was trained on; without
    /// one they are CLIP's.
    ///
    /// # Errors
    /// The plan's images are no squares of three channels.
    pub fn of(plan: &str, programs: &Programs, trained_on: Option<&Pipeline>) -> Result<Preparation, EncodeError> {
        let fail = |why: String| EncodeError::Program { plan: plan.into(), why };
        let shape = programs.image.shape.as_slice();
        let (side, in_bytes) = match (programs.image.dtype, shape) {
            (DType::U8, [_, height, width, 3]) if height == width => (*height, true),
            (DType::U8, _) => return Err(fail(format!("its images have the shape {shape:?} instead of [B, S, S, 3]"))),
            (_, [_, 3, height, width]) if height == width => (*height, false),
            _ => return Err(fail(format!("its images have the shape {shape:?} instead of [B, 3, S, S]"))),
        };
        let own = trained_on.and_then(|pipeline| normalization(pipeline, &programs.image_input));
        let normalization = own.unwrap_or(Normalization { mean: CLIP_MEAN, std: CLIP_STD });
        let own = trained_on.and_then(|pipeline| vocabulary(pipeline, &programs.text_input));
        let vocab = own.unwrap_or(Vocab::Clip);
        let side = u32::try_from(side).map_err(|_| fail(format!("its images are {side} pixels wide")))?;
        let rows = programs.vocab_rows;
        Ok(Preparation { side, normalization, vocab, rows, image_input: programs.image_input.clone(), in_bytes })
    }

    /// The pipeline of a source of image files, whose field is `jpeg`.
    pub fn pipeline(&self) -> Pipeline {
        let Preparation { side, normalization: Normalization { mean, std }, .. } = *self;
        let steps: [(&str, &str, PipelineOp); 4] = [
            ("rgb", JPEG, DecodeRgb.into()),
            ("resized", "rgb", ResizeShorter { size: side, filter: Filter::Bicubic }.into()),
            ("cut", "resized", CenterCrop { height: side, width: side }.into()),
            ("image", "cut", NormalizeRgb { mean, std }.into()),
        ];
        let node = |(name, input, op): (&str, &str, PipelineOp)| PipelineNode {
            name: name.into(),
            op,
            inputs: vec![input.into()],
        };
        let image = self.image_input.clone();
        Pipeline {
            name: "evaluation".into(),
            // Any source of image files stands for all: they have the same field.
            source: Source::Files { path: String::new(), texts: BTreeMap::new() },
            shuffle: None,
            ops: steps.map(node).into(),
            eval_ops: None,
            bytes: if self.in_bytes { BTreeSet::from([image.clone()]) } else { BTreeSet::new() },
            outputs: BTreeMap::from([(image, "image".into())]),
        }
    }

    /// The tokenizer, with the words that the model was trained with where it has such.
    ///
    /// # Errors
    /// The model's table of tokens has fewer rows than the vocabulary; it is not among `vocabularies` and in no file that can be read.
    pub fn tokenizer(&self, plan: &str, vocabularies: &Vocabularies) -> Result<Tokenizer, EncodeError> {
        let check = |ids: u64| match self.rows.filter(|rows| *rows < ids) {
            Some(rows) => Err(EncodeError::Rows { plan: plan.into(), rows, vocab: self.vocab.to_string(), ids }),
            None => Ok(()),
        };
        // What is known of a vocabulary without reading it is told first.
        self.vocab.size().map_or(Ok(()), |ids| check(ids.into()))?;
        let known = vocabularies.tokenizer(&self.vocab)?;
        let tokenizer = match known {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::without_source(&self.vocab)?
                .ok_or_else(|| EncodeError::Words { plan: plan.into(), vocab: self.vocab.to_string() })?,
        };
        check(tokenizer.vocab_size().into())?;
        Ok(tokenizer)
    }
}
