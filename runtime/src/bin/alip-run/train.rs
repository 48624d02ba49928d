//! `alip-run train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use alip_plan::pipeline::{Mode, Pipeline};
use alip_plan::{Plan, Start};
use alip_runtime::data::{Loader, LoaderOptions, SampleSource, Vocabularies, check_tokenizers, open_source};
use alip_runtime::exec::Session;
use alip_runtime::run::{
    DataIdentity, DeviceIdentity, Difference, NewRun, RunDir, RunError, RunInfo, SpecSources, StartIdentity, Writer,
    fingerprint, read_plan,
};
use alip_runtime::train::start::{Started, save_start, start_from};
use alip_runtime::train::{Cadence, OnTheWay, Position, Summary, Trainer, begin, measure, needs_total_steps, resume};
use alip_runtime::weights::Weights;
use indicatif::HumanBytes;

use crate::import::warn;
use crate::model::{BadArgs, CompileArgs, DeviceArgs, Prepared, bounded, files_now, order_of, session_on};
use crate::moved::{is_data, moved};
use crate::on_the_way::{Data, Way};
use crate::progress::{Progress, duration};
use crate::stop::Stop;
use crate::{Failure, Outcome, eval};

/// Train a model, or continue a run
///
/// Everything about a run lies in its directory: plan, words, checkpoints, metrics.jsonl, TensorBoard events, results, report.
/// Ctrl-C (SIGTERM, a closed terminal) finishes the step, saves and exits; --resume continues with the very same steps.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  alip-run train alip_shapes
  alip-run train alip_shapes --steps 200 --seed 1 --out runs/short
  alip-run train --resume runs/short
  alip-run train alip_flickr8k --data path/to/flickr8k
  alip-run train my_variant.ron --set train.epochs=3 --batch 64")]
pub(crate) struct Args {
    /// Name or path of a graph spec, or a directory with a plan that `alipc compile -o` wrote
    #[arg(value_name = "SPEC|PLAN", required_unless_present = "resume")]
    spec: Option<String>,
    #[command(flatten)]
    how: CompileArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Start from the weights in a file that `alip-run import` reads, all of them, in place of what the spec says (`train: (start:
    /// ..)`); with --resume, the file that the run must have been started from
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// A pipeline spec, or the data that the spec's own pipeline shall read: a folder, `.rec`, `.tar` or `.tar.gz` files
    #[arg(long, value_name = "PIPELINE|PATH")]
    data: Option<String>,
    /// Where the run goes; runs/NAME unless given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in this directory from its newest checkpoint; without one, that of SPEC
    #[arg(long, value_name = "RUN", num_args = 0..=1, conflicts_with_all = ["batch", "set", "target", "no_rule", "no_egraph", "seed"])]
    resume: Option<Option<PathBuf>>,
    /// With --resume: go on though the training samples are others than the run was started with
    #[arg(long, requires = "resume")]
    data_changed: bool,
    /// With --resume: go on though device or instruction set are others than the run was started on
    #[arg(long, requires = "resume")]
    device_changed: bool,
    /// With --resume: go on though the suite that the model is measured on is another than the run was started with
    #[arg(long, requires = "resume")]
    suite_changed: bool,
    /// Steps of the run, in place of the spec's epochs; with --resume, to extend it
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<u64>,
    /// Passes over the data, in place of the spec's; with --resume, to extend the run
    #[arg(long)]
    epochs: Option<f64>,
    /// Seed of weights, data order and augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between checkpoints; there is always one at the end
    #[arg(long, default_value_t = 1000, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Minutes between checkpoints, whatever the steps
    #[arg(long, default_value_t = 15.0, value_name = "MINUTES", value_parser = minutes)]
    checkpoint_minutes: f64,
    /// Newest checkpoints that are kept
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Threads that prepare samples; results do not depend on it
    #[arg(long, default_value_t = default_workers())]
    workers: u64,
    /// Batches prepared ahead
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    prefetch: u64,
    #[command(flatten)]
    bad: BadArgs,
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

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes| *minutes > 0.0 && *minutes <= 1e6);
    minutes.ok_or_else(|| "a number of minutes above 0".into())
}

