//! What judges the rest of the compiler: how far a computed value may lie from the exact one, and where it goes wrong.
//!
//! - [`rounding`]: bounds on rounding, derived from a graph. [`judged`] is what a program must yield, with its bounds.
//! - [`sensitivity`]: how far rounding moves the results of a whole step, which bounds of that kind cannot say.
//! - [`forward`]: whether lifting, whole-graph rewrites and packing keep what a step yields; [`rows`] finds the program that a
//!   batch runs of a packed one.
//! - [`trace`]: what each step of a compiled program reads and writes, so that steps can be judged one by one.
//! - [`rewritten`]: whether the graph that is scheduled still means what the program meant, and the first node that does not.
//!
//! Nothing here takes part in a compilation; tests and `alip-run bisect` use it.

pub mod forward;
pub mod rewritten;
pub mod rounding;
pub mod rows;
pub mod sensitivity;
pub use crate::launch::trace;

use std::collections::BTreeMap;

use alip_plan::bounds::{FloatFormat, Violation, assert_within_each};

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{DType, Graph, TensorType, Value, interpret};
use rounding::{bound_of, update_of, with_bounds};

/// Tensors by name.
pub type Values = BTreeMap<String, Value>;

/// Below the smallest normal number of f32 a device may flush to zero.
const FLUSHED: f64 = 1e-37;

/// A result of a program: its elements, and the largest error of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// What must come out.
    pub value: Vec<f64>,
    /// How far off it may be; infinite where nothing is known.
    pub bounds: Vec<f64>,
}

impl Judged {
    /// Whether numbers are those.
    ///
    /// # Errors
    /// The one that is furthest out of its bound.
    pub fn admits(&self, actual: &[f64]) -> Result<(), Violation> {
        assert_within_each(actual, &self.value, &self.bounds)
    }
}

/// The same tensors as inputs of a graph whose values of 16 bits are in f32, where it rounds them.
pub fn in_f32(values: &Values) -> Values {
    let widened = |value: &Value| match value.ty.dtype.is_narrow() {
        true => Value { ty: TensorType::f32(value.ty.shape.clone()), ..value.clone() },
        false => value.clone(),
    };
    values.iter().map(|(name, value)| (name.clone(), widened(value))).collect()
}

/// What a program must yield when all its floats are of this format: outputs, and new states as
/// [`update_of`](rounding::update_of).
///
/// # Errors
/// An input or a state is missing or of another type.
pub fn judged(
    program: &Graph,
    inputs: &Values,
    state: &Values,
    format: FloatFormat,
) -> Result<BTreeMap<String, Judged>, Diagnostics> {
    let bounded = with_bounds(program, format)?;
    let run = |graph: &Graph, inputs: &Values, state: &Values| {
        interpret(graph, inputs, state).map_err(|error| Diagnostic::error(error.message))
    };
    let exact = run(program, inputs, state)?;
    let bounds = run(&bounded, &in_f32(inputs), &in_f32(state))?.outputs;
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
        (name, Judged { value: value.data, bounds })
    });
    Ok(results.collect())
}
