//! `alip-run train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alip_plan::Plan;
use alip_plan::pipeline::{Mode, Pipeline};
use alip_runtime::data::{Loader, LoaderOptions, open_source, too_few};
use alip_runtime::exec::Session;
use alip_runtime::train::{RunDir, RunInfo, Summary, Trainer, begin, bytes, resume};

use crate::model::{DeviceArgs, ModelArgs, on_folder};
use crate::progress::{Progress, duration};
use crate::{Failure, Outcome, eval};

/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Train a model, or continue a run
///
/// Everything about a run lies in its directory: plan, checkpoints, metrics.jsonl, TensorBoard events, results, report.
/// Ctrl-C finishes the step, saves and exits; --resume continues with the very same steps.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  alip-run train alip_shapes
  alip-run train alip_shapes --steps 200 --seed 1 --out runs/short
  alip-run train alip_shapes --out runs/short --resume
  alip-run train alip_flickr8k --data path/to/flickr8k
  alip-run train my_variant.ron --set train.epochs=3 --batch 64")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// A pipeline spec, or the folder of images that the spec's own pipeline shall read
    #[arg(long, value_name = "PIPELINE|PATH")]
    data: Option<String>,
    /// Where the run goes; runs/NAME unless given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in --out from its newest checkpoint
    #[arg(long, conflicts_with_all = ["batch", "set", "steps", "epochs", "seed"])]
    resume: bool,
    /// Steps of the run, in place of the spec's epochs
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<u64>,
    /// Passes over the data, in place of the spec's
    #[arg(long)]
    epochs: Option<f64>,
    /// Seed of weights, data order and augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between checkpoints; there is always one at the end
    #[arg(long, default_value_t = 1000, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Newest checkpoints that are kept
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Threads that prepare samples; results do not depend on it
    #[arg(long, default_value_t = default_workers(), value_parser = clap::value_parser!(u64).range(1..=1024))]
    workers: u64,
    /// Batches prepared ahead
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    prefetch: u64,
    /// Largest share of samples that may be unreadable before the run stops
    #[arg(long, default_value_t = 0.01, value_name = "SHARE")]
    max_bad: f64,
    /// Do not measure the model at the end
    #[arg(long)]
    no_eval: bool,
    /// Print the results as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn default_workers() -> u64 {
    std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64)
}

