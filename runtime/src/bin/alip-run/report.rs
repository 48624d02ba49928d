//! `alip-run report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_runtime::train::report;
use alip_runtime::train::summary::{Measured, REPORT, Shown, report};
use alip_runtime::train::{RunDir, RunInfo};

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
    /// Where the page goes; report.html in the run's directory unless given
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

struct Found {
    run: RunDir,
    info: RunInfo,
    measured: Measured,
}

impl Found {
    fn open(root: &Path) -> Outcome<Found> {
        let (run, info) = RunDir::open(root)?;
        let measured = Measured::load(&run)?.ok_or_else(|| {
            let path = root.display();
            Failure::message(format!("the run in {path} was not measured yet; `alip-run eval {path}` does it"))
        })?;
        Ok(Found { run, info, measured })
    }

    fn shown(&self) -> Shown<'_> {
        Shown { run: &self.run, info: &self.info, measured: &self.measured }
    }
}

pub(crate) fn run(args: &Args) -> Outcome {
    let own = Found::open(&args.run)?;
    let other = args.against.as_deref().map(Found::open).transpose()?;
    let page = args.report.clone().unwrap_or_else(|| args.run.join(REPORT));
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
