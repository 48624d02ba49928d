//! The contact sheet of `alip-run data --html`.

use std::path::Path;
use std::sync::Arc;

use alip_plan::pipeline::{Mode, NormalizeRgb, Pipeline, PipelineOp};
use alip_runtime::data::{Batch, Loader, LoaderOptions, SampleSource, Tokenizer};
use alip_runtime::tensor::{Data, HostTensor};
use alip_runtime::train::report::Picture;
use alip_runtime::train::report::sheet::{self, Sheet, Shown};

use crate::{Failure, Outcome};

/// As many as a person looks at, and a page holds without being slow.
const SHOWN: usize = 64;

/// Numbers of a row that are written out.
const NUMBERS: usize = 16;

/// Writes the first samples of a run.
pub(crate) fn write(
    pipeline: &Pipeline,
    source: Arc<dyn SampleSource>,
    options: &LoaderOptions,
    path: &Path,
) -> Outcome<()> {
    let facts = [
        ("source", pipeline.source.kind().to_string()),
        ("samples", source.len().to_string()),
        ("seed", options.seed.to_string()),
    ];
    let mut loader = Loader::new(pipeline, source, options)?;
    let Some(batch) = loader.next()? else { return Ok(()) };
    let rows = batch.valid.min(SHOWN);
    let samples = (0..rows).map(|row| shown(pipeline, &loader, &batch, row)).collect();
    let sheet = Sheet {
        title: pipeline.name.clone(),
        summary: format!(
            "The first {rows} samples of training as a model sees them: images after augmentation, texts as their tokens say."
        ),
        facts: facts.map(|(name, value)| (name.to_string(), value)).into(),
        bars: Vec::new(),
        samples,
    };
    sheet::write(&sheet, path).map_err(Failure::message)
}

fn shown(pipeline: &Pipeline, loader: &Loader, batch: &Batch, row: usize) -> Shown {
    let mut shown = Shown { name: loader.name(batch.rows[row]), ..Shown::default() };
    for (name, tensor) in &batch.tensors {
        match picture(pipeline, name, tensor, row) {
            Some(picture) => shown.pictures.push((name.clone(), picture)),
            None => shown.lines.push((name.clone(), text(loader.transform().tokenizer(), tensor, row))),
        }
    }
    let labels = batch.labels.iter().filter_map(|(name, values)| Some((name.clone(), values.get(row)?.to_string())));
    shown.lines.extend(labels);
    let skipped = batch.skipped.iter().filter(|skipped| skipped.row == row);
    shown.lines.extend(skipped.map(|skipped| ("in the place of".to_string(), skipped.to_string())));
    shown
}

/// A row as an image, if it is one.
fn picture(pipeline: &Pipeline, output: &str, tensor: &HostTensor, row: usize) -> Option<Picture> {
    let value = pipeline.outputs.get(output)?;
    match (tensor.data(), tensor.shape()) {
        (Data::U8(levels), &[_, height, width, 3]) => {
            let size = (height * width * 3) as usize;
            let pixels = levels.get(row * size..(row + 1) * size)?.to_vec();
            Some(Picture { width: width as u32, height: height as u32, pixels })
        }
        (Data::F32(numbers), &[_, 3, height, width]) => {
            let node = pipeline.body(Mode::Train).into_iter().find(|node| node.name == *value)?;
            let PipelineOp::NormalizeRgb(NormalizeRgb { mean, std }) = node.op else { return None };
            let plane = (height * width) as usize;
            let numbers = numbers.get(row * 3 * plane..(row + 1) * 3 * plane)?;
            let level = |at: usize| {
                let channel = at % 3;
                let x = f64::from(numbers[channel * plane + at / 3]);
                (255.0 * (mean[channel] + std[channel] * x)).round().clamp(0.0, 255.0) as u8
            };
            Some(Picture { width: width as u32, height: height as u32, pixels: (0..3 * plane).map(level).collect() })
        }
        _ => None,
    }
}

/// A row as the texts that its ids stand for, or as numbers.
fn text(tokenizer: Option<&Tokenizer>, tensor: &HostTensor, row: usize) -> String {
    let size = tensor.shape().iter().skip(1).product::<u64>() as usize;
    let of_row = row * size..(row + 1) * size;
    match tensor.data() {
        Data::I32(ids) => {
            let ids = &ids[of_row];
            let context = tensor.shape().last().map_or(1, |&context| context.max(1) as usize);
            let texts = ids.chunks(context).map(|ids| decoded(tokenizer, ids)).collect::<Option<Vec<_>>>();
            texts.map_or_else(|| listed(ids.iter().map(i32::to_string)), |texts| texts.join(" | "))
        }
        Data::F32(numbers) => listed(numbers[of_row].iter().map(|x| format!("{x:.4}"))),
        Data::U8(bytes) => listed(bytes[of_row].iter().map(u8::to_string)),
        Data::Bf16(_) | Data::F16(_) | Data::Bool(_) => String::new(),
    }
}

/// The text of ids that begin as the pipeline's own texts do, or as CLIP's, which a source may hold.
fn decoded(own: Option<&Tokenizer>, ids: &[i32]) -> Option<String> {
    let clip = Tokenizer::clip();
    let begins = |tokenizer: &&Tokenizer| ids.first() == Some(&(tokenizer.vocab_size() as i32 - 2));
    own.into_iter().chain([&clip]).find(begins).map(|tokenizer| tokenizer.decode(ids))
}

fn listed(numbers: impl ExactSizeIterator<Item = String>) -> String {
    let more = if numbers.len() > NUMBERS { ", ..." } else { "" };
    numbers.take(NUMBERS).collect::<Vec<_>>().join(", ") + more
}
