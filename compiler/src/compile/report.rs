//! What is shown of a compilation.

use std::fmt::Write;

use alip_plan::{Buffer, Program};

use crate::launch::Launch;
use crate::optimize::{RegionReport, Report};

/// What the e-graph did to all programs.
#[derive(Clone, Debug, Default)]
pub struct OptimizeReport {
    /// By program.
    pub programs: Vec<(String, Report)>,
    /// Every distinct region.
    pub regions: Vec<RegionReport>,
}

/// Distinct regions that are shown: a large model has hundreds, and those beyond these cost little.
const SHOWN_REGIONS: usize = 10;

/// One line per program with what the model of costs predicts, then one for each of the dearest distinct regions.
impl std::fmt::Display for OptimizeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (program, report) in self.programs.iter().filter(|(_, report)| report.regions > 0) {
            let Report { nodes, regions, distinct, cost: (before, after), fired, .. } = report;
            let milliseconds = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
            writeln!(
                f,
                "{program}: {} nodes to {}, {regions} regions, {distinct} new; predicted {} to {}, {} launches to {}; {} rules",
                nodes.0,
                nodes.1,
                milliseconds(before.seconds),
                milliseconds(after.seconds),
                before.launches,
                after.launches,
                fired.len(),
            )?;
        }
        let mut regions: Vec<&RegionReport> = self.regions.iter().collect();
        let weight = |region: &RegionReport| region.cost.0.seconds * f64::from(region.occurrences);
        regions.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        for region in regions.iter().take(SHOWN_REGIONS) {
            writeln!(f, "{region}")?;
        }
        match regions.len().saturating_sub(SHOWN_REGIONS) {
            0 => Ok(()),
            more => writeln!(f, "and {more} cheaper regions"),
        }?;
        Ok(())
    }
}

/// One line per launch: its operands and its kernel.
pub(super) fn table(launches: &[Launch]) -> String {
    launches.iter().fold(String::new(), |mut text, launch| {
        let _ = writeln!(text, "{:?} {:?}", launch.operands, launch.kernel);
        text
    })
}

/// One line per launch of a program: the bytes it reads and writes, what it costs, where it comes from.
pub(super) fn steps(program: &Program) -> String {
    let mut text = String::new();
    for step in &program.steps {
        for operand in &step.operands {
            let Buffer { segment, offset, dtype, shape } = &program.buffers[*operand as usize];
            let _ = write!(text, "{dtype}{shape:?} at {segment}+{offset}, ");
        }
        let _ = writeln!(text, "{} flops: {}", step.flops, step.origin);
    }
    text
}