pub(crate) fn run(args: &Args) -> Outcome {
    let workers = bounded("--workers", args.workers)?;
    let stop = Stop::listen("stopping after this step")?;
    let mut ready = match &args.resume {
        Some(given) => again(args, &resumed(args, given.as_deref())?, workers)?,
        None => first(args, workers)?,
    };
    let measurable = !args.no_eval && is_measurable(&ready);
    let Ready { session, run, loader, position, pipeline, vocabularies, way } = &mut ready;
    if let Some(warning) = run.warning() {
        note!("warning: {warning}");
    }
    let (info, first) = (run.info().clone(), position.step);
    let loss = session.plan().train.as_ref().map(|train| train.loss.clone()).unwrap_or_default();
    let mut progress = Progress::new(first, info.steps, &loss);
    let cadence =
        Cadence { steps: args.checkpoint_every, time: Duration::from_secs_f64(args.checkpoint_minutes * 60.0) };
    let steps = info.steps;
    let data = Data { pipeline, vocabularies, workers, max_bad: args.bad.max_bad, stop: stop.flag(), steps };
    let measure = |way| move |session: &mut Session, step| Way::measure(way, session, step, data);
    let mut measure = way.as_ref().map(measure);
    let evaluation = way.as_ref().zip(measure.as_mut()).map(|(way, measure)| OnTheWay {
        every: way.every,
        best: way.best.clone(),
        measure,
    });
    let mut trainer = Trainer {
        session: &mut *session,
        feed: loader,
        run,
        cadence,
        stop: stop.flag(),
        watch: &mut progress,
        evaluation,
    };
    let trained = trainer.train(*position);
    progress.finish();
    let summary = trained?;
    say_trained(&summary, &progress, &loss, first);
    let Ready { mut session, run, pipeline, vocabularies, loader, way, .. } = ready;
    if !loader.skips().is_empty() {
        note!("{}", loader.skips());
    }
    drop(loader);
    if !summary.finished {
        let again = format!("continue with: alip-run train --resume {}", run.root().display());
        note!("stopped at step {} of {}; {again}", summary.position.step, info.steps);
        return Ok(stop.status());
    }
    if measurable {
        let what = eval::Measurement {
            pipeline: &pipeline,
            vocabularies: &vocabularies,
            workers,
            max_bad: args.bad.max_bad,
            step: info.steps,
            average: false,
            out: run.root(),
            json: args.json,
        };
        let known = way.and_then(|way| way.found_at(info.steps));
        return eval::measured(&mut session, &run, &what, (known, &stop));
    }
    if args.json {
        say!("{}", as_json(&info, &summary, &progress, first));
    }
    Ok(ExitCode::SUCCESS)
}

/// A run about to take its first step.
struct Ready {
    session: Session,
    run: Writer,
    pipeline: Pipeline,
    vocabularies: Vocabularies,
    loader: Loader,
    position: Position,
    /// How it is measured on the way, if it is.
    way: Option<Way>,
}

/// A new run. Its directory is made last, so that whatever is wrong leaves no trace.
fn first(args: &Args, workers: usize) -> Outcome<Ready> {
    let spec = args.spec.as_deref().unwrap_or_default();
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(stem(spec)));
    RunDir::vacant(&root)?;
    let device = args.device.open()?;
    let Prepared { plan, pipeline, sources } = args.how.plan_and_data(spec, &*device, args.data.as_deref())?;
    if plan.train.is_none() {
        let why = "has no `train` section, so there is nothing to train";
        return Err(Failure::message(format!("graph `{}` {why}", plan.name)));
    }
    let source = open_source(&pipeline.source, Mode::Train)?;
    if let Some(warning) = plan.train.as_ref().and_then(|train| source.too_few(train.batch)) {
        note!("warning: {warning}");
    }
    if let Some(order) = order_of(source.as_ref()) {
        note!("{order}");
    }
    let steps = wanted_steps(args, &plan, source.epoch_len())?;
    let data = DataIdentity::new(pipeline.clone(), source.as_ref(), &root)?;
    let mut info = RunInfo::new(&plan, DeviceIdentity::of(device.as_ref()), args.seed, steps, Some(data));
    note!(
        "{}: {} parameters, {} samples, {} steps of batch {}",
        info.spec,
        grouped(plan.report.parameters),
        if source.is_empty() { "uncounted".into() } else { grouped(source.len()) },
        grouped(steps),
        info.batch
    );
    note!("{} of memory; in {}", HumanBytes(plan.report.peak_bytes()), root.display());
    let vocabularies = Vocabularies::open(&pipeline, source.as_ref())?;
    check_tokenizers(&plan, &pipeline, &vocabularies)?.iter().for_each(|warning| note!("warning: {warning}"));
    let mut session = Session::new(Arc::new(plan), device)?;
    let position = begin(&mut session, info.seed, info.steps)?;
    info.start = started(args, &mut session, sources.as_ref())?;
    let loader = load(args, workers, (&pipeline, source, &vocabularies), &info, position)?;
    // Before there is a directory: that it cannot be measured on the way as the spec asks is the spec's fault.
    let way = Way::of(session.plan(), (&pipeline, &vocabularies), loader.epoch_len())?;
    if let Some(way) = &way {
        way.finds_data(session.plan(), &pipeline)?;
        info.suite = way.suite().cloned();
    }
    let new =
        NewRun { info: &info, plan: &session.plan().clone(), sources: sources.as_ref(), vocabularies: &vocabularies };
    let run = Writer::create(&root, &new, args.keep as usize)?;
    if !info.start.is_empty() {
        save_start(&mut session, &run)?;
    }
    Ok(Ready { session, run, pipeline, vocabularies, loader, position, way })
}

