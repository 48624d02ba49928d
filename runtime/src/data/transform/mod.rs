//! Runs a pipeline's body on one sample.
//!
//! What each op does stands in the file of its family, with its test; [`step`] makes steps of ops and says what one is given.
//! Names are resolved once, when the transform is made; an image that is delivered is written straight into its row of the
//! batch.

mod blur;
mod colors;
mod images;
mod masks;
mod step;
#[cfg(test)]
mod tests;
mod texts;
mod windows;

use std::collections::BTreeMap;

use alip_plan::DType;
use alip_plan::pipeline::{Mode, Pipeline, PipelineOp, PipelineOutput, Source, ValueKind, Vocab};

pub use self::images::{mirror, normalize_rgb};
use self::step::{Draws, Inputs, Made, Step, Value, mismatch};
pub use self::windows::{Crop, center_crop, random_area_crop, random_resized_crop};
use super::decode::DecodeLimits;
use super::order::Order;
use super::work::Clock;
use super::{DataError, Field, RawSample, SampleError, SampleSource, Tokenizer, Vocabularies, scratch};
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
    /// Of the first op that tokenises.
    tokenizer: Option<Tokenizer>,
    limits: DecodeLimits,
}

struct Node {
    /// Name of the op.
    name: &'static str,
    step: Step,
    inputs: Vec<usize>,
}

impl Transform {
    /// Resolves the body of a mode; tokenizers that are not given come from the source or from files.
    ///
    /// # Errors
    /// The pipeline is not well formed, or a tokenizer cannot be had or does not fit its rows.
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
        let mut opened = |vocab: &Vocab| -> Result<Tokenizer, DataError> {
            match tokenizers.iter().find(|(known, _)| known == vocab) {
                Some((_, tokenizer)) => Ok(tokenizer.clone()),
                None => {
                    let tokenizer = match vocabularies.tokenizer(vocab)? {
                        Some(tokenizer) => tokenizer,
                        None => Vocabularies::count(pipeline, vocab, source)?,
                    };
                    tokenizers.push((vocab.clone(), tokenizer.clone()));
                    Ok(tokenizer)
                }
            }
        };
        let mut tokenizer = |vocab: &Vocab, context: u32| -> Result<Tokenizer, DataError> {
            let tokenizer = opened(vocab)?;
            tokenizer.fits(context as usize).map_err(|why| fail(format!("'{vocab}': {why}")))?;
            Ok(tokenizer)
        };
        let mut nodes: Vec<Node> = Vec::new();
        // Ops by the values that are their first results, which further ones name them by.
        let mut makers: BTreeMap<usize, usize> = BTreeMap::new();
        for node in pipeline.body(mode) {
            let mut inputs = node.inputs.iter().map(|name| index(&names, name)).collect::<Result<Vec<_>, _>>()?;
            let maker = inputs.first().and_then(|value| makers.get(value).copied());
            if let PipelineOp::Further { .. } = node.op {
                // Not the value that the name stands for.
                inputs.clear();
            } else {
                makers.insert(names.len(), makers.len());
            }
            let name = node.op.name();
            nodes.push(Node { name, step: step::step(node.op, maker, &mut tokenizer)?, inputs });
            names.insert(node.name, names.len());
        }
        let tokenizer = tokenizers.into_iter().next().map(|(_, tokenizer)| tokenizer);
        let mut outputs = Vec::new();
        for (name, output) in checked {
            // The evaluation body may give an output another value than the training body, of the same name.
            let value = index(&names, &output.value)?;
            outputs.push((name, output, value));
        }
        let mut uses = vec![0; names.len()];
        nodes.iter().flat_map(|node| &node.inputs).for_each(|value| uses[*value] += 1);
        outputs.iter().for_each(|(_, _, value)| uses[*value] += 1);
        Ok(Transform { fields, nodes, outputs, uses, tokenizer, limits: DecodeLimits::default() })
    }

    /// What it delivers: name, dtype and shape of a row.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &PipelineOutput)> {
        self.outputs.iter().map(|(name, output, _)| (name.as_str(), output))
    }

    /// Names of the ops of the body, in the order in which they run.
    pub(super) fn ops(&self) -> impl Iterator<Item = &'static str> {
        self.nodes.iter().filter(|node| !matches!(node.step, Step::Further { .. })).map(|node| node.name)
    }

    /// The tokenizer of the body's first `tokenize`, which evaluation uses for its prompts.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
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
        // Results behind the first, by the position of their op.
        let mut further: Vec<Vec<Option<Value>>> = Vec::new();
        for node in &self.nodes {
            let position = further.len();
            let this = values.len();
            let mut inputs = Inputs { inputs: &node.inputs, values: &mut values, uses: &mut uses, limits: self.limits };
            let made = match &node.step {
                Step::Apply(op) => {
                    let draws = Draws { key, index, position: position as u64 };
                    clock.op(position, || op.apply(&mut inputs, &draws))?
                }
                Step::Normalize(table) => clock.op(position, || {
                    let image = inputs.rgb(0)?;
                    let made = self.write(this, rows, |row| table.write(&image, row))?;
                    scratch::give_image(image);
                    Ok::<_, SampleError>(Made::from(made))
                })?,
                Step::Further { maker, index } => {
                    let made = further.get_mut(*maker).and_then(|made| made.get_mut(*index)?.take());
                    values.push(made);
                    continue;
                }
            };
            values.push(Some(made.first));
            further.push(made.further.into_iter().map(Some).collect());
        }
        self.deliver(&values, rows)
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

    /// Copies rows of numbers to where they are delivered.
    fn deliver(&self, values: &[Option<Value>], rows: &mut [Row<'_>]) -> Result<(), SampleError> {
        fn copy<T: Copy>(name: &str, what: &str, from: &[T], row: &mut [T]) -> Result<(), SampleError> {
            if from.len() != row.len() {
                return Err(SampleError(format!("`{name}` has {} {what}, not {}", from.len(), row.len())));
            }
            row.copy_from_slice(from);
            Ok(())
        }
        for ((name, _, value), row) in self.outputs.iter().zip(rows) {
            match (&values[*value], row) {
                (Some(Value::Written), _) => {}
                (Some(Value::Field(Field::Tokens(ids))), Row::I32(row)) => copy(name, "ids", ids, row)?,
                (Some(Value::Floats(numbers)), Row::F32(row)) => copy(name, "numbers", numbers, row)?,
                (None, _) => return Err(SampleError(format!("the sample has no `{name}`"))),
                _ => return mismatch(name, "a tensor of its type"),
            }
        }
        Ok(())
    }
}

/// The fields of a sample are what its source promised.
pub(crate) fn check_fields(source: &Source, sample: &RawSample) -> Result<(), SampleError> {
    for (name, kind) in source.fields() {
        let agrees = match (&kind, sample.fields.get(&name)) {
            (ValueKind::Encoded, Some(Field::Encoded(_)))
            | (ValueKind::Text, Some(Field::Text(_)))
            | (ValueKind::Texts, Some(Field::Texts(_))) => true,
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
