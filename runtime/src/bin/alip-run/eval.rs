//! `alip-run eval`, and what `train` does at its end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_plan::pipeline::Pipeline;
use alip_runtime::data::Vocabularies;
use alip_runtime::eval::EncodeError;
use alip_runtime::exec::Session;
use alip_runtime::run::RunDir;
use alip_runtime::run::checkpoint::use_average;
use alip_runtime::train::measure::{MeasureError, Measuring, measure};
use alip_runtime::train::report::{self, Measure, Unit};
use alip_runtime::train::summary::{Measured, Shown, report, report_name};

use crate::model::{BadArgs, session_on};
use crate::moved::moved;
use crate::open::WeightsArgs;
use crate::stop::Stop;
use crate::{Failure, Outcome, suite};

/// Measure the model of a run on held-out data
///
/// Retrieval between images and captions, zero-shot classification where the data have classes, and how well the sample
/// weight tells right raw texts from wrong ones. Writes results.json and report.html into the run's directory; nothing else
/// there changes, so a run can be measured while it is trained.
///
/// With --suite the model is measured on the data sets of a suite instead, as the papers do, and shown beside published figures;
/// writes suite-NAME.json and suite-NAME.html.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run eval runs/alip_shapes\n  alip-run eval runs/alip_shapes --json\n  alip-run eval runs/alip_b32 --suite alip_table --data /data/clip_benchmark --features features"
)]
pub(crate) struct Args {
    /// The run's directory, or with --suite and --weights a graph spec
    #[arg(value_name = "RUN|SPEC")]
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Where the images lie now; how they are prepared is the run's own business. With --suite, the folder that its data sets lie in
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<String>,
    /// Measure on the data sets of a suite: one that is shipped (`alip_table`), or a RON file
    #[arg(long, value_name = "NAME|FILE")]
    suite: Option<String>,
    /// Keep the embeddings of a suite's data sets in a folder, and use those that are there
    #[arg(long, value_name = "DIR", requires = "suite")]
    pub(crate) features: Option<PathBuf>,
    /// Rank classes by logits without their fractions, as the code published with ALIP does; for comparison only
    #[arg(long, requires = "suite")]
    pub(crate) published_rounding: bool,
    #[command(flatten)]
    pub(crate) bad: BadArgs,
    /// Where results and report go; the run's directory unless given, or this one for a spec. Those of a checkpoint other than the
    /// newest go into a folder of its name there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print the results as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if let Some(suite) = &args.suite {
        return suite::run(args, suite);
    }
    let WeightsArgs { weights, checkpoint, average, device, .. } = &args.weights;
    if weights.is_some() {
        let why = "weights of a file have no held-out data of their own: name the data sets with --suite";
        return Err(Failure::message(why));
    }
    let stop = Stop::listen("stopping")?;
    let run = RunDir::open(&args.run)?;
    let info = run.info();
    let pipeline = run.pipeline();
    let mut pipeline = pipeline
        .ok_or_else(|| Failure::message(format!("the run of `{}` names no data to measure it on", info.spec)))?;
    if let Some(folder) = &args.data {
        pipeline = moved(pipeline, folder).map_err(|why| Failure::message(format!("graph `{}`: {why}", info.spec)))?;
    }
    let none = || Failure::message(format!("{} holds no checkpoint yet; train it first", args.run.display()));
    if run.checkpoints().is_empty() && checkpoint.is_none() {
        return Err(none());
    }
    let device = device.open_as(Some(&info.device))?;
    let mut session = session_on(&run, device.as_ref())?;
    let header = match checkpoint {
        Some(path) => run.restore_from(path, &mut session)?,
        // Somebody may have taken the last one away meanwhile, and weights that nobody trained are nothing to measure.
        None => run.restore(&mut session)?.ok_or_else(none)?,
    };
    if *average {
        use_average(&mut session)?;
    }
    let vocabularies = run.vocabularies()?;
    let out = results_folder(args, Some(&run));
    let what = Measurement {
        pipeline: &pipeline,
        vocabularies: &vocabularies,
        workers: std::thread::available_parallelism().map_or(1, usize::from),
        max_bad: args.bad.max_bad,
        step: header.step,
        average: *average,
        out: &out,
        json: args.json,
    };
    measured(&mut session, &run, &what, (None, &stop))
}

