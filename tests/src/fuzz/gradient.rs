//! Gradients of a case against finite differences of its loss, in f64.
//!
//! One direction over all differentiated tensors at once: `<gradient, d>` against `(f(x + h d) - f(x - h d)) / 2h`. What flows
//! through `stop_gradient` is held fixed.
//!
//! Roundings to 16 bits have no slope and are left out on both sides: what is asked of their gradients is that they pass.
//!
//! At a kink or a jump a gradient is one of many, and several together may be any of their sums: second differences do not
//! see those that cancel. So the decisions are looked at that the loss takes on its way: comparisons, integers, the sides of a
//! maximum ([`decisions`]). Where one of them is taken otherwise within `h`, the case is asked again a little aside, where
//! equal values no longer are; its gradients are then those of the interpreter.

use std::collections::BTreeMap;

use alip_compiler::ir::{Builder, Graph, NodeId, OriginId, Value, interpret};
use alip_compiler::ops::{Op, OpError, ReduceKind, ScalarOp};
use alip_compiler::transform::narrow::{is_narrow, unrounded};
use alip_compiler::trust::rounding::update_of;
use alip_compiler::trust::{in_f32, judged};
use alip_plan::bounds::{F32, F64};
use alip_plan::philox::uniform;

use super::draws::Draws;
use super::judge::Expected;
use super::rebuild::{Other, rebuilt};
use super::{Case, DESCENT, DESCENT_RATE, LOSS};
use crate::compiled::Values;

/// Length of a step along the direction. The difference is off by about h^2 times a third derivative, and by 1e-16 / h from
/// rounding, both relative to a loss and derivatives of the order of 10.
const H: f64 = 1e-5;
/// Both errors, for derivatives up to 1000.
const BOUND: f64 = 1e-6;
/// Second differences of a loss of such derivatives are about h times a second derivative.
const SMOOTH: f64 = 1e-2;
/// How far aside a case is moved: much more than a step, and little enough to stay a case of its kind.
const ASIDE: f64 = 1.0 / 64.0;
/// How often.
const MOVES: u64 = 3;

/// Whether the gradients among the results are those of the loss.
///
/// # Errors
/// The slope and the difference that disagree.
pub(super) fn holds(case: &Case, expected: &Expected) -> Result<(), String> {
    if rounds(&expected.program) {
        let program = unrounded(&expected.program).map_err(|errors| errors.to_string())?;
        let graph = unrounded(&case.graph).map_err(|errors| errors.to_string())?;
        let exact = Case { graph, inputs: in_f32(&case.inputs), state: in_f32(&case.state) };
        let results = judged(&program, &exact.inputs, &exact.state, F32).map_err(|errors| errors.to_string())?;
        return of_smooth(&exact, &Expected { program, results });
    }
    of_smooth(case, expected)
}

/// Whether a graph rounds to 16 bits anywhere.
fn rounds(graph: &Graph) -> bool {
    let rounds = |op: &Op| matches!(op, Op::Pointwise(ScalarOp::RoundBf16 | ScalarOp::RoundF16));
    is_narrow(graph) || graph.nodes().iter().any(|node| rounds(&node.op))
}

