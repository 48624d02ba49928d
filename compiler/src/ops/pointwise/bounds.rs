//! The rounding bounds of scalar operations: one function per kind of rule, named in the [table](super::rows).

use crate::graph::{DType, NodeId};
use crate::ops::rounding::{Found, Rounding};
use crate::ops::{Op, ScalarOp};

/// What transcendental functions of the devices may be wrong by, in units of the roundoff: a few units in the last place.
const FUNCTION: f64 = 8.0;

/// The result is one of the inputs, perhaps with another sign.
pub(super) fn exact(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    Ok(r.e[0])
}

/// Truth values that follow from truth values.
pub(super) fn logic(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    r.any_input()
}

/// `a + b`, `a - b`: errors add up.
pub(super) fn added(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let carried = r.sum(r.e[0], r.e[1])?;
    r.rounded(carried, 1.0)
}

/// The one or the other.
pub(super) fn extremum(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    r.sum(r.e[0], r.e[1])
}

pub(super) fn multiplied(r: &mut Rounding<'_, '_>, op: ScalarOp) -> Found {
    r.product(&Op::Pointwise(op), 1)
}

/// `sqrt(x + e) - sqrt(x) <= e / sqrt(x)`, and `sqrt(x) - sqrt(x - e) <= e / sqrt(x)` for `e <= x`.
pub(super) fn sqrt(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let carried = r.e[0].map(|e| r.b.div(e, r.y)).transpose()?;
    let rounded = r.rounded(carried, 1.0)?;
    r.inside(rounded, r.x[0], 1.0)
}

pub(super) fn ln(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let below = r.b.abs(r.x[0])?;
    let carried = r.e[0].map(|e| r.b.div(e, below)).transpose()?;
    let rounded = r.twice(carried, FUNCTION)?;
    r.inside(rounded, r.x[0], 2.0)
}

pub(super) fn exp(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let carried = r.e[0].map(|e| growth(r, e)).transpose()?;
    r.rounded(carried, FUNCTION)
}

/// `d(a^b) = a^b (b da / a + ln a db)`; the power itself is as well conditioned as its logarithm is large.
pub(super) fn pow(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let (magnitude, exponent, base) = (r.b.abs(r.y)?, r.b.abs(r.x[1])?, r.b.abs(r.x[0])?);
    let ln = r.b.ln(base)?;
    let ln = r.b.abs(ln)?;
    let by_base = r.e[0].map(|e| r.b.div(e, base)).transpose()?;
    let by_base = by_base.map(|e| r.b.mul(e, exponent)).transpose()?;
    // NaN, so nothing, where another exponent may not be whole.
    let slope = r.b.ln(r.x[0])?;
    let slope = r.b.abs(slope)?;
    let by_exponent = r.e[1].map(|e| r.b.mul(e, slope)).transpose()?;
    let relative = r.sum(by_base, by_exponent)?;
    let carried = relative.map(|e| r.b.mul(e, magnitude)).transpose()?;
    let condition = r.b.mul(ln, exponent)?;
    let condition = r.b.mul(condition, magnitude)?;
    let own = r.twice(carried, FUNCTION)?;
    let rounded = r.plus(own, condition, FUNCTION)?;
    r.inside(rounded, base, 2.0)
}

/// The slope is at most 1.
pub(super) fn tanh(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    r.rounded(r.e[0], FUNCTION)
}

/// The slope is at most 2 / sqrt(pi).
pub(super) fn erf(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    r.twice(r.e[0], FUNCTION)
}

/// Sine and cosine are exact to the roundoff of 1, not of their value.
pub(super) fn circular(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let one = r.b.full(1.0, &r.b.graph.ty(r.y).clone())?;
    r.plus(r.e[0], one, FUNCTION)
}

/// `|y + dy - y| <= (da + |y| db) / (|b| - db)`; infinite where `db` is not below `|b| / 2`.
pub(super) fn quotient(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let magnitude = r.b.abs(r.y)?;
    let second = r.e[1].map(|e| r.b.mul(e, magnitude)).transpose()?;
    let above = r.sum(r.e[0], second)?;
    let below = r.b.abs(r.x[1])?;
    let carried = above.map(|above| r.b.div(above, below)).transpose()?;
    let rounded = r.twice(carried, 1.0)?;
    let (Some(rounded), Some(e)) = (rounded, r.e[1]) else { return Ok(rounded) };
    let both = r.b.add(e, e)?;
    r.unless_below(both, below, rounded)
}