/// Where results go. Those of a checkpoint other than the run's newest do not take the place of the run's own.
pub(crate) fn results_folder(args: &Args, run: Option<&RunDir>) -> PathBuf {
    let own = run.map_or_else(|| PathBuf::from("."), |run| run.root().to_path_buf());
    let newest = run.and_then(|run| run.checkpoints().pop()).and_then(|(_, path)| path.canonicalize().ok());
    let other = args.weights.checkpoint.as_ref().filter(|path| path.canonicalize().ok() != newest);
    match (&args.out, other.and_then(|path| path.file_stem())) {
        (Some(out), _) => out.clone(),
        (None, Some(name)) => own.join(name),
        (None, None) => own,
    }
}

/// What to measure a model on, and where results go.
pub(crate) struct Measurement<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) vocabularies: &'a Vocabularies,
    pub(crate) workers: usize,
    pub(crate) max_bad: f64,
    pub(crate) step: u64,
    pub(crate) average: bool,
    pub(crate) out: &'a Path,
    pub(crate) json: bool,
}

/// Measures the model in a session. Results are shown also where a disk refuses them, and written also where a terminal does.
///
/// What is `known` already is not measured again.
pub(crate) fn measured(
    session: &mut Session,
    run: &RunDir,
    what: &Measurement<'_>,
    (known, stop): (Option<Measured>, &Stop),
) -> Outcome {
    let how = Measuring {
        pipeline: what.pipeline,
        vocabularies: what.vocabularies,
        workers: what.workers,
        max_bad: what.max_bad,
        step: what.step,
        stop: stop.flag(),
        skipped: &|skipped| note!("left out {skipped}"),
    };
    let measured = known
        .map_or_else(|| measure(session, &how).map(|found| Measured::new(session.plan(), found, what.average)), Ok);
    let measured = match measured {
        Err(MeasureError::Encode(EncodeError::Stopped)) => {
            note!("not measured; `alip-run eval {}` does it", run.root().display());
            return Ok(stop.status());
        }
        measured => measured?,
    };
    let saved = std::fs::create_dir_all(what.out)
        .map_err(|error| Failure::message(format!("{}: {error}", what.out.display())))
        .and_then(|()| Ok(measured.save(what.out)?));
    if what.json {
        say!("{}", as_json(&measured));
    } else {
        say!("{} after {} steps, on {} held-out samples", measured.title(), what.step, measured.results.samples);
        say!("{}", table(&measured.measures(), None).trim_end());
    }
    saved?;
    let page = what.out.join(report_name(what.average));
    report::write(&report(&Shown { run, measured: &measured }, None)?, &page)?;
    if !what.json {
        say!("report: {}", page.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Results as lines; with another run's beside them, under the names of both.
pub(crate) fn table(measures: &[Measure], names: Option<(&str, &str)>) -> String {
    let first = measures.iter().map(|measure| measure.name.len()).max().unwrap_or(0);
    let column = names.map_or(8, |(own, other)| own.len().max(other.len()).max(8));
    let mut text = String::new();
    if let Some((own, other)) = names {
        text += &format!("  {:<first$}  {own:>column$}  {other:>column$}  {:>8}\n", "", "chance");
    }
    for measure in measures {
        text += &format!("  {:<first$}  {:>column$}", measure.name, number(measure.value, measure.unit));
        let chance = number(measure.chance, measure.unit);
        if names.is_some() {
            let other = measure.other.map_or_else(|| "-".into(), |other| number(other, measure.unit));
            text += &format!("  {other:>column$}  {chance:>8}\n");
            continue;
        }
        text += &format!("   chance {chance}");
        if measure.unit == Unit::Share && measure.chance > 0.0 {
            text += &format!(", {:.0} times that", measure.value / measure.chance);
        }
        text.push('\n');
    }
    text
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Area => format!("{value:.3}"),
    }
}

/// Results without the single weights and pictures.
fn as_json(measured: &Measured) -> serde_json::Value {
    let results = &measured.results;
    serde_json::json!({
        "graph": results.graph, "average": measured.average, "step": results.step, "samples": results.samples, "skipped": results.skipped,
        "retrieval": results.retrieval, "zero_shot": results.zero_shot,
        "weight_auc": results.weights.as_ref().map(|weights| weights.auc),
    })
}
