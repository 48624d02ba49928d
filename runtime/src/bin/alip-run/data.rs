//! `alip-run data`.

use std::path::PathBuf;
use std::process::ExitCode;

use alip_plan::pipeline::Mode;
use alip_runtime::data::{LoaderOptions, Mixture, Skips, Throughput, measure, open_source};

use crate::model::{BadArgs, named, order_of};
use crate::moved::moved;
use crate::{Failure, Outcome, sheet};

/// Skipped samples that are named one by one.
const NAMED: usize = 10;

/// Run a data pipeline alone: what it delivers, how fast, what it skips
///
/// The rate is that of decoding and augmentation on this machine without a model beside it: a training run that takes more
/// samples per second will wait for data. Below it stands what of that the workers would do if they never waited, and how fast
/// each stage of their work were if there were no other.
#[derive(clap::Args)]
#[command(after_help = "Example:
  alip-run data pipelines/shapes
  alip-run data pipelines/flickr8k --data path/to/flickr8k --workers 4
  alip-run data pipelines/flickr8k --data path/to/flickr8k --html samples.html")]
pub(crate) struct Args {
    /// Path or name of a pipeline spec
    pipeline: String,
    /// The data that the pipeline shall read: a folder, `.rec`, `.tar` or `.tar.gz` files
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Samples of a batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    batch: u64,
    /// Batches to load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    batches: u64,
    /// Threads that prepare samples
    #[arg(long, default_value_t = crate::train::default_workers(), value_parser = clap::value_parser!(u64).range(1..=1024))]
    workers: u64,
    /// Seed of order and augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    bad: BadArgs,
    /// Also write a page that shows the first samples as a model sees them, with their texts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let pipeline = named(&args.pipeline)?;
    let pipeline = match &args.data {
        Some(folder) => moved(pipeline, folder).map_err(Failure::message)?,
        None => pipeline,
    };
    // As a graph takes from it that trains.
    let pipeline = pipeline.with_bytes();
    let outputs = pipeline.check().map_err(Failure::message)?;
    let source = open_source(&pipeline.source, Mode::Train)?;
    let samples = source.len();
    let options = LoaderOptions {
        workers: args.workers as usize,
        max_bad: args.bad.max_bad,
        ..LoaderOptions::train(args.seed, args.batch as usize)
    };
    if let Some(warning) = source.too_few(args.batch) {
        note!("warning: {warning}");
    }
    if let Some(order) = order_of(source.as_ref()) {
        note!("{order}");
    }
    let shares = source.mixture().cloned();
    if let Some(path) = &args.html {
        sheet::write(&pipeline, source.clone(), &options, path)?;
    }
    let measured = measure(&pipeline, source, &options, args.batches as usize)?;
    let seconds = measured.elapsed.as_secs_f64();
    if args.json {
        let skipped: Vec<String> = measured.skipped.iter().map(ToString::to_string).collect();
        say!(
            "{}",
            serde_json::json!({
                "pipeline": pipeline.name, "source": pipeline.source.kind(), "source_samples": samples,
                "samples": measured.samples, "seconds": seconds, "samples_per_s": measured.rate(),
                "workers": args.workers, "prepared_per_s": measured.prepared(), "stages": stages_as_json(&measured),
                "skipped": skipped,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let (name, rate) = (&pipeline.name, measured.rate());
    say!("{name}: {} samples in {seconds:.2} s, {rate:.0} samples/s with {} workers", measured.samples, args.workers);
    say_work(&measured);
    say_mixture(shares, args.batch)?;
    match samples {
        0 => say!("from {}, whose samples nobody has counted, to", pipeline.source.kind()),
        _ => say!("from {} with {samples} samples to", pipeline.source.kind()),
    }
    for (name, output) in &outputs {
        say!("  {name:<10} {} {:?}", output.dtype, output.shape);
    }
    say!("{}", Skips::of(&measured.skipped));
    for skipped in measured.skipped.iter().take(NAMED) {
        say!("  {skipped}");
    }
    if let Some(path) = &args.html {
        say!("samples are shown in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What a batch of several sources holds.
fn say_mixture(mixture: Option<Mixture>, batch: u64) -> Outcome<()> {
    let Some(mixture) = mixture else { return Ok(()) };
    let counts = mixture.counts(batch).map_err(Failure::message)?;
    for (part, count) in mixture.parts.iter().zip(counts) {
        let epochs = mixture.samples as f64 * count as f64 / (batch * part.len) as f64;
        say!("{count} of {batch} from `{}`, whose {} samples come {epochs:.2} times an epoch", part.name, part.len);
    }
    Ok(())
}

/// How far the rate is from that of the slowest part of the loader, the work of its workers, and what that consists of.
fn say_work(measured: &Throughput) {
    let Throughput { work, workers, .. } = measured;
    let prepared = measured.prepared();
    let share = 100.0 * measured.rate() / prepared;
    say!("{share:.0} % of what {workers} workers prepare that never wait, {prepared:.0} samples/s; each stage alone:");
    let slowest = work.stages.iter().map(|(_, time)| *time).max();
    for (name, time) in &work.stages {
        let mark = if Some(*time) == slowest { ", the slowest" } else { "" };
        let (rate, share) = (work.rate(*time, *workers), 100.0 * time.as_secs_f64() / work.busy.as_secs_f64());
        say!("  {name:<17} {rate:>9.0} samples/s, {share:.0} % of the work{mark}");
    }
}

fn stages_as_json(measured: &Throughput) -> Vec<serde_json::Value> {
    let Throughput { work, workers, .. } = measured;
    let stage =
        |(name, time): &(&str, _)| serde_json::json!({ "name": name, "samples_per_s": work.rate(*time, *workers) });
    work.stages.iter().map(stage).collect()
}
