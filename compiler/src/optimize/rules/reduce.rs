//! Reductions of reductions, of what is repeated, and of products.

use egg::Id;

use super::Rule;
use super::Tag::{Exact, Reassociates};
use crate::ops::{Op, ReduceKind};
use crate::optimize::pattern::*;
use crate::optimize::site::{Site, others, sides};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::build("sum-of-sum", Reassociates, sum(sum(X)), reduce_of_reduce),
        Rule::build("max-of-max", Exact, row_max(row_max(X)), reduce_of_reduce),
        Rule::build("sum-of-broadcast", Reassociates, sum(broadcast(X)), reduce_of_broadcast).floats(),
        Rule::build("max-of-broadcast", Exact, row_max(broadcast(X)), reduce_of_broadcast),
        Rule::build("sum-of-reshape", Reassociates, sum(reshape(X)), reduce_of_reshape),
        Rule::build("max-of-reshape", Exact, row_max(reshape(X)), reduce_of_reshape),
        Rule::build("sum-of-pad", Reassociates, sum(pad(X)), sum_of_pad),
        Rule::build("sum-of-dot", Reassociates, sum(dot(X, Y)), sum_of_dot),
        Rule::build("dot-of-constant", Reassociates, dot(C, X), dot_of_constant::<0>),
        Rule::build("dot-by-constant", Reassociates, dot(X, C), dot_of_constant::<1>),
    ]
}

fn reduce_of_reduce(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { kind, axes: outer }, Op::Reduce { axes: inner, .. }) = (s.op(0), s.op(1)) else { return None };
    let x = s.var(&X)?;
    let kept = others(s.rank(x), &inner);
    let mut axes: Vec<usize> = outer.iter().map(|axis| kept[*axis]).chain(inner).collect();
    axes.sort_unstable();
    s.reduce(kind, x, axes)
}

/// What is repeated along a reduced dimension need not be: its sum is a multiple, its maximum itself.
fn reduce_of_broadcast(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { kind, axes }, Op::Broadcast { shape, dims }) = (s.op(0), s.op(1)) else { return None };
    let x = s.var(&X)?;
    let sizes = s.sizes(x);
    let varies = |axis: usize| dims.iter().position(|dim| *dim == axis).filter(|from| sizes[*from] == shape.size(axis));
    let repeated: Vec<usize> = axes.iter().copied().filter(|axis| varies(*axis).is_none()).collect();
    let count: u64 = repeated.iter().map(|axis| shape.size(*axis)).product();
    if repeated.is_empty() {
        return None;
    }
    let rest: Vec<usize> = axes.iter().copied().filter(|axis| !repeated.contains(axis)).collect();
    // Once along the repeated dimensions, then the others as before.
    let broadcast = s.operands(0)[0];
    let once = s.constant_along(broadcast, &repeated)?;
    let kept = others(shape.rank(), &repeated);
    let rest: Vec<usize> = rest.iter().filter_map(|axis| kept.iter().position(|other| other == axis)).collect();
    let reduced = s.reduce(kind, once, rest)?;
    if kind != ReduceKind::Sum {
        return Some(reduced);
    }
    let count = s.number(count as f64, reduced)?;
    s.mul(reduced, count)
}

/// A reshape within what is reduced, or within what is kept, does not touch the sum.
fn reduce_of_reshape(s: &mut Site<'_>) -> Option<Id> {
    let Op::Reduce { kind, axes } = s.op(0) else { return None };
    let x = s.var(&X)?;
    let (from, to) = (s.sizes(x), s.sizes(s.operands(0)[0]));
    let mut reduced = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let (first, other) = (i, j);
        let (mut a, mut b) = (1, 1);
        // The next dimensions of both shapes that hold the same elements.
        while i == first || j == other || a != b {
            if i < from.len() && (a < b || i == first || j >= to.len()) && (a <= b || j >= to.len()) {
                a *= from[i];
                i += 1;
            } else if j < to.len() {
                b *= to[j];
                j += 1;
            } else {
                break;
            }
        }
        let gone = (other..j).filter(|axis| axes.contains(axis) && to[*axis] > 1).count();
        let there = (other..j).filter(|axis| to[*axis] > 1).count();
        match gone {
            0 => {}
            _ if gone == there => reduced.extend(first..i),
            _ => return None,
        }
    }
    let result = s.reduce(kind, x, reduced)?;
    s.reshape(result, s.shape(s.root()))
}

fn sum_of_pad(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { axes, .. }, Op::Pad { low, high, interior }) = (s.op(0), s.op(1)) else { return None };
    let padded = |axis: &usize| low[*axis] + high[*axis] + interior[*axis] > 0;
    if (0..low.len()).filter(padded).any(|axis| !axes.contains(&axis)) {
        return None;
    }
    s.sum(s.var(&X)?, axes)
}

/// A sum over free dimensions of one operand is taken before the product.
fn sum_of_dot(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { axes, .. }, Op::Dot(dot)) = (s.op(0), s.op(1)) else { return None };
    let operands = [s.var(&X)?, s.var(&Y)?];
    let ranks = operands.map(|operand| s.rank(operand));
    let both = sides(&dot, ranks);
    let batch = dot.batch.len();
    let second = batch + both[0].free.len();
    if axes[0] < batch {
        return None;
    }
    let mut summed = operands;
    let mut dot = dot;
    for (side, first) in [(0, batch), (1, second)] {
        let end = first + both[side].free.len();
        let gone: Vec<usize> =
            axes.iter().filter(|axis| (first..end).contains(axis)).map(|axis| both[side].free[*axis - first]).collect();
        summed[side] = s.sum(operands[side], gone.clone())?;
        let kept = others(ranks[side], &gone);
        let renamed = |axis: usize| kept.iter().position(|other| *other == axis).unwrap_or(0);
        for pair in dot.batch.iter_mut().chain(&mut dot.contract) {
            *pair = if side == 0 { (renamed(pair.0), pair.1) } else { (pair.0, renamed(pair.1)) };
        }
    }
    s.dot(summed[0], summed[1], dot)
}

/// A product with a constant is a sum, repeated.
fn dot_of_constant<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let Op::Dot(dot) = s.op(0) else { return None };
    let (x, c) = (s.var(&X)?, s.var(&C)?);
    let value = s.fact(c).splat.filter(|_| s.is_moderate(c))?;
    let operands = s.operands(0);
    let both = sides(&dot, [s.rank(operands[0]), s.rank(operands[1])]);
    let side = &both[1 - SIDE];
    let mut axes = side.contract.clone();
    axes.sort_unstable();
    let left = others(s.rank(x), &axes);
    let sum = s.sum(x, axes)?;
    let factor = s.number(value, sum)?;
    let scaled = s.mul(sum, factor)?;
    let first = dot.batch.len() + if SIDE == 1 { 0 } else { both[0].free.len() };
    let place = |axis: &usize| match side.batch.iter().position(|batch| batch == axis) {
        Some(at) => at,
        None => first + side.free.iter().position(|free| free == axis).unwrap_or(0),
    };
    let places: Vec<usize> = left.iter().map(place).collect();
    s.spread(scaled, s.shape(s.root()), &places)
}