/// Puts the weights to start from into a session that was begun; what they were.
fn started(args: &Args, session: &mut Session, sources: Option<&SpecSources>) -> Outcome<Vec<StartIdentity>> {
    let own = session.plan().train.as_ref().map(|train| train.start.clone()).unwrap_or_default();
    let given = args.weights.iter().map(|file| Start { file: file.to_string_lossy().into_owned(), select: None });
    let given: Vec<Start> = given.collect();
    let started = start_from(session, if given.is_empty() { &own } else { &given })?;
    for Started { identity, weights, assigned } in &started {
        weights.notes().iter().for_each(|text| note!("{}: {text}", identity.file));
        let kept = match assigned.kept.as_slice() {
            [] => String::new(),
            kept => format!("; not in it, and at their first values: {}", kept.join(", ")),
        };
        note!("started from {identity}: {} tensors{kept}", assigned.assigned.len());
        crate::import::say_gates(&assigned.gates);
        if let Some(sources) = sources {
            let has = |of_images: bool| assigned.assigned.iter().any(|name| name.starts_with("visual.") == of_images);
            warn(sources, weights, [has(true), has(false)])?;
        }
    }
    Ok(started.into_iter().map(|started| started.identity).collect())
}

/// Weights that are given with --resume are those that the run was started from. A run needs them no more, so without any
/// nothing is read.
fn same_start(args: &Args, run: &RunDir) -> Outcome<()> {
    let Some(file) = &args.weights else { return Ok(()) };
    let hash = Weights::open_as_ours(file, None)?.fingerprint()?;
    let then: Vec<String> = run.info().start.iter().map(ToString::to_string).collect();
    if run.info().start.iter().any(|start| start.hash == hash) {
        return Ok(());
    }
    let then = if then.is_empty() { "no file's weights".into() } else { then.join(", ") };
    let advice = "a run goes on with what it was started from; leave --weights out, or begin another with --out";
    Err(Failure::message(format!(
        "{} was started from {then}, not from {} ({hash}); {advice}",
        run.root().display(),
        file.display()
    )))
}

/// The files of tokenizers say what they said, where they are still there: whoever changed one may expect it to count.
fn same_tokenizers(run: &RunDir, vocabularies: &Vocabularies) -> Outcome<()> {
    let Some((file, then, now)) = vocabularies.changed() else { return Ok(()) };
    let advice =
        "put it back, or take it away, since the run goes on with the copy that it keeps; begin another with --out";
    Err(Failure::message(format!(
        "{} was started with another {file}: it had the hash {then} then, and has {now} now; {advice}",
        run.root().display()
    )))
}

