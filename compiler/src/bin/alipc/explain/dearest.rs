//! The launches of a program by the time that they are predicted to take.

use std::collections::BTreeMap;

use alip_compiler::diag::Diagnostic;
use alip_plan::{Plan, Program};
use serde::Serialize;

use super::text::alike;

/// What a program is predicted to take, and where.
#[derive(Serialize)]
pub(super) struct Dearest {
    /// Of a packed program, the rows that these launches are for.
    pub(super) rows: Vec<u64>,
    pub(super) launches: u64,
    pub(super) seconds: f64,
    /// The longest first.
    pub(super) kernels: Vec<Dear>,
}

/// Launches of one kernel, or of kernels that differ in their place in a stack only, added up.
#[derive(Serialize)]
pub(super) struct Dear {
    pub(super) kind: &'static str,
    pub(super) sizes: String,
    /// Their application; the layers of a stack count together.
    pub(super) path: String,
    pub(super) launches: u64,
    pub(super) flops: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// Of the version of the program that is for so many rows, or for all.
///
/// # Errors
/// There is no such version.
pub(super) fn dearest(plan: &Plan, name: &str, rows: Option<u64>) -> Result<Dearest, Diagnostic> {
    let (program, rows) = version(plan, name, rows)?;
    let mut kernels: BTreeMap<(&str, String, String), Dear> = BTreeMap::new();
    for step in &program.steps {
        let Some(kernel) = plan.kernels.get(step.kernel as usize) else { continue };
        let (kind, sizes, path) = (kernel.description.kind(), kernel.description.sizes(), alike(&step.origin));
        let new =
            || Dear { kind, sizes: sizes.clone(), path: path.clone(), launches: 0, flops: 0, bytes: 0, seconds: 0.0 };
        let one = kernels.entry((kind, sizes.clone(), path.clone())).or_insert_with(new);
        one.launches += 1;
        one.flops += step.flops;
        one.bytes += step.bytes;
        one.seconds += step.predicted_ns as f64 / 1e9;
    }
    let seconds = program.steps.iter().map(|step| step.predicted_ns).sum::<u64>() as f64 / 1e9;
    let mut kernels: Vec<Dear> = kernels.into_values().collect();
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(Dearest { rows, launches: program.steps.len() as u64, seconds, kernels })
}

/// The smallest version that has so many rows, with its rows.
fn version<'p>(plan: &'p Plan, name: &str, rows: Option<u64>) -> Result<(&'p Program, Vec<u64>), Diagnostic> {
    let missing = |name: &str| Diagnostic::error(format!("the plan has no program `{name}`"));
    let program = |name: &str| plan.programs.get(name).ok_or_else(|| missing(name));
    let Some(packed) = plan.packed.get(name) else {
        return match rows {
            Some(_) => Err(Diagnostic::error(format!("`{name}` packs no rows")).help("leave `--rows` away")),
            None => Ok((program(name)?, Vec::new())),
        };
    };
    let holds = |rows: u64| packed.buckets.iter().find(|bucket| bucket.rows.iter().sum::<u64>() >= rows);
    let bucket = rows.map_or(packed.buckets.last(), holds).ok_or_else(|| {
        let most = packed.buckets.last().map_or(0, |bucket| bucket.rows.iter().sum());
        Diagnostic::error(format!("`{name}` has {most} rows at most")).help("give `--rows` a smaller number")
    })?;
    Ok((program(&bucket.program)?, bucket.rows.clone()))
}
