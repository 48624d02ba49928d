//! What must come out of a case, and whether a device gives it at every level.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use alip_compiler::compile_model;
use alip_compiler::ir::{DType, Graph, interpret};
use alip_compiler::trust::rounding::{bound_of, update_of, with_bounds};
use alip_plan::bounds::{F32, assert_within_each};
use alip_plan::{Plan, Target};
use alip_runtime::device::{DeviceOptions, choose};

use super::levels::{LEVELS, Level};
use super::{Case, differentiated, gradient};
use crate::compiled::{Numbers, model, run_on};

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
    pub results: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
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

/// Below the smallest normal number a device may flush to zero.
const FLUSHED: f64 = 1e-37;

/// What the interpreter says must come out, and how far off it may be.
///
/// # Errors
/// The case is none: its graph cannot be differentiated or lacks an input.
pub fn expected(case: &Case) -> Result<Expected, String> {
    let program = differentiated(&case.graph).map_err(|errors| errors.to_string())?;
    let bounded = with_bounds(&program, F32).map_err(|errors| errors.to_string())?;
    let run = |graph| interpret(graph, &case.inputs, &case.state).map_err(|error| error.to_string());
    let (exact, bounds) = (run(&program)?, run(&bounded)?.outputs);
    let updates = exact.updates.into_iter().map(|(path, value)| (update_of(&path), value));
    let results = exact.outputs.into_iter().chain(updates).map(|(name, value)| {
        let flushed = if value.ty.dtype.is_float() { FLUSHED } else { 0.0 };
        let bound = bounds.get(&bound_of(&name));
        let bounds = (0..value.data.len()).map(|i| match bound {
            None => flushed,
            // Another choice of an integer or a truth value.
            Some(bound) if bound.ty.dtype == DType::Bool => [0.0, f64::INFINITY][usize::from(bound.data[i] != 0.0)],
            Some(bound) if bound.data[i].is_nan() => f64::INFINITY,
            Some(bound) => bound.data[i] + flushed,
        });
        let bounds = bounds.collect();
        (name, (value.data, bounds))
    });
    Ok(Expected { results: results.collect(), program })
}

/// Compiles the case at a level.
///
/// # Errors
/// What the compiler or the check of plans says.
pub fn plan(case: &Case, program: &Graph, level: &Level, target: &Target) -> Result<Plan, String> {
    let program = (level.prepare)(program).map_err(|errors| errors.to_string())?;
    let model = model("random", &program, &case.state);
    let compiled = compile_model(&model, None, &level.options(target.clone())).map_err(|errors| errors.to_string())?;
    let plan = compiled.plan.ok_or("no plan")?;
    alip_plan::check::check(&plan).map_err(|why| why.to_string())?;
    Ok(plan)
}

/// Runs a plan and compares all outputs and states.
///
/// # Errors
/// The result that is furthest out of its bound.
pub fn compare(case: &Case, expected: &Expected, device: &str, plan: Plan) -> Result<(), String> {
    // One thread: cases run in parallel, and no result depends on the number of threads.
    let device = choose(device, &DeviceOptions { threads: Some(1) }).map_err(|error| error.to_string())?.device;
    let name = &expected.program.name;
    let (outputs, after): (Numbers, Numbers) = run_on(device, plan, name, &case.inputs, &case.state);
    let updated = |(path, value): (&String, &Vec<f64>)| (update_of(path), value.clone());
    let actual: Numbers = outputs.into_iter().chain(after.iter().map(updated)).collect();
    for (name, (value, bounds)) in &expected.results {
        let actual = actual.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
        assert_within_each(actual, value, bounds).map_err(|wrong| format!("`{name}` {wrong}"))?;
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

/// Tries a case at every level; a panic is a failure too.
///
/// # Errors
/// The first level at which something is wrong.
pub fn try_case(case: &Case, place: &Place) -> Result<(), Failure> {
    let failure = |level, why| Failure { device: place.device, level, why };
    let expected = expected(case).map_err(|why| failure("interpreter", why))?;
    gradient::holds(case, &expected).map_err(|why| failure("differentiation", why))?;
    LEVELS.iter().try_for_each(|level| {
        let attempt = || {
            let plan = plan(case, &expected.program, level, &place.target)?;
            compare(case, &expected, place.device, plan)
        };
        let result = catch_unwind(AssertUnwindSafe(attempt));
        result.unwrap_or_else(|_| Err("it panics".into())).map_err(|why| failure(level.name, why))
    })
}