/// The directory of the run to continue: the one given, or that of the spec.
fn resumed(args: &Args, given: Option<&Path>) -> Outcome<PathBuf> {
    let named = given.map(Path::to_path_buf).or_else(|| args.spec.as_ref().map(PathBuf::from));
    let own = |name: &Path| Path::new("runs").join(stem(&name.to_string_lossy()));
    let candidates: Vec<PathBuf> = match (&args.out, given, named) {
        (Some(out), None, _) => vec![out.clone()],
        (Some(out), Some(given), _) if out != given => {
            let why = "name two directories; a run is continued where it is";
            return Err(Failure::message(format!("--resume {} and --out {} {why}", given.display(), out.display())));
        }
        (_, _, Some(name)) => vec![own(&name), name],
        (_, _, None) => Vec::new(),
    };
    // A directory that is named itself comes first.
    let found = candidates.iter().rev().find(|root| RunDir::holds_run(root));
    let missing = candidates.first().cloned().unwrap_or_default();
    found.cloned().ok_or_else(|| RunError::NoRun { path: missing }.into())
}

/// A run that is continued, with what it was started with.
fn again(args: &Args, root: &Path, workers: usize) -> Outcome<Ready> {
    let mut run = Writer::open(root, args.keep as usize)?;
    same_spec(args, &run)?;
    same_start(args, &run)?;
    let own = run.info().device.clone();
    let device =
        if args.device_changed { args.device.open_as(Some(&own))? } else { args.device.open_own(run.root(), &own)? };
    let mut info = run.info().clone();
    let now = DeviceIdentity::of(device.as_ref());
    if own != now {
        let difference = Difference { what: "device", then: own.to_string(), now: now.to_string() };
        accept(&run, difference, (args.device_changed, "--device-changed"))?;
        info.device = now;
    }
    let mut pipeline =
        run.pipeline().ok_or_else(|| Failure::message(format!("the run of `{}` names no data", info.spec)))?;
    if let Some(files) = &args.data {
        if !is_data(files) {
            let why = "with --resume, --data can only say where the same images lie now; give a folder, or `.rec` or `.tar` files";
            return Err(Failure::message(format!("--data {files}: {why}")));
        }
        pipeline = moved(pipeline, files).map_err(Failure::message)?;
    }
    let source = open_source(&pipeline.source, Mode::Train)?;
    let data = DataIdentity::new(pipeline.clone(), source.as_ref(), root)?;
    if let Some(difference) = info.data.as_ref().and_then(|then| then.difference(&data)) {
        accept(&run, difference, (args.data_changed, "--data-changed"))?;
    }
    if args.data.is_some() || args.data_changed {
        info.data = Some(data);
    }
    info.steps = extended(args, &run, &run.plan()?, source.epoch_len())?;
    if let Some(why) = uncounted(source.as_ref()) {
        note!("{why}");
    }
    let vocabularies = run.vocabularies()?;
    same_tokenizers(&run, &vocabularies)?;
    let mut session = session_on(&run, device.as_ref())?;
    let epoch_len = Some(source.epoch_len()).filter(|len| *len > 0);
    let way = match Way::of(session.plan(), (&pipeline, &vocabularies), epoch_len) {
        Ok(way) => way,
        // What is measured on may be lost, and steps are not.
        Err(why) if args.suite_changed => {
            note!("warning: not measured on the way: {}", why.to_string().trim_start_matches("error: "));
            None
        }
        Err(why) if info.suite.is_some() => {
            return Err(Failure::message(format!("{why}; with --suite-changed the run goes on and is not measured")));
        }
        Err(why) => return Err(why),
    };
    let suite = way.as_ref().and_then(Way::suite);
    if let (Some(then), Some(now)) = (&info.suite, suite)
        && then.hash != now.hash
    {
        let (then, now) = (then.to_string(), now.to_string());
        let difference = Difference { what: "suite that it is measured on", then, now };
        accept(&run, difference, (args.suite_changed, "--suite-changed"))?;
    }
    if suite.is_some() {
        info.suite = suite.cloned();
    }
    let before = run.info().clone();
    if info != before {
        run.set_info(info)?;
    }
    let continued = (|| -> Outcome<_> {
        let position = resume(&mut session, &run)?;
        let loader = load(args, workers, (&pipeline, source, &vocabularies), run.info(), position)?;
        Ok((position, loader))
    })();
    if continued.is_err() && *run.info() != before {
        // What was accepted for a run that did not go on is not accepted for the next time.
        run.set_info(before)?;
    }
    let (position, loader) = continued?;
    let info = run.info();
    note!("resuming {} at step {} of {}", info.spec, grouped(position.step), grouped(info.steps));
    if position.step == info.steps {
        note!("all its steps are taken; --steps N or --epochs N extends it");
    }
    let way = way.filter(|way| match way.finds_data(session.plan(), &pipeline) {
        Ok(()) => true,
        // What it is measured on may be elsewhere now, which is no reason to stop.
        Err(why) => {
            note!("warning: not measured on the way: {}", why.to_string().trim_start_matches("error: "));
            false
        }
    });
    Ok(Ready { session, run, pipeline, vocabularies, loader, position, way })
}

