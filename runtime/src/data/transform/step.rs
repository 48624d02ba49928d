//! What an op does to a sample: what it is given, where its random numbers come from, what it gives back.

use std::borrow::Cow;

use alip_plan::philox::{counter, philox4x32, uniform, uniform_f64};
use alip_plan::pipeline::{PipelineOp, Vocab};

use super::images::LevelTable;
use super::texts::{AllTokens, Tokens};
use super::windows::Crop;
use crate::data::decode::{DecodeLimits, upright_size};
use crate::data::order::below;
use crate::data::{DataError, Field, RgbImage, SampleError, Tokenizer, scratch};

/// An op, ready to run.
pub(super) trait Apply: Send + Sync {
    /// Its results for a sample. What it draws depends on nothing but `draws`.
    ///
    /// # Errors
    /// Why the sample cannot be used.
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError>;
}

/// A node, ready to run.
pub(super) enum Step {
    /// An op.
    Apply(Box<dyn Apply>),
    /// `normalize_rgb`, which writes straight into rows of the batch.
    Normalize(Box<LevelTable>),
    /// Result `index` of the op at a position, behind its first.
    Further { maker: usize, index: usize },
}

/// A node as a step; `tokenizer` opens vocabularies for rows of a length, `maker` is the position of the op that a further result is of.
pub(super) fn step(
    op: PipelineOp,
    maker: Option<usize>,
    mut tokenizer: impl FnMut(&Vocab, u32) -> Result<Tokenizer, DataError>,
) -> Result<Step, DataError> {
    fn apply(op: impl Apply + 'static) -> Step {
        Step::Apply(Box::new(op))
    }
    Ok(match op {
        PipelineOp::RandomAreaCrop(op) => apply(op),
        PipelineOp::RandomResizedCrop(op) => apply(op),
        PipelineOp::WholeWindow(op) => apply(op),
        PipelineOp::Crop(op) => apply(op),
        PipelineOp::CenterCrop(op) => apply(op),
        PipelineOp::DecodeRgb(op) => apply(op),
        PipelineOp::Resize(op) => apply(op),
        PipelineOp::ResizeShorter(op) => apply(op),
        PipelineOp::Mirror(op) => apply(op),
        PipelineOp::Rotate(op) => apply(op),
        PipelineOp::NormalizeRgb(op) => Step::Normalize(Box::new(LevelTable::new(op.mean, op.std))),
        PipelineOp::ColorJitter(op) => apply(op),
        PipelineOp::Grayscale(op) => apply(op),
        PipelineOp::Solarize(op) => apply(op),
        PipelineOp::GaussianBlur(op) => apply(op),
        PipelineOp::PatchMask(op) => apply(op),
        PipelineOp::BlockMask(op) => apply(op),
        PipelineOp::Prefix(op) => apply(op),
        PipelineOp::Pick(op) => apply(op),
        PipelineOp::Choose(op) => apply(op),
        PipelineOp::DropWords(op) => apply(op),
        PipelineOp::SwapWords(op) => apply(op),
        PipelineOp::Tokenize(op) => {
            apply(Tokens { tokenizer: tokenizer(&op.vocab, op.context)?, context: op.context as usize })
        }
        PipelineOp::TokenizeAll(op) => apply(AllTokens {
            tokenizer: tokenizer(&op.vocab, op.context)?,
            count: op.count as usize,
            context: op.context as usize,
        }),
        PipelineOp::MaskTokens(op) => apply(op),
        // `Pipeline::check` proves that there is an op, and that it has the result.
        PipelineOp::Further { index } => {
            Step::Further { maker: maker.unwrap_or(usize::MAX), index: (index as usize).saturating_sub(1) }
        }
    })
}

/// A value while a sample is worked on.
pub(super) enum Value {
    Field(Field),
    Crop(Crop),
    /// A row of numbers.
    Floats(Vec<f32>),
    /// A tensor, already in the rows of the outputs that deliver it.
    Written,
}

/// Results of an op.
pub(super) struct Made {
    pub(super) first: Value,
    pub(super) further: Vec<Value>,
}

impl Made {
    /// A result, and the numbers that say what was drawn for it.
    pub(super) fn drawn(first: impl Into<Value>, drawn: impl Into<Vec<f32>>) -> Made {
        Made { first: first.into(), further: vec![Value::Floats(drawn.into())] }
    }
}

impl<V: Into<Value>> From<V> for Made {
    fn from(first: V) -> Made {
        Made { first: first.into(), further: Vec::new() }
    }
}

impl From<RgbImage> for Value {
    fn from(image: RgbImage) -> Value {
        Value::Field(Field::Rgb(image))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Field(Field::Text(text))
    }
}

impl From<Vec<i32>> for Value {
    fn from(ids: Vec<i32>) -> Value {
        Value::Field(Field::Tokens(ids))
    }
}

impl From<Crop> for Value {
    fn from(crop: Crop) -> Value {
        Value::Crop(crop)
    }
}

/// The random numbers of one op for one sample: a function of seed, epoch, sample and the op's position.
pub(super) struct Draws {
    pub(super) key: [u32; 2],
    pub(super) index: u64,
    pub(super) position: u64,
}

impl Draws {
    /// 128 random bits; 2^32 blocks per op, far more than any op draws.
    pub(super) fn block(&self, block: u64) -> [u32; 4] {
        philox4x32(counter(self.index, self.position << 32 | block), self.key)
    }

