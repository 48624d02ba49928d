//! `alip-run report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_runtime::run::RunDir;
use alip_runtime::train::report;
use alip_runtime::train::summary::{Measured, Shown, report, report_name};

use crate::{Failure, Outcome, eval};

/// Write the report of a run, beside another one if wanted
///
/// The report is one HTML page that needs nothing else: results against chance, curves, sample weights, samples.
#[derive(clap::Args)]
#[command(after_help = "Example:
  alip-run train alip_shapes
  alip-run train clip_shapes
  alip-run report runs/alip_shapes --against runs/clip_shapes")]
pub(crate) struct Args {
    /// The run's directory
    run: PathBuf,
    /// Another run on the same data
    #[arg(long, value_name = "RUN")]
    against: Option<PathBuf>,
    /// Of the average of the weights, which `alip-run eval RUN --average` measured
    #[arg(long)]
    average: bool,
    /// Where the page goes; report.html in the run's directory unless given
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

struct Found {
    run: RunDir,
    measured: Measured,
}

impl Found {
    fn open(root: &Path, average: bool) -> Outcome<Found> {
        let run = RunDir::open(root)?;
        let measured = Measured::load(&run, average)?.ok_or_else(|| {
            let (path, option) = (root.display(), if average { " --average" } else { "" });
            Failure::message(format!("the run in {path} was not measured yet; `alip-run eval {path}{option}` does it"))
        })?;
        Ok(Found { run, measured })
    }

    fn shown(&self) -> Shown<'_> {
        Shown { run: &self.run, measured: &self.measured }
    }
}

pub(crate) fn run(args: &Args) -> Outcome {
    let own = Found::open(&args.run, args.average)?;
    let other = args.against.as_deref().map(|other| Found::open(other, false)).transpose()?;
    let page = args.report.clone().unwrap_or_else(|| args.run.join(report_name(args.average)));
    let report = report(&own.shown(), other.as_ref().map(Found::shown).as_ref())?;
    report::write(&report, &page)?;
    let names = report.other.as_ref().map(|other| (report.title.as_str(), other.name.as_str()));
    if names.is_none() {
        say!("{}", report.title);
    }
    say!("{}", eval::table(&report.measures, names).trim_end());
    say!("report: {}", page.display());
    Ok(ExitCode::SUCCESS)
}
