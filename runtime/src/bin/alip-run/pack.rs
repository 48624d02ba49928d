//! `alip-run pack`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alip_plan::pipeline::{Mode, Vocab};
use alip_runtime::data::{PackTo, Packed, Packing, pack};

use crate::model::{BadArgs, named};
use crate::moved::moved;
use crate::progress::{Counter, duration};
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Quality of JPEGs that are made anew, where the user says nothing: few see a difference, at half the bytes of 95.
const QUALITY: u8 = 90;

/// Pack a pipeline's source into a record file or into shards
///
/// Samples are written in the source's order, with token ids of their texts (`.rec`) or with the texts (shards). What cannot be
/// read is left out and counted by reason. Whoever stops it, or kills it, gives the same command again and it goes on.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  alip-run pack flickr8k --data path/to/flickr8k --vocab clip --context 77 --to flickr8k.rec
  alip-run pack img2dataset --data path/to/shards --captions captions.jsonl --resize 256 --to yfcc15m.rec
  alip-run pack img2dataset --data path/to/shards --to 'shards/{00000..}.tar' --shard-size 5000
  alip-run pack yfcc15m_rec --data path/to/parts --to whole.rec")]
pub(crate) struct Args {
    /// Path or name of a pipeline spec: its source is packed, and what it tokenizes is tokenized as it does
    pipeline: String,
    /// The data that the pipeline shall read: a folder, `.rec` or `.tar` files
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// A record file (`x.rec`; its index `x.idx` is written beside it), shards (`'folder/{00000..}.tar'`), or a folder for them
    #[arg(long, value_name = "OUTPUT")]
    to: String,
    /// Texts to pack, in this order; '' for none [default: those that the pipeline tokenizes, or the token rows of records]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    texts: Option<Vec<String>>,
    /// Ids of a token row, in place of the pipeline's [default: 77]
    #[arg(long, value_name = "IDS", value_parser = clap::value_parser!(u32).range(3..=1 << 16))]
    context: Option<u32>,
    /// Vocabulary in place of the pipeline's: `clip`, `words:SIZE:FILE`, or `file:FILE` with a tokenizer.json [default: clip]
    #[arg(long, value_parser = Vocab::parse)]
    vocab: Option<Vocab>,
    /// Synthetic captions, lines `{"key": "...", "caption": "..."}`: they are the text `caption` of the samples whose keys these
    /// are. The key is an image's path in `captions.jsonl`, that of a shard's sample, that of a record in its index
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// Pack only the samples whose keys are on this list, lines `{"key": "..."}`, as `alip-run weigh --kept` writes
    #[arg(long, value_name = "FILE.jsonl")]
    only: Option<PathBuf>,
    /// Scale larger images down to this shorter side and encode them as JPEG. Without it their bytes stay as they are
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=1 << 15))]
    resize: Option<u32>,
    /// Quality of these JPEGs [default: 90]
    #[arg(long, requires = "resize", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Samples of a shard [default: 10000]
    #[arg(long, value_name = "SAMPLES", value_parser = clap::value_parser!(u64).range(1..))]
    shard_size: Option<u64>,
    /// Pack the samples to evaluate on instead of those to train on
    #[arg(long)]
    eval: bool,
    /// Begin anew and replace what is there
    #[arg(long)]
    again: bool,
    /// Threads that prepare samples; what is written does not depend on it
    #[arg(long, default_value_t = crate::train::default_workers(), value_parser = clap::value_parser!(u64).range(1..=1024))]
    workers: u64,
    #[command(flatten)]
    bad: BadArgs,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let pipeline = named(&args.pipeline)?;
    let pipeline = match &args.data {
        Some(data) => moved(pipeline, data).map_err(Failure::message)?,
        None => pipeline,
    };
    pipeline.check().map_err(Failure::message)?;
    let to = PackTo::parse(&args.to, args.shard_size);
    let packing = Packing {
        pipeline,
        mode: if args.eval { Mode::Eval } else { Mode::Train },
        to: to.map_err(|why| Failure::message(format!("--to {}: {why}", args.to)))?,
        texts: args.texts.as_ref().map(|names| names.iter().filter(|name| !name.is_empty()).cloned().collect()),
        context: args.context,
        vocab: args.vocab.clone(),
        captions: args.captions.clone(),
        only: args.only.clone(),
        resize: args.resize.map(|side| (side, args.quality.unwrap_or(QUALITY))),
        workers: args.workers as usize,
        max_bad: args.bad.max_bad,
        again: args.again,
    };
    let stop = Stop::listen("stopping; what is packed so far is kept")?;
    let (started, mut progress) = (Instant::now(), Counter::of("sample"));
    let packed = pack(&packing, stop.flag(), |seen, of| progress.at(seen, of));
    progress.finish();
    let packed = packed?;
    let time = started.elapsed();
    match args.json {
        true => say!("{}", as_json(args, &packed, time)),
        false => tell(args, &packed, time),
    }
    if packed.is_done {
        return Ok(ExitCode::SUCCESS);
    }
    note!("stopped after {} of {} samples; the same command goes on with it", packed.seen, packed.samples);
    Ok(stop.status())
}

fn tell(args: &Args, packed: &Packed, time: Duration) {
    if packed.resumed > 0 {
        say!("went on after {} samples", packed.resumed);
    }
    let (written, bytes) = (packed.written, packed.bytes as f64 / f64::from(1 << 20));
    let rate = (packed.seen - packed.resumed) as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
    let what = if packed.is_done { "" } else { ", unfinished" };
    say!("{}: {written} samples, {bytes:.1} MiB{what}", args.to);
    say!("texts: {}", if packed.texts.is_empty() { "none".into() } else { packed.texts.join(", ") });
    say!("{rate:.0} samples/s with {} workers, {} in all", args.workers, duration(time));
    say!("{}", packed.skips);
    if let Some(path) = &args.only {
        let left_out = packed.seen - packed.written - packed.skips.count();
        say!("{left_out} samples are not on the list {}", path.display());
        if packed.not_found > 0 {
            say!("{} keys on it are of no sample", packed.not_found);
        }
    }
    if let (Some((lines, first)), Some(captions)) = (&packed.unused, &args.captions) {
        say!("{lines} captions of {} are of no sample; the first is `{first}`", captions.display());
    }
}

fn as_json(args: &Args, packed: &Packed, time: Duration) -> serde_json::Value {
    serde_json::json!({
        "to": args.to, "samples": packed.samples, "resumed": packed.resumed, "seen": packed.seen, "written": packed.written,
        "texts": packed.texts, "bytes": packed.bytes, "skipped": packed.skips.count(), "skipped_by_reason": packed.skips.by_reason(),
        "not_on_the_list": args.only.as_ref().map(|_| packed.seen - packed.written - packed.skips.count()),
        "unused_keys": packed.not_found, "unused_captions": packed.unused.as_ref().map_or(0, |(lines, _)| *lines), "is_done": packed.is_done,
        "seconds": time.as_secs_f64(), "workers": args.workers,
    })
}