    /// What happens with probability `p`, by block 0.
    pub(super) fn happens(&self, p: f64) -> bool {
        f64::from(uniform(self.block(0)[0])) < p
    }

    /// A number uniform in a range.
    pub(super) fn between(&self, block: u64, (low, high): (f64, f64)) -> f64 {
        let bits = self.block(block);
        low + (high - low) * uniform_f64(bits[0], bits[1])
    }

    /// A number below `n`, all with the same probability.
    pub(super) fn below(&self, block: u64, n: usize) -> usize {
        below(n as u64, self.block(block)) as usize
    }
}

/// The inputs of one node: a value is moved out at its last use and copied before.
pub(super) struct Inputs<'a> {
    pub(super) inputs: &'a [usize],
    pub(super) values: &'a mut [Option<Value>],
    pub(super) uses: &'a mut [usize],
    pub(super) limits: DecodeLimits,
}

impl Inputs<'_> {
    fn take(&mut self, position: usize) -> Option<Cow<'_, Field>> {
        let value = *self.inputs.get(position)?;
        self.uses[value] = self.uses[value].saturating_sub(1);
        if self.uses[value] == 0 {
            return match self.values[value].take() {
                Some(Value::Field(field)) => Some(Cow::Owned(field)),
                _ => None,
            };
        }
        match &self.values[value] {
            Some(Value::Field(field)) => Some(Cow::Borrowed(field)),
            _ => None,
        }
    }

    pub(super) fn encoded(&mut self, position: usize) -> Result<Cow<'_, [u8]>, SampleError> {
        match self.take(position) {
            Some(Cow::Owned(Field::Encoded(bytes))) => Ok(Cow::Owned(bytes)),
            Some(Cow::Borrowed(Field::Encoded(bytes))) => Ok(Cow::Borrowed(bytes)),
            _ => mismatch("something else", "an encoded image"),
        }
    }

    pub(super) fn rgb(&mut self, position: usize) -> Result<Cow<'_, RgbImage>, SampleError> {
        match self.take(position) {
            Some(Cow::Owned(Field::Rgb(image))) => Ok(Cow::Owned(image)),
            Some(Cow::Borrowed(Field::Rgb(image))) => Ok(Cow::Borrowed(image)),
            _ => mismatch("something else", "an RGB image"),
        }
    }

    /// An image that may be changed.
    pub(super) fn own_rgb(&mut self, position: usize) -> Result<RgbImage, SampleError> {
        Ok(match self.rgb(position)? {
            Cow::Owned(image) => image,
            Cow::Borrowed(image) => {
                let mut pixels = scratch::take(image.pixels.len());
                pixels.extend_from_slice(&image.pixels);
                RgbImage { pixels, ..*image }
            }
        })
    }

    /// Width and height of an image, encoded or not.
    pub(super) fn size(&mut self, position: usize) -> Result<(u32, u32), SampleError> {
        let limits = self.limits;
        match self.take(position) {
            Some(Cow::Owned(Field::Rgb(image))) => {
                let size = (image.width, image.height);
                scratch::give(image.pixels);
                Ok(size)
            }
            Some(Cow::Borrowed(Field::Rgb(image))) => Ok((image.width, image.height)),
            Some(field) => match field.as_ref() {
                Field::Encoded(bytes) => upright_size(bytes, limits),
                _ => mismatch("something else", "an image"),
            },
            None => mismatch("something else", "an image"),
        }
    }

    pub(super) fn text(&mut self, position: usize) -> Result<Cow<'_, str>, SampleError> {
        match self.take(position) {
            Some(Cow::Owned(Field::Text(text))) => Ok(Cow::Owned(text)),
            Some(Cow::Borrowed(Field::Text(text))) => Ok(Cow::Borrowed(text)),
            _ => mismatch("something else", "a text"),
        }
    }

    /// A text, or several.
    pub(super) fn field(&mut self, position: usize) -> Result<Field, SampleError> {
        self.take(position).map(Cow::into_owned).map_or_else(|| mismatch("something else", "a text"), Ok)
    }

    pub(super) fn texts(&mut self, position: usize) -> Result<Cow<'_, [String]>, SampleError> {
        match self.take(position) {
            Some(Cow::Owned(Field::Texts(texts))) => Ok(Cow::Owned(texts)),
            Some(Cow::Borrowed(Field::Texts(texts))) => Ok(Cow::Borrowed(texts)),
            _ => mismatch("something else", "several texts"),
        }
    }

    pub(super) fn ids(&mut self, position: usize) -> Result<Cow<'_, [i32]>, SampleError> {
        match self.take(position) {
            Some(Cow::Owned(Field::Tokens(ids))) => Ok(Cow::Owned(ids)),
            Some(Cow::Borrowed(Field::Tokens(ids))) => Ok(Cow::Borrowed(ids)),
            _ => mismatch("something else", "token ids"),
        }
    }

    pub(super) fn crop(&self, position: usize) -> Option<Crop> {
        match self.values[*self.inputs.get(position)?] {
            Some(Value::Crop(crop)) => Some(crop),
            _ => None,
        }
    }
}

/// `Pipeline::check` proves that this does not happen for a source that keeps its promises.
pub(super) fn mismatch<T>(given: &str, wanted: &str) -> Result<T, SampleError> {
    Err(SampleError(format!("{given} where {wanted} was expected")))
}
