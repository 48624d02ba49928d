//! How far rounding moves each result of a whole step.
//!
//! Worst cases ([`super::rounding`]) are right for a kernel, which is a few operations deep. Behind two blocks of a
//! transformer they admit everything: each operation takes the errors of its operands for as unlucky as they can be, and what
//! really cancels is added up. Here a program is interpreted several times in f64, and every operation that rounds is off by a
//! random part of its result (Parker, *Monte Carlo Arithmetic*, 1997). By how much the results differ is by how much
//! roundings of that size move them: where terms cancel, the size of the terms counts, as it must.
//!
//! It is for comparing two graphs that mean the same, both in f64: they differ by roundings that are far smaller than those
//! that were made here, so that first order is enough. For a device, whose roundings are the size of its own, use
//! [`super::judged`].

use std::collections::BTreeMap;

use alip_plan::bounds::distance;
use alip_plan::philox::{counter, philox4x32, uniform};

use super::rounding::update_of;
use super::{FLUSHED, Judged, Values, in_f32};
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Evaluated, Graph, Node, NodeId, interpret_with};
use crate::ops::{Op, ReduceKind, ScalarOp, rounds_to};
use crate::transform::narrow::{Storage, spelled};

/// What operations are off by at most, relative to their result: 2^13 times the roundoff of f64, so more than sums of
/// thousands of terms in another order.
const OPERATION: f64 = 1.0 / (1u64 << 40) as f64;
/// Runs. A value whose few random errors happen to cancel in all of them would get a bound that is too small; the margin
/// below leaves that one chance in a billion per value.
const RUNS: u32 = 3;
/// Between what was seen and the bound.
const MARGIN: f64 = 16.0;
/// Of the largest error seen in a tensor, what each of its elements may be off by: the ratio of real roundings to those made.
const SHARED: f64 = 1.0 / (1u64 << 13) as f64;

/// Relative error of constants that no f32 holds: of the operations, or that of f32 where the compiler has rounded them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constants {
    /// As they are written.
    Written,
    /// As a target holds them.
    Rounded,
}

/// What a program yields in f64, outputs and new states as [`update_of`], and how far from it another order of operations
/// may lead.
///
/// # Errors
/// An input or a state is missing or of another type.
pub fn sampled(
    program: &Graph,
    inputs: &Values,
    state: &Values,
    constants: Constants,
) -> Result<BTreeMap<String, Judged>, Diagnostics> {
    let program = &spelled(program, Storage::F32)?;
    let (inputs, state) = (&in_f32(inputs), &in_f32(state));
    let mut rounded = vec![false; program.nodes().len()];
    let rounds = |node: &&Node| matches!(node.op, Op::Pointwise(op) if rounds_to(op).is_some());
    program.nodes().iter().filter(rounds).for_each(|node| rounded[node.inputs[0].index()] = true);
    let run = |number: u32| -> Result<BTreeMap<String, (Vec<f64>, bool)>, Diagnostics> {
        let change = |id: NodeId, value: &mut [f64]| {
            let Some(size) = jitter(program.node(id), constants).filter(|_| number > 0) else { return };
            match number {
                // Half way between two numbers of 16 bits the least error decides: once up, once down.
                1 | 2 if rounded[id.index()] => {
                    let factor = if number == 1 { 1.0 + size } else { 1.0 - size };
                    value.iter_mut().for_each(|x| *x *= factor);
                }
                _ => shake(value, [number, id.0], size),
            }
        };
        let result = interpret_with(program, inputs, state, change);
        let Evaluated { outputs, updates, .. } = result.map_err(|error| Diagnostic::error(error.message))?;
        let updates = updates.into_iter().map(|(path, value)| (update_of(&path), value));
        let all = outputs.into_iter().chain(updates);
        Ok(all.map(|(name, value)| (name, (value.data, value.ty.dtype.is_float()))).collect())
    };
    let exact = run(0)?;
    let others = (1..=RUNS).map(run).collect::<Result<Vec<_>, _>>()?;
    let judged = exact.into_iter().map(|(name, (value, float))| {
        let spread = |index: usize| {
            let others = others.iter().filter_map(|run| run.get(&name)?.0.get(index));
            others.map(|other| distance(*other, value[index])).fold(0.0, f64::max)
        };
        let spreads: Vec<f64> = (0..value.len()).map(spread).collect();
        let largest = spreads.iter().copied().filter(|spread| spread.is_finite()).fold(0.0, f64::max);
        let bound = |spread: f64| match float {
            true => MARGIN * spread.max(largest * SHARED) + FLUSHED,
            // Another choice.
            false if spread > 0.0 => f64::INFINITY,
            false => 0.0,
        };
        let bounds = spreads.into_iter().map(bound).collect();
        (name, Judged { value, bounds })
    });
    Ok(judged.collect())
}

