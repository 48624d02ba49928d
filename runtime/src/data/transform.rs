//! Runs a pipeline's body on one sample.
//!
//! Names are resolved once, when the transform is made; a value that is delivered is written straight into its row of the
//! batch.

use std::borrow::Cow;
use std::collections::BTreeMap;

use alip_plan::DType;
use alip_plan::philox::{counter, philox4x32, uniform};
use alip_plan::pipeline::{Filter, Mode, Pipeline, PipelineOp, PipelineOutput, Source, ValueKind, Vocab, shorter_side};

use super::augment::{Crop, center_crop, cut, level_table, mirror, normalize_into, random_area_crop};
use super::decode::{DecodeLimits, decode_rgb, upright_size};
use super::order::Order;
use super::work::Clock;
use super::{
    DataError, Field, RawSample, RgbImage, SampleError, SampleSource, Tokenizer, Vocabularies, resize, scratch,
};
use crate::tensor::{Data, HostTensor, TensorError};

/// One sample's part of a batch.
#[derive(Debug)]
pub(crate) enum Row<'a> {
    F32(&'a mut [f32]),
    I32(&'a mut [i32]),
    U8(&'a mut [u8]),
}

/// A pipeline's body, ready to run.
pub struct Transform {
    fields: Vec<String>,
    nodes: Vec<Node>,
    /// Outputs by name, each with the value it delivers.
    outputs: Vec<(String, PipelineOutput, usize)>,
    /// How many nodes and outputs read each value.
    uses: Vec<usize>,
    limits: DecodeLimits,
}

struct Node {
    step: Step,
    inputs: Vec<usize>,
}

/// An op with what it needs at run time.
enum Step {
    Plain(PipelineOp),
    Normalize(Box<[[f32; 256]; 3]>),
    Tokenize(Tokenizer),
}

/// A value while a sample is worked on.
enum Value {
    Field(Field),
    Crop(Crop),
    /// A tensor, already in the rows of the outputs that deliver it.
    Written,
}

impl Transform {
    /// Resolves the body of a mode; word lists that are not given come from the source or from files.
    ///
    /// # Errors
    /// The pipeline is not well formed, or a word list cannot be had.
    pub fn new(
        pipeline: &Pipeline,
        mode: Mode,
        source: &dyn SampleSource,
        vocabularies: &Vocabularies,
    ) -> Result<Transform, DataError> {
        let fail = |reason: String| DataError::Pipeline { pipeline: pipeline.name.clone(), reason };
        let checked = pipeline.check().map_err(|error| fail(error.to_string()))?;
        let fields: Vec<String> = pipeline.source.fields().into_keys().collect();
        let mut names: BTreeMap<String, usize> = fields.iter().cloned().zip(0..).collect();
        // Checked above, so that every name is known.
        let index = |names: &BTreeMap<String, usize>, name: &str| {
            names.get(name).copied().ok_or_else(|| fail(format!("unknown value `{name}`")))
        };
        let mut tokenizers: Vec<(Vocab, Tokenizer)> = Vec::new();
        let mut nodes = Vec::new();
        for node in pipeline.body(mode) {
            let inputs = node.inputs.iter().map(|name| index(&names, name)).collect::<Result<Vec<_>, _>>()?;
            let step = match node.op {
                PipelineOp::NormalizeRgb { mean, std } => Step::Normalize(Box::new(level_table(mean, std))),
                PipelineOp::Tokenize { vocab, .. } => match tokenizers.iter().find(|(known, _)| *known == vocab) {
                    Some((_, tokenizer)) => Step::Tokenize(tokenizer.clone()),
                    None => {
                        let tokenizer = match vocabularies.tokenizer(&vocab) {
                            Some(tokenizer) => tokenizer,
                            None => Vocabularies::count(pipeline, &vocab, source)?,
                        };
                        tokenizers.push((vocab, tokenizer.clone()));
                        Step::Tokenize(tokenizer)
                    }
                },
                op => Step::Plain(op),
            };
            names.insert(node.name, names.len());
            nodes.push(Node { step, inputs });
        }
        let mut outputs = Vec::new();
        for (name, output) in checked {
            // The evaluation body may give an output another value than the training body, of the same name.
            let value = index(&names, &output.value)?;
            outputs.push((name, output, value));
        }
        let mut uses = vec![0; names.len()];
        nodes.iter().flat_map(|node| &node.inputs).for_each(|value| uses[*value] += 1);
        outputs.iter().for_each(|(_, _, value)| uses[*value] += 1);
        Ok(Transform { fields, nodes, outputs, uses, limits: DecodeLimits::default() })
    }

    /// What it delivers: name, dtype and shape of a row.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &PipelineOutput)> {
        self.outputs.iter().map(|(name, output, _)| (name.as_str(), output))
    }

    /// Names of the ops of the body, in the order in which they run.
    pub(super) fn ops(&self) -> impl Iterator<Item = &'static str> {
        self.nodes.iter().map(|node| match &node.step {
            Step::Plain(op) => op.name(),
            Step::Normalize(_) => "normalize_rgb",
            Step::Tokenize(_) => "tokenize",
        })
    }

    /// The tokenizer of the body's first `tokenize`, which evaluation uses for its prompts.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.nodes.iter().find_map(|node| match &node.step {
            Step::Tokenize(tokenizer) => Some(tokenizer),
            _ => None,
        })
    }

    /// The tokenizer that makes an output's rows.
    pub fn tokenizer_of(&self, output: &str) -> Option<&Tokenizer> {
        let (_, _, value) = self.outputs.iter().find(|(name, ..)| name == output)?;
        match &self.nodes.get(value.checked_sub(self.fields.len())?)?.step {
            Step::Tokenize(tokenizer) => Some(tokenizer),
            _ => None,
        }
    }

    /// Zeroed tensors for `batch` samples, one per output.
    pub(crate) fn allocate(&self, batch: usize) -> Result<Vec<HostTensor>, TensorError> {
        let tensor = |output: &PipelineOutput| {
            let shape: Vec<u64> = std::iter::once(batch as u64).chain(output.shape.iter().copied()).collect();
            let elements = shape.iter().product::<u64>() as usize;
            match output.dtype {
                DType::I32 => HostTensor::i32(&shape, vec![0; elements]),
                DType::U8 => HostTensor::new(&shape, Data::U8(vec![0; elements])),
                // `Pipeline::check` knows no other dtypes.
                _ => HostTensor::f32(&shape, vec![0.0; elements]),
            }
        };
        self.outputs.iter().map(|(_, output, _)| tensor(output)).collect()
    }

    /// Runs the body on sample `index` of `epoch`, writing each output's row from its beginning to its end: rows may hold
    /// anything before. The `clock` learns how long each op takes.
    ///
    /// # Errors
    /// Why the sample cannot be used; rows are then partly written.
    pub(super) fn run(
        &self,
        sample: RawSample,
        (order, epoch, index): (&Order, u64, u64),
        rows: &mut [Row<'_>],
        clock: &Clock,
    ) -> Result<(), SampleError> {
        let mut fields = sample.fields;
        let mut values: Vec<Option<Value>> =
            self.fields.iter().map(|name| fields.remove(name).map(Value::Field)).collect();
        let mut uses = self.uses.clone();
        let key = order.augment_key(epoch);
        for (position, node) in self.nodes.iter().enumerate() {
            // 2^32 blocks per op, far more than any op draws.
            let draw = |block: u64| philox4x32(counter(index, (position as u64) << 32 | block), key);
            let this = values.len();
            let mut inputs = Inputs { node, values: &mut values, uses: &mut uses };
            let value = clock.op(position, || match &node.step {
                Step::Plain(op) => self.apply(op, &mut inputs, draw),
                Step::Normalize(table) => {
                    let image = inputs.rgb()?;
                    let written = self.write(this, rows, |row| normalize_row(&image, table, row))?;
                    scratch::give_image(image);
                    Ok(written)
                }
                Step::Tokenize(tokenizer) => {
                    let text = inputs.text()?;
                    self.write(this, rows, |row| match row {
                        Row::I32(row) => {
                            tokenizer.encode_into(&text, row);
                            Ok(())
                        }
                        Row::F32(_) | Row::U8(_) => mismatch("tokens", "other than i32"),
                    })
                }
            })?;
            values.push(Some(value));
        }
        self.deliver_fields(&values, rows)
    }

    fn apply(
        &self,
        op: &PipelineOp,
        inputs: &mut Inputs<'_>,
        draw: impl Fn(u64) -> [u32; 4],
    ) -> Result<Value, SampleError> {
        let image = match op {
            PipelineOp::RandomAreaCrop { area, aspect, attempts } => {
                let size = upright_size(&inputs.encoded()?, self.limits)?;
                return Ok(Value::Crop(random_area_crop(size, *area, *aspect, *attempts, draw)));
            }
            PipelineOp::DecodeRgb => {
                let file = inputs.encoded()?;
                let image = decode_rgb(&file, self.limits)?;
                scratch::give_file(file);
                match inputs.crop() {
                    Some(crop) => {
                        let part = cut(&image, crop)?;
                        scratch::give(image.pixels);
                        part
                    }
                    None => image,
                }
            }
            PipelineOp::Resize { height, width, filter } => {
                let image = inputs.rgb()?;
                resized(image, (*height, *width), *filter)
            }
            PipelineOp::ResizeShorter { size, filter } => {
                let image = inputs.rgb()?;
                let (height, width) = shorter_side(image.height, image.width, *size);
                // An extreme aspect ratio would blow a sliver up to gigabytes.
                if u64::from(height) * u64::from(width) > self.limits.max_pixels {
                    return Err(SampleError(format!(
                        "an image of {}x{} pixels is too long and thin to be resized to {width}x{height}",
                        image.width, image.height
                    )));
                }
                resized(image, (height, width), *filter)
            }
            PipelineOp::CenterCrop { height, width } => {
                let image = inputs.rgb()?;
                let part = center_crop(&image, *height, *width)?;
                scratch::give_image(image);
                part
            }
            PipelineOp::Mirror { p } => {
                let mut image = inputs.rgb()?.into_owned();
                if f64::from(uniform(draw(0)[0])) < *p {
                    mirror(&mut image);
                }
                image
            }
            PipelineOp::NormalizeRgb { .. } | PipelineOp::Tokenize { .. } => {
                return mismatch("a tensor op", "an image op");
            }
        };
        Ok(Value::Field(Field::Rgb(image)))
    }

    /// Writes a tensor into the row of every output that delivers it.
    fn write(
        &self,
        value: usize,
        rows: &mut [Row<'_>],
        mut fill: impl FnMut(&mut Row<'_>) -> Result<(), SampleError>,
    ) -> Result<Value, SampleError> {
        for ((_, _, delivered), row) in self.outputs.iter().zip(rows) {
            if *delivered == value {
                fill(row)?;
            }
        }
        Ok(Value::Written)
    }

    /// Token rows of the source that are delivered as they are.
    fn deliver_fields(&self, values: &[Option<Value>], rows: &mut [Row<'_>]) -> Result<(), SampleError> {
        for ((name, _, value), row) in self.outputs.iter().zip(rows) {
            match (&values[*value], row) {
                (Some(Value::Written), _) => {}
                (Some(Value::Field(Field::Tokens(ids))), Row::I32(row)) if ids.len() == row.len() => {
                    row.copy_from_slice(ids);
                }
                (Some(Value::Field(Field::Tokens(ids))), Row::I32(row)) => {
                    return Err(SampleError(format!("`{name}` has {} ids, not {}", ids.len(), row.len())));
                }
                _ => return Err(SampleError(format!("the sample has no `{name}`"))),
            }
        }
        Ok(())
    }
}

fn resized(image: Cow<'_, RgbImage>, (height, width): (u32, u32), filter: Filter) -> RgbImage {
    if (image.height, image.width) == (height, width) {
        return image.into_owned();
    }
    let small = resize(&image, height, width, filter);
    scratch::give_image(image);
    small
}

/// Normalises an image into a row, or leaves that to whoever takes it in bytes.
fn normalize_row(image: &RgbImage, table: &[[f32; 256]; 3], row: &mut Row<'_>) -> Result<(), SampleError> {
    let length = match row {
        Row::F32(row) => row.len(),
        Row::U8(row) => row.len(),
        Row::I32(_) => return mismatch("an image", "i32"),
    };
    if length != image.pixels.len() {
        let (width, height) = (image.width, image.height);
        let why = format!("an image of {width}x{height} pixels does not fill a row of {length} numbers");
        return Err(SampleError(why));
    }
    match row {
        Row::U8(row) => row.copy_from_slice(&image.pixels),
        Row::F32(row) => normalize_into(image, table, row),
        Row::I32(_) => {}
    }
    Ok(())
}

/// `Pipeline::check` proves that this does not happen for a source that keeps its promises.
fn mismatch<T>(given: &str, wanted: &str) -> Result<T, SampleError> {
    Err(SampleError(format!("{given} where {wanted} was expected")))
}

/// The inputs of one node: a value is moved out at its last use and copied before.
struct Inputs<'a> {
    node: &'a Node,
    values: &'a mut [Option<Value>],
    uses: &'a mut [usize],
}

impl<'a> Inputs<'a> {
    fn take(&mut self, position: usize) -> Option<Cow<'_, Field>> {
        let value = *self.node.inputs.get(position)?;
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

    fn encoded(&mut self) -> Result<Cow<'_, [u8]>, SampleError> {
        match self.take(0) {
            Some(Cow::Owned(Field::Encoded(bytes))) => Ok(Cow::Owned(bytes)),
            Some(Cow::Borrowed(Field::Encoded(bytes))) => Ok(Cow::Borrowed(bytes)),
            _ => mismatch("something else", "an encoded image"),
        }
    }

    fn rgb(&mut self) -> Result<Cow<'_, RgbImage>, SampleError> {
        match self.take(0) {
            Some(Cow::Owned(Field::Rgb(image))) => Ok(Cow::Owned(image)),
            Some(Cow::Borrowed(Field::Rgb(image))) => Ok(Cow::Borrowed(image)),
            _ => mismatch("something else", "an RGB image"),
        }
    }

    fn text(&mut self) -> Result<String, SampleError> {
        match self.take(0) {
            Some(Cow::Owned(Field::Text(text))) => Ok(text),
            Some(Cow::Borrowed(Field::Text(text))) => Ok(text.clone()),
            _ => mismatch("something else", "a text"),
        }
    }

    fn crop(&self) -> Option<Crop> {
        match self.values[*self.node.inputs.get(1)?] {
            Some(Value::Crop(crop)) => Some(crop),
            _ => None,
        }
    }
}

/// The fields of a sample are what its source promised.
pub(crate) fn check_fields(source: &Source, sample: &RawSample) -> Result<(), SampleError> {
    for (name, kind) in source.fields() {
        let agrees = match (&kind, sample.fields.get(&name)) {
            (ValueKind::Encoded, Some(Field::Encoded(_))) | (ValueKind::Text, Some(Field::Text(_))) => true,
            (ValueKind::Rgb { size }, Some(Field::Rgb(image))) => {
                let complete = image.pixels.len() == image.stride() * image.height as usize;
                complete && size.is_none_or(|size| size == (image.height, image.width))
            }
            (ValueKind::Tensor { .. }, Some(Field::Tokens(_))) => true,
            _ => false,
        };
        if !agrees {
            return Err(SampleError(format!("`{name}` is not {kind}")));
        }
    }
    Ok(())
}