fn of_smooth(case: &Case, expected: &Expected) -> Result<(), String> {
    let wanted = |name: &str| Some(expected.results.get(name)?.value.clone());
    if case.graph.values.is_empty() || said(case, wanted)? {
        return Ok(());
    }
    for seed in 0..MOVES {
        let moved = moved(case, seed);
        let results = interpret(&expected.program, &moved.inputs, &moved.state).map_err(|error| error.to_string())?;
        let updates = results.updates.iter().map(|(path, value)| (update_of(path), value.data.clone()));
        let outputs = results.outputs.iter().map(|(name, value)| (name.clone(), value.data.clone()));
        let results: BTreeMap<String, Vec<f64>> = updates.chain(outputs).collect();
        if said(&moved, |name| results.get(name).cloned())? {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the gradients are right, at one point; `false` where nothing can be said there.
fn said(case: &Case, result: impl Fn(&str) -> Option<Vec<f64>>) -> Result<bool, String> {
    let (mut slope, mut magnitude) = (0.0, 0.0);
    let mut directions: BTreeMap<(bool, String), Vec<f64>> = BTreeMap::new();
    for (wish, id) in case.graph.values.iter().filter(|(name, _)| *name != LOSS) {
        let (of_state, name) = match &case.graph.node(*id).op {
            Op::Input { name, .. } => (false, name.to_string()),
            Op::State { path, .. } => (true, path.to_string()),
            _ => continue,
        };
        let Some(gradient) = gradient(case, &result, wish) else { continue };
        // Ones of either sign, and never one twice as often as the other along a dimension.
        let direction: Vec<f64> =
            (0..gradient.len()).map(|i| if (i * 7 + i / 3).is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        let products = gradient.iter().zip(&direction).map(|(g, d)| g * d);
        slope += products.clone().sum::<f64>();
        magnitude += products.map(f64::abs).sum::<f64>();
        directions.insert((of_state, name), direction);
    }
    let Some(frozen) = frozen(case).filter(|_| !directions.is_empty()) else { return Ok(true) };
    let at = |step: f64| along(&frozen, &directions, step);
    let (above, here, below) = (at(H)?, at(0.0)?, at(-H)?);
    // Of a loss that is no number, or infinite, the slope says nothing.
    if above.decided != here.decided || below.decided != here.decided || !here.loss.is_finite() {
        return Ok(false);
    }
    let difference = (above.loss - below.loss) / (2.0 * H);
    let scale = 1.0 + magnitude + here.loss.abs();
    if (above.loss - 2.0 * here.loss + below.loss).abs() / H > SMOOTH * scale {
        return Ok(false);
    }
    if (difference - slope).abs() <= BOUND * scale {
        return Ok(true);
    }
    // Nor is a gradient defined by the rules where an infinity is on its way: that of ln(exp(x)) is 0 / 0.
    if slope.is_nan() && case.is_wild() {
        return Ok(false);
    }
    // Nor is a gradient what the rules say where an infinity is on its way: that of ln(exp(x)) is 0 / 0.
    if noise(&frozen)? / H > BOUND * (1.0 + here.loss.abs()) {
        return Ok(false);
    }
    Err(format!("the gradients say that the loss rises by {slope:e} along a direction, but it rises by {difference:e}"))
}

/// The case with all its floats a little aside, each by another amount.
fn moved(case: &Case, seed: u64) -> Case {
    let mut draws = Draws::new(seed);
    let mut moved = case.clone();
    for value in moved.inputs.values_mut().chain(moved.state.values_mut()).filter(|value| value.ty.dtype.is_float()) {
        value.data.iter_mut().for_each(|x| *x += ASIDE * (f64::from(uniform(draws.word())) - 0.5));
    }
    moved
}

/// The gradient that a wish asked for, also where a state went a step against it.
fn gradient(case: &Case, result: impl Fn(&str) -> Option<Vec<f64>>, wish: &str) -> Option<Vec<f64>> {
    let Some(path) = wish.strip_prefix(DESCENT) else { return result(wish) };
    if case.graph.updates.contains_key(path) {
        return None;
    }
    let after = result(&update_of(path))?;
    let steps = case.state.get(path)?.data.iter().zip(after);
    Some(steps.map(|(before, after)| (before - after) / DESCENT_RATE).collect())
}

/// The loss and its decisions, with the values behind `stop_gradient` as inputs.
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
    let stopped = |id: NodeId, _: &Graph| {
        values.get(&id.0.to_string()).map(|value| Other::Input(format!("stopped{}", id.0), value.clone()))
    };
    let mut frozen = rebuilt(&whole, stopped, |_| None)?;
    for (index, id) in decisions(&mut frozen.graph).ok()?.into_iter().enumerate() {
        frozen.graph.outputs.insert(format!("decision {index}"), id);
    }
    Some(frozen)
}

/// Nodes whose values stay the same as long as the graph is smooth, some of them new.
fn decisions(graph: &mut Graph) -> Result<Vec<NodeId>, OpError> {
    use ScalarOp::{Abs, Eq, Floor, Le, Max, Min, Rem};
    let mut decided = Vec::new();
    for id in graph.ids().collect::<Vec<_>>() {
        let node = graph.node(id).clone();
        let mut b = Builder::new(graph, OriginId(0));
        match &node.op {
            Op::Input { .. } | Op::State { .. } | Op::Const { .. } => {}
            _ if !node.ty.dtype.is_float() => decided.push(id),
            Op::Pointwise(Floor) => decided.push(id),
            Op::Pointwise(Rem) => {
                let multiples = b.div(node.inputs[0], node.inputs[1])?;
                decided.push(b.floor(multiples)?);
            }
            Op::Pointwise(op @ (Abs | Max | Min)) => {
                let other = if *op == Abs { b.scalar(0.0)? } else { node.inputs[1] };
                decided.push(b.pointwise(Le, &[node.inputs[0], other])?);
                decided.push(b.pointwise(Le, &[other, node.inputs[0]])?);
            }
            Op::Reduce { kind: kind @ (ReduceKind::Max | ReduceKind::Min), axes } => {
                let most = b.reduce(*kind, node.inputs[0], axes, true)?;
                decided.push(b.pointwise(Eq, &[node.inputs[0], most])?);
            }
            _ => {}
        }
    }
    Ok(decided)
}

/// How far off the loss may be in f64: much, where large values cancel on its way, as those that hide scores do; infinitely
/// where nothing is known of it.
fn noise(case: &Case) -> Result<f64, String> {
    let judged = judged(&case.graph, &case.inputs, &case.state, F64).map_err(|errors| errors.to_string())?;
    Ok(judged.get(LOSS).map_or(f64::INFINITY, |loss| loss.bounds[0]))
}

/// What a loss is somewhere, and what was decided on the way.
struct Somewhere {
    loss: f64,
    decided: BTreeMap<String, Value>,
}

fn along(case: &Case, directions: &BTreeMap<(bool, String), Vec<f64>>, step: f64) -> Result<Somewhere, String> {
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
    let mut decided = result.map_err(|error| error.to_string())?.outputs;
    let loss = decided.remove(LOSS).ok_or("there is no loss")?.data[0];
    Ok(Somewhere { loss, decided })
}