/// A spec that is given with --resume is the one that the run was started with: what was changed in it since would not count.
fn same_spec(args: &Args, run: &RunDir) -> Outcome<()> {
    let (path, sources) = (run.root().display(), run.sources()?);
    let why = match (&args.spec, &sources) {
        (None, _) => None,
        (Some(given), _) if Path::new(given).is_dir() => other_plan(given, run)?,
        (Some(given), Some(sources)) => other_spec(given, run, sources),
        (Some(given), None) => Some(format!("the run in {path} was started from a compiled plan, not from {given}")),
    };
    if let Some(why) = why {
        let advice =
            format!("`alip-run train --resume {path}` continues it as it was started; begin another with --out");
        return Err(Failure::message(format!("{why}; {advice}")));
    }
    if let Some(file) = sources.as_ref().and_then(SpecSources::changed) {
        note!("{file} was changed since this run was started; it goes on as it was started");
    }
    Ok(())
}

/// Why the plan in a directory is not that of the run.
fn other_plan(given: &str, run: &RunDir) -> Outcome<Option<String>> {
    let is_own = fingerprint(&read_plan(Path::new(given))?.0) == run.info().plan;
    Ok((!is_own)
        .then(|| format!("the run in {} was started from another plan than that in {given}", run.root().display())))
}

/// Why a spec is not that of the run; what it says counts, not where it lies.
fn other_spec(given: &str, run: &RunDir, sources: &SpecSources) -> Option<String> {
    let (path, files) = (run.root().display(), files_now(given, sources));
    let changed = |file: &str| format!("{file} was changed since the run in {path} was started");
    let Some(own) = files.first() else {
        return Some(format!("{given} cannot be read, so nobody knows whether the run in {path} is one of it"));
    };
    if sources.is_graph(own) {
        return sources.unknown(&files[1..]).map(changed);
    }
    Some(match sources.is_graphs_file(own) {
        true => changed(&own.name),
        false => {
            let place = sources.place();
            format!("the run in {path} was made from another spec: {}, not {}", place.display(), own.name)
        }
    })
}

