//! Gradients of a case against finite differences of its loss, in f64.
//!
//! One direction over all differentiated tensors at once: `<gradient, d>` against `(f(x + h d) - f(x - h d)) / 2h`. Nothing is
//! said where the loss has a kink or a jump within `h`, which its second difference shows; what flows through
//! `stop_gradient` is held fixed.

use std::collections::BTreeMap;

use alip_compiler::ir::{Graph, Value, interpret};
use alip_compiler::ops::Op;

use super::judge::Expected;
use super::rebuild::{Other, rebuilt};
use super::{Case, DESCENT, DESCENT_RATE, LOSS};
use crate::compiled::Values;

/// Length of a step along the direction. The difference is off by about h^2 times a third derivative, and by 1e-16 / h from
/// rounding, both relative to a loss and derivatives of the order of 10.
const H: f64 = 1e-5;
/// Both errors, for derivatives up to 1000.
const BOUND: f64 = 1e-6;
/// Second differences of a smooth loss are about h times a second derivative.
const SMOOTH: f64 = 1e-2;

/// Whether the gradients among the results are those of the loss.
///
/// # Errors
/// The slope and the difference that disagree.
pub(super) fn holds(case: &Case, expected: &Expected) -> Result<(), String> {
    let (mut slope, mut magnitude) = (0.0, 0.0);
    let mut directions: BTreeMap<(bool, String), Vec<f64>> = BTreeMap::new();
    for (wish, id) in case.graph.values.iter().filter(|(name, _)| *name != LOSS) {
        let (of_state, name) = match &case.graph.node(*id).op {
            Op::Input { name, .. } => (false, name.to_string()),
            Op::State { path, .. } => (true, path.to_string()),
            _ => continue,
        };
        let Some(gradient) = gradient(case, expected, wish) else { continue };
        // Ones of either sign, and never one twice as often as the other along a dimension.
        let direction: Vec<f64> =
            (0..gradient.len()).map(|i| if (i * 7 + i / 3).is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        let products = gradient.iter().zip(&direction).map(|(g, d)| g * d);
        slope += products.clone().sum::<f64>();
        magnitude += products.map(f64::abs).sum::<f64>();
        directions.insert((of_state, name), direction);
    }
    let Some(frozen) = frozen(case).filter(|_| !directions.is_empty()) else { return Ok(()) };
    let at = |step: f64| loss(&frozen, &directions, step);
    let (above, here, below) = (at(H)?, at(0.0)?, at(-H)?);
    let difference = (above - below) / (2.0 * H);
    let kink = (above - 2.0 * here + below).abs() / H;
    let scale = 1.0 + magnitude + here.abs();
    if kink > SMOOTH * scale || (difference - slope).abs() <= BOUND * scale {
        return Ok(());
    }
    Err(format!("the gradients say that the loss rises by {slope:e} along a direction, but it rises by {difference:e}"))
}

/// The gradient that a wish asked for, also where a state went a step against it.
fn gradient(case: &Case, expected: &Expected, wish: &str) -> Option<Vec<f64>> {
    let Some(path) = wish.strip_prefix(DESCENT) else { return Some(expected.results.get(wish)?.value.clone()) };
    if case.graph.updates.contains_key(path) {
        return None;
    }
    let after = &expected.results.get(&alip_compiler::trust::rounding::update_of(path))?.value;
    let steps = case.state.get(path)?.data.iter().zip(after);
    Some(steps.map(|(before, after)| (before - after) / DESCENT_RATE).collect())
}

/// The loss alone, with the values behind `stop_gradient` as inputs.
fn frozen(case: &Case) -> Option<Case> {
    let mut graph = case.graph.clone();
    let loss = *graph.values.get(LOSS)?;
    graph.outputs.clear();
    graph.updates.clear();
    graph.values.clear();
    let stops: Vec<_> = graph.ids().filter(|id| graph.node(*id).op == Op::StopGradient).collect();
    graph.outputs.extend(stops.iter().map(|id| (id.0.to_string(), *id)));
    let values = interpret(&graph, &case.inputs, &case.state).ok()?.outputs;
    graph.outputs.clear();
    graph.outputs.insert(LOSS.into(), loss);
    let whole = Case { graph, ..case.clone() };
    let stopped = |id: alip_compiler::ir::NodeId, _: &Graph| {
        values.get(&id.0.to_string()).map(|value| Other::Input(format!("stopped{}", id.0), value.clone()))
    };
    rebuilt(&whole, stopped, |_| None)
}

fn loss(case: &Case, directions: &BTreeMap<(bool, String), Vec<f64>>, step: f64) -> Result<f64, String> {
    let moved = |values: &Values, of_state: bool| -> Values {
        let value = |(name, value): (&String, &Value)| {
            let mut value = value.clone();
            if let Some(direction) = directions.get(&(of_state, name.clone())) {
                value.data.iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
            }
            (name.clone(), value)
        };
        values.iter().map(value).collect()
    };
    let result = interpret(&case.graph, &moved(&case.inputs, false), &moved(&case.state, true));
    Ok(result.map_err(|error| error.to_string())?.outputs[LOSS].data[0])
}