pub(crate) fn run(args: &Args) -> Outcome {
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(args.model.stem()));
    let device = args.device.open()?.device;
    let description = format!("{}: {}", device.name(), device.description());
    let (existing, info, plan) = if args.resume {
        let (run, info, plan) = open(args, &root)?;
        (Some(run), info, plan)
    } else {
        let (info, plan) = prepare(args, &root, (&device.target(), description))?;
        (None, info, plan)
    };
    let pipeline = data(&info)?.clone();
    let mut session = Session::new(Arc::new(plan), device)?;
    let (run, position) = match existing {
        Some(run) => {
            let position = resume(&mut session, &info, &run.checkpoints(args.keep as usize))?;
            note!("resuming {} at step {} of {}", info.spec, position.step, info.steps);
            (run, position)
        }
        None => {
            let position = begin(&mut session, info.seed, info.steps)?;
            (RunDir::create(&root, &info, session.plan(), args.keep + 1)?, position)
        }
    };
    let source = open_source(&pipeline.source, Mode::Train)?;
    let options = LoaderOptions {
        start_sample: position.cursor,
        workers: args.workers as usize,
        prefetch: args.prefetch as usize,
        max_bad: args.max_bad,
        ..LoaderOptions::train(info.seed, info.batch as usize)
    };
    let mut loader = Loader::new(&pipeline, source, &options)?;
    let loss = session.plan().train.as_ref().map(|train| train.loss.clone()).unwrap_or_default();
    let mut progress = Progress::new(position.step, info.steps, &loss);
    let stop = stop_on_interrupt()?;
    let trained = Trainer {
        session: &mut session,
        feed: &mut loader,
        run: &run,
        info: &info,
        checkpoints: run.checkpoints(args.keep as usize),
        checkpoint_every: args.checkpoint_every,
        stop: &stop,
        watch: &mut progress,
    }
    .train(position);
    progress.finish();
    let summary = trained?;
    if !loader.skips().is_empty() {
        note!("{}", loader.skips());
    }
    drop(loader);
    report_run(&summary, &progress, &loss, position.step);
    if !summary.finished {
        let again = format!("continue with: alip-run train {} --out {} --resume", args.model.spec, root.display());
        note!("stopped at step {} of {}; {again}", summary.position.step, info.steps);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if !args.no_eval {
        eval::after_training(&mut session, &run, &info, args.workers as usize, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A new run. Its directory is made last, so that whatever is wrong leaves no trace.
fn prepare(args: &Args, root: &Path, device: (&alip_plan::Target, String)) -> Outcome<(RunInfo, Plan)> {
    let (plan, pipeline) = args.model.plan_and_data(device.0, args.data.as_deref())?;
    let Some(train) = &plan.train else {
        let why = "has no `train` section, so there is nothing to train";
        return Err(Failure::message(format!("graph `{}` {why}", plan.name)));
    };
    let samples = open_source(&pipeline.source, Mode::Train)?.len();
    if let Some(warning) = too_few(samples, train.batch) {
        note!("warning: {warning}");
    }
    let epochs = args.epochs.unwrap_or(train.epochs);
    let steps = match args.steps {
        Some(steps) => steps,
        None if epochs > 0.0 && epochs.is_finite() => (epochs * samples as f64 / train.batch as f64).ceil() as u64,
        None => return Err(Failure::message(format!("--epochs {epochs}: give a number above 0"))),
    };
    if steps == 0 {
        return Err(Failure::message("--steps 0: a run has at least one step"));
    }
    let info = RunInfo::new(&plan, device.1, args.seed, steps, Some(pipeline));
    let facts = [
        format!("{} parameters", plan.report.parameters),
        format!("batch {}", info.batch),
        format!("{samples} samples"),
        format!("{steps} steps"),
        format!("{} planned", bytes(plan.report.peak_bytes())),
    ];
    note!("{}: {}; in {}", info.spec, facts.join(", "), root.display());
    Ok((info, plan))
}

/// The run to continue; its data may have moved.
fn open(args: &Args, root: &Path) -> Outcome<(RunDir, RunInfo, Plan)> {
    let (run, mut info) = RunDir::open(root)?;
    let plan = run.plan()?;
    if let Some(folder) = &args.data {
        if !Path::new(folder).is_dir() {
            let why = "with --resume, --data can only say where the same images lie now; give a folder";
            return Err(Failure::message(format!("--data {folder}: {why}")));
        }
        info.data = Some(on_folder(&plan, folder)?);
    }
    run.probe(&plan, args.keep + 1)?;
    Ok((run, info, plan))
}

fn data(info: &RunInfo) -> Outcome<&Pipeline> {
    info.data.as_ref().ok_or_else(|| Failure::message(format!("the run of `{}` names no data", info.spec)))
}

/// The first Ctrl-C asks the run to stop after the step, the second ends the program at once.
fn stop_on_interrupt() -> Outcome<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        note!("stopping after this step; press Ctrl-C again to stop without saving");
    })?;
    Ok(stop)
}

fn report_run(summary: &Summary, progress: &Progress, loss: &str, first: u64) {
    let steps = summary.position.step - first;
    let elapsed = progress.elapsed();
    if let Some(last) = &summary.last {
        let samples = (summary.position.cursor / summary.position.step.max(1) * steps) as f64;
        let rate = samples / elapsed.as_secs_f64().max(1e-9);
        let value = last.metric(loss).unwrap_or(f64::NAN);
        note!("{steps} steps in {}, {rate:.1} samples/s, loss {value:.4}", duration(elapsed));
    }
    if summary.rows.runs > 0 {
        note!("packed rows: {}", summary.rows);
    }
    if let Some(path) = &summary.checkpoint {
        note!("checkpoint: {}", path.display());
    }
}
