//! `alip-run weigh`: what the gates of a model think of every sample of a data set.

mod output;
mod page;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;

use alip_plan::pipeline::{Mode, Pipeline, Source};
use alip_runtime::data::{SampleSource, Tokenizer, open_source};
use alip_runtime::eval::measures::auc;
use alip_runtime::eval::{EncodeError, Weighed};
use alip_runtime::file::write_beside;

use self::output::{Kind, Output};
use crate::embed::in_a_folder;
use crate::model::{BadArgs, named};
use crate::moved::{is_data, moved};
use crate::open::{BATCH, Opened, WeightsArgs, Work};
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Weigh a data set by a model's gates
///
/// Writes of every sample its key, the weight that ALIP's language gate gives it (1 for texts that agree), and the cosines of
/// its raw text, synthetic caption and image; a page with their distribution and the most doubted samples; and, if wanted, the
/// list of those that are worth keeping, for `alip-run pack --only`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run weigh runs/alip_flickr8k --html doubted.html\n  alip-run weigh runs/alip_b32 --data web.rec --out weights.parquet --keep 0.8 --kept kept.jsonl\n  alip-run pack yfcc15m_rec --data web.rec --only kept.jsonl --to clean.rec"
)]
pub(crate) struct Args {
    /// The directory of a run of a graph with gates
    run: PathBuf,
    /// What is weighed: a pipeline, or files for the run's own pipeline; the data that the run was trained on unless given
    #[arg(long, value_name = "PIPELINE|PATH")]
    data: Option<String>,
    /// Weigh the samples to evaluate on instead of those to train on
    #[arg(long)]
    eval: bool,
    /// Where the weights go, a line or row per sample: `.jsonl`, or `.parquet` where this program was built with it
    #[arg(long, short, value_name = "FILE", default_value = "weights.jsonl")]
    out: PathBuf,
    /// Share of the samples that the list of `--kept` has: those of largest weight, and of texts most alike where weights are equal
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "kept")]
    keep: Option<f64>,
    /// Where the list of kept samples goes, lines with `key` and `weight`, in the data's order
    #[arg(long, value_name = "FILE.jsonl", requires = "keep")]
    kept: Option<PathBuf>,
    /// Write a page with the distribution of weights and the most doubted samples
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    bad: BadArgs,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "a share of samples above 0, up to 1".into())
}

pub(crate) fn run(args: &Args) -> Outcome {
    let stop = Stop::listen("stopping; nothing is written")?;
    stop.ended(done(args, &stop))
}

fn done(args: &Args, stop: &Stop) -> Outcome {
    let kind = Kind::of(&args.out)?;
    let outputs = [Some(&args.out), args.kept.as_ref(), args.html.as_ref()];
    for (at, path) in outputs.iter().enumerate().filter_map(|(at, path)| Some((at, (*path)?))) {
        in_a_folder(path)?;
        if outputs[..at].contains(&Some(path)) {
            let why = "is to hold two things; give each a name of its own";
            return Err(Failure::message(format!("{} {why}", path.display())));
        }
    }
    let mut opened = args.weights.open(&args.run, BATCH)?;
    let pipeline = pipeline(args, &opened)?;
    let source = open_source(&pipeline.source, if args.eval { Mode::Eval } else { Mode::Train })?;
    if source.sequence().is_some() {
        let why = "can only be read in sequence, which has no end: `unpack: true` gives its shards random access";
        return Err(Failure::message(format!("the source of `{}` {why}", pipeline.name)));
    }
    knows_words(&opened, &pipeline)?;
    let work = Work { stop, max_bad: args.bad.max_bad };
    let mut found = Vec::new();
    let mut left_out = 0;
    write_beside(&args.out, |file| -> Outcome<()> {
        let mut output = Output::begin(kind, &args.out, file)?;
        left_out = opened.weigh(&pipeline, &source, &work, |sample| {
            if !sample.weight.is_finite() {
                let why = "the weight is not a number; the model has diverged, or its weights are damaged";
                return Err(Failure::message(format!("{}: {why}", source.name(sample.row))));
            }
            output.write(&source.key(sample.row), &sample)?;
            found.push(sample);
            Ok(())
        })?;
        Ok(output.finish()?)
    })?;
    tell(args, &pipeline, source.as_ref(), &found, left_out)
}

/// Words that are counted in the data that are weighed would have other ids than those that the model was trained with. Rendered
/// scenes have a list of their own, the same for all.
fn knows_words(opened: &Opened, pipeline: &Pipeline) -> Outcome<()> {
    for vocab in pipeline.vocabularies() {
        let is_known = opened.vocabularies.tokenizer(vocab)?.is_some() || Tokenizer::without_source(vocab)?.is_some();
        if !is_known && !matches!(pipeline.source, Source::Shapes { .. }) {
            return Err(EncodeError::Words { plan: opened.name.clone(), vocab: vocab.to_string() }.into());
        }
    }
    Ok(())
}

