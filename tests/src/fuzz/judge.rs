//! What must come out of a case, and whether a device gives it at every level.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use alip_compiler::compile_model;
use alip_compiler::diag::Diagnostics;
use alip_compiler::ir::Graph;
use alip_compiler::trust::rounding::update_of;
use alip_compiler::trust::{Judged, judged};
use alip_plan::bounds::F32;
use alip_plan::{Plan, Target};
use alip_runtime::device::{Device, DeviceOptions, choose};

use super::levels::{Level, levels};
use super::{Case, differentiated, gradient};
use crate::compiled::{Numbers, run_on};

/// A device and what to compile for it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub device: &'static str,
    /// The target.
    pub target: Target,
}

/// What must come out, with the largest error of each element.
pub struct Expected {
    /// The program: the case's graph with its gradients.
    pub program: Graph,
    /// Outputs and new states by name.
    pub results: BTreeMap<String, Judged>,
}

/// Where and how a case failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The device.
    pub device: &'static str,
    /// The level of optimisation.
    pub level: &'static str,
    /// What is wrong with which result.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.device, self.level, self.why)
    }
}

/// What the interpreter says must come out, and how far off it may be.
///
/// # Errors
/// The case is none: its graph cannot be differentiated or lacks an input.
pub fn expected(case: &Case) -> Result<Expected, String> {
    let program = differentiated(&case.graph).map_err(|errors| errors.to_string())?;
    let results = judged(&program, &case.inputs, &case.state, F32).map_err(|errors| errors.to_string())?;
    Ok(Expected { program, results })
}

/// What of the compiler was used for a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Rewrites of the whole graph, and what was lifted.
    pub rewrites: BTreeSet<&'static str>,
    /// Rules of the e-graph.
    pub rules: BTreeSet<&'static str>,
}

/// Compiles the case at a level; the plan, and what was used.
///
/// # Errors
/// What the compiler or the check of plans says, faults that were worked around among it.
pub fn plan(case: &Case, level: &Level, target: &Target) -> Result<(Plan, Used), String> {
    let options = level.options(target.clone());
    let (model, report) = level.model(case, &options).map_err(|errors| errors.to_string())?;
    let compiled = compile_model(&model, None, &options).map_err(|errors| errors.to_string())?;
    if let Some(fault) = compiled.warnings.first() {
        return Err(Diagnostics::from(fault.clone()).to_string());
    }
    let plan = compiled.plan.ok_or("no plan")?;
    alip_plan::check::check(&plan).map_err(|why| why.to_string())?;
    let applied = report.applied.iter().map(|applied| applied.rewrite);
    let rewrites = applied.chain(report.lifted.iter().map(|lifted| lifted.what)).collect();
    let rules = compiled.optimized.programs.iter().flat_map(|(_, report)| report.fired.keys().copied()).collect();
    Ok((plan, Used { rewrites, rules }))
}

/// Runs a plan and compares all outputs and states.
///
/// # Errors
/// The result that is furthest out of its bound.
pub fn compare(case: &Case, expected: &Expected, device: &str, plan: Plan) -> Result<(), String> {
    // One thread: cases run in parallel, and no result depends on the number of threads.
    let device = choose(device, &DeviceOptions { threads: Some(1), ..DeviceOptions::default() })
        .map_err(|error| error.to_string())?
        .device;
    compare_on(case, expected, device, plan)
}

/// The same on a device that is there already.
///
/// # Errors
/// As [`compare`].
pub fn compare_on(case: &Case, expected: &Expected, device: Box<dyn Device>, plan: Plan) -> Result<(), String> {
    let name = &expected.program.name;
    let (outputs, after): (Numbers, Numbers) = run_on(device, plan, name, &case.inputs, &case.state);
    let updated = |(path, value): (&String, &Vec<f64>)| (update_of(path), value.clone());
    let actual: Numbers = outputs.into_iter().chain(after.iter().map(updated)).collect();
    for (name, result) in &expected.results {
        let actual = actual.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
        result.admits(actual).map_err(|wrong| format!("`{name}` {wrong}"))?;
    }
    for (path, value) in case.state.iter().filter(|(path, _)| !expected.program.updates.contains_key(*path)) {
        if !same(&after[path], &value.data) {
            return Err(format!("state `{path}` has changed, and nothing updates it"));
        }
    }
    Ok(())
}

fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

/// Tries a case at every level; what was used. A panic is a failure too.
///
/// # Errors
/// The first level at which something is wrong.
pub fn try_case(case: &Case, place: &Place) -> Result<Used, Failure> {
    let failure = |level, why| Failure { device: place.device, level, why };
    let expected = expected(case).map_err(|why| failure("interpreter", why))?;
    gradient::holds(case, &expected).map_err(|why| failure("differentiation", why))?;
    let mut levels = levels();
    if place.device == "wgpu" {
        // Shaders take long to compile: only with everything, and with nothing.
        levels.drain(1..levels.len() - 1);
    }
    let mut all = Used::default();
    for level in &levels {
        let attempt = || {
            let (plan, used) = plan(case, level, &place.target)?;
            compare(case, &expected, place.device, plan)?;
            Ok(used)
        };
        let result = catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| Err("it panics".into()));
        let used = result.map_err(|why| failure(level.name, why))?;
        all.rewrites.extend(used.rewrites);
        all.rules.extend(used.rules);
    }
    Ok(all)
}