/// What a node is off by, relative to its result; none if it does not round.
fn jitter(node: &Node, constants: Constants) -> Option<f64> {
    use ScalarOp::{Abs, Cast, Floor, Max, Min, Neg, RoundBf16, RoundF16, Select};
    if !node.ty.dtype.is_float() {
        return None;
    }
    let rounds = match &node.op {
        Op::Const { value, .. } if f64::from(value.0 as f32) != value.0 => {
            return Some(if constants == Constants::Rounded { f64::from(f32::EPSILON) } else { OPERATION });
        }
        Op::Pointwise(op) => !matches!(op, Neg | Abs | Max | Min | Select | Floor | Cast(_) | RoundBf16 | RoundF16),
        Op::Reduce { kind, .. } => matches!(kind, ReduceKind::Sum | ReduceKind::Prod),
        Op::Dot(_) | Op::Conv2d(_) | Op::ScatterAdd { .. } | Op::Attention(_) => true,
        Op::Softmax { .. } | Op::LogSumExp { .. } | Op::LayerNorm { .. } | Op::CrossEntropy => true,
        _ => false,
    };
    rounds.then_some(OPERATION)
}

/// Multiplies each element by a number that is up to `size` from 1.
fn shake(value: &mut [f64], key: [u32; 2], size: f64) {
    for (block, part) in value.chunks_mut(4).enumerate() {
        let words = philox4x32(counter(block as u64, 0), key);
        for (x, word) in part.iter_mut().zip(words) {
            *x *= 1.0 + size * (2.0 * f64::from(uniform(word)) - 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, OriginId, Shape, TensorType, Value};

    /// Sixteen layers of products and normalisations, then the sum of `(y - mean(y))`, which is zero but for rounding.
    fn deep(reversed: bool) -> (Graph, Values) {
        let mut graph = Graph::new("deep");
        let mut b = Builder::new(&mut graph, OriginId(0));
        let ty = TensorType::f32(Shape::from([6, 8]));
        let mut x = b.input("x", ty.clone()).unwrap();
        let w = b.input("w", TensorType::f32(Shape::from([8, 8]))).unwrap();
        for _ in 0..16 {
            let product = b.matmul(x, w).unwrap();
            let mean = b.mean(product, &[1], true).unwrap();
            let centred = b.sub(product, mean).unwrap();
            let square = b.mul(centred, centred).unwrap();
            let variance = b.mean(square, &[1], true).unwrap();
            let eps = b.scalar(1e-5).unwrap();
            let sum = if reversed { b.add(eps, variance).unwrap() } else { b.add(variance, eps).unwrap() };
            let deviation = b.sqrt(sum).unwrap();
            x = b.div(centred, deviation).unwrap();
        }
        let mean = b.mean(x, &[1], true).unwrap();
        let rest = b.sub(x, mean).unwrap();
        let rest = if reversed { b.neg(rest).unwrap() } else { rest };
        let zero = b.reduce(ReduceKind::Sum, rest, &[0, 1], false).unwrap();
        graph.outputs.extend([("y".to_owned(), x), ("zero".to_owned(), zero)]);
        let data = |count: u64| (0..count).map(|i| ((i * 37) % 64) as f64 / 32.0 - 1.0).collect();
        let w_ty = TensorType::f32(Shape::from([8, 8]));
        let inputs = [("x", Value::new(ty, data(48))), ("w", Value::new(w_ty, data(64)))];
        (graph, inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn bounds_are_narrow_behind_many_layers_and_hold_where_terms_cancel() {
        let ((graph, inputs), (other, _)) = (deep(false), deep(true));
        let judge = |graph| sampled(graph, &inputs, &Values::new(), Constants::Written).unwrap();
        let (judged, found) = (judge(&graph), judge(&other));
        let widest = judged["y"].bounds.iter().copied().fold(0.0, f64::max);
        assert!(widest < 1e-6, "{widest}");
        assert!(judged["zero"].bounds[0] > judged["zero"].value[0].abs(), "{judged:?}");
        for (name, judged) in &judged {
            judged.admits(&found[name].value).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
        let wrong: Vec<f64> = judged["y"].value.iter().map(|y| y * (1.0 + 1e-5)).collect();
        assert!(judged["y"].admits(&wrong).is_err());
    }
}
