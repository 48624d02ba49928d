//! `alip-run eval`, and what `train` does at its end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use alip_plan::pipeline::Pipeline;
use alip_runtime::exec::Session;
use alip_runtime::train::measure::{ENCODE_IMAGE, measure};
use alip_runtime::train::report::{self, Measure, Unit};
use alip_runtime::train::summary::{Measured, REPORT, Shown, report};
use alip_runtime::train::{RunDir, RunInfo, checkpoint};

use crate::model::{DeviceArgs, on_folder};
use crate::{Failure, Outcome};

/// Measure the model of a run on held-out data
///
/// Retrieval between images and captions, zero-shot classification where the data have classes, and how well the sample
/// weight tells right raw texts from wrong ones. Writes results.json and report.html into the run's directory.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alip-run eval runs/alip_shapes\n  alip-run eval runs/alip_shapes --json")]
pub(crate) struct Args {
    /// The run's directory
    run: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// A checkpoint of the run other than its newest
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Where the images lie now
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Print the results as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let (run, mut info) = RunDir::open(&args.run)?;
    let plan = run.plan()?;
    if let Some(folder) = &args.data {
        info.data = Some(on_folder(&plan, folder)?);
    }
    let checkpoint =
        args.checkpoint.clone().or_else(|| run.checkpoints(1).latest()).ok_or_else(|| {
            Failure::message(format!("{} holds no checkpoint yet; train it first", args.run.display()))
        })?;
    let device = args.device.open()?.device;
    let mut session = Session::new(Arc::new(plan), device)?;
    let header = checkpoint::restore(&checkpoint, &mut session)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    measured(&mut session, &run, &info, workers, header.step, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures the model that was just trained, if its graph can be measured.
pub(crate) fn after_training(
    session: &mut Session,
    run: &RunDir,
    info: &RunInfo,
    workers: usize,
    json: bool,
) -> Outcome<()> {
    if !session.plan().programs.contains_key(ENCODE_IMAGE) {
        note!("not measured: graph `{}` has no program `{ENCODE_IMAGE}`", info.spec);
        return Ok(());
    }
    measured(session, run, info, workers, info.steps, json)
}

fn measured(session: &mut Session, run: &RunDir, info: &RunInfo, workers: usize, step: u64, json: bool) -> Outcome<()> {
    let pipeline: &Pipeline = info
        .data
        .as_ref()
        .ok_or_else(|| Failure::message(format!("the run of `{}` names no data to measure it on", info.spec)))?;
    let found = measure(session, pipeline, workers, step)?;
    let measured = Measured::new(session.plan(), found);
    measured.save(run)?;
    let shown = Shown { run, info, measured: &measured };
    let page = run.root().join(REPORT);
    report::write(&report(&shown, None)?, &page)?;
    if json {
        say!("{}", as_json(&measured));
    } else {
        say!("{} after {step} steps, on {} held-out samples", info.spec, measured.results.samples);
        say!("{}", table(&measured.measures(), None).trim_end());
        say!("report: {}", page.display());
    }
    Ok(())
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
        "graph": results.graph, "step": results.step, "samples": results.samples, "skipped": results.skipped,
        "retrieval": results.retrieval, "zero_shot": results.zero_shot,
        "weight_auc": results.weights.as_ref().map(|weights| weights.auc),
    })
}