fn accept(run: &RunDir, difference: Difference, (accepted, option): (bool, &'static str)) -> Outcome<()> {
    if accepted {
        note!("accepted: {difference}");
        return Ok(());
    }
    Err(RunError::Differs { path: run.root().to_path_buf(), difference, accept: option }.into())
}

/// What takes long before a run on shards goes on that are read in sequence.
fn uncounted(source: &dyn SampleSource) -> Option<String> {
    let sequence = source.sequence()?;
    let all = sequence.shards();
    let unknown = (0..all).filter(|shard| sequence.size(*shard).is_none()).count();
    let advice = "a `sizes.json` beside the shards would spare that";
    (unknown > 0).then(|| {
        format!(
            "how many samples {unknown} of {all} shards have is not known: where the run stands in its shards is found by \
             counting those before; {advice}"
        )
    })
}

/// The steps asked for in one way or another.
fn wanted_steps(args: &Args, plan: &Plan, samples: u64) -> Outcome<u64> {
    let (own, batch) = plan.train.as_ref().map_or((1.0, 1), |train| (train.epochs, train.batch.max(1)));
    let epochs = args.epochs.unwrap_or(own);
    let steps = match args.steps {
        Some(steps) => steps,
        None if samples == 0 => {
            let why = "nobody says how many samples the shards have, so there are no epochs: give --steps, or say it by \
                       `samples` in the pipeline's source or by a `sizes.json` beside the shards";
            return Err(Failure::message(why));
        }
        None if epochs > 0.0 && epochs.is_finite() => (epochs * samples as f64 / batch as f64).ceil() as u64,
        None => return Err(Failure::message(format!("--epochs {epochs}: give a number above 0"))),
    };
    if steps == 0 {
        return Err(Failure::message("--steps 0: a run has at least one step"));
    }
    Ok(steps)
}

/// The steps of a run that is continued: its own, or others where those already taken would have been the same.
fn extended(args: &Args, run: &RunDir, plan: &Plan, samples: u64) -> Outcome<u64> {
    let own = run.info().steps;
    if args.steps.is_none() && args.epochs.is_none() {
        return Ok(own);
    }
    let steps = wanted_steps(args, plan, samples)?;
    let taken = run.checkpoints().last().map_or(0, |(step, _)| *step);
    let asked = match args.epochs {
        Some(epochs) => format!("--epochs {epochs}, which is {steps} steps"),
        None => format!("--steps {steps}"),
    };
    if steps < taken {
        return Err(Failure::message(format!("{asked}: the run has taken {taken} steps already")));
    }
    if steps != own && taken > 0 && needs_total_steps(plan) {
        let why = format!(
            "the schedule of `{}` is laid out over all its {own} steps; with another number the steps already taken would \
             have had other learning rates. Train anew with --out, or with a schedule that does not ask for the end \
             (`constant`), which can be extended",
            plan.name
        );
        return Err(Failure::message(format!("{asked}: {why}")));
    }
    if steps != own {
        note!("{own} steps become {steps}; no step depends on how many there are, so those taken stay as they are");
    }
    Ok(steps)
}

fn load(
    args: &Args,
    workers: usize,
    (pipeline, source, vocabularies): (&Pipeline, Arc<dyn SampleSource>, &Vocabularies),
    info: &RunInfo,
    position: Position,
) -> Outcome<Loader> {
    let options = LoaderOptions {
        start_sample: position.cursor,
        workers,
        prefetch: args.prefetch as usize,
        max_bad: args.bad.max_bad,
        vocabularies: vocabularies.clone(),
        ..LoaderOptions::train(info.seed, info.batch as usize)
    };
    Ok(Loader::new(pipeline, source, &options)?)
}

/// Whether the model can be measured at the end; why not is said before the first step, and not after the last.
fn is_measurable(ready: &Ready) -> bool {
    match measure::held_out(ready.session.plan(), &ready.pipeline) {
        Ok(_) => true,
        Err(why) => {
            note!("will not be measured at the end: {why}");
            false
        }
    }
}

/// A directory's or spec's last name, for what is named after it.
fn stem(spec: &str) -> String {
    let stem = Path::new(spec).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| "run".into())
}

/// `926,977`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let group = |(at, digit): (usize, char)| {
        let comma = at > 0 && (digits.len() - at).is_multiple_of(3);
        [comma.then_some(','), Some(digit)].into_iter().flatten()
    };
    digits.chars().enumerate().flat_map(group).collect()
}

fn rate(summary: &Summary, progress: &Progress, first: u64) -> f64 {
    let steps = summary.position.step - first;
    let samples = (summary.position.cursor / summary.position.step.max(1) * steps) as f64;
    samples / progress.elapsed().as_secs_f64().max(1e-9)
}

fn say_trained(summary: &Summary, progress: &Progress, loss: &str, first: u64) {
    let steps = summary.position.step - first;
    if let Some(last) = &summary.last {
        let (rate, value) = (rate(summary, progress, first), last.metric(loss).unwrap_or(f64::NAN));
        let time = duration(progress.elapsed());
        note!("{} steps in {time}, {rate:.1} samples/s, loss {value:.4}", grouped(steps));
    }
    if summary.rows.runs > 0 {
        note!("packed rows: {}", summary.rows);
    }
    if let Some(path) = &summary.checkpoint {
        note!("checkpoint: {}", path.display());
    }
}

fn as_json(info: &RunInfo, summary: &Summary, progress: &Progress, first: u64) -> serde_json::Value {
    serde_json::json!({
        "graph": info.spec, "step": summary.position.step, "last": summary.last, "checkpoint": summary.checkpoint,
        "seconds": progress.elapsed().as_secs_f64(), "samples_per_s": rate(summary, progress, first),
    })
}