/// The run's own pipeline, on other files or not, or another one.
fn pipeline(args: &Args, opened: &Opened) -> Outcome<Pipeline> {
    let none = || Failure::message(format!("the run of `{}` names no data; give --data", opened.name));
    let own = || opened.pipeline.clone().ok_or_else(none);
    match &args.data {
        Some(data) if is_data(data) => {
            moved(own()?, data).map_err(|why| Failure::message(format!("graph `{}`: {why}", opened.name)))
        }
        Some(name) => opened.fit(named(name)?),
        None => own(),
    }
}

/// Writes the list and the page, and prints what was found.
fn tell(args: &Args, pipeline: &Pipeline, source: &dyn SampleSource, found: &[Weighed], left_out: usize) -> Outcome {
    let ranked = ranked(found);
    let kept =
        ((args.keep.unwrap_or(1.0) * found.len() as f64).round() as usize).clamp(1.min(found.len()), found.len());
    if let Some(path) = &args.kept {
        one_key_each(source, found)?;
        let mut list: Vec<usize> = ranked[found.len() - kept..].to_vec();
        list.sort_unstable();
        output::write_list(path, list.into_iter().map(|at| (source.key(found[at].row), found[at].weight)))?;
    }
    if let Some(path) = &args.html {
        page::write(path, pipeline, source, found, &ranked)?;
    }
    let mean = found.iter().map(|sample| f64::from(sample.weight)).sum::<f64>() / found.len().max(1) as f64;
    let doubted = found.iter().filter(|sample| sample.weight < 0.5).count();
    let known = known(source, found)?;
    if args.json {
        let summary = serde_json::json!({
            "out": args.out.display().to_string(), "samples": found.len(), "skipped": left_out, "mean_weight": mean,
            "below_half": doubted, "kept": args.kept.as_ref().map(|_| kept), "auc": known,
        });
        say!("{summary}");
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: {} samples, {left_out} could not be read", args.out.display(), found.len());
    say!("mean weight {mean:.3}; {doubted} samples weigh less than half");
    if let Some(area) = known {
        say!("the weight tells right raw texts from wrong ones with probability {area:.3}");
    }
    if let Some(path) = &args.kept {
        say!("{}: {kept} samples kept", path.display());
    }
    if let Some(path) = &args.html {
        say!("page: {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A list of keys says which samples are meant only if no two have the same.
fn one_key_each(source: &dyn SampleSource, found: &[Weighed]) -> Outcome<()> {
    let mut seen: HashMap<u64, u64> = HashMap::with_capacity(found.len());
    for sample in found {
        let key = source.key(sample.row);
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let Some(first) = seen.insert(hasher.finish(), sample.row) else { continue };
        if source.key(first) == key {
            let (one, other) = (source.name(first), source.name(sample.row));
            let why =
                format!("{one} and {other} have the key `{key}`, so that a list of keys cannot keep one of them alone");
            return Err(Failure::message(format!("--kept: {why}")));
        }
    }
    Ok(())
}

/// Places in `found`, the most doubted first: by weight, then by how alike the texts are, then in the data's order.
fn ranked(found: &[Weighed]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..found.len()).collect();
    let key = |at: &usize| (found[*at].weight, found[*at].text_similarity);
    ranked.sort_by(|a, b| {
        let ((weight, alike), (other_weight, other_alike)) = (key(a), key(b));
        weight.total_cmp(&other_weight).then(alike.total_cmp(&other_alike)).then(b.cmp(a))
    });
    ranked
}

/// Samples that are read to ask whether a source knows which raw texts are wrong.
const ASKED: u64 = 4096;

/// How well the weight tells right raw texts from wrong ones, where the source knows them.
fn known(source: &dyn SampleSource, found: &[Weighed]) -> Outcome<Option<f64>> {
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    // Evenly over all, since to ask is to read the sample again.
    let step = (found.len() as u64).div_ceil(ASKED).max(1) as usize;
    for sample in found.iter().step_by(step) {
        let Ok(read) = source.sample(sample.row) else { continue };
        match read.labels.get("raw_wrong") {
            Some(0) => right.push(sample.weight),
            Some(_) => wrong.push(sample.weight),
            None => return Ok(None),
        }
    }
    Ok(auc(&right, &wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_doubted_come_first() {
        let sample = |row, weight, text_similarity| Weighed {
            row,
            weight,
            text_similarity,
            raw_similarity: 0.0,
            caption_similarity: 0.0,
        };
        let found = [sample(0, 1.0, 0.5), sample(1, 0.2, 0.9), sample(2, 1.0, 0.4), sample(3, 0.2, 0.9)];
        // Of two that are alike the one that comes later is doubted first, so that the earlier one is kept.
        assert_eq!(ranked(&found), [3, 1, 2, 0]);
    }
}
