//! Factors moved through products and sums, to where fewer elements are multiplied or a kernel multiplies anyway: the scale
//! of attention's queries becomes part of the product that scores them.

use egg::Id;

use super::Rule;
use super::Tag::{Exact, Reassociates};
use crate::ops::{Op, ScalarOp};
use crate::optimize::pattern::*;
use crate::optimize::site::{Site, sides};

pub(super) fn rules() -> Vec<Rule> {
    let varies = |f: fn(Pat, Pat) -> Pat| vec![f(X, broadcast(Y)), f(X, C)];
    vec![
        Rule::build("dot-of-scaled", Reassociates, dot(mul(X, Y), Z), dot_of_scaled::<0>)
            .tried_on(varies(|x, y| dot(mul(x, y), Z))),
        Rule::build("dot-by-scaled", Reassociates, dot(Z, mul(X, Y)), dot_of_scaled::<1>)
            .tried_on(varies(|x, y| dot(Z, mul(x, y)))),
        Rule::build("dot-of-divided", Reassociates, dot(div(X, Y), Z), dot_of_scaled::<0>)
            .tried_on(varies(|x, y| dot(div(x, y), Z))),
        Rule::build("dot-by-divided", Reassociates, dot(Z, div(X, Y)), dot_of_scaled::<1>)
            .tried_on(varies(|x, y| dot(Z, div(x, y)))),
        Rule::build("dot-of-neg", Exact, dot(neg(X), Y), dot_of_neg::<0>),
        Rule::build("dot-by-neg", Exact, dot(X, neg(Y)), dot_of_neg::<1>),
        Rule::build("sum-of-scaled", Reassociates, sum(mul(X, Y)), sum_of_scaled)
            .floats()
            .tried_on(varies(|x, y| sum(mul(x, y)))),
        Rule::build("sum-of-divided", Reassociates, sum(div(X, Y)), sum_of_scaled)
            .floats()
            .tried_on(varies(|x, y| sum(div(x, y)))),
        Rule::build("sum-of-neg", Exact, sum(neg(X)), sum_of_neg).floats(),
        Rule::build("max-of-scaled", Exact, row_max(mul(X, C)), max_of_scaled).floats(),
    ]
}

/// A factor or divisor of one operand that does not vary along what is contracted is one of the result: a moderate one, since
/// what it is to keep from over- or underflowing is multiplied without it.
fn dot_of_scaled<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Dot(dot), Op::Pointwise(how)) = (s.op(0), s.op(1)) else { return None };
    let mut operands = s.operands(0);
    let ranks = [s.rank(operands[0]), s.rank(operands[1])];
    let both = sides(&dot, ranks);
    let side = &both[SIDE];
    let (x, y) = (s.var(&X)?, s.var(&Y)?);
    if !s.is_moderate(y) {
        return None;
    }
    let factor = s.constant_along(y, &side.contract)?;
    operands[SIDE] = x;
    let product = s.dot(operands[0], operands[1], dot.clone())?;
    // The dimensions that are left, and where the result has them.
    let left: Vec<usize> = (0..ranks[SIDE]).filter(|axis| !side.contract.contains(axis)).collect();
    let first = dot.batch.len() + if SIDE == 0 { 0 } else { both[0].free.len() };
    let place = |axis: &usize| match side.batch.iter().position(|batch| batch == axis) {
        Some(at) => at,
        None => first + side.free.iter().position(|free| free == axis).unwrap_or(0),
    };
    let places: Vec<usize> = left.iter().map(place).collect();
    let factor = s.spread(factor, s.shape(product), &places)?;
    s.point(how, &[product, factor])
}

fn dot_of_neg<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let Op::Dot(dot) = s.op(0) else { return None };
    let mut operands = s.operands(0);
    operands[SIDE] = if SIDE == 0 { s.var(&X)? } else { s.var(&Y)? };
    let product = s.dot(operands[0], operands[1], dot)?;
    s.point(ScalarOp::Neg, &[product])
}

/// A factor or divisor that is constant along what is summed is one of the sum.
fn sum_of_scaled(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { kind, axes }, Op::Pointwise(how)) = (s.op(0), s.op(1)) else { return None };
    let (x, y) = (s.var(&X)?, s.var(&Y)?);
    if s.fact(y).splat.is_some() && !s.is_moderate(y) {
        return None;
    }
    let factor = s.constant_along(y, &axes)?;
    let sum = s.reduce(kind, x, axes)?;
    s.point(how, &[sum, factor])
}

fn sum_of_neg(s: &mut Site<'_>) -> Option<Id> {
    let sum = s.add(s.op(0), &[s.var(&X)?])?;
    s.point(ScalarOp::Neg, &[sum])
}

fn max_of_scaled(s: &mut Site<'_>) -> Option<Id> {
    let factor = s.fact(s.var(&C)?).splat.filter(|factor| factor.value > 0.0)?;
    let top = s.add(s.op(0), &[s.var(&X)?])?;
    let factor = s.number(factor, top)?;
    s.mul(top, factor)
}