/// What is left may be off by what a is, and by what b is for each multiple; nothing is known where that reaches the next
/// multiple.
pub(super) fn remainder(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let size = r.b.abs(r.x[1])?;
    let multiples = r.b.div(r.x[0], r.x[1])?;
    let multiples = r.b.floor(multiples)?;
    let multiples = r.b.abs(multiples)?;
    let by_divisor = r.e[1].map(|e| r.b.mul(e, multiples)).transpose()?;
    let carried = r.sum(r.e[0], by_divisor)?;
    let rounded = r.plus(carried, size, 1.0)?;
    let (Some(rounded), Some(carried)) = (rounded, carried) else { return Ok(rounded) };
    let left = r.b.abs(r.y)?;
    let right = r.b.sub(size, left)?;
    let near = r.b.min(left, right)?;
    let reach = r.b.add(carried, carried)?;
    r.unless_below(reach, near, rounded)
}

/// What an error of an exponent does: `exp(x + e) - exp(x) <= 2 e exp(x)` for `e < 1`.
fn growth(r: &mut Rounding<'_, '_>, e: NodeId) -> Found<NodeId> {
    let (one, reach) = (r.b.scalar(1.0)?, r.b.add(r.x[0], e)?);
    let small = r.b.lt(e, one)?;
    let most = r.b.exp(reach)?;
    let slope = r.b.mul(e, r.y)?;
    let slope = r.b.add(slope, slope)?;
    r.b.select(small, slope, most)
}

/// A function that is constant between its steps: how much it differs at the ends of what the input may be.
pub(super) fn steps(r: &mut Rounding<'_, '_>, step: ScalarOp) -> Found {
    let Some(e) = r.e[0] else { return Ok(None) };
    let (low, high) = (r.b.sub(r.x[0], e)?, r.b.add(r.x[0], e)?);
    let (low, high) = (r.b.pointwise(step, &[low])?, r.b.pointwise(step, &[high])?);
    let (apart, same, none) = (r.b.sub(high, low)?, r.b.eq(low, high)?, r.b.scalar(0.0)?);
    // Of infinities too.
    r.b.select(same, none, apart).map(Some)
}

pub(super) fn chosen(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let base = if r.e[1].is_none() && r.e[2].is_none() {
        None
    } else {
        let (a, b) = (r.error_or_none(1)?, r.error_or_none(2)?);
        Some(r.b.select(r.x[0], a, b)?)
    };
    let Some(other) = r.e[0] else { return Ok(base) };
    let apart = r.b.sub(r.x[1], r.x[2])?;
    let apart = r.b.abs(apart)?;
    let both = r.sum(r.e[1], r.e[2])?;
    let far = r.sum(Some(apart), both)?.unwrap_or(apart);
    let base = match base {
        Some(base) => base,
        None => r.b.scalar(0.0)?,
    };
    r.b.select(other, far, base).map(Some)
}

/// Of floats that are closer than their errors, either may be the larger.
pub(super) fn compared(r: &mut Rounding<'_, '_>, _: ScalarOp) -> Found {
    let Some(reach) = r.sum(r.e[0], r.e[1])? else { return Ok(None) };
    let (reach, lost) = r.reach(reach)?;
    let apart = r.b.sub(r.x[0], r.x[1])?;
    let apart = r.b.abs(apart)?;
    let (close, zero) = (r.b.le(apart, reach)?, r.b.scalar(0.0)?);
    let unsure = r.b.gt(reach, zero)?;
    let close = r.b.and(close, unsure)?;
    r.b.or(close, lost).map(Some)
}

pub(super) fn cast(r: &mut Rounding<'_, '_>, op: ScalarOp) -> Found {
    match op {
        ScalarOp::Cast(to) if !to.is_float() => cast_from_float(r, to),
        _ => cast_to_float(r),
    }
}

/// Whether a float may be another integer or truth value.
fn cast_from_float(r: &mut Rounding<'_, '_>, to: DType) -> Found {
    let Some(e) = r.e[0] else { return Ok(None) };
    let (e, lost) = r.reach(e)?;
    let other = if to == DType::Bool {
        let magnitude = r.b.abs(r.x[0])?;
        r.b.le(magnitude, e)?
    } else {
        let (low, high) = (r.b.sub(r.x[0], e)?, r.b.add(r.x[0], e)?);
        let (low, high) = (r.b.cast(low, to)?, r.b.cast(high, to)?);
        r.b.ne(low, high)?
    };
    r.b.or(other, lost).map(Some)
}

/// Of a truth value that may be the other one: 1. Of an integer that may be another one: nothing is known.
fn cast_to_float(r: &mut Rounding<'_, '_>) -> Found {
    let from = r.b.graph.ty(r.x[0]).dtype;
    let Some(e) = r.e[0].filter(|_| !from.is_float()) else { return Ok(r.e[0]) };
    let (distance, zero) = if from == DType::Bool { (1.0, 0.0) } else { (f64::INFINITY, 0.0) };
    let (distance, zero) = (r.b.scalar(distance)?, r.b.scalar(zero)?);
    let shape = r.b.graph.shape(r.y).clone();
    let chosen = r.b.select(e, distance, zero)?;
    r.b.broadcast_to(chosen, &shape).map(Some)
}
